//! A daemon inside the test process, for an app's own tests: no service, no
//! root, no hardware. It is the real one, with its built-in software device.
//!
//! ```
//! use mlskeyd_provider::{Availability, CustodyProvider, testing::TestDaemon};
//!
//! let daemon = TestDaemon::start()?;
//! let provider = CustodyProvider::builder().socket(daemon.socket()).build()?;
//! assert_eq!(provider.availability(), Availability::Ready);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mlskeyd::config::{DeviceConfig, DeviceKind, Lifetimes, Limits, PolicyConfig, StoreKeySource};
use mlskeyd::daemon::{Daemon, Running};
use mlskeyd::store::{SystemClock, TimeSource};
use mlskeyd_protocol::client::{AdminClient, Call, CallError, ClientConfig};
use mlskeyd_protocol::v1::Swept;
use tempfile::TempDir;

pub use mlskeyd::config::Config;
pub use mlskeyd::daemon::StartError;

/// The name of its device.
pub const DEVICE: &str = "software";

/// A daemon of one test. It ends when this is dropped, and all that it kept is
/// gone then.
#[derive(Debug)]
pub struct TestDaemon {
    /// `None` while it is stopped. Before the directory, which it uses.
    running: Option<Running>,
    config: Config,
    clock: Arc<TestClock>,
    _dir: TempDir,
}

/// The system's clocks, set forward.
#[derive(Debug, Default)]
struct TestClock {
    /// Seconds that were let pass.
    passed: AtomicU64,
    /// Seconds by which the date is wrong.
    fast: AtomicU64,
}

impl TimeSource for TestClock {
    fn boottime(&self) -> Duration {
        let passed = Duration::from_secs(self.passed.load(Ordering::SeqCst));
        SystemClock.boottime().saturating_add(passed)
    }

    fn wall(&self) -> u64 {
        SystemClock
            .wall()
            .saturating_add(self.passed.load(Ordering::SeqCst))
            .saturating_add(self.fast.load(Ordering::SeqCst))
    }
}

/// Why a [`TestDaemon`] does not run.
#[derive(Debug, thiserror::Error)]
pub enum TestDaemonError {
    /// There is no temporary directory for it.
    #[error("no temporary directory: {0}")]
    Directory(#[from] std::io::Error),
    /// The daemon did not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl TestDaemon {
    /// Starts a daemon on threads of its own, with the default configuration,
    /// and returns when it serves. Works inside and outside of a runtime.
    ///
    /// # Errors
    /// See [`TestDaemonError`].
    pub fn start() -> Result<Self, TestDaemonError> {
        Self::start_with(|_| {})
    }

    /// The same, after `change` to the configuration: its policy and its
    /// lifetimes, for example.
    ///
    /// # Errors
    /// See [`TestDaemonError`].
    pub fn start_with(change: impl FnOnce(&mut Config)) -> Result<Self, TestDaemonError> {
        let dir = tempfile::tempdir()?;
        let mut config = Config {
            pkcs11_helper: None,
            state_dir: dir.path().join("state"),
            socket: dir.path().join("socket"),
            store_key: StoreKeySource::File {
                path: dir.path().join("store.key"),
                create: true,
            },
            devices: vec![DeviceConfig {
                name: DEVICE.to_owned(),
                kind: DeviceKind::Software,
                hpke_tier: None,
            }],
            default_device: DEVICE.to_owned(),
            lifetimes: Lifetimes::default(),
            policy: PolicyConfig::default(),
            limits: Limits::default(),
            apps: Vec::new(),
            bus: None,
        };
        change(&mut config);
        let mut daemon = Self {
            running: None,
            config,
            clock: Arc::default(),
            _dir: dir,
        };
        daemon.resume()?;
        Ok(daemon)
    }

    /// The socket that apps connect to.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.config.socket
    }

    /// Stops the daemon; what it keeps stays.
    pub fn pause(&mut self) {
        self.running = None;
    }

    /// Starts the daemon again with what it kept. Without a
    /// [`pause`](Self::pause) before, that is a restart.
    ///
    /// # Errors
    /// See [`TestDaemonError`].
    pub fn resume(&mut self) -> Result<(), TestDaemonError> {
        self.running = None;
        self.running = Some(Daemon::start_with_clock(
            self.config.clone(),
            Arc::clone(&self.clock) as _,
        )?);
        Ok(())
    }

    /// Lets time pass, at once, for the life of keys: what is due then is
    /// destroyed by the next [`sweep`](Self::sweep), or before. Not for the
    /// lifetime of a KeyPackage that is used.
    pub fn pass(&self, time: Duration) {
        self.clock
            .passed
            .fetch_add(time.as_secs(), Ordering::SeqCst);
    }

    /// Sets the date that much ahead of the right one, without time passing:
    /// zero sets it right. As [`pass`](Self::pass), for the life of keys only.
    pub fn set_date_ahead(&self, by: Duration) {
        self.clock.fast.store(by.as_secs(), Ordering::SeqCst);
    }

    /// Destroys the keys that are due, as `mlskeyctl keys sweep` does.
    ///
    /// # Errors
    /// The daemon does not run, or its registry is read-only.
    pub fn sweep(&self) -> Result<Swept, CallError> {
        AdminClient::new(ClientConfig::new(self.socket(), "mlskeyd-provider tests"))
            .sweep_all(&Call::default(), |_| {})
    }
}
