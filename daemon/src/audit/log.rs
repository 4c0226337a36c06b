//! The log file of the running daemon: finding its end at start, appending, and
//! getting over a full or failing disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::chain::{self, HEADER_LEN, Stop, TAIL_LEN, Tip};
use super::record::{AuditOutcome, Record, encode};
use super::verify::{Entries, ReadError};

/// How many entries at the end are checked at start; the whole log is
/// `verify`'s. More than the entries that could be forged within one record's
/// fields.
const TAIL_ENTRIES: usize = 512;

/// Most bytes that may wait for an fsync. What a power cut can tear is not
/// longer.
pub(super) const MAX_UNSYNCED: usize = 1024 * 1024;

/// Most zeros that a power cut is believed to leave: that, and a batch.
const MAX_UNWRITTEN: u64 = 4 * 1024 * 1024;

/// What the buffer for it keeps of its memory at rest, in bytes.
const KEPT_BUFFER: usize = 64 * 1024;

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process writes it.
    #[error("the audit log {} is in use by another mlskeyd; stop that one first", .0.display())]
    InUse(PathBuf),
    /// The file is not as the daemon leaves it.
    #[error("the audit log {} is refused: {why}; it has to be a regular file of the daemon's user, mode 0600", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Its chain is broken.
    #[error("the audit log {} cannot be trusted: {source}; keep it for an inquiry: move it aside (it is not deleted by mlskeyd) and start again, which begins a new log", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Where, and why.
        source: ReadError,
    },
    /// It could not be read or written.
    #[error("the audit log {} cannot be opened: {source}; check the file system, then start again", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What was found when the log was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The place after the last entry.
    pub end: Tip,
    /// Bytes of an unfinished last entry that a power cut left; they were cut
    /// off, and that is recorded.
    pub torn: u64,
}

/// What the log is written to.
pub(super) trait Medium: Send + 'static {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

impl Medium for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The log file and its end.
pub(super) struct Log<M> {
    medium: M,
    tip: Tip,
    /// What follows the last successful sync. It is kept because after a failed
    /// sync the system may have dropped it.
    unsynced: Vec<u8>,
    /// The file may hold other bytes than `unsynced` after the last sync.
    damaged: bool,
}

impl<M: Medium> Log<M> {
    pub(super) const fn new(medium: M, tip: Tip) -> Self {
        Self {
            medium,
            tip,
            unsynced: Vec::new(),
            damaged: false,
        }
    }

    pub(super) const fn tip(&self) -> &Tip {
        &self.tip
    }

    pub(super) const fn needs_sync(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// Appends entries that end at `after`, and makes them durable if asked, or
    /// if too much waits for it. If it fails, none of them is in the log.
    pub(super) fn append(&mut self, entries: &[u8], after: Tip, durable: bool) -> io::Result<()> {
        let (before, waiting) = (self.tip, self.unsynced.len());
        self.repair()?;
        // Until the write is known to be whole, the file may hold a part of it.
        self.damaged = true;
        self.medium.write_all_at(entries, before.offset)?;
        self.unsynced.extend_from_slice(entries);
        self.tip = after;
        self.damaged = false;
        if durable || self.unsynced.len() > MAX_UNSYNCED {
            self.sync().inspect_err(|_| {
                self.unsynced.truncate(waiting);
                self.tip = before;
            })?;
        }
        Ok(())
    }

    /// Makes durable what waits for it.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.repair()?;
        self.damaged = true;
        self.medium.sync()?;
        self.damaged = false;
        self.unsynced.clear();
        self.unsynced.shrink_to(KEPT_BUFFER);
        Ok(())
    }

    /// After a failure: writes again what the file should end with, and cuts
    /// off what it should not. In place, so that a full disk does not matter.
    fn repair(&mut self) -> io::Result<()> {
        if self.damaged {
            let waiting = u64::try_from(self.unsynced.len()).unwrap_or(u64::MAX);
            let synced = self.tip.offset.saturating_sub(waiting);
            self.medium.write_all_at(&self.unsynced, synced)?;
            self.medium.set_len(self.tip.offset)?;
            self.damaged = false;
        }
        Ok(())
    }
}

/// Opens the log file, or begins a new one.
pub(super) fn open(path: &Path) -> Result<(Log<File>, Opened), OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let file = open_file(path)?;
    let (tip, torn) = match find_end(&file) {
        Ok(Some(found)) => found,
        Ok(None) => (begin(&file, path).map_err(io)?, 0),
        Err(ReadError::Io(source)) => return Err(io(source)),
        Err(source) => {
            return Err(OpenError::Untrusted {
                path: path.to_owned(),
                source,
            });
        }
    };
    let mut log = Log::new(file, tip);
    if torn > 0 {
        cut_torn(&mut log, torn).map_err(io)?;
    }
    Ok((log, Opened { end: tip, torn }))
}

fn open_file(path: &Path) -> Result<File, OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let refused = |why| OpenError::Refused {
        path: path.to_owned(),
        why,
    };
    // NONBLOCK, or opening a pipe would wait for its other end.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)
        .map_err(|e| match Errno::from_io_error(&e) {
            Some(Errno::LOOP) => refused("it is a symbolic link".into()),
            _ => io(e),
        })?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(refused("it is not a regular file".into()));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(refused(format!("it belongs to user {}", metadata.uid())));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(refused(format!(
            "its permissions are {:04o}",
            metadata.mode() & 0o7777
        )));
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(OpenError::InUse(path.to_owned())),
        Err(e) => Err(io(e.into())),
    }
}

