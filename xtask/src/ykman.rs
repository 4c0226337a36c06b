//! Yubico's `ykman`, which the tests run on the virtual YubiKey: distributions have it too
//! old. Its version, and those of all that it needs, are in `xtask/ykman/requirements.txt`;
//! it is installed again only if these change.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::root;

/// The variable by which the tests find it.
pub(crate) const VARIABLE: &str = "MLSKEYD_YKMAN";

/// Installs it, unless it is there.
pub(crate) fn install() -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let wanted = root().join("xtask/ykman/requirements.txt");
    let installed = directory().join("installed.txt");
    let text = fs::read(&wanted).map_err(failed)?;
    if fs::read(&installed).is_ok_and(|installed| installed == text) {
        return Ok(());
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(directory());
    run(&mut make)?;
    let mut install = Command::new(directory().join("bin/pip"));
    install.args(["install", "--quiet", "--disable-pip-version-check"]);
    install.args(["--no-deps", "--requirement"]).arg(&wanted);
    run(&mut install)?;
    fs::write(installed, text).map_err(failed)
}

/// Where it is then.
pub(crate) fn program() -> PathBuf {
    directory().join("bin/ykman")
}

fn directory() -> PathBuf {
    let root = root();
    root.canonicalize().unwrap_or(root).join("target/ykman")
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
