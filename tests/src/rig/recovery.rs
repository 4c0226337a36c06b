//! A recovery key, as its holder makes and uses it with OpenSSL.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use mlskeyd::config::{MeasuredConfig, Pcrs};

use super::Stage;

/// A key pair in files of the stage.
#[derive(Debug)]
pub struct Recovery {
    private: PathBuf,
    public: PathBuf,
}

impl Recovery {
    /// Makes one of this name.
    ///
    /// # Panics
    /// If OpenSSL is not installed, or fails.
    pub fn new(stage: &Stage, name: &str) -> Self {
        let pair = Self {
            private: stage.path(format!("{name}-private.pem")),
            public: stage.path(format!("{name}.pem")),
        };
        let new = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
        run(openssl("genpkey").args(new).arg("-out").arg(&pair.private));
        let mut public = openssl("pkey");
        public.arg("-in").arg(&pair.private).arg("-pubout");
        run(public.arg("-out").arg(&pair.public));
        let mode = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(&pair.public, mode).expect("the public key's permissions");
        pair
    }

    /// The public half.
    pub fn public(&self) -> &Path {
        &self.public
    }

    /// Signs what is in a file: where the signature is.
    ///
    /// # Panics
    /// If OpenSSL fails.
    pub fn sign(&self, request: &Path) -> PathBuf {
        let signature = request.with_extension("signature");
        let mut command = openssl("dgst");
        command.args(["-sha256", "-sign"]).arg(&self.private);
        run(command.arg("-out").arg(&signature).arg(request));
        signature
    }

    /// New keys are bound to these registers.
    pub fn binding(&self, pcrs: &[u8]) -> MeasuredConfig {
        MeasuredConfig {
            pcrs: Pcrs::parse(pcrs).expect("registers"),
            recovery_key: self.public.clone(),
        }
    }

    /// The same, for the section of a device in the daemon's configuration.
    pub fn device(&self, pcrs: &[u8]) -> String {
        format!("pcrs = {pcrs:?}\nrecovery_key = {:?}\n", self.public)
    }
}

fn openssl(command: &str) -> Command {
    let mut openssl = Command::new("openssl");
    openssl.arg(command);
    openssl
}

fn run(command: &mut Command) {
    let output = command.output().expect("openssl starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
}
