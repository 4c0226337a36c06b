//! SoftHSM behind a module that fails when it is told to.

use std::path::{Path, PathBuf};

use mlskeyd::config::Pkcs11Config;
use mlskeyd_faulty_module::{Control, library};

use super::{SoftHsm, Stage};

/// A SoftHSM of its own, and the module before it.
#[derive(Debug)]
pub struct FaultyHsm {
    softhsm: SoftHsm,
    control: Control,
    module: PathBuf,
}

impl FaultyHsm {
    /// Makes a SoftHSM without tokens, and a module that is well.
    pub fn new(stage: &Stage) -> Self {
        Self {
            softhsm: SoftHsm::new(stage),
            control: Control::create(&stage.path("faults")).expect("a new file"),
            module: library().expect("cargo built it"),
        }
    }

    /// What is behind the module, where tokens are made and objects counted.
    pub const fn softhsm(&self) -> &SoftHsm {
        &self.softhsm
    }

    /// What goes wrong.
    pub const fn control(&self) -> &Control {
        &self.control
    }

    /// A device of this name for the daemon's configuration: the token with this
    /// label.
    pub fn device(&self, name: &str, label: &str) -> String {
        let environment = self.environment();
        self.softhsm
            .device_of(name, label, &self.module, &environment)
    }

    /// The same, checked.
    pub fn device_config(&self, label: &str) -> Pkcs11Config {
        Pkcs11Config {
            module: self.module.clone(),
            environment: self.environment().into_iter().collect(),
            ..self.softhsm.device_config(label)
        }
    }

    /// The shared library.
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// What the module, and the one behind it, read from their environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut environment = self.softhsm.environment();
        for (name, path) in [
            ("FAULTY_MODULE", SoftHsm::module()),
            ("FAULTY_CONTROL", self.control.path()),
        ] {
            environment.push((name.to_owned(), path.display().to_string()));
        }
        environment
    }
}
