//! Which keys are loaded in the TPM, in the order of their last use.

use tss_esapi::handles::ObjectHandle;

use crate::devices::{GenerationId, KeyId};

/// What names a key here.
pub(super) type Name = (GenerationId, KeyId);

/// The keys that are loaded, the one that was used last at the end. So few that
/// a list is the fastest.
pub(super) struct Loaded {
    room: usize,
    keys: Vec<(Name, ObjectHandle)>,
}

impl Loaded {
    /// For so many keys, and at least one.
    pub(super) const fn new(room: usize) -> Self {
        Self {
            room,
            keys: Vec::new(),
        }
    }

    /// The key, if it is loaded, and is thereby used.
    pub(super) fn touch(&mut self, name: Name) -> Option<ObjectHandle> {
        let at = self.keys.iter().position(|(loaded, _)| *loaded == name)?;
        let entry = self.keys.remove(at);
        self.keys.push(entry);
        Some(entry.1)
    }

    /// What has to go so that one more has room.
    pub(super) fn take_surplus(&mut self) -> Option<ObjectHandle> {
        if self.keys.len() < self.room {
            return None;
        }
        self.take_oldest()
    }

    /// The one that was not used for the longest time, which is thereby taken out.
    pub(super) fn take_oldest(&mut self) -> Option<ObjectHandle> {
        if self.keys.is_empty() {
            return None;
        }
        Some(self.keys.remove(0).1)
    }

    pub(super) fn insert(&mut self, name: Name, handle: ObjectHandle) {
        self.keys.push((name, handle));
    }

    /// Takes out the first key that this is true of.
    pub(super) fn remove(&mut self, is_it: impl Fn(Name) -> bool) -> Option<ObjectHandle> {
        let at = self.keys.iter().position(|(name, _)| is_it(*name))?;
        Some(self.keys.remove(at).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u8) -> Name {
        let generation = GenerationId::from_bytes([number; 16]);
        (generation, KeyId::from_bytes([number; 16]))
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_goes_first() {
        let mut loaded = Loaded::new(2);
        assert_eq!(loaded.take_surplus(), None);
        loaded.insert(name(1), ObjectHandle::from(1));
        assert_eq!(loaded.take_surplus(), None);
        loaded.insert(name(2), ObjectHandle::from(2));
        assert_eq!(loaded.touch(name(1)), Some(ObjectHandle::from(1)));
        assert_eq!(loaded.take_surplus(), Some(ObjectHandle::from(2)));
        assert_eq!(loaded.touch(name(2)), None);
        assert_eq!(loaded.take_surplus(), None);
    }

    #[test]
    fn one_key_always_has_room() {
        let mut loaded = Loaded::new(0);
        assert_eq!(loaded.take_surplus(), None);
        loaded.insert(name(1), ObjectHandle::from(1));
        assert_eq!(loaded.take_surplus(), Some(ObjectHandle::from(1)));
        assert_eq!(loaded.take_oldest(), None);
    }
}
