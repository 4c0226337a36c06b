//! The real daemon on a thread of the test, and an app that speaks to it
//! directly.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mlskeyd::audit::{AuditOutcome, Entries, FILE_NAME, Record};
use mlskeyd::config::Config;
use mlskeyd::daemon::{Daemon, Running};
use mlskeyd_protocol::client::{AdminClient, Call, CallError, Client, ClientConfig};
use mlskeyd_protocol::v1::*;
use tempfile::TempDir;

use crate::forge::{self, Leaf, Source};
use crate::suite::{self, OwnKey, Suite, sealed};

/// A daemon, its directory and its configuration.
pub struct House {
    running: Option<Running>,
    dir: TempDir,
}

impl House {
    /// Starts a daemon whose configuration ends with `extra`.
    pub fn new(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users reach the socket, as they do in /run.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut house = Self { running: None, dir };
        house.start(extra);
        house
    }

    pub fn start(&mut self, extra: &str) {
        let config = Config::parse(Path::new("attacks.toml"), &self.configuration(extra));
        self.running = Some(Daemon::start(config.unwrap()).unwrap());
    }

    fn configuration(&self, extra: &str) -> String {
        let (state, socket) = (self.state(), self.socket());
        format!("state_dir = {state:?}\nsocket = {socket:?}\n{extra}")
    }

    /// Starts it as a process of its own, which dies at a failpoint before it serves.
    pub fn crash_at_start(&self, failpoint: &str) {
        let file = self.path().join("crash.toml");
        std::fs::write(&file, self.configuration("")).unwrap();
        let mut daemon = Command::new(mlskeyd_tests::programs!().daemon);
        daemon.arg("--config").arg(&file);
        daemon.env("MLSKEYD_FAILPOINT", failpoint);
        let died = daemon.status().unwrap();
        assert!(died.signal().is_some(), "{failpoint}: {died}");
    }

    pub fn stop(&mut self) {
        self.running = None;
    }

    /// Starts it again without its device, by which nothing can be signed or
    /// opened then.
    pub fn restart_without_device(&mut self) {
        self.stop();
        std::fs::rename(self.devices(), self.path().join("away")).unwrap();
        self.start("");
    }

    pub fn restart_with_device(&mut self) {
        self.stop();
        std::fs::rename(self.path().join("away"), self.devices()).unwrap();
        self.start("");
    }

    fn devices(&self) -> PathBuf {
        self.state().join("devices")
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn client(&self) -> Client {
        Client::new(ClientConfig::new(self.socket(), "attacks"))
    }

    pub fn admin(&self) -> AdminClient {
        AdminClient::new(ClientConfig::new(self.socket(), "attacks"))
    }

    /// Has the policies read again.
    pub fn reload(&self) {
        let call = Call::default();
        self.admin()
            .reload_policies(ReloadPolicies {}, &call)
            .unwrap();
    }

    /// All keys as the daemon knows them.
    pub fn keys(&self) -> Vec<OwnedKey> {
        let query = KeyQuery {
            after: None,
            destroyed: true,
        };
        self.admin().keys(query, &Call::default()).unwrap()
    }

    /// The records, of a log that is proven to be whole.
    pub fn records(&self) -> Vec<Record> {
        let entries = Entries::open(&self.state().join(FILE_NAME)).unwrap();
        entries.map(|entry| entry.unwrap().record).collect()
    }

    /// How many requests about this key, by this action, were refused for this
    /// reason.
    pub fn denials(&self, key: Option<KeyId>, action: &str, why: &str) -> u64 {
        let counted = |record: &Record| match &record.outcome {
            AuditOutcome::Denied { reason, .. }
                if record.key == key && record.action == action && reason.contains(why) =>
            {
                record.repeated.max(1)
            }
            _ => 0,
        };
        self.records().iter().map(counted).sum()
    }
}

/// An app with one identity, and all it takes to forge.
pub struct App {
    pub suite: Suite,
    pub client: Client,
    pub me: IdentityInfo,
    /// A signature key of its own.
    pub own: OwnKey,
    /// Where its keys in custody are.
    placement: Placement,
}

impl App {
    pub fn new(house: &House, suite: Suite, name: &str) -> Self {
        Self::at(house.client(), suite, name)
    }

