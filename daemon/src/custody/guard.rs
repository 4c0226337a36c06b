//! The guard: what was signed before, per identity and group.
//!
//! It finds (a rollback, a jump, commits that compete), policies decide, and then it
//! remembers.

use std::sync::Arc;

use mlskeyd_policies::{GuardFacts, SenderKind};
use mlskeyd_protocol::v1::Failure;

use super::failure;
use super::subject::Subject;
use crate::store::{GuardId, GuardMark, MAX_COMMITS, Registry};

/// What a signature would add to the guard's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// The epoch that it is for.
    pub(super) epoch: u64,
    /// The sender's leaf index, if it has one.
    pub(super) leaf_index: Option<u32>,
    /// SHA-256 of a commit.
    pub(super) commit: Option<[u8; 32]>,
    /// Does the sender enter the group by it?
    pub(super) joins: bool,
}

/// What the guard remembered when policies were asked.
#[derive(Debug, Default)]
pub(super) struct Seen(Option<Arc<GuardMark>>);

/// The guard, over its marks in the registry.
pub(super) struct Guard {
    registry: Registry,
}

impl Guard {
    pub(super) const fn new(registry: Registry) -> Self {
        Self { registry }
    }

    /// What there is to say of a message to a group, or of a GroupInfo.
    pub(super) async fn find(&self, subject: &Subject) -> Result<(GuardFacts, Seen), Failure> {
        // Who is no member has signed in no epoch of the group.
        let from_outside = [SenderKind::External, SenderKind::NewMemberProposal];
        let is_seen =
            subject.action.is_guarded() && !from_outside.contains(&subject.context.sender);
        let (Some(id), Some(epoch), true) = (id_of(subject), subject.epoch, is_seen) else {
            return Ok((GuardFacts::default(), Seen::default()));
        };
        let known = self.registry.guard_mark(&id).await;
        let known = known.map_err(failure::of_store)?;
        let content = subject.mark.and_then(|mark| mark.commit);
        let restores = self.registry.restores();
        let facts = found(known.as_deref(), epoch, content, restores);
        Ok((facts, Seen(known)))
    }

    /// Reserves what the signature would add, durably, before the device signs.
    /// What changes nothing costs nothing. `false`: another request was faster, and
    /// policies have to be asked again.
    pub(super) async fn reserve(
        &self,
        subject: &mut Subject,
        seen: &Seen,
    ) -> Result<bool, Failure> {
        let (Some(mark), Some(id)) = (subject.mark, id_of(subject)) else {
            return Ok(true);
        };
        let seen = seen.0.as_deref();
        let restores = self.registry.restores();
        if raised(seen, mark, restores).is_none() {
            return Ok(true);
        }
        let before = seen.cloned();
        let add = move |known: Option<&GuardMark>| {
            if known != before.as_ref() {
                return Err(());
            }
            Ok(raised(known, mark, restores).unwrap_or_default())
        };
        let reserved = self.registry.reserve_guard(id, add).await;
        // What moves the guard is on disk before the reply, whatever it is.
        subject.durability = Some(crate::audit::Durability::Now);
        Ok(reserved.map_err(failure::of_store)?.is_ok())
    }
}

/// The mark that a request is about.
fn id_of(subject: &Subject) -> Option<GuardId> {
    let key = subject.key.as_ref()?;
    Some(GuardId {
        owner: key.owner.clone(),
        identity: key.identity.clone()?,
        group: subject.group.clone()?,
    })
}

/// What a mark says of an epoch, and of a commit in it; `restores`: how often the registry was
/// restored by now.
fn found(
    known: Option<&GuardMark>,
    epoch: u64,
    content: Option<[u8; 32]>,
    restores: u64,
) -> GuardFacts {
    let newest = known.map_or(0, |mark| mark.epoch);
    let commits = known.filter(|mark| mark.epoch == epoch);
    let commits = commits.map(|mark| mark.commits.iter());
    let others = commits.into_iter().flatten();
    let others = others.filter(|commit| Some(**commit) != content).count();
    GuardFacts {
        known: known.is_some(),
        epochs_behind: newest.saturating_sub(epoch),
        epochs_ahead: epoch.saturating_sub(newest),
        commits: u64::try_from(others).unwrap_or(u64::MAX),
        restored: known.is_some_and(|mark| {
            mark.restores < restores && !is_after_entering(mark, epoch, restores)
        }),
    }
}

/// Whoever enters a group has its newest epoch from the group itself, and speaks in a later one:
/// that an external commit was signed is no sign that it was ever sent.
fn is_after_entering(mark: &GuardMark, epoch: u64, restores: u64) -> bool {
    mark.entered
        .is_some_and(|(entered, at)| at == restores && epoch > entered)
}

