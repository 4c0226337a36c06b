//! Time that nobody can set: the seconds for which daemons on this state have
//! run, suspend included.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the registry reads the time from.
pub trait TimeSource: Send + Sync {
    /// Time since some fixed point that never goes back while the machine runs.
    fn boottime(&self) -> Duration;
    /// Seconds since 1970, as somebody set them.
    fn wall(&self) -> u64;
}

/// The kernel's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl TimeSource for SystemClock {
    fn boottime(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(
            u64::try_from(time.tv_sec).unwrap_or(0),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        )
    }

    fn wall(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    }
}

/// A moment in both times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    /// Observed seconds.
    pub(super) observed: u64,
    /// Seconds since 1970.
    pub(super) wall: u64,
}

/// Counts observed time from where the last daemon's record of it ends.
pub(super) struct Clock {
    source: Arc<dyn TimeSource>,
    at_start: u64,
    boottime_at_start: Duration,
}

impl Clock {
    pub(super) fn start(source: Arc<dyn TimeSource>, at_start: u64) -> Self {
        let boottime_at_start = source.boottime();
        Self {
            source,
            at_start,
            boottime_at_start,
        }
    }

    pub(super) fn now(&self) -> Now {
        let passed = self
            .source
            .boottime()
            .saturating_sub(self.boottime_at_start);
        Now {
            observed: self.at_start.saturating_add(passed.as_secs()),
            wall: self.source.wall(),
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}
