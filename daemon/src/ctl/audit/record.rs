//! One record, for a person and for a program.

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::audit::{AuditOutcome, Entry, ReadError, Record};
use crate::ctl::table::printable;
use crate::ctl::{CtlError, files};

/// The columns of [`row`].
pub(super) const TITLES: [&str; 6] = ["RECORD", "TIME", "OWNER", "ACTION", "OUTCOME", "ABOUT"];

/// A line of a table.
pub(super) fn row(entry: &Entry) -> [String; 6] {
    let record = &entry.record;
    let asker = record.caller.as_ref().map(|caller| &caller.owner);
    let owner = asker.map_or_else(|| "mlskeyd".to_owned(), ToString::to_string);
    [
        entry.sequence.to_string(),
        moment(record.time),
        owner,
        record.action.to_string(),
        outcome(&record.outcome) + &repeated(record),
        about(record),
    ]
}

/// The same as a line by itself, of which nothing is cut.
pub(super) fn line(entry: &Entry) -> String {
    let row = row(entry).map(|cell| printable(&cell));
    let line = row.join("  ");
    format!("{}\n", line.trim_end())
}

/// A moment, in microseconds since 1970, for people.
pub(super) fn moment(micros: u64) -> String {
    let time = i64::try_from(micros).ok();
    let time = time.and_then(|micros| Timestamp::from_microsecond(micros).ok());
    time.map_or_else(|| format!("{micros} us"), |time| format!("{time:.3}"))
}

/// What came of it, in words.
pub(in crate::ctl) fn outcome(outcome: &AuditOutcome) -> String {
    match outcome {
        AuditOutcome::Denied { policy, reason } => format!("refused by {policy}: {reason}"),
        AuditOutcome::Served { policy } => format!("permitted by {policy}"),
        AuditOutcome::Failed { code } => format!("it failed: {code:?}"),
        AuditOutcome::Noted { note } => note.to_string(),
    }
}

fn repeated(record: &Record) -> String {
    match record.repeated {
        0 => String::new(),
        more => format!(", {more} times more"),
    }
}

fn about(record: &Record) -> String {
    let mut about = Vec::new();
    if let Some(owner) = &record.owner {
        about.push(format!("of {owner}"));
    }
    about.extend(record.identity.clone());
    if let Some(key) = &record.key {
        about.push(format!("key {key}"));
    }
    if let Some(device) = &record.device {
        about.push(format!("on {device}"));
    }
    if let Some(group) = &record.group {
        about.push(format!("group {}", hex::encode(&group.0)));
    }
    if let Some(epoch) = record.epoch {
        about.push(format!("epoch {epoch}"));
    }
    if !record.would_deny.is_empty() {
        about.push(format!(
            "would be refused by {}",
            record.would_deny.join(", ")
        ));
    }
    about.join(", ")
}

/// All that is on record.
pub(super) fn json(entry: &Entry) -> Value {
    let record = &entry.record;
    let caller = record.caller.as_ref().map(|caller| {
        json!({
            "owner": super::super::json::owner(&caller.owner),
            "pid": caller.pid,
            "program": caller.program,
        })
    });
    let facts = record.facts.as_deref().map(serde_json::from_str::<Value>);
    let mut json = json!({
        "record": entry.sequence,
        "time": record.time / 1_000_000,
        "time_us": record.time,
        "caller": caller,
        "owner": record.owner.as_ref().map(super::super::json::owner),
        "action": record.action,
        "key": record.key.map(|key| key.to_string()),
        "identity": record.identity,
        "group": record.group.as_ref().map(|group| hex::encode(&group.0)),
        "epoch": record.epoch,
        "raises": record.raises,
        "device": record.device,
        "outcome": null,
        "policy": null,
        "reason": null,
        "content": record.content.map(hex::encode),
        "would_deny": record.would_deny,
        "facts": facts.and_then(Result::ok),
        "duration_us": record.duration,
        "repeated": record.repeated,
    });
    let (outcome, policy, reason) = match &record.outcome {
        AuditOutcome::Served { policy } => ("served", Some(policy.as_ref()), None),
        AuditOutcome::Denied { policy, reason } => {
            ("denied", Some(policy.as_ref()), Some(reason.to_string()))
        }
        AuditOutcome::Failed { code } => ("failed", None, Some(format!("{code:?}"))),
        AuditOutcome::Noted { note } => ("noted", None, Some(note.to_string())),
    };
    if let Value::Object(fields) = &mut json {
        fields.insert("outcome".to_owned(), outcome.into());
        fields.insert("policy".to_owned(), policy.into());
        fields.insert("reason".to_owned(), reason.into());
    }
    json
}

/// Why a log cannot be read.
pub(in crate::ctl) fn unreadable(log: &Path, error: &ReadError) -> CtlError {
    files::at(log, error)
}
