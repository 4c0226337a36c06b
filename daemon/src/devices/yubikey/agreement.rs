//! Which key agreement key is the card's: its public key, on disk.
//!
//! What is sealed goes to whoever has that key. So it is asked for once: a card that
//! shows another one later is not believed, until somebody accepts it.

use std::path::{Path, PathBuf};

use crate::devices::{DeviceError, sealing};
use crate::private_file::{self, Access, PrivateFileError};
use crate::store_key::Subkey;

/// Longest file: a point of P-256, sealed, takes 106 bytes.
const MOST: usize = 256;

const CONTEXT: &[u8] = b"mlskeyd v1 yubikey agreement";

/// The note of one device.
pub(super) struct PinnedAgreement {
    path: PathBuf,
    key: Subkey,
}

impl PinnedAgreement {
    pub(super) fn new(directory: &Path, key: Subkey) -> Self {
        Self {
            path: directory.join("agreement"),
            key,
        }
    }

    /// The public key that was noted; `None`: none yet.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, DeviceError> {
        let sealed = match private_file::read_up_to(&self.path, Access::Ours, MOST) {
            Err(PrivateFileError::Absent) => return Ok(None),
            sealed => sealed.map_err(|error| self.refused(&error.to_string()))?,
        };
        let opened = sealing::open(self.key.expose(), CONTEXT, &sealed);
        let opened = opened.map_err(|sealing::Unauthentic| self.refused("it was changed"))?;
        Ok(Some(opened.to_vec()))
    }

    /// Notes another one, durably.
    pub(super) fn set(&self, public: &[u8]) -> Result<(), DeviceError> {
        let sealed = sealing::seal(self.key.expose(), CONTEXT, public)?;
        private_file::replace(&self.path, &sealed).map_err(|source| DeviceError::Io {
            what: "noting the card's key agreement key",
            source,
        })
    }

    /// Whichever the card has next is the right one.
    pub(super) fn forget(&self) -> Result<(), DeviceError> {
        private_file::remove(&self.path).map_err(|source| DeviceError::Io {
            what: "forgetting the card's key agreement key",
            source,
        })
    }

    fn refused(&self, why: &str) -> DeviceError {
        DeviceError::Failed {
            reason: format!("{}: {why}; put its copy back", self.path.display()),
        }
    }
}
