//! A daemon with a token, and apps with keys on it.

use std::path::Path;

use mlskeyd::audit::{AuditOutcome, Entries, FILE_NAME, Record};
use mlskeyd_protocol::v1::{Interaction, Tier};
use mlskeyd_provider::{CustodyIdentity, CustodyProvider};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, SoftHsm, Stage, with_input};
use openmls::prelude::*;
use openmls_memory_storage::MemoryStorage;
use rustix::process::Pid;

pub const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;

/// A daemon with a software device and a token.
pub struct Scene {
    pub daemon: Daemon,
    pub softhsm: SoftHsm,
    pub options: Options,
    _stage: Stage,
}

impl Scene {
    pub fn new(tokens: &[&str], more: &str) -> Self {
        let stage = Stage::new(programs!());
        let softhsm = SoftHsm::new(&stage);
        tokens.iter().for_each(|label| softhsm.add_token(label));
        let extra = softhsm.device("hsm", "mlskeyd") + more;
        Self::with(stage, softhsm, extra)
    }

    /// With these devices in the configuration.
    pub fn with(stage: Stage, softhsm: SoftHsm, extra: String) -> Self {
        let options = Options {
            extra,
            ..Options::default()
        };
        Self {
            daemon: Daemon::start(&stage, &options),
            softhsm,
            options,
            _stage: stage,
        }
    }

    /// The state of the token, once it was looked at, and why it is in it.
    pub fn state(&self) -> (String, String) {
        loop {
            let (state, detail) = self.state_now();
            if !detail.contains("not been looked at yet") {
                return (state, detail);
            }
            std::thread::yield_now();
        }
    }

    fn state_now(&self) -> (String, String) {
        let hsm = self.hsm();
        let text = |field: &str| hsm[field].as_str().unwrap_or_default().to_owned();
        (text("state"), text("detail"))
    }

    /// The token, as `mlskeyctl devices` shows it.
    pub fn hsm(&self) -> serde_json::Value {
        let devices = self.daemon.ctl(&["devices"]).unwrap();
        let mut devices = devices.as_array().unwrap().iter();
        let hsm = devices.find(|device| device["name"] == "hsm");
        hsm.unwrap().clone()
    }

    /// Asks until the token is in this state: nobody else says when.
    pub fn await_state(&self, wanted: &str) {
        while self.state().0 != wanted {
            std::thread::yield_now();
        }
    }

    /// The one helper that runs.
    pub fn helper(&self) -> Pid {
        loop {
            if let [helper] = self.daemon.children().as_slice() {
                return *helper;
            }
            std::thread::yield_now();
        }
    }

    /// `mlskeyctl unlock` with this PIN; or why not.
    pub fn unlock(&self, pin: &str, more: &[&str]) -> Result<(), String> {
        let arguments = [&["unlock", "hsm"], more].concat();
        let output = with_input(self.daemon.ctl_command(&arguments), pin);
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The records of an action, by what is noted in them.
    pub fn notes(&self, action: &str) -> Vec<String> {
        let log = self.daemon.state().join(FILE_NAME);
        let records = Entries::open(&log).unwrap().map(|it| it.unwrap().record);
        let of_it = records.filter(|record| record.action == action);
        let note = |record: Record| match record.outcome {
            AuditOutcome::Noted { note } => note.into_owned(),
            other => format!("{other:?}"),
        };
        of_it.map(note).collect()
    }

    pub fn app(&self, name: &str, device: &str) -> App {
        App::new(&self.daemon.socket(), name, device)
    }
}

/// The configuration of a device without its PIN.
pub fn without_pin(device: &str) -> String {
    let lines = device.lines().filter(|line| !line.starts_with("pin_file"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// An app that makes KeyPackages: two HPKE keys and two signatures each.
pub struct App {
    pub provider: CustodyProvider<MemoryStorage>,
    pub identity: CustodyIdentity,
    pub suite: Ciphersuite,
}

impl App {
    pub fn new(socket: &Path, name: &str, device: &str) -> Self {
        Self::with(socket, name, device, SUITE, None).unwrap()
    }

    /// With keys of this suite, in this tier if one is named; or why not.
    pub fn with(
        socket: &Path,
        name: &str,
        device: &str,
        suite: Ciphersuite,
        tier: Option<Tier>,
    ) -> Result<Self, String> {
        let mut builder = CustodyProvider::builder()
            .socket(socket)
            .storage(name, MemoryStorage::default())
            .device(device)
            // Nobody comes to unlock it.
            .interaction(Interaction::UpTo(100));
        if let Some(tier) = tier {
            builder = builder.tier(tier);
        }
        let provider = builder.build().unwrap();
        let credential = BasicCredential::new(name.as_bytes().to_vec()).into();
        let scheme = suite.signature_algorithm();
        let identity = provider.create_identity(name, &credential, scheme);
        let identity = identity.map_err(|error| error.to_string())?;
        Ok(Self {
            provider,
            identity,
            suite,
        })
    }

    /// Makes a KeyPackage that others accept; or the reason why not.
    pub fn key_package(&self) -> Result<(), String> {
        let with_key = self.identity.credential_with_key().unwrap();
        let signer = self.identity.signer();
        let built = KeyPackage::builder().build(self.suite, &self.provider, &signer, with_key);
        match built {
            Ok(bundle) => {
                let package = KeyPackageIn::from(bundle.key_package().clone());
                package
                    .validate(self.provider.crypto(), ProtocolVersion::Mls10)
                    .unwrap();
                Ok(())
            }
            Err(_) => {
                let failure = self.provider.last_failure();
                Err(failure.expect("there is a reason").to_string())
            }
        }
    }
}
