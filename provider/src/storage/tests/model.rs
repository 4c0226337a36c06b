//! The daemon's claims, in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use mlskeyd_protocol::v1::{
    Bytes, Claim, Claimed, Failure, Housekeeping, Joined, KeyId, Look, Looked, Note, Record,
    Report, Settle, Settlement,
};

use super::super::custodian::{Custodian, Trouble};

/// What reached the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Attach,
    Claim(Record, Vec<KeyId>),
    Settle(Settlement),
    Note(Note),
    Looked,
}

pub(super) type Hook = Box<dyn FnMut(&Event) + Send>;

type StorageRecord = (String, Record);

#[derive(Default)]
pub(super) struct Inner {
    pub(super) log: Vec<Event>,
    pub(super) failures: Vec<Failure>,
    pub(super) away: bool,
    pub(super) hook: Option<Hook>,
    /// The private keys.
    keys: BTreeMap<KeyId, Vec<u8>>,
    pub(super) destroyed: BTreeSet<KeyId>,
    /// Opens are refused, as by a locked device.
    pub(super) locked: bool,
    attached: BTreeSet<String>,
    generation: u64,
    claims: BTreeMap<StorageRecord, Vec<(u64, BTreeSet<KeyId>)>>,
    last_named: BTreeMap<KeyId, BTreeSet<StorageRecord>>,
    joined: BTreeSet<(String, Record, Bytes)>,
    pub(super) last_resort: BTreeSet<Record>,
    dead: BTreeSet<StorageRecord>,
    /// Groups whose end an earlier process began.
    pub(super) ending: BTreeSet<(String, Bytes)>,
    /// Update records' groups, by public key.
    bindings: BTreeMap<(String, Bytes), Bytes>,
    looks: BTreeMap<KeyId, BTreeSet<StorageRecord>>,
}

#[derive(Default)]
pub(super) struct Model(Mutex<Inner>);

impl Model {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(super) fn take_log(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().log)
    }

    /// The daemon restarts: nobody is attached any more.
    pub(super) fn restart(&self) {
        self.lock().attached.clear();
    }

    /// What a grace of zero does: keys without claims are looked for, those that
    /// no record ever named are destroyed.
    pub(super) fn sweep(&self) {
        let mut inner = self.lock();
        let idle: Vec<_> = inner
            .keys
            .keys()
            .copied()
            .filter(|key| inner.is_idle(*key))
            .collect();
        for key in idle {
            match inner.last_named.get(&key).cloned() {
                Some(records) => {
                    inner.looks.insert(key, records);
                }
                None => inner.destroy(key),
            }
        }
    }

    pub(super) fn alive(&self) -> BTreeSet<KeyId> {
        self.lock().keys.keys().copied().collect()
    }

    /// The keys that some record of this storage claims.
    pub(super) fn claimed(&self, storage: &str) -> BTreeSet<KeyId> {
        let inner = self.lock();
        let claims = inner.claims.iter().filter(|((name, _), _)| name == storage);
        claims
            .flat_map(|(_, sets)| sets.iter().flat_map(|(_, keys)| keys.clone()))
            .collect()
    }

    /// Asks a storage to look for all keys that it claims, when it next attaches.
    pub(super) fn look_for_all(&self, storage: &str) {
        let mut inner = self.lock();
        let claims = inner.claims.iter().filter(|((name, _), _)| name == storage);
        let looks: Vec<_> = claims
            .flat_map(|(place, sets)| {
                let keys = sets.iter().flat_map(|(_, keys)| keys);
                keys.map(|key| (*key, place.clone())).collect::<Vec<_>>()
            })
            .collect();
        for (key, place) in looks {
            inner.looks.entry(key).or_default().insert(place);
        }
        inner.attached.remove(storage);
    }

    /// The records of this storage that claim a key.
    pub(super) fn records(&self, storage: &str) -> Vec<Record> {
        let inner = self.lock();
        let claims = inner.claims.iter().filter(|((name, _), sets)| {
            name == storage && sets.iter().any(|(_, keys)| !keys.is_empty())
        });
        claims.map(|((_, record), _)| record.clone()).collect()
    }

    /// Says again that a KeyPackage served to join a group, as after a crash
    /// ahead of its delete.
    pub(super) fn joined_again(&self, storage: &str, record: Record, group: &[u8]) {
        self.lock()
            .joined
            .insert((storage.to_owned(), record, group.into()));
    }

    pub(super) fn generate(&self, private: Vec<u8>) -> KeyId {
        let mut inner = self.lock();
        inner.generation += 1;
        let mut id = [0xAB; 16];
        id[..8].copy_from_slice(&inner.generation.to_be_bytes());
        let key = KeyId::from_bytes(id);
        inner.keys.insert(key, private);
        key
    }

    /// The private key, if the device gives it.
    pub(super) fn private(&self, key: KeyId) -> Option<Vec<u8>> {
        let inner = self.lock();
        if inner.locked {
            return None;
        }
        assert!(
            !inner.destroyed.contains(&key),
            "{key} was destroyed and is still used"
        );
        inner.keys.get(&key).cloned()
    }
}

