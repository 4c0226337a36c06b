//! What is noted on disk of the PIN that was tried last, so that it outlives the
//! daemon: one byte, and a MAC over that, what the PIN is for (the serial number of a
//! token, the name of a key) and the PIN. A note for something else says nothing, so
//! that with the device's own token its notes change, in one step.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use hmac::{Hmac, Mac};
use mlskeyd_protocol::v1::SecretBytes;
use sha2::Sha256;

use crate::private_file;
use crate::store_key::Subkey;

/// What is known of a PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The token, or the TPM, refused it.
    Wrong,
    /// Nothing worse than this.
    Tried {
        /// It has been taken before.
        was_right: bool,
        /// So many tries of it have had no answer since: each may have been counted.
        unanswered: u8,
    },
}

impl Known {
    /// Of a PIN that was never tried.
    pub(super) const NOTHING: Self = Self::Tried {
        was_right: false,
        unanswered: 0,
    };

    /// Of one that was just taken.
    pub(super) const RIGHT: Self = Self::Tried {
        was_right: true,
        unanswered: 0,
    };

    /// The same, once it is tried now; `None`: it must not be.
    pub(super) const fn tried(self) -> Option<Self> {
        match self {
            Self::Wrong => None,
            Self::Tried {
                was_right,
                unanswered,
            } => Some(Self::Tried {
                was_right,
                unanswered: unanswered.saturating_add(1),
            }),
        }
    }

    const WRONG_BYTE: u8 = u8::MAX;
    const RIGHT_BIT: u8 = 0x80;
    const MOST: u8 = 0x7e;

    const fn to_byte(self) -> u8 {
        match self {
            Self::Wrong => Self::WRONG_BYTE,
            Self::Tried {
                was_right: true,
                unanswered,
            } => Self::RIGHT_BIT | Self::bounded(unanswered),
            Self::Tried { unanswered, .. } => Self::bounded(unanswered),
        }
    }

    const fn from_byte(byte: u8) -> Self {
        if byte == Self::WRONG_BYTE {
            return Self::Wrong;
        }
        Self::Tried {
            was_right: byte & Self::RIGHT_BIT != 0,
            unanswered: byte & !Self::RIGHT_BIT,
        }
    }

    const fn bounded(unanswered: u8) -> u8 {
        if unanswered > Self::MOST {
            Self::MOST
        } else {
            unanswered
        }
    }
}

/// The note of one device, or of one key.
pub(super) struct Note {
    path: PathBuf,
    key: Arc<Subkey>,
}

impl Note {
    pub(super) const fn new(path: PathBuf, key: Arc<Subkey>) -> Self {
        Self { path, key }
    }

    /// What is noted of this PIN; nothing if the note is of another one, or if the PIN
    /// then was for something else than `what`: the token with this serial number, or
    /// the key of this name.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn read(&self, what: &str, pin: &SecretBytes) -> io::Result<Known> {
        let note = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Known::NOTHING),
            note => note?,
        };
        let Some((byte, mac)) = note.split_first() else {
            return Ok(Known::NOTHING);
        };
        let is_of_it = self.mac(*byte, what, pin)?.verify_slice(mac).is_ok();
        Ok(if is_of_it {
            Known::from_byte(*byte)
        } else {
            Known::NOTHING
        })
    }

    /// Notes this of a PIN for `what`, as [`Self::read`] has it, durably.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn write(&self, what: &str, pin: &SecretBytes, known: Known) -> io::Result<()> {
        let byte = known.to_byte();
        let mac = self.mac(byte, what, pin)?.finalize().into_bytes();
        private_file::replace(&self.path, &[&[byte], mac.as_slice()].concat())
    }

    /// Takes the note away, durably: there is nothing bad to be known.
    ///
    /// # Errors
    /// What the system says.
    #[cfg(feature = "tpm2")]
    pub(super) fn forget(&self) -> io::Result<()> {
        private_file::remove(&self.path)
    }

    fn mac(&self, byte: u8, what: &str, pin: &SecretBytes) -> io::Result<Hmac<Sha256>> {
        let mac = Hmac::<Sha256>::new_from_slice(self.key.expose());
        let mut mac = mac.map_err(io::Error::other)?;
        mac.update(&[byte]);
        mac.update(&(what.len() as u64).to_be_bytes());
        mac.update(what.as_bytes());
        mac.update(pin.expose());
        Ok(mac)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use secrecy::SecretBox;

    use super::*;
    use crate::store_key::StoreKey;

    const TOKEN: &str = "0a1b2c3d";

    fn note(directory: &Path) -> Note {
        let store_key = StoreKey::new(SecretBox::new(Box::new([1; 32])));
        let key = store_key.subkey("mlskeyd v1 test").unwrap();
        Note::new(directory.join("device/note"), Arc::new(key))
    }

    fn pin(text: &str) -> SecretBytes {
        SecretBytes::new(text.as_bytes().to_vec())
    }

    #[test]
    fn what_is_noted_is_known_of_that_pin_alone() {
        let directory = tempfile::tempdir().unwrap();
        let note = note(directory.path());
        let tried = |was_right, unanswered| Known::Tried {
            was_right,
            unanswered,
        };
        assert_eq!(note.read(TOKEN, &pin("1234")).unwrap(), Known::NOTHING);
        for known in [
            Known::Wrong,
            Known::RIGHT,
            tried(false, 1),
            tried(true, 2),
            tried(true, 0x7e),
        ] {
            note.write(TOKEN, &pin("1234"), known).unwrap();
            assert_eq!(note.read(TOKEN, &pin("1234")).unwrap(), known);
            assert_eq!(note.read(TOKEN, &pin("4321")).unwrap(), Known::NOTHING);
            assert_eq!(note.read("0a1b", &pin("1234")).unwrap(), Known::NOTHING);
        }
        note.write(TOKEN, &pin("1234"), tried(true, 0x7f)).unwrap();
        assert_eq!(note.read(TOKEN, &pin("1234")).unwrap(), tried(true, 0x7e));
    }

    #[test]
    fn a_note_cannot_be_bettered_and_does_not_hold_the_pin() {
        let directory = tempfile::tempdir().unwrap();
        let note = note(directory.path());
        note.write(TOKEN, &pin("27182818"), Known::Wrong).unwrap();
        let mut bytes = fs::read(&note.path).unwrap();
        assert_eq!(bytes.len(), 33);
        assert!(!bytes.windows(4).any(|window| window == b"2718"));
        bytes[0] = Known::RIGHT.to_byte();
        fs::write(&note.path, &bytes).unwrap();
        // It counts for no more than a note that was taken away.
        assert_eq!(note.read(TOKEN, &pin("27182818")).unwrap(), Known::NOTHING);
    }
}
