//! A daemon with a YubiKey.

use mlskeyd_protocol::client::{CallError, Client};
use mlskeyd_protocol::v1::{CreateIdentity, Credential, Failure, Placement, SignatureScheme};
use mlskeyd_tests::member::client;
use mlskeyd_tests::rig::{Daemon, Options, with_input};
use serde_json::Value;

use super::bench::Bench;

/// A daemon with the software device, and one that a YubiKey is.
pub(crate) struct Scene {
    pub(crate) daemon: Daemon,
    pub(crate) options: Options,
    pub(crate) bench: Bench,
}

impl Scene {
    /// Settings of the device as the configuration has them.
    pub(crate) fn new(bench: Bench, settings: &str) -> Self {
        let options = Options {
            extra: mlskeyd_tests::rig::YubiKeys::device("yubikey", settings),
            pcscd: Some(bench.cards.socket().to_owned()),
            ..Options::default()
        };
        let daemon = Daemon::start(&bench.stage, &options);
        Self {
            daemon,
            options,
            bench,
        }
    }

    pub(crate) fn client(&self) -> Client {
        client(&self.daemon.socket())
    }

    /// The device as `mlskeyctl devices` shows it.
    pub(crate) fn shown(&self) -> Value {
        let devices = self.daemon.ctl(&["devices"]).unwrap();
        let mut devices = devices.as_array().unwrap().iter();
        let found = devices.find(|device| device["name"] == "yubikey");
        found.unwrap().clone()
    }

    /// Its state, and what is said of that.
    pub(crate) fn state(&self) -> (String, String) {
        let shown = self.shown();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&shown["state"]), text(&shown["detail"]))
    }

    /// Waits until it is in this state: what is said of it.
    pub(crate) fn await_state(&self, wanted: &str) -> String {
        loop {
            let (state, detail) = self.state();
            if state == wanted {
                return detail;
            }
            std::thread::yield_now();
        }
    }

    /// Gives the PIN, as `mlskeyctl unlock` does.
    pub(crate) fn unlock(&self, pin: &str, more: &[&str]) -> Result<Value, String> {
        let arguments = [&["unlock", "yubikey"], more].concat();
        let output = with_input(self.daemon.ctl_command(&arguments), pin);
        if output.status.success() {
            return Ok(serde_json::from_slice(&output.stdout).unwrap());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Adopts the key in a slot for an identity.
    pub(crate) fn adopt(&self, name: &str, slot: &str, scheme: &str) -> Result<Value, String> {
        let owner = format!("{}/default", rustix::process::geteuid().as_raw());
        let to = ["--device", "yubikey", "--label", slot, "--scheme", scheme];
        self.daemon
            .ctl(&[&["identities", "adopt", &owner, name], &to[..]].concat())
    }
}

/// An identity with a key of P-256 on the YubiKey.
pub(crate) fn create(name: &str) -> CreateIdentity {
    CreateIdentity {
        name: name.to_owned(),
        credential: Credential::Basic(name.as_bytes().into()),
        scheme: SignatureScheme::EcdsaP256Sha256,
        placement: Placement {
            device: Some("yubikey".to_owned()),
            tier: None,
        },
    }
}

/// What the daemon said.
pub(crate) fn failure<T: std::fmt::Debug>(result: Result<T, CallError>) -> Failure {
    match result {
        Err(CallError::Failure(failure)) => failure,
        other => panic!("{other:?}"),
    }
}
