//! swtpm: a TPM 2.0 in software, on two ports of the machine's own.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use mlskeyd::config::{Tcti, Tpm2Config};

use rustix::process::Signal;

use super::{Maker, Process, Stage};

/// Below the ports that systems give away by themselves.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A TPM with a state of its own, which outlives its restarts.
#[derive(Debug)]
pub struct Swtpm {
    process: Process,
    state: PathBuf,
    log: PathBuf,
    ports: Ports,
}

/// An even port and the next one, which no other test takes.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) first: u16,
    _claim: UnixListener,
}

impl Swtpm {
    /// Makes a TPM and starts it.
    ///
    /// # Panics
    /// If swtpm is not installed, or does not start.
    pub fn new(stage: &Stage) -> Self {
        Self::named(stage, "tpm")
    }

    /// The same, under a name of the stage.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn named(stage: &Stage, name: &str) -> Self {
        Self::prepared(stage, name, |_| {})
    }

    /// The same, with an endorsement key that this maker certified.
    ///
    /// # Panics
    /// As [`Self::new`], and if swtpm-tools are not installed.
    pub fn made_by(maker: &Maker, stage: &Stage, name: &str) -> Self {
        Self::prepared(stage, name, |state| maker.make_tpm(state))
    }

    fn prepared(stage: &Stage, name: &str, prepare: impl FnOnce(&Path)) -> Self {
        let state = stage.path(name);
        std::fs::create_dir(&state).expect("the TPM's directory");
        prepare(&state);
        let log = stage.path(format!("{name}.log"));
        loop {
            let ports = Ports::claim();
            // Somebody else's program may take them just now.
            if let Some(process) = start(&state, ports.first, &log) {
                return Self {
                    process,
                    state,
                    log,
                    ports,
                };
            }
        }
    }

    /// Takes the power away: nothing is saved that was not saved before.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the TPM, which was killed, on the same state again.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(&mut self) {
        self.process = start(&self.state, self.ports.first, &self.log).expect("swtpm starts again");
    }

    /// Has it hang: it takes what it is told, and does not answer.
    pub fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Ends that.
    pub fn resume(&self) {
        self.process.signal(Signal::CONT);
    }

    /// As the configuration names it.
    pub fn tcti(&self) -> String {
        Self::tcti_at(self.port())
    }

    pub(super) fn tcti_at(port: u16) -> String {
        format!("swtpm:host=127.0.0.1,port={port}")
    }

    pub(super) const fn port(&self) -> u16 {
        self.ports.first
    }

    /// The same, checked.
    pub fn config(&self) -> Tpm2Config {
        Tpm2Config {
            tcti: Tcti::parse(&self.tcti()).expect("a TCTI"),
            ..Tpm2Config::default()
        }
    }

    /// A device of this name for the daemon's configuration.
    pub fn device(&self, name: &str) -> String {
        Self::device_at(name, &self.tcti())
    }

    /// The same, of a TPM that is reached like this.
    pub fn device_at(name: &str, tcti: &str) -> String {
        let mut text = format!("[[devices]]\nname = {name:?}\nkind = \"tpm2\"\n");
        let _ = writeln!(text, "tcti = {tcti:?}");
        text
    }

    /// Runs one of tpm2-tools; nobody else may be connected meanwhile. What it
    /// prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn tool(&self, arguments: &[&str]) -> String {
        let output = self.try_tool(arguments);
        output.unwrap_or_else(|error| panic!("tpm2 {arguments:?}: {error}"))
    }

    /// The same.
    ///
    /// # Errors
    /// What it wrote to standard error.
    ///
    /// # Panics
    /// If tpm2-tools are not installed.
    pub fn try_tool(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("tpm2")
            .args(arguments)
            .env("TPM2TOOLS_TCTI", self.tcti())
            .current_dir(&self.state)
            .output()
            .expect("tpm2 (package tpm2-tools) starts");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// What is there for a time: transient objects, and sessions, loaded and saved.
    /// Nobody may be connected.
    pub fn loaded(&self) -> Vec<String> {
        let kinds = [
            "handles-transient",
            "handles-loaded-session",
            "handles-saved-session",
        ];
        let listed = kinds.map(|kind| self.tool(&["getcap", kind]));
        let lines = listed.iter().flat_map(|text| text.lines());
        lines.map(|line| line.trim().to_owned()).collect()
    }

    /// The NV indices that there are. Nobody may be connected.
    pub fn indices(&self) -> Vec<String> {
        let listed = self.tool(&["getcap", "handles-nv-index"]);
        let lines = listed.lines().map(|line| line.trim_start_matches("- "));
        lines.map(str::to_owned).collect()
    }

    /// The objects that are in it for good. Nobody may be connected.
    pub fn persistent(&self) -> Vec<String> {
        let listed = self.tool(&["getcap", "handles-persistent"]);
        listed.lines().map(str::to_owned).collect()
    }

    /// Measures something into a register, as firmware does at start. Nobody may be
    /// connected.
    ///
    /// # Panics
    /// As [`Self::tool`].
    pub fn measure(&self, pcr: u8, what: u8) {
        let digest = hex::encode([what; 32]);
        self.tool(&["pcrextend", &format!("{pcr}:sha256={digest}")]);
    }

    /// Where its state is, and files that tools leave.
    pub fn state(&self) -> &Path {
        &self.state
    }
}

impl Ports {
    pub(super) fn claim() -> Self {
        loop {
            let first = rand::random_range(PORTS) & !1;
            // A name in the kernel, which ends with this process.
            let name = format!("mlskeyd-tests-swtpm-{first}");
            let name = UnixAddr::from_abstract_name(name).expect("a name");
            let Ok(claim) = UnixListener::bind_addr(&name) else {
                continue;
            };
            let is_free = |port: u16| TcpListener::bind(address(port)).is_ok();
            if is_free(first) && is_free(first + 1) {
                return Self {
                    first,
                    _claim: claim,
                };
            }
        }
    }
}

pub(super) fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Starts swtpm, and waits until it serves; `None` if it ends instead.
fn start(state: &Path, port: u16, log: &Path) -> Option<Process> {
    let mut command = Command::new("swtpm");
    command.args(["socket", "--tpm2", "--tpmstate"]);
    command.arg(format!("dir={}", state.display()));
    for (channel, port) in [("--server", port), ("--ctrl", port + 1)] {
        command.arg(channel);
        command.arg(format!("type=tcp,port={port},bindaddr=127.0.0.1"));
    }
    command.args(["--flags", "not-need-init,startup-clear"]);
    // It logs each time that somebody goes away.
    command
        .arg("--log")
        .arg(format!("file={}/log", state.display()));
    let process = Process::start("swtpm", command, log);
    for port in [port, port + 1] {
        // It says to nobody when it listens.
        while TcpStream::connect(address(port)).is_err() {
            if !process.runs() {
                return None;
            }
            std::thread::yield_now();
        }
    }
    Some(process)
}
