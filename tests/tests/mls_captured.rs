//! The parser against what OpenMLS really gives a Signer and really opens: every payload is read to the last byte,
//! every leaf within one verifies, honest traffic is never refused, and nothing that was cut, extended or changed
//! makes it panic.

use std::cell::RefCell;
use std::collections::BTreeSet;

use mlskeyd::mls::binding;
use mlskeyd::mls::{
    Body, Openable, ProposalOrRef, Signable, Unknown, proposal_reference_content,
    scheme_of_cipher_suite,
};
use mlskeyd_policies::Action;
use mlskeyd_tests::captures::{
    self, KINDS_OF_OWN_LEAVES, Registry, kind_of, only_whole, opens_only_whole, own_leaf_is_signed,
    with_content,
};
use mlskeyd_tests::crypto::{Crypto, Open};
use openmls::prelude::tls_codec::{Deserialize, Serialize};
use openmls::prelude::*;
use openmls::schedule::{ExternalPsk, PreSharedKeyId, Psk};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::{OpenMlsRustCrypto, RustCrypto};
use openmls_traits::signatures::{Signer, SignerError};
use openmls_traits::types::SignatureScheme;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256, Sha384};

struct RecordingProvider {
    inner: OpenMlsRustCrypto,
    crypto: Crypto,
}

impl Default for RecordingProvider {
    fn default() -> Self {
        Self {
            inner: OpenMlsRustCrypto::default(),
            crypto: Crypto::recording(),
        }
    }
}

impl OpenMlsProvider for RecordingProvider {
    type CryptoProvider = Crypto;
    type RandProvider = RustCrypto;
    type StorageProvider = <OpenMlsRustCrypto as OpenMlsProvider>::StorageProvider;

    fn storage(&self) -> &Self::StorageProvider {
        self.inner.storage()
    }
    fn crypto(&self) -> &Self::CryptoProvider {
        &self.crypto
    }
    fn rand(&self) -> &Self::RandProvider {
        self.inner.rand()
    }
}

/// A payload that was signed, the public key of the key that did, and what it made.
struct Signed {
    payload: Vec<u8>,
    public_key: Vec<u8>,
    signature: Vec<u8>,
}

/// One app: its provider, its identity, and all that it had signed, in order.
struct App {
    provider: RecordingProvider,
    name: Vec<u8>,
    suite: Ciphersuite,
    keys: RefCell<Vec<Vec<u8>>>,
    signed: RefCell<Vec<Signed>>,
}

/// A signature key of an app, remembering what it signs.
struct Key<'a> {
    app: &'a App,
    pair: SignatureKeyPair,
}

impl Signer for Key<'_> {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        let signature = self.pair.sign(payload)?;
        self.app.signed.borrow_mut().push(Signed {
            payload: payload.to_vec(),
            public_key: self.pair.public().to_vec(),
            signature: signature.clone(),
        });
        Ok(signature)
    }
    fn signature_scheme(&self) -> SignatureScheme {
        self.pair.signature_scheme()
    }
}

impl App {
    fn new(name: &str, suite: Ciphersuite) -> Self {
        Self {
            provider: RecordingProvider::default(),
            name: name.into(),
            suite,
            keys: RefCell::default(),
            signed: RefCell::default(),
        }
    }

