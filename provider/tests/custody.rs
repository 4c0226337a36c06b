//! A provider with a real daemon, on every cipher suite of custody.
#![cfg(feature = "testing")]
#![allow(clippy::panic, clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use mlskeyd_provider::testing::{DEVICE, TestDaemon};
use mlskeyd_provider::*;
use openmls::prelude::tls_codec::{Deserialize as _, Serialize as _};
use openmls::prelude::*;
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use openmls_rust_crypto::RustCrypto;
use openmls_traits::signatures::Signer;
use openmls_traits::storage::StorageProvider as _;

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;

/// One member with its keys in custody.
struct Member {
    provider: CustodyProvider,
    identity: CustodyIdentity,
    suite: Ciphersuite,
}

fn basic(name: &str) -> Credential {
    BasicCredential::new(name.as_bytes().to_vec()).into()
}

impl Member {
    fn new(daemon: &TestDaemon, name: &str, suite: Ciphersuite) -> Self {
        let provider = CustodyProvider::builder()
            .socket(daemon.socket())
            .require_custody(true)
            .build()
            .unwrap();
        let scheme = suite.signature_algorithm();
        let identity = provider
            .create_identity(name, &basic(name), scheme)
            .unwrap();
        Self {
            provider,
            identity,
            suite,
        }
    }

    fn key_package(&self) -> KeyPackageBundle {
        let with_key = self.identity.credential_with_key().unwrap();
        KeyPackage::builder()
            .build(
                self.suite,
                &self.provider,
                &self.identity.signer(),
                with_key,
            )
            .unwrap()
    }

    fn create(&self) -> MlsGroup {
        let with_key = self.identity.credential_with_key().unwrap();
        MlsGroup::builder()
            .ciphersuite(self.suite)
            .use_ratchet_tree_extension(true)
            .build(&self.provider, &self.identity.signer(), with_key)
            .unwrap()
    }

    fn add(&self, group: &mut MlsGroup, key_package: KeyPackage) -> MlsMessageIn {
        let bundle = commit(&self.provider, group, &self.identity.signer(), |builder| {
            builder.propose_adds([key_package])
        });
        group.merge_pending_commit(&self.provider).unwrap();
        over_the_wire(&bundle.to_welcome_msg().unwrap())
    }

    fn receive(&self, group: &mut MlsGroup, message: &MlsMessageOut) -> Option<Vec<u8>> {
        receive(&self.provider, group, message)
    }
}

/// Makes a commit.
fn commit<P: openmls::storage::OpenMlsProvider>(
    provider: &P,
    group: &mut MlsGroup,
    signer: &impl Signer,
    with: impl for<'g> FnOnce(CommitBuilder<'g, Initial>) -> CommitBuilder<'g, Initial>,
) -> CommitMessageBundle {
    with(group.commit_builder())
        .load_psks(provider.storage())
        .unwrap()
        .build(provider.rand(), provider.crypto(), signer, |_| true)
        .unwrap()
        .stage_commit(provider)
        .unwrap()
}

fn over_the_wire(message: &MlsMessageOut) -> MlsMessageIn {
    MlsMessageIn::tls_deserialize_exact(message.tls_serialize_detached().unwrap()).unwrap()
}

/// Does what a message says; answers the text, if it is one.
fn receive<P: openmls::storage::OpenMlsProvider>(
    provider: &P,
    group: &mut MlsGroup,
    message: &MlsMessageOut,
) -> Option<Vec<u8>> {
    let message = over_the_wire(message).try_into_protocol_message().unwrap();
    match group
        .process_message(provider, message)
        .unwrap()
        .into_content()
    {
        ProcessedMessageContent::ApplicationMessage(text) => return Some(text.into_bytes()),
        ProcessedMessageContent::ProposalMessage(proposal) => group
            .store_pending_proposal(provider.storage(), *proposal)
            .unwrap(),
        ProcessedMessageContent::StagedCommitMessage(commit) => {
            group.merge_staged_commit(provider, *commit).unwrap();
        }
        _ => panic!("an unknown kind of message"),
    }
    None
}

fn join<P: openmls::storage::OpenMlsProvider>(provider: &P, welcome: MlsMessageIn) -> MlsGroup {
    let MlsMessageBodyIn::Welcome(welcome) = welcome.extract() else {
        panic!("no Welcome");
    };
    let config = MlsGroupJoinConfig::builder()
        .use_ratchet_tree_extension(true)
        .build();
    StagedWelcome::new_from_welcome(provider, &config, welcome, None)
        .unwrap()
        .into_group(provider)
        .unwrap()
}

