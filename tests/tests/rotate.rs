//! An administrator gives an identity a new signature key while its app is in a
//! group: the app goes on with the old one, brings the group to the new one by a
//! commit that a stock member accepts, and the old one ends with its grace.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mlskeyd_protocol::client::{AdminClient, Call, CallError, ClientConfig};
use mlskeyd_protocol::v1::{Claim, Owner, Placement, Record, RotateIdentity, SecretBytes, Sign};
use mlskeyd_provider::testing::TestDaemon;
use mlskeyd_provider::{
    CustodyIdentity, CustodyProvider, CustodySigner, FailureCode, Migration, ProviderError,
    follow_rotation,
};
use mlskeyd_tests::forge::{self, Source};
use mlskeyd_tests::member::{Member, client};
use mlskeyd_tests::programs;
use mlskeyd_tests::suite::SUITE_2;
use openmls::prelude::*;
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

const DAY: Duration = Duration::from_secs(24 * 3600);
const SUITES: [Ciphersuite; 2] = [
    Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
    Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
];

/// Alice, with her keys in custody, and Bob, with stock OpenMLS, in one group.
struct Scene {
    suite: Ciphersuite,
    provider: CustodyProvider,
    hers: MlsGroup,
    bob: OpenMlsRustCrypto,
    bobs: SignatureKeyPair,
    his: MlsGroup,
    daemon: TestDaemon,
    state: PathBuf,
}

impl Scene {
    fn new(suite: Ciphersuite) -> Self {
        let mut state = PathBuf::new();
        let daemon = TestDaemon::start_with(|config| state.clone_from(&config.state_dir)).unwrap();
        let provider = CustodyProvider::builder()
            .socket(daemon.socket())
            .require_custody(true)
            .build()
            .unwrap();
        let alice = identity(&provider, suite);
        let mut hers = MlsGroup::builder()
            .ciphersuite(suite)
            .use_ratchet_tree_extension(true)
            .build(
                &provider,
                &alice.signer(),
                alice.credential_with_key().unwrap(),
            )
            .unwrap();

        let bob = OpenMlsRustCrypto::default();
        let bobs = SignatureKeyPair::new(suite.signature_algorithm()).unwrap();
        let credential = CredentialWithKey {
            credential: BasicCredential::new(b"bob".to_vec()).into(),
            signature_key: bobs.public().into(),
        };
        let package = KeyPackage::builder().build(suite, &bob, &bobs, credential);
        let package = package.unwrap().into_key_package();
        let (_, welcome, _) = hers
            .add_members(&provider, &alice.signer(), &[package])
            .unwrap();
        hers.merge_pending_commit(&provider).unwrap();
        let MlsMessageBodyOut::Welcome(welcome) = welcome.body().clone() else {
            panic!("no Welcome");
        };
        let config = MlsGroupJoinConfig::builder()
            .use_ratchet_tree_extension(true)
            .build();
        let staged = StagedWelcome::new_from_welcome(&bob, &config, welcome, None).unwrap();
        Self {
            suite,
            provider,
            hers,
            his: staged.into_group(&bob).unwrap(),
            bob,
            bobs,
            daemon,
            state,
        }
    }

