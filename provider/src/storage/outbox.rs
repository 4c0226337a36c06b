//! What waits until the daemon is back, in its order.
//!
//! A claim that could not be delivered must reach the daemon before any release
//! that follows it, else a key that moved from one record to another would be
//! free in between. So everything behind it waits too.

use std::collections::VecDeque;
use std::thread::ThreadId;

use mlskeyd_protocol::limits::{MAX_CLAIM_KEYS, MAX_RECORDS};
use mlskeyd_protocol::v1::{KeyId, Note, Record, Settlement};

/// Most releases that wait. One that is dropped keeps a key too long, until its
/// record is next written; a claim is never dropped.
const MAX_RELEASES: usize = 8192;

/// A message to the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A record will hold, or holds, these keys.
    Claim(Record, Vec<KeyId>),
    /// A record's write or delete is done.
    Settlement(Settlement),
    /// An event.
    Note(Note),
}

impl Message {
    /// May keys be destroyed because of it?
    fn releases(&self) -> bool {
        match self {
            Self::Claim(..)
            | Self::Note(
                Note::OwnLeaf { .. } | Note::GroupEnding { .. } | Note::GroupLives { .. },
            ) => false,
            Self::Settlement(_)
            | Self::Note(
                Note::OwnLeavesDeleted { .. } | Note::GroupGone { .. } | Note::GroupEnded { .. },
            ) => true,
        }
    }
}

/// The next messages that fit into one request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Batch {
    /// One claim.
    Claim(Record, Vec<KeyId>),
    /// Settlements in a row.
    Settle(Vec<Settlement>),
    /// Notes in a row.
    Report(Vec<Note>),
}

/// Messages that wait.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    messages: VecDeque<Message>,
    releases: usize,
    /// The thread that carries a batch to the daemon at present.
    carrier: Option<ThreadId>,
}

