//! The order in which jobs reach a device.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// After so many interactive jobs in a row, one of the background gets its
/// turn, so that it is slow but never starved.
const INTERACTIVE_IN_A_ROW: u32 = 15;

/// Whether somebody waits in front of a screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// An app waits for the answer.
    Interactive,
    /// Nobody waits: sweeping, rotation, scrubbing.
    Background,
}

/// How many jobs may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of one owner.
    pub per_owner: usize,
    /// Of all owners together.
    pub total: usize,
}

/// There is no place for this job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Waiting jobs. Among those of one priority the owners take turns, each with
/// its oldest job, however many it has.
pub(super) struct FairQueue<O, J> {
    limits: Limits,
    interactive: Lane<O, J>,
    background: Lane<O, J>,
    interactive_in_a_row: u32,
    total: usize,
}

/// The waiting jobs of one priority. An owner is in `turns` exactly once while
/// it has jobs.
struct Lane<O, J> {
    turns: VecDeque<O>,
    jobs: HashMap<O, VecDeque<J>>,
}

impl<O: Clone + Eq + Hash, J> FairQueue<O, J> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            interactive: Lane::new(),
            background: Lane::new(),
            interactive_in_a_row: 0,
            total: 0,
        }
    }

    /// Puts a job at the end of its owner's. If there is no place, jobs that
    /// are no longer `wanted` give up theirs first.
    pub(super) fn push(
        &mut self,
        owner: O,
        priority: Priority,
        job: J,
        wanted: impl Fn(&J) -> bool,
    ) -> Result<(), Full> {
        if self.is_full(&owner) {
            self.retain(wanted);
            if self.is_full(&owner) {
                return Err(Full);
            }
        }
        match priority {
            Priority::Interactive => self.interactive.push(owner, job),
            Priority::Background => self.background.push(owner, job),
        }
        self.total = self.total.saturating_add(1);
        Ok(())
    }

    /// Takes the job whose turn it is.
    pub(super) fn pop(&mut self) -> Option<J> {
        let background_is_due = self.interactive_in_a_row >= INTERACTIVE_IN_A_ROW;
        let job =
            if self.interactive.is_empty() || (background_is_due && !self.background.is_empty()) {
                self.interactive_in_a_row = 0;
                self.background.pop()
            } else {
                self.interactive_in_a_row = self.interactive_in_a_row.saturating_add(1);
                self.interactive.pop()
            }?;
        self.total = self.total.saturating_sub(1);
        Some(job)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Takes all jobs.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.limits))
    }

    fn is_full(&self, owner: &O) -> bool {
        let own = self
            .interactive
            .count(owner)
            .saturating_add(self.background.count(owner));
        own >= self.limits.per_owner || self.total >= self.limits.total
    }

    fn retain(&mut self, wanted: impl Fn(&J) -> bool) {
        self.interactive.retain(&wanted);
        self.background.retain(&wanted);
        self.total = self.interactive.len().saturating_add(self.background.len());
    }
}

impl<O: Clone + Eq + Hash, J> Lane<O, J> {
    fn new() -> Self {
        Self {
            turns: VecDeque::new(),
            jobs: HashMap::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    fn len(&self) -> usize {
        self.jobs.values().map(VecDeque::len).sum()
    }

    fn count(&self, owner: &O) -> usize {
        self.jobs.get(owner).map_or(0, VecDeque::len)
    }

    fn push(&mut self, owner: O, job: J) {
        let jobs = self.jobs.entry(owner.clone()).or_default();
        if jobs.is_empty() {
            self.turns.push_back(owner);
        }
        jobs.push_back(job);
    }

    fn pop(&mut self) -> Option<J> {
        let owner = self.turns.pop_front()?;
        let jobs = self.jobs.get_mut(&owner)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.jobs.remove(&owner);
        } else {
            self.turns.push_back(owner);
        }
        job
    }

    fn retain(&mut self, wanted: impl Fn(&J) -> bool) {
        self.jobs.retain(|_, jobs| {
            jobs.retain(&wanted);
            !jobs.is_empty()
        });
        self.turns.retain(|owner| self.jobs.contains_key(owner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: Limits = Limits {
        per_owner: 1000,
        total: 10_000,
    };

    fn push(queue: &mut FairQueue<u32, u32>, owner: u32, priority: Priority, job: u32) -> bool {
        queue.push(owner, priority, job, |_| true).is_ok()
    }

    #[test]
    fn a_flooding_owner_does_not_delay_another() {
        let mut queue = FairQueue::new(WIDE);
        for job in 0..100 {
            push(&mut queue, 1, Priority::Interactive, job);
        }
        for job in 200..203 {
            push(&mut queue, 2, Priority::Interactive, job);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order[..7], [0, 200, 1, 201, 2, 202, 3]);
        assert_eq!(order.len(), 103);
    }

    #[test]
    fn background_waits_and_is_not_starved() {
        let mut queue = FairQueue::new(WIDE);
        for job in 0..3 {
            push(&mut queue, 1, Priority::Background, 1000 + job);
        }
        for job in 0..40 {
            push(&mut queue, 2, Priority::Interactive, job);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        let background: Vec<_> = (0..order.len()).filter(|&at| order[at] >= 1000).collect();
        assert_eq!(background, [15, 31, 42]);
    }

    #[test]
    fn the_bounds_hold_for_both_priorities_together() {
        let mut queue = FairQueue::new(Limits {
            per_owner: 2,
            total: 3,
        });
        assert!(push(&mut queue, 1, Priority::Interactive, 0));
        assert!(push(&mut queue, 1, Priority::Background, 1));
        assert!(!push(&mut queue, 1, Priority::Interactive, 2));
        assert!(push(&mut queue, 2, Priority::Interactive, 3));
        assert!(!push(&mut queue, 3, Priority::Interactive, 4));
        assert_eq!(queue.pop(), Some(0));
        assert!(push(&mut queue, 3, Priority::Interactive, 5));
    }

    #[test]
    fn unwanted_jobs_give_up_their_places() {
        let mut queue = FairQueue::new(Limits {
            per_owner: 2,
            total: 2,
        });
        assert!(push(&mut queue, 1, Priority::Interactive, 0));
        assert!(push(&mut queue, 2, Priority::Background, 1));
        assert!(
            queue
                .push(3, Priority::Interactive, 2, |&job| job == 1)
                .is_ok()
        );
        assert_eq!(queue.pop(), Some(2));
        assert_eq!(queue.pop(), Some(1));
        assert_eq!(queue.pop(), None);
    }
}
