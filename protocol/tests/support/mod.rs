//! A real server with a small service, for the tests of the client.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::arithmetic_side_effects
)]

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mlskeyd_protocol::frame::Budget;
use mlskeyd_protocol::handshake::Service;
use mlskeyd_protocol::limits::MAX_MEMORY_PER_USER;
use mlskeyd_protocol::server::{Greeting, Reporter, Transport, TransportError, serve};
use mlskeyd_protocol::v1::*;
use rustix::net::RecvFlags;
use tarpc::context::Context;

/// What the service saw, shared by all connections.
#[derive(Debug, Default)]
pub struct Seen {
    pub generated: AtomicUsize,
    pub begun: AtomicUsize,
    /// Calls whose future was dropped before it was done.
    pub dropped: AtomicUsize,
    pub connections: AtomicUsize,
}

/// A daemon without custody; stops when dropped.
pub struct Server {
    pub seen: Arc<Seen>,
    pub path: PathBuf,
    /// For what comes by another door than the socket.
    pub entrance: Entrance,
    stop: tokio::sync::watch::Sender<bool>,
    runtime: Option<tokio::runtime::Runtime>,
    _dir: Option<tempfile::TempDir>,
}

/// Serves connections, wherever they come from.
#[derive(Clone)]
pub struct Entrance {
    runtime: tokio::runtime::Handle,
    budget: Budget,
    seen: Arc<Seen>,
    stopped: tokio::sync::watch::Receiver<bool>,
}

impl Entrance {
    fn serve(&self, stream: tokio::net::UnixStream) {
        self.seen.connections.fetch_add(1, Ordering::SeqCst);
        let (budget, seen) = (self.budget.clone(), Arc::clone(&self.seen));
        self.runtime
            .spawn(connection(stream, budget, seen, self.stopped.clone()));
    }

    /// The other end of a connection.
    pub fn channel(&self) -> std::os::unix::net::UnixStream {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let _inside = self.runtime.enter();
        self.serve(tokio::net::UnixStream::from_std(ours).unwrap());
        theirs
    }
}

