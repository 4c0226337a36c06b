//! A card that is ready, and devices on it.

use std::path::{Path, PathBuf};
use std::process::Command;

use mlskeyd::config::{Config, DeviceKind, YubiKeyConfig};
use mlskeyd::devices::yubikey::YubiKeyDevice;
use mlskeyd::devices::{Device as _, DeviceState, Start};
use mlskeyd::store_key::StoreKey;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{PIN, Stage, YubiKeys};
use secrecy::SecretBox;

/// A firmware without Curve25519.
pub(crate) const OLD: [u8; 3] = [5, 4, 3];
/// One that has it, and deletes keys.
pub(crate) const NEW: [u8; 3] = [5, 7, 1];

/// Says a test that it is the one inside.
const INSIDE: &str = "MLSKEYD_TEST_STAGE";

/// A stage with a card in reader 0 that was made ready, and its PIN in a file.
pub(crate) struct Bench {
    pub(crate) cards: YubiKeys,
    pub(crate) card: usize,
    pub(crate) stage: Stage,
}

impl Bench {
    /// `more`: what `mlskeyctl provision yubikey` is told.
    pub(crate) fn new(version: [u8; 3], more: &[&str]) -> Self {
        let stage = Stage::new(programs!());
        let mut cards = YubiKeys::new(&stage);
        let card = cards.make(1234, version);
        cards.insert(card, 0);
        cards.provision(more).unwrap();
        let pin = stage.path("pin");
        std::fs::write(&pin, PIN).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&pin, mode).unwrap();
        Self { cards, card, stage }
    }

    /// A test of this program, as one that finds this pcscd.
    pub(crate) fn inside(&self, test: &str) -> Command {
        let own = std::env::current_exe().unwrap();
        let mut command = self.cards.client(own);
        command.args([test, "--exact", "--nocapture", "--include-ignored"]);
        command.env(INSIDE, self.stage.path(""));
        command
    }

    /// Settings of a device that has the PIN.
    pub(crate) fn with_pin(&self, more: &str) -> String {
        format!("pin_file = {:?}\n{more}", self.stage.path("pin"))
    }

    /// Runs this very test once more, as one that finds this pcscd: a client looks in
    /// its environment for it.
    pub(crate) fn play_inside(&self, test: &str) {
        let output = self.inside(test).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let ran = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && ran.contains("1 passed"),
            "{ran}\n{said}"
        );
    }
}

/// The stage of the test that runs this one.
pub(crate) fn inside() -> Option<PathBuf> {
    std::env::var_os(INSIDE).map(PathBuf::from)
}

/// A device on the card that is there, ready for use. Opened again it has the same keys.
pub(crate) fn open(stage: &Path, settings: &str, start: Start) -> YubiKeyDevice {
    let text = format!(
        "state_dir = \"/s\"\n{}",
        YubiKeys::device("yubikey", settings)
    );
    let config = Config::parse(Path::new("test.toml"), &text).unwrap();
    let DeviceKind::YubiKey(config) = config.devices[0].kind.clone() else {
        panic!("another kind")
    };
    let device = closed(stage, &config, start);
    assert_eq!(
        device.info().state,
        DeviceState::Ready,
        "{}",
        device.info().reason
    );
    device
}

fn closed(stage: &Path, config: &YubiKeyConfig, start: Start) -> YubiKeyDevice {
    let store_key = StoreKey::new(SecretBox::new(Box::new([1; 32])));
    let directory = stage.join("device");
    let mut device = YubiKeyDevice::new("yubikey", config, &directory, &store_key, start).unwrap();
    device.probe();
    device
}
