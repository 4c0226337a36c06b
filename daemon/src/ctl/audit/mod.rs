//! The audit log, for whoever reads it: it takes no daemon, which may write it meanwhile.
//!
//! `wanted` is which records are shown, `record` how, and `follow` waits for new ones.

mod follow;
mod record;
mod wanted;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) use follow::follow;
pub(super) use record::{outcome, unreadable};
pub(super) use wanted::Wanted;

use super::progress::Progress;
use super::table::table;
use super::{CtlError, files};
use crate::audit::{Entries, Entry, FILE_NAME, ReadError, Report};

/// Where the log is if no configuration says so.
const STATE_DIR: &str = "/var/lib/mlskeyd";

/// It is said how far the reading has come after so many records, a second's worth or less.
const PROGRESS_EVERY: u64 = 50_000;

/// The log: the one that is named, else that of the configuration.
pub(super) fn path(named: Option<&Path>, config: Option<&Path>) -> Result<PathBuf, CtlError> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let config = files::config(config)?;
    let directory = config.map_or_else(|| STATE_DIR.into(), |config| config.state_dir);
    Ok(directory.join(FILE_NAME))
}

/// Reads a log from its first record on, and says how far it has come.
struct Reading<'a> {
    log: &'a Path,
    entries: Entries,
    progress: Progress<std::io::Stderr>,
}

impl<'a> Reading<'a> {
    fn begin(log: &'a Path, json: bool) -> Result<Self, CtlError> {
        Ok(Self {
            log,
            entries: Entries::open(log).map_err(|error| unreadable(log, &error))?,
            progress: Progress::new(json),
        })
    }

    fn next(&mut self) -> Option<Result<Entry, ReadError>> {
        let next = self.entries.next();
        if let Some(Ok(entry)) = &next
            && entry.sequence.is_multiple_of(PROGRESS_EVERY)
        {
            let read = format!("{}: {} records read", self.log.display(), entry.sequence);
            self.progress.show(&read);
        }
        next
    }
}

/// What was found of a log's chain: JSON, text, and whether it holds.
pub(super) fn verify(log: &Path, json: bool) -> Result<(Value, String, bool), CtlError> {
    let mut reading = Reading::begin(log, json)?;
    let mut times = None;
    while let Some(entry) = reading.next() {
        match entry {
            Ok(entry) => {
                let time = entry.record.time;
                times = Some(times.map_or((time, time), |(first, _)| (first, time)));
            }
            Err(ReadError::Broken { offset, after, why }) => {
                return Ok(broken(log, offset, after, why));
            }
            Err(error) => return Err(unreadable(log, &error)),
        }
    }
    let report = reading.entries.report(times);
    let report = report.map_err(|error| unreadable(log, &error.into()))?;
    Ok(whole(log, &report))
}

fn broken(log: &Path, offset: u64, after: u64, why: &str) -> (Value, String, bool) {
    let text = format!(
        "{}: the chain is BROKEN at byte {offset}, after record {after}: {why}\n\
         What is before that is as it was written. Keep the file for an inquiry.\n",
        log.display()
    );
    let json = json!({
        "holds": false,
        "records": after,
        "first": null,
        "last": null,
        "hash": null,
        "torn": 0,
        "broken": { "offset": offset, "after": after, "why": why },
    });
    (json, text, false)
}

fn whole(log: &Path, report: &Report) -> (Value, String, bool) {
    let mut text = format!(
        "{}: the chain holds, {} records",
        log.display(),
        report.entries
    );
    if let Some((first, last)) = report.times {
        let (first, last) = (record::moment(first), record::moment(last));
        text.push_str(&format!(" from {first} to {last}"));
    }
    text.push_str(&format!("\nit ends with {}\n", hex::encode(report.hash)));
    if report.torn > 0 {
        text.push_str(&format!(
            "{} bytes of a record that is not whole follow: it was just being written, or a power cut tore it off\n",
            report.torn
        ));
    }
    let seconds = |time: u64| time / 1_000_000;
    let json = json!({
        "holds": true,
        "records": report.entries,
        "first": report.times.map(|(first, _)| seconds(first)),
        "last": report.times.map(|(_, last)| seconds(last)),
        "hash": hex::encode(report.hash),
        "torn": report.torn,
        "broken": null,
    });
    (json, text, true)
}

/// The last records that are wanted: JSON, and text.
pub(super) fn show(log: &Path, wanted: &Wanted, json: bool) -> Result<(Value, String), CtlError> {
    let after = wanted.since(Timestamp::now());
    let mut shown = VecDeque::new();
    let mut more: u64 = 0;
    let mut reading = Reading::begin(log, json)?;
    while let Some(entry) = reading.next() {
        let entry = entry.map_err(|error| unreadable(log, &error))?;
        if !wanted.takes(&entry.record, after) {
            continue;
        }
        more = more.saturating_add(u64::from(wanted.keep(entry, &mut shown)));
    }
    drop(reading);
    let listed: Vec<Value> = shown.iter().map(record::json).collect();
    let mut text = if shown.is_empty() {
        "no such records\n".to_owned()
    } else {
        table(record::TITLES, shown.iter().map(record::row))
    };
    if more > 0 {
        text.push_str(&format!(
            "({more} more before these: see --last, --since)\n"
        ));
    }
    Ok((listed.into(), text))
}