impl Server {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Self::start_at(&dir.path().join("socket"));
        server._dir = Some(dir);
        server
    }

    pub fn start_at(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let seen = Arc::new(Seen::default());
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let entrance = Entrance {
            runtime: runtime.handle().clone(),
            budget: Budget::new(MAX_MEMORY_PER_USER),
            seen: Arc::clone(&seen),
            stopped,
        };
        let accepts = entrance.clone();
        runtime.spawn(async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepts.serve(stream);
            }
        });
        Self {
            seen,
            path: path.to_owned(),
            entrance,
            stop,
            runtime: Some(runtime),
            _dir: None,
        }
    }

    /// No further calls; those under way end.
    pub fn stop_gently(&self) {
        self.stop.send(true).unwrap();
    }

    pub fn config(&self) -> mlskeyd_protocol::client::ClientConfig {
        mlskeyd_protocol::client::ClientConfig::new(&self.path, "test/1")
    }

    pub fn client(&self) -> mlskeyd_protocol::client::Client {
        mlskeyd_protocol::client::Client::new(self.config())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waits until all connections are closed.
            runtime.shutdown_timeout(Duration::from_secs(60));
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn connection(
    stream: tokio::net::UnixStream,
    budget: Budget,
    seen: Arc<Seen>,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> Result<(), Arc<TransportError>> {
    let mut greeting = Greeting::read(stream, budget).await?;
    if greeting.hello().software == "nobody" {
        return Ok(greeting.refuse("not you; be somebody").await?);
    }
    if greeting.hello().service != Service::Custody {
        return Ok(greeting.refuse("not the admin; ask one").await?);
    }
    let uid = greeting.peer().unwrap().uid();
    let receive = |socket: BorrowedFd<'_>, room: &mut [u8]| {
        Ok(rustix::net::recv(socket, room, RecvFlags::DONTWAIT)?.1)
    };
    greeting.challenge([5; 32], receive).await?;
    let (transport, reporter) = Transport::new(greeting.welcome(uid).await?);
    let door = Door { seen, reporter };
    serve(transport, Custody::serve(door), async move {
        let _ = stop.wait_for(|stop| *stop).await;
    })
    .await
}

#[derive(Clone)]
struct Door {
    seen: Arc<Seen>,
    reporter: Reporter,
}

struct Running(Arc<Seen>, bool);

impl Running {
    fn begin(seen: &Arc<Seen>) -> Self {
        seen.begun.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(seen), false)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.1 {
            self.0.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn unsupported<T>() -> Outcome<T> {
    Err(Failure::new(
        FailureCode::Unsupported,
        "not in this test",
        "ask for something else",
    ))
}

impl Custody for Door {
    async fn status(self, _: Context, _: CallOptions) -> Outcome<ServiceStatus> {
        Ok(ServiceStatus {
            daemon: "test".to_owned(),
            default_device: ("none".to_owned(), DeviceState::Absent),
            read_only: None,
        })
    }
    async fn create_identity(
        self,
        _: Context,
        _: CallOptions,
        _: CreateIdentity,
    ) -> Outcome<IdentityInfo> {
        panic!("a fault of the daemon, on purpose")
    }
    async fn identities(self, _: Context, _: CallOptions) -> Outcome<Vec<IdentityInfo>> {
        Ok(Vec::new())
    }
    /// The name says what to wait for.
    async fn prepare(
        self,
        context: Context,
        options: CallOptions,
        identity: String,
    ) -> Outcome<()> {
        let mut running = Running::begin(&self.seen);
        let progress = self.reporter.for_call(options.token);
        match identity.split_once(':') {
            Some(("sleep", ms)) => {
                tokio::time::sleep(Duration::from_millis(ms.parse().unwrap())).await
            }
            Some(("touch", device)) => {
                progress.send(Progress::WaitingForTouch {
                    device: device.to_owned(),
                });
                tokio::time::sleep(Duration::from_millis(20)).await;
                progress.send(Progress::Busy {
                    device: device.to_owned(),
                });
            }
            Some(("deadline", _)) => {
                running.1 = true;
                let left = context.deadline.duration_since(std::time::Instant::now());
                return Err(Failure::new(
                    FailureCode::Timeout,
                    left.as_secs().to_string(),
                    "-",
                ));
            }
            _ => std::future::pending().await,
        }
        running.1 = true;
        Ok(())
    }
    async fn sign(self, _: Context, _: CallOptions, request: Sign) -> Outcome<Bytes> {
        Ok(Bytes(request.content.expose().to_vec()))
    }
    async fn generate_hpke(
        self,
        _: Context,
        _: CallOptions,
        _: GenerateHpke,
    ) -> Outcome<GeneratedHpke> {
        let count = self.seen.generated.fetch_add(1, Ordering::SeqCst);
        Ok(GeneratedHpke {
            key: KeyId::from_bytes((count as u128).to_be_bytes()),
            public_key: Bytes(vec![4; 65]),
        })
    }
    async fn open(self, _: Context, _: CallOptions, request: Open) -> Outcome<SecretBytes> {
        Ok(SecretBytes::new(request.ciphertext.0))
    }
    async fn look_up(
        self,
        _: Context,
        _: CallOptions,
        keys: Vec<Bytes>,
    ) -> Outcome<Vec<Option<KeyInfo>>> {
        Ok(vec![None; keys.len()])
    }
    async fn leave_custody(self, _: Context, _: CallOptions, _: LeaveCustody) -> Outcome<()> {
        unsupported()
    }
    async fn attach(self, _: Context, _: CallOptions, _: String, _: bool) -> Outcome<Housekeeping> {
        Ok(Housekeeping::default())
    }
    async fn claim(self, _: Context, _: CallOptions, _: Claim) -> Outcome<Claimed> {
        unsupported()
    }
    async fn settle(self, _: Context, _: CallOptions, _: Settle) -> Outcome<Housekeeping> {
        unsupported()
    }
    async fn report(self, _: Context, _: CallOptions, _: Report) -> Outcome<Housekeeping> {
        unsupported()
    }
    async fn looked(self, _: Context, _: CallOptions, _: Looked) -> Outcome<Housekeeping> {
        unsupported()
    }
}
