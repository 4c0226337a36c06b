//! `mlskeyctl doctor`: what keeps mlskeyd from working as it should.
//!
//! One file for each group of checks; a check is a function from what was [`Seen`] to what it
//! finds. None changes anything, or tries a PIN. All run at once, and none is waited for
//! longer than [`PATIENCE`].

mod daemon;
mod finding;
mod hardware;
mod log;
mod machine;
mod process;
mod state;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use mlskeyd_protocol::client::{AdminClient, Call, CallError, ClientConfig, Doors, default_socket};
use mlskeyd_protocol::v1::DaemonStatus;
use serde_json::Value;

use self::finding::{Finding, report};
use self::process::Process;
use super::CtlError;
use super::files;
use super::table::terminal_width;
use crate::config::{Config, ConfigError};

/// So long all checks together may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// So long the daemon may take for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// What the checks go by.
struct Seen {
    config_path: PathBuf,
    config: Result<Config, ConfigError>,
    socket: PathBuf,
    /// How the daemon is reached, if not there.
    doors: Option<Doors>,
    client: AdminClient,
    status: Result<DaemonStatus, CallError>,
    /// The daemon's process, if it can be seen.
    process: Option<Process>,
}

impl Seen {
    /// How the daemon is reached.
    fn doors(&self) -> Doors {
        let socket = || Doors::socket(&self.socket);
        self.doors.clone().unwrap_or_else(socket)
    }

    fn config(&self) -> Option<&Config> {
        self.config.as_ref().ok()
    }

    /// Whose the daemon's files should be: its user's, or ours where that is not seen.
    fn owner(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.uid)
    }
}

/// What the daemon would say to others.
const NOT_FOR_US: &str =
    "only root, the daemon's own user, and whom polkit lets administer mlskeyd";

/// Are we root, or the daemon's user? Whoever is not would have a refusal on record by asking.
fn may_ask(socket: &Path) -> bool {
    let us = rustix::process::geteuid();
    us.is_root()
        || socket
            .metadata()
            .map_or(true, |found| found.uid() == us.as_raw())
}

/// For the daemon's answers.
fn call() -> Call<'static> {
    Call {
        deadline: ANSWER_WITHIN,
        interaction: mlskeyd_protocol::v1::Interaction::Never,
        ..Call::default()
    }
}

/// A group of checks.
type Check = fn(&Seen) -> Vec<Finding>;

/// In the order in which they are shown.
const CHECKS: [(&str, Check); 18] = [
    ("configuration", state::configuration),
    ("daemon", daemon::daemon),
    ("socket", daemon::socket),
    ("state-directory", state::directory),
    ("store-key", state::store_key),
    ("disk", state::disk),
    ("registry", daemon::registry),
    ("audit-log", log::chain),
    ("devices", daemon::devices),
    ("pkcs11", hardware::pkcs11),
    ("pcscd", hardware::pcscd),
    ("tpm", hardware::tpm),
    ("policies", state::policies),
    ("certificates", daemon::certificates),
    ("clock", log::clock),
    ("bus", machine::bus),
    ("kernel", machine::kernel),
    ("process", daemon::process),
];

/// Looks at everything: JSON, text, and whether nothing fails. `doors`: how the daemon is to be
/// reached, if not by the socket alone.
pub(super) fn run(
    socket: Option<&Path>,
    doors: Option<Doors>,
    config: Option<&Path>,
) -> Result<(Value, String, bool), CtlError> {
    let config_path = config.unwrap_or(Path::new(files::CONFIG)).to_owned();
    let until = Instant::now()
        .checked_add(PATIENCE)
        .unwrap_or_else(Instant::now);
    let loaded = Config::load(&config_path);
    let socket = match (socket, &loaded) {
        (Some(socket), _) => socket.to_owned(),
        // Whoever names a configuration means the daemon that has it.
        (None, Ok(loaded)) if config.is_some() => loaded.socket.clone(),
        (None, _) => default_socket(),
    };
    let software = concat!("mlskeyctl-doctor/", env!("CARGO_PKG_VERSION"));
    let reached = doors.clone();
    let reached = reached.unwrap_or_else(|| Doors::socket(&socket));
    let client = AdminClient::new(ClientConfig::through(reached, software));
    // By a bus polkit may let others, who have named it.
    let status = if doors.is_some() || may_ask(&socket) {
        client.status(&call())
    } else {
        Err(CallError::Refused(NOT_FOR_US.to_owned()))
    };
    let process = status.as_ref().ok().and_then(|it| Process::of(it.pid));
    let seen = Arc::new(Seen {
        config_path,
        config: loaded,
        socket,
        doors,
        client,
        status,
        process,
    });
    let mut answers = Vec::new();
    for (name, check) in CHECKS {
        let (answer, answered) = channel();
        let seen = Arc::clone(&seen);
        // A disk that hangs holds its thread, and not us.
        let look = move || drop(answer.send(check(&seen)));
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(look);
        thread.map_err(CtlError::Thread)?;
        answers.push((name, answered));
    }
    let mut findings = Vec::new();
    for (name, answered) in answers {
        let left = until.saturating_duration_since(Instant::now());
        match answered.recv_timeout(left) {
            Ok(found) => findings.extend(found),
            Err(RecvTimeoutError::Timeout) => findings.push(Finding::fail(
                name,
                format!("there is no answer within {} s", PATIENCE.as_secs()),
                "look whether a disk, or the service behind it, hangs",
            )),
            Err(RecvTimeoutError::Disconnected) => findings.push(Finding::fail(
                name,
                "this check ended by a fault of its own",
                "please report it",
            )),
        }
    }
    Ok(report(&findings, terminal_width()))
}

/// What there is to say of a file that cannot be looked at: why, or that it is for others.
fn unseen(check: &'static str, path: &Path, error: &std::io::Error) -> Finding {
    let what = format!("{}: {error}", path.display());
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => Finding::skip(
            check,
            format!("{what}: only root and the daemon's user see it"),
        ),
        std::io::ErrorKind::NotFound => Finding::fail(check, what, "put it there"),
        _ => Finding::fail(check, what, "look at the file system"),
    }
}
