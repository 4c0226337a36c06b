//! Yubico's `ykman`, which the tests run on the virtual YubiKey: distributions have it too
//! old. Its version, and those of all that it needs, are in `xtask/ykman`, with their hashes;
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
    // What builds comes first: pip would else fetch it for itself, and whatever is newest.
    let wanted =
        ["build", "requirements"].map(|name| root().join(format!("xtask/ykman/{name}.txt")));
    let installed = directory().join("installed.txt");
    let mut text = Vec::new();
    for file in &wanted {
        text.extend(fs::read(file).map_err(failed)?);
    }
    if fs::read(&installed).is_ok_and(|installed| installed == text) {
        return Ok(());
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(directory());
    run(&mut make)?;
    let programs = directory().join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(
        [programs.clone()]
            .into_iter()
            .chain(std::env::split_paths(&path)),
    )
    .map_err(|error| error.to_string())?;
    for file in &wanted {
        // It finds there what builds.
        let mut install = Command::new(programs.join("pip"));
        install.env("PATH", &path);
        install.args(["install", "--quiet", "--disable-pip-version-check"]);
        install.args(["--require-hashes", "--no-build-isolation", "--no-deps"]);
        run(install.arg("--requirement").arg(file))?;
    }
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
