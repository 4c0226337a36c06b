//! What a TPM device keeps on disk, in a directory of its own:
//!
//! ```text
//! <directory>/device                which TPM it is, and where in it the root is
//! <directory>/generations-<count>   the secrets of all generations, under the root of this count
//! <directory>/pin-<generation>      what is known of the PIN that was tried last on its key
//! <directory>/approvals             the approvals of measurements of the machine
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::nv::Root;
use crate::devices::pin_note::Note;
use crate::devices::{DeviceError, GenerationId, sealing};
use crate::private_file::{self, Access, PrivateFileError};
use crate::store_key::Subkey;

/// Longest file: some ten thousand generations.
pub(super) const MOST: usize = 4 * 1024 * 1024;

const DEVICE_CONTEXT: &[u8] = b"mlskeyd v1 tpm2 device";
const APPROVALS_CONTEXT: &[u8] = b"mlskeyd v1 tpm2 approvals";
const GENERATIONS: &str = "generations-";

const WRITING: &str = "writing the device's files";

/// What the device was set up with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pinned {
    /// The Name of the storage key, which is the hash of its public area.
    pub(super) parent: Vec<u8>,
    /// The NV index of the root.
    pub(super) index: u32,
}

/// The directory of one device.
pub(super) struct Files {
    directory: PathBuf,
    key: Subkey,
    /// Of what is noted of PINs.
    pins: Arc<Subkey>,
}

impl Files {
    pub(super) fn new(directory: PathBuf, key: Subkey, pins: Subkey) -> Self {
        Self {
            directory,
            key,
            pins: Arc::new(pins),
        }
    }

    /// What is noted of the PIN of a key, by its generation, which is its own.
    pub(super) fn pin_note(&self, generation: GenerationId) -> Note {
        let path = self.directory.join(format!("pin-{generation}"));
        Note::new(path, Arc::clone(&self.pins))
    }

    /// Takes away what is noted of the PIN of a key whose generation ends.
    pub(super) fn forget_pin(&self, generation: GenerationId) -> Result<(), DeviceError> {
        let forgotten = self.pin_note(generation).forget();
        forgotten.map_err(io_error("removing what is known of a PIN"))
    }

    /// What the device was set up with, if it ever was.
    pub(super) fn pinned(&self) -> Result<Option<Pinned>, DeviceError> {
        let path = self.device();
        let Some(sealed) = read(&path)? else {
            return Ok(None);
        };
        let opened = sealing::open(self.key.expose(), DEVICE_CONTEXT, &sealed);
        let opened = opened.map_err(|sealing::Unauthentic| DeviceError::Failed {
            reason: format!(
                "{} was changed, or made under another store key; put it, or that key, back",
                path.display()
            ),
        })?;
        let pinned = postcard::from_bytes(&opened);
        pinned.map(Some).map_err(|_| DeviceError::Failed {
            reason: format!("{} is of another version", path.display()),
        })
    }

    /// Notes what the device is set up with: the last step of that.
    pub(super) fn pin(&self, pinned: &Pinned) -> Result<(), DeviceError> {
        let written = postcard::to_stdvec(pinned).map_err(|_| DeviceError::Failed {
            reason: "a note could not be encoded".to_owned(),
        })?;
        let sealed = sealing::seal(self.key.expose(), DEVICE_CONTEXT, &written)?;
        private_file::replace(&self.device(), &sealed).map_err(io_error(WRITING))
    }

    /// The secrets of the generations, as they were written under this root.
    pub(super) fn generations(&self, root: &Root) -> Result<Zeroizing<Vec<u8>>, DeviceError> {
        let path = self.generations_path(root.count());
        let Some(sealed) = read(&path)? else {
            return Err(DeviceError::Missing {
                what: format!("{}, which the TPM's state belongs to,", path.display()),
            });
        };
        let encryption = root.of_generations(&self.key)?;
        let opened = sealing::open(&encryption, &context(root), &sealed);
        opened.map_err(|sealing::Unauthentic| DeviceError::Failed {
            reason: format!("{} was changed; put its copy back", path.display()),
        })
    }

