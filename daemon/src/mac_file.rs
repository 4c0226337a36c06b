//! A small file of the daemon's own, under a MAC: who changes it without the store key is
//! found out.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::private_file;
use crate::store_key::Subkey;

/// Bytes of the MAC, which comes first in the file.
const MAC_LEN: usize = 32;

/// The file, its key, and how long its content may be.
pub(crate) struct MacFile {
    path: PathBuf,
    key: Subkey,
    max: usize,
}

/// Why a file that is there was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MacFileError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    #[error("it was changed, cut short, or written under another store key")]
    Damaged,
}

impl MacFile {
    /// The file of this path, under a key that nothing else is under, with at most so many
    /// bytes of content.
    pub(crate) const fn new(path: PathBuf, key: Subkey, max: usize) -> Self {
        Self { path, key, max }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its content; `None` if it is not there.
    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>, MacFileError> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let most = self.max.saturating_add(MAC_LEN);
        let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        if bytes.len() > most {
            return Err(MacFileError::TooLong(self.max));
        }
        let (tag, content) = bytes
            .split_at_checked(MAC_LEN)
            .ok_or(MacFileError::Damaged)?;
        let verified = self.mac(content)?.verify_slice(tag);
        verified.map_err(|_| MacFileError::Damaged)?;
        Ok(Some(content.to_vec()))
    }

    /// Puts other content in its place, durably: a crash leaves either.
    pub(crate) fn replace(&self, content: &[u8]) -> io::Result<()> {
        // What is written can be read.
        if content.len() > self.max {
            let why = format!("more than {} bytes are to be kept", self.max);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        let tag = self.mac(content)?.finalize().into_bytes();
        private_file::replace(&self.path, &[tag.as_slice(), content].concat())
    }

    /// Makes durable what is there: who wrote it may have failed to.
    pub(crate) fn sync(&self) -> io::Result<()> {
        private_file::sync_directory(self.path.parent().unwrap_or(Path::new("/")))
    }

    fn mac(&self, content: &[u8]) -> io::Result<Hmac<Sha256>> {
        let mac = <Hmac<Sha256> as Mac>::new_from_slice(self.key.expose());
        mac.map(|mac| mac.chain_update(content))
            .map_err(io::Error::other)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use secrecy::SecretBox;

    use super::*;
    use crate::store_key::{KEY_LEN, StoreKey};

    /// One under a key that is derived from a store key of this byte.
    pub(crate) fn file(path: PathBuf, key: u8, max: usize) -> MacFile {
        let key = StoreKey::new(SecretBox::new(Box::new([key; KEY_LEN])));
        MacFile::new(path, key.subkey("a test's").unwrap(), max)
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below/it");
        let kept = file(path.clone(), 1, 10);
        assert_eq!(kept.read().unwrap(), None);
        for content in [&b""[..], b"0123456789", b"short"] {
            kept.replace(content).unwrap();
            assert_eq!(kept.read().unwrap().unwrap(), content);
        }
        let other_key = file(path.clone(), 2, 10).read();
        assert!(matches!(other_key, Err(MacFileError::Damaged)));

        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert!(matches!(kept.read(), Err(MacFileError::Damaged)), "{at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(matches!(kept.read(), Err(MacFileError::Damaged)), "{at}");
        }
    }

    #[test]
    fn it_is_bounded_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it");
        let kept = file(path.clone(), 1, 10);
        kept.replace(b"01234567890").unwrap_err();
        assert!(!path.exists());
        // Under the right key, by one that may write more.
        file(path, 1, 11).replace(b"01234567890").unwrap();
        assert!(matches!(kept.read(), Err(MacFileError::TooLong(10))));
    }
}
