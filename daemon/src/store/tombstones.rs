//! What is destroyed, written where no old copy of the database can undo it:
//! an append-only file beside it.
//!
//! An entry is 50 bytes: kind (1: a key; 2: a generation), key id (16 bytes;
//! zeros for a generation), generation id (16), a reserved zero, and 16 bytes of
//! MAC over all of these. A crash can only leave a short last entry, whose
//! operation was never acknowledged.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mlskeyd_protocol::v1::KeyId;

use super::error::{OpenError, StoreError};
use super::mac::RowMac;
use crate::devices::GenerationId;

/// The file's name in the state directory.
pub(super) const FILE: &str = "tombstones";

const DOMAIN: &str = "tombstones";
const SIGNED_LEN: usize = 34;
const ENTRY_LEN: usize = 50;
const KIND_KEY: u8 = 1;
const KIND_GENERATION: u8 = 2;

/// One destroyed thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tombstone {
    /// A key, which hung under this generation.
    Key(KeyId, GenerationId),
    /// A generation, with all of its keys.
    Generation(GenerationId),
}

impl Tombstone {
    fn encode(self, mac: &RowMac) -> Vec<u8> {
        let (kind, key, generation) = match self {
            Self::Key(key, generation) => (KIND_KEY, *key.as_bytes(), generation),
            Self::Generation(generation) => (KIND_GENERATION, [0; 16], generation),
        };
        let mut entry = vec![kind];
        entry.extend_from_slice(&key);
        entry.extend_from_slice(generation.as_bytes());
        entry.push(0);
        let tag = mac.tag(DOMAIN, &entry);
        entry.extend_from_slice(&tag);
        entry
    }

    fn decode(entry: &[u8], mac: &RowMac) -> Option<Self> {
        let (signed, tag) = entry.split_at_checked(SIGNED_LEN)?;
        if !bool::from(subtle::ConstantTimeEq::ct_eq(
            mac.tag(DOMAIN, signed).as_slice(),
            tag,
        )) {
            return None;
        }
        let (kind, rest) = signed.split_first()?;
        let (key, rest) = rest.split_first_chunk::<16>()?;
        let (generation, _) = rest.split_first_chunk::<16>()?;
        let generation = GenerationId::from_bytes(*generation);
        match *kind {
            KIND_KEY => Some(Self::Key(KeyId::from_bytes(*key), generation)),
            KIND_GENERATION => Some(Self::Generation(generation)),
            _ => None,
        }
    }
}

/// The open file.
pub(super) struct Tombstones {
    path: PathBuf,
    file: File,
    /// The file's length up to the last entry that is durable.
    length: u64,
    /// May part of an entry lie behind that?
    torn: bool,
}

impl Tombstones {
    /// Reads what is destroyed and drops what needs no entry any more: keys of
    /// a destroyed generation. Entries that do not verify are kept as they are.
    pub(super) fn open(dir: &Path, mac: &RowMac) -> Result<(Self, Vec<Tombstone>), OpenError> {
        let path = dir.join(FILE);
        open_and_tidy(&path, mac)
            .and_then(|(file, stones)| {
                let tombstones = Self {
                    path: path.clone(),
                    length: file.metadata()?.len(),
                    file,
                    torn: false,
                };
                Ok((tombstones, stones))
            })
            .map_err(|source| OpenError::Io { path, source })
    }

    /// Makes entries durable.
    pub(super) fn append(&mut self, mac: &RowMac, stones: &[Tombstone]) -> Result<(), StoreError> {
        let bytes: Vec<u8> = stones.iter().flat_map(|stone| stone.encode(mac)).collect();
        self.append_durably(&bytes)
            .map_err(|e| StoreError::Unavailable(format!("{}: {e}", self.path.display())))
    }

    /// What a failed append left is cut off before anything follows it: later
    /// entries would be read out of step.
    fn append_durably(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.length)?;
        }
        self.torn = true;
        self.file.write_all(bytes)?;
        self.file.sync_data()?;
        self.length = self.file.metadata()?.len();
        self.torn = false;
        Ok(())
    }
}

fn open_and_tidy(path: &Path, mac: &RowMac) -> io::Result<(File, Vec<Tombstone>)> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        file => {
            file?.read_to_end(&mut bytes)?;
        }
    }
    let entries: Vec<(&[u8], Option<Tombstone>)> = bytes
        .chunks_exact(ENTRY_LEN)
        .map(|entry| (entry, Tombstone::decode(entry, mac)))
        .collect();
    let gone: HashSet<GenerationId> = entries
        .iter()
        .filter_map(|(_, stone)| match stone {
            Some(Tombstone::Generation(generation)) => Some(*generation),
            _ => None,
        })
        .collect();
    let mut kept = Vec::new();
    let mut stones = Vec::new();
    for (entry, stone) in entries {
        match stone {
            Some(Tombstone::Key(_, generation)) if gone.contains(&generation) => continue,
            Some(stone) => stones.push(stone),
            None => tracing::error!("an entry of {} does not verify; it is kept", path.display()),
        }
        kept.extend_from_slice(entry);
    }
    if kept.len() != bytes.len() || !path.exists() {
        replace(path, &kept)?;
    }
    Ok((OpenOptions::new().append(true).open(path)?, stones))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_append_left_is_cut_off_first() {
        let dir = tempfile::tempdir().unwrap();
        let mac = RowMac::new(&[7; 32]);
        let stone = |n| Tombstone::Generation(GenerationId::from_bytes([n; 16]));
        let (mut tombstones, _) = Tombstones::open(dir.path(), &mac).unwrap();
        tombstones.append(&mac, &[stone(1)]).unwrap();
        // It takes no byte, and cannot be truncated.
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut tombstones.file, full);
        for _ in 0..2 {
            assert!(tombstones.append(&mac, &[stone(2)]).is_err());
        }
        tombstones.file = file;
        tombstones.file.write_all(b"part of an entry").unwrap();
        tombstones.append(&mac, &[stone(3)]).unwrap();
        let (_, stones) = Tombstones::open(dir.path(), &mac).unwrap();
        assert_eq!(stones, [stone(1), stone(3)]);
    }
}
