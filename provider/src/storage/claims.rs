//! What one storage has claimed: the shared state behind every
//! [`CustodyStorage`](super::CustodyStorage) over it.
//!
//! Nothing here ever fails a call of OpenMLS. What the daemon refuses or cannot
//! be asked is recorded by the custodian; a claim that was not delivered waits,
//! and all releases behind it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlskeyd_protocol::limits::MAX_CLAIM_KEYS;
use mlskeyd_protocol::v1::{
    Bytes, Claim, Claimed, Failure, FailureCode, Housekeeping, Joined, KeyId, Look, Looked, Note,
    Record, Report, Settle, Settlement,
};

use super::custodian::{Custodian, Trouble};
use super::outbox::{Batch, Message, Outbox};
use super::two_phase::Pending;

/// Most records whose keys are remembered. What is forgotten costs one claim
/// more when it is next seen.
const MAX_KNOWN: usize = 65_536;

/// Most things of one kind that the daemon may ask the storage to do at once;
/// what is beyond, it asks again.
const MAX_HOUSEKEEPING: usize = 1024;

/// What this process knows about a record.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Knowledge {
    /// The storage holds these keys in it, sorted, and the daemon knows.
    Known {
        /// The claim that said so; `None`: no claim was needed.
        generation: Option<u64>,
        keys: Vec<KeyId>,
        /// The daemon was told, or will be, that older claims are over.
        settled: bool,
    },
    /// A write failed or was rolled back, or its claim did not arrive: the next
    /// write claims anew whatever it writes.
    Unsure,
}

impl Knowledge {
    /// The record holds no handle, and no claim on it is open.
    const NOTHING: Self = Self::Known {
        generation: None,
        keys: Vec::new(),
        settled: true,
    };
}

/// A write between its claim and its settlement.
#[derive(Debug)]
pub(super) struct Write {
    record: Record,
    generation: Option<u64>,
    /// Its settlement would be news to the daemon.
    unsettled: bool,
    /// A claim was needed.
    pub(super) changed: bool,
}

impl Write {
    /// The claim that was needed, if one was and was delivered.
    pub(super) fn claimed(&self) -> Option<u64> {
        self.generation.filter(|_| self.changed)
    }
}

/// Writes and deletes of one record that are under way.
#[derive(Debug, Default)]
struct UnderWay {
    count: usize,
    /// There was more than one at a time: which of them came last is not known,
    /// so none of them releases anything.
    overlapped: bool,
}

/// Behind the mutex: never held over a request or a call of the inner storage.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    records: HashMap<Record, Knowledge>,
    under_way: HashMap<Record, UnderWay>,
    /// Records that open transactions have touched, of all wrappers.
    in_transactions: HashMap<Record, usize>,
    /// Claims whose transaction was rolled back, to be told what there is.
    undone: Vec<(Record, u64)>,
    /// KeyPackages that served to join a group and are still stored.
    pub(super) joined: Vec<Joined>,
    /// Records to be deleted.
    pub(super) dead: Vec<Record>,
    /// Groups of which an earlier process did not say whether they ended.
    pub(super) ending: Vec<Bytes>,
    looks: Vec<Look>,
    /// Groups that are known to have no own leaf nodes stored.
    pub(super) without_leaves: HashSet<Bytes>,
    /// Groups whose end was reported.
    pub(super) ended: HashSet<Bytes>,
    /// Own leaf indices that were deleted from the storage ahead of the group.
    pub(super) leaf_indices: HashMap<Bytes, u32>,
    /// KeyPackage deletes that are held back.
    pub(super) pending: Pending,
    was_attached: bool,
}

impl Ledger {
    fn know(&mut self, record: Record, knowledge: Knowledge) {
        if self.records.len() >= MAX_KNOWN && !self.records.contains_key(&record) {
            self.records.clear();
        }
        self.records.insert(record, knowledge);
    }

    fn begin(&mut self, record: &Record) {
        let under_way = self.under_way.entry(record.clone()).or_default();
        under_way.count = under_way.count.saturating_add(1);
        under_way.overlapped |= under_way.count > 1;
    }

    /// Ends a write or delete; says whether it was alone.
    fn end(&mut self, record: &Record) -> bool {
        let Some(under_way) = self.under_way.get_mut(record) else {
            return false;
        };
        under_way.count = under_way.count.saturating_sub(1);
        let alone = !under_way.overlapped;
        if under_way.count == 0 {
            self.under_way.remove(record);
        }
        alone
    }

