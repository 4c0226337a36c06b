//! What OpenMLS is left with when a request fails: the state as before, and the
//! same call works once the cause is gone.

use mlskeyd_provider::testing::TestDaemon;
use mlskeyd_provider::*;
use mlskeyd_tests::crypto::{Crypto, capabilities};
use openmls::prelude::tls_codec::{Deserialize as _, Serialize as _};
use openmls::prelude::*;
use openmls_memory_storage::MemoryStorage;

use crate::suite::{Suite, for_each_suite};

for_each_suite!(
    calls_that_failed_without_the_daemon_change_nothing_and_work_when_it_is_back,
    a_welcome_that_did_not_open_opens_when_the_daemon_is_back,
    a_commit_that_was_not_processed_is_processed_when_the_daemon_is_back,
    a_refused_leaf_leaves_the_group_as_it_was,
);

struct Member {
    suite: Ciphersuite,
    provider: CustodyProvider<MemoryStorage, Crypto>,
    identity: CustodyIdentity,
}

impl Member {
    /// It does not wait for a daemon that is away.
    fn new(daemon: &TestDaemon, suite: Suite, name: &str) -> Self {
        let suite = Ciphersuite::try_from(suite.number).unwrap();
        let provider = CustodyProvider::builder()
            .socket(daemon.socket())
            .crypto(Crypto::default())
            .interaction(Interaction::Never)
            .require_custody(true)
            .build()
            .unwrap();
        let credential = BasicCredential::new(name.as_bytes().to_vec()).into();
        let scheme = suite.signature_algorithm();
        let identity = provider.create_identity(name, &credential, scheme).unwrap();
        Self {
            suite,
            provider,
            identity,
        }
    }

    fn signer(&self) -> CustodySigner {
        self.identity.signer()
    }

    fn with_key(&self) -> CredentialWithKey {
        self.identity.credential_with_key().unwrap()
    }

    fn key_package(&self) -> Result<KeyPackage, KeyPackageNewError> {
        let (provider, signer) = (&self.provider, self.signer());
        let builder = KeyPackage::builder().leaf_node_capabilities(capabilities(self.suite));
        let made = builder.build(self.suite, provider, &signer, self.with_key());
        made.map(KeyPackageBundle::into_key_package)
    }

    fn receive(&self, group: &mut MlsGroup, message: &MlsMessageOut) -> Option<Vec<u8>> {
        let message = incoming(message).try_into_protocol_message().unwrap();
        let processed = group.process_message(&self.provider, message).unwrap();
        match processed.into_content() {
            ProcessedMessageContent::ApplicationMessage(text) => return Some(text.into_bytes()),
            ProcessedMessageContent::ProposalMessage(proposal) => {
                let storage = self.provider.storage();
                group.store_pending_proposal(storage, *proposal).unwrap();
            }
            ProcessedMessageContent::StagedCommitMessage(commit) => {
                group.merge_staged_commit(&self.provider, *commit).unwrap();
            }
            other => panic!("unexpected {other:?}"),
        }
        None
    }

    /// What the last failure says: what was done, the key, what to do next.
    fn assert_told(&self, operation: Operation) {
        let failure = self.provider.last_failure().expect("a failure");
        assert_eq!(failure.operation, operation);
        if operation == Operation::Sign {
            assert_eq!(failure.key, Some(self.identity.info().key));
        }
        let said = failure.to_string();
        assert!(
            said.contains("check that it runs") || said.contains("start it"),
            "{said}"
        );
    }
}

fn incoming(message: &MlsMessageOut) -> MlsMessageIn {
    MlsMessageIn::tls_deserialize_exact(message.tls_serialize_detached().unwrap()).unwrap()
}

fn assert_same(one: &MlsGroup, other: &MlsGroup) {
    let secret = |group: &MlsGroup| group.epoch_authenticator().as_slice().to_vec();
    assert_eq!(secret(one), secret(other));
}

