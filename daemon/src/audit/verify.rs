//! Walking a log from its first entry: for the proof that nothing in it was
//! changed, and for reading it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::chain::{self, HEADER_LEN, Stop, Tip};
use super::record::Entry;

/// What [`verify`] found in a log whose chain is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// How many entries there are; also the number of the last one.
    pub entries: u64,
    /// Wall time of the first and the last entry, in microseconds since 1970.
    pub times: Option<(u64, u64)>,
    /// The hash that stands for the whole log. A log that was cut off or
    /// replaced has another one than was seen before.
    pub hash: [u8; 32],
    /// Bytes of an unfinished entry at the end: it was just being written, or a
    /// power cut tore it off.
    pub torn: u64,
}

/// Why a log could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// This is not an audit log.
    #[error("this is no audit log of mlskeyd: its header is missing or was changed")]
    NoLog,
    /// An entry was changed, removed or inserted.
    #[error(
        "the chain is broken at byte {offset}, after entry {after}: the entry there was changed, removed or inserted ({why})"
    )]
    Broken {
        /// Where the entry starts that does not fit.
        offset: u64,
        /// The last entry that fits.
        after: u64,
        /// What does not fit.
        why: &'static str,
    },
    /// The file could not be read.
    #[error("the audit log cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Walks a log from its first entry to its end, and proves its chain. The log
/// may be in use.
///
/// # Errors
/// [`ReadError`], of which [`ReadError::Broken`] says where.
pub fn verify(path: &Path) -> Result<Report, ReadError> {
    let mut entries = Entries::open(path)?;
    let mut times = None;
    for entry in &mut entries {
        let time = entry?.record.time;
        times = Some(times.map_or((time, time), |(first, _)| (first, time)));
    }
    Ok(entries.report(times)?)
}

/// The entries of a log, each proven to follow the one before. Ends after the
/// first error, and before an unfinished entry.
#[derive(Debug)]
pub struct Entries {
    file: BufReader<File>,
    tip: Tip,
    done: bool,
}

impl Entries {
    /// Opens a log for reading. It may be in use.
    ///
    /// # Errors
    /// [`ReadError::NoLog`], [`ReadError::Io`].
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        Self::of(File::open(path)?)
    }

    /// The same from a place on where the log ended before. `None`: this is another log, or
    /// a shorter one.
    ///
    /// # Errors
    /// [`ReadError::NoLog`], [`ReadError::Io`].
    pub fn after(path: &Path, place: Tip) -> Result<Option<Self>, ReadError> {
        let mut entries = Self::open(path)?;
        let length = entries.file.get_ref().metadata()?.len();
        let begins = entries.tip;
        if place.sequence == 0 {
            return Ok((place == begins).then_some(entries));
        }
        // The hash before the place is in the file, too.
        let Some(hash_at) = place
            .offset
            .checked_sub(u64::try_from(place.hash.len()).unwrap_or(0))
        else {
            return Ok(None);
        };
        if place.offset > length {
            return Ok(None);
        }
        entries.file.seek(SeekFrom::Start(hash_at))?;
        let mut hash = place.hash;
        entries.file.read_exact(&mut hash)?;
        entries.tip = place;
        Ok((hash == place.hash).then_some(entries))
    }

    pub(super) fn of(file: File) -> Result<Self, ReadError> {
        let mut file = BufReader::new(file);
        file.seek(SeekFrom::Start(0))?;
        let mut header = [0; HEADER_LEN];
        file.read_exact(&mut header).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::NoLog,
            _ => ReadError::Io(e),
        })?;
        let tip = chain::after_header(&header).ok_or(ReadError::NoLog)?;
        Ok(Self {
            file,
            tip,
            done: false,
        })
    }

    /// The place after the last entry that was read.
    #[must_use]
    pub const fn tip(&self) -> Tip {
        self.tip
    }

    /// What there is to say of a log whose last entry was read; `times` are those of its first
    /// and its last one.
    ///
    /// # Errors
    /// What the system says.
    pub fn report(&self, times: Option<(u64, u64)>) -> io::Result<Report> {
        Ok(Report {
            entries: self.tip.sequence,
            times,
            hash: self.tip.hash,
            torn: self.torn()?,
        })
    }

    /// How many bytes follow the last entry that was read.
    fn torn(&self) -> io::Result<u64> {
        Ok(self
            .file
            .get_ref()
            .metadata()?
            .len()
            .saturating_sub(self.tip.offset))
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match chain::read_entry(&mut self.file, &self.tip, true) {
            Ok((entry, tip)) => {
                self.tip = tip;
                Some(Ok(entry))
            }
            Err(stop) => {
                self.done = true;
                match stop {
                    Stop::End | Stop::Torn => None,
                    Stop::Io(e) => Some(Err(e.into())),
                    Stop::Broken(why) => Some(Err(ReadError::Broken {
                        offset: self.tip.offset,
                        after: self.tip.sequence,
                        why,
                    })),
                }
            }
        }
    }
}
