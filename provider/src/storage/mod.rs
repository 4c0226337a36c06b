//! The storage wrapper: it keeps the daemon informed of which keys the app's
//! database still needs.
//!
//! OpenMLS forgets keys without a delete call and moves a leaf key from record to
//! record, so the daemon cannot learn from OpenMLS when a key is done with. The
//! wrapper watches what is written, read and deleted, and reports: a claim before
//! a record is written, a release after. It never parses the inner storage's
//! bytes and works over any [`StorageProvider`].
//!
//! Problems with the daemon never fail a call of OpenMLS: a merge that stops in
//! the middle would cost more than a key that is kept too long.

mod claims;
pub(crate) mod custodian;
mod methods;
mod outbox;
mod record;
#[cfg(test)]
mod tests;
mod transactions;
mod two_phase;
mod walker;

use std::sync::Arc;

use mlskeyd_protocol::failpoint;
use mlskeyd_protocol::v1::{
    Bytes, Failure, FailureCode, Joined, KeyId, Look, Note, Record, Settlement,
};
use openmls_traits::storage::{CURRENT_VERSION, StorageProvider};
use serde::Serialize;

use self::claims::StorageState;
use self::custodian::Custodian;
use self::outbox::Message;
use self::transactions::{Ended, Held, Release, Transactions};
use self::two_phase::Outcomes;
use self::walker::{Findings, NotSerialisable};

/// Why a call of the storage failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError<E: std::error::Error> {
    /// The inner storage failed.
    #[error(transparent)]
    Inner(E),
    /// A KeyPackage was not written, since one of its private keys is not in
    /// custody and the storage is strict.
    #[error(
        "the {what} of a new KeyPackage is not in custody; \
         make it with this provider's crypto and rand, and see its last failure"
    )]
    NotInCustody {
        /// Which private key: "init key", "leaf key" or "init key and leaf key".
        what: &'static str,
    },
}

impl<E: std::error::Error> From<E> for StorageError<E> {
    fn from(error: E) -> Self {
        Self::Inner(error)
    }
}

/// Any [`StorageProvider`], wrapped so that the daemon knows which keys it still
/// needs.
///
/// One wrapper belongs to one database connection. An app that opens several
/// (one for each thread, or one for each transaction) wraps the others
/// [beside](Self::beside) the first, so that they share what is known.
///
/// A KeyPackage that OpenMLS deletes to open a Welcome stays in the inner
/// storage until the group is joined; reads do not show it meanwhile, unless the
/// open failed. An app's own delete is carried out at the next storage call of
/// the same thread, at the end of its transaction, or when the wrapper (the last
/// one over this database) is dropped.
#[derive(Debug)]
pub struct CustodyStorage<S: StorageProvider<CURRENT_VERSION>> {
    inner: S,
    state: Arc<StorageState>,
    transactions: Transactions,
    strict: bool,
}

impl<S: StorageProvider<CURRENT_VERSION>> CustodyStorage<S> {
    /// Wraps a storage under its stable name (1 to 255 bytes). One that `ends`
    /// dies with the process, as a storage in memory does. A `strict` one
    /// refuses KeyPackages whose private keys are not in custody.
    pub(crate) fn new(
        inner: S,
        name: String,
        ends: bool,
        strict: bool,
        custodian: Arc<dyn Custodian>,
    ) -> Self {
        let state = Arc::new(StorageState::new(name, ends, custodian));
        Self {
            inner,
            state,
            transactions: Transactions::default(),
            strict,
        }
    }

    /// Wraps another connection to the same database.
    #[must_use]
    pub fn beside<T: StorageProvider<CURRENT_VERSION>>(&self, inner: T) -> CustodyStorage<T> {
        CustodyStorage {
            inner,
            state: Arc::clone(&self.state),
            transactions: Transactions::default(),
            strict: self.strict,
        }
    }

    /// The storage that is wrapped. What is written past the wrapper, the daemon
    /// does not learn of.
    #[must_use]
    pub const fn inner(&self) -> &S {
        &self.inner
    }

