//! A key of OpenSSH's, made and used by `ssh-keygen`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The key, in a file of its own.
#[derive(Debug)]
pub struct SshKey(PathBuf);

impl SshKey {
    /// Makes one of this kind (`ed25519`, `ecdsa`) in a directory.
    ///
    /// # Panics
    /// If `ssh-keygen` cannot.
    pub fn new(directory: &Path, name: &str, kind: &str) -> Self {
        let key = Self(directory.join(name));
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", kind, "-N", "", "-C"]);
        command.arg(format!("{name}@bank")).arg("-f").arg(&key.0);
        let made = command.status().expect("ssh-keygen starts");
        assert!(made.success(), "no key of kind {kind}");
        key
    }

    /// The public key, as the configuration takes it.
    ///
    /// # Panics
    /// If it is not there.
    pub fn public(&self) -> String {
        let line = fs::read_to_string(self.0.with_extension("pub"));
        line.expect("a public key").trim().to_owned()
    }

    /// Signs a file, for this purpose: the signature is beside it, in the place of one that
    /// was there.
    ///
    /// # Panics
    /// If `ssh-keygen` cannot.
    pub fn sign(&self, namespace: &str, file: &Path) {
        let signature = PathBuf::from(format!("{}.sig", file.display()));
        let _ = fs::remove_file(signature);
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-Y", "sign", "-n", namespace, "-f"]);
        let output = command.arg(&self.0).arg(file).output();
        let output = output.expect("ssh-keygen starts");
        assert!(output.status.success(), "{output:?}");
    }
}
