//! SoftHSM: a PKCS#11 module whose tokens are files.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Stage;

/// Where distributions install the module.
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib/pkcs11/libsofthsm2.so",
];

/// A SoftHSM of its own, with its tokens in the test's directory.
#[derive(Debug)]
pub struct SoftHsm {
    config: PathBuf,
}

impl SoftHsm {
    /// The user PIN of all tokens.
    pub const PIN: &'static str = "271828";

    /// Makes a SoftHSM without tokens.
    pub fn new(stage: &Stage) -> Self {
        let tokens = stage.path("softhsm");
        std::fs::create_dir(&tokens).expect("the tokens' directory");
        let config = stage.path("softhsm2.conf");
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        std::fs::write(&config, text).expect("the configuration is written");
        Self { config }
    }

    /// Initialises a token with this label.
    pub fn add_token(&self, label: &str) {
        let output = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label])
            .args(["--pin", Self::PIN, "--so-pin", "31415926"])
            .env("SOFTHSM2_CONF", &self.config)
            .output()
            .expect("softhsm2-util (package softhsm2) starts");
        assert!(output.status.success(), "{output:?}");
    }

    /// The shared library.
    pub fn module() -> &'static Path {
        let found = MODULES.iter().map(Path::new).find(|path| path.exists());
        found.expect("SoftHSM (package softhsm2) is installed")
    }

    /// What the module reads from its environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        let config = self.config.display().to_string();
        vec![("SOFTHSM2_CONF".to_owned(), config)]
    }
}
