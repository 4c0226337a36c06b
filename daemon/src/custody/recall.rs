//! The audit log as the guard's second memory: what it says was signed, and the registry's
//! marks know nothing of, was forgotten by an older copy of the registry that was put back.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::path::Path;

use mlskeyd_policies::Action;

use crate::audit::{
    AuditError, AuditLog, AuditOutcome, Durability, Entries, ReadError, Record, Tip,
};
use crate::store::{GuardId, GuardMark, MAX_COMMITS, Registry, StoreError};

/// What goes on record before an administrator's reset of a group is done.
pub(super) const RESET: &str = "GuardReset";

/// Why marks and log could not be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecallError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// What was signed in a group, by the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Signed {
    /// The newest epoch.
    epoch: u64,
    /// SHA-256 of the commits in it: so many as a mark has.
    commits: BTreeSet<[u8; 32]>,
}

impl Signed {
    fn add(&mut self, epoch: u64, commit: Option<[u8; 32]>) {
        if epoch > self.epoch {
            *self = Self {
                epoch,
                ..Self::default()
            };
        }
        if epoch == self.epoch && self.commits.len() < MAX_COMMITS {
            self.commits.extend(commit);
        }
    }

    /// Is there more than the mark knows?
    fn is_more_than(&self, mark: Option<&GuardMark>) -> bool {
        let Some(mark) = mark else { return true };
        // Of a mark with so many commits the oldest were dropped.
        let is_full = mark.commits.len() >= MAX_COMMITS;
        let knows = |commit| is_full || mark.commits.contains(commit);
        self.epoch > mark.epoch || self.epoch == mark.epoch && !self.commits.iter().all(knows)
    }

    fn added_to(&self, mark: Option<&GuardMark>) -> GuardMark {
        let mut next = mark.cloned().unwrap_or_default();
        if self.epoch > next.epoch {
            next.epoch = self.epoch;
            next.commits.clear();
        }
        if self.epoch == next.epoch {
            for commit in &self.commits {
                if next.commits.len() < MAX_COMMITS && !next.commits.contains(commit) {
                    next.commits.push(*commit);
                }
            }
        }
        next
    }
}

/// What was signed, by what went on record after a place: all of it, if that is a place in
/// another log, which was moved aside.
fn signed_after(log: &Path, after: Option<Tip>) -> Result<HashMap<GuardId, Signed>, ReadError> {
    let entries = match after {
        None => None,
        Some(place) => Entries::after(log, place)?,
    };
    let entries = match entries {
        Some(entries) => entries,
        None => Entries::open(log)?,
    };
    let mut groups: HashMap<GuardId, Signed> = HashMap::new();
    for entry in entries {
        let record = entry?.record;
        let Some((of, epoch)) = about(&record) else {
            continue;
        };
        if record.action == RESET {
            // What the administrator had the guard forget is not missed.
            groups.remove(&of);
        } else if record.raises && matches!(record.outcome, AuditOutcome::Served { .. }) {
            // Of what was not served nobody has a signature.
            let commit = (record.action == Action::SignCommit.name())
                .then_some(record.content)
                .flatten();
            groups.entry(of).or_default().add(epoch, commit);
        }
    }
    Ok(groups)
}

/// The group and the epoch that a request was about.
fn about(record: &Record) -> Option<(GuardId, u64)> {
    let owner = record.owner.as_ref();
    let owner = owner.or(record.caller.as_ref().map(|caller| &caller.owner))?;
    let of = GuardId {
        owner: owner.clone(),
        identity: record.identity.clone()?,
        group: record.group.clone()?,
    };
    Some((of, record.epoch?))
}

/// Compares the guard's marks with what went on record since that was done last. What is
/// found goes on record first, then all marks of before count as restored, then they are
/// raised: a crash in between finds it again.
pub(crate) async fn recall(
    registry: &Registry,
    audit: &AuditLog,
    log: &Path,
    end: Tip,
) -> Result<(), RecallError> {
    let (path, after) = (log.to_owned(), registry.audited());
    let read = tokio::task::spawn_blocking(move || signed_after(&path, after)).await;
    let unreadable = match read {
        Ok(Ok(signed)) => return compare(registry, audit, signed, end).await,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "a fault of the daemon".to_owned(),
    };
    // What cannot be compared counts as forgotten.
    let note = format!("the audit log cannot be compared with the registry: {unreadable}");
    restored(registry, audit, note).await?;
    Ok(registry.set_audited(end).await?)
}

