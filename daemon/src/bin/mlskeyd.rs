//! The daemon `mlskeyd`.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use mlskeyd::arguments::Arguments;
use mlskeyd::config::Config;
use mlskeyd::daemon::{self, Controls, StartError};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The daemon could not start, or ended by a fault.
const FAILED: u8 = 1;

/// The configuration was refused. (2 is clap's, for wrong arguments.)
const BAD_CONFIG: u8 = 3;

/// What is logged unless MLSKEYD_LOG says otherwise. tarpc opens a span for
/// every request, which would cost more than the request, and complains about
/// each deadline that passed, as often as a hostile caller likes. What matters
/// of it comes back as an error, and is logged where that ends.
const DEFAULT_LOG: &str = "info,tarpc=off";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return failed(&error, BAD_CONFIG),
    };
    if arguments.check_config {
        return ExitCode::SUCCESS;
    }
    match run(config, arguments.notify_stdout) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, FAILED),
    }
}

/// Says why the daemon ends, whatever is logged.
fn failed(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("mlskeyd: {error}");
    ExitCode::from(code)
}

fn start_log() {
    let wanted = std::env::var("MLSKEYD_LOG").unwrap_or_else(|_| DEFAULT_LOG.to_owned());
    let filter = EnvFilter::try_new(&wanted).unwrap_or_else(|error| {
        eprintln!("mlskeyd: MLSKEYD_LOG is ignored, as if it were `{DEFAULT_LOG}`: {error}");
        DEFAULT_LOG.into()
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}

fn run(config: Config, notify_stdout: bool) -> Result<(), StartError> {
    if let Err(error) = daemon::harden() {
        // Not all sandboxes allow it, and keys are no safer if nobody can start.
        tracing::warn!(%error, "core dumps of this process could not be turned off");
    }
    match daemon::lock_memory() {
        Ok(true) => {}
        Ok(false) => tracing::info!(
            "memory is not locked, so keys in use may be swapped out: LimitMEMLOCK=infinity allows it"
        ),
        Err(error) => tracing::warn!(%error, "memory could not be locked"),
    }
    if let Err(error) = daemon::raise_file_limit() {
        tracing::warn!(%error, "the limit of open files, and so of connections, stays as it is");
    }
    let socket = config.socket.clone();
    let say_so = move || {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), socket = %socket.display(), "ready");
        if notify_stdout {
            let mut stdout = std::io::stdout().lock();
            // Whoever wanted to know has gone.
            let _ = writeln!(stdout, "ready").and_then(|()| stdout.flush());
        }
    };
    daemon::runtime()?.block_on(async {
        // Asked for before anything is opened: a signal while starting counts.
        let mut terminated = signal(SignalKind::terminate()).map_err(StartError::Thread)?;
        let mut interrupted = signal(SignalKind::interrupt()).map_err(StartError::Thread)?;
        let mut hung_up = signal(SignalKind::hangup()).map_err(StartError::Thread)?;
        let ready = move |controls: Controls| {
            say_so();
            tokio::spawn(async move {
                while hung_up.recv().await.is_some() {
                    controls.reload_policies().await;
                }
            });
        };
        let stop = async move {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
            tracing::info!("stopping");
        };
        daemon::serve(config, ready, stop).await
    })
}
