//! A daemon that knows apps by their programs, and these programs.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use mlskeyd::audit::{Entries, FILE_NAME, Record};
use mlskeyd_protocol::client::{AdminClient, Call, ClientConfig};
use mlskeyd_protocol::v1::{KeyQuery, OwnedKey};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Bus, Daemon, Options, Process, Stage};
use rustix::process::Signal;

/// Runs a test once more as root of namespaces of its own, by `unshare` with these options,
/// unless it runs there; answers whether it has.
pub(crate) fn ran_inside(test: &str, options: &[&str]) -> bool {
    const INSIDE: &str = "MLSKEYD_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user", "--map-auto"]);
    } else if options.is_empty() {
        return false;
    }
    let status = command
        .args(options)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare (util-linux) runs");
    assert!(
        status.success(),
        "the test failed in its namespaces, or there are none: it needs root, \
         or newuidmap (package uidmap) and a line for this user in /etc/subuid"
    );
    true
}

/// How a program comes to a connection: at each door. `@@` is the socket, and `@bus` the bus.
pub(crate) const DOORS: [&str; 2] = ["connect @@", "channel @bus"];

/// A daemon for which the program `wire` is the app `wire`, and `signal` is `signal`.
pub(crate) struct Scene {
    pub(crate) daemon: Daemon,
    bus: Bus,
    pub(crate) stage: Stage,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// The same, with more of the app `wire`, and more of the configuration.
    pub(crate) fn with(more: &str) -> Self {
        let stage = Stage::new(programs!());
        for path in ["", "daemon"] {
            let path = stage.path(path);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        for (name, program) in [
            ("wire", env!("CARGO_BIN_EXE_impostor")),
            ("signal", env!("CARGO_BIN_EXE_impostor")),
            ("evil", env!("CARGO_BIN_EXE_impostor")),
            ("stranger", env!("CARGO_BIN_EXE_stranger")),
        ] {
            copy(program, &stage.path(name));
        }
        let bus = Bus::start(&stage);
        let (wire, signal) = (stage.path("wire"), stage.path("signal"));
        let (stranger, extra) = (stage.path("stranger"), more);
        let options = Options {
            extra: format!(
                "[apps.signal]\nexe = {signal:?}\n[apps.stranger]\nexe = {stranger:?}\n\
                 [apps.wire]\nexe = {wire:?}\n{extra}\n{}",
                bus.section()
            ),
            ..Options::default()
        };
        let daemon = Daemon::start(&stage, &options);
        Self { daemon, bus, stage }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.stage.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn socket(&self) -> String {
        self.daemon.socket().to_str().unwrap().to_owned()
    }

    pub(crate) fn bus_address(&self) -> String {
        self.bus.address()
    }

    /// Starts one of the programs; in its steps `@name` is a path of the scene, `@@` the
    /// socket, and `@bus` the bus's address.
    pub(crate) fn start(&self, program: &str, steps: &str) -> Process {
        let mut command = Command::new(self.stage.path(program));
        command.args(self.steps(steps));
        Process::start(program, command, &self.stage.path("log"))
    }

    /// The same, of which it can be waited for the end alone: its child goes on and prints.
    pub(crate) fn start_parent(&self, program: &str, steps: &str) -> Parent {
        let mut command = Command::new(self.stage.path(program));
        command.args(self.steps(steps));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Parent { child, output }
    }

    pub(crate) fn steps(&self, steps: &str) -> Vec<String> {
        let path = |step: &str| match step.strip_prefix('@') {
            Some("@") => self.socket(),
            Some("bus") => self.bus.address(),
            Some(name) => self.path(name),
            None => step.to_owned(),
        };
        steps.split_whitespace().map(path).collect()
    }

    /// What a program prints that does this, as this user.
    pub(crate) fn output(&self, program: &str, user: u32, arguments: &[&str]) -> String {
        let mut command = Command::new(self.stage.path(program));
        command.args(arguments).current_dir("/").gid(user).uid(user);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Something that programs wait for has happened.
    pub(crate) fn happened(&self, name: &str) {
        std::fs::write(self.stage.path(name), "").unwrap();
    }

    /// While this runs, the daemon does not.
    pub(crate) fn daemon_pauses(&self, meanwhile: impl FnOnce()) {
        let pid = self.daemon.pid().as_raw_nonzero();
        self.daemon.process().signal(Signal::STOP);
        while !std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .unwrap()
            .contains(") T ")
        {
            std::thread::yield_now();
        }
        meanwhile();
        self.daemon.process().signal(Signal::CONT);
    }

    pub(crate) fn keys(&self) -> Vec<OwnedKey> {
        let query = KeyQuery {
            after: None,
            destroyed: true,
        };
        let admin = AdminClient::new(ClientConfig::new(self.daemon.socket(), "scene"));
        admin.keys(query, &Call::default()).unwrap()
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        let entries = Entries::open(&self.daemon.state().join(FILE_NAME)).unwrap();
        entries.map(|entry| entry.unwrap().record).collect()
    }

    /// The app that the daemon took the last caller for, how well it knew that, and what it ran.
    pub(crate) fn last_caller(&self) -> (String, String, String) {
        let record = self.records().pop().unwrap();
        let caller = record.caller.unwrap();
        let facts: serde_json::Value = serde_json::from_str(&record.facts.unwrap()).unwrap();
        let identified = facts["caller"]["identified"].as_str().unwrap_or("unknown");
        let program = caller.program.unwrap_or_default();
        (caller.owner.app, identified.to_owned(), program)
    }
}

/// A program that ends before its child does.
pub(crate) struct Parent {
    pub(crate) child: Child,
    output: BufReader<ChildStdout>,
}

impl Parent {
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// It goes on, and ends.
    pub(crate) fn end(&mut self) {
        // This closes its standard input.
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

fn copy(program: &str, to: &Path) -> PathBuf {
    std::fs::copy(program, to).unwrap();
    std::fs::set_permissions(to, PermissionsExt::from_mode(0o755)).unwrap();
    to.to_owned()
}
