//! Which key is in a slot that the daemon relies on: its public key, on disk.
//!
//! What is sealed goes to whoever has the key agreement key, and consent is given by
//! whoever has the consent key. So each is asked for once: a card that shows another one
//! later is not believed, until somebody accepts it.

use std::path::{Path, PathBuf};

use crate::devices::{DeviceError, sealing};
use crate::private_file::{self, Access, PrivateFileError};
use crate::store_key::Subkey;

/// Longest file: a point of P-256, sealed, takes 106 bytes.
const MOST: usize = 256;

/// The note of one such key of one device.
pub(super) struct PinnedKey {
    path: PathBuf,
    key: Subkey,
}

impl PinnedKey {
    /// In the device's directory; `name`: what the key is for.
    pub(super) fn new(directory: &Path, name: &str, key: Subkey) -> Self {
        Self {
            path: directory.join(name),
            key,
        }
    }

    /// Is it this public key? The first one that is asked for is noted, durably.
    pub(super) fn is_or_becomes(&self, public: &[u8]) -> Result<bool, DeviceError> {
        let sealed = match private_file::read_up_to(&self.path, Access::Ours, MOST) {
            Err(PrivateFileError::Absent) => {
                self.set(public)?;
                return Ok(true);
            }
            sealed => sealed.map_err(|error| self.refused(&error.to_string()))?,
        };
        let opened = sealing::open(self.key.expose(), CONTEXT, &sealed);
        let opened = opened.map_err(|sealing::Unauthentic| self.refused("it was changed"))?;
        Ok(opened.as_slice() == public)
    }

    fn set(&self, public: &[u8]) -> Result<(), DeviceError> {
        let sealed = sealing::seal(self.key.expose(), CONTEXT, public)?;
        private_file::replace(&self.path, &sealed).map_err(|source| DeviceError::Io {
            what: "noting a key of the card",
            source,
        })
    }

    /// Whichever the card has next is the right one.
    pub(super) fn forget(&self) -> Result<(), DeviceError> {
        private_file::remove(&self.path).map_err(|source| DeviceError::Io {
            what: "forgetting a key of the card",
            source,
        })
    }

    fn refused(&self, why: &str) -> DeviceError {
        DeviceError::Failed {
            reason: format!("{}: {why}; put its copy back", self.path.display()),
        }
    }
}

/// Each key's file is under a subkey of its own.
const CONTEXT: &[u8] = b"mlskeyd v1 yubikey pinned";
