//! The one thread that writes: many operations, one transaction, one fsync.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use mlskeyd_protocol::v1::KeyId;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::cache::Cache;
use super::clock::{Clock, Now};
use super::db::Meta;
use super::error::StoreError;
use super::mac::RowMac;
use super::tombstones::{Tombstone, Tombstones};
use super::types::{ConnectionId, GuardId, GuardMark, KeyRecord, Settings};
use super::{column, seconds};
use crate::failpoint;

/// Most operations in one transaction.
const BATCH: usize = 64;

/// Most operations that wait.
pub(super) const QUEUE: usize = 1024;

/// What is sent to the writer.
pub(super) enum Message {
    /// Do this.
    Operation(Box<dyn Operation>),
    /// Finish, and say when it is done.
    Stop(oneshot::Sender<()>),
}

/// One operation, from the queue to its answer.
pub(super) trait Operation: Send {
    /// Runs within a savepoint, which is rolled back on an error.
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError>;
    /// Answers: with its own result, or with why the transaction failed.
    fn answer(self: Box<Self>, transaction: Result<(), StoreError>);
}

/// An operation made of a closure.
pub(super) struct Task<F, T> {
    pub(super) work: Option<F>,
    pub(super) result: Option<Result<T, StoreError>>,
    pub(super) reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Operation for Task<F, T>
where
    F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send,
    T: Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let Some(work) = self.work.take() else {
            return Ok(());
        };
        let result = work(tx);
        let outcome = result.as_ref().map(|_| ()).map_err(Clone::clone);
        self.result = Some(result);
        outcome
    }

    fn answer(self: Box<Self>, transaction: Result<(), StoreError>) {
        let result = match transaction {
            Ok(()) => self.result.unwrap_or(Err(StoreError::Closed)),
            Err(error) => Err(error),
        };
        // The caller may have gone; what it asked for is done all the same.
        let _ = self.reply.send(result);
    }
}

/// What an operation works with.
pub(super) struct Tx<'a> {
    pub(super) conn: &'a Connection,
    pub(super) mac: &'a RowMac,
    pub(super) settings: &'a Settings,
    pub(super) now: Now,
    pub(super) live: &'a mut Live,
    effects: &'a mut Vec<Effect>,
}

/// What the writer knows beyond the database.
pub(super) struct Live {
    pub(super) meta: Meta,
    /// Which connections use a storage, each with the number at which it began.
    pub(super) attached: HashMap<u64, HashMap<ConnectionId, u64>>,
    /// The same the other way round.
    pub(super) storages_of: HashMap<ConnectionId, HashSet<u64>>,
    /// From when on a storage may have keys to look for, in observed seconds;
    /// without an entry there is no need to search.
    pub(super) look_from: HashMap<u64, u64>,
    /// When this run began, in observed seconds.
    pub(super) started: u64,
    /// When the last search for due keys found nothing to do.
    pub(super) nothing_due_at: Option<u64>,
}

/// What follows when the transaction is durable.
pub(super) enum Effect {
    /// A key is different now.
    Key(Arc<KeyRecord>),
    /// A key's row is gone.
    KeyRemoved(KeyId),
    /// A guard mark is different now.
    Guard(GuardId, Arc<GuardMark>),
    /// Write that something is destroyed where no old database can undo it.
    Tombstone(Tombstone),
    /// A secret was deleted: nothing of it may stay in the log.
    Scrub,
}

impl Live {
    /// What was left open before this number was left by connections that are
    /// gone, maybe of a process that connected anew. `None`: the storage is not
    /// attached.
    pub(super) fn in_doubt_before(&self, storage: u64) -> Option<u64> {
        self.attached.get(&storage)?.values().min().copied()
    }
}

impl Tx<'_> {
    /// A number that is larger than all given before.
    pub(super) fn next_number(&mut self) -> u64 {
        self.live.meta.sequence = self.live.meta.sequence.saturating_add(1);
        self.live.meta.sequence
    }

    /// The latest moment that is `time` ago, for comparisons in SQL; `None`,
    /// which compares as false with all, if nobody has observed that long.
    pub(super) fn ago(&self, time: Duration) -> Option<i64> {
        self.now.observed.checked_sub(seconds(time)).map(column)
    }

    /// Has `time` passed since then?
    pub(super) fn has_passed(&self, since: u64, time: Duration) -> bool {
        since.saturating_add(seconds(time)) <= self.now.observed
    }

    pub(super) fn then(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}

/// Which operations of a batch wrote tombstones, and whether that went well.
/// If not, what they began stays journalled and can be begun again.
struct Buried {
    operations: Vec<usize>,
    outcome: Result<(), StoreError>,
}

/// Everything that the thread owns.
pub(super) struct Writer {
    pub(super) conn: Connection,
    pub(super) mac: Arc<RowMac>,
    pub(super) settings: Settings,
    pub(super) clock: Arc<Clock>,
    pub(super) live: Live,
    pub(super) cache: Arc<Cache>,
    pub(super) tombstones: Tombstones,
    /// Is something in the write-ahead log that must not stay there?
    pub(super) scrub: bool,
    /// Held as long as the thread lives.
    pub(super) _lock: File,
}