impl Outbox {
    /// Does nothing wait, and is nothing on its way?
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.carrier.is_none()
    }

    /// Does this thread carry a batch at present? Then it is in a callback of
    /// the app, and must not wait for itself.
    pub(super) fn is_carrier(&self) -> bool {
        self.carrier == Some(std::thread::current().id())
    }

    /// Puts a message at the end.
    pub(super) fn push(&mut self, message: Message) {
        match &message {
            Message::Claim(record, keys) => {
                if self.merge(record, keys) {
                    return;
                }
            }
            Message::Settlement(Settlement::Deleted { record, .. }) => self.drop_claim(record),
            Message::Settlement(Settlement::Written { .. } | Settlement::Found { .. })
            | Message::Note(_) => {}
        }
        if message.releases() {
            if self.releases >= MAX_RELEASES {
                tracing::warn!("too many releases wait for mlskeyd; some keys are kept too long");
                return;
            }
            self.releases = self.releases.saturating_add(1);
        }
        self.messages.push_back(message);
    }

    /// A claim for a record that has one waiting: the daemon holds both sets,
    /// since either may be what the storage holds.
    fn merge(&mut self, record: &Record, keys: &[KeyId]) -> bool {
        for message in &mut self.messages {
            if let Message::Claim(waiting, held) = message
                && waiting == record
            {
                let mut both: Vec<_> = held.iter().chain(keys).copied().collect();
                both.sort_unstable();
                both.dedup();
                if both.len() <= MAX_CLAIM_KEYS {
                    *held = both;
                    return true;
                }
            }
        }
        false
    }

    /// The record is gone: what it held needs no claim any more.
    fn drop_claim(&mut self, record: &Record) {
        self.messages
            .retain(|message| !matches!(message, Message::Claim(waiting, _) if waiting == record));
    }

    /// Takes the messages at the front that go into one request. The caller
    /// carries them to the daemon, and says how it went.
    pub(super) fn take(&mut self) -> Option<Batch> {
        let batch = match self.messages.pop_front()? {
            Message::Claim(record, keys) => Batch::Claim(record, keys),
            Message::Settlement(first) => {
                let mut settlements = vec![first];
                while settlements.len() < MAX_RECORDS {
                    match self.messages.pop_front() {
                        Some(Message::Settlement(settlement)) => settlements.push(settlement),
                        Some(other) => {
                            self.messages.push_front(other);
                            break;
                        }
                        None => break,
                    }
                }
                Batch::Settle(settlements)
            }
            Message::Note(first) => {
                let mut notes = vec![first];
                while notes.len() < MAX_RECORDS {
                    match self.messages.pop_front() {
                        Some(Message::Note(note)) => notes.push(note),
                        Some(other) => {
                            self.messages.push_front(other);
                            break;
                        }
                        None => break,
                    }
                }
                Batch::Report(notes)
            }
        };
        self.carrier = Some(std::thread::current().id());
        Some(batch)
    }

    /// The daemon has the batch that was taken, or will never want it.
    pub(super) fn delivered(&mut self) {
        self.carrier = None;
        self.count();
    }

    /// The daemon could not be reached: the batch waits again, in its place.
    pub(super) fn put_back(&mut self, batch: Batch) {
        self.carrier = None;
        match batch {
            Batch::Claim(record, keys) => self.messages.push_front(Message::Claim(record, keys)),
            Batch::Settle(settlements) => {
                for settlement in settlements.into_iter().rev() {
                    self.messages.push_front(Message::Settlement(settlement));
                }
            }
            Batch::Report(notes) => {
                for note in notes.into_iter().rev() {
                    self.messages.push_front(Message::Note(note));
                }
            }
        }
    }

    fn count(&mut self) {
        self.releases = self
            .messages
            .iter()
            .filter(|message| message.releases())
            .count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u8) -> Record {
        Record::Update {
            public_key: vec![n].into(),
        }
    }

    fn key(n: u8) -> KeyId {
        KeyId::from_bytes([n; 16])
    }

    fn deleted(n: u8) -> Message {
        Message::Settlement(Settlement::Deleted {
            record: record(n),
            generation: None,
        })
    }

    #[test]
    fn claims_of_one_record_are_one_and_keep_their_place() {
        let mut outbox = Outbox::default();
        outbox.push(Message::Claim(record(1), vec![key(2)]));
        outbox.push(deleted(9));
        outbox.push(Message::Claim(record(1), vec![key(1)]));
        let claim = Batch::Claim(record(1), vec![key(1), key(2)]);
        assert_eq!(outbox.take(), Some(claim));
        outbox.put_back(Batch::Claim(record(1), vec![key(1), key(2)]));
        assert!(matches!(outbox.take(), Some(Batch::Claim(..))));
        outbox.delivered();
        assert!(!outbox.is_empty());
        assert!(matches!(outbox.take(), Some(Batch::Settle(all)) if all.len() == 1));
        assert!(
            !outbox.is_empty() && outbox.is_carrier(),
            "it is still on its way"
        );
        outbox.delivered();
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_deleted_record_needs_no_claim() {
        let mut outbox = Outbox::default();
        outbox.push(Message::Claim(record(1), vec![key(1)]));
        outbox.push(deleted(1));
        assert!(matches!(outbox.take(), Some(Batch::Settle(_))));
    }

    #[test]
    fn releases_are_bounded_and_claims_are_not_dropped() {
        let mut outbox = Outbox::default();
        for _ in 0..MAX_RELEASES + 10 {
            outbox.push(deleted(1));
        }
        outbox.push(Message::Claim(record(2), vec![key(2)]));
        assert_eq!(outbox.messages.len(), MAX_RELEASES + 1);
        let mut requests = 0;
        while let Some(batch) = outbox.take() {
            assert!(!matches!(batch, Batch::Settle(all) if all.len() > MAX_RECORDS));
            outbox.delivered();
            requests += 1;
        }
        assert_eq!(requests, MAX_RELEASES / MAX_RECORDS + 1);
        assert_eq!(outbox.releases, 0);
    }
}