fn assert_same_secrets(one: &MlsGroup, other: &MlsGroup) {
    assert_eq!(
        one.epoch_authenticator().as_slice(),
        other.epoch_authenticator().as_slice()
    );
}

#[test]
fn two_members_talk_with_all_keys_in_custody() {
    let has_inner = |suite: &Ciphersuite| RustCrypto::default().supports(*suite).is_ok();
    for suite in CUSTODY_CIPHERSUITES.into_iter().filter(has_inner) {
        let daemon = TestDaemon::start().unwrap();
        let (alice, bob) = (
            Member::new(&daemon, "alice", suite),
            Member::new(&daemon, "bob", suite),
        );
        let key_package = bob.key_package();
        // The leaf's private key is OpenMLS's own secret: the storage, which
        // requires custody, has seen that it is a handle, too.
        assert!(Handle::from_bytes(key_package.init_private_key()).is_some());

        let mut hers = alice.create();
        let welcome = alice.add(&mut hers, key_package.into_key_package());
        let mut his = join(&bob.provider, welcome);
        assert_same_secrets(&hers, &his);

        let text = hers
            .create_message(&alice.provider, &alice.identity.signer(), b"hello")
            .unwrap();
        assert_eq!(bob.receive(&mut his, &text).unwrap(), b"hello");

        // A commit with a path, and an Update that the other commits.
        let bundle = commit(&bob.provider, &mut his, &bob.identity.signer(), |builder| {
            builder.force_self_update(true)
        });
        let status = bob.provider.custody_status(&his).unwrap().unwrap();
        status.require().unwrap();
        assert!(status.pending_commit.is_some());
        alice.receive(&mut hers, bundle.commit());
        his.merge_pending_commit(&bob.provider).unwrap();
        assert_same_secrets(&hers, &his);

        let (update, _) = his
            .propose_self_update(
                &bob.provider,
                &bob.identity.signer(),
                LeafNodeParameters::default(),
            )
            .unwrap();
        let status = bob.provider.custody_status(&his).unwrap().unwrap();
        status.require().unwrap();
        assert_eq!(status.pending_updates.len(), 1);
        alice.receive(&mut hers, &update);
        let bundle = commit(
            &alice.provider,
            &mut hers,
            &alice.identity.signer(),
            |builder| builder,
        );
        hers.merge_pending_commit(&alice.provider).unwrap();
        bob.receive(&mut his, bundle.commit());
        assert_same_secrets(&hers, &his);

        for (member, group) in [(&alice, &hers), (&bob, &his)] {
            let status = member.provider.custody_status(group).unwrap().unwrap();
            status.require().unwrap();
            assert_eq!(status.leaf.encryption.to_string(), "software (software)");
            assert_eq!(member.provider.last_failure(), None);
        }
        assert_eq!(alice.identity.info().device, DEVICE);
    }
}

#[test]
fn a_refused_signature_says_why() {
    const COMPANY: &str = r#"@id("company/no-messages")
        @reason("this is a library, please be quiet") @advice("go outside")
        forbid(principal, action == Action::"SignApplicationMessage", resource);"#;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("90-company.cedar"), COMPANY).unwrap();
    let local = dir.path().to_owned();
    let daemon = TestDaemon::start_with(|config| config.policy.dirs.local = local).unwrap();
    let mut alice = Member::new(&daemon, "alice", SUITE);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    alice.provider = CustodyProvider::builder()
        .socket(daemon.socket())
        .on_refusal(move |failure| tell.lock().unwrap().push(failure.clone()))
        .build()
        .unwrap();
    alice.identity = alice.provider.identity("alice").unwrap();
    let mut group = alice.create();
    assert_eq!(alice.provider.last_failure(), None);

    let signer = alice.identity.signer();
    let refused = group.create_message(&alice.provider, &signer, b"hello");
    assert!(refused.is_err());
    let failure = alice.provider.last_failure().unwrap();
    assert_eq!(*told.lock().unwrap(), std::slice::from_ref(&failure));
    assert_eq!(failure.operation, Operation::Sign);
    assert_eq!(failure.key, Some(alice.identity.info().key));
    let ProviderError::Failure(failure) = failure.error else {
        panic!("{failure}");
    };
    assert_eq!(failure.code, FailureCode::Denied);
    assert_eq!(failure.policy.as_deref(), Some("company/no-messages"));
    assert_eq!(failure.message, "this is a library, please be quiet");
    assert_eq!(failure.advice, "go outside");

    // What is no structure of MLS is refused by a rule, which says why as well.
    signer.sign(b"not a structure of MLS").unwrap_err();
    let failure = alice.provider.last_failure().unwrap();
    assert_eq!(told.lock().unwrap().last(), Some(&failure));
    let ProviderError::Failure(failure) = failure.error else {
        panic!("{failure}");
    };
    assert_eq!(failure.policy.as_deref(), Some("builtin/unknown-structure"));
    assert!(!failure.advice.is_empty());
}