    /// Says that the app has opened a transaction on this connection. Until the
    /// guard is told that it was committed, no key is released; if the guard is
    /// dropped before, the transaction counts as rolled back; whether the database
    /// has done that by then does not matter. Transactions may be nested: if one
    /// is rolled back, nothing of the outermost is released.
    pub fn begin(&self) -> Transaction<'_, S> {
        // Only reads, whether or not the database's transaction is open already.
        self.say_what_is_there();
        self.transactions.begin();
        Transaction {
            storage: self,
            committed: false,
        }
    }

    /// Declines the Welcome that this thread opened last and did not join: its
    /// KeyPackage is deleted for good. `false`: there is none.
    ///
    /// # Errors
    ///
    /// The inner storage's; the KeyPackage is then still there.
    pub fn discard_welcome(&self) -> Result<bool, StorageError<S::Error>> {
        self.enter();
        let last = {
            let ledger = self.state.ledger();
            ledger.pending.last_opened(|reference| {
                ledger
                    .joined
                    .iter()
                    .any(|joined| is_key_package(&joined.record, reference))
            })
        };
        let Some(reference) = last else {
            return Ok(false);
        };
        // It came from a reference of OpenMLS, so it can be made one again.
        let Some(key) = record::reference(&reference) else {
            return Ok(false);
        };
        self.delete(
            Some(Record::KeyPackage {
                reference: reference.clone(),
            }),
            |inner| inner.delete_key_package(&key),
        )?;
        self.state.ledger().pending.forget(&reference);
        Ok(true)
    }

    /// What every call does first: settle what became of rolled-back claims, and
    /// of this thread's held-back deletes.
    fn enter(&self) {
        self.say_what_is_there();
        let current = self.transactions.current();
        let outcomes = self.state.ledger().pending.outcomes(current);
        self.settle_held_back(outcomes);
    }

    /// Holds a KeyPackage's delete back. `false`: not this one.
    fn hold_back(&self, reference: &Bytes, init_key: KeyId) -> bool {
        let within = self.transactions.current();
        let mut ledger = self.state.ledger();
        ledger.pending.hold(reference.clone(), init_key, within)
    }

    fn settle_held_back(&self, outcomes: Outcomes) {
        for reference in &outcomes.opened {
            self.transactions.touch_key_package(reference);
        }
        for reference in outcomes.own {
            let record = Record::KeyPackage {
                reference: reference.clone(),
            };
            if self.delete_quietly(&record, Release::Settlement) {
                self.state.ledger().pending.forget(&reference);
            } else {
                self.state.ledger().pending.stuck(&reference);
                tracing::warn!("a KeyPackage that the app deleted cannot be deleted yet");
            }
        }
    }

    /// Writes a record: claim, write, release.
    fn write(
        &self,
        record: Option<Record>,
        findings: Result<&Findings, &NotSerialisable>,
        write: impl FnOnce(&S) -> Result<(), S::Error>,
    ) -> Result<(), StorageError<S::Error>> {
        let (Some(record), Ok(findings)) = (record, findings) else {
            // A name that is too long, or a value that the inner storage cannot
            // serialise either.
            return Ok(write(&self.inner)?);
        };
        self.bury();
        self.touch(&record);
        failpoint::hit("provider.write.before_claim");
        let announced = self.state.begin_write(record.clone(), findings.keys());
        if announced.changed {
            self.transactions.claimed(&record, announced.claimed());
        }
        failpoint::hit("provider.write.claimed");
        let result = write(&self.inner);
        failpoint::hit("provider.write.written");
        if let Some(settlement) = self.state.end_write(announced, result.is_ok()) {
            self.release(Release::Settlement(settlement));
        }
        result?;
        self.look();
        Ok(())
    }

    /// Deletes a record: delete, release.
    fn delete(
        &self,
        record: Option<Record>,
        delete: impl FnOnce(&S) -> Result<(), S::Error>,
    ) -> Result<(), StorageError<S::Error>> {
        let Some(record) = record else {
            return Ok(delete(&self.inner)?);
        };
        self.touch(&record);
        failpoint::hit("provider.delete.before_claim");
        self.begin_delete(&record);
        failpoint::hit("provider.delete.before");
        let result = delete(&self.inner);
        failpoint::hit("provider.delete.deleted");
        if let Some(settlement) = self.state.end_delete(&record, result.is_ok()) {
            self.release(Release::Settlement(settlement));
        }
        result?;
        self.look();
        Ok(())
    }

    /// A record was read: that claims what it showed.
    fn seen<T: Serialize + ?Sized>(&self, record: Option<Record>, value: &T) {
        if let (Some(record), Ok(findings)) = (record, walker::find_handles(value)) {
            self.state.seen(&record, findings.keys());
        }
        self.look();
    }

    /// Deletes a record that OpenMLS does not ask to be deleted now.
    fn delete_quietly(&self, record: &Record, release: impl FnOnce(Settlement) -> Release) -> bool {
        self.touch(record);
        self.begin_delete(record);
        failpoint::hit("provider.forward.before");
        let deleted = record::delete(&self.inner, record).is_ok();
        failpoint::hit("provider.forward.deleted");
        if let Some(settlement) = self.state.end_delete(record, deleted) {
            self.release(release(settlement));
        }
        deleted
    }

    fn touch(&self, record: &Record) {
        if self.transactions.touch(record) {
            self.state.enters_transaction(record);
        }
    }

    fn begin_delete(&self, record: &Record) {
        if let Some(generation) = self.state.begin_delete(record) {
            self.transactions.claimed(record, Some(generation));
        }
    }

    /// Tells the daemon what it may release, or holds it until the app commits.
    fn release(&self, release: Release) {
        if let Some(release) = self.transactions.hold(release) {
            self.state.tell([release.into_message()]);
        }
    }

    /// The app looks for a group that it does not have. Its storage is in use for
    /// all that: keys of groups that it deleted must not wait until it joins
    /// another one.
    fn present(&self) {
        // If the daemon is away, the next time will do.
        let _ = self.state.attach();
        self.look();
    }

    /// Deletes the records that died by meaning.
    fn bury(&self) {
        let dead = std::mem::take(&mut self.state.ledger().dead);
        for record in dead {
            if record::in_use(&self.inner, &record) {
                // The database was put back to where this record lives.
                if let Ok(Some(findings)) = record::read(&self.inner, &record) {
                    self.state.doubt([record.clone()]);
                    self.state.seen(&record, findings.keys());
                }
            } else if !self.delete_quietly(&record, Release::Dead) {
                self.state.ledger().dead.push(record);
            }
        }
    }

    /// Looks for the keys that the daemon is about to destroy, after what died
    /// by meaning is deleted: an app that only reads from here on, such as one
    /// that deleted its last group, has to do it, too. What a transaction shows
    /// may not last, so it is not looked at.
    fn look(&self) {
        if self.transactions.are_open() {
            return;
        }
        self.bury();
        self.look_for_ends();
        let looks = self.state.take_looks();
        if looks.is_empty() {
            return;
        }
        let found = looks
            .into_iter()
            .filter(|look| !look.records.iter().any(|it| self.state.is_unsure(it)))
            .map(|Look { key, mut records }| {
                records.retain(|record| record::holds(&self.inner, record, key));
                Look { key, records }
            })
            .collect::<Vec<_>>();
        // What cannot be said now is asked for again.
        if found.is_empty() {
            return;
        }
        failpoint::hit("provider.look.found");
        self.state.looked(found);
        failpoint::hit("provider.look.answered");
    }

    /// Says of groups, whose end an earlier process began, how that went on.
    fn look_for_ends(&self) {
        let ending = std::mem::take(&mut self.state.ledger().ending);
        for group in ending {
            match record::group_lives(&self.inner, &group) {
                Ok(true) => self.state.tell([Message::Note(Note::GroupLives { group })]),
                Ok(false) => self.state.tell([Message::Note(Note::GroupGone { group })]),
                // It is asked for again.
                Err(record::Unreadable) => {}
            }
        }
    }

    /// The state of this group is stored: KeyPackages that served to join it are
    /// not needed any more.
    fn joined(&self, group: &Bytes) {
        // In a new process the daemon says it when the storage is attached; if it
        // is away, the next time will do.
        let _ = self.state.attach();
        let joined: Vec<Joined> = {
            let mut ledger = self.state.ledger();
            ledger
                .joined
                .extract_if(.., |joined| joined.group == *group)
                .collect()
        };
        for joined in joined {
            let again = joined.clone();
            if self.delete_quietly(&joined.record, |settlement| {
                Release::Joined(again, settlement)
            }) {
                if let Record::KeyPackage { reference } = &joined.record {
                    self.state.ledger().pending.forget(reference);
                }
            } else {
                self.state.ledger().joined.push(joined);
            }
        }
        // An app that only loads its groups asks for nothing else, and keys
        // would wait for its look for as long as it idles.
        self.look();
    }

    /// The group's state is about to become inactive or to be deleted. It will
    /// not be written again, so its end must not be lost with this process.
    fn group_ending(&self, group: &Bytes, leaf_index: Option<u32>) {
        if !self.state.ledger().ended.contains(group) {
            let group = group.clone();
            let note = Note::GroupEnding { group, leaf_index };
            self.state.tell([Message::Note(note)]);
        }
    }

    /// The group became inactive or was deleted.
    fn group_ended(&self, group: Bytes, leaf_index: Option<u32>) {
        if self.state.ledger().ended.insert(group.clone()) {
            self.release(Release::Note(Note::GroupEnded { group, leaf_index }));
        }
    }

    /// Refuses a KeyPackage whose private keys are not in custody, if that is
    /// wanted.
    fn require_custody(&self, findings: &Findings) -> Result<(), StorageError<S::Error>> {
        let init = findings.key_in(INIT_KEY).is_some();
        let leaf = findings.key_in(LEAF_KEY).is_some();
        let what = match (init, leaf) {
            _ if !self.strict => return Ok(()),
            (true, true) => return Ok(()),
            (false, true) => "init key",
            (true, false) => "leaf key",
            (false, false) => "init key and leaf key",
        };
        self.state.record(Failure::new(
            FailureCode::Denied,
            format!("the {what} of a new KeyPackage is not in custody"),
            "make it with this provider's crypto and rand, for a cipher suite that custody serves",
        ));
        Err(StorageError::NotInCustody { what })
    }

    /// The group is stored as one that is lived in: it may end (again).
    fn group_lives(&self, group: &Bytes) {
        {
            let mut ledger = self.state.ledger();
            ledger.ended.remove(group);
            ledger.ending.retain(|ending| ending != group);
        }
        self.transactions.group_lives(group);
    }

    /// An own leaf is about to be stored.
    fn leaf_appended(&self, note: Note) {
        self.transactions.leaf_appended(&note);
        self.state.tell([Message::Note(note)]);
    }

    fn ended(&self, ended: Ended) {
        match ended {
            Ended::Within => {}
            Ended::Committed(held) => {
                self.state.leave_transaction(&held.touched);
                self.state.ledger().pending.committed(held.transaction);
                failpoint::hit("provider.commit.committed");
                self.state
                    .tell(held.releases.into_iter().map(Release::into_message));
                failpoint::hit("provider.commit.released");
                self.enter();
                self.look();
            }
            // The database may not have done it yet: that is looked at with the
            // next call.
            Ended::RolledBack(held) => self.rolled_back(held),
        }
    }

    /// Forgets what the transaction taught.
    fn rolled_back(&self, held: Held) {
        self.state.leave_transaction(&held.touched);
        self.state.doubt(held.touched);
        self.state.undo(held.claimed);
        let mut ledger = self.state.ledger();
        for reference in &held.key_packages {
            ledger.pending.forget(reference);
        }
        for release in held.releases {
            match release {
                Release::Joined(joined, _) => ledger.joined.push(joined),
                Release::Dead(settlement) => ledger.dead.push(record_of(settlement)),
                Release::Settlement(_) | Release::Note(_) => {}
            }
        }
        // What these say may have been rolled back; not to know is always right.
        ledger.without_leaves.clear();
        ledger.ended.clear();
        ledger.leaf_indices.clear();
    }

    /// Of records that were claimed for what was rolled back: they may never be
    /// written again, so what they hold is said now.
    fn say_what_is_there(&self) {
        if self.transactions.are_open() {
            return;
        }
        let undone = self.state.take_undone();
        if undone.is_empty() {
            return;
        }
        let found = undone.into_iter().filter_map(|(record, generation)| {
            self.state.find(record, generation, |record| {
                let findings = record::read(&self.inner, record)?;
                Ok::<_, record::Unreadable>(
                    findings.map_or_else(Vec::new, |findings| findings.keys()),
                )
            })
        });
        let found: Vec<_> = found.map(Message::Settlement).collect();
        self.state.tell(found);
    }
}