async fn compare(
    registry: &Registry,
    audit: &AuditLog,
    signed: HashMap<GuardId, Signed>,
    end: Tip,
) -> Result<(), RecallError> {
    let mut more = Vec::new();
    for (of, signed) in signed {
        let mark = registry.guard_mark(&of).await?;
        if signed.is_more_than(mark.as_deref()) {
            more.push((of, signed));
        }
    }
    if !more.is_empty() {
        let note = format!(
            "more was signed in {} groups than the registry knows of",
            more.len()
        );
        restored(registry, audit, note).await?;
    }
    for (of, signed) in more {
        let raise = move |known: Option<&GuardMark>| Ok::<_, Infallible>(signed.added_to(known));
        let Ok(_) = registry.update_guard(of, raise).await?;
    }
    Ok(registry.set_audited(end).await?)
}

/// All marks of before count as restored from now on.
async fn restored(registry: &Registry, audit: &AuditLog, note: String) -> Result<(), RecallError> {
    tracing::error!(
        note,
        "an older copy of the registry was put back: the guard refuses what is not entered again (docs/policies.md)"
    );
    let record = Record::new(
        "RegistryRestored",
        AuditOutcome::Noted { note: note.into() },
    );
    audit.append(record, Durability::Now).await?;
    Ok(registry.mark_restored().await?)
}

#[cfg(test)]
mod tests {
    use mlskeyd_protocol::v1::{Bytes, Owner};

    use super::*;
    use crate::audit::{AuditCaller, FILE_NAME};

    fn owner(uid: u32) -> Owner {
        Owner {
            uid,
            app: "default".to_owned(),
        }
    }

    fn record(action: Action, caller: u32, epoch: u64) -> Record {
        let outcome = AuditOutcome::Served { policy: "p".into() };
        Record {
            caller: Some(AuditCaller {
                owner: owner(caller),
                pid: None,
                program: None,
            }),
            identity: Some("alice".to_owned()),
            group: Some(Bytes(b"talk".to_vec())),
            epoch: Some(epoch),
            raises: action.is_guarded(),
            ..Record::new(action.name(), outcome)
        }
    }

    /// An administrator's reset is about one owner's group, and only if it was begun.
    #[tokio::test]
    async fn a_reset_has_nothing_missed_of_that_owner_alone() {
        let reset = |of: u32| Record {
            owner: Some(owner(of)),
            action: RESET.into(),
            outcome: AuditOutcome::Noted { note: "".into() },
            ..record(Action::ResetGuard, 0, 20)
        };
        let denied = Record {
            action: Action::ResetGuard.name().into(),
            outcome: AuditOutcome::Denied {
                policy: "p".into(),
                reason: "no".into(),
            },
            ..reset(1000)
        };
        for (reset, missed) in [(reset(1000), false), (reset(1001), true), (denied, true)] {
            let dir = tempfile::tempdir().unwrap();
            let (audit, _) = AuditLog::open(dir.path()).unwrap();
            let signed = record(Action::SignApplicationMessage, 1000, 20);
            for record in [signed, reset] {
                audit.append(record, Durability::Now).await.unwrap();
            }
            let signed = signed_after(&dir.path().join(FILE_NAME), None).unwrap();
            assert_eq!(signed.values().any(|it| it.epoch == 20), missed);
        }
    }

    fn signed(epoch: u64, commits: &[u8]) -> Signed {
        let mut signed = Signed::default();
        signed.add(epoch, None);
        for commit in commits {
            signed.add(epoch, Some([*commit; 32]));
        }
        signed
    }

    fn mark(epoch: u64, commits: &[u8]) -> GuardMark {
        GuardMark {
            epoch,
            commits: commits.iter().map(|commit| [*commit; 32]).collect(),
            ..GuardMark::default()
        }
    }

    #[test]
    fn of_all_that_was_signed_the_newest_epoch_counts_with_its_commits() {
        let mut all = signed(3, &[1, 2]);
        all.add(2, Some([9; 32]));
        assert_eq!(all, signed(3, &[1, 2]));
        all.add(4, Some([3; 32]));
        assert_eq!(all, signed(4, &[3]));
    }

    #[test]
    fn a_mark_that_knows_less_is_found_and_raised() {
        for (of, known, is_more) in [
            (signed(3, &[]), None, true),
            (signed(3, &[]), Some(mark(2, &[])), true),
            (signed(3, &[1]), Some(mark(3, &[])), true),
            (signed(3, &[1]), Some(mark(3, &[2, 1])), false),
            (signed(3, &[1]), Some(mark(4, &[])), false),
        ] {
            assert_eq!(of.is_more_than(known.as_ref()), is_more, "{of:?} {known:?}");
            let raised = of.added_to(known.as_ref());
            assert!(!of.is_more_than(Some(&raised)));
            assert!(known.is_none_or(|known| known.epoch <= raised.epoch));
        }
        assert_eq!(
            signed(3, &[1]).added_to(Some(&mark(3, &[2]))),
            mark(3, &[2, 1])
        );
        // Of more commits than a mark has none is missed.
        let full: Vec<u8> = (0..64).collect();
        assert!(!signed(3, &[200]).is_more_than(Some(&mark(3, &full))));
    }
}
