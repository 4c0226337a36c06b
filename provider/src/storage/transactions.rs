//! What the app may still roll back is not reported.
//!
//! Apps wrap OpenMLS in a transaction of their database, which the wrapper
//! cannot see. Until the app says that it committed, releases are held; after a
//! rollback they are dropped, and what was learnt meanwhile is in doubt. A claim
//! never waits: to hold a key too long is harmless.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mlskeyd_protocol::v1::{Bytes, Joined, Note, Record, Settlement};

use super::outbox::Message;

/// A release that may have to wait for the app's commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// A record's write or delete is done.
    Settlement(Settlement),
    /// A KeyPackage was deleted since it served to join a group.
    Joined(Joined, Settlement),
    /// A dead record was deleted.
    Dead(Settlement),
    /// An event.
    Note(Note),
}

impl Release {
    pub(super) fn into_message(self) -> Message {
        match self {
            Self::Settlement(settlement) | Self::Joined(_, settlement) | Self::Dead(settlement) => {
                Message::Settlement(settlement)
            }
            Self::Note(note) => Message::Note(note),
        }
    }

    fn record(&self) -> Option<&Record> {
        match self {
            Self::Settlement(settlement) | Self::Joined(_, settlement) | Self::Dead(settlement) => {
                match settlement {
                    Settlement::Written { record, .. }
                    | Settlement::Found { record, .. }
                    | Settlement::Deleted { record, .. } => Some(record),
                }
            }
            Self::Note(_) => None,
        }
    }
}

/// What happened in transactions that are still open.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Names the transaction in this process.
    pub(super) transaction: Option<u64>,
    /// In order.
    pub(super) releases: Vec<Release>,
    /// Records that were written or deleted.
    pub(super) touched: Vec<Record>,
    /// Records that were claimed anew, each with its newest claim.
    pub(super) claimed: HashMap<Record, u64>,
    /// KeyPackages whose delete was held back, or that were opened.
    pub(super) key_packages: Vec<Bytes>,
}

#[derive(Debug, Default)]
struct Open {
    /// Transactions within transactions (savepoints) count as one.
    depth: usize,
    /// One of them was rolled back: so nothing of the whole is released.
    spoiled: bool,
    held: Held,
}

/// How a transaction ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Another is still open around it.
    Within,
    /// Committed, and all within it.
    Committed(Held),
    /// Rolled back, or something within it.
    RolledBack(Held),
}

/// The open transactions of one wrapper, that is: of one database connection.
#[derive(Debug, Default)]
pub(super) struct Transactions(Mutex<Open>);

impl Transactions {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut open = self.open();
        if open.depth == 0 {
            open.held.transaction = Some(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        open.depth = open.depth.saturating_add(1);
    }

    pub(super) fn end(&self, committed: bool) -> Ended {
        let mut open = self.open();
        open.depth = open.depth.saturating_sub(1);
        open.spoiled |= !committed;
        if open.depth > 0 {
            return Ended::Within;
        }
        let Open { spoiled, held, .. } = std::mem::take(&mut *open);
        if spoiled {
            Ended::RolledBack(held)
        } else {
            Ended::Committed(held)
        }
    }

    pub(super) fn are_open(&self) -> bool {
        self.open().depth > 0
    }

    /// The transaction that is open.
    pub(super) fn current(&self) -> Option<u64> {
        self.open().held.transaction
    }

    /// Holds a release; gives it back if there is nothing to wait for.
    pub(super) fn hold(&self, release: Release) -> Option<Release> {
        let mut open = self.open();
        if open.depth == 0 {
            return Some(release);
        }
        if let Some(record) = release.record() {
            // Only the last that happened to a record counts.
            open.held
                .releases
                .retain(|held| held.record() != Some(record));
        }
        open.held.releases.push(release);
        None
    }

    /// A record is written or deleted. Answers whether that is the first time in
    /// this transaction.
    pub(super) fn touch(&self, record: &Record) -> bool {
        let mut open = self.open();
        let is_first = open.depth > 0 && !open.held.touched.contains(record);
        if is_first {
            open.held.touched.push(record.clone());
        }
        is_first
    }

    /// A record was claimed anew: what was held about its past is outdated, and
    /// would undo the claim.
    pub(super) fn claimed(&self, record: &Record, generation: Option<u64>) {
        let mut open = self.open();
        open.held
            .releases
            .retain(|held| held.record() != Some(record));
        if let Some(generation) = generation.filter(|_| open.depth > 0) {
            open.held.claimed.insert(record.clone(), generation);
        }
    }

    /// A KeyPackage's delete is held back, or it was opened.
    pub(super) fn touch_key_package(&self, reference: &Bytes) {
        let mut open = self.open();
        if open.depth > 0 && !open.held.key_packages.contains(reference) {
            open.held.key_packages.push(reference.clone());
        }
    }

    /// A group lives (again): its end, if one is held, is none.
    pub(super) fn group_lives(&self, group: &Bytes) {
        self.open().held.releases.retain(
            |held| !matches!(held, Release::Note(Note::GroupEnded { group: ended, .. }) if ended == group),
        );
    }

    /// An own leaf is appended. If the end of the group's own leaves is held, it
    /// will be reported after this leaf was: so the leaf is reported again then.
    pub(super) fn leaf_appended(&self, note: &Note) {
        let Note::OwnLeaf {
            group: appended, ..
        } = note
        else {
            return;
        };
        let mut open = self.open();
        if open.held.releases.iter().any(
            |held| matches!(held, Release::Note(Note::OwnLeavesDeleted { group }) if group == appended),
        ) {
            open.held.releases.push(Release::Note(note.clone()));
        }
    }
}
