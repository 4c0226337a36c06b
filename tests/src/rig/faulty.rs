//! SoftHSM behind a module that fails when it is told to.

use mlskeyd::config::Pkcs11Config;
use mlskeyd_faulty_module::{Control, library};

use super::{Library, SoftHsm, Stage};

/// A SoftHSM of its own, and the module before it.
#[derive(Debug)]
pub struct FaultyHsm {
    softhsm: SoftHsm,
    library: Library,
    control: Control,
}

impl FaultyHsm {
    /// Makes a SoftHSM without tokens, and a module that is well.
    pub fn new(stage: &Stage) -> Self {
        let softhsm = SoftHsm::new(stage);
        let control = Control::create(&stage.path("faults")).expect("a new file");
        let environment = [
            ("FAULTY_MODULE", SoftHsm::module().display().to_string()),
            ("FAULTY_CONTROL", control.path().display().to_string()),
        ];
        let module = library().expect("cargo built it");
        Self {
            library: softhsm.library().behind(module, &environment),
            softhsm,
            control,
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

    /// What reaches the tokens.
    pub const fn library(&self) -> &Library {
        &self.library
    }

    /// A device of this name for the daemon's configuration: the token with this
    /// label.
    pub fn device(&self, name: &str, label: &str) -> String {
        self.library.device(name, label)
    }

    /// The same, checked.
    pub fn device_config(&self, label: &str) -> Pkcs11Config {
        self.library.device_config(label)
    }
}
