//! Which slots the daemon has made keys in: a small file, written before a slot is
//! touched and after, so that after a crash it is known which keys are its own.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mlskeyd_protocol::v1::KeyId;
use serde::{Deserialize, Serialize};

use crate::config::Slot;
use crate::devices::{DeviceError, GenerationId, sealing};
use crate::private_file::{self, Access, PrivateFileError};
use crate::store_key::Subkey;

/// Longest file: far more than 24 entries take.
const MOST: usize = 64 * 1024;

const CONTEXT: &[u8] = b"mlskeyd v1 yubikey slots";

/// A slot that the daemon has used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) slot: Slot,
    pub(super) content: Content,
}

/// What is in a slot that the daemon has used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Content {
    /// It was empty, and a key is about to be made there, or was; with the card's number
    /// for its kind.
    Reserved { generation: [u8; 16], curve: u8 },
    /// A key in custody.
    Key {
        generation: [u8; 16],
        key: [u8; 16],
        public: Vec<u8>,
    },
    /// The key that was in custody is about to be overwritten, or was.
    Ending {
        generation: [u8; 16],
        public: Vec<u8>,
    },
    /// A key that nobody needs, which took the place of one that was destroyed.
    Filler { public: Vec<u8> },
}

impl Content {
    /// The generation whose end is the end of it.
    pub(super) fn generation(&self) -> Option<GenerationId> {
        match self {
            Self::Reserved { generation, .. }
            | Self::Key { generation, .. }
            | Self::Ending { generation, .. } => Some(GenerationId::from_bytes(*generation)),
            Self::Filler { .. } => None,
        }
    }
}

/// The file of one device.
pub(super) struct Ledger {
    path: PathBuf,
    key: Subkey,
    /// As it was read or written last.
    known: Mutex<Option<Vec<Entry>>>,
}

impl Ledger {
    pub(super) fn new(directory: &Path, key: Subkey) -> Self {
        Self {
            path: directory.join("slots"),
            key,
            known: Mutex::default(),
        }
    }

    /// All entries. A file that is lost makes no slot free: the card says what is in it.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, DeviceError> {
        let mut known = self.known();
        if let Some(known) = &*known {
            return Ok(known.clone());
        }
        let read = self.read()?;
        *known = Some(read.clone());
        Ok(read)
    }

    /// Is this key, and no other, in this slot?
    pub(super) fn has(&self, slot: Slot, id: KeyId) -> Result<bool, DeviceError> {
        let is_it = |entry: &Entry| {
            let of_key = matches!(&entry.content, Content::Key { key, .. } if key == id.as_bytes());
            entry.slot == slot && of_key
        };
        Ok(self.entries()?.iter().any(is_it))
    }

    /// Notes what is in a slot, durably; `None`: nothing of ours.
    pub(super) fn note(&self, slot: Slot, content: Option<Content>) -> Result<(), DeviceError> {
        let mut entries = self.entries()?;
        entries.retain(|entry| entry.slot != slot);
        entries.extend(content.map(|content| Entry { slot, content }));
        let written = postcard::to_stdvec(&entries)
            .map_err(|_| self.refused("the slots could not be encoded"))?;
        let sealed = sealing::seal(self.key.expose(), CONTEXT, &written)?;
        // Whether it was written is not known until it was.
        *self.known() = None;
        private_file::replace(&self.path, &sealed).map_err(|source| DeviceError::Io {
            what: "noting what is in a slot",
            source,
        })?;
        *self.known() = Some(entries);
        Ok(())
    }

    /// What it guards is whole even if some thread died.
    fn known(&self) -> MutexGuard<'_, Option<Vec<Entry>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<Vec<Entry>, DeviceError> {
        let sealed = match private_file::read_up_to(&self.path, Access::Ours, MOST) {
            Err(PrivateFileError::Absent) => return Ok(Vec::new()),
            sealed => sealed.map_err(|error| self.refused(&error.to_string()))?,
        };
        let opened = sealing::open(self.key.expose(), CONTEXT, &sealed)
            .map_err(|sealing::Unauthentic| self.refused("it was changed"))?;
        postcard::from_bytes(&opened).map_err(|_| self.refused("it is of another version"))
    }

    fn refused(&self, why: &str) -> DeviceError {
        DeviceError::Failed {
            reason: format!("{}: {why}; put its copy back", self.path.display()),
        }
    }
}
