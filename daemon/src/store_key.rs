//! The store key: the one secret that everything at rest hangs under.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use hkdf::Hkdf;
use rand_core::{OsRng, RngCore};
use secrecy::{ExposeSecret, SecretBox};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::failpoint;
use crate::private_file::{self, Access, PrivateFileError};

/// Length of the store key and of each subkey, in bytes.
pub const KEY_LEN: usize = 32;

/// The store key: 32 uniformly random bytes, raw in their file.
///
/// It is used for nothing but to derive [`Subkey`]s.
pub struct StoreKey(SecretBox<[u8; KEY_LEN]>);

/// A key derived from the store key for one purpose: 32 bytes.
pub struct Subkey(SecretBox<[u8; KEY_LEN]>);

/// Why there is no store key.
#[derive(Debug, thiserror::Error)]
pub enum StoreKeyError {
    /// No file of that name.
    #[error(
        "the store key {} does not exist; put its copy back, or, if nothing was ever stored under it, create a new one",
        .0.display()
    )]
    Absent(PathBuf),
    /// A store key is there already.
    #[error("the store key {} exists already and is not replaced; start without creating one", .0.display())]
    Exists(PathBuf),
    /// The file is there and cannot be trusted.
    #[error(
        "the store key {} is refused: {why}; it has to be a regular file of exactly {KEY_LEN} bytes, owned by the daemon's user, mode 0600",
        path.display()
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No credentials were passed to this process.
    #[error(
        "no credential {name:?}: the service manager passed none ($CREDENTIALS_DIRECTORY is not set); add LoadCredential= or LoadCredentialEncrypted= to the unit"
    )]
    NoCredentials {
        /// The credential that was asked for.
        name: String,
    },
    /// The file could not be read or written.
    #[error("the store key {} cannot be read or written: {source}; check the file system, then start again", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no random bytes.
    #[error("the system gives no random bytes; start again later")]
    NoRandomness,
    /// The key derivation refused its output length.
    #[error("the key derivation failed; this is a defect, please report it")]
    Derivation,
}

impl StoreKey {
    /// Wraps 32 uniformly random bytes.
    #[must_use]
    pub const fn new(key: SecretBox<[u8; KEY_LEN]>) -> Self {
        Self(key)
    }

    /// Loads the key from a file of exactly 32 bytes that belongs to the
    /// daemon's user and that nobody else can read.
    ///
    /// # Errors
    /// [`StoreKeyError::Absent`], [`StoreKeyError::Refused`] or
    /// [`StoreKeyError::Io`]; the file is never changed.
    pub fn load_file(path: &Path) -> Result<Self, StoreKeyError> {
        Self::load(path, Access::Ours)
    }

    /// Loads the key from the systemd credential `name` in `directory`, which
    /// systemd tells a service in `$CREDENTIALS_DIRECTORY`.
    ///
    /// # Errors
    /// [`StoreKeyError::NoCredentials`] without a directory, and as
    /// [`StoreKey::load_file`].
    pub fn load_credential(directory: Option<&Path>, name: &str) -> Result<Self, StoreKeyError> {
        let directory = directory.ok_or_else(|| StoreKeyError::NoCredentials {
            name: name.to_owned(),
        })?;
        Self::load(&directory.join(name), Access::Credential)
    }

    /// Makes a new key and stores it durably in a new file, mode 0600, before
    /// it is returned.
    ///
    /// # Errors
    /// [`StoreKeyError::Exists`] if there is a file: a store key is never
    /// replaced. [`StoreKeyError::Io`], [`StoreKeyError::NoRandomness`].
    pub fn create_file(path: &Path) -> Result<Self, StoreKeyError> {
        let mut key = SecretBox::new(Box::new([0; KEY_LEN]));
        fill_random(&mut key).map_err(|_| StoreKeyError::NoRandomness)?;
        write_durably(path, &key).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => StoreKeyError::Exists(path.to_owned()),
            _ => StoreKeyError::Io {
                path: path.to_owned(),
                source,
            },
        })?;
        // Another daemon that starts just now may have put its own key there:
        // what the file holds is what counts from here.
        Self::load_file(path)
    }

    fn load(path: &Path, access: Access) -> Result<Self, StoreKeyError> {
        let bytes: Zeroizing<[u8; KEY_LEN]> =
            private_file::read(path, access).map_err(|e| match e {
                PrivateFileError::Absent => StoreKeyError::Absent(path.to_owned()),
                PrivateFileError::Io(source) => StoreKeyError::Io {
                    path: path.to_owned(),
                    source,
                },
                refused => StoreKeyError::Refused {
                    path: path.to_owned(),
                    why: refused.to_string(),
                },
            })?;
        Ok(Self(SecretBox::new(Box::new(*bytes))))
    }

    /// Derives the subkey for one purpose: HKDF-SHA256 (RFC 5869), no salt, the
    /// store key as input, `label` as info. Labels begin with `mlskeyd v1 `.
    ///
    /// # Errors
    /// [`StoreKeyError::Derivation`], which 32 bytes of output cannot cause.
    pub fn subkey(&self, label: &str) -> Result<Subkey, StoreKeyError> {
        let mut subkey = SecretBox::new(Box::new([0; KEY_LEN]));
        Hkdf::<Sha256>::new(None, self.0.expose_secret())
            .expand(label.as_bytes(), expose_mut(&mut subkey))
            .map_err(|_| StoreKeyError::Derivation)?;
        Ok(Subkey(subkey))
    }
}

