//! What a machine needs before anything can be built.

use std::process::{Command, Stdio};

/// Makes sure that the system packages for `what` (`demo` or `test`) are there: lists what is
/// missing, and installs it with `yes` or after asking on a terminal.
///
/// The work is done by `xtask/setup.sh`, which has to run on machines that cannot link Rust yet.
pub(crate) fn packages(what: &str, yes: bool) -> Result<(), String> {
    let mut script = Command::new(crate::root().join("xtask/setup.sh"));
    script.arg(what);
    if yes {
        script.arg("--yes");
    }
    match script.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("system packages are missing: see above".to_owned()),
        Err(error) => Err(format!("cannot start xtask/setup.sh: {error}")),
    }
}

/// Makes sure that the toolchain has the components that `test` uses.
pub(crate) fn components() -> Result<(), String> {
    let missing: Vec<&str> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(subcommand, _)| !answers(subcommand))
        .map(|(_, component)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the Rust toolchain lacks components. Run: rustup component add {}",
        missing.join(" ")
    ))
}

/// Whether `cargo SUBCOMMAND` is installed.
pub(crate) fn answers(subcommand: &str) -> bool {
    crate::cargo(&[subcommand, "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
