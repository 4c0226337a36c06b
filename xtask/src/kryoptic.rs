//! Kryoptic, a PKCS#11 module that the tests of `--full` use beside SoftHSM. No distribution
//! that is tested on has it, so it is built: its version is in `xtask/kryoptic/Cargo.toml`, and
//! cargo builds it again only if that changes.

use std::path::PathBuf;
use std::process::Command;

use crate::{cargo, root};

/// The variable by which the tests find the module.
pub(crate) const VARIABLE: &str = "MLSKEYD_KRYOPTIC";

/// The command that builds it.
pub(crate) fn build() -> Command {
    cargo(&[
        "build",
        "--release",
        "--locked",
        "--package",
        "kryoptic",
        "--manifest-path",
        "xtask/kryoptic/Cargo.toml",
        "--target-dir",
        "target/kryoptic",
    ])
}

/// Where it is then.
pub(crate) fn module() -> PathBuf {
    let root = root();
    let root = root.canonicalize().unwrap_or(root);
    root.join("target/kryoptic/release/libkryoptic_pkcs11.so")
}

/// Whether it can be loaded, as a program that is not ours sees it.
pub(crate) fn loads() -> Result<(), String> {
    let output = Command::new("pkcs11-tool")
        .arg("--module")
        .arg(module())
        .arg("--show-info")
        // No tokens.
        .env("KRYOPTIC_CONF", "/dev/null")
        .output()
        .map_err(|error| format!("cannot start pkcs11-tool: {error}"))?;
    // Without a token it does not succeed, but it says whose module it is.
    if String::from_utf8_lossy(&output.stdout).contains("Kryoptic") {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}