impl Inner {
    fn is_idle(&self, key: KeyId) -> bool {
        !self
            .claims
            .values()
            .flatten()
            .any(|(_, keys)| keys.contains(&key))
    }

    fn destroy(&mut self, key: KeyId) {
        self.keys.remove(&key);
        self.looks.remove(&key);
        self.destroyed.insert(key);
    }

    fn note(&mut self, event: Event) -> Result<(), Trouble> {
        if self.away {
            return Err(Trouble::Later);
        }
        if let Some(mut hook) = self.hook.take() {
            hook(&event);
            self.hook = Some(hook);
        }
        self.log.push(event);
        Ok(())
    }

    fn housekeeping(&self, storage: &str) -> Housekeeping {
        let mine = |(name, record): &StorageRecord| (name == storage).then(|| record.clone());
        Housekeeping {
            joined: self
                .joined
                .iter()
                .filter(|(name, ..)| name == storage)
                .map(|(_, record, group)| Joined {
                    record: record.clone(),
                    group: group.clone(),
                })
                .collect(),
            dead: self.dead.iter().filter_map(mine).collect(),
            ending: self
                .ending
                .iter()
                .filter(|(name, _)| name == storage)
                .map(|(_, group)| group.clone())
                .collect(),
            looks: self
                .looks
                .iter()
                .map(|(key, records)| Look {
                    key: *key,
                    records: records.iter().filter_map(mine).collect(),
                })
                .filter(|look| !look.records.is_empty())
                .collect(),
        }
    }

    fn settle(&mut self, storage: &str, settlement: Settlement) {
        match settlement {
            Settlement::Written { record, generation } => {
                let place = (storage.to_owned(), record.clone());
                let sets = self.claims.entry(place).or_default();
                if sets.last().is_some_and(|(newest, _)| *newest == generation) {
                    sets.drain(..sets.len() - 1);
                    self.retire(storage, &record);
                }
            }
            Settlement::Found {
                record,
                generation,
                keys,
            } => {
                let place = (storage.to_owned(), record);
                let sets = self.claims.entry(place).or_default();
                if sets.last().is_some_and(|(newest, _)| *newest == generation) {
                    *sets = vec![(generation, keys.into_iter().collect())];
                }
            }
            Settlement::Deleted { record, generation } => {
                let place = (storage.to_owned(), record.clone());
                let newest = self
                    .claims
                    .get(&place)
                    .and_then(|sets| sets.last())
                    .map(|last| last.0);
                if generation.is_none() || newest.is_none() || generation == newest {
                    self.claims.remove(&place);
                    self.dead.remove(&place);
                    self.joined
                        .retain(|(name, joined, _)| (name, joined) != (&place.0, &place.1));
                }
            }
        }
    }

    /// A new epoch record retires the older ones.
    fn retire(&mut self, storage: &str, record: &Record) {
        let Record::Epoch {
            group,
            epoch,
            leaf_index,
        } = record
        else {
            return;
        };
        let older = self.claims.keys().filter(|(name, other)| {
            name == storage
                && matches!(other, Record::Epoch { group: g, epoch: e, leaf_index: l }
                    if (g, l) == (group, leaf_index) && e < epoch)
        });
        let older: Vec<_> = older.cloned().collect();
        self.dead.extend(older);
    }

    fn take_note(&mut self, storage: &str, note: Note) {
        match note {
            Note::OwnLeaf { group, public_key } => {
                self.bindings
                    .insert((storage.to_owned(), public_key), group);
            }
            Note::OwnLeavesDeleted { group } => self.updates_die(storage, &group),
            Note::GroupEnding { .. } => {}
            Note::GroupLives { group } => {
                self.ending.remove(&(storage.to_owned(), group));
            }
            Note::GroupGone { group } => {
                if self.ending.contains(&(storage.to_owned(), group.clone())) {
                    let leaf_index = None;
                    self.take_note(storage, Note::GroupEnded { group, leaf_index });
                }
            }
            Note::GroupEnded { group, leaf_index } => {
                self.ending.remove(&(storage.to_owned(), group.clone()));
                self.updates_die(storage, &group);
                let ended = self.claims.keys().filter(|(name, record)| {
                    name == storage
                        && matches!(record, Record::Epoch { group: g, leaf_index: l, .. }
                            if *g == group && leaf_index.is_none_or(|index| index == *l))
                });
                let ended: Vec<_> = ended.cloned().collect();
                self.dead.extend(ended);
            }
        }
    }

