//! The device whose keys live here: a token, on which there is something else.

use std::path::{Path, PathBuf};
use std::process::Command;

use mlskeyd::config::{Config, DeviceKind};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{SoftHsm, Stage};
use rusqlite::{Connection, OpenFlags};

/// A token of SoftHSM with somebody else's objects.
pub struct Device {
    softhsm: SoftHsm,
    foreign: Vec<(PathBuf, Vec<u8>)>,
    stage: Stage,
}

impl Device {
    pub fn new() -> Self {
        let stage = Stage::new(programs!());
        let softhsm = SoftHsm::new(&stage);
        softhsm.add_token("mlskeyd");
        let data = stage.path("data");
        std::fs::write(&data, "somebody's").unwrap();
        let data = data.to_str().unwrap();
        for arguments in [
            &["--keypairgen", "--key-type", "EC:edwards25519"][..],
            &["--keypairgen", "--key-type", "EC:prime256v1"],
            &["--write-object", data, "--type", "data"],
        ] {
            tool(&softhsm, arguments);
        }
        let foreign = softhsm.files();
        assert_eq!(foreign.len(), 5);
        Self {
            softhsm,
            foreign,
            stage,
        }
    }

    /// Puts the token in the place of the only device.
    pub fn configure(&self, config: &mut Config) {
        let token = Box::new(self.softhsm.device_config("mlskeyd"));
        config.pkcs11_helper = Some(self.stage.programs().pkcs11.clone());
        for device in &mut config.devices {
            device.kind = DeviceKind::Pkcs11(token.clone());
        }
    }

    /// On the token are what was there before, unchanged, and what the living
    /// keys need: one object each (SoftHSM does not wrap keys of Curve25519), and
    /// one for each of their generations. Nothing else.
    pub fn check(&self, state: &Path, living_keys: usize) {
        let registry = state.join("registry.db");
        let registry =
            Connection::open_with_flags(registry, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let generations: usize = registry
            .query_row(
                "SELECT count(*) FROM generations WHERE state != 4",
                [],
                |row| row.get(0),
            )
            .unwrap();
        let now = self.softhsm.files();
        for file in &self.foreign {
            assert!(now.contains(file), "{:?} was touched", file.0);
        }
        assert_eq!(
            now.len(),
            self.foreign.len() + generations + living_keys,
            "{generations} generations and {living_keys} keys"
        );
    }
}

/// Somebody else's program.
fn tool(softhsm: &SoftHsm, arguments: &[&str]) {
    let output = Command::new("pkcs11-tool")
        .arg("--module")
        .arg(SoftHsm::module())
        .args(["--token-label", "mlskeyd", "--login", "--pin"])
        .arg(SoftHsm::PIN)
        .args(["--label", "somebody's", "--id", "73"])
        .args(arguments)
        .envs(softhsm.environment())
        .output()
        .expect("pkcs11-tool (package opensc) starts");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}
