//! What a thread remembers between two calls that OpenMLS makes.
//!
//! OpenMLS deletes a KeyPackage before it opens the Welcome with it. The storage
//! wrapper holds that delete back and has to learn how the open ended. Both
//! happen on one thread, but storage and crypto may belong to different provider
//! objects: so the outcome is kept per thread, not per object.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use mlskeyd_protocol::v1::KeyId;

/// Most init keys that a thread watches at once. An app processes one Welcome
/// after the other, so the oldest gives way.
const MAX_WATCHED: usize = 64;

thread_local! {
    static WATCHED: RefCell<Vec<(KeyId, Weak<Cell>)>> = const { RefCell::new(Vec::new()) };
}

type Cell = Mutex<Outcome>;

/// How the open with an init key ended on the thread that watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There was none so far.
    NoOpen,
    /// The key opened the Welcome.
    Opened,
    /// It did not.
    Failed,
    /// It had to give way to others, so this is not known.
    Unknown,
}

/// A watch over an init key; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watched(Arc<Cell>);

impl Watched {
    /// How the open ended. May be asked on any thread.
    pub(crate) fn outcome(&self) -> Outcome {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From now on remember how an open with this key ends on this thread.
pub(crate) fn watch(key: KeyId) -> Watched {
    let cell = Arc::new(Mutex::new(Outcome::NoOpen));
    WATCHED.with_borrow_mut(|watched| {
        watched.retain(|(_, cell)| cell.strong_count() > 0);
        if watched.len() >= MAX_WATCHED {
            let (_, oldest) = watched.remove(0);
            set(&oldest, Outcome::Unknown);
        }
        watched.push((key, Arc::downgrade(&cell)));
    });
    Watched(cell)
}

/// Crypto says: an open with this key ended on this thread, well or not.
pub(crate) fn opened(key: KeyId, ok: bool) {
    let outcome = if ok { Outcome::Opened } else { Outcome::Failed };
    WATCHED.with_borrow(|watched| {
        for (_, cell) in watched.iter().filter(|(other, _)| *other == key) {
            set(cell, outcome);
        }
    });
}

fn set(cell: &Weak<Cell>, outcome: Outcome) {
    if let Some(cell) = cell.upgrade() {
        *cell.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: KeyId = KeyId::from_bytes([7; 16]);

    #[test]
    fn only_an_open_after_the_watch_on_the_same_thread_counts() {
        opened(KEY, true);
        let first = watch(KEY);
        std::thread::spawn(|| opened(KEY, true)).join().unwrap();
        assert_eq!(first.outcome(), Outcome::NoOpen);
        opened(KEY, false);
        assert_eq!(first.outcome(), Outcome::Failed);
        drop(first);
        assert_eq!(watch(KEY).outcome(), Outcome::NoOpen);
    }

    #[test]
    fn the_oldest_gives_way_and_its_outcome_is_unknown() {
        // What is not watched any more takes no place.
        for _ in 0..MAX_WATCHED {
            watch(KEY);
        }
        let first = watch(KEY);
        let _others: Vec<_> = (1..MAX_WATCHED).map(|_| watch(KEY)).collect();
        assert_eq!(first.outcome(), Outcome::NoOpen);
        let last = watch(KEY);
        opened(KEY, true);
        assert_eq!(first.outcome(), Outcome::Unknown);
        assert_eq!(last.outcome(), Outcome::Opened);
    }
}