/// All that an app sees of a group, in memory and in storage.
fn state(member: &Member, group: &MlsGroup) -> Vec<String> {
    let stored = MlsGroup::load(member.provider.storage(), group.group_id());
    [group, &stored.unwrap().unwrap()]
        .iter()
        .map(|group| {
            format!(
                "{:?} {:?} {:?} {} {}",
                group.epoch(),
                group.epoch_authenticator().as_slice(),
                group.own_leaf_node(),
                group.pending_commit().is_some(),
                group.pending_proposals().count(),
            )
        })
        .collect()
}

/// Alice's group, with bob in it.
fn pair(alice: &Member, bob: &Member) -> (MlsGroup, MlsGroup) {
    let (provider, signer) = (&alice.provider, alice.signer());
    let mut hers = MlsGroup::builder()
        .ciphersuite(alice.suite)
        .with_capabilities(capabilities(alice.suite))
        .use_ratchet_tree_extension(true)
        .build(provider, &signer, alice.with_key())
        .unwrap();
    let package = bob.key_package().unwrap();
    let (_, welcome, _) = hers.add_members(provider, &signer, &[package]).unwrap();
    hers.merge_pending_commit(provider).unwrap();
    let his = join(bob, &welcome).unwrap();
    (hers, his)
}

fn join(member: &Member, welcome: &MlsMessageOut) -> Option<MlsGroup> {
    let MlsMessageBodyIn::Welcome(welcome) = incoming(welcome).extract() else {
        panic!("no Welcome");
    };
    let config = MlsGroupJoinConfig::builder()
        .use_ratchet_tree_extension(true)
        .build();
    let staged = StagedWelcome::new_from_welcome(&member.provider, &config, welcome, None).ok()?;
    Some(staged.into_group(&member.provider).unwrap())
}

fn calls_that_failed_without_the_daemon_change_nothing_and_work_when_it_is_back(suite: Suite) {
    let mut daemon = TestDaemon::start().unwrap();
    let (alice, bob) = (
        Member::new(&daemon, suite, "alice"),
        Member::new(&daemon, suite, "bob"),
    );
    let (mut hers, mut his) = pair(&alice, &bob);
    let before = state(&alice, &hers);
    let (provider, signer) = (&alice.provider, alice.signer());

    daemon.pause();
    hers.create_message(provider, &signer, b"hello")
        .unwrap_err();
    alice.assert_told(Operation::Sign);
    assert_eq!(state(&alice, &hers), before);
    let parameters = LeafNodeParameters::default;
    assert!(hers.self_update(provider, &signer, parameters()).is_err());
    alice.assert_told(Operation::GenerateHpke);
    assert_eq!(state(&alice, &hers), before);
    assert!(
        hers.propose_self_update(provider, &signer, parameters())
            .is_err()
    );
    alice.assert_told(Operation::GenerateHpke);
    assert_eq!(state(&alice, &hers), before);
    let bobs = LeafNodeIndex::new(1);
    assert!(hers.propose_remove_member(provider, &signer, bobs).is_err());
    alice.assert_told(Operation::Sign);
    assert_eq!(state(&alice, &hers), before);
    assert!(alice.key_package().is_err());
    alice.assert_told(Operation::GenerateHpke);
    daemon.resume().unwrap();

    let text = hers.create_message(provider, &signer, b"hello").unwrap();
    assert_eq!(bob.receive(&mut his, &text).unwrap(), b"hello");
    let (update, _) = hers
        .propose_self_update(provider, &signer, parameters())
        .unwrap();
    bob.receive(&mut his, &update);
    hers.clear_pending_proposals(provider.storage()).unwrap();
    his.clear_pending_proposals(bob.provider.storage()).unwrap();
    let bundle = hers.self_update(provider, &signer, parameters()).unwrap();
    bob.receive(&mut his, bundle.commit());
    hers.merge_pending_commit(provider).unwrap();
    assert_same(&hers, &his);
    alice.key_package().unwrap();
}

