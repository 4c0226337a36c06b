//! A daemon, apps with databases, and what becomes of their keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mlskeyd::audit;
use mlskeyd_protocol::client::{AdminClient, Call, ClientConfig};
use mlskeyd_protocol::v1::{
    FailureCode, Handle, Interaction, KeyId, KeyInfo, KeyQuery, KeyState, Purpose, StorageInfo,
    Swept,
};
use mlskeyd_provider::testing::TestDaemon;
use mlskeyd_provider::{
    CustodyFailure, CustodyIdentity, CustodyProvider, CustodySigner, KeyCustody, ProviderError,
};
use openmls::prelude::*;
use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
use openmls_traits::random::OpenMlsRand;
use openmls_traits::storage::StorageProvider as _;
use openmls_traits::types::HpkeCiphertext;
use rusqlite::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tls_codec::{Deserialize as _, Serialize as _};

use crate::device::Device;

pub const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// The group of its own that every app has, and lives in to the end: its key is
/// the one that must never die.
pub const HOME: &[u8] = b"home";

/// One daemon with the default lifetimes.
pub struct Bench {
    pub daemon: TestDaemon,
    state: PathBuf,
    apps: TempDir,
    device: Device,
}

impl Drop for Bench {
    /// What is due is destroyed, and then the device has what living keys need.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        loop {
            let swept = self.sweep();
            if (swept.destroyed, swept.stuck) == (0, 0) {
                break;
            }
        }
        let living = self.living_keys();
        self.device.check(&self.state, living);
    }
}

impl Bench {
    pub fn new() -> Self {
        let mut state = PathBuf::new();
        let device = Device::new();
        let daemon = TestDaemon::start_with(|config| {
            state.clone_from(&config.state_dir);
            device.configure(config);
        });
        let daemon = daemon.unwrap();
        Self {
            device,
            daemon,
            state,
            apps: tempfile::tempdir().unwrap(),
        }
    }

    pub fn app(&self, name: &str) -> App {
        let path = self.apps.path().join(format!("{name}.sqlite"));
        let mut connection = Connection::open(&path).unwrap();
        SqliteStorageProvider::<Json, &mut Connection>::new(&mut connection)
            .run_migrations()
            .unwrap();
        let app = App::new(name, &path, self.daemon.socket());
        app.create(HOME);
        app
    }

    fn admin(&self) -> AdminClient {
        AdminClient::new(ClientConfig::new(self.daemon.socket(), "key_life"))
    }

    /// All keys, destroyed ones too.
    pub fn keys(&self) -> BTreeMap<KeyId, KeyInfo> {
        let query = KeyQuery {
            after: None,
            destroyed: true,
        };
        let keys = self.admin().keys(query, &Call::default()).unwrap();
        assert!(keys.len() < 1000, "more than one page");
        keys.into_iter()
            .map(|owned| (owned.key.id, owned.key))
            .collect()
    }

    pub fn state(&self, key: KeyId) -> KeyState {
        self.keys()[&key].state
    }

    /// The init and leaf keys that are not destroyed.
    pub fn alive(&self) -> Vec<KeyId> {
        self.keys()
            .into_values()
            .filter(|key| key.purpose != Purpose::Signature && key.state != KeyState::Destroyed)
            .map(|key| key.id)
            .collect()
    }

    fn living_keys(&self) -> usize {
        let keys = self.keys().into_values();
        keys.filter(|key| key.state != KeyState::Destroyed).count()
    }

    /// The one key that is there now and is not among those `before`.
    pub fn new_key(&self, before: &[KeyId]) -> KeyId {
        let mut new = self.alive();
        new.retain(|key| !before.contains(key));
        assert_eq!(new.len(), 1, "{new:?}");
        new[0]
    }

    /// What is due dies; no signature key is.
    pub fn sweep(&self) -> Swept {
        let swept = self.daemon.sweep().unwrap();
        for key in self.keys().into_values() {
            if key.purpose == Purpose::Signature {
                assert_eq!(key.state, KeyState::Active, "a signature key: {key:?}");
            }
        }
        swept
    }

    /// Days pass; the apps are started every day, and what is due dies. An app
    /// whose key for a group that it is in died is an error.
    pub fn days_pass(&self, apps: &mut [&mut App]) {
        // Of what is forgotten first the record dies, then its key.
        for _ in 0..4 {
            self.daemon.pass(DAY + HOUR);
            for app in &mut *apps {
                app.restart();
                app.visit();
            }
            self.sweep();
            for app in &*apps {
                app.assert_keys_in_use_live(self);
            }
        }
    }

