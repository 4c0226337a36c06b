//! The thread that writes the log: takes records in batches, so that one fsync
//! serves all who wait for one.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::chain::{self, Tip};
use super::health::Health;
use super::log::{Log, Medium};
use super::record::{AuditOutcome, Record, encode};
use super::repeats::Repeats;
use super::{AuditError, Durability, Timing};

/// Most records in one batch.
const BATCH: usize = 64;

/// How long after a failure the writer tries again by itself.
const RETRY: Duration = Duration::from_secs(1);

/// A record on its way into the log.
pub(super) struct Job {
    pub(super) record: Record,
    pub(super) durability: Durability,
    pub(super) answer: oneshot::Sender<Result<(), AuditError>>,
    /// Bounds how many jobs wait.
    pub(super) _permit: OwnedSemaphorePermit,
}

pub(super) struct Writer<M> {
    log: Log<M>,
    health: Arc<Health>,
    timing: Timing,
    repeats: Repeats,
    /// Records that nobody waits for and that could not be written yet.
    pending: Vec<Record>,
    /// When the log has to be synced, or (after a failure) tried again.
    wake: Option<Instant>,
    failing: bool,
}

/// Entries that are written together.
struct Batch {
    bytes: Vec<u8>,
    tip: Tip,
    /// Those that nobody waits for: not to be lost if the write fails.
    kept: Vec<Record>,
    /// Refusals that begin a row: not to be counted on if the write fails.
    begun: Vec<Record>,
}

impl<M: Medium> Writer<M> {
    pub(super) fn new(log: Log<M>, health: Arc<Health>, timing: Timing) -> Self {
        health.written(log.tip().sequence);
        let repeats = Repeats::new(timing.repeat_window);
        Self {
            log,
            health,
            timing,
            repeats,
            pending: Vec::new(),
            wake: None,
            failing: false,
        }
    }

    /// Serves until all senders are gone, then writes what is left.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            match self.receive(jobs) {
                Ok(first) => {
                    self.health.busy();
                    let rest = jobs.try_iter().take(BATCH.saturating_sub(1));
                    self.serve(std::iter::once(first).chain(rest).collect());
                }
                Err(RecvTimeoutError::Timeout) => self.health.busy(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.do_what_is_due();
            self.health.idle();
        }
        self.finish();
    }

    fn receive(&self, jobs: &Receiver<Job>) -> Result<Job, RecvTimeoutError> {
        match self.wake.into_iter().chain(self.repeats.next_due()).min() {
            Some(at) => jobs.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn serve(&mut self, jobs: Vec<Job>) {
        let now = Instant::now();
        let mut batch = self.begin_batch();
        // While the log fails something is pending, so that then nothing is
        // believed but an fsync.
        let mut durable = !batch.kept.is_empty();
        let mut answers = Vec::with_capacity(jobs.len());
        for Job {
            record,
            durability,
            answer,
            _permit,
        } in jobs
        {
            if !self.repeats.count(&record, now) {
                if !self.add(&mut batch, record, now) {
                    // The caller may have gone: nobody to tell, then.
                    let _ = answer.send(Err(AuditError::TooLong));
                    continue;
                }
                durable |= durability == Durability::Now;
            }
            answers.push((answer, _permit));
        }
        let result = self.write(batch, durable);
        for (answer, _permit) in answers {
            let _ = answer.send(result.clone());
        }
    }

    /// Adds a record that is no repetition. `false`: it is too long.
    fn add(&mut self, batch: &mut Batch, record: Record, now: Instant) -> bool {
        if let Some(counted) = self.repeats.end(record.asker()) {
            batch.push_kept(counted);
        }
        if !batch.push(&record) {
            return false;
        }
        if record.is_refusal() {
            if let Some(counted) = self.repeats.begin(&record, now) {
                batch.push_kept(counted);
            }
            batch.begun.push(record);
        }
        true
    }

    fn begin_batch(&mut self) -> Batch {
        let mut batch = Batch {
            bytes: Vec::new(),
            tip: *self.log.tip(),
            kept: Vec::new(),
            begun: Vec::new(),
        };
        for record in self.pending.drain(..) {
            batch.push_kept(record);
        }
        batch
    }

    fn write(&mut self, batch: Batch, durable: bool) -> Result<(), AuditError> {
        if batch.bytes.is_empty() {
            return Ok(());
        }
        match self.log.append(&batch.bytes, batch.tip, durable) {
            Ok(()) => {
                self.health.written(batch.tip.sequence);
                self.succeeded();
                Ok(())
            }
            Err(error) => {
                self.pending.extend(batch.kept);
                for record in batch.begun {
                    self.repeats.end(record.asker());
                }
                Err(self.failed(&error))
            }
        }
    }

    fn do_what_is_due(&mut self) {
        let now = Instant::now();
        let due = self.repeats.take_due(now);
        let waited = self.wake.is_some_and(|wake| wake <= now);
        if !due.is_empty() || waited && !self.pending.is_empty() {
            self.pending.extend(due);
            let batch = self.begin_batch();
            // If it fails, the records are pending again.
            let _ = self.write(batch, true);
        }
        if waited && self.log.needs_sync() {
            match self.log.sync() {
                Ok(()) => self.succeeded(),
                Err(error) => _ = self.failed(&error),
            }
        }
    }

    fn succeeded(&mut self) {
        if self.failing {
            self.failing = false;
            self.health.recovered();
            tracing::warn!("the audit log can be written again");
        }
        if !self.log.needs_sync() && self.pending.is_empty() {
            self.wake = None;
        } else if self.wake.is_none() {
            self.wake = Instant::now().checked_add(self.timing.sync_within);
        }
    }

    fn failed(&mut self, error: &io::Error) -> AuditError {
        let error = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => AuditError::DiskFull,
            _ => AuditError::Unwritable(error.to_string()),
        };
        self.health.failed(error.clone());
        if !self.failing {
            self.failing = true;
            tracing::error!(%error, "requests are refused until it can be written again");
            // That it failed belongs into the log; and while this waits to be
            // written, the writer finds out by itself when it can.
            let note = AuditOutcome::Noted {
                note: error.to_string().into(),
            };
            self.pending.push(Record::new("AuditInterrupted", note));
        }
        self.wake = Instant::now().checked_add(RETRY);
        error
    }

    fn finish(&mut self) {
        let counted = self.repeats.take_all();
        self.pending.extend(counted);
        let batch = self.begin_batch();
        let written = self.write(batch, true).is_ok();
        if !written || self.log.needs_sync() && self.log.sync().is_err() {
            tracing::error!("the last entries of the audit log may be lost: it cannot be written");
        }
    }
}

impl Batch {
    /// Adds an entry. `false`: the record is too long.
    fn push(&mut self, record: &Record) -> bool {
        let after = encode(self.tip.sequence.saturating_add(1), record)
            .and_then(|record| chain::append(&self.tip, &record, &mut self.bytes));
        self.tip = after.unwrap_or(self.tip);
        after.is_some()
    }

    fn push_kept(&mut self, record: Record) {
        if self.push(&record) {
            self.kept.push(record);
        } else {
            tracing::error!("a record of the daemon is too long for the audit log");
        }
    }
}
