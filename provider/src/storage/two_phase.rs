//! The delete of a KeyPackage that OpenMLS makes before it opens the Welcome.
//!
//! Were it forwarded, a PIN that times out or a token that is pulled would lose
//! the KeyPackage for good. So it is held back. How the open on this thread
//! ended decides: after a good one the KeyPackage is hidden until the group is
//! joined, after a failed one (or one of which nothing is known) it is there
//! again, and if there was none before the thread's next storage call, or before
//! the storage is dropped, the app itself meant to delete it.

use std::collections::HashMap;
use std::thread::ThreadId;

use mlskeyd_protocol::v1::{Bytes, KeyId};

use crate::memory::{self, Outcome, Watched};

/// Most KeyPackages that are held back at once. Beyond, the oldest shows again:
/// it belongs to a Welcome that was opened long ago and never joined.
const MAX_PENDING: usize = 1024;

#[derive(Debug)]
struct Entry {
    /// The thread that deleted it.
    thread: ThreadId,
    /// Of its init key, on that thread.
    watched: Watched,
    opened: bool,
    /// The transaction that it was made in, as long as that is open.
    within: Option<u64>,
    /// The database did not carry it out.
    stuck: bool,
    /// Grows with each delete.
    order: u64,
}

/// KeyPackage deletes that are held back, by KeyPackageRef.
#[derive(Debug, Default)]
pub(super) struct Pending {
    entries: HashMap<Bytes, Entry>,
    order: u64,
}

/// What became of this thread's deletes since its last storage call.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcomes {
    /// The Welcome was opened.
    pub(super) opened: Vec<Bytes>,
    /// The app's own deletes: to be forwarded, and forgotten once they are.
    pub(super) own: Vec<Bytes>,
}

impl Pending {
    /// Holds a delete back, made within this transaction. `false`: not this one.
    pub(super) fn hold(&mut self, reference: Bytes, init_key: KeyId, within: Option<u64>) -> bool {
        // Deleted again while it is held back: the app means it.
        if self.entries.contains_key(&reference) {
            return false;
        }
        if self.entries.len() >= MAX_PENDING {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.order);
            if let Some(oldest) = oldest.map(|(reference, _)| reference.clone()) {
                self.entries.remove(&oldest);
            }
        }
        self.order = self.order.wrapping_add(1);
        let thread = std::thread::current().id();
        let entry = Entry {
            thread,
            watched: memory::watch(init_key),
            opened: false,
            within,
            stuck: false,
            order: self.order,
        };
        self.entries.insert(reference, entry);
        true
    }

    /// Must reads hide this KeyPackage?
    pub(super) fn hides(&self, reference: &Bytes) -> bool {
        self.entries.contains_key(reference)
    }

    /// Holds it back no longer.
    pub(super) fn forget(&mut self, reference: &Bytes) {
        self.entries.remove(reference);
    }

    /// The database could not delete this one: it is tried again after the next
    /// transaction.
    pub(super) fn stuck(&mut self, reference: &Bytes) {
        if let Some(entry) = self.entries.get_mut(reference) {
            entry.stuck = true;
        }
    }

    /// A transaction is committed: deletes that were made in it last.
    pub(super) fn committed(&mut self, transaction: Option<u64>) {
        for entry in self.entries.values_mut() {
            entry.stuck = false;
            entry.within = entry.within.filter(|within| Some(*within) != transaction);
        }
    }

    /// Settles what this thread deleted and has not opened yet. An own delete is
    /// carried out only in the transaction that it was made in (`current` is the
    /// open one) or outside of all, lest the rollback of another undoes it.
    pub(super) fn outcomes(&mut self, current: Option<u64>) -> Outcomes {
        let thread = std::thread::current().id();
        self.settle(
            |entry| entry.thread == thread,
            |entry| entry.within == current && !entry.stuck,
        )
    }

    /// Settles what any thread deleted and has not opened: there is no call of
    /// the storage under way, nor will there be one.
    pub(super) fn last_outcomes(&mut self) -> Outcomes {
        self.settle(|_| true, |_| true)
    }

    fn settle(&mut self, due: impl Fn(&Entry) -> bool, lasts: impl Fn(&Entry) -> bool) -> Outcomes {
        let mut outcomes = Outcomes::default();
        self.entries.retain(|reference, entry| {
            if entry.opened || !due(entry) {
                return true;
            }
            match entry.watched.outcome() {
                Outcome::Opened => {
                    entry.opened = true;
                    outcomes.opened.push(reference.clone());
                    true
                }
                // It is shown again: to lose a KeyPackage is worse.
                Outcome::Failed | Outcome::Unknown => false,
                // Hidden until that is done.
                Outcome::NoOpen => {
                    if lasts(entry) {
                        outcomes.own.push(reference.clone());
                    }
                    true
                }
            }
        });
        outcomes
    }

    /// The KeyPackage of the Welcome that this thread opened last, and that is
    /// not among those `joined`.
    pub(super) fn last_opened(&self, joined: impl Fn(&Bytes) -> bool) -> Option<Bytes> {
        let thread = std::thread::current().id();
        self.entries
            .iter()
            .filter(|(reference, entry)| {
                entry.opened && entry.thread == thread && !joined(reference)
            })
            .max_by_key(|(_, entry)| entry.order)
            .map(|(reference, _)| reference.clone())
    }
}