    pub fn storages(&self) -> Vec<StorageInfo> {
        self.admin().storages(&Call::default()).unwrap()
    }

    /// Waits until no app is connected: the daemon learns it by and by.
    pub fn await_alone(&self) {
        let admin = self.admin();
        while admin.status(&Call::default()).unwrap().connections > 1 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the storage of this app is not connected any more.
    pub fn await_gone(&self, app: &str) {
        while self.storages().iter().any(|s| s.name == app && s.attached) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The keys of which the audit log says that a record names them and they
    /// are gone.
    pub fn lost_claims(&self) -> Vec<KeyId> {
        let log = audit::Entries::open(&self.state.join(audit::FILE_NAME)).unwrap();
        log.map(|entry| entry.unwrap().record)
            .filter(|record| record.action == "ClaimLost")
            .map(|record| record.key.unwrap())
            .collect()
    }
}

#[derive(Default)]
pub struct Json;

impl Codec for Json {
    type Error = serde_json::Error;

    fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, Self::Error> {
        serde_json::to_vec(value)
    }

    fn from_slice<T: DeserializeOwned>(slice: &[u8]) -> Result<T, Self::Error> {
        serde_json::from_slice(slice)
    }
}

pub type Provider = CustodyProvider<SqliteStorageProvider<Json, Rc<Connection>>>;

/// An app with a member's database.
pub struct App {
    pub name: String,
    pub path: PathBuf,
    socket: PathBuf,
    /// All that its providers met.
    failures: Arc<Mutex<Vec<CustodyFailure>>>,
    /// `None` while the app does not run.
    running: Option<Running>,
}

struct Running {
    provider: Provider,
    connection: Rc<Connection>,
    identity: CustodyIdentity,
}

impl App {
    fn new(name: &str, path: &Path, socket: &Path) -> Self {
        let mut app = Self {
            name: name.to_owned(),
            path: path.to_owned(),
            socket: socket.to_owned(),
            failures: Arc::default(),
            running: None,
        };
        app.restart();
        app
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    pub fn provider(&self) -> &Provider {
        &self.running().provider
    }

    pub fn sql(&self, statement: &str) {
        self.running().connection.execute_batch(statement).unwrap();
    }

    /// The app ends.
    pub fn end(&mut self) {
        self.running = None;
    }

    /// The app is started (again).
    pub fn restart(&mut self) {
        self.end();
        let connection = Rc::new(Connection::open(&self.path).unwrap());
        let failures = Arc::clone(&self.failures);
        let storage = SqliteStorageProvider::new(Rc::clone(&connection));
        let provider = CustodyProvider::builder()
            .socket(&self.socket)
            .storage(&self.name, storage)
            .require_custody(true)
            // A daemon that does not run is not waited for.
            .interaction(Interaction::Never)
            .on_refusal(move |failure| failures.lock().unwrap().push(failure.clone()))
            .build()
            .unwrap();
        let credential = BasicCredential::new(self.name.as_bytes().to_vec()).into();
        let identity = provider
            .create_identity(&self.name, &credential, SUITE.signature_algorithm())
            .unwrap();
        self.running = Some(Running {
            provider,
            connection,
            identity,
        });
    }

    /// What went wrong since this was last asked.
    pub fn take_failures(&self) -> Vec<CustodyFailure> {
        std::mem::take(&mut self.failures.lock().unwrap())
    }

    /// Loads its groups, and writes a record as any operation does.
    fn visit(&self) {
        let storage = self.provider().storage();
        let id = GroupId::from_slice(HOME);
        let state: MlsGroupState = storage.group_state(&id).unwrap().unwrap();
        storage.write_group_state(&id, &state).unwrap();
        assert_eq!(self.take_failures(), [], "{}", self.name);
    }

    /// The keys of all groups that the app is in are alive.
    fn assert_keys_in_use_live(&self, bench: &Bench) {
        for group in [HOME, b"group", b"other"] {
            let Some(group) = self.try_load(group) else {
                continue;
            };
            if group.is_active() {
                let key = self.leaf_key(&group);
                assert_eq!(bench.state(key), KeyState::Active, "of {}", self.name);
            }
        }
    }

    pub fn signer(&self) -> CustodySigner {
        self.running().identity.signer()
    }

    pub fn credential(&self) -> CredentialWithKey {
        self.running().identity.credential_with_key().unwrap()
    }

    pub fn create(&self, group: &[u8]) -> MlsGroup {
        MlsGroup::builder()
            .ciphersuite(SUITE)
            .with_group_id(GroupId::from_slice(group))
            .use_ratchet_tree_extension(true)
            .build(self.provider(), &self.signer(), self.credential())
            .unwrap()
    }

    fn try_load(&self, group: &[u8]) -> Option<MlsGroup> {
        MlsGroup::load(self.provider().storage(), &GroupId::from_slice(group)).unwrap()
    }

    pub fn load(&self, group: &[u8]) -> MlsGroup {
        self.try_load(group).unwrap()
    }

    /// The member's leaf key in custody.
    pub fn leaf_key(&self, group: &MlsGroup) -> KeyId {
        let status = self.provider().custody_status(group).unwrap().unwrap();
        let KeyCustody::InCustody(info) = status.leaf.encryption else {
            panic!("not in custody");
        };
        info.id
    }

    pub fn key_package(&self) -> Invitation {
        self.key_package_with(KeyPackage::builder())
    }

    pub fn last_resort_key_package(&self) -> Invitation {
        let capabilities =
            Capabilities::new(None, None, Some(&[ExtensionType::LastResort]), None, None);
        let builder = KeyPackage::builder()
            .mark_as_last_resort()
            .leaf_node_capabilities(capabilities);
        self.key_package_with(builder)
    }

    pub fn key_package_with(&self, builder: KeyPackageBuilder) -> Invitation {
        let bundle = builder
            .build(SUITE, self.provider(), &self.signer(), self.credential())
            .unwrap();
        let key = |private: &[u8]| Handle::from_bytes(private).unwrap().key();
        let init = key(bundle.init_private_key());
        let leaf = {
            let json = serde_json::to_value(&bundle).unwrap();
            let bytes = &json["private_encryption_key"]["key"]["vec"];
            let bytes: Vec<u8> = serde_json::from_value(bytes.clone())
                .unwrap_or_else(|_| panic!("where is the key? {}", json["private_encryption_key"]));
            key(&bytes)
        };
        Invitation { bundle, init, leaf }
    }

    /// Adds a member; answers the commit and the Welcome.
    pub fn add(&self, group: &mut MlsGroup, invitation: &Invitation) -> (MlsMessageOut, Welcome) {
        let package = invitation.bundle.key_package().clone();
        let (commit, welcome, _) = group
            .add_members(self.provider(), &self.signer(), &[package])
            .unwrap();
        group.merge_pending_commit(self.provider()).unwrap();
        let MlsMessageBodyOut::Welcome(welcome) = welcome.body().clone() else {
            panic!("no Welcome");
        };
        (commit, welcome)
    }

    pub fn stage(&self, welcome: &Welcome) -> Result<StagedWelcome, String> {
        let config = MlsGroupJoinConfig::builder()
            .use_ratchet_tree_extension(true)
            .build();
        StagedWelcome::new_from_welcome(self.provider(), &config, welcome.clone(), None)
            .map_err(|error| format!("{error:?}"))
    }

    pub fn join(&self, welcome: &Welcome) -> MlsGroup {
        let staged = self.stage(welcome).unwrap();
        staged.into_group(self.provider()).unwrap()
    }

    /// A commit with a new leaf key, pending.
    pub fn commit(&self, group: &mut MlsGroup) -> MlsMessageOut {
        group
            .self_update(
                self.provider(),
                &self.signer(),
                LeafNodeParameters::default(),
            )
            .unwrap()
            .into_commit()
    }

    /// A commit with a new leaf key, merged.
    pub fn update(&self, group: &mut MlsGroup) -> MlsMessageOut {
        let commit = self.commit(group);
        group.merge_pending_commit(self.provider()).unwrap();
        commit
    }

    pub fn propose_update(&self, group: &mut MlsGroup) -> MlsMessageOut {
        let parameters = LeafNodeParameters::default();
        let proposed = group.propose_self_update(self.provider(), &self.signer(), parameters);
        proposed.unwrap().0
    }

    /// Processes a handshake message.
    pub fn receive(&self, group: &mut MlsGroup, message: &MlsMessageOut) {
        self.try_receive(group, message).unwrap();
    }

    pub fn try_receive(&self, group: &mut MlsGroup, message: &MlsMessageOut) -> Result<(), String> {
        let provider = self.provider();
        let message = MlsMessageIn::from(message.clone());
        let processed = group
            .process_message(provider, message.try_into_protocol_message().unwrap())
            .map_err(|error| format!("{error:?}"))?;
        match processed.into_content() {
            ProcessedMessageContent::StagedCommitMessage(commit) => {
                group.merge_staged_commit(provider, *commit).unwrap();
            }
            ProcessedMessageContent::ProposalMessage(proposal) => {
                group
                    .store_pending_proposal(provider.storage(), *proposal)
                    .unwrap();
            }
            _ => panic!("not a handshake message"),
        }
        Ok(())
    }

    /// Is the KeyPackage still stored?
    pub fn has(&self, invitation: &Invitation) -> bool {
        let stored: Option<KeyPackageBundle> = self
            .provider()
            .storage()
            .key_package(&self.reference(invitation))
            .unwrap();
        stored.is_some()
    }

    pub fn reference(&self, invitation: &Invitation) -> KeyPackageRef {
        let package = invitation.bundle.key_package();
        package.hash_ref(self.provider().crypto()).unwrap()
    }

    /// A key that no record ever named.
    pub fn loose_key(&self) -> KeyId {
        loose_key(self.provider())
    }

    /// The key is destroyed: the administrator sees it, and so does who would
    /// open with it.
    pub fn assert_destroyed(&self, bench: &Bench, key: KeyId) {
        assert_eq!(bench.state(key), KeyState::Destroyed);
        self.opens_fail_as_destroyed(key);
    }

    fn opens_fail_as_destroyed(&self, key: KeyId) {
        let sealed = HpkeCiphertext {
            kem_output: vec![9; 32].into(),
            ciphertext: vec![0; 48].into(),
        };
        let handle = Handle::new(key).to_bytes();
        let crypto = self.provider().crypto();
        crypto
            .hpke_open(SUITE.hpke_config(), &sealed, &handle, b"", b"")
            .unwrap_err();
        let [failure] = <[_; 1]>::try_from(self.take_failures()).unwrap();
        assert_eq!(failure.key, Some(key));
        let ProviderError::Failure(failure) = failure.error else {
            panic!("{failure}");
        };
        assert_eq!(failure.code, FailureCode::Destroyed);
    }
}

/// A key of this provider that no record ever named.
pub fn loose_key<P>(provider: &P) -> KeyId
where
    P: openmls::storage::OpenMlsProvider,
{
    let random = provider.rand().random_vec(32).unwrap();
    let pair = provider
        .crypto()
        .derive_hpke_keypair(SUITE.hpke_config(), &random)
        .unwrap();
    Handle::from_bytes(&pair.private).unwrap().key()
}

/// A KeyPackage with its two keys in custody.
pub struct Invitation {
    pub bundle: KeyPackageBundle,
    pub init: KeyId,
    pub leaf: KeyId,
}

/// Alice and Bob, of one uid, each with a storage, in one group.
pub struct Pair {
    pub bench: Bench,
    pub alice: App,
    pub hers: MlsGroup,
    pub bob: App,
    pub his: MlsGroup,
}

impl Pair {
    pub fn new() -> Self {
        let bench = Bench::new();
        let (alice, bob) = (bench.app("alice"), bench.app("bob"));
        let mut hers = alice.create(b"group");
        let (_, welcome) = alice.add(&mut hers, &bob.key_package());
        let his = bob.join(&welcome);
        Self {
            bench,
            alice,
            hers,
            bob,
            his,
        }
    }

    /// Days pass for both.
    pub fn days_pass(&mut self) {
        self.bench.days_pass(&mut [&mut self.alice, &mut self.bob]);
    }

    /// A commit of each, with a new leaf key, that the other one opens.
    pub fn both_commit(&mut self) {
        let commit = self.alice.update(&mut self.hers);
        self.bob.receive(&mut self.his, &commit);
        let commit = self.bob.update(&mut self.his);
        self.alice.receive(&mut self.hers, &commit);
        assert_eq!(
            self.hers.epoch_authenticator().as_slice(),
            self.his.epoch_authenticator().as_slice()
        );
    }

    /// After all is said and done: one key for each place in a group.
    pub fn only_keys_in_use_are_left(&mut self) {
        self.both_commit();
        self.days_pass();
        let mut in_use = Vec::new();
        for app in [&self.alice, &self.bob] {
            for group in [HOME, b"group"] {
                in_use.push(app.leaf_key(&app.load(group)));
            }
        }
        in_use.sort();
        assert_eq!(self.bench.alive(), in_use);
    }
}

/// The Welcome, damaged on its way: its first encrypted group secrets.
pub fn damaged(welcome: &Welcome) -> Welcome {
    let mut bytes = welcome.tls_serialize_detached().unwrap();
    // Cipher suite, length of the list, reference and KEM output with their
    // lengths, length of the ciphertext.
    let ciphertext = 2 + 2 + 33 + 33 + 2;
    bytes[ciphertext + 4] ^= 1;
    Welcome::tls_deserialize_exact(&bytes).unwrap()
}
