//! A machine with a TPM and a daemon, and a verifier who trusts neither.

use std::path::{Path, PathBuf};
use std::process::Command;

use mlskeyd_protocol::client::{Call, Client, ClientConfig};
use mlskeyd_protocol::v1::{CreateIdentity, Credential, Placement, SignatureScheme};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Maker, Options, Stage, Swtpm};
use serde_json::Value;

pub const NONCE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// Exit codes of a verifier, as `mlskeyctl --help` has them.
pub const ACCEPTED: i32 = 0;
pub const REFUSED: i32 = 6;
pub const NOT_BOUND: i32 = 7;

/// A machine with a TPM, and a daemon with the identity `alice` on it.
pub struct Machine {
    pub daemon: Daemon,
    pub tpm: Swtpm,
    pub options: Options,
    pub stage: Stage,
}

impl Machine {
    /// With this TPM.
    pub fn new(stage: Stage, tpm: Swtpm) -> Self {
        let tcti = tpm.tcti();
        Self::over(stage, tpm, &tcti)
    }

    /// With this TPM, which is reached like this.
    pub fn over(stage: Stage, tpm: Swtpm, tcti: &str) -> Self {
        Self::configured(stage, tpm, Swtpm::device_at("tpm", tcti))
    }

    /// With this TPM, and this section of the configuration for it.
    pub fn configured(stage: Stage, tpm: Swtpm, device: String) -> Self {
        let options = Options {
            extra: device,
            ..Options::default()
        };
        let machine = Self {
            daemon: Daemon::start(&stage, &options),
            tpm,
            options,
            stage,
        };
        machine.add("alice", SignatureScheme::EcdsaP256Sha256);
        machine
    }

    /// An identity of this test's user, on the TPM.
    pub fn add(&self, name: &str, scheme: SignatureScheme) {
        let client = Client::new(ClientConfig::new(self.daemon.socket(), "test"));
        let request = CreateIdentity {
            name: name.to_owned(),
            credential: Credential::Basic(name.as_bytes().into()),
            scheme,
            placement: Placement {
                device: Some("tpm".to_owned()),
                tier: None,
            },
        };
        client.create_identity(request, &Call::default()).unwrap();
    }

    /// `mlskeyctl attest evidence`, in a file of this name; or why not.
    pub fn evidence(&self, name: &str, nonce: &str, file: &str) -> Result<PathBuf, String> {
        let owner = format!("{}/default", rustix::process::geteuid().as_raw());
        self.document(&["evidence", &owner, name, "--nonce", nonce], file)
    }

    /// `mlskeyctl attest activate`, in a file of this name; or why not.
    pub fn activate(&self, challenge: &Path, file: &str) -> Result<PathBuf, String> {
        self.document(&["activate", "tpm", challenge.to_str().unwrap()], file)
    }

    fn document(&self, arguments: &[&str], file: &str) -> Result<PathBuf, String> {
        let arguments = [&["attest"], arguments].concat();
        let output = self.daemon.ctl_command(&arguments).output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let path = self.stage.path(file);
        std::fs::write(&path, output.stdout).unwrap();
        Ok(path)
    }
}

/// Who wants to know, with the roots that it trusts, and no daemon.
pub struct Verifier<'a> {
    stage: &'a Stage,
    roots: PathBuf,
}

/// A challenge and its secret.
pub struct Asked {
    pub challenge: PathBuf,
    pub secret: PathBuf,
}

impl<'a> Verifier<'a> {
    pub const fn new(stage: &'a Stage, roots: PathBuf) -> Self {
        Self { stage, roots }
    }

    /// Makes a challenge for this evidence; or the reason why not.
    pub fn challenge(&self, evidence: &Path, name: &str) -> Result<Asked, String> {
        let asked = Asked {
            challenge: self.stage.path(format!("{name}.challenge")),
            secret: self.stage.path(format!("{name}.secret")),
        };
        let mut command = self.command("challenge", evidence);
        command.arg("--out-challenge").arg(&asked.challenge);
        command.arg("--out-secret").arg(&asked.secret);
        let (code, json) = judged(command);
        match code {
            0 => Ok(asked),
            REFUSED => Err(json["reason"].as_str().unwrap().to_owned()),
            other => panic!("exit code {other}: {json}"),
        }
    }

    /// Judges evidence: the exit code, and what is said.
    pub fn verify(&self, evidence: &Path, answer: Option<(&Asked, &Path)>) -> (i32, Value) {
        self.verify_for(NONCE, evidence, answer)
    }

    pub fn verify_for(
        &self,
        nonce: &str,
        evidence: &Path,
        answer: Option<(&Asked, &Path)>,
    ) -> (i32, Value) {
        let mut command = self.command("verify", evidence);
        command.args(["--nonce", nonce]);
        if let Some((asked, response)) = answer {
            command.arg("--secret").arg(&asked.secret);
            command.arg("--response").arg(response);
        }
        judged(command)
    }

    /// Why evidence is refused.
    pub fn refusal(&self, evidence: &Path, answer: Option<(&Asked, &Path)>) -> String {
        let (code, json) = self.verify(evidence, answer);
        assert_eq!(code, REFUSED, "{json}");
        assert_eq!(json["verdict"], "refused");
        assert!(json["claims"].is_null(), "nobody believes them: {json}");
        json["reason"].as_str().unwrap().to_owned()
    }

    fn command(&self, what: &str, evidence: &Path) -> Command {
        let mut command = Command::new(&self.stage.programs().ctl);
        command.args(["--json", "--socket", "/nonexistent", "attest", what]);
        command.arg(evidence).arg("--roots").arg(&self.roots);
        command
    }
}

fn judged(mut command: Command) -> (i32, Value) {
    let output = command.output().unwrap();
    let json = serde_json::from_slice(&output.stdout);
    let json = json.unwrap_or_else(|_| panic!("{command:?}: {output:?}"));
    (output.status.code().unwrap(), json)
}

pub fn stage() -> Stage {
    Stage::new(programs!())
}

/// A machine whose TPM is of a maker, and that maker.
pub fn made() -> (Machine, Maker) {
    let stage = stage();
    let maker = Maker::new(&stage, "maker");
    let tpm = Swtpm::made_by(&maker, &stage, "tpm");
    (Machine::new(stage, tpm), maker)
}
