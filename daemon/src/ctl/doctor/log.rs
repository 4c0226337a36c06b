//! The audit log, and the clock that its records go by.

use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::finding::Finding;
use super::{Seen, machine, unseen};
use crate::audit::{Entries, FILE_NAME, ReadError, verify_end};
use crate::ctl::table::date;

/// So long a log is read from its start on; of a longer one the end is looked at.
const READ_WITHIN: Duration = Duration::from_secs(3);

/// So much a record may be ahead of the clock: it is set in steps, too.
const AHEAD: u64 = 5 * 60;

pub(super) fn chain(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "audit-log";
    let Some(config) = seen.config() else {
        let what = "audit-log: without the configuration it is not known";
        return vec![Finding::skip(CHECK, what)];
    };
    let path = config.state_dir.join(FILE_NAME);
    match path.metadata() {
        Ok(found) if found.is_file() => {}
        Ok(_) => {
            let what = format!("{} is no file", path.display());
            return vec![Finding::fail(CHECK, what, "move it away")];
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let what = format!("there is no log {} yet", path.display());
            return vec![Finding::skip(CHECK, what)];
        }
        Err(error) => return vec![unseen(CHECK, &path, &error)],
    }
    match walk(&path, READ_WITHIN) {
        Ok((finding, last)) => {
            let ahead = last.map(|last| ahead(last, machine::now()));
            std::iter::once(finding).chain(ahead.flatten()).collect()
        }
        Err(ReadError::Io(error)) => vec![unseen(CHECK, &path, &error)],
        Err(error) => vec![Finding::fail(
            CHECK,
            format!("{}: {error}", path.display()),
            "keep it for an inquiry; mlskeyctl audit verify says the same",
        )],
    }
}

/// Reads it as far as there is time: what was found, and the time of the last record.
fn walk(path: &Path, within: Duration) -> Result<(Finding, Option<u64>), ReadError> {
    const CHECK: &str = "audit-log";
    let begun = Instant::now();
    let mut last = None;
    let mut count: u64 = 0;
    for entry in Entries::open(path)? {
        let entry = entry?;
        (last, count) = (Some(entry.record.time / 1_000_000), entry.sequence);
        if begun.elapsed() > within {
            let what = format!(
                "{} is long: its first {count} records and its end were looked at",
                path.display()
            );
            let finding = if verify_end(path)? {
                Finding::warn(CHECK, what, "mlskeyctl audit verify proves all of it")
            } else {
                Finding::fail(CHECK, what + ", which is broken", "mlskeyctl audit verify")
            };
            return Ok((finding, None));
        }
    }
    let what = format!("the chain of {} holds, {count} records", path.display());
    Ok((Finding::ok(CHECK, what), last))
}

/// A clock that is behind what was recorded by it.
fn ahead(last: u64, now: u64) -> Option<Finding> {
    (last > now.saturating_add(AHEAD)).then(|| {
        Finding::fail(
            "clock",
            format!(
                "the clock says {}, and the last record is of {}",
                date(now),
                date(last)
            ),
            "set the clock: timedatectl set-ntp true",
        )
    })
}

pub(super) fn clock(_: &Seen) -> Vec<Finding> {
    let now = machine::now();
    let built = std::env::current_exe().and_then(|path| path.metadata()?.modified());
    let built = built
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let mut findings = vec![since_the_build(now, built.map(|built| built.as_secs()))];
    let timesync = Path::new("/run/systemd/timesync");
    findings.push(if timesync.join("synchronized").exists() {
        Finding::ok("clock-sync", "the clock is set over the network")
    } else if timesync.is_dir() {
        Finding::warn(
            "clock-sync",
            "the clock was not set over the network since the start",
            "timedatectl timesync-status says why",
        )
    } else {
        Finding::skip(
            "clock-sync",
            "systemd-timesyncd does not run: whether the clock is right another service knows",
        )
    });
    findings
}

/// Whoever built this program had a clock, too.
fn since_the_build(now: u64, built: Option<u64>) -> Finding {
    match built {
        Some(built) if now < built => Finding::fail(
            "clock",
            format!("the clock says {}, before mlskeyctl was built", date(now)),
            "set the clock: timedatectl set-ntp true",
        ),
        _ => Finding::ok("clock", format!("the clock says {}", date(now))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use crate::audit::{AuditLog, AuditOutcome, Durability, Record};

    #[tokio::test]
    async fn of_a_long_log_the_end_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = AuditLog::open(dir.path()).unwrap();
        let append = async |log: &AuditLog| {
            let note = AuditOutcome::Noted { note: "x".into() };
            let record = Record::new("Something", note);
            log.append(record, Durability::Now).await.unwrap();
        };
        append(&log).await;
        append(&log).await;
        let path = dir.path().join(FILE_NAME);
        let found = |within| walk(&path, within).unwrap().0;
        assert_eq!(found(READ_WITHIN).verdict, Verdict::Ok);
        let long = found(Duration::ZERO);
        assert_eq!(long.verdict, Verdict::Warn);
        assert!(long.what.contains("its first 1 records and its end"));
        // While it is written.
        append(&log).await;
        assert_eq!(found(Duration::ZERO).verdict, Verdict::Warn);
        drop(log);

        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        std::fs::write(&path, bytes).unwrap();
        let broken = found(Duration::ZERO);
        assert_eq!(broken.verdict, Verdict::Fail);
        assert!(broken.what.ends_with("which is broken"));
    }

    #[test]
    fn a_clock_that_is_behind_is_told() {
        assert_eq!(since_the_build(10, Some(11)).verdict, Verdict::Fail);
        assert_eq!(since_the_build(11, Some(11)).verdict, Verdict::Ok);
        assert_eq!(since_the_build(11, None).verdict, Verdict::Ok);
        assert!(ahead(1000, 699).is_some());
        assert!(ahead(1000, 700).is_none());
    }
}
