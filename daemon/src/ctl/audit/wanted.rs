//! Which records are shown.

use std::collections::VecDeque;

use clap::Args;
use jiff::Timestamp;
use mlskeyd_protocol::v1::Owner;

use crate::audit::{AuditOutcome, Entry, Record};
use crate::config::parse_duration;
use crate::ctl::commands::values::moment;
use crate::freeze_target::owner;

/// Most records that are shown at once: they are kept until the last one is read.
const MOST: u32 = 10_000;

/// Which records.
#[derive(Debug, Args)]
pub(in crate::ctl) struct Wanted {
    /// So many at most, the last ones
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(..=i64::from(MOST)))]
    last: u32,
    /// Only those of this action, as in SignCommit; may be given several times
    #[arg(long, value_name = "ACTION")]
    action: Vec<String>,
    /// Only those that this app asked for, or that are about what it owns: uid/app
    #[arg(long, value_name = "UID/APP", value_parser = owner)]
    owner: Option<Owner>,
    /// Only what was refused
    #[arg(long)]
    denied: bool,
    /// Only those since then, as in 2027-01-01, 2027-01-01T08:00:00Z, or 24h for so long ago
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Since>,
}

/// Since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ctl) enum Since {
    /// A moment.
    At(Timestamp),
    /// So many seconds before now.
    Ago(u64),
}

fn since(text: &str) -> Result<Since, String> {
    if let Some(ago) = parse_duration(text) {
        return Ok(Since::Ago(ago.as_secs()));
    }
    moment(text).map(Since::At).map_err(|_| {
        "a time is as in 2027-01-01, 2027-01-01T08:00:00Z, or 24h for so long ago".to_owned()
    })
}

impl Wanted {
    /// Keeps a record as the last one, and so many as are wanted. `true`: the first one went.
    pub(super) fn keep(&self, entry: Entry, kept: &mut VecDeque<Entry>) -> bool {
        kept.push_back(entry);
        kept.len() > self.most() && kept.pop_front().is_some()
    }

    fn most(&self) -> usize {
        usize::try_from(self.last).unwrap_or(usize::MAX)
    }

    /// From when on, in microseconds since 1970.
    pub(super) fn since(&self, now: Timestamp) -> u64 {
        let micros = |time: Timestamp| u64::try_from(time.as_microsecond()).unwrap_or(0);
        match self.since {
            None => 0,
            Some(Since::At(time)) => micros(time),
            Some(Since::Ago(seconds)) => {
                micros(now).saturating_sub(seconds.saturating_mul(1_000_000))
            }
        }
    }

    /// Is it one of them, from this time on?
    pub(super) fn takes(&self, record: &Record, since: u64) -> bool {
        let asker = record.caller.as_ref().map(|caller| &caller.owner);
        let by_owner = |owner: &Owner| asker == Some(owner) || record.owner.as_ref() == Some(owner);
        let action = |wanted: &String| *wanted == record.action;
        record.time >= since
            && (self.action.is_empty() || self.action.iter().any(action))
            && self.owner.as_ref().is_none_or(by_owner)
            && (!self.denied || matches!(record.outcome, AuditOutcome::Denied { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_a_moment_or_so_long_ago() {
        assert_eq!(since("24h"), Ok(Since::Ago(86_400)));
        let day = Timestamp::from_second(1_798_761_600).unwrap();
        assert_eq!(since("2027-01-01"), Ok(Since::At(day)));
        assert_eq!(since("2027-01-01T00:00:00Z"), Ok(Since::At(day)));
        for wrong in ["", "yesterday", "24", "2027-13-01", "9999999d"] {
            assert!(since(wrong).is_err(), "{wrong}");
        }
    }
}