    /// Runs `mlskeyctl --json`.
    fn ctl(&self, arguments: &[&str]) -> Value {
        let output = Command::new(programs!().ctl)
            .arg("--socket")
            .arg(self.daemon.socket())
            .arg("--json")
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn rotate(&self, more: &[&str]) -> Value {
        let owner = format!("{}/default", rustix::process::geteuid().as_raw());
        self.ctl(&[&["identities", "rotate", &owner, "alice"], more].concat())
    }

    fn pin(&self, credential: &str) {
        let owner = format!("{}/default", rustix::process::geteuid().as_raw());
        self.ctl(&["identities", "credential", &owner, "alice", credential]);
    }

    /// Alice says something, and Bob reads it.
    fn says(&mut self, signer: &CustodySigner) {
        let text = b"hello".as_slice();
        let message = self.hers.create_message(&self.provider, signer, text);
        let heard = receive(&self.bob, &mut self.his, &message.unwrap());
        assert_eq!(heard.as_deref(), Some(text));
    }

    /// Why Alice cannot say anything with this signer.
    fn why_silent(&mut self, signer: &CustodySigner) -> FailureCode {
        let refused = self.hers.create_message(&self.provider, signer, b"hello");
        refused.unwrap_err();
        match self.provider.last_failure().unwrap().error {
            ProviderError::Failure(failure) => failure.code,
            other => panic!("{other}"),
        }
    }

    /// Bob commits, and Alice follows.
    fn bob_commits(&mut self) {
        let parameters = LeafNodeParameters::default();
        let bundle = self.his.self_update(&self.bob, &self.bobs, parameters);
        self.his.merge_pending_commit(&self.bob).unwrap();
        receive(&self.provider, &mut self.hers, bundle.unwrap().commit());
        self.assert_same_epoch();
    }

    fn assert_same_epoch(&self) {
        assert_eq!(
            self.hers.epoch_authenticator().as_slice(),
            self.his.epoch_authenticator().as_slice()
        );
    }

    /// What Bob knows of Alice's signature key.
    fn known_to_bob(&self) -> String {
        let mut members = self.his.members();
        let alice = members.find(|member| member.index == self.hers.own_leaf_index());
        hex::encode(alice.unwrap().signature_key)
    }

    /// The credential that Bob knows Alice by.
    fn name_known_to_bob(&self) -> Vec<u8> {
        let mut members = self.his.members();
        let alice = members.find(|member| member.index == self.hers.own_leaf_index());
        alice.unwrap().credential.serialized_content().to_vec()
    }

    /// Alice's commits to the group's new key; answers whether there was one.
    fn moves(&mut self, alice: &CustodyIdentity) -> bool {
        match follow_rotation(&self.provider, &mut self.hers, alice).unwrap() {
            Migration::Commit(bundle) => {
                receive(&self.bob, &mut self.his, bundle.commit());
                self.hers.merge_pending_commit(&self.provider).unwrap();
                self.assert_same_epoch();
                true
            }
            Migration::Done => false,
            Migration::Pending => panic!("a commit is pending"),
        }
    }

    fn registry(&self) -> Connection {
        let path = self.state.join("registry.db");
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
    }

    /// The guard's marks: one for each identity and group.
    fn guard_marks(&self) -> BTreeSet<Vec<u8>> {
        let registry = self.registry();
        let mut marks = registry.prepare("SELECT id FROM guards").unwrap();
        let marks = marks.query_map([], |row| row.get(0)).unwrap();
        marks.map(Result::unwrap).collect()
    }

    /// Is the generation of this key destroyed?
    fn generation_is_destroyed(&self, key: &str) -> bool {
        let sql = "SELECT generations.state FROM generations JOIN keys
                   ON generations.id = keys.generation WHERE lower(hex(keys.id)) = ?1";
        let state: u8 = self
            .registry()
            .query_row(sql, [key], |row| row.get(0))
            .unwrap();
        state == 4
    }
}

/// As an app asks for it whenever it starts.
fn identity(provider: &CustodyProvider, suite: Ciphersuite) -> CustodyIdentity {
    let credential = BasicCredential::new(b"alice".to_vec()).into();
    provider
        .create_identity("alice", &credential, suite.signature_algorithm())
        .unwrap()
}

/// Does what a message says; answers the text, if it is one.
fn receive<P: openmls::storage::OpenMlsProvider>(
    provider: &P,
    group: &mut MlsGroup,
    message: &MlsMessageOut,
) -> Option<Vec<u8>> {
    let message = MlsMessageIn::from(message.clone());
    let message = message.try_into_protocol_message().unwrap();
    let processed = group.process_message(provider, message).unwrap();
    match processed.into_content() {
        ProcessedMessageContent::ApplicationMessage(text) => return Some(text.into_bytes()),
        ProcessedMessageContent::StagedCommitMessage(commit) => {
            group.merge_staged_commit(provider, *commit).unwrap();
        }
        _ => panic!("neither text nor commit"),
    }
    None
}

/// An administrator pins another credential: the app goes on, and brings it into its groups.
#[test]
fn an_app_keeps_its_group_through_a_new_credential() {
    for suite in SUITES {
        let mut scene = Scene::new(suite);
        let mut alice = identity(&scene.provider, suite);
        scene.pin("a.smith@bank.example");
        // Messages name no credential; a leaf with the old one is not signed any more.
        scene.says(&alice.signer());
        let parameters = LeafNodeParameters::default();
        let refused = scene
            .hers
            .self_update(&scene.provider, &alice.signer(), parameters);
        refused.unwrap_err();
        // The app is started again, and asks for its identity as it always did.
        let started_again = identity(&scene.provider, suite);
        assert_eq!(started_again.info().key, alice.info().key);

        assert!(alice.refresh().unwrap());
        assert!(!alice.refresh().unwrap());
        assert_eq!(scene.name_known_to_bob(), b"alice");
        assert!(scene.moves(&alice));
        assert_eq!(scene.name_known_to_bob(), b"a.smith@bank.example");
        assert!(!scene.moves(&alice));
        scene.says(&alice.signer());
        scene.bob_commits();
        // With both at once there is one move.
        scene.pin("alice@bank.example");
        scene.rotate(&[]);
        alice.refresh().unwrap();
        assert!(scene.moves(&alice));
        assert!(!scene.moves(&alice));
        scene.says(&alice.signer());
    }
}

#[test]
fn an_app_keeps_its_group_through_a_rotation() {
    for suite in SUITES {
        let mut scene = Scene::new(suite);
        let mut alice = identity(&scene.provider, suite);
        let old = alice.signer();
        let old_key = alice.info().key.to_string();
        scene.says(&old);
        let marks = scene.guard_marks();
        assert_eq!(marks.len(), 1);

        let rotated = scene.rotate(&[]);
        let new_public = rotated["public_key"].as_str().unwrap();
        assert_eq!(rotated["retiring"][0]["key"], old_key.as_str());
        // The app knows nothing of it, and goes on.
        scene.says(&alice.signer());
        scene.bob_commits();
        // It is started again, and signs in the group with the key that Bob knows.
        let started_again = identity(&scene.provider, suite);
        assert_ne!(started_again.info().key.to_string(), old_key);
        let signer = started_again.signer_for(&scene.hers).unwrap();
        scene.says(&signer);

        assert!(alice.refresh().unwrap());
        assert!(!alice.refresh().unwrap());
        assert_eq!(alice.retiring().len(), 1);
        assert_ne!(scene.known_to_bob(), new_public);
        assert!(scene.moves(&alice));
        assert_eq!(scene.known_to_bob(), new_public);
        assert!(!scene.moves(&alice));
        let signer = alice.signer_for(&scene.hers).unwrap();
        scene.says(&signer);
        scene.bob_commits();
        assert_eq!(scene.guard_marks(), marks);

        scene.daemon.pass(29 * DAY);
        scene.ctl(&["keys", "sweep"]);
        alice.refresh().unwrap();
        assert_eq!(alice.retiring().len(), 1);
        assert!(!scene.generation_is_destroyed(&old_key));
        scene.daemon.pass(DAY);
        scene.ctl(&["keys", "sweep"]);
        alice.refresh().unwrap();
        assert_eq!(alice.retiring(), []);
        assert!(scene.generation_is_destroyed(&old_key));
        assert_eq!(scene.why_silent(&old), FailureCode::Destroyed);
        scene.says(&alice.signer());
        scene.bob_commits();
        assert_eq!(scene.guard_marks(), marks);
        let listed = scene.ctl(&["identities"]);
        assert_eq!(listed[0]["retiring"], Value::Array(Vec::new()));
    }
}

#[test]
fn two_rotations_in_a_row_leave_every_group_a_way() {
    let mut scene = Scene::new(SUITES[0]);
    scene.rotate(&[]);
    scene.rotate(&["--grace", "12h"]);
    // The group knows the first of three keys.
    let alice = identity(&scene.provider, scene.suite);
    assert_eq!(alice.retiring().len(), 2);
    let signer = alice.signer_for(&scene.hers).unwrap();
    scene.says(&signer);
    assert!(scene.moves(&alice));
    scene.says(&alice.signer());
    scene.bob_commits();
}

#[test]
fn a_group_that_was_not_moved_in_time_says_so() {
    let mut scene = Scene::new(SUITES[0]);
    let old = identity(&scene.provider, scene.suite).signer();
    scene.rotate(&["--grace", "0s"]);
    scene.ctl(&["keys", "sweep"]);
    assert_eq!(scene.why_silent(&old), FailureCode::Destroyed);
    let alice = identity(&scene.provider, scene.suite);
    let refused = alice.signer_for(&scene.hers).unwrap_err();
    assert!(
        matches!(refused, ProviderError::NoKeyOfLeaf(_)),
        "{refused}"
    );
    assert!(refused.to_string().contains("external commit"), "{refused}");
}

#[test]
fn a_restart_of_the_daemon_changes_nothing_about_it() {
    let mut scene = Scene::new(SUITES[0]);
    let before = scene.rotate(&["--grace", "2d"]);
    scene.daemon.pass(DAY);
    scene.daemon.resume().unwrap();
    let after = scene.ctl(&["identities"])[0].clone();
    assert_eq!(after["key"], before["key"]);
    let ends = |identity: &Value| identity["retiring"][0]["ends"].as_u64().unwrap();
    // The date passed with the time.
    assert!(ends(&after).abs_diff(ends(&before)) < 60);
    let keys = scene.ctl(&["keys"]);
    let states = keys.as_array().unwrap().iter();
    let retiring = states.filter(|key| key["state"] == "retiring").count();
    assert_eq!(retiring, 1);
    assert!(Path::new(scene.daemon.socket()).exists());
}

#[test]
fn a_leaf_of_a_key_that_has_ended_goes_into_nothing() {
    let mut state = PathBuf::new();
    let daemon = TestDaemon::start_with(|config| state.clone_from(&config.state_dir)).unwrap();
    let client = client(daemon.socket());
    let member = Member::new(&client, "alice", "software");
    let key = member.generate(&client);
    let claim = Claim {
        storage: "alice".to_owned(),
        record: Record::GroupState {
            group: b"g".as_slice().into(),
        },
        keys: vec![key.key],
    };
    client.claim(claim, &Call::default()).unwrap();
    // Signed while its key was good.
    let leaf = member.leaf(&key.public_key, Source::Commit);
    let leaf = leaf.signed(&member.sign(&client, &leaf.tbs("g", 0)));
    let old = member.identity.key;
    let rotation = RotateIdentity {
        owner: Owner {
            uid: rustix::process::geteuid().as_raw(),
            app: "default".to_owned(),
        },
        name: "alice".to_owned(),
        placement: Placement::default(),
        grace: None,
        pin: None,
        drop_pin: false,
    };
    let admin = AdminClient::new(ClientConfig::new(daemon.socket(), "rotate"));
    let new = admin
        .rotate_identity(rotation, &Call::default())
        .unwrap()
        .key;
    let commit = |epoch: u64| {
        let body = forge::commit(&leaf);
        let member = forge::Sender::Member(0);
        forge::message(SUITE_2, "g", epoch, member, &body)
    };
    let sign = |key, content| {
        let content = SecretBytes::new(content);
        match client.sign(Sign { key, content }, &Call::default()) {
            Ok(_) => Ok(()),
            Err(CallError::Failure(failure)) => Err(failure.code),
            Err(other) => panic!("{other}"),
        }
    };
    for key in [old, new] {
        assert_eq!(sign(key, commit(1)), Ok(()));
    }

    // Its end is hidden from the sweep.
    let registry = Connection::open(state.join("registry.db")).unwrap();
    registry.execute("UPDATE keys SET ends = NULL", []).unwrap();
    daemon.pass(29 * DAY);
    assert_eq!(sign(new, commit(2)), Ok(()));
    daemon.pass(DAY);
    assert_eq!(daemon.sweep().unwrap().destroyed, 0);
    assert_eq!(sign(new, commit(3)), Err(FailureCode::Denied));
    assert_eq!(sign(old, commit(3)), Err(FailureCode::Destroyed));
}

/// Also at the moment when its old key has ended already.
#[test]
fn an_identity_is_found_while_it_gets_another_key() {
    let daemon = TestDaemon::start_with(|_| {}).unwrap();
    Member::new(&client(daemon.socket()), "alice", "software");
    let admin = AdminClient::new(ClientConfig::new(daemon.socket(), "rotate"));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looks = (0..4).map(|_| {
            scope.spawn(|| {
                let client = client(daemon.socket());
                while !over.load(Ordering::Relaxed) {
                    let identities = client.identities(&Call::default()).unwrap();
                    if identities.len() != 1 {
                        return Err("it is not listed".to_owned());
                    }
                    let ready = client.prepare("alice", &Call::default());
                    ready.map_err(|error| error.to_string())?;
                }
                Ok(())
            })
        });
        let looks: Vec<_> = looks.collect();
        let rotations = (0..100).map(|_| {
            let rotation = RotateIdentity {
                owner: Owner {
                    uid: rustix::process::geteuid().as_raw(),
                    app: "default".to_owned(),
                },
                name: "alice".to_owned(),
                placement: Placement::default(),
                grace: Some(0),
                pin: None,
                drop_pin: false,
            };
            admin.rotate_identity(rotation, &Call::default())
        });
        let rotated: Result<Vec<_>, _> = rotations.collect();
        over.store(true, Ordering::Relaxed);
        rotated.unwrap();
        for look in looks {
            assert_eq!(look.join().unwrap(), Ok(()));
        }
    });
}