fn a_welcome_that_did_not_open_opens_when_the_daemon_is_back(suite: Suite) {
    let mut daemon = TestDaemon::start().unwrap();
    let (alice, bob) = (
        Member::new(&daemon, suite, "alice"),
        Member::new(&daemon, suite, "bob"),
    );
    let carol = Member::new(&daemon, suite, "carol");
    let (mut hers, mut his) = pair(&alice, &bob);
    let package = carol.key_package().unwrap();
    let (provider, signer) = (&alice.provider, alice.signer());
    let (commit, welcome, _) = hers.add_members(provider, &signer, &[package]).unwrap();

    daemon.pause();
    for _ in 0..2 {
        assert!(join(&carol, &welcome).is_none());
        carol.assert_told(Operation::Open);
    }
    daemon.resume().unwrap();

    let theirs = join(&carol, &welcome).unwrap();
    hers.merge_pending_commit(provider).unwrap();
    bob.receive(&mut his, &commit);
    assert_same(&hers, &theirs);
    assert_same(&hers, &his);
}

fn a_commit_that_was_not_processed_is_processed_when_the_daemon_is_back(suite: Suite) {
    let mut daemon = TestDaemon::start().unwrap();
    let (alice, bob) = (
        Member::new(&daemon, suite, "alice"),
        Member::new(&daemon, suite, "bob"),
    );
    let (mut hers, mut his) = pair(&alice, &bob);
    let (provider, signer) = (&alice.provider, alice.signer());
    let parameters = LeafNodeParameters::builder().build();
    let bundle = hers.self_update(provider, &signer, parameters).unwrap();
    let before = state(&bob, &his);

    daemon.pause();
    let message = incoming(bundle.commit())
        .try_into_protocol_message()
        .unwrap();
    assert!(his.process_message(&bob.provider, message).is_err());
    bob.assert_told(Operation::Open);
    assert_eq!(state(&bob, &his), before);
    daemon.resume().unwrap();

    // The same message from the app's own queue, with the group read again: a
    // failed message has used up its key in the memory of this one.
    let mut his = MlsGroup::load(bob.provider.storage(), his.group_id())
        .unwrap()
        .unwrap();
    bob.receive(&mut his, bundle.commit());
    hers.merge_pending_commit(provider).unwrap();
    assert_same(&hers, &his);
}

fn a_refused_leaf_leaves_the_group_as_it_was(suite: Suite) {
    let daemon = TestDaemon::start().unwrap();
    let (alice, bob) = (
        Member::new(&daemon, suite, "alice"),
        Member::new(&daemon, suite, "bob"),
    );
    let (mut hers, mut his) = pair(&alice, &bob);
    let before = state(&alice, &hers);
    let (provider, signer) = (&alice.provider, alice.signer());
    let forged = CredentialWithKey {
        credential: BasicCredential::new(b"bob".to_vec()).into(),
        ..alice.with_key()
    };
    let forged = LeafNodeParameters::builder()
        .with_credential_with_key(forged)
        .build();
    assert!(hers.self_update(provider, &signer, forged).is_err());
    let failure = provider.last_failure().unwrap();
    let ProviderError::Failure(refused) = &failure.error else {
        panic!("{failure}");
    };
    assert_eq!(refused.code, FailureCode::Denied);
    assert_eq!(refused.key, Some(alice.identity.info().key));
    assert_eq!(refused.device.as_deref(), Some("software"));
    assert!(refused.message.contains("credential"), "{refused}");
    assert!(!refused.advice.is_empty());
    assert_eq!(state(&alice, &hers), before);

    let bundle = hers
        .self_update(provider, &signer, LeafNodeParameters::default())
        .unwrap();
    bob.receive(&mut his, bundle.commit());
    hers.merge_pending_commit(provider).unwrap();
    assert_same(&hers, &his);
}