impl Writer {
    /// Serves until it is told to stop, or nobody is left who could ask.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut stop = None;
        while stop.is_none() {
            let Some(first) = queue.blocking_recv() else {
                break;
            };
            let mut batch = Vec::new();
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Operation(operation) => batch.push(operation),
                    Message::Stop(done) => stop = Some(done),
                }
                next = match stop {
                    None if batch.len() < BATCH => queue.try_recv().ok(),
                    _ => None,
                };
            }
            if !batch.is_empty() {
                self.serve(batch);
            }
        }
        self.finish();
        // The file is closed and the lock free before anybody hears of it.
        drop(self);
        if let Some(done) = stop {
            let _ = done.send(());
        }
    }

    /// One operation at once, before the thread runs.
    pub(super) fn now<T: Send>(
        &mut self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        let (reply, mut answer) = oneshot::channel();
        self.serve(vec![Box::new(Task {
            work: Some(work),
            result: None,
            reply,
        })]);
        answer.try_recv().unwrap_or(Err(StoreError::Closed))
    }

    /// Runs a batch in one transaction, makes it durable, then answers.
    fn serve(&mut self, mut batch: Vec<Box<dyn Operation + '_>>) {
        let mut effects = Vec::new();
        let outcome = self.transact(&mut batch, &mut effects);
        if outcome.is_err() && !self.conn.is_autocommit() {
            let _ = self.conn.execute_batch("ROLLBACK");
        }
        let buried = match outcome {
            Ok(()) => self.follow(effects),
            Err(_) => Buried {
                operations: Vec::new(),
                outcome: Ok(()),
            },
        };
        for (n, operation) in batch.into_iter().enumerate() {
            let mut answer = outcome.clone();
            if buried.operations.contains(&n) {
                answer = answer.and_then(|()| buried.outcome.clone());
            }
            operation.answer(answer);
        }
    }

    fn transact(
        &mut self,
        batch: &mut [Box<dyn Operation + '_>],
        effects: &mut Vec<(usize, Effect)>,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        let before = self.conn.total_changes();
        for (n, operation) in batch.iter_mut().enumerate() {
            self.conn
                .prepare_cached("SAVEPOINT operation")?
                .execute([])?;
            let mut own_effects = Vec::new();
            let result = operation.run(&mut Tx {
                conn: &self.conn,
                mac: &self.mac,
                settings: &self.settings,
                now,
                live: &mut self.live,
                effects: &mut own_effects,
            });
            match result {
                Ok(()) => effects.extend(own_effects.into_iter().map(|effect| (n, effect))),
                Err(error) if error.ends_transaction() => return Err(error),
                Err(_) => {
                    self.conn
                        .prepare_cached("ROLLBACK TO operation")?
                        .execute([])?;
                }
            }
            self.conn.prepare_cached("RELEASE operation")?.execute([])?;
        }
        if self.conn.total_changes() != before {
            self.live.meta.observed = now.observed;
            self.live.meta.write(&self.conn, &self.mac)?;
        }
        failpoint::hit("store.before_commit");
        self.conn.execute_batch("COMMIT")?;
        failpoint::hit("store.after_commit");
        Ok(())
    }

    /// The database is durable; now what lies beside it.
    fn follow(&mut self, effects: Vec<(usize, Effect)>) -> Buried {
        let (mut operations, mut tombstones) = (Vec::new(), Vec::new());
        for (n, effect) in effects {
            match effect {
                Effect::Key(key) => self.cache.changed_key(&key),
                Effect::KeyRemoved(id) => self.cache.removed_key(&id),
                Effect::Guard(id, mark) => self.cache.changed_guard(id, mark),
                Effect::Tombstone(tombstone) => {
                    operations.push(n);
                    tombstones.push(tombstone);
                }
                Effect::Scrub => self.scrub = true,
            }
        }
        let mut outcome = Ok(());
        if !tombstones.is_empty() {
            failpoint::hit("store.before_tombstones");
            outcome = self.tombstones.append(&self.mac, &tombstones);
            failpoint::hit("store.after_tombstones");
        }
        self.truncate_log();
        Buried {
            operations,
            outcome,
        }
    }

    /// Empties the write-ahead log if it may hold what was deleted. A reader can
    /// be in the way: then the next transaction tries again.
    fn truncate_log(&mut self) {
        if self.scrub {
            match checkpoint(&self.conn) {
                Ok(done) => self.scrub = !done,
                Err(error) => tracing::warn!(%error, "the registry's log is not yet truncated"),
            }
        }
    }

    fn finish(&mut self) {
        self.live.meta.observed = self.clock.now().observed;
        let outcome = self.live.meta.write(&self.conn, &self.mac).and_then(|()| {
            checkpoint(&self.conn)?;
            Ok(())
        });
        if let Err(error) = outcome {
            // All that was acknowledged is durable in the log already.
            tracing::warn!(%error, "the registry was not checkpointed at its end");
        }
    }
}

fn checkpoint(conn: &Connection) -> rusqlite::Result<bool> {
    let busy: i64 = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    Ok(busy == 0)
}
