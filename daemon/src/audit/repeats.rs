//! Counting equal refusals in a row, so that a caller who asks the same again
//! and again does not fill the disk.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mlskeyd_protocol::v1::Owner;

use super::record::Record;

/// Most callers whose last refusal is remembered.
const MAX_CALLERS: usize = 256;

/// The last refusal of each caller, and how often it was repeated. A row is a
/// caller's own: others cannot interrupt it.
pub(super) struct Repeats {
    window: Duration,
    rows: HashMap<Option<Owner>, Row>,
}

struct Row {
    last: Record,
    count: u64,
    /// When the count has to be written.
    due: Instant,
}

impl Repeats {
    pub(super) fn new(window: Duration) -> Self {
        Self {
            window,
            rows: HashMap::new(),
        }
    }

    /// Counts a repetition. `false`: this is none, and has to be written.
    pub(super) fn count(&mut self, record: &Record, now: Instant) -> bool {
        let Some(row) = self.rows.get_mut(&record.asker().cloned()) else {
            return false;
        };
        if !record.repeats(&row.last) {
            return false;
        }
        if row.count == 0 {
            row.due = now.checked_add(self.window).unwrap_or(now);
        }
        row.count = row.count.saturating_add(1);
        row.last = record.clone();
        true
    }

    /// Ends this caller's row, since something else comes from it; answers the
    /// counted repetitions, to be written first.
    pub(super) fn end(&mut self, owner: Option<&Owner>) -> Option<Record> {
        self.rows.remove(&owner.cloned())?.counted()
    }

    /// Begins a row with a refusal that is written now; answers the counted
    /// repetitions of another caller who had to make room.
    pub(super) fn begin(&mut self, record: &Record, now: Instant) -> Option<Record> {
        let mut made_room = None;
        if self.rows.len() >= MAX_CALLERS {
            let oldest = self.rows.iter().min_by_key(|(_, row)| row.last.time);
            let oldest = oldest.map(|(owner, _)| owner.clone());
            made_room = oldest.and_then(|owner| self.end(owner.as_ref()));
        }
        let row = Row {
            last: record.clone(),
            count: 0,
            due: now,
        };
        self.rows.insert(record.asker().cloned(), row);
        made_room
    }

    /// Counted repetitions that have to be written by now. Their rows go on.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Record> {
        let due = self
            .rows
            .values_mut()
            .filter(|row| row.count > 0 && row.due <= now);
        due.filter_map(|row| {
            let counted = row.counted();
            row.count = 0;
            counted
        })
        .collect()
    }

    /// All counted repetitions.
    pub(super) fn take_all(&mut self) -> Vec<Record> {
        self.rows
            .drain()
            .filter_map(|(_, row)| row.counted())
            .collect()
    }

    /// When [`Self::take_due`] has something to do.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.rows
            .values()
            .filter(|row| row.count > 0)
            .map(|row| row.due)
            .min()
    }
}

impl Row {
    fn counted(&self) -> Option<Record> {
        (self.count > 0).then(|| Record {
            repeated: self.count,
            ..self.last.clone()
        })
    }
}
