//! The generation keys of devices that keep them on disk: one file each, encrypted
//! under the store key.
//!
//! ```text
//! <directory>/device              shows that the directory and the store key fit
//! <directory>/generations/<id>    one generation key each
//! ```
//!
//! Whoever has yesterday's copy of this directory *and* the store key has
//! yesterday's generations: keep the directory out of backups. A destroyed
//! generation's file is overwritten before it is removed, which a copy-on-write file
//! system or flash storage does not turn into erasure.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::devices::private_key::fill_random;
use crate::devices::sealing::{self, Unauthentic};
use crate::devices::{DeviceError, GenerationId, Start};
use crate::failpoint;
use crate::private_file::{self, Access, PrivateFileError};
use crate::store_key::{StoreKey, Subkey};

/// Length of each file: 32 bytes, sealed.
const SEALED_LEN: usize = 32 + sealing::OVERHEAD;

/// A generation's file begins with it while it is being destroyed: the version
/// byte of no sealed secret.
const DESTROYED: [u8; SEALED_LEN] = [0; SEALED_LEN];

/// What the file `device` seals.
const MARKER: [u8; 32] = [0; 32];

/// How many decrypted generation keys stay in memory: 32 bytes and a bit each.
const CACHED: usize = 1024;

/// The generation keys of one device.
pub(super) struct Generations {
    /// The device's kind: what one wrote is of no use to another.
    kind: &'static str,
    device: PathBuf,
    directory: PathBuf,
    wrapping: Subkey,
    cache: HashMap<GenerationId, Zeroizing<[u8; 32]>>,
}

impl Generations {
    pub(super) fn open(
        kind: &'static str,
        root: &Path,
        store_key: &StoreKey,
        start: Start,
    ) -> Result<Self, DeviceError> {
        let wrapping = store_key
            .subkey(&format!("mlskeyd v1 {kind} generation"))
            .map_err(|e| DeviceError::Failed {
                reason: e.to_string(),
            })?;
        let generations = Self {
            kind,
            device: root.join("device"),
            directory: root.join("generations"),
            wrapping,
            cache: HashMap::new(),
        };
        match private_file::read::<SEALED_LEN>(&generations.device, Access::Ours) {
            Ok(marker) => generations.check_marker(marker.as_slice())?,
            Err(PrivateFileError::Absent) if start == Start::CreateIfAbsent => {
                generations.create_directories(root)?;
            }
            Err(e) => return Err(file_error(&generations.device, e)),
        }
        generations.check_directory()?;
        Ok(generations)
    }

    /// The key of a generation.
    pub(super) fn key(&mut self, id: GenerationId) -> Result<&[u8; 32], DeviceError> {
        if !self.cache.contains_key(&id) {
            let key = self.read(id)?;
            self.remember(id, key);
        }
        self.cache
            .get(&id)
            .map(|key| &**key)
            .ok_or(DeviceError::GenerationGone(id))
    }

    /// Makes a generation durably: a name that appears only with its whole
    /// content behind it.
    pub(super) fn create(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        self.check_directory()?;
        let path = self.path(id);
        if exists(&path)? {
            return Err(DeviceError::GenerationExists(id));
        }
        let mut key = Zeroizing::new([0; 32]);
        fill_random(key.as_mut_slice())?;
        let sealed = sealing::seal(self.wrapping.expose(), &self.context(id), key.as_slice())?;

        let unfinished = self.unfinished_path(id);
        remove(&unfinished)?;
        private_file::create(&unfinished, &sealed).map_err(io_error("writing a generation key"))?;
        failpoint::hit("generation-written");
        fs::rename(&unfinished, &path).map_err(io_error("naming a generation key"))?;
        failpoint::hit("generation-named");
        self.sync_directory()?;
        failpoint::hit("generation-created");
        self.remember(id, key);
        Ok(())
    }

    /// Destroys a generation durably: first its content, then its name.
    pub(super) fn destroy(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        self.cache.remove(&id);
        self.check_directory()?;
        for path in [self.unfinished_path(id), self.path(id)] {
            if !exists(&path)? {
                continue;
            }
            overwrite(&path)?;
            failpoint::hit("generation-overwritten");
            remove(&path)?;
            failpoint::hit("generation-removed");
        }
        // Also if there was nothing: a crash may have come just before this.
        self.sync_directory()?;
        failpoint::hit("generation-destroyed");
        Ok(())
    }

    /// Reading one again costs microseconds: not worth an order of use.
    fn remember(&mut self, id: GenerationId, key: Zeroizing<[u8; 32]>) {
        if self.cache.len() >= CACHED {
            self.cache.clear();
        }
        self.cache.insert(id, key);
    }