    fn key(&self) -> Key<'_> {
        let pair = SignatureKeyPair::new(self.suite.signature_algorithm()).unwrap();
        self.keys.borrow_mut().push(pair.public().to_vec());
        Key { app: self, pair }
    }

    fn credential(&self, key: &Key<'_>) -> CredentialWithKey {
        CredentialWithKey {
            credential: BasicCredential::new(self.name.clone()).into(),
            signature_key: key.pair.public().into(),
        }
    }

    fn key_package(&self, key: &Key<'_>, last_resort: bool) -> KeyPackage {
        let builder = KeyPackage::builder().leaf_node_capabilities(capabilities());
        let builder = if last_resort {
            builder.mark_as_last_resort()
        } else {
            builder
        };
        builder
            .build(self.suite, &self.provider, key, self.credential(key))
            .unwrap()
            .key_package()
            .clone()
    }

    fn join(&self, welcome: MlsMessageOut, policy: WireFormatPolicy) -> MlsGroup {
        let MlsMessageBodyIn::Welcome(welcome) = incoming(&welcome).extract() else {
            panic!("no Welcome");
        };
        let config = MlsGroupJoinConfig::builder()
            .wire_format_policy(policy)
            .build();
        StagedWelcome::new_from_welcome(&self.provider, &config, welcome, None)
            .unwrap()
            .into_group(&self.provider)
            .unwrap()
    }

    fn receive(&self, group: &mut MlsGroup, message: &MlsMessageOut) {
        let message = incoming(message).try_into_protocol_message().unwrap();
        match group
            .process_message(&self.provider, message)
            .unwrap()
            .into_content()
        {
            ProcessedMessageContent::ApplicationMessage(_) => {}
            ProcessedMessageContent::ProposalMessage(proposal)
            | ProcessedMessageContent::ExternalJoinProposalMessage(proposal) => group
                .store_pending_proposal(self.provider.storage(), *proposal)
                .unwrap(),
            ProcessedMessageContent::StagedCommitMessage(commit) => {
                group.merge_staged_commit(&self.provider, *commit).unwrap();
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn incoming(message: &MlsMessageOut) -> MlsMessageIn {
    MlsMessageIn::tls_deserialize_exact(message.to_bytes().unwrap()).unwrap()
}

fn capabilities() -> Capabilities {
    Capabilities::builder()
        .ciphersuites(Crypto::default().supported_ciphersuites())
        .proposals(vec![ProposalType::SelfRemove])
        .extensions(vec![ExtensionType::LastResort])
        .with_grease(&RustCrypto::default())
        .build()
}

/// The life of a group, told by its three apps. `public` sends handshake messages unencrypted.
fn live(suite: Ciphersuite, public: bool) -> Vec<App> {
    let policy = if public {
        PURE_PLAINTEXT_WIRE_FORMAT_POLICY
    } else {
        PURE_CIPHERTEXT_WIRE_FORMAT_POLICY
    };
    let alice = App::new("alice@example.com", suite);
    let bob = App::new("bob@example.com", suite);
    let carol = App::new("carol@example.com", suite);
    {
        let (alice_key, bob_key, carol_key) = (alice.key(), bob.key(), carol.key());

        let mut a = MlsGroup::builder()
            .ciphersuite(suite)
            .with_wire_format_policy(policy)
            .with_capabilities(capabilities())
            .use_ratchet_tree_extension(true)
            .build(&alice.provider, &alice_key, alice.credential(&alice_key))
            .unwrap();
        let (_, welcome, _) = a
            .add_members(
                &alice.provider,
                &alice_key,
                &[
                    bob.key_package(&bob_key, false),
                    carol.key_package(&carol_key, true),
                ],
            )
            .unwrap();
        a.merge_pending_commit(&alice.provider).unwrap();
        let mut b = bob.join(welcome.clone(), policy);
        let mut c = carol.join(welcome, policy);

        // OpenMLS sends application data encrypted whatever the policy says.
        let message = a
            .create_message(&alice.provider, &alice_key, b"Good morning")
            .unwrap();
        bob.receive(&mut b, &message);

        let commit = b
            .self_update(&bob.provider, &bob_key, LeafNodeParameters::default())
            .unwrap()
            .into_commit();
        alice.receive(&mut a, &commit);
        carol.receive(&mut c, &commit);
        b.merge_pending_commit(&bob.provider).unwrap();

        // Bob proposes an update, a PSK and new group extensions; alice commits them by reference.
        let psk = PreSharedKeyId::new(
            suite,
            bob.provider.rand(),
            Psk::External(ExternalPsk::new(vec![1, 2, 3])),
        )
        .unwrap();
        for app in [&alice, &bob, &carol] {
            psk.store(&app.provider, &[9; 32]).unwrap();
        }
        let (update, _) = b
            .propose_self_update(&bob.provider, &bob_key, LeafNodeParameters::default())
            .unwrap();
        let (with_psk, _) = b
            .propose_pre_shared_key(&bob.provider, &bob_key, psk)
            .unwrap();
        let (extensions, _) = b
            .propose_group_context_extensions(
                &bob.provider,
                Extensions::single(Extension::RequiredCapabilities(
                    RequiredCapabilitiesExtension::new(&[], &[ProposalType::SelfRemove], &[]),
                ))
                .unwrap(),
                &bob_key,
            )
            .unwrap();
        for message in [&update, &with_psk, &extensions] {
            alice.receive(&mut a, message);
            carol.receive(&mut c, message);
        }
        let (commit, _, _) = a
            .commit_to_pending_proposals(&alice.provider, &alice_key)
            .unwrap();
        a.merge_pending_commit(&alice.provider).unwrap();
        bob.receive(&mut b, &commit);
        carol.receive(&mut c, &commit);

        // Key rotation: the old key signs the commit, the new one the leaf within.
        let new_key = alice.key();
        let commit = a
            .self_update_with_new_signer(
                &alice.provider,
                &alice_key,
                NewSignerBundle {
                    signer: &new_key,
                    credential_with_key: alice.credential(&new_key),
                },
                LeafNodeParameters::default(),
            )
            .unwrap()
            .into_commit();
        a.merge_pending_commit(&alice.provider).unwrap();
        bob.receive(&mut b, &commit);
        carol.receive(&mut c, &commit);

        // Carol is removed, asks to come back, and then comes back uninvited.
        let (proposal, _) = a
            .propose_remove_member(&alice.provider, &new_key, LeafNodeIndex::new(2))
            .unwrap();
        bob.receive(&mut b, &proposal);
        let (commit, _, _) = a
            .remove_members(&alice.provider, &new_key, &[LeafNodeIndex::new(2)])
            .unwrap();
        a.merge_pending_commit(&alice.provider).unwrap();
        bob.receive(&mut b, &commit);
        JoinProposal::new::<<RecordingProvider as OpenMlsProvider>::StorageProvider>(
            carol.key_package(&carol_key, false),
            a.group_id().clone(),
            a.epoch(),
            &carol_key,
        )
        .unwrap();
        let info = a
            .export_group_info(alice.provider.crypto(), &new_key, true)
            .unwrap();
        let MlsMessageBodyIn::GroupInfo(info) = incoming(&info).extract() else {
            panic!("no GroupInfo");
        };
        let (_, bundle) = MlsGroup::external_commit_builder()
            .with_config(
                MlsGroupJoinConfig::builder()
                    .wire_format_policy(policy)
                    .build(),
            )
            .build_group(&carol.provider, info, carol.credential(&carol_key))
            .unwrap()
            .leaf_node_parameters(
                LeafNodeParameters::builder()
                    .with_capabilities(capabilities())
                    .build(),
            )
            .load_psks(carol.provider.storage())
            .unwrap()
            .build(
                carol.provider.rand(),
                carol.provider.crypto(),
                &carol_key,
                |_| true,
            )
            .unwrap()
            .finalize(&carol.provider)
            .unwrap();
        if public {
            let commit = bundle.into_commit();
            alice.receive(&mut a, &commit);
            bob.receive(&mut b, &commit);
            b.leave_group_via_self_remove(&bob.provider, &bob_key)
                .unwrap();
        }
    }
    vec![alice, bob, carol]
}

fn all_lives() -> Vec<App> {
    let mut apps = Vec::new();
    for suite in [
        Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
        Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
        Ciphersuite::MLS_256_DHKEMP384_AES256GCM_SHA384_P384,
    ] {
        for public in [false, true] {
            apps.extend(live(suite, public));
        }
    }
    apps
}

fn scheme(suite: Ciphersuite) -> mlskeyd_protocol::v1::SignatureScheme {
    scheme_of_cipher_suite(suite.into()).unwrap()
}

#[test]
fn everything_that_openmls_signs_is_read_to_the_last_byte() {
    let mut kinds = BTreeSet::new();
    for app in all_lives() {
        for signed in app.signed.borrow().iter() {
            let signable = Signable::parse(&signed.payload);
            assert!(
                !matches!(signable, Signable::Unknown(_)),
                "{signable:?} is {}",
                hex::encode(&signed.payload)
            );
            kinds.extend(signable.actions());
        }
    }
    let expected = BTreeSet::from([
        Action::SignApplicationMessage,
        Action::SignCommit,
        Action::SignProposalAdd,
        Action::SignProposalUpdate,
        Action::SignProposalRemove,
        Action::SignProposalPreSharedKey,
        Action::SignProposalExternalInit,
        Action::SignProposalGroupContextExtensions,
        Action::SignProposalSelfRemove,
        Action::SignKeyPackage,
        Action::SignLeafNode,
        Action::SignGroupInfo,
    ]);
    assert_eq!(kinds, expected);
}

#[test]
fn a_leaf_within_a_message_is_the_one_that_was_signed() {
    let mut seen = BTreeSet::new();
    for app in all_lives() {
        let signed = app.signed.borrow();
        for (index, Signed { payload, .. }) in signed.iter().enumerate() {
            let signable = Signable::parse(payload);
            let Some(own_leaf) = signable.own_leaf() else {
                continue;
            };
            // Carol was the third, and comes back to her old place.
            let before = |content: &[u8]| signed[..index].iter().any(|s| s.payload == content);
            own_leaf_is_signed(scheme(app.suite), own_leaf, || 2, before);
            seen.insert(kind_of(own_leaf));
        }
    }
    assert_eq!(seen.len(), KINDS_OF_OWN_LEAVES, "{seen:?}");
}

#[test]
fn binding_refuses_nothing_that_is_honest_and_learns_each_key_once() {
    for app in all_lives() {
        let registry = Registry::new(scheme(app.suite), |public_key| {
            app.keys.borrow().iter().any(|key| key == public_key)
        });
        let credential = Credential::from(BasicCredential::new(app.name.clone()))
            .tls_serialize_detached()
            .unwrap();
        for signed in app.signed.borrow().iter() {
            let signable = Signable::parse(&signed.payload);
            let signer = binding::Signer {
                scheme: scheme(app.suite),
                public_key: &signed.public_key,
                credential: &credential,
            };
            let changes = binding::check(&signable, signer, &registry).unwrap();
            let learns = matches!(signable, Signable::LeafNode(_) | Signable::KeyPackage(_));
            assert_eq!(changes.len(), usize::from(learns), "{signable:?}");
            registry.apply(changes);
            assert_eq!(
                binding::check(&signable, signer, &registry),
                Ok(Vec::new()),
                "signing it again"
            );
        }
    }
}

#[test]
fn what_a_commit_names_is_a_proposal_that_was_signed() {
    let apps = all_lives();
    let mut known = BTreeSet::new();
    for app in &apps {
        for signed in app.signed.borrow().iter() {
            let Signable::FramedContent(content) = Signable::parse(&signed.payload) else {
                continue;
            };
            let hashed = proposal_reference_content(content.raw, &signed.signature).unwrap();
            // RFC 9420, 17.1: the hash of the cipher suite.
            known.insert(Sha256::digest(&hashed).to_vec());
            known.insert(Sha384::digest(&hashed).to_vec());
        }
    }
    let mut named = 0;
    for app in &apps {
        for signed in app.signed.borrow().iter() {
            let Signable::FramedContent(content) = Signable::parse(&signed.payload) else {
                continue;
            };
            let Body::Commit(commit) = &content.body else {
                continue;
            };
            for proposal in &commit.proposals {
                if let ProposalOrRef::Reference(reference) = proposal {
                    assert!(known.contains(*reference));
                    named += 1;
                }
            }
        }
    }
    assert!(named >= 6, "{named}");
}

#[test]
fn a_last_resort_key_package_says_so() {
    let apps = all_lives();
    let last_resort = |app: &App| -> Vec<bool> {
        let signed = app.signed.borrow();
        signed
            .iter()
            .filter_map(|s| match Signable::parse(&s.payload) {
                Signable::KeyPackage(tbs) => Some(tbs.last_resort()),
                _ => None,
            })
            .collect()
    };
    assert_eq!(last_resort(&apps[1]), [false]);
    assert_eq!(last_resort(&apps[2]), [true, false]);
}

#[test]
fn everything_that_openmls_opens_is_known_and_yields_what_it_must() {
    let mut kinds = BTreeSet::new();
    for app in all_lives() {
        let suite = u16::from(app.suite);
        for open in &app.provider.crypto.take_opens() {
            kinds.insert(opens_only_whole(suite, open));
        }
    }
    assert_eq!(
        kinds,
        BTreeSet::from([Action::OpenWelcome, Action::OpenPathSecret])
    );
}

#[test]
fn whatever_was_cut_or_extended_is_unknown() {
    for app in all_lives() {
        for Signed { payload, .. } in app.signed.borrow().iter() {
            only_whole(payload);
        }
    }
}

#[test]
fn changed_bytes_never_panic_and_keep_their_label() {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for app in all_lives() {
        for Signed { payload, .. } in app.signed.borrow().iter() {
            for _ in 0..200 {
                let bytes = with_content(payload, |content| {
                    for _ in 0..rng.random_range(1..4) {
                        let at = rng.random_range(0..content.len());
                        content[at] = rng.random();
                    }
                });
                match Signable::parse(&bytes) {
                    Signable::Unknown(Unknown { label, .. }) => assert!(label.is_some()),
                    known => {
                        known.actions();
                        known.own_leaf();
                    }
                }
            }
        }
        for Open { info, .. } in &app.provider.crypto.take_opens() {
            for _ in 0..200 {
                let mut info = info.clone();
                let at = rng.random_range(0..info.len());
                info[at] = rng.random();
                Openable::parse(&info);
            }
        }
    }
}

/// Records anew what is in `tests/captured/openmls`: the seeds of the fuzzer. The other tests of this file live groups
/// of their own instead, so that they are never older than OpenMLS.
#[test]
#[ignore = "it writes files that are kept in the repository"]
fn record() {
    for (suite, public) in [
        (
            Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
            true,
        ),
        (Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256, false),
        (Ciphersuite::MLS_256_DHKEMP384_AES256GCM_SHA384_P384, true),
    ] {
        let number = u16::from(suite);
        let mut lines = String::new();
        for app in live(suite, public) {
            lines += &format!("suite {number}\n");
            for Signed { payload, .. } in app.signed.borrow().iter() {
                lines += &format!("sign {}\n", hex::encode(payload));
            }
            for Open { info, plaintext } in app.provider.crypto.take_opens() {
                lines += &format!("open {} {}\n", hex::encode(info), hex::encode(plaintext));
            }
        }
        let file = captures::directory("openmls").join(format!("suite-{number:04x}.txt"));
        std::fs::write(file, lines).unwrap();
    }
}