#[test]
fn what_failed_without_the_daemon_works_when_it_is_back() {
    let mut daemon = TestDaemon::start().unwrap();
    let alice = Member::new(&daemon, "alice", SUITE);
    let mut group = alice.create();
    let before = group.epoch_authenticator().as_slice().to_vec();

    daemon.pause();
    let hasty = CustodyProvider::builder()
        .socket(daemon.socket())
        .interaction(Interaction::Never)
        .build()
        .unwrap();
    assert!(hasty.identity("alice").is_err());
    assert_ne!(alice.provider.availability(), Availability::Ready);
    daemon.resume().unwrap();

    assert_eq!(alice.provider.availability(), Availability::Ready);
    assert_eq!(group.epoch_authenticator().as_slice(), before);
    commit(
        &alice.provider,
        &mut group,
        &alice.identity.signer(),
        |builder| builder.force_self_update(true),
    );
    group.merge_pending_commit(&alice.provider).unwrap();
    alice
        .provider
        .custody_status(&group)
        .unwrap()
        .unwrap()
        .require()
        .unwrap();
}

/// A member with its keys in software, and its group with one in custody.
struct Old {
    stock: OpenMlsRustCrypto,
    signer: SignatureKeyPair,
    with_key: CredentialWithKey,
}

impl Old {
    fn new(name: &str) -> Self {
        let signer = SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap();
        let with_key = CredentialWithKey {
            credential: basic(name),
            signature_key: signer.to_public_vec().into(),
        };
        Self {
            stock: OpenMlsRustCrypto::default(),
            signer,
            with_key,
        }
    }

    /// A group of this member and a `peer`, which is answered with its group.
    fn group_with(&self, peer: &Member) -> (MlsGroup, MlsGroup) {
        let mut own = MlsGroup::builder()
            .ciphersuite(SUITE)
            .use_ratchet_tree_extension(true)
            .build(&self.stock, &self.signer, self.with_key.clone())
            .unwrap();
        let key_package = peer.key_package().into_key_package();
        let bundle = commit(&self.stock, &mut own, &self.signer, |builder| {
            builder.propose_adds([key_package])
        });
        own.merge_pending_commit(&self.stock).unwrap();
        let welcome = over_the_wire(&bundle.to_welcome_msg().unwrap());
        (own, join(&peer.provider, welcome))
    }

    /// The app's database, opened with keys in custody from now on.
    fn into_custody(self, daemon: &TestDaemon) -> (CustodyProvider, Self) {
        let storage = openmls_memory_storage::MemoryStorage {
            values: std::sync::RwLock::new(self.stock.storage().values.read().unwrap().clone()),
        };
        let provider = CustodyProvider::builder()
            .socket(daemon.socket())
            .storage("old/laptop", storage)
            .build()
            .unwrap();
        (provider, self)
    }
}

fn sent(step: Migration) -> MlsMessageOut {
    match step {
        Migration::Commit(bundle) => bundle.into_commit(),
        other => panic!("expected a commit, not {other:?}"),
    }
}