    fn updates_die(&mut self, storage: &str, group: &Bytes) {
        let bindings = &self.bindings;
        let dead = self.claims.keys().filter(|(name, record)| {
            name == storage
                && matches!(record, Record::Update { public_key }
                    if bindings.get(&(name.clone(), public_key.clone())) == Some(group))
        });
        let dead: Vec<_> = dead.cloned().collect();
        self.dead.extend(dead);
    }
}

impl Custodian for Model {
    fn attached(&self, storage: &str) -> bool {
        let inner = self.lock();
        !inner.away && inner.attached.contains(storage)
    }

    fn attach(&self, storage: &str, _: bool) -> Result<Housekeeping, Trouble> {
        let mut inner = self.lock();
        inner.note(Event::Attach)?;
        inner.attached.insert(storage.to_owned());
        Ok(inner.housekeeping(storage))
    }

    fn claim(&self, claim: Claim) -> Result<Claimed, Trouble> {
        let mut inner = self.lock();
        inner.note(Event::Claim(claim.record.clone(), claim.keys.clone()))?;
        assert!(
            inner.attached.contains(&claim.storage),
            "a claim of a storage that is not attached"
        );
        let place = (claim.storage.clone(), claim.record.clone());
        let mut lost = Vec::new();
        for key in &claim.keys {
            inner.looks.remove(key);
            inner
                .last_named
                .entry(*key)
                .or_default()
                .insert(place.clone());
            if inner.destroyed.contains(key) {
                lost.push(*key);
            }
            if let Record::Epoch { group, .. } = &claim.record {
                let packages = inner.claims.iter().filter(|((name, record), sets)| {
                    *name == claim.storage
                        && matches!(record, Record::KeyPackage { .. })
                        && !inner.last_resort.contains(record)
                        && sets.iter().any(|(_, keys)| keys.contains(key))
                });
                let packages: Vec<_> = packages
                    .map(|((name, record), _)| (name.clone(), record.clone(), group.clone()))
                    .collect();
                inner.joined.extend(packages);
            }
        }
        inner.generation += 1;
        let generation = inner.generation;
        inner.dead.remove(&place);
        inner
            .claims
            .entry(place)
            .or_default()
            .push((generation, claim.keys.into_iter().collect()));
        Ok(Claimed {
            generation,
            lost,
            housekeeping: inner.housekeeping(&claim.storage),
        })
    }

    fn settle(&self, settle: Settle) -> Result<Housekeeping, Trouble> {
        let mut inner = self.lock();
        for settlement in settle.settlements {
            inner.note(Event::Settle(settlement.clone()))?;
            inner.settle(&settle.storage, settlement);
        }
        Ok(inner.housekeeping(&settle.storage))
    }

    fn report(&self, report: Report) -> Result<Housekeeping, Trouble> {
        let mut inner = self.lock();
        for note in report.notes {
            inner.note(Event::Note(note.clone()))?;
            inner.take_note(&report.storage, note);
        }
        Ok(inner.housekeeping(&report.storage))
    }

    fn looked(&self, looked: Looked) -> Result<Housekeeping, Trouble> {
        let mut inner = self.lock();
        inner.note(Event::Looked)?;
        for look in looked.found {
            let key = look.key;
            if look.records.is_empty() {
                let Some(places) = inner.looks.get_mut(&key) else {
                    continue;
                };
                places.retain(|(name, _)| *name != looked.storage);
                if places.is_empty() && inner.is_idle(key) {
                    inner.destroy(key);
                }
                continue;
            }
            inner.looks.remove(&key);
            for record in look.records {
                inner.generation += 1;
                let claim = (inner.generation, BTreeSet::from([key]));
                inner
                    .claims
                    .entry((looked.storage.clone(), record))
                    .or_default()
                    .push(claim);
            }
        }
        Ok(inner.housekeeping(&looked.storage))
    }

    fn record(&self, failure: Failure) {
        self.lock().failures.push(failure);
    }
}