    fn read(&self, id: GenerationId) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
        let path = self.path(id);
        let sealed = match private_file::read::<SEALED_LEN>(&path, Access::Ours) {
            Err(PrivateFileError::Absent) => {
                self.check_directory()?;
                return Err(DeviceError::GenerationGone(id));
            }
            other => other.map_err(|e| file_error(&path, e))?,
        };
        if sealed.first() == DESTROYED.first() {
            return Err(DeviceError::GenerationGone(id));
        }
        let opened =
            sealing::open_array(self.wrapping.expose(), &self.context(id), sealed.as_slice());
        opened.map_err(|Unauthentic| DeviceError::Failed {
            reason: format!("{} was changed; put its copy back", path.display()),
        })
    }

    fn check_marker(&self, marker: &[u8]) -> Result<(), DeviceError> {
        match sealing::open(self.wrapping.expose(), &self.marker_context(), marker) {
            Ok(_) => Ok(()),
            Err(Unauthentic) => Err(DeviceError::Failed {
                reason: format!(
                    "{} was made under another store key; give the daemon that store key again",
                    self.device.display()
                ),
            }),
        }
    }

    /// The marker comes last, so that it stands for everything before it.
    fn create_directories(&self, root: &Path) -> Result<(), DeviceError> {
        for directory in [root, self.directory.as_path()] {
            match DirBuilder::new().mode(0o700).create(directory) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io_error("creating the device's directory")(e));
                }
                _ => {}
            }
        }
        let mut found =
            fs::read_dir(&self.directory).map_err(io_error("reading the generations"))?;
        if found.next().is_some() {
            // Generations without the marker: a directory that lost a part.
            return Err(missing(&self.device));
        }
        if let Some(parent) = root
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            private_file::sync_directory(parent)
                .map_err(io_error("syncing the device's directory"))?;
        }
        let marker = sealing::seal(self.wrapping.expose(), &self.marker_context(), &MARKER)?;
        let unfinished = self.device.with_extension("new");
        remove(&unfinished)?;
        private_file::create(&unfinished, &marker)
            .map_err(io_error("writing the device's marker"))?;
        failpoint::hit("device-marker-written");
        fs::rename(&unfinished, &self.device).map_err(io_error("naming the device's marker"))?;
        private_file::sync_directory(root).map_err(io_error("syncing the device's directory"))
    }

    /// A generation that is not in a directory that is there was destroyed; if
    /// the directory itself is gone, nobody knows.
    fn check_directory(&self) -> Result<(), DeviceError> {
        for path in [&self.device, &self.directory] {
            if !exists(path)? {
                return Err(missing(path));
            }
        }
        Ok(())
    }

    fn context(&self, id: GenerationId) -> Vec<u8> {
        let what = format!("mlskeyd v1 {} generation", self.kind);
        [what.as_bytes(), id.as_bytes()].concat()
    }

    fn marker_context(&self) -> Vec<u8> {
        format!("mlskeyd v1 {} device", self.kind).into_bytes()
    }

    fn sync_directory(&self) -> Result<(), DeviceError> {
        private_file::sync_directory(&self.directory).map_err(io_error("syncing the generations"))
    }

    fn path(&self, id: GenerationId) -> PathBuf {
        self.directory.join(id.to_string())
    }

    fn unfinished_path(&self, id: GenerationId) -> PathBuf {
        self.directory.join(format!("{id}.new"))
    }
}

fn exists(path: &Path) -> Result<bool, DeviceError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io_error("looking for a file of the device")(e)),
    }
}

fn overwrite(path: &Path) -> Result<(), DeviceError> {
    let mut file = private_file::open_checked(path, Access::Ours, OpenOptions::new().write(true))
        .map_err(|e| file_error(path, e))?;
    file.write_all(&DESTROYED)
        .and_then(|()| file.sync_all())
        .map_err(io_error("overwriting a generation key"))
}

fn remove(path: &Path) -> Result<(), DeviceError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(io_error("removing a file of the device")(e))
        }
        _ => Ok(()),
    }
}

fn missing(path: &Path) -> DeviceError {
    DeviceError::Missing {
        what: path.display().to_string(),
    }
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> DeviceError {
    move |source| DeviceError::Io { what, source }
}

fn file_error(path: &Path, error: PrivateFileError) -> DeviceError {
    match error {
        PrivateFileError::Absent => missing(path),
        PrivateFileError::Io(source) => DeviceError::Io {
            what: "reading a file of the device",
            source,
        },
        refused => DeviceError::Failed {
            reason: format!(
                "{} is refused: {refused}; it has to be a regular file of {SEALED_LEN} bytes, owned by the daemon's user, mode 0600",
                path.display()
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretBox;

    use super::*;

    #[test]
    fn memory_is_bounded_and_what_it_forgot_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let store_key = StoreKey::new(SecretBox::new(Box::new([1; 32])));
        let mut generations = Generations::open(
            "software",
            &directory.path().join("d"),
            &store_key,
            Start::CreateIfAbsent,
        )
        .unwrap();
        let id = |n: usize| GenerationId::from_bytes((n as u128).to_be_bytes());
        generations.create(id(0)).unwrap();
        let key = *generations.key(id(0)).unwrap();
        for n in 1..2 * CACHED {
            generations.remember(id(n), Zeroizing::new([0; 32]));
            assert!(generations.cache.len() <= CACHED);
        }
        assert!(!generations.cache.contains_key(&id(0)));
        assert_eq!(*generations.key(id(0)).unwrap(), key);
    }
}
