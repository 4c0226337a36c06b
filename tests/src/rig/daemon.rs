//! A private daemon with the software device.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use rustix::process::Pid;

use super::{Process, Programs, Stage};
use crate::vitals;

/// How a daemon is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The failpoint at which the daemon kills itself: `name`, or `name:3` for
    /// the third time that it is reached.
    pub failpoint: Option<String>,
    /// Keys and values of the section `lifetimes`, such as `("grace", "0s")`.
    pub lifetimes: Vec<(&'static str, String)>,
    /// More of the configuration: whole sections of TOML.
    pub extra: String,
    /// Where keys go for which nobody names a device, if not on the software one.
    pub default_device: Option<&'static str>,
    /// The directory of the credentials that a service manager passes.
    pub credentials: Option<PathBuf>,
    /// Where pcscd listens, if not where it does for all.
    pub pcscd: Option<PathBuf>,
    /// The address of the bus of the user's session.
    pub session_bus: Option<String>,
}

/// A private daemon: state, socket and configuration below one directory, which
/// outlives its restarts.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    directory: PathBuf,
    programs: Programs,
}

impl Daemon {
    /// Starts the daemon of a stage, and waits until it serves.
    pub fn start(stage: &Stage, options: &Options) -> Self {
        Self::try_start(stage, options).unwrap_or_else(|log| panic!("no daemon:\n{log}"))
    }

    /// Starts the daemon of a stage.
    ///
    /// # Errors
    /// What it wrote to standard error, if it ended before it served.
    pub fn try_start(stage: &Stage, options: &Options) -> Result<Self, String> {
        let directory = stage.path("daemon");
        std::fs::create_dir_all(&directory).expect("a directory for the daemon");
        let mut daemon = Self {
            process: launch(stage.programs(), &directory, options),
            directory,
            programs: stage.programs().clone(),
        };
        daemon.await_ready().map(|()| daemon)
    }

    /// Ends the daemon as a service manager does, and expects it to end well.
    pub fn stop(&mut self) {
        let status = self.process.terminate();
        assert!(
            status.success(),
            "the daemon ended with {status}:\n{}",
            self.process.log()
        );
    }

    /// Kills the daemon.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Waits until the daemon ended by itself, such as at its failpoint.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Starts the daemon, which was stopped or killed, on the same state again.
    pub fn restart(&mut self, options: &Options) {
        self.try_restart(options)
            .unwrap_or_else(|_| panic!("the daemon does not start again:\n{}", self.log()));
    }

    /// As [`Self::restart`].
    ///
    /// # Errors
    /// How it ended, if it did before it served.
    pub fn try_restart(&mut self, options: &Options) -> Result<(), ExitStatus> {
        self.process = launch(&self.programs, &self.directory, options);
        match self.process.line().as_deref() {
            Some("ready") => Ok(()),
            Some(other) => panic!("expected 'ready', got '{other}'"),
            None => Err(self.process.wait()),
        }
    }

    /// The process that runs now, or ran last.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The file of the store key.
    pub fn store_key(&self) -> PathBuf {
        self.directory.join("store.key")
    }

    /// What the daemon and its predecessors wrote to standard error.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The processes that the daemon started and that run now.
    pub fn children(&self) -> Vec<Pid> {
        let tasks = format!("/proc/{}/task", self.pid().as_raw_nonzero());
        let mut children = Vec::new();
        for task in std::fs::read_dir(tasks).expect("the daemon runs") {
            let path = task.expect("a task").path().join("children");
            // A thread may end meanwhile.
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok());
            children.extend(pids.filter_map(Pid::from_raw));
        }
        children
    }

    /// The most memory that was ever resident, in bytes.
    pub fn peak_memory(&self) -> u64 {
        vitals::memory(self.pid(), "VmHWM")
    }

    /// Runs `mlskeyctl --json` with these arguments.
    ///
    /// # Errors
    /// What it wrote to standard error, if it did not succeed.
    pub fn ctl(&self, arguments: &[&str]) -> Result<serde_json::Value, String> {
        let output = self
            .ctl_command(arguments)
            .output()
            .expect("mlskeyctl starts");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|e| {
            let text = String::from_utf8_lossy(&output.stdout);
            format!("mlskeyctl {arguments:?} wrote no JSON ({e}): {text}")
        })
    }

    /// The command `mlskeyctl --json` with these arguments.
    pub fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.ctl_for_people(arguments);
        command.arg("--json");
        command
    }

    /// The command `mlskeyctl` with these arguments, whose answer is not JSON.
    pub fn ctl_for_people(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.ctl);
        command.arg("--socket").arg(self.socket());
        command.args(arguments);
        command
    }

    fn await_ready(&mut self) -> Result<(), String> {
        match self.process.line().as_deref() {
            Some("ready") => Ok(()),
            Some(other) => Err(format!("expected 'ready', got '{other}'")),
            None => {
                self.process.wait();
                Err(self.process.log())
            }
        }
    }
}

fn launch(programs: &Programs, directory: &std::path::Path, options: &Options) -> Process {
    let default_device = options.default_device.unwrap_or("software");
    let mut config = format!(
        "default_device = {default_device:?}\nstate_dir = {:?}\nsocket = {:?}\npkcs11_helper = {:?}\n\n[store_key]\nfile = {:?}\ncreate = true\n\n\
         [[devices]]\nname = \"software\"\nkind = \"software\"\n",
        directory.join("state"),
        directory.join("socket"),
        programs.pkcs11,
        directory.join("store.key"),
    );
    if !options.lifetimes.is_empty() {
        config.push_str("\n[lifetimes]\n");
    }
    for (key, value) in &options.lifetimes {
        let _ = writeln!(config, "{key} = {value:?}");
    }
    config.push('\n');
    config.push_str(&options.extra);
    let file = directory.join("mlskeyd.toml");
    std::fs::write(&file, config).expect("the configuration is written");

    let mut command = Command::new(&programs.daemon);
    command.arg("--config").arg(&file).arg("--notify-stdout");
    command.env_remove("MLSKEYD_FAILPOINT");
    if let Some(failpoint) = &options.failpoint {
        command.env("MLSKEYD_FAILPOINT", failpoint);
    }
    command.env_remove("CREDENTIALS_DIRECTORY");
    if let Some(credentials) = &options.credentials {
        command.env("CREDENTIALS_DIRECTORY", credentials);
    }
    command.env_remove("DBUS_SESSION_BUS_ADDRESS");
    if let Some(bus) = &options.session_bus {
        command.env("DBUS_SESSION_BUS_ADDRESS", bus);
    }
    if let Some(pcscd) = &options.pcscd {
        command.env("PCSCLITE_CSOCK_NAME", pcscd);
    }
    Process::start("mlskeyd", command, &directory.join("mlskeyd.log"))
}