#[test]
fn a_group_moves_into_custody_and_out_again() {
    let daemon = TestDaemon::start_with(|config| config.policy.allow_leave = true).unwrap();
    let peer = Member::new(&daemon, "peer", SUITE);
    let old = Old::new("olga");
    let (own, mut theirs) = old.group_with(&peer);
    let (provider, old) = old.into_custody(&daemon);
    let mut own = MlsGroup::load(provider.storage(), own.group_id())
        .unwrap()
        .unwrap();
    let status = provider.custody_status(&own).unwrap().unwrap();
    assert_eq!(
        status.require().unwrap_err(),
        NotInCustody {
            key: "signature",
            leaf: "the leaf"
        }
    );

    let scheme = SUITE.signature_algorithm();
    let identity = provider
        .create_identity("olga", &basic("olga"), scheme)
        .unwrap();
    let message = sent(migrate(&provider, &mut own, &old.signer, &identity).unwrap());
    // Started again before the commit was merged: it is still known.
    let mut own = MlsGroup::load(provider.storage(), own.group_id())
        .unwrap()
        .unwrap();
    let again = migrate(&provider, &mut own, &old.signer, &identity).unwrap();
    assert!(matches!(again, Migration::Pending), "{again:?}");
    peer.receive(&mut theirs, &message);
    own.merge_pending_commit(&provider).unwrap();
    assert_same_secrets(&own, &theirs);
    let done = migrate(&provider, &mut own, &old.signer, &identity).unwrap();
    assert!(matches!(done, Migration::Done), "{done:?}");
    let status = provider.custody_status(&own).unwrap().unwrap();
    status.require().unwrap();

    // Path secrets are opened with the new key.
    let bundle = commit(
        &peer.provider,
        &mut theirs,
        &peer.identity.signer(),
        |builder| builder.force_self_update(true),
    );
    theirs.merge_pending_commit(&peer.provider).unwrap();
    receive(&provider, &mut own, bundle.commit());
    assert_same_secrets(&own, &theirs);

    let new = Old::new("olga");
    let message = sent(
        leave(
            &provider,
            &mut own,
            &identity,
            &new.signer,
            new.with_key.clone(),
        )
        .unwrap(),
    );
    peer.receive(&mut theirs, &message);
    own.merge_pending_commit(&provider).unwrap();
    assert_same_secrets(&own, &theirs);
    let status = provider.custody_status(&own).unwrap().unwrap();
    assert_eq!(status.leaf.signature, KeyCustody::Software);
    assert_eq!(status.leaf.encryption, KeyCustody::Software);
    let again = leave(&provider, &mut own, &identity, &new.signer, new.with_key).unwrap();
    assert!(matches!(again, Migration::Done), "{again:?}");

    // The next fresh key is made in custody again.
    assert!(Handle::from_bytes(peer.key_package().init_private_key()).is_some());
}

#[test]
fn who_may_not_leave_stays_and_learns_why() {
    let daemon = TestDaemon::start().unwrap();
    let alice = Member::new(&daemon, "alice", SUITE);
    let mut group = alice.create();
    let new = Old::new("alice");
    let refused = leave(
        &alice.provider,
        &mut group,
        &alice.identity,
        &new.signer,
        new.with_key,
    );
    match refused.unwrap_err() {
        MigrationError::Provider(ProviderError::Failure(failure)) => {
            assert_eq!(failure.code, FailureCode::Denied);
        }
        other => panic!("{other}"),
    }
    assert!(group.pending_commit().is_none());
}

#[test]
fn key_packages_are_replaced_once_the_new_ones_are_published() {
    let daemon = TestDaemon::start().unwrap();
    let alice = Member::new(&daemon, "alice", SUITE);
    let (storage, crypto) = (alice.provider.storage(), alice.provider.crypto());
    let reference = |package: &KeyPackage| package.hash_ref(crypto).unwrap();
    // One of the time before custody, and one that moves from key to key.
    let stock = OpenMlsRustCrypto::default();
    let signer = SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap();
    let credential = CredentialWithKey {
        credential: BasicCredential::new(b"alice".to_vec()).into(),
        signature_key: signer.public().into(),
    };
    let software = KeyPackage::builder()
        .build(SUITE, &stock, &signer, credential)
        .unwrap();
    let old = [
        reference(software.key_package()),
        reference(alice.key_package().key_package()),
    ];
    let inner = storage.inner();
    inner.write_key_package(&old[0], &software).unwrap();
    let bundle = |reference: &KeyPackageRef| -> Option<KeyPackageBundle> {
        storage.key_package(reference).unwrap()
    };
    let is_there = |reference: &KeyPackageRef| bundle(reference).is_some();
    let mut published = Vec::new();
    let mut replace = |works: bool| {
        replace_key_packages(
            &alice.provider,
            &alice.identity,
            SUITE,
            KeyPackage::builder,
            &old,
            |fresh| {
                published = fresh.to_vec();
                works.then_some(()).ok_or("the directory is away")
            },
        )
    };
    let failed = replace(false);
    assert!(matches!(failed, Err(ReplaceError::Publish(_))));
    assert!(old.iter().all(is_there));

    replace(true).unwrap();
    assert!(!old.iter().any(is_there));
    assert_eq!(published.len(), 2);
    for package in &published {
        let bundle = bundle(&reference(package)).unwrap();
        assert!(Handle::from_bytes(bundle.init_private_key()).is_some());
    }
}