/// Begins a log in an empty file.
fn begin(file: &File, path: &Path) -> io::Result<Tip> {
    let header = chain::new_header()?;
    file.set_len(0)?;
    FileExt::write_all_at(file, &header, 0)?;
    file.sync_all()?;
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    chain::after_header(&header).ok_or_else(|| io::Error::other("no header"))
}

/// Cuts off what a power cut left of an entry, and records that.
fn cut_torn(log: &mut Log<File>, torn: u64) -> io::Result<()> {
    let mut bytes = vec![0; usize::try_from(torn).map_err(io::Error::other)?];
    log.medium.read_exact_at(&mut bytes, log.tip.offset)?;
    log.medium.set_len(log.tip.offset)?;
    let note = format!("cut off {torn} bytes of an unfinished entry");
    let mut record = Record::new("CutTornEntry", AuditOutcome::Noted { note: note.into() });
    record.content = Some(Sha256::digest(&bytes).into());
    let (mut entry, tip) = (Vec::new(), *log.tip());
    let after = encode(tip.sequence.saturating_add(1), &record)
        .and_then(|record| chain::append(&tip, &record, &mut entry))
        .ok_or_else(|| io::Error::other("the log is full"))?;
    log.append(&entry, after, true)
}

/// The end of the last whole entry, and how many bytes of an unfinished one
/// follow. `None`: nothing was written into the file yet.
fn find_end(file: &File) -> Result<Option<(Tip, u64)>, ReadError> {
    let len = file.metadata()?.len();
    if len <= HEADER_LEN as u64 && !has_header(file, len)? {
        return Ok(None);
    }
    if let Some(tip) = check_tail(file, len)? {
        return Ok(Some((tip, 0)));
    }
    let mut entries = Entries::of(file.try_clone()?)?;
    let broken = entries.find_map(Result::err);
    let tip = entries.tip();
    let rest = len.saturating_sub(tip.offset);
    match broken {
        Some(error) if !is_unwritten(file, len, rest)? => Err(error),
        _ => Ok(Some((tip, rest))),
    }
}

/// Tells a file that is just a header from one whose header was not written
/// when the power was cut: nothing, a part of it, or zeros.
fn has_header(file: &File, len: u64) -> Result<bool, ReadError> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    if bytes.iter().all(|b| *b == 0) || chain::is_torn_header(&bytes) {
        return Ok(false);
    }
    if bytes.len() < HEADER_LEN {
        Err(ReadError::NoLog)
    } else {
        Ok(true)
    }
}

/// Some file systems write a file's new length before its content, so that a
/// power cut leaves zeros at the end. No entry ends like this.
fn is_unwritten(file: &File, len: u64, rest: u64) -> io::Result<bool> {
    let mut end = [0; 32];
    let possible = (32..=MAX_UNWRITTEN).contains(&rest);
    if possible {
        file.read_exact_at(&mut end, len.saturating_sub(32))?;
    }
    Ok(possible && end == [0; 32])
}

/// How often the end of a log in use is looked at: what is written just then may be there in part.
const LOOKS: usize = 3;

/// Do the last entries of a log fit each other? Quick, however long the log is; it may be in
/// use. That all fits is [`verify`](super::verify())'s to prove.
///
/// # Errors
/// [`ReadError::NoLog`], [`ReadError::Io`].
pub fn verify_end(path: &Path) -> Result<bool, ReadError> {
    let file = File::open(path)?;
    Entries::of(file.try_clone()?)?;
    for _ in 0..LOOKS {
        if check_tail(&file, file.metadata()?.len())?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Steps back over the last entries and checks them; `None` if that does not
/// work out, whatever the reason.
fn check_tail(file: &File, len: u64) -> io::Result<Option<Tip>> {
    let Some(mut tip) = step_back(file, len)? else {
        return Ok(None);
    };
    let at = At {
        file,
        offset: tip.offset,
    };
    // No further, if it grows meanwhile.
    let mut from = io::BufReader::new(at.take(len.saturating_sub(tip.offset)));
    // Somewhere within the file, the first number is not known beforehand.
    let mut known = tip.offset == HEADER_LEN as u64;
    loop {
        match chain::read_entry(&mut from, &tip, known) {
            Ok((_, next)) => tip = next,
            Err(Stop::End) => return Ok((tip.offset == len).then_some(tip)),
            Err(Stop::Io(e)) => return Err(e),
            Err(Stop::Torn | Stop::Broken(_)) => return Ok(None),
        }
        known = true;
    }
}

/// The place before the last [`TAIL_ENTRIES`] entries.
fn step_back(file: &File, len: u64) -> io::Result<Option<Tip>> {
    let mut offset = len;
    for _ in 0..TAIL_ENTRIES {
        if offset == HEADER_LEN as u64 {
            break;
        }
        let mut length = [0; 4];
        let Some(length_at) = offset.checked_sub(TAIL_LEN as u64) else {
            return Ok(None);
        };
        file.read_exact_at(&mut length, length_at)?;
        let start = chain::entry_len(u32::from_be_bytes(length))
            .and_then(|len| offset.checked_sub(len))
            .filter(|start| *start >= HEADER_LEN as u64);
        let Some(start) = start else { return Ok(None) };
        offset = start;
    }
    if offset == HEADER_LEN as u64 {
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0)?;
        return Ok(chain::after_header(&header));
    }
    let mut hash = [0; 32];
    file.read_exact_at(&mut hash, offset.saturating_sub(32))?;
    Ok(Some(Tip {
        offset,
        sequence: 0,
        hash,
    }))
}

/// Reads a file from an offset on, without moving its own.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl io::Read for At<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(to, self.offset)?;
        self.offset = self.offset.saturating_add(u64::try_from(n).unwrap_or(0));
        Ok(n)
    }
}
