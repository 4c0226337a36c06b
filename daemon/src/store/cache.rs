//! What was used of late, in bounded memory.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlskeyd_protocol::v1::{Bytes, KeyId, Owner};

use super::types::{GuardId, GuardMark, KeyRecord};

/// A map of two halves: when the young half is full it becomes the old one, and
/// what was in the old one and not used since is forgotten.
struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Hash + Eq + Clone, V: Clone> Recent<K, V> {
    fn new(size: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            half: size.div_ceil(2).max(1),
        }
    }

    fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.insert(key, value.clone());
        Some(value)
    }

    fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

/// Keys and guard marks as they were last committed.
pub(super) struct Cache(Mutex<Inner>);

struct Inner {
    keys: Recent<KeyId, Arc<KeyRecord>>,
    by_public: Recent<(Owner, Bytes), KeyId>,
    guards: Recent<GuardId, Arc<GuardMark>>,
    /// Counts the writers' changes: tells a reader that what it has read may be
    /// outdated.
    changes: u64,
}

impl Cache {
    pub(super) fn new(size: usize) -> Self {
        Self(Mutex::new(Inner {
            keys: Recent::new(size),
            by_public: Recent::new(size),
            guards: Recent::new(size),
            changes: 0,
        }))
    }

    pub(super) fn key(&self, id: &KeyId) -> Option<Arc<KeyRecord>> {
        self.lock().keys.get(id)
    }

    pub(super) fn key_by_public(&self, name: &(Owner, Bytes)) -> Option<Arc<KeyRecord>> {
        let mut inner = self.lock();
        let id = inner.by_public.get(name)?;
        // It may have another owner since.
        inner.keys.get(&id).filter(|key| key.owner == name.0)
    }

    pub(super) fn guard(&self, id: &GuardId) -> Option<Arc<GuardMark>> {
        self.lock().guards.get(id)
    }

    /// To be taken before a reader reads what it means to insert.
    pub(super) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// A reader's find; dropped if a writer has changed anything since.
    pub(super) fn found_key(&self, seen: u64, key: &Arc<KeyRecord>) {
        let mut inner = self.lock();
        if inner.changes == seen {
            inner.put_key(key);
        }
    }

    /// As [`Self::found_key`].
    pub(super) fn found_guard(&self, seen: u64, id: GuardId, mark: Arc<GuardMark>) {
        let mut inner = self.lock();
        if inner.changes == seen {
            inner.guards.insert(id, mark);
        }
    }

    /// A writer's committed change.
    pub(super) fn changed_key(&self, key: &Arc<KeyRecord>) {
        let mut inner = self.lock();
        inner.changes = inner.changes.wrapping_add(1);
        inner.put_key(key);
    }

    /// A writer's committed removal.
    pub(super) fn removed_key(&self, id: &KeyId) {
        let mut inner = self.lock();
        inner.changes = inner.changes.wrapping_add(1);
        inner.keys.remove(id);
    }

    /// A writer's committed change.
    pub(super) fn changed_guard(&self, id: GuardId, mark: Arc<GuardMark>) {
        let mut inner = self.lock();
        inner.changes = inner.changes.wrapping_add(1);
        inner.guards.insert(id, mark);
    }

    /// Nobody panics while holding the lock, and a cache is never half changed
    /// in a way that matters.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn put_key(&mut self, key: &Arc<KeyRecord>) {
        if !key.public_key.is_empty() {
            self.by_public
                .insert((key.owner.clone(), key.public_key.clone()), key.id);
        }
        self.keys.insert(key.id, Arc::clone(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let mut recent = Recent::new(100);
        recent.insert(0, "hot");
        for n in 1..10_000 {
            recent.insert(n, "cold");
            assert_eq!(recent.get(&0), Some("hot"));
            assert!(recent.young.len() + recent.old.len() <= 100);
        }
        assert_eq!(recent.get(&1), None);
        recent.remove(&0);
        assert_eq!(recent.get(&0), None);
    }
}
