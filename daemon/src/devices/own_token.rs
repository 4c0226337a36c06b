//! Which token is the device's own: the serial number of the one that it first
//! worked with, on disk.
//!
//! A label names no token: one that was reset keeps it, and others may have it.
//! On another token all keys would seem to be gone, and what waits to be
//! destroyed to be destroyed; and its PIN would be tried in vain.
//!
//! ```text
//! version 1 (1 byte) | MAC of the rest, and of the version (32) | serial number
//! ```

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::devices::{DeviceError, Start};
use crate::private_file::{self, Access, PrivateFileError};
use crate::store_key::Subkey;

/// Longest serial number that is taken from a helper, in bytes: of 16 characters
/// (PKCS#11 3.1, 3.2), some of which may have been replaced by one of three bytes.
pub(super) const MAX_SERIAL: usize = 64;

const VERSION: u8 = 1;
const MAC_LEN: usize = 32;

/// The note of one device.
pub(super) struct OwnToken {
    device: String,
    path: PathBuf,
    key: Subkey,
    /// May the note not be there yet?
    may_begin: AtomicBool,
}

impl OwnToken {
    /// It is in the device's directory. `start`: does the registry know keys of
    /// the device?
    pub(super) fn new(device: &str, directory: &Path, key: Subkey, start: Start) -> Self {
        Self {
            device: device.to_owned(),
            path: directory.join("token"),
            key,
            may_begin: AtomicBool::new(start == Start::CreateIfAbsent),
        }
    }

    /// Its serial number; `None`: the device has none yet. Read each time, so that
    /// a note that was put back is seen.
    pub(super) fn serial(&self) -> Result<Option<String>, DeviceError> {
        let file =
            private_file::open_checked(&self.path, Access::Ours, OpenOptions::new().read(true));
        let file = match file {
            Err(PrivateFileError::Absent) if self.may_begin.load(Ordering::Acquire) => {
                return Ok(None);
            }
            file => file.map_err(|error| self.unknown(&error.to_string()))?,
        };
        let most = 1_usize.saturating_add(MAC_LEN).saturating_add(MAX_SERIAL);
        let mut bytes = Vec::with_capacity(most);
        // One more than the longest: what is cut might be another one.
        file.take(most.saturating_add(1) as u64)
            .read_to_end(&mut bytes)
            .map_err(|error| self.unknown(&error.to_string()))?;
        let serial = self.open(&bytes);
        let serial = serial.ok_or_else(|| {
            self.unknown("it was changed, or made under another store key or for another device")
        })?;
        self.may_begin.store(false, Ordering::Release);
        Ok(Some(serial))
    }

    /// Makes the token with this serial number the device's own, durably.
    pub(super) fn set(&self, serial: &str) -> Result<(), DeviceError> {
        let written = self.seal(serial).and_then(|bytes| {
            // From here on a note that is not there is one that was lost.
            self.may_begin.store(false, Ordering::Release);
            private_file::replace(&self.path, &bytes)
        });
        written.map_err(|source| DeviceError::Io {
            what: "noting which token is the device's own",
            source,
        })
    }

    /// Another one is there.
    pub(super) fn other(&self, own: &str, found: String) -> DeviceError {
        DeviceError::OtherToken {
            device: self.device.clone(),
            own: own.to_owned(),
            found,
        }
    }

    fn unknown(&self, what: &str) -> DeviceError {
        DeviceError::OwnTokenUnknown {
            reason: format!("{}: {what}", self.path.display()),
        }
    }

    fn seal(&self, serial: &str) -> io::Result<Vec<u8>> {
        let mac = self.mac(serial.as_bytes())?.finalize().into_bytes();
        Ok([&[VERSION], mac.as_slice(), serial.as_bytes()].concat())
    }

    fn open(&self, bytes: &[u8]) -> Option<String> {
        let rest = bytes.strip_prefix(&[VERSION])?;
        let (mac, serial) = rest.split_first_chunk::<MAC_LEN>()?;
        self.mac(serial).ok()?.verify_slice(mac).ok()?;
        String::from_utf8(serial.to_vec()).ok()
    }

    fn mac(&self, serial: &[u8]) -> io::Result<Hmac<Sha256>> {
        let mac = Hmac::<Sha256>::new_from_slice(self.key.expose());
        let mut mac = mac.map_err(io::Error::other)?;
        mac.update(&[VERSION]);
        mac.update(serial);
        Ok(mac)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use secrecy::SecretBox;

    use super::*;
    use crate::store_key::StoreKey;

    fn own(directory: &Path, key: u8, start: Start) -> OwnToken {
        let store_key = StoreKey::new(SecretBox::new(Box::new([key; 32])));
        let key = store_key.subkey("mlskeyd v1 test").unwrap();
        OwnToken::new("hsm", &directory.join("devices/hsm"), key, start)
    }

    fn why(own: &OwnToken) -> String {
        let error = own.serial().unwrap_err();
        assert!(
            matches!(error, DeviceError::OwnTokenUnknown { .. }),
            "{error}"
        );
        error.to_string()
    }

    #[test]
    fn the_first_token_is_the_devices_own_until_another_is_accepted() {
        let directory = tempfile::tempdir().unwrap();
        let fresh = own(directory.path(), 1, Start::CreateIfAbsent);
        assert_eq!(fresh.serial().unwrap(), None);
        for serial in ["a1b2", "", "\u{fffd}\u{fffd} \n", "c3d4"] {
            fresh.set(serial).unwrap();
            for start in [Start::CreateIfAbsent, Start::MustExist] {
                let again = own(directory.path(), 1, start);
                assert_eq!(again.serial().unwrap().as_deref(), Some(serial));
            }
        }
        let metadata = fs::metadata(&fresh.path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_note_that_was_lost_is_no_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let known = own(directory.path(), 1, Start::MustExist);
        assert!(why(&known).contains("does not exist"));
        // Also if it was made, or only seen, since the daemon started.
        let made = own(directory.path(), 1, Start::CreateIfAbsent);
        made.set("a1b2").unwrap();
        let seen = own(directory.path(), 1, Start::CreateIfAbsent);
        seen.serial().unwrap();
        let kept = fs::read(&made.path).unwrap();
        fs::remove_file(&made.path).unwrap();
        for lost in [&known, &made, &seen] {
            assert!(why(lost).contains("does not exist"));
        }
        fs::write(&made.path, kept).unwrap();
        fs::set_permissions(&made.path, fs::Permissions::from_mode(0o600)).unwrap();
        for back in [&known, &made, &seen] {
            assert_eq!(back.serial().unwrap().as_deref(), Some("a1b2"));
        }
    }

    #[test]
    fn a_note_that_was_changed_names_no_token() {
        let directory = tempfile::tempdir().unwrap();
        let own_token = own(directory.path(), 1, Start::CreateIfAbsent);
        own_token.set("a1b2").unwrap();
        let path = own_token.path.clone();
        let good = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            assert!(why(&own_token).contains("was changed"));
        };
        for at in 0..good.len() {
            let mut changed = good.clone();
            changed[at] ^= 1;
            refused(&changed);
            refused(&good[..at]);
        }
        refused(&[good.as_slice(), b"5"].concat());
        refused(&vec![1; 100_000]);
        fs::write(&path, &good).unwrap();
        // Another store key's, another device's.
        assert!(why(&own(directory.path(), 2, Start::CreateIfAbsent)).contains("store key"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(why(&own_token).contains("0640"));
    }
}
