//! A private message bus, and the daemon's side of it, for the tests of the client.
#![allow(missing_docs, unreachable_pub)]

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::support::{Entrance, Server};

const NAME: &str = "org.mlskeyd.Custody1";

/// A dbus-daemon of the test's own; it ends when dropped.
pub struct Bus {
    daemon: Child,
    _output: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
}

impl Bus {
    pub fn start() -> Self {
        Self::with("")
    }

    /// With more of its policy.
    pub fn with(policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users may come.
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), mode).unwrap();
        let config = format!(
            "<busconfig><type>session</type><listen>unix:path={}/bus</listen>\
             <auth>EXTERNAL</auth><policy context=\"default\"><allow user=\"*\"/>\
             <allow own=\"*\"/><allow send_destination=\"*\"/><allow receive_sender=\"*\"/>\
             {policy}</policy></busconfig>",
            dir.path().display()
        );
        std::fs::write(dir.path().join("config"), config).unwrap();
        let (daemon, output) = start(&dir);
        Self {
            daemon,
            _output: output,
            dir,
        }
    }

    pub fn address(&self) -> String {
        format!("unix:path={}", self.dir.path().join("bus").display())
    }

    /// Nobody is there any more, and then somebody is again.
    pub fn restart(&mut self) {
        self.end();
        (self.daemon, self._output) = start(&self.dir);
    }

    /// It hangs, from when this returns.
    pub fn hang(&self) {
        let pid = Pid::from_child(&self.daemon);
        kill_process(pid, Signal::STOP).unwrap();
        waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
    }

    fn end(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.end();
    }
}

fn start(dir: &tempfile::TempDir) -> (Child, BufReader<ChildStdout>) {
    let _ = std::fs::remove_file(dir.path().join("bus"));
    let mut daemon = Command::new("dbus-daemon")
        .args(["--nofork", "--print-address=1"])
        .arg(format!(
            "--config-file={}",
            dir.path().join("config").display()
        ))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(daemon.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert!(line.starts_with("unix:"), "{line}");
    (daemon, output)
}

/// What who asks for a channel gets.
pub enum Answer {
    Channel(Entrance),
    Pipe,
    File,
    Listener,
    Datagrams,
    Refusal(&'static str),
    /// None, as long as the daemon is there.
    Never,
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.mlskeyd.Error")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    NotServed(String),
}

struct Custody {
    answer: Answer,
    asked: Arc<AtomicUsize>,
}

#[zbus::interface(name = "org.mlskeyd.Custody1")]
impl Custody {
    async fn open_channel(&self) -> Result<zbus::OwnedFd, Refusal> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let fd: OwnedFd = match &self.answer {
            Answer::Channel(entrance) => entrance.channel().into(),
            Answer::Pipe => std::io::pipe().unwrap().0.into(),
            Answer::File => std::fs::File::open("/proc/self/exe").unwrap().into(),
            Answer::Listener => {
                let dir = tempfile::tempdir().unwrap();
                UnixListener::bind(dir.path().join("s")).unwrap().into()
            }
            Answer::Datagrams => std::os::unix::net::UnixDatagram::pair().unwrap().0.into(),
            Answer::Refusal(text) => return Err(Refusal::NotServed((*text).to_owned())),
            Answer::Never => std::future::pending().await,
        };
        Ok(fd.into())
    }
}

/// One that answers with no descriptor, or with two.
struct Text;

#[zbus::interface(name = "org.mlskeyd.Custody1")]
impl Text {
    fn open_channel(&self) -> String {
        "here you are".to_owned()
    }
}

struct Two(Entrance);

#[zbus::interface(name = "org.mlskeyd.Custody1")]
impl Two {
    fn open_channel(&self) -> (zbus::OwnedFd, zbus::OwnedFd) {
        let channel = || OwnedFd::from(self.0.channel()).into();
        (channel(), channel())
    }
}

/// The daemon, as far as it is on the bus; it goes when dropped.
pub struct OnBus {
    /// How often a channel was asked for.
    pub asked: Arc<AtomicUsize>,
    _connection: zbus::Connection,
    _runtime: tokio::runtime::Runtime,
}

impl OnBus {
    /// Hands out channels to this server.
    pub fn of(server: &Server, bus: &Bus) -> Self {
        Self::answering(Answer::Channel(server.entrance.clone()), bus)
    }

    pub fn answering(answer: Answer, bus: &Bus) -> Self {
        let asked = Arc::default();
        let custody = Custody {
            answer,
            asked: Arc::clone(&asked),
        };
        Self::serving(custody, asked, bus)
    }

    pub fn with_text(bus: &Bus) -> Self {
        Self::serving(Text, Arc::default(), bus)
    }

    pub fn with_two(server: &Server, bus: &Bus) -> Self {
        Self::serving(Two(server.entrance.clone()), Arc::default(), bus)
    }

    fn serving(
        object: impl zbus::object_server::Interface,
        asked: Arc<AtomicUsize>,
        bus: &Bus,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let address = bus.address();
        let connection = runtime.block_on(async {
            zbus::connection::Builder::address(address.as_str())
                .serve_at("/org/mlskeyd/Custody1", object)
                .name(NAME)
                .build()
                .await
                .unwrap()
        });
        Self {
            asked,
            _connection: connection,
            _runtime: runtime,
        }
    }
}
