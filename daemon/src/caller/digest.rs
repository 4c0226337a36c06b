//! Digests of programs, each computed once as long as its file does not change.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::process::{Program, own_path};

/// Longest program that is read, in bytes.
const MAX_PROGRAM: u64 = 1024 * 1024 * 1024;

/// Most digests that are remembered.
const MAX_KNOWN: usize = 64;

/// A file that was changed only now may be changed again without its times showing it: they
/// are those of a clock that ticks slowly.
const SETTLED: Duration = Duration::from_secs(2);

/// What tells one state of a file from another: device, inode, size, and the times of its
/// last changes.
type Version = (u64, u64, u64, (i64, i64), (i64, i64));

/// The digests that are known.
#[derive(Debug, Default)]
pub(super) struct Digests(Mutex<BTreeMap<Version, [u8; 32]>>);

impl Digests {
    /// The SHA-256 of a program; `None`: it cannot be read, or is being changed. Programs are
    /// read one after the other.
    pub(super) fn of(&self, program: &Program) -> Option<[u8; 32]> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let file = File::open(own_path(program.file.as_fd())).ok()?;
        let before = file.metadata().ok()?;
        if let Some(digest) = known.get(&version(&before)) {
            return Some(*digest);
        }
        let digest = read(&file, &before).ok()?;
        if version(&file.metadata().ok()?) != version(&before) {
            return None;
        }
        if has_settled(&before) {
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(version(&before), digest);
        }
        Some(digest)
    }
}

fn version(file: &Metadata) -> Version {
    let changed = (file.ctime(), file.ctime_nsec());
    let modified = (file.mtime(), file.mtime_nsec());
    (file.dev(), file.ino(), file.size(), modified, changed)
}

fn has_settled(file: &Metadata) -> bool {
    let changed = u64::try_from(file.ctime()).ok().map(Duration::from_secs);
    let changed = changed.and_then(|it| SystemTime::UNIX_EPOCH.checked_add(it));
    let age = changed.and_then(|it| it.elapsed().ok());
    age.is_some_and(|age| age > SETTLED)
}

fn read(file: &File, meta: &Metadata) -> io::Result<[u8; 32]> {
    if !meta.is_file() || meta.size() > MAX_PROGRAM {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut digest = Sha256::new();
    let mut part = vec![0; 64 * 1024];
    let mut rest = file.take(MAX_PROGRAM);
    loop {
        match rest.read(&mut part)? {
            0 => return Ok(digest.finalize().into()),
            count => digest.update(part.get(..count).unwrap_or_default()),
        }
    }
}
