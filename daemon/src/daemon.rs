//! Putting the rooms together, and running them: as the process `mlskeyd`
//! ([`serve`]), or on a thread of another process ([`Daemon::start`]).

mod harden;
mod parts;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use mlskeyd_policies::{Policy, Rules, Settings as PolicySettings};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

pub use harden::{harden, lock_memory, raise_file_limit};

use crate::audit::{self, AuditError, AuditLog, AuditOutcome, Durability};
use crate::config::Config;
use crate::custody::{self, Configured, Custody, Devices, RecallError};
use crate::devices::queue::DeviceThreads;
use crate::ipc::{self, Socket, SocketError};
use crate::policy_files::{self, Known, PolicyError, PolicyStore};
use crate::store::{self, Registry, SystemClock, TimeSource};
use crate::store_key::StoreKeyError;
use parts::Loaded;

/// Threads that serve requests. Devices and the audit log have their own.
const WORKERS: usize = 2;

/// Threads that look up names of users, and read policies: they end when nothing is to be
/// done.
pub const LOOKING_UP: usize = 16;

/// What the registry's key is derived under.
const REGISTRY_LABEL: &str = "mlskeyd v1 registry";

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be used.
    #[error("the state directory {} cannot be used: {source}; make it, for the daemon's user, mode 0700", path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may enter the state directory.
    #[error("the state directory {} is refused: {why}; it has to belong to the daemon's user, mode 0700", path.display())]
    StateDirRefused {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is no store key.
    #[error(transparent)]
    StoreKey(#[from] StoreKeyError),
    /// There are no policies, so nothing could be decided.
    #[error(transparent)]
    Policies(#[from] PolicyError),
    /// The issuers of certificates cannot be read.
    #[error("the issuers of certificates in {} cannot be used: {why}", path.display())]
    Issuers {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The registry does not open.
    #[error(transparent)]
    Registry(#[from] store::OpenError),
    /// The registry does not answer.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// What a crash left unfinished could not be finished.
    #[error(
        "what was under way at the last stop cannot be finished: {0}; nothing was lost, start again when its cause is gone"
    )]
    Repair(mlskeyd_protocol::v1::Failure),
    /// The audit log does not open.
    #[error(transparent)]
    AuditLog(#[from] audit::OpenError),
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system gives no thread.
    #[error("the system gives no thread: {0}; raise its limits, then start again")]
    Thread(io::Error),
    /// A fault of the daemon.
    #[error("the daemon ended while it started, by a fault of its own; its log says more")]
    Fault,
}

/// What a running daemon can be told, beside to stop.
#[derive(Clone)]
pub struct Controls(Arc<Custody>);

impl Controls {
    /// Reads the policies again, and the files that freeze. If they are good they are in force from now on; if not,
    /// those of before are, and the log says why.
    pub async fn reload_policies(&self) {
        self.0.look_at_freeze_files().await;
        match self.0.reload_policies("a signal").await {
            Ok(now) => tracing::info!(count = now.count(), "the policies are loaded"),
            Err(error) => tracing::error!(%error, "the policies of before stay in force"),
        }
    }
}

/// Serves until `stop` is done. Calls `ready` once, when apps can connect.
///
/// # Errors
/// [`StartError`], before `ready`.
pub async fn serve(
    config: Config,
    ready: impl FnOnce(Controls),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), StartError> {
    serve_with_clock(config, Arc::new(SystemClock), ready, stop).await
}

async fn serve_with_clock(
    config: Config,
    clock: Arc<dyn TimeSource>,
    ready: impl FnOnce(Controls),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), StartError> {
    parts::prepare_state_dir(&config.state_dir)?;
    let key = match parts::store_key(&config)? {
        Loaded::Found(key) | Loaded::Made(key) => key,
        Loaded::Lost(key, error) => {
            tracing::error!(%error, "the store key is lost: the registry is read-only, and its keys are missing");
            key
        }
    };
    let mac_key = key.subkey(REGISTRY_LABEL)?;
    let registry = Registry::open_with_clock(
        &config.state_dir,
        mac_key.expose(),
        store_settings(&config),
        clock,
    )?;
    if let Some(reason) = registry.read_only_reason() {
        tracing::error!(reason, "the registry is read-only");
    }
    let fresh = match registry.read_only_reason() {
        None => fresh_devices(&config, &registry).await?,
        Some(_) => BTreeSet::new(),
    };
    let policies = PolicyStore::new(
        config.policy.dirs.clone(),
        config.policy.signers.clone(),
        config.state_dir.join(policy_files::LAST_GOOD),
        key.subkey(policy_files::LABEL)?,
    )
    .with_known(Known::of(&config));
    let in_force = policies.at_start()?;
    let frozen = custody::Frozen::open(
        config.state_dir.join(custody::FROZEN_FILE),
        key.subkey(custody::FROZEN_LABEL)?,
    )
    .with_files(
        config.policy.freeze_dir.clone(),
        config.policy.signers.clone(),
    );
    let issuers = parts::issuers(&config)?;
    let threads = parts::devices(&config, &key, &fresh)?;
    drop(key);

    let (audit, opened) = AuditLog::open(&config.state_dir)?;
    let note = AuditOutcome::Noted {
        note: concat!("version ", env!("CARGO_PKG_VERSION")).into(),
    };
    audit
        .append(audit::Record::new("DaemonStarted", note), Durability::Now)
        .await?;

    if registry.read_only_reason().is_none() {
        let log = config.state_dir.join(audit::FILE_NAME);
        let recalled = custody::recall(&registry, &audit, &log, opened.end).await;
        recalled.map_err(|error| match error {
            RecallError::Store(error) => StartError::Store(error),
            RecallError::Audit(error) => StartError::Audit(error),
        })?;
    }

    let devices = threads.iter().map(|(name, thread)| {
        let mut listed = config.devices.iter();
        let configured = Configured {
            handle: thread.handle(),
            hpke_tier: listed
                .find(|device| device.name == *name)
                .and_then(|device| device.hpke_tier),
        };
        (name.clone(), configured)
    });
    let consent = config.policy.consent.as_ref();
    let custody = Custody::new(
        registry.clone(),
        Devices::new(devices.collect(), config.default_device.clone()),
        Policy::new(
            Rules::new(PolicySettings {
                allow_leave: config.policy.allow_leave,
                consent: consent.map_or_else(Vec::new, |consent| consent.requests.clone()),
                daemon_uid: rustix::process::geteuid().as_raw(),
            }),
            in_force.set,
        ),
        policies,
        frozen,
        audit,
        custody::Settings {
            credentials: config.policy.credentials.clone(),
            users: config.policy.users.clone(),
            issuers,
            private_proposals: config.policy.private_proposals.clone(),
            consent_device: consent.map(|consent| consent.device.clone()),
            takes_over: takes_over(&config),
            generation_age: config.lifetimes.generation.as_secs(),
            rotation_grace: config.lifetimes.rotation_grace.as_secs(),
            bus: config.bus.clone(),
        },
    );
    custody.compare_candidate();
    custody.tell_of_policies().await;
    // Before anybody is served.
    let freeze_watch = custody.watch_freeze_files();
    custody.look_at_freeze_files().await;
    let repaired = custody.repair().await.map_err(StartError::Repair)?;
    tracing::debug!(?repaired, "what the last stop left unfinished is finished");
    let lifecycle = tokio::spawn(Arc::clone(&custody).run_lifecycle());
    let scrub = tokio::spawn(Arc::clone(&custody).run_scrub());
    let watch = tokio::spawn(Arc::clone(&custody).run_policy_watch());
    let freeze_watch = tokio::spawn(Arc::clone(&custody).run_freeze_watch(freeze_watch));
    let socket = Socket::bind(&config.socket)?;
    let controls = Controls(Arc::clone(&custody));
    let bus = config.bus.clone();
    ipc::serve(
        ipc::Doors { socket, bus },
        Arc::clone(&custody),
        config.apps.clone(),
        connection_bounds(&config),
        || ready(controls),
        stop,
    )
    .await;
    lifecycle.abort();
    scrub.abort();
    watch.abort();
    freeze_watch.abort();
    custody.note("DaemonStopped", "as it was told").await;
    registry.close().await;
    // The device threads end last: requests that were under way needed them.
    let ended = DeviceThreads::shut_down_all(threads.into_values()).await;
    ended.map_err(|_| StartError::Fault)
}

fn takes_over(config: &Config) -> Option<String> {
    let app = config.apps.iter().find(|app| app.takes_over_default);
    app.map(|app| app.name.clone())
}

fn store_settings(config: &Config) -> store::Settings {
    store::Settings {
        grace: config.lifetimes.grace,
        orphan_grace: config.lifetimes.orphan_grace,
        max_unclaimed_age: config.lifetimes.max_unclaimed_age,
        horizon: config.lifetimes.storage_horizon,
        ..store::Settings::default()
    }
}

/// The devices that may begin with nothing, since no key was kept on them so far:
/// with an empty directory, or with whichever token is there. While the registry
/// knows keys on a device they would seem to be gone for good.
async fn fresh_devices(
    config: &Config,
    registry: &Registry,
) -> Result<BTreeSet<String>, StartError> {
    let mut fresh = BTreeSet::new();
    for device in &config.devices {
        if !registry.knows_device(&device.name).await? {
            fresh.insert(device.name.clone());
        }
    }
    Ok(fresh)
}

fn connection_bounds(config: &Config) -> ipc::Bounds {
    let count = |limit| usize::try_from(limit).unwrap_or(usize::MAX);
    ipc::Bounds {
        connections: count(config.limits.connections),
        per_user: count(config.limits.connections_per_user),
    }
}

/// The runtime that [`serve`] runs in.
///
/// # Errors
/// [`StartError::Thread`].
pub fn runtime() -> Result<Runtime, StartError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(LOOKING_UP)
        .thread_name("mlskeyd-worker")
        .enable_all()
        .build()
        .map_err(StartError::Thread)
}

/// The daemon inside another process, such as an app's tests.
#[derive(Debug)]
pub struct Daemon;

/// A running [`Daemon`]. Dropping it stops the daemon and waits for that.
#[derive(Debug)]
pub struct Running {
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Starts the daemon on threads and a runtime of its own, and blocks until
    /// apps can connect. To be called inside or outside of any runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: Config) -> Result<Running, StartError> {
        Self::start_with_clock(config, Arc::new(SystemClock))
    }

    /// As [`Self::start`], with other clocks for the life of keys: so that a
    /// test need not wait for a day.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_with_clock(
        config: Config,
        clock: Arc<dyn TimeSource>,
    ) -> Result<Running, StartError> {
        let socket = config.socket.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("mlskeyd".into())
            .spawn(move || {
                let ready = tell.clone();
                let served = runtime().and_then(|runtime| {
                    runtime.block_on(serve_with_clock(
                        config,
                        clock,
                        // Who started it waits for exactly one answer.
                        move |_| _ = ready.send(Ok(())),
                        async move { _ = stopped.await },
                    ))
                });
                if let Err(error) = served {
                    let _ = tell.send(Err(error));
                }
            })
            .map_err(StartError::Thread)?;
        let running = Running {
            socket,
            stop: Some(stop),
            thread: Some(thread),
        };
        told.recv()
            .unwrap_or(Err(StartError::Fault))
            .map(|()| running)
    }
}

impl Running {
    /// The Unix socket where apps connect.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Stops the daemon as at a service stop: requests under way are finished,
    /// everything is on disk, the state directory is free. (But for a device that
    /// hangs: its thread is left behind, and ends with the process.)
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the daemon's thread panicked");
        }
    }
}

#[cfg(test)]
mod tests;
