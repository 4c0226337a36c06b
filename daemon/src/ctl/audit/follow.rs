//! Records as they are written. The kernel tells of them (inotify); nothing is polled.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use jiff::Timestamp;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::{Reading, Wanted, record, unreadable};
use crate::audit::{Entries, Entry};
use crate::ctl::{CtlError, files};

/// What there is to wait for.
enum Rung {
    /// The log has changed.
    Changed,
    /// Nobody reads any more what is printed.
    NobodyReads,
}

/// Prints the last records that are wanted, and each new one when it is written, until nobody
/// reads them any more.
pub(in crate::ctl) fn follow(log: &Path, wanted: &Wanted, json: bool) -> Result<(), CtlError> {
    // Before the log is read: what is written from now on is told.
    let (bell, rung) = channel();
    let _watcher = watch(log, bell.clone())?;
    tell_when_nobody_reads(bell)?;

    let since = wanted.since(Timestamp::now());
    let mut reading = Reading::begin(log, json)?;
    let mut last = VecDeque::new();
    while let Some(entry) = reading.next() {
        let entry = entry.map_err(|error| unreadable(log, &error))?;
        if wanted.takes(&entry.record, since) {
            wanted.keep(entry, &mut last);
        }
    }
    let Reading {
        mut entries,
        progress,
        ..
    } = reading;
    drop(progress);
    if !print(last.iter(), json)? {
        return Ok(());
    }
    while changed(&rung) {
        let next = Entries::after(log, entries.tip());
        entries = next
            .map_err(|error| unreadable(log, &error))?
            .ok_or_else(|| files::at(log, "another log is in its place: begin again"))?;
        for entry in &mut entries {
            let entry = entry.map_err(|error| unreadable(log, &error))?;
            if wanted.takes(&entry.record, since) && !print(std::iter::once(&entry), json)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Waits until the log has changed. `false`: there is nobody to tell.
fn changed(rung: &Receiver<Rung>) -> bool {
    let Ok(Rung::Changed) = rung.recv() else {
        return false;
    };
    // One look is enough for all that has happened.
    !rung.try_iter().any(|it| matches!(it, Rung::NobodyReads))
}

fn watch(log: &Path, bell: Sender<Rung>) -> Result<RecommendedWatcher, CtlError> {
    let failed = |error: notify::Error| files::at(log, error);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // Reading is none. Of an error it is seen on the next look what it means.
        let changes = |event: Event| !matches!(event.kind, EventKind::Access(_));
        if event.map_or(true, changes) {
            // Whoever is gone waits for nothing.
            let _ = bell.send(Rung::Changed);
        }
    })
    .map_err(failed)?;
    watcher
        .watch(log, RecursiveMode::NonRecursive)
        .map_err(failed)?;
    Ok(watcher)
}

/// A closed pipe shows when it is written to, which may be tomorrow.
fn tell_when_nobody_reads(bell: Sender<Rung>) -> Result<(), CtlError> {
    let wait = move || {
        let stdout = std::io::stdout();
        let mut ends = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty())];
        loop {
            match poll(&mut ends, None) {
                Err(Errno::INTR) => {}
                Ok(_) => break,
                // What cannot be waited for shows when it is written to.
                Err(_) => return,
            }
        }
        let _ = bell.send(Rung::NobodyReads);
    };
    let thread = std::thread::Builder::new()
        .name("stdout".into())
        .spawn(wait);
    thread.map(drop).map_err(CtlError::Thread)
}

/// Prints records. `false`: nobody reads them.
fn print<'a>(entries: impl Iterator<Item = &'a Entry>, json: bool) -> Result<bool, CtlError> {
    let mut out = std::io::stdout().lock();
    for entry in entries {
        let line = if json {
            format!("{}\n", record::json(entry))
        } else {
            record::line(entry)
        };
        match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(false),
            written => written.map_err(CtlError::Output)?,
        }
    }
    Ok(true)
}
