//! Handles of objects that were used last. Looking for an object takes a token
//! up to a tenth of a second, and unwrapping a key some milliseconds.

use std::collections::{HashMap, VecDeque};

/// Most handles of the token's own objects.
const MAX_OBJECTS: usize = 1024;

/// Most unwrapped keys, each an object of a session in the token's memory.
const MAX_UNWRAPPED: usize = 256;

/// Most generations that are remembered as destroyed: longer than a call lasts.
const MAX_DESTROYED: usize = 1024;

/// What a handle is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Of {
    /// The private key with this id.
    Private([u8; 16]),
    /// What a generation begins with.
    Anchor([u8; 16]),
    /// The key that encrypts the daemon's keys under a generation.
    Sealing([u8; 16]),
}

/// The handles of one token, for all of its sessions; a handle is an `H`.
pub(super) struct Handles<H> {
    objects: Known<H>,
    unwrapped: Known<H>,
    /// Generations that were destroyed last: a key of one that another session
    /// was just unwrapping is not kept.
    destroyed: VecDeque<[u8; 16]>,
}

struct Known<H> {
    entries: HashMap<Of, Entry<H>>,
    /// The one that was not used for longest first.
    order: VecDeque<Of>,
}

#[derive(Clone, Copy)]
struct Entry<H> {
    handle: H,
    generation: [u8; 16],
    /// The session that an unwrapped key ends with.
    session: u64,
}

impl<H: Copy> Default for Handles<H> {
    fn default() -> Self {
        Self {
            objects: Known::new(),
            unwrapped: Known::new(),
            destroyed: VecDeque::new(),
        }
    }
}

impl<H: Copy + PartialEq> Handles<H> {
    pub(super) fn get(&mut self, of: Of) -> Option<H> {
        let found = self.objects.get(of).or_else(|| self.unwrapped.get(of));
        found.map(|entry| entry.handle)
    }

    /// Remembers an object of the token.
    pub(super) fn put_object(&mut self, of: Of, generation: [u8; 16], handle: H) {
        if self.objects.entries.len() >= MAX_OBJECTS {
            self.objects.take_oldest();
        }
        let entry = Entry {
            handle,
            generation,
            session: 0,
        };
        self.objects.put(of, entry);
    }

    /// Remembers an unwrapped key; answers one that has to be destroyed for it.
    pub(super) fn put_unwrapped(
        &mut self,
        of: Of,
        generation: [u8; 16],
        handle: H,
        session: u64,
    ) -> Option<H> {
        if self.destroyed.contains(&generation) {
            return Some(handle);
        }
        let entry = Entry {
            handle,
            generation,
            session,
        };
        // Two sessions may have unwrapped the same key at once.
        if let Some(other) = self.unwrapped.put(of, entry) {
            return Some(other.handle);
        }
        if self.unwrapped.entries.len() > MAX_UNWRAPPED {
            return self.unwrapped.take_oldest();
        }
        None
    }

    /// Forgets one that turned out to be wrong, if it is still this one.
    pub(super) fn forget(&mut self, of: Of, wrong: H) {
        let keep = |other: Of, entry: &Entry<H>| other != of || entry.handle != wrong;
        self.objects.retain(keep);
        self.unwrapped.retain(keep);
    }

    /// Was the generation destroyed here? What is made under it meanwhile must not
    /// stay: its making was given up.
    pub(super) fn is_destroyed(&self, generation: [u8; 16]) -> bool {
        self.destroyed.contains(&generation)
    }

    /// Forgets an unwrapped key; answers it, to be destroyed.
    pub(super) fn take(&mut self, of: Of) -> Option<H> {
        let taken = self.unwrapped.entries.remove(&of);
        self.unwrapped.order.retain(|other| *other != of);
        taken.map(|entry| entry.handle)
    }

    /// Forgets the unwrapped keys of a session that has ended.
    pub(super) fn forget_session(&mut self, session: u64) {
        self.unwrapped.retain(|_, entry| entry.session != session);
    }

    /// Forgets all handles: none of them is worth anything any more.
    pub(super) fn forget_all(&mut self) {
        self.objects = Known::new();
        self.unwrapped = Known::new();
    }

    /// Forgets all unwrapped keys; answers them, to be destroyed.
    pub(super) fn take_unwrapped(&mut self) -> Vec<H> {
        let taken = std::mem::replace(&mut self.unwrapped, Known::new()).entries;
        taken.into_values().map(|entry| entry.handle).collect()
    }

