//! Points at which a test makes the process die, as by a power cut.
//!
//! With the feature `failpoints`, the environment variable
//! `MLSKEYD_FAILPOINT=name` kills the process the first time it comes past the
//! point of that name, `name:3` the third time. Without the feature nothing of
//! this is compiled in. Daemon and provider share it: what they do between two
//! durable steps is one protocol.

/// Marks a point between two durable steps.
#[cfg(not(all(feature = "failpoints", unix)))]
#[inline(always)]
pub const fn hit(_name: &str) {}

/// Marks a point between two durable steps; dies here by SIGKILL if the
/// environment names it.
#[cfg(all(feature = "failpoints", unix))]
pub fn hit(name: &str) {
    use std::sync::atomic::Ordering;

    let Some(armed) = ARMED.as_ref().filter(|armed| armed.name == name) else {
        return;
    };
    if armed.seen.fetch_add(1, Ordering::SeqCst).saturating_add(1) == armed.count {
        // SIGKILL, not abort: nothing of this process may run after this line.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }
}

#[cfg(all(feature = "failpoints", unix))]
struct Armed {
    name: String,
    count: u64,
    seen: std::sync::atomic::AtomicU64,
}

#[cfg(all(feature = "failpoints", unix))]
static ARMED: std::sync::LazyLock<Option<Armed>> = std::sync::LazyLock::new(|| {
    let setting = std::env::var("MLSKEYD_FAILPOINT").ok()?;
    let (name, count) = match setting.rsplit_once(':') {
        Some((name, count)) => (name.to_owned(), count.parse().ok()?),
        None => (setting, 1),
    };
    Some(Armed {
        name,
        count,
        seen: 0.into(),
    })
});
