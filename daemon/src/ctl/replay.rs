//! What other policies would have decided on what is on record.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use mlskeyd_policies::replay::{Recorded, Replayed};
use mlskeyd_policies::{Set, ids};
use serde_json::{Value, json};

use super::CtlError;
use super::audit::{outcome, unreadable};
use super::policy::{Shown, pretty, read, said};
use super::table::printable;
use crate::audit::{AuditOutcome, Entries, Record};

/// What policies would have decided otherwise on what is on record.
pub(super) fn all(log: &Path, vendor: &Path, local: &Path) -> Result<Shown, CtlError> {
    let set = read(vendor, local)?.set().map_err(CtlError::Policies)?;
    let unreadable = |error| unreadable(log, &error);
    let mut changes: BTreeMap<Change, Counted> = BTreeMap::new();
    let (mut asked, mut changed) = (0_u64, 0_u64);
    for entry in Entries::open(log).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let Some((before, now)) = decided_again(&entry.record, &set) else {
            continue;
        };
        asked = asked.saturating_add(1);
        if before == now {
            continue;
        }
        changed = changed.saturating_add(1);
        let change = Change {
            action: entry.record.action.into_owned(),
            before,
            now,
        };
        let counted = changes.entry(change).or_insert(Counted {
            count: 0,
            first: entry.sequence,
        });
        counted.count = counted.count.saturating_add(1);
    }
    let mut text = String::new();
    let mut listed = Vec::new();
    for (change, counted) in &changes {
        let verb = |refused: &Option<String>| match refused {
            None => "permitted".to_owned(),
            Some(policy) => format!("refused by {}", printable(policy)),
        };
        let _ = writeln!(
            text,
            "{} times {}: was {}, would be {} (first: record {})",
            counted.count,
            printable(&change.action),
            verb(&change.before),
            verb(&change.now),
            counted.first
        );
        listed.push(json!({
            "action": change.action,
            "refused_by": change.before,
            "would_be_refused_by": change.now,
            "count": counted.count,
            "first": counted.first,
        }));
    }
    let _ = writeln!(text, "{asked} decisions, {changed} would change");
    Ok(Shown {
        json: json!({ "decisions": asked, "changed": changed, "changes": listed }),
        text,
        is_good: true,
    })
}

/// A decision that would be another one: by whom it was, and would be, refused.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    action: String,
    before: Option<String>,
    now: Option<String>,
}

/// How often, and the number of the first record.
struct Counted {
    count: u64,
    first: u64,
}

/// What was decided, and would be. `None`: policies were not asked, or a rule decided that
/// no policy can lift. A refusal by another policy is none that changed.
fn decided_again(record: &Record, set: &Set) -> Option<(Option<String>, Option<String>)> {
    let recorded = Recorded::read(record.facts.as_deref()?)?;
    let before = match &record.outcome {
        AuditOutcome::Served { .. } | AuditOutcome::Failed { .. } => None,
        AuditOutcome::Denied { policy, .. } => Some(policy.as_ref()),
        AuditOutcome::Noted { .. } => return None,
    };
    if before.is_some_and(ids::is_rule) {
        return None;
    }
    let now = match recorded.replay(&record.action, set)? {
        Replayed::Permitted => None,
        Replayed::Refused(policy) => Some(policy),
    };
    match (before, now) {
        (Some(_), Some(now)) => Some((Some(now.clone()), Some(now))),
        (before, now) => Some((before.map(str::to_owned), now)),
    }
}

/// What was asked in one request on record, and what policies say to it.
pub(super) fn one(log: &Path, number: u64, vendor: &Path, local: &Path) -> Result<Shown, CtlError> {
    let set = read(vendor, local)?.set().map_err(CtlError::Policies)?;
    let mut entries = Entries::open(log).map_err(|error| unreadable(log, &error))?;
    let found = entries.find(|entry| entry.as_ref().map_or(true, |it| it.sequence == number));
    let missing = || CtlError::File {
        path: log.to_owned(),
        why: format!("there is no record {number} of a request that policies were asked about"),
    };
    let record = found.ok_or_else(missing)?;
    let record = record.map_err(|error| unreadable(log, &error))?.record;
    let facts = record.facts.as_deref().ok_or_else(missing)?;
    let recorded = Recorded::read(facts).ok_or_else(missing)?;
    let explained = recorded.explain(&record.action, &set).ok_or_else(missing)?;
    let facts: Value = serde_json::from_str(facts).unwrap_or(Value::Null);
    let outcome = outcome(&record.outcome);
    let text = format!(
        "record {number}, {}\n  {}\n  by these policies: {}\n{}",
        printable(&record.action),
        printable(&outcome),
        said(&explained.refused_by, explained.permitted_by.as_deref()),
        pretty(&facts),
    );
    Ok(Shown {
        json: json!({
            "record": number,
            "action": record.action,
            "policies": explained.refused_by,
            "permitted_by": explained.permitted_by,
            "facts": facts,
        }),
        text,
        is_good: true,
    })
}
