//! The command `mlskeyctl`.
//!
//! `commands` is what can be asked. Most of it asks the running daemon over its socket: `json`,
//! `table` and `devices` show it, `progress` what takes long, and `pin` reads
//! the one secret that it is told; `certificates` are those of identities. The agent of a login
//! session stays (`agent`). Others take no daemon: a verifier of evidence (`attest`), who gets a
//! device ready (`provision`), or writes policies (`policy`, `manifest`) and tries them on what
//! is on record (`replay`), or reads that (`audit`). `doctor` looks at the daemon and what
//! it stands on. `files` are what commands are given, and `measurements` what a
//! machine measured.

mod agent;
mod attest;
mod attested;
mod audit;
mod certificates;
mod commands;
mod devices;
mod doctor;
mod files;
mod json;
mod manifest;
mod measurements;
mod pin;
mod policy;
mod progress;
#[cfg(feature = "yubikey")]
mod provision;
mod replay;
mod suites;
mod table;

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use mlskeyd_protocol::client::CallError;
use mlskeyd_protocol::v1::FailureCode;

use commands::Args;

/// Runs the command with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    match commands::run(&args) {
        Ok(answer) => match print(&answer.text) {
            Ok(()) => ExitCode::from(answer.code),
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "mlskeyctl: {error}");
            error.exit_code()
        }
    }
}

/// The command line, of which manual pages and completions are made.
#[must_use]
pub fn command() -> clap::Command {
    Args::command()
}

/// Why the command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{0}")]
    Usage(String),
    #[error("nothing was done; confirm with y, or give --yes")]
    NotConfirmed,
    #[error("cannot read the answer: {0}; give --yes to do without")]
    Terminal(std::io::Error),
    #[error("cannot read the PIN: {0}")]
    Pin(std::io::Error),
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[cfg(feature = "yubikey")]
    #[error("{0}")]
    Device(#[from] crate::devices::DeviceError),
    #[error("{0}")]
    Policies(#[from] crate::policy_files::PolicyError),
    #[error("{0}")]
    Cases(String),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error("cannot write to standard output: {0}")]
    Output(std::io::Error),
    #[error("{} does not start: {why}; name another one with --pinentry", path.display())]
    Pinentry { path: PathBuf, why: String },
    #[error("the system has no randomness for a challenge")]
    Randomness,
    #[error("{source}; {destroyed} keys were destroyed before that, the others are due still")]
    Swept {
        destroyed: u64,
        source: Box<CtlError>,
    },
}

impl CtlError {
    /// The exit code, as `--help` documents it.
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Swept { source, .. } => return source.exit_code(),
            Self::Usage(_) => 2,
            Self::Call(
                CallError::NotInstalled { .. }
                | CallError::Unreachable { .. }
                | CallError::Incompatible { .. },
            ) => 3,
            Self::Call(CallError::Refused(_)) => 4,
            Self::Call(CallError::Failure(failure)) if failure.code == FailureCode::Denied => 4,
            #[cfg(feature = "yubikey")]
            Self::Device(_) => 1,
            Self::Call(_)
            | Self::NotConfirmed
            | Self::Policies(_)
            | Self::Cases(_)
            | Self::Thread(_)
            | Self::Output(_)
            | Self::Pinentry { .. }
            | Self::Terminal(_)
            | Self::Pin(_)
            | Self::File { .. }
            | Self::Randomness => 1,
        })
    }
}

/// Prints to standard output; a reader that has seen enough is no failure.
fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Asks a person, on the terminal; nobody there is a question of usage.
fn confirm(question: &str) -> Result<(), CtlError> {
    if !std::io::stdin().is_terminal() {
        return Err(CtlError::Usage(
            "no terminal to ask for confirmation on; give --yes if you are sure".to_owned(),
        ));
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "{question} [y/N] ").map_err(CtlError::Terminal)?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(CtlError::Terminal)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(CtlError::NotConfirmed)
    }
}
