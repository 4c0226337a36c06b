//! The guard: what was signed before, per identity and group.
//!
//! Today it remembers; the findings that policies can name (a rollback, a
//! fork, a jump) are read from what it remembers.

use std::convert::Infallible;

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
}

/// The guard, over its marks in the registry.
pub(super) struct Guard {
    registry: Registry,
}

impl Guard {
    pub(super) const fn new(registry: Registry) -> Self {
        Self { registry }
    }

    /// Reserves what the signature would add, durably, before the device signs.
    /// What changes nothing costs nothing.
    pub(super) async fn reserve(&self, subject: &mut Subject) -> Result<(), Failure> {
        let (Some(mark), Some(key), Some(group)) = (subject.mark, &subject.key, &subject.group)
        else {
            return Ok(());
        };
        let Some(identity) = &key.identity else {
            return Ok(());
        };
        let id = GuardId {
            owner: key.owner.clone(),
            identity: identity.clone(),
            group: group.clone(),
        };
        let known = self
            .registry
            .guard_mark(&id)
            .await
            .map_err(failure::of_store)?;
        if raised(known.as_deref(), mark).is_none() {
            return Ok(());
        }
        let add = move |known: Option<&GuardMark>| {
            Ok::<_, Infallible>(
                raised(known, mark)
                    .or_else(|| known.cloned())
                    .unwrap_or_default(),
            )
        };
        let Ok(_) = self
            .registry
            .update_guard(id, add)
            .await
            .map_err(failure::of_store)?;
        // What moves the guard is on disk before the reply, whatever it is.
        subject.durability = Some(crate::audit::Durability::Now);
        Ok(())
    }
}

/// The mark with the signature added; `None` if that changes nothing.
fn raised(known: Option<&GuardMark>, mark: Mark) -> Option<GuardMark> {
    let mut next = known.cloned().unwrap_or_default();
    if known.is_none() || mark.epoch > next.epoch {
        next = GuardMark {
            epoch: mark.epoch,
            leaf_index: mark.leaf_index,
            commits: Vec::new(),
        };
    }
    if mark.epoch == next.epoch {
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
        }
    }

    #[test]
    fn the_first_signature_of_an_epoch_raises_the_mark_and_the_next_does_not() {
        let first = raised(None, mark(3, None)).unwrap();
        assert_eq!(first.epoch, 3);
        assert_eq!(raised(Some(&first), mark(3, None)), None);
        assert_eq!(raised(Some(&first), mark(2, None)), None);
        assert_eq!(raised(Some(&first), mark(4, None)).unwrap().epoch, 4);
    }

    #[test]
    fn each_distinct_commit_of_an_epoch_is_counted_once() {
        let first = raised(None, mark(3, Some(1))).unwrap();
        assert_eq!(raised(Some(&first), mark(3, Some(1))), None);
        let second = raised(Some(&first), mark(3, Some(2))).unwrap();
        assert_eq!(second.commits.len(), 2);
        assert!(
            raised(Some(&second), mark(4, None))
                .unwrap()
                .commits
                .is_empty()
        );
    }

    #[test]
    fn a_commit_beyond_the_bound_is_reserved_in_the_place_of_the_oldest() {
        let mut known = None;
        for commit in 0..=u8::try_from(MAX_COMMITS).unwrap() {
            known = raised(known.as_ref(), mark(3, Some(commit)));
        }
        let known = known.unwrap();
        assert_eq!(known.commits.len(), MAX_COMMITS);
        assert!(!known.commits.contains(&[0; 32]));
        assert_eq!(known.commits.last(), Some(&[64; 32]));
    }
}
