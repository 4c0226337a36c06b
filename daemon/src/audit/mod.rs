//! The audit log: what was asked, by whom, and what came of it.
//!
//! One append-only file, `audit.log`, whose entries are chained by hashes
//! ([`verify()`] proves the chain), and one thread that writes it.

mod chain;
mod health;
mod log;
mod record;
mod repeats;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

pub use chain::Tip;
pub use log::{OpenError, Opened, verify_end};
pub use record::{AuditCaller, AuditOutcome, Entry, Record};
pub use verify::{Entries, ReadError, Report, verify};

use health::Health;
use log::{Log, Medium};
use writer::{Job, Writer};

/// The name of the log file in its directory.
pub const FILE_NAME: &str = "audit.log";

/// Most records that wait for the writer.
const MAX_WAITING: usize = 4096;

/// When a record has to be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before the append is answered.
    Now,
    /// Written before the append is answered, on disk within 5 ms.
    Soon,
}

/// Why a record could not be appended. The request that it is about must not be
/// served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// No space.
    #[error("the audit log cannot be written: the disk is full; free space in the state directory")]
    DiskFull,
    /// The system refuses.
    #[error("the audit log cannot be written: {0}; check the disk of the state directory")]
    Unwritable(String),
    /// The disk does not answer.
    #[error(
        "the audit log cannot be written: the disk does not answer; check the disk of the state directory"
    )]
    Timeout,
    /// The record is longer than a record may be.
    #[error("the request is too long for the audit log; shorten its names")]
    TooLong,
    /// The writer has stopped.
    #[error("the audit log is closed; repeat the call when mlskeyd has started again")]
    Closed,
}

/// How long the writer takes for what.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// A written record is on disk after this.
    sync_within: Duration,
    /// An append is answered after this.
    answer_within: Duration,
    /// Repetitions are counted for this long, then written.
    repeat_window: Duration,
}

const TIMING: Timing = Timing {
    sync_within: Duration::from_millis(5),
    answer_within: Duration::from_secs(2),
    repeat_window: Duration::from_secs(1),
};

/// The audit log of the running daemon. Dropping it writes what is left and
/// waits for that.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    /// `None` only while it is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    room: Arc<Semaphore>,
    health: Arc<Health>,
    answer_within: Duration,
    thread: Option<JoinHandle<()>>,
}

impl AuditLog {
    /// Opens the log in `directory`, which must exist, or begins a new one. The
    /// log stays locked against other daemons until this is dropped.
    ///
    /// # Errors
    /// [`OpenError`]. A log whose chain is broken at its end is not written any
    /// further.
    pub fn open(directory: &Path) -> Result<(Self, Opened), OpenError> {
        let path = directory.join(FILE_NAME);
        let (log, opened) = log::open(&path)?;
        if opened.torn > 0 {
            tracing::warn!(
                bytes = opened.torn,
                "the last entry of the audit log was unfinished, as after a power cut; it was cut off"
            );
        }
        let log = Self::start(log, path.clone(), TIMING);
        let log = log.map_err(|source| OpenError::Io { path, source })?;
        Ok((log, opened))
    }

    fn start<M: Medium>(log: Log<M>, path: PathBuf, timing: Timing) -> std::io::Result<Self> {
        let (jobs, received) = mpsc::channel();
        let health = Arc::new(Health::default());
        let writer = Writer::new(log, Arc::clone(&health), timing);
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run(&received))?;
        Ok(Self {
            path,
            jobs: Some(jobs),
            room: Arc::new(Semaphore::new(MAX_WAITING)),
            health,
            answer_within: timing.answer_within,
            thread: Some(thread),
        })
    }

    /// Appends a record. A refusal that equals the last one of its caller is
    /// counted instead, and the count is written after a second, or when the
    /// caller does something else.
    ///
    /// Call it inside a tokio runtime. If the future is dropped half-way, the
    /// record is still written.
    ///
    /// # Errors
    /// [`AuditError`], after 2 seconds at most; the log then works again by
    /// itself when its cause is gone.
    pub async fn append(&self, record: Record, durability: Durability) -> Result<(), AuditError> {
        let appended = async {
            let room = Arc::clone(&self.room).acquire_owned().await;
            let _permit = room.map_err(|_| AuditError::Closed)?;
            let (answer, answered) = oneshot::channel();
            let jobs = self.jobs.as_ref().ok_or(AuditError::Closed)?;
            jobs.send(Job {
                record,
                durability,
                answer,
                _permit,
            })
            .map_err(|_| AuditError::Closed)?;
            answered.await.map_err(|_| AuditError::Closed)?
        };
        tokio::time::timeout(self.answer_within, appended)
            .await
            .unwrap_or(Err(AuditError::Timeout))
    }

    /// Could a record be written now? Asked before a request is served, so that
    /// nothing is done that cannot go on record.
    ///
    /// # Errors
    /// The [`AuditError`] that an append would very likely meet.
    pub fn check(&self) -> Result<(), AuditError> {
        self.health.check(self.answer_within)
    }

    /// The record of this number, read from the log's start on: it may take seconds.
    ///
    /// # Errors
    /// [`ReadError`], if the log is broken before it.
    pub fn read(&self, number: u64) -> Result<Option<Record>, ReadError> {
        for entry in Entries::open(&self.path)? {
            let entry = entry?;
            if entry.sequence == number {
                return Ok(Some(entry.record));
            }
        }
        Ok(None)
    }

    /// Number of the last record in the log; 0: there is none.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.health.sequence()
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the audit log's thread panicked");
        }
    }
}
