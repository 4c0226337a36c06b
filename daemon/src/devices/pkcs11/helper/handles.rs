//! Handles of objects that were used last. Looking for an object takes a token
//! up to a tenth of a second, and unwrapping a key some milliseconds.

use std::collections::{HashMap, VecDeque};

use cryptoki::object::ObjectHandle;

/// Most handles of the token's own objects.
const MAX_OBJECTS: usize = 1024;

/// Most unwrapped keys, each an object of a session in the token's memory.
const MAX_UNWRAPPED: usize = 256;

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

/// The handles of one token, for all of its sessions.
#[derive(Default)]
pub(super) struct Handles {
    objects: Known,
    unwrapped: Known,
}

#[derive(Default)]
struct Known {
    entries: HashMap<Of, Entry>,
    /// The one that was not used for longest first.
    order: VecDeque<Of>,
}

#[derive(Clone, Copy)]
struct Entry {
    handle: ObjectHandle,
    generation: [u8; 16],
    /// The session that an unwrapped key ends with.
    session: u64,
}

impl Handles {
    pub(super) fn get(&mut self, of: Of) -> Option<ObjectHandle> {
        let found = self.objects.get(of).or_else(|| self.unwrapped.get(of));
        found.map(|entry| entry.handle)
    }

    /// Remembers an object of the token.
    pub(super) fn put_object(&mut self, of: Of, generation: [u8; 16], handle: ObjectHandle) {
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
        handle: ObjectHandle,
        session: u64,
    ) -> Option<ObjectHandle> {
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

    /// Forgets one that turned out to be wrong.
    pub(super) fn forget(&mut self, of: Of) {
        self.objects.retain(|other, _| other != of);
        self.unwrapped.retain(|other, _| other != of);
    }

    /// Forgets the unwrapped keys of a session that has ended.
    pub(super) fn forget_session(&mut self, session: u64) {
        self.unwrapped.retain(|_, entry| entry.session != session);
    }

    /// Forgets all unwrapped keys; answers them, to be destroyed.
    pub(super) fn take_unwrapped(&mut self) -> Vec<ObjectHandle> {
        let taken = std::mem::take(&mut self.unwrapped).entries;
        taken.into_values().map(|entry| entry.handle).collect()
    }

    /// Forgets all of a generation; answers its unwrapped keys, to be destroyed.
    pub(super) fn take_generation(&mut self, generation: [u8; 16]) -> Vec<ObjectHandle> {
        let of_it = |entry: &Entry| entry.generation == generation;
        self.objects.retain(|_, entry| !of_it(entry));
        let unwrapped = self.unwrapped.entries.values();
        let taken = unwrapped.filter(|entry| of_it(entry));
        let taken = taken.map(|entry| entry.handle).collect();
        self.unwrapped.retain(|_, entry| !of_it(entry));
        taken
    }
}

impl Known {
    fn get(&mut self, of: Of) -> Option<Entry> {
        let found = self.entries.get(&of).copied()?;
        if self.order.back() != Some(&of) {
            self.order.retain(|other| *other != of);
            self.order.push_back(of);
        }
        Some(found)
    }

    fn put(&mut self, of: Of, entry: Entry) -> Option<Entry> {
        let before = self.entries.insert(of, entry);
        self.order.retain(|other| *other != of);
        self.order.push_back(of);
        before
    }

    fn take_oldest(&mut self) -> Option<ObjectHandle> {
        let oldest = self.order.pop_front()?;
        self.entries.remove(&oldest).map(|entry| entry.handle)
    }

    fn retain(&mut self, keep: impl Fn(Of, &Entry) -> bool) {
        self.entries.retain(|of, entry| keep(*of, entry));
        self.order.retain(|of| self.entries.contains_key(of));
    }
}
