//! The audit log as the guard's second memory: what it says was signed, and the registry's
//! marks know nothing of, was forgotten by an older copy of the registry that was put back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::path::Path;

use mlskeyd_policies::Action;

use crate::audit::{AuditOutcome, Entries, ReadError, Record, Tip};
use crate::store::{GuardId, GuardMark, Registry, StoreError};

/// The newest epoch of each group that was signed in, by what went on record after a place.
fn newest(log: &Path, after: Option<Tip>) -> Result<HashMap<GuardId, u64>, ReadError> {
    let entries = match after {
        None => Some(Entries::open(log)?),
        Some(place) => Entries::after(log, place)?,
    };
    let mut epochs = HashMap::new();
    // `None`: the log was moved aside, and another one begun.
    for entry in entries.into_iter().flatten() {
        let record = entry?.record;
        if record.action == Action::ResetGuard.name() {
            forget(&mut epochs, &record);
        } else if let Some((of, epoch)) = raises(record) {
            match epochs.entry(of) {
                Entry::Vacant(vacant) => drop(vacant.insert(epoch)),
                Entry::Occupied(mut known) => {
                    let newer = epoch.max(*known.get());
                    known.insert(newer);
                }
            }
        }
    }
    Ok(epochs)
}

/// What the administrator had the guard forget is not missed. The record does not say whose
/// identity it was.
fn forget(epochs: &mut HashMap<GuardId, u64>, reset: &Record) {
    epochs.retain(|of, _| {
        reset.identity.as_ref() != Some(&of.identity) || reset.group.as_ref() != Some(&of.group)
    });
}

/// Only members send application messages and commits, or newcomers by a commit: both raise
/// the guard's mark, and that is on disk before the record is.
fn raises(record: Record) -> Option<(GuardId, u64)> {
    let raising = [Action::SignApplicationMessage, Action::SignCommit];
    let is_one = raising.iter().any(|it| record.action == it.name())
        && matches!(record.outcome, AuditOutcome::Served { .. });
    if !is_one {
        return None;
    }
    let of = GuardId {
        owner: record.caller?.owner,
        identity: record.identity?,
        group: record.group?,
    };
    Some((of, record.epoch?))
}

/// Compares the guard's marks with what went on record since that was done last. Answers in
/// how many groups more was signed than the marks know.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn recall(registry: &Registry, log: &Path, end: Tip) -> Result<usize, StoreError> {
    let (path, after) = (log.to_owned(), registry.audited());
    let read = tokio::task::spawn_blocking(move || newest(&path, after)).await;
    let epochs = match read {
        Ok(Ok(epochs)) => epochs,
        Ok(Err(error)) => {
            tracing::error!(%error, "the guard's marks cannot be compared with the audit log: see `mlskeyctl audit verify`");
            HashMap::new()
        }
        Err(_) => HashMap::new(),
    };
    let mut forgotten: usize = 0;
    for (of, epoch) in epochs {
        let known = registry.guard_mark(&of).await?;
        if known.is_some_and(|mark| mark.epoch >= epoch) {
            continue;
        }
        forgotten = forgotten.saturating_add(1);
        let raise = move |known: Option<&GuardMark>| {
            let restores = known.map_or(0, |mark| mark.restores);
            Ok::<_, Infallible>(GuardMark {
                epoch,
                restores,
                ..GuardMark::default()
            })
        };
        let Ok(_) = registry.update_guard(of, raise).await?;
    }
    registry.compared(Some(end), forgotten > 0).await?;
    Ok(forgotten)
}
