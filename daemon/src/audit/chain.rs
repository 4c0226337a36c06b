//! The layout of the log file, and the chain of hashes through it.
//!
//! ```text
//! file   = header entry*
//! header = magic (16 bytes) random (16 bytes)
//! entry  = length (4) check (4) record (length) length (4) hash (32)
//! check  = the first 4 bytes of SHA-256(previous hash || length)
//! hash   = SHA-256(previous hash || length || record)
//! ```
//!
//! Numbers are big-endian. The hash before the first entry is SHA-256(header).
//! The check tells a length that was changed from one whose entry a power cut
//! tore off. The second length lets a reader step backwards from the end.

use std::io::{self, ErrorKind, Read};

use rand_core::{OsRng, RngCore};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::record::{Entry, MAX_RECORD, decode};

pub(super) type Hash = [u8; 32];

pub(super) const HEADER_LEN: usize = 32;
pub(super) const HEAD_LEN: usize = 8;
pub(super) const TAIL_LEN: usize = 36;
const MAGIC: [u8; 16] = *b"mlskeyd-audit-1\n";

/// A place in the file between two entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    /// Bytes before it.
    pub(super) offset: u64,
    /// Number of the entry before it; 0: there is none.
    pub(super) sequence: u64,
    /// Hash of the entry before it, and so of all before that.
    pub(super) hash: Hash,
}

/// A new header, unlike all others: entries of one log fit no other.
pub(super) fn new_header() -> io::Result<[u8; HEADER_LEN]> {
    let mut header = [0; HEADER_LEN];
    let (magic, random) = header.split_at_mut(MAGIC.len());
    magic.copy_from_slice(&MAGIC);
    OsRng.try_fill_bytes(random).map_err(io::Error::other)?;
    Ok(header)
}

/// The place before the first entry; `None` if this is not a header.
pub(super) fn after_header(header: &[u8; HEADER_LEN]) -> Option<Tip> {
    header.starts_with(&MAGIC).then(|| Tip {
        offset: HEADER_LEN as u64,
        sequence: 0,
        hash: Sha256::digest(header).into(),
    })
}

/// Is this the beginning of a header, and not all of it?
pub(super) fn is_torn_header(bytes: &[u8]) -> bool {
    bytes.len() < HEADER_LEN && bytes.iter().zip(&MAGIC).all(|(is, should)| is == should)
}

/// Appends the entry with this encoded record to `out`; answers the place after
/// it.
pub(super) fn append(tip: &Tip, record: &[u8], out: &mut Vec<u8>) -> Option<Tip> {
    let length = u32::try_from(record.len()).ok()?.to_be_bytes();
    let hash = hash(&tip.hash, length, record);
    let before = out.len();
    for part in [
        &length[..],
        &check(&tip.hash, length),
        record,
        &length,
        &hash,
    ] {
        out.extend_from_slice(part);
    }
    let written = u64::try_from(out.len().checked_sub(before)?).ok()?;
    Some(Tip {
        offset: tip.offset.checked_add(written)?,
        sequence: tip.sequence.checked_add(1)?,
        hash,
    })
}

fn check(previous: &Hash, length: [u8; 4]) -> [u8; 4] {
    let digest = Sha256::new()
        .chain_update(previous)
        .chain_update(length)
        .finalize();
    let mut check = [0; 4];
    for (to, from) in check.iter_mut().zip(digest) {
        *to = from;
    }
    check
}

fn hash(previous: &Hash, length: [u8; 4], record: &[u8]) -> Hash {
    Sha256::new()
        .chain_update(previous)
        .chain_update(length)
        .chain_update(record)
        .finalize()
        .into()
}

/// The length of the entry whose first length field says this.
pub(super) fn entry_len(record_len: u32) -> Option<u64> {
    let record_len = usize::try_from(record_len)
        .ok()
        .filter(|len| *len <= MAX_RECORD)?;
    u64::try_from(record_len.checked_add(HEAD_LEN)?.checked_add(TAIL_LEN)?).ok()
}

/// Why an entry could not be read.
#[derive(Debug)]
pub(super) enum Stop {
    /// The file ends exactly here.
    End,
    /// The file ends within the entry.
    Torn,
    /// The entry is whole, and was changed.
    Broken(&'static str),
    Io(io::Error),
}

/// Reads the entry after `tip`. A `known` sequence must go on without a gap;
/// without one (the walk began somewhere within the file) it is learnt.
pub(super) fn read_entry(
    from: &mut impl Read,
    tip: &Tip,
    known: bool,
) -> Result<(Entry, Tip), Stop> {
    let mut length = [0; 4];
    read_part(from, &mut length, true)?;
    let mut written_check = [0; 4];
    read_part(from, &mut written_check, false)?;
    if written_check != check(&tip.hash, length) {
        return Err(Stop::Broken(
            "its length, or the entry before it, was changed",
        ));
    }
    let record_len = u32::from_be_bytes(length);
    let whole = entry_len(record_len).ok_or(Stop::Broken("it is longer than any record"))?;
    let mut record = vec![0; usize::try_from(record_len).unwrap_or(MAX_RECORD)];
    read_part(from, &mut record, false)?;
    let (mut length_again, mut written_hash) = ([0; 4], [0; 32]);
    read_part(from, &mut length_again, false)?;
    read_part(from, &mut written_hash, false)?;

    let hash = hash(&tip.hash, length, &record);
    if written_hash != hash || length_again != length {
        return Err(Stop::Broken("its content was changed"));
    }
    let entry = decode(&record).ok_or(Stop::Broken("it is no record that this version knows"))?;
    if known && Some(entry.sequence) != tip.sequence.checked_add(1) {
        return Err(Stop::Broken("its number does not follow the one before it"));
    }
    let offset = tip.offset.saturating_add(whole);
    let tip = Tip {
        offset,
        sequence: entry.sequence,
        hash,
    };
    Ok((entry, tip))
}

/// Fills `part`. The end of the file is [`Stop::End`] only `at_start` of an
/// entry.
fn read_part(from: &mut impl Read, part: &mut [u8], at_start: bool) -> Result<(), Stop> {
    let mut filled = 0;
    while let Some(rest) = part.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) if at_start && filled == 0 => return Err(Stop::End),
            Ok(0) => return Err(Stop::Torn),
            Ok(n) => filled = filled.saturating_add(n),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(Stop::Io(e)),
        }
    }
    Ok(())
}