    fn absorb(&mut self, housekeeping: Housekeeping) {
        for joined in housekeeping.joined {
            if self.joined.len() < MAX_HOUSEKEEPING && !self.joined.contains(&joined) {
                self.joined.push(joined);
            }
        }
        for record in housekeeping.dead {
            // A group's state is deleted by the app alone.
            if self.dead.len() < MAX_HOUSEKEEPING
                && !self.dead.contains(&record)
                && !matches!(record, Record::GroupState { .. })
            {
                self.dead.push(record);
            }
        }
        for group in housekeeping.ending {
            if self.ending.len() < MAX_HOUSEKEEPING && !self.ending.contains(&group) {
                self.ending.push(group);
            }
        }
        for look in housekeeping.looks {
            self.looks.retain(|known| known.key != look.key);
            if self.looks.len() < MAX_HOUSEKEEPING {
                self.looks.push(look);
            }
        }
    }
}

/// One storage of one app account, as the daemon knows it. Shared by all
/// wrappers over its database.
pub(crate) struct StorageState {
    name: String,
    ends: bool,
    custodian: Arc<dyn Custodian>,
    ledger: Mutex<Ledger>,
    outbox: Mutex<Outbox>,
    /// Whose turn it is to deliver what waits: held throughout, so that nobody's
    /// release overtakes a waiting claim.
    turn: Mutex<()>,
}

