//! Rigs: a daemon, messengers and their delivery service, each a real process
//! in a private directory. All end with their values.

mod bus;
mod chat;
mod daemon;
mod faulty;
mod kryoptic;
mod library;
mod maker;
mod policies;
mod polkit;
mod process;
mod recovery;
mod rollout;
mod softhsm;
mod ssh_key;
mod swtpm;
mod tap;
mod tpm2_pkcs11;
mod yubikey;

pub use bus::Bus;
pub use chat::{Answer, Chat, Hub, Refused};
pub use daemon::{Daemon, Options};
pub use faulty::FaultyHsm;
pub use kryoptic::Kryoptic;
pub use library::Library;
pub use maker::Maker;
pub use policies::{section_without_rates, without_rates};
pub use polkit::Polkit;
pub use process::{Process, with_input};
pub use recovery::Recovery;
pub use rollout::Rollout;
pub use softhsm::{Shown, SoftHsm};
pub use ssh_key::SshKey;
pub use swtpm::Swtpm;
pub use tap::{Caught, Fault, Snare, Stop, Tap, code};
pub use tpm2_pkcs11::Tpm2Pkcs11;
pub use yubikey::{PIN, PUK, YubiKeys};

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Where the programs under test are. In an integration test of this package:
/// [`programs!`](crate::programs).
#[derive(Clone, Debug)]
pub struct Programs {
    /// `mlskeyd`, with failpoints.
    pub daemon: PathBuf,
    /// `mlskeyctl`.
    pub ctl: PathBuf,
    /// `mlskeyd-pkcs11`.
    pub pkcs11: PathBuf,
    /// The provider's example `chat`.
    pub chat: PathBuf,
    /// `virtual-yubikey`.
    pub yubikey: PathBuf,
}

/// The [`Programs`](crate::rig::Programs) that cargo built for this
/// integration test. (Only there does cargo say where they are.)
#[macro_export]
macro_rules! programs {
    () => {
        $crate::rig::Programs {
            daemon: env!("CARGO_BIN_EXE_test-daemon").into(),
            ctl: env!("CARGO_BIN_EXE_test-ctl").into(),
            pkcs11: env!("CARGO_BIN_EXE_test-pkcs11").into(),
            chat: env!("CARGO_BIN_EXE_test-chat").into(),
            yubikey: env!("CARGO_BIN_EXE_test-virtual-yubikey").into(),
        }
    };
}

/// Is it in a file of this directory, or below?
///
/// # Panics
/// If one cannot be read.
pub fn is_anywhere(directory: &Path, bytes: &[u8]) -> bool {
    let mut entries = std::fs::read_dir(directory).expect("a directory");
    entries.any(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            return is_anywhere(&path, bytes);
        }
        let content = std::fs::read(path).expect("a file");
        content.windows(bytes.len()).any(|window| window == bytes)
    })
}

/// A private directory for the processes of one test. It is removed with this
/// value: declare it before the processes.
#[derive(Debug)]
pub struct Stage {
    directory: TempDir,
    programs: Programs,
}

impl Stage {
    /// Makes the directory below the system's temporary directory.
    pub fn new(programs: Programs) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("mlskeyd-")
            .tempdir()
            .expect("a temporary directory");
        Self {
            directory,
            programs,
        }
    }

    /// A path in the directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The programs under test.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }
}