    /// The same at the socket of any daemon.
    pub fn at(client: Client, suite: Suite, name: &str) -> Self {
        Self::placed(client, suite, name, Placement::default())
    }

    /// The same with all of its keys there.
    pub fn placed(client: Client, suite: Suite, name: &str, placement: Placement) -> Self {
        let request = CreateIdentity {
            name: name.to_owned(),
            credential: Credential::Basic(Bytes::from(name.as_bytes())),
            scheme: suite.scheme,
            placement: placement.clone(),
        };
        let me = client.create_identity(request, &Call::default()).unwrap();
        Self {
            suite,
            client,
            me,
            own: OwnKey::new(suite),
            placement,
        }
    }

    pub fn generate(&self) -> GeneratedHpke {
        self.generate_of(self.suite.kem)
    }

    pub fn generate_of(&self, kem: Kem) -> GeneratedHpke {
        self.try_generate_of(kem).unwrap()
    }

    pub fn try_generate(&self) -> Result<GeneratedHpke, Failure> {
        self.try_generate_of(self.suite.kem)
    }

    fn try_generate_of(&self, kem: Kem) -> Result<GeneratedHpke, Failure> {
        let request = GenerateHpke {
            kem,
            placement: self.placement.clone(),
        };
        let generated = self.client.generate_hpke(request, &Call::default());
        generated.map_err(failure)
    }

    /// An HPKE key pair of the app's own.
    pub fn own_hpke(&self, seed: u8) -> GeneratedHpke {
        suite::own_hpke(self.suite, seed)
    }

    pub fn sign(&self, content: &[u8]) -> Result<Vec<u8>, Failure> {
        self.sign_with(self.me.key, content)
    }

    pub fn sign_with(&self, key: KeyId, content: &[u8]) -> Result<Vec<u8>, Failure> {
        let request = Sign {
            key,
            content: SecretBytes::new(content.to_vec()),
        };
        let signed = self.client.sign(request, &Call::default());
        signed.map(|signature| signature.0).map_err(failure)
    }

    /// A leaf as an honest app makes it.
    pub fn leaf(&self, encryption_key: &GeneratedHpke, source: Source) -> Leaf {
        Leaf {
            encryption_key: encryption_key.public_key.0.clone(),
            signature_key: self.me.public_key.0.clone(),
            credential: forge::credential(&self.me.name),
            source,
            extensions: Vec::new(),
        }
    }

    /// The same, signed in custody.
    pub fn signed_leaf(
        &self,
        encryption_key: &GeneratedHpke,
        source: Source,
        group: &str,
        index: u32,
    ) -> Vec<u8> {
        let leaf = self.leaf(encryption_key, source);
        leaf.signed(&self.sign(&leaf.tbs(group, index)).unwrap())
    }

    /// A leaf with the app's own signature under whatever it says.
    pub fn self_signed(&self, leaf: &Leaf, group: &str, index: u32) -> Vec<u8> {
        leaf.signed(&self.own.sign(&leaf.tbs(group, index)))
    }

    /// Signs a KeyPackage as an honest app does; answers it without signature,
    /// and the signature.
    pub fn key_package(
        &self,
        init: &GeneratedHpke,
        leaf: &GeneratedHpke,
        source: Source,
        last_resort: bool,
    ) -> (Vec<u8>, Vec<u8>) {
        let leaf = self.signed_leaf(leaf, source, "", 0);
        let package = forge::key_package(self.suite, &init.public_key, &leaf, last_resort);
        let signature = self.sign(&forge::key_package_tbs(&package)).unwrap();
        (package, signature)
    }

    /// Opens what is sealed to `key` here.
    pub fn open(
        &self,
        key: &GeneratedHpke,
        info: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        self.open_with(sealed(self.suite, key, info, plaintext))
    }

    pub fn open_with(&self, request: Open) -> Result<Vec<u8>, Failure> {
        let opened = self.client.open(request, &Call::default());
        opened.map(SecretBytes::into_inner).map_err(failure)
    }
}

pub fn failure(error: CallError) -> Failure {
    match error {
        CallError::Failure(failure) => failure,
        other => panic!("the daemon did not answer: {other}"),
    }
}
