//! Messengers and their delivery service: processes of the provider's example
//! `chat`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::process::{Pid, Signal};

use super::{Bus, Daemon, Process, Stage};

/// The delivery service.
#[derive(Debug)]
pub struct Hub {
    process: Process,
    socket: PathBuf,
}

impl Hub {
    /// Starts it, and waits until it serves.
    pub fn start(stage: &Stage) -> Self {
        let socket = stage.path("hub");
        let mut command = Command::new(&stage.programs().chat);
        command.arg("--serve-hub").arg(&socket);
        let mut process = Process::start("hub", command, &stage.path("hub.log"));
        process.expect_line("ready");
        Self { process, socket }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }
}

/// What a messenger answered to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The lines before the last.
    pub events: Vec<String>,
    /// What followed `ok`.
    pub text: String,
}

/// A command that a messenger refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} answered to '{command}': {reason}")]
pub struct Refused {
    /// The messenger.
    pub name: String,
    /// The command.
    pub command: String,
    /// What followed `error`, or that it ended.
    pub reason: String,
}

/// A daemon that may die meanwhile, and what is done about it.
type Beside<'a> = (&'a mut Daemon, &'a mut dyn FnMut(&mut Daemon));

/// One participant's messenger.
#[derive(Debug)]
pub struct Chat {
    process: Process,
    arguments: Command,
    /// Where it finds the daemon.
    door: [OsString; 2],
    log: PathBuf,
    directory: PathBuf,
}

impl Chat {
    /// Starts the messenger of `name`, which chats in cipher suite 0x000`suite`.
    pub fn start(stage: &Stage, daemon: &Daemon, hub: &Hub, name: &str, suite: u16) -> Self {
        Self::start_at(stage, at_socket(daemon), hub, name, suite)
    }

    /// The same, by way of a bus alone.
    pub fn start_on_bus(stage: &Stage, bus: &Bus, hub: &Hub, name: &str, suite: u16) -> Self {
        Self::start_at(stage, on_bus(bus), hub, name, suite)
    }

    fn start_at(stage: &Stage, door: [OsString; 2], hub: &Hub, name: &str, suite: u16) -> Self {
        let directory = stage.path("apps").join(name);
        std::fs::create_dir_all(&directory).expect("a directory for the app");
        let mut arguments = Command::new(&stage.programs().chat);
        arguments
            .args(["--name", name])
            .arg("--dir")
            .arg(&directory);
        arguments.arg("--hub").arg(&hub.socket);
        arguments.args(["--suite", &suite.to_string()]);
        let log = stage.path(format!("{name}.log"));
        let mut command = copy(&arguments);
        command.args(&door);
        Self {
            process: Process::start(name, command, &log),
            arguments,
            door,
            log,
            directory,
        }
    }

    /// The messengers of alice and bob, who are in one group, `g`.
    pub fn pair(stage: &Stage, daemon: &Daemon, hub: &Hub) -> [Self; 2] {
        let [mut alice, mut bob] =
            ["alice", "bob"].map(|name| Self::start(stage, daemon, hub, name, 1));
        bob.ok("keypackage");
        alice.ok("create g");
        alice.ok("add g bob");
        bob.ok("receive");
        [alice, bob]
    }

    /// Gives a command, and waits for its answer.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn command(&mut self, command: &str) -> Result<Answer, Refused> {
        self.command_beside(command, None)
    }

    /// As [`Self::command`]. Each time that the daemon ends meanwhile, `revive`
    /// has to start it again, as a service manager does: the messenger may wait
    /// for it. It stands still until then, so that what the daemon's death left
    /// behind can be looked at.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn command_through(
        &mut self,
        command: &str,
        daemon: &mut Daemon,
        revive: &mut dyn FnMut(&mut Daemon),
    ) -> Result<Answer, Refused> {
        self.command_beside(command, Some((daemon, revive)))
    }

    fn command_beside(
        &mut self,
        command: &str,
        mut beside: Option<Beside<'_>>,
    ) -> Result<Answer, Refused> {
        let refused = |process: &Process, reason: &str| Refused {
            name: process.name().to_owned(),
            command: command.to_owned(),
            reason: reason.to_owned(),
        };
        if !self.process.write(format!("{command}\n").as_bytes()) {
            return Err(refused(&self.process, "it ended"));
        }
        let mut events = Vec::new();
        loop {
            if let Some((daemon, revive)) = &mut beside {
                while !self.process.speaks_before_end_of(daemon.process()) {
                    self.process.signal(Signal::STOP);
                    revive(daemon);
                    self.process.signal(Signal::CONT);
                }
            }
            let Some(line) = self.process.line() else {
                return Err(refused(&self.process, "it ended"));
            };
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("ok", text) => {
                    return Ok(Answer {
                        events,
                        text: text.to_owned(),
                    });
                }
                ("error", reason) => return Err(refused(&self.process, reason)),
                _ => events.push(line),
            }
        }
    }

    /// Gives a command that must succeed.
    pub fn ok(&mut self, command: &str) -> Answer {
        self.command(command).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Ends the messenger by its own command.
    pub fn quit(&mut self) {
        self.ok("quit");
        let status = self.process.wait();
        assert!(status.success(), "{} ended with {status}", self.name());
    }

    /// Kills the messenger.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the messenger, which has quit or was killed, on its directory
    /// again.
    pub fn restart(&mut self) {
        self.launch(None);
    }

    /// The same; from now on it comes to the socket.
    pub fn restart_at_socket(&mut self, daemon: &Daemon) {
        self.door = at_socket(daemon);
        self.launch(None);
    }

    /// The same; from now on it comes by way of a bus.
    pub fn restart_on_bus(&mut self, bus: &Bus) {
        self.door = on_bus(bus);
        self.launch(None);
    }

    /// As [`Self::restart`], to die at a failpoint: `name`, or `name:3` for the
    /// third time that it is reached.
    pub fn restart_to_die(&mut self, failpoint: &str) {
        self.launch(Some(failpoint));
    }

    fn launch(&mut self, failpoint: Option<&str>) {
        let name = self.process.name().to_owned();
        let mut command = copy(&self.arguments);
        command.args(&self.door);
        if let Some(failpoint) = failpoint {
            command.env("MLSKEYD_FAILPOINT", failpoint);
        }
        self.process = Process::start(&name, command, &self.log);
    }

    /// Waits until the messenger ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// The participant's name.
    pub fn name(&self) -> &str {
        self.process.name()
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// The directory with all of its files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

fn at_socket(daemon: &Daemon) -> [OsString; 2] {
    ["--socket".into(), daemon.socket().into()]
}

fn on_bus(bus: &Bus) -> [OsString; 2] {
    ["--bus".into(), bus.address().into()]
}

/// The same program with the same arguments.
fn copy(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    copy.env_remove("MLSKEYD_FAILPOINT");
    copy
}
