//! SoftHSM behind a module that fails when it is told to.

use mlskeyd::config::Pkcs11Config;
use mlskeyd_faulty_module::{Control, Function, library};

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

    /// How often keys were made, used or looked for, so far. That the daemon asks whether the
    /// token is there is no such call.
    pub fn key_calls(&self) -> u64 {
        const KEYS: [Function; 17] = [
            Function::CreateObject,
            Function::DestroyObject,
            Function::GetAttributeValue,
            Function::FindObjectsInit,
            Function::FindObjects,
            Function::FindObjectsFinal,
            Function::EncryptInit,
            Function::Encrypt,
            Function::DecryptInit,
            Function::Decrypt,
            Function::SignInit,
            Function::Sign,
            Function::GenerateKey,
            Function::GenerateKeyPair,
            Function::WrapKey,
            Function::UnwrapKey,
            Function::DeriveKey,
        ];
        KEYS.map(|function| self.control.calls(function))
            .iter()
            .sum()
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