fn record_of(settlement: Settlement) -> Record {
    match settlement {
        Settlement::Written { record, .. }
        | Settlement::Found { record, .. }
        | Settlement::Deleted { record, .. } => record,
    }
}

/// Where a KeyPackage bundle of OpenMLS holds its private keys.
const INIT_KEY: &str = "private_init_key";
const LEAF_KEY: &str = "private_encryption_key";

fn is_key_package(record: &Record, wanted: &Bytes) -> bool {
    matches!(record, Record::KeyPackage { reference } if reference == wanted)
}

impl<S: StorageProvider<CURRENT_VERSION>> Drop for CustodyStorage<S> {
    fn drop(&mut self) {
        // After a panic, a delete without an open may be OpenMLS's.
        if std::thread::panicking() {
            return;
        }
        self.enter();
        // Nobody is left who could go on with what another thread began.
        if Arc::strong_count(&self.state) == 1 {
            let outcomes = self.state.ledger().pending.last_outcomes();
            self.settle_held_back(outcomes);
        }
    }
}

/// A transaction of the app's database, from [`CustodyStorage::begin`].
#[derive(Debug)]
#[must_use = "dropping it says that the transaction was rolled back"]
pub struct Transaction<'a, S: StorageProvider<CURRENT_VERSION>> {
    storage: &'a CustodyStorage<S>,
    committed: bool,
}

impl<S: StorageProvider<CURRENT_VERSION>> Transaction<'_, S> {
    /// Says that the app's database has committed: what was held is released.
    pub fn committed(mut self) {
        self.committed = true;
    }
}

impl<S: StorageProvider<CURRENT_VERSION>> Drop for Transaction<'_, S> {
    fn drop(&mut self) {
        let ended = self.storage.transactions.end(self.committed);
        self.storage.ended(ended);
    }
}