/// The mark with the signature added; `None` if that changes nothing.
fn raised(known: Option<&GuardMark>, mark: Mark, restores: u64) -> Option<GuardMark> {
    let mut next = known.cloned().unwrap_or_default();
    if known.is_none() || mark.epoch > next.epoch {
        next = GuardMark {
            epoch: mark.epoch,
            leaf_index: mark.leaf_index,
            commits: Vec::new(),
            ..next
        };
    }
    if known.is_none() || is_after_entering(&next, mark.epoch, restores) {
        next.restores = restores;
    }
    if mark.epoch == next.epoch {
        if mark.joins {
            next.entered = Some((mark.epoch, restores));
        }
        next.leaf_index = mark.leaf_index.or(next.leaf_index);
        if let Some(commit) = mark.commit
            && !next.commits.contains(&commit)
        {
            // The newest are kept: what is signed now is always reserved.
            if next.commits.len() >= MAX_COMMITS {
                next.commits.remove(0);
            }
            next.commits.push(commit);
        }
    }
    (known != Some(&next)).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn mark(epoch: u64, commit: Option<u8>) -> Mark {
        Mark {
            epoch,
            leaf_index: Some(2),
            commit: match commit {
                Some(byte) => Some([byte; 32]),
                None => None,
            },
            joins: false,
        }
    }

    #[test]
    fn findings_are_relative_to_the_newest_epoch() {
        let known = GuardMark {
            epoch: 7,
            leaf_index: None,
            commits: vec![[1; 32], [2; 32]],
            ..GuardMark::default()
        };
        let found = |epoch, commit: Option<u8>| {
            let facts = found(Some(&known), epoch, commit.map(|byte| [byte; 32]), 0);
            (facts.epochs_behind, facts.epochs_ahead, facts.commits)
        };
        assert_eq!(found(7, None), (0, 0, 2));
        assert_eq!(found(7, Some(3)), (0, 0, 2));
        assert_eq!(found(7, Some(1)), (0, 0, 1));
        assert_eq!(found(5, Some(3)), (2, 0, 0));
        assert_eq!(found(u64::MAX, None), (0, u64::MAX - 7, 0));
        let none = super::found(None, 9, None, 3);
        assert_eq!(
            (none.known, none.epochs_ahead, none.restored),
            (false, 9, false)
        );
    }

    #[test]
    fn the_first_signature_of_an_epoch_raises_the_mark_and_the_next_does_not() {
        let first = raised(None, mark(3, None), 0).unwrap();
        assert_eq!(first.epoch, 3);
        assert_eq!(raised(Some(&first), mark(3, None), 0), None);
        assert_eq!(raised(Some(&first), mark(2, None), 0), None);
        assert_eq!(raised(Some(&first), mark(4, None), 0).unwrap().epoch, 4);
    }

    #[test]
    fn each_distinct_commit_of_an_epoch_is_counted_once() {
        let first = raised(None, mark(3, Some(1)), 0).unwrap();
        assert_eq!(raised(Some(&first), mark(3, Some(1)), 0), None);
        let second = raised(Some(&first), mark(3, Some(2)), 0).unwrap();
        assert_eq!(second.commits.len(), 2);
        assert!(
            raised(Some(&second), mark(4, None), 0)
                .unwrap()
                .commits
                .is_empty()
        );
    }

    #[test]
    fn a_commit_beyond_the_bound_is_reserved_in_the_place_of_the_oldest() {
        let mut known = None;
        for commit in 0..=u8::try_from(MAX_COMMITS).unwrap() {
            known = raised(known.as_ref(), mark(3, Some(commit)), 0);
        }
        let known = known.unwrap();
        assert_eq!(known.commits.len(), MAX_COMMITS);
        assert!(!known.commits.contains(&[0; 32]));
        assert_eq!(known.commits.last(), Some(&[64; 32]));
    }

    #[test]
    fn a_mark_of_before_the_registry_was_restored_is_so_until_the_group_is_entered_again() {
        let before = raised(None, mark(3, None), 0).unwrap();
        assert!(!found(Some(&before), 3, None, 0).restored);
        assert!(found(Some(&before), 3, None, 1).restored);
        let spoken = raised(Some(&before), mark(4, None), 1).unwrap();
        assert!(found(Some(&spoken), 4, None, 1).restored);
        let commit = Mark {
            joins: true,
            leaf_index: None,
            ..mark(4, Some(1))
        };
        let entered = raised(Some(&spoken), commit, 1).unwrap();
        // Not in the epoch of the commit, nor in an older one.
        for epoch in [3, 4] {
            assert!(found(Some(&entered), epoch, None, 1).restored);
        }
        assert!(!found(Some(&entered), 5, None, 1).restored);
        let member = raised(Some(&entered), mark(5, None), 1).unwrap();
        assert!(!found(Some(&member), 5, None, 1).restored);
        // Restored once more, all of that is worth nothing.
        for mark in [&entered, &member] {
            assert!(found(Some(mark), 6, None, 2).restored);
        }
        // An external commit in the past says nothing.
        let past = Mark { epoch: 2, ..commit };
        assert_eq!(raised(Some(&spoken), past, 1), None);
    }
}