impl std::fmt::Debug for StorageState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StorageState")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl StorageState {
    pub(super) fn new(name: String, ends: bool, custodian: Arc<dyn Custodian>) -> Self {
        Self {
            name,
            ends,
            custodian,
            ledger: Mutex::default(),
            outbox: Mutex::default(),
            turn: Mutex::default(),
        }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims what a write will put into a record, if that is news.
    pub(super) fn begin_write(&self, record: Record, keys: Vec<KeyId>) -> Write {
        {
            let mut ledger = self.ledger();
            ledger.begin(&record);
            ledger.dead.retain(|dead| *dead != record);
            match ledger.records.get(&record) {
                Some(Knowledge::Known {
                    generation,
                    keys: known,
                    settled,
                }) if *known == keys => {
                    let (generation, unsettled) = (*generation, !settled);
                    return Write {
                        record,
                        generation,
                        unsettled,
                        changed: false,
                    };
                }
                None if keys.is_empty() => {
                    ledger.know(record.clone(), Knowledge::NOTHING);
                    return Write {
                        record,
                        generation: None,
                        unsettled: false,
                        changed: false,
                    };
                }
                _ => {}
            }
        }
        let generation = self.claim(&record, keys);
        Write {
            record,
            generation,
            unsettled: true,
            changed: true,
        }
    }

    /// The write is done, or failed. Answers what may be released now.
    pub(super) fn end_write(&self, write: Write, done: bool) -> Option<Settlement> {
        let mut ledger = self.ledger();
        let alone = ledger.end(&write.record);
        if !done || !alone {
            ledger.know(write.record, Knowledge::Unsure);
            return None;
        }
        let generation = write.generation.filter(|_| write.unsettled)?;
        if let Some(Knowledge::Known {
            settled,
            generation: Some(known),
            ..
        }) = ledger.records.get_mut(&write.record)
            && *known == generation
        {
            *settled = true;
        }
        Some(Settlement::Written {
            record: write.record,
            generation,
        })
    }

    /// A record is about to be deleted. Answers the claim that says so: those
    /// that may never be written again are, as a write that will hold nothing, so
    /// that a crash before the settlement leaves a doubt. An epoch's follows from
    /// the next epoch, or from the end of the group.
    pub(super) fn begin_delete(&self, record: &Record) -> Option<u64> {
        {
            let mut ledger = self.ledger();
            ledger.begin(record);
            let holds_nothing = ledger.records.get(record) == Some(&Knowledge::NOTHING);
            if holds_nothing || matches!(record, Record::Epoch { .. }) {
                return None;
            }
        }
        self.claim(record, Vec::new())
    }

    /// Is a write or delete of this record under way, or not yet committed?
    /// Nobody can say then what it holds.
    pub(super) fn is_unsure(&self, record: &Record) -> bool {
        let ledger = self.ledger();
        ledger.under_way.contains_key(record) || ledger.in_transactions.contains_key(record)
    }

    /// A transaction begins to touch a record.
    pub(super) fn enters_transaction(&self, record: &Record) {
        let mut ledger = self.ledger();
        let count = ledger.in_transactions.entry(record.clone()).or_default();
        *count = count.saturating_add(1);
    }

    /// The transaction that touched these records is over.
    pub(super) fn leave_transaction(&self, records: &[Record]) {
        let mut ledger = self.ledger();
        for record in records {
            if let Some(count) = ledger.in_transactions.get_mut(record) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    ledger.in_transactions.remove(record);
                }
            }
        }
    }

    /// What was claimed is undone, and `read` says what there is. Answers what is
    /// to be told; nothing, if that is not known just now.
    pub(super) fn find<E>(
        &self,
        record: Record,
        generation: u64,
        read: impl FnOnce(&Record) -> Result<Vec<KeyId>, E>,
    ) -> Option<Settlement> {
        self.ledger().begin(&record);
        let keys = read(&record);
        let alone = self.ledger().end(&record);
        let keys = keys
            .ok()
            .filter(|keys| alone && keys.len() <= MAX_CLAIM_KEYS)?;
        Some(Settlement::Found {
            record,
            generation,
            keys,
        })
    }

    /// The delete is done, or failed. Answers what may be released now.
    pub(super) fn end_delete(&self, record: &Record, done: bool) -> Option<Settlement> {
        let mut ledger = self.ledger();
        let alone = ledger.end(record);
        if !done || !alone {
            ledger.know(record.clone(), Knowledge::Unsure);
            return None;
        }
        ledger.dead.retain(|dead| dead != record);
        let generation = match ledger.records.get(record) {
            Some(knowledge) if *knowledge == Knowledge::NOTHING => return None,
            Some(Knowledge::Known { generation, .. }) => *generation,
            Some(Knowledge::Unsure) | None => None,
        };
        ledger.know(record.clone(), Knowledge::NOTHING);
        Some(Settlement::Deleted {
            record: record.clone(),
            generation,
        })
    }

    /// A read showed these keys in a record: that is a claim too, once.
    pub(super) fn seen(&self, record: &Record, keys: Vec<KeyId>) {
        {
            let mut ledger = self.ledger();
            match ledger.records.get(record) {
                Some(Knowledge::Known { keys: known, .. }) if *known == keys => return,
                None if keys.is_empty() => {
                    return ledger.know(record.clone(), Knowledge::NOTHING);
                }
                // Somebody else emptied it, or a write that failed did: the next
                // write here claims, and releases.
                Some(_) if keys.is_empty() => {
                    return ledger.know(record.clone(), Knowledge::Unsure);
                }
                _ => {}
            }
        }
        self.claim(record, keys);
    }

    /// The storage may hold something else in these records than was claimed
    /// last.
    pub(super) fn doubt(&self, records: impl IntoIterator<Item = Record>) {
        let mut ledger = self.ledger();
        for record in records {
            ledger.know(record, Knowledge::Unsure);
        }
    }

    /// Claims were rolled back. What is beyond the bound, the daemon asks for when
    /// the storage is next attached.
    pub(super) fn undo(&self, claimed: impl IntoIterator<Item = (Record, u64)>) {
        let mut ledger = self.ledger();
        let room = MAX_HOUSEKEEPING.saturating_sub(ledger.undone.len());
        ledger.undone.extend(claimed.into_iter().take(room));
    }

    /// Takes the claims that were rolled back.
    pub(super) fn take_undone(&self) -> Vec<(Record, u64)> {
        std::mem::take(&mut self.ledger().undone)
    }

    /// Claims, and remembers how that went.
    fn claim(&self, record: &Record, keys: Vec<KeyId>) -> Option<u64> {
        let generation = self.send_claim(record, &keys);
        let knowledge = match generation {
            Some(_) => Knowledge::Known {
                generation,
                keys,
                settled: false,
            },
            None => Knowledge::Unsure,
        };
        self.ledger().know(record.clone(), knowledge);
        generation
    }

    fn send_claim(&self, record: &Record, keys: &[KeyId]) -> Option<u64> {
        if keys.len() > MAX_CLAIM_KEYS {
            self.custodian.record(Failure::new(
                FailureCode::BadRequest,
                format!("a record holds more than {MAX_CLAIM_KEYS} keys in custody"),
                "these keys will be destroyed after their grace; report this as a fault",
            ));
            return None;
        }
        let claim = || self.custodian.claim(self.claim_of(record, keys));
        match self.deliver().and_then(|()| claim()) {
            Ok(claimed) => Some(self.claimed(claimed)),
            Err(Trouble::Later) => {
                self.outbox()
                    .push(Message::Claim(record.clone(), keys.to_vec()));
                None
            }
            Err(Trouble::Never) => None,
        }
    }

    fn claim_of(&self, record: &Record, keys: &[KeyId]) -> Claim {
        Claim {
            storage: self.name.clone(),
            record: record.clone(),
            keys: keys.to_vec(),
        }
    }

    fn claimed(&self, claimed: Claimed) -> u64 {
        for key in claimed.lost {
            let failure = Failure::new(
                FailureCode::Destroyed,
                "the storage holds a key that is not in custody any more",
                "rejoin the group by an external commit, or publish a new KeyPackage",
            );
            self.custodian.record(failure.about_key(key));
        }
        self.ledger().absorb(claimed.housekeeping);
        claimed.generation
    }

    /// Tells the daemon, now or when it is back.
    pub(super) fn tell(&self, messages: impl IntoIterator<Item = Message>) {
        {
            let mut outbox = self.outbox();
            for message in messages {
                outbox.push(message);
            }
        }
        // What is not delivered waits.
        let _ = self.deliver();
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects the storage if it is not, so that the daemon's housekeeping is
    /// known.
    pub(super) fn attach(&self) -> Result<(), Trouble> {
        if self.custodian.attached(&self.name) {
            return Ok(());
        }
        let housekeeping = self.custodian.attach(&self.name, self.ends)?;
        let mut ledger = self.ledger();
        if std::mem::replace(&mut ledger.was_attached, true) {
            // The daemon may have forgotten this storage meanwhile.
            for knowledge in ledger.records.values_mut() {
                if *knowledge != Knowledge::NOTHING {
                    *knowledge = Knowledge::Unsure;
                }
            }
        }
        ledger.absorb(housekeeping);
        Ok(())
    }

    /// Delivers what waits, in order. `Ok`: nothing waits any more.
    fn deliver(&self) -> Result<(), Trouble> {
        self.attach()?;
        {
            let outbox = self.outbox();
            if outbox.is_empty() {
                return Ok(());
            }
            if outbox.is_carrier() {
                return Err(Trouble::Later);
            }
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Some(batch) = self.outbox().take() else {
                return Ok(());
            };
            match self.send(&batch) {
                Ok(()) | Err(Trouble::Never) => self.outbox().delivered(),
                Err(Trouble::Later) => {
                    self.outbox().put_back(batch);
                    return Err(Trouble::Later);
                }
            }
        }
    }

    fn send(&self, batch: &Batch) -> Result<(), Trouble> {
        let storage = self.name.clone();
        let housekeeping = match batch {
            // Its generation is of no use: what the record holds by now is seen
            // when it is next read or written.
            Batch::Claim(record, keys) => {
                let claimed = self.custodian.claim(self.claim_of(record, keys))?;
                self.claimed(claimed);
                return Ok(());
            }
            Batch::Settle(settlements) => self.custodian.settle(Settle {
                storage,
                settlements: settlements.clone(),
            })?,
            Batch::Report(notes) => self.custodian.report(Report {
                storage,
                notes: notes.clone(),
            })?,
        };
        let mut ledger = self.ledger();
        ledger.absorb(housekeeping);
        if let Batch::Report(notes) = batch {
            // What was just said to be among the own leaves is needed, even if an
            // earlier note of the same report seemed to end it.
            let lives = |public_key: &Bytes| {
                notes.iter().any(|note| {
                    matches!(note, Note::OwnLeaf { public_key: own, .. } if own == public_key)
                })
            };
            ledger
                .dead
                .retain(|dead| !matches!(dead, Record::Update { public_key } if lives(public_key)));
        }
        Ok(())
    }

    /// Takes the keys that the daemon wants to be looked for.
    pub(super) fn take_looks(&self) -> Vec<Look> {
        std::mem::take(&mut self.ledger().looks)
    }

    /// Answers a last look.
    pub(super) fn looked(&self, found: Vec<Look>) {
        let looked = Looked {
            storage: self.name.clone(),
            found,
        };
        // An answer that is lost is asked for again.
        if let Ok(housekeeping) = self.deliver().and_then(|()| self.custodian.looked(looked)) {
            self.ledger().absorb(housekeeping);
        }
    }

    /// Records a failure that the storage met by itself.
    pub(super) fn record(&self, failure: Failure) {
        self.custodian.record(failure);
    }
}