    /// Forgets all of a generation, for good; answers its unwrapped keys, to be
    /// destroyed.
    pub(super) fn take_generation(&mut self, generation: [u8; 16]) -> Vec<H> {
        self.destroyed.push_back(generation);
        if self.destroyed.len() > MAX_DESTROYED {
            self.destroyed.pop_front();
        }
        let of_it = |entry: &Entry<H>| entry.generation == generation;
        self.objects.retain(|_, entry| !of_it(entry));
        let unwrapped = self.unwrapped.entries.values();
        let taken = unwrapped.filter(|entry| of_it(entry));
        let taken = taken.map(|entry| entry.handle).collect();
        self.unwrapped.retain(|_, entry| !of_it(entry));
        taken
    }
}

impl<H: Copy> Known<H> {
    fn new() -> Self {
        Self {
            entries: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    fn get(&mut self, of: Of) -> Option<Entry<H>> {
        let found = self.entries.get(&of).copied()?;
        if self.order.back() != Some(&of) {
            self.order.retain(|other| *other != of);
            self.order.push_back(of);
        }
        Some(found)
    }

    fn put(&mut self, of: Of, entry: Entry<H>) -> Option<Entry<H>> {
        let before = self.entries.insert(of, entry);
        self.order.retain(|other| *other != of);
        self.order.push_back(of);
        before
    }

    fn take_oldest(&mut self) -> Option<H> {
        let oldest = self.order.pop_front()?;
        self.entries.remove(&oldest).map(|entry| entry.handle)
    }

    fn retain(&mut self, keep: impl Fn(Of, &Entry<H>) -> bool) {
        self.entries.retain(|of, entry| keep(*of, entry));
        self.order.retain(|of| self.entries.contains_key(of));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        id
    }

    #[test]
    fn the_key_that_was_not_used_for_longest_makes_room() {
        let mut handles = Handles::default();
        for n in 0..MAX_UNWRAPPED {
            let too_many = handles.put_unwrapped(Of::Private(id(n)), id(0), n, 1);
            assert_eq!(too_many, None);
        }
        assert_eq!(handles.get(Of::Private(id(0))), Some(0));
        let new = Of::Private(id(MAX_UNWRAPPED));
        let too_many = handles.put_unwrapped(new, id(0), MAX_UNWRAPPED, 1);
        assert_eq!(too_many, Some(1));
        assert_eq!(handles.get(Of::Private(id(1))), None);
        assert_eq!(handles.get(Of::Private(id(0))), Some(0));
    }

    #[test]
    fn of_two_that_unwrap_a_key_at_once_one_is_destroyed() {
        let mut handles = Handles::default();
        let key = Of::Private(id(1));
        assert_eq!(handles.put_unwrapped(key, id(0), 1, 1), None);
        let first = handles.put_unwrapped(key, id(0), 2, 2);
        assert_eq!(first, Some(1));
        assert_eq!(handles.get(key), Some(2));
    }

    #[test]
    fn keys_end_with_their_session_and_their_generation() {
        let mut handles = Handles::default();
        let [one, two, three, object] = [1, 2, 3, 4].map(|n| Of::Private(id(n)));
        handles.put_unwrapped(one, id(7), 1, 1);
        handles.put_unwrapped(two, id(8), 2, 2);
        handles.put_unwrapped(three, id(7), 3, 2);
        handles.put_object(object, id(7), 4);
        handles.put_object(Of::Anchor(id(7)), id(7), 5);
        handles.forget_session(1);
        assert_eq!(handles.get(one), None);
        assert_eq!(handles.get(two), Some(2));
        // The token's own object is destroyed by its label.
        assert_eq!(handles.take_generation(id(7)), [3]);
        for gone in [three, object, Of::Anchor(id(7))] {
            assert_eq!(handles.get(gone), None);
        }
        assert_eq!(handles.get(two), Some(2));
        // What was just being unwrapped.
        assert_eq!(handles.put_unwrapped(three, id(7), 6, 2), Some(6));
        assert_eq!(handles.get(three), None);
        assert_eq!((handles.take(two), handles.take(two)), (Some(2), None));
        assert!(handles.is_destroyed(id(7)) && !handles.is_destroyed(id(8)));
    }

    #[test]
    fn only_the_handle_that_was_wrong_is_forgotten() {
        let mut handles = Handles::default();
        let key = Of::Private(id(1));
        handles.put_unwrapped(key, id(0), 2, 1);
        handles.forget(key, 1);
        assert_eq!(handles.get(key), Some(2));
        handles.forget(key, 2);
        assert_eq!(handles.get(key), None);
    }

    #[test]
    fn objects_are_not_without_end() {
        let mut handles = Handles::default();
        for n in 0..=MAX_OBJECTS {
            handles.put_object(Of::Private(id(n)), id(0), n);
        }
        assert_eq!(handles.objects.entries.len(), MAX_OBJECTS);
        assert_eq!(handles.objects.order.len(), MAX_OBJECTS);
    }
}