impl Subkey {
    /// The 32 bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        self.0.expose_secret()
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(..)")
    }
}

impl fmt::Debug for Subkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subkey(..)")
    }
}

fn fill_random(key: &mut SecretBox<[u8; KEY_LEN]>) -> Result<(), rand_core::Error> {
    OsRng.try_fill_bytes(expose_mut(key))
}

fn expose_mut(key: &mut SecretBox<[u8; KEY_LEN]>) -> &mut [u8; KEY_LEN] {
    use secrecy::ExposeSecretMut as _;
    key.expose_secret_mut()
}

/// Under a temporary name first: a crash must not leave a short file that the
/// next start would refuse. The link, unlike a rename, replaces nothing.
fn write_durably(path: &Path, key: &SecretBox<[u8; KEY_LEN]>) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if path.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let temporary = path.with_extension("new");
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    private_file::create(&temporary, key.expose_secret())?;
    failpoint::hit("store-key-written");
    std::fs::hard_link(&temporary, path)?;
    std::fs::remove_file(&temporary)?;
    private_file::sync_directory(directory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_created_key_is_loaded_again_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        let made = StoreKey::create_file(&path).unwrap();
        let loaded = StoreKey::load_file(&path).unwrap();
        assert_eq!(made.0.expose_secret(), loaded.0.expose_secret());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let error = StoreKey::create_file(&path).unwrap_err();
        assert!(matches!(error, StoreKeyError::Exists(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), made.0.expose_secret());
    }

    #[test]
    fn a_crash_while_creating_does_not_block_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("store.new"), b"short").unwrap();
        StoreKey::create_file(&dir.path().join("store.key")).unwrap();
    }

    #[test]
    fn what_others_may_read_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        StoreKey::create_file(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = StoreKey::load_file(&path).unwrap_err().to_string();
            assert!(
                error.contains(&format!("{mode:04o}")) && error.contains("0600"),
                "{error}"
            );
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
        StoreKey::load_credential(Some(dir.path()), "store.key").unwrap();
    }

    #[test]
    fn only_a_regular_file_of_32_bytes_is_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        assert!(matches!(
            StoreKey::load_file(&path),
            Err(StoreKeyError::Absent(_))
        ));
        for length in [0, 31, 33, 4096] {
            let _ = fs::remove_file(&path);
            private_file::create(&path, &vec![7; length]).unwrap();
            assert!(matches!(
                StoreKey::load_file(&path),
                Err(StoreKeyError::Refused { .. })
            ));
        }
        // With nothing else to object to; a pipe must not be waited for.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for no_file in [dir.path(), &pipe] {
            let error = StoreKey::load_file(no_file).unwrap_err();
            assert!(error.to_string().contains("not a regular file"), "{error}");
        }

        let real = dir.path().join("real.key");
        StoreKey::create_file(&real).unwrap();
        let link = dir.path().join("link.key");
        symlink(&real, &link).unwrap();
        assert!(StoreKey::load_file(&link).is_err());
    }

    #[test]
    fn without_credentials_the_error_says_how_to_get_one() {
        let error = StoreKey::load_credential(None, "store-key")
            .unwrap_err()
            .to_string();
        assert!(error.contains("LoadCredential"), "{error}");
    }

    #[test]
    fn a_subkey_is_hkdf_of_its_label() {
        let key = StoreKey::new(SecretBox::new(Box::new([0x0b; 32])));
        let a = key.subkey("mlskeyd v1 a").unwrap();
        // HMAC(HMAC(0, key), label || 1), computed by another implementation.
        assert_eq!(
            hex::encode(a.expose()),
            "be28755d0681c890ab6cd1c5a50758630f4c8aaf2fc96532b02c5aeb577926ec"
        );
        assert_ne!(a.expose(), key.subkey("mlskeyd v1 b").unwrap().expose());
        assert_eq!(a.expose(), key.subkey("mlskeyd v1 a").unwrap().expose());
        assert_eq!(format!("{a:?}{key:?}"), "Subkey(..)StoreKey(..)");
    }
}
