//! What a thread remembers between two calls that OpenMLS makes.
//!
//! OpenMLS deletes a KeyPackage before it opens the Welcome with it. The storage
//! wrapper holds that delete back and has to learn how the open ended. Both
//! happen on one thread, but storage and crypto may belong to different provider
//! objects: so the outcome is kept per thread, not per object.

use std::cell::RefCell;

use mlskeyd_protocol::v1::KeyId;

/// Most init keys that a thread watches at once. An app processes one Welcome
/// after the other; what is beyond is not watched, and its KeyPackage's delete
/// counts as the app's own.
const MAX_WATCHED: usize = 64;

thread_local! {
    static WATCHED: RefCell<Vec<(KeyId, Option<bool>)>> = const { RefCell::new(Vec::new()) };
}

/// From now on remember how an open with this key ends on this thread.
pub(crate) fn watch(key: KeyId) {
    WATCHED.with_borrow_mut(|watched| {
        watched.retain(|(other, _)| *other != key);
        if watched.len() < MAX_WATCHED {
            watched.push((key, None));
        }
    });
}

/// Crypto says: an open with this key ended on this thread, well or not.
pub(crate) fn opened(key: KeyId, ok: bool) {
    WATCHED.with_borrow_mut(|watched| {
        if let Some((_, outcome)) = watched.iter_mut().find(|(other, _)| *other == key) {
            *outcome = Some(ok);
        }
    });
}

/// How did the open with this key end on this thread? `None`: there was none
/// since [`watch`]. The key is not watched any more.
pub(crate) fn unwatch(key: KeyId) -> Option<bool> {
    WATCHED.with_borrow_mut(|watched| {
        let at = watched.iter().position(|(other, _)| *other == key)?;
        watched.swap_remove(at).1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: KeyId = KeyId::from_bytes([7; 16]);

    #[test]
    fn only_an_open_after_the_watch_on_the_same_thread_counts() {
        opened(KEY, true);
        watch(KEY);
        assert_eq!(unwatch(KEY), None);

        watch(KEY);
        std::thread::spawn(|| opened(KEY, true)).join().unwrap();
        assert_eq!(unwatch(KEY), None);

        watch(KEY);
        opened(KEY, false);
        assert_eq!(unwatch(KEY), Some(false));
        assert_eq!(unwatch(KEY), None);
    }
}
