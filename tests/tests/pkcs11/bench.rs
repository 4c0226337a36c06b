//! A token as a device, without a daemon.

use std::path::PathBuf;

use mlskeyd::config::Pkcs11Config;
use mlskeyd::devices::pkcs11::{HelperConfig, Pkcs11Device};
use mlskeyd::devices::{Device, Start};
use mlskeyd::store_key::StoreKey;
use mlskeyd_tests::rig::{Library, Stage};
use secrecy::SecretBox;

/// A token, and what the device needs for it.
pub struct Bench {
    pub token: Pkcs11Config,
    helper: HelperConfig,
    directory: PathBuf,
}

impl Bench {
    /// For the token with this label.
    pub fn new(stage: &Stage, library: &Library, label: &str) -> Self {
        Self {
            token: library.device_config(label),
            helper: HelperConfig {
                program: stage.programs().pkcs11.clone(),
                module: library.module().to_owned(),
                environment: library.environment(),
            },
            directory: stage.path("hsm"),
        }
    }

    /// The device, as after a restart of the daemon: with a helper of its own,
    /// and looked at for the first time.
    pub fn open(&self) -> Box<dyn Device> {
        let store_key = StoreKey::new(SecretBox::new(Box::new([7; 32])));
        let helper = self.helper.clone();
        let device = Pkcs11Device::new(
            "hsm",
            &self.token,
            helper,
            &self.directory,
            &store_key,
            Start::CreateIfAbsent,
        );
        let mut device = device.unwrap();
        device.probe();
        Box::new(device)
    }
}