    /// Writes the secrets of the generations under this root, durably.
    pub(super) fn write_generations(&self, root: &Root, secrets: &[u8]) -> Result<(), DeviceError> {
        if secrets.len().saturating_add(sealing::OVERHEAD) > MOST {
            return Err(DeviceError::Full {
                reason: "too many generations".to_owned(),
            });
        }
        let encryption = root.of_generations(&self.key)?;
        let sealed = sealing::seal(&encryption, &context(root), secrets)?;
        let path = self.generations_path(root.count());
        private_file::replace(&path, &sealed).map_err(io_error(WRITING))
    }

    /// Removes what no root opens any more: every file of generations but this one.
    pub(super) fn remove_others(&self, root: &Root) -> Result<(), DeviceError> {
        let keep = self.generations_path(root.count());
        let remove = || -> io::Result<()> {
            for path in self.all_generations()? {
                if path != keep {
                    fs::remove_file(&path)?;
                }
            }
            // Also if there was nothing: a crash may have come just before this.
            private_file::sync_directory(&self.directory)
        };
        remove().map_err(io_error("removing the device's old files"))
    }

    /// The highest count of a file of generations, whether or not it can be opened.
    pub(super) fn highest_count(&self) -> Result<u64, DeviceError> {
        let paths = match self.all_generations() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            paths => paths.map_err(io_error("reading the device's directory"))?,
        };
        let count = |path: &PathBuf| {
            let name = path.file_name()?.to_str()?;
            name.strip_prefix(GENERATIONS)?.parse().ok()
        };
        Ok(paths.iter().filter_map(count).max().unwrap_or_default())
    }

    /// The files of generations, the unfinished ones, too.
    fn all_generations(&self) -> io::Result<Vec<PathBuf>> {
        let paths = fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.path()));
        let is_one = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(GENERATIONS)
        };
        let paths: io::Result<Vec<PathBuf>> = paths.collect();
        Ok(paths?.into_iter().filter(is_one).collect())
    }

    /// The approvals, as they were written.
    pub(super) fn approvals(&self) -> Result<Option<Zeroizing<Vec<u8>>>, DeviceError> {
        let path = self.approvals_path();
        let Some(sealed) = read(&path)? else {
            return Ok(None);
        };
        let opened = sealing::open(self.key.expose(), APPROVALS_CONTEXT, &sealed);
        let opened = opened.map_err(|sealing::Unauthentic| DeviceError::Failed {
            reason: format!("{} was changed", path.display()),
        })?;
        Ok(Some(opened))
    }

    /// Writes the approvals, durably.
    pub(super) fn write_approvals(&self, approvals: &[u8]) -> Result<(), DeviceError> {
        let sealed = sealing::seal(self.key.expose(), APPROVALS_CONTEXT, approvals)?;
        private_file::replace(&self.approvals_path(), &sealed).map_err(io_error(WRITING))
    }

    fn approvals_path(&self) -> PathBuf {
        self.directory.join("approvals")
    }

    fn device(&self) -> PathBuf {
        self.directory.join("device")
    }

    fn generations_path(&self, count: u64) -> PathBuf {
        self.directory.join(format!("{GENERATIONS}{count}"))
    }
}

fn context(root: &Root) -> Vec<u8> {
    let count = root.count().to_be_bytes();
    [b"mlskeyd v1 tpm2 generations".as_slice(), &count].concat()
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, DeviceError> {
    match private_file::read_up_to(path, Access::Ours, MOST) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(PrivateFileError::Absent) => Ok(None),
        Err(PrivateFileError::Io(source)) => Err(DeviceError::Io {
            what: "reading the device's files",
            source,
        }),
        Err(refused) => Err(DeviceError::Failed {
            reason: format!(
                "{} is refused: {refused}; it has to be a regular file, owned by the daemon's user, mode 0600",
                path.display()
            ),
        }),
    }
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> DeviceError {
    move |source| DeviceError::Io { what, source }
}
