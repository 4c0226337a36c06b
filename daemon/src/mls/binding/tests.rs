//! Attacks from inside the app, one rule each. The bytes are put together by hand, since OpenMLS builds none of them.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;

use ed25519_dalek::{Signer as _, SigningKey};

use super::*;
use crate::mls::signable::sign_content;
use mlskeyd_protocol::app_content::write_opaque;

const GROUP: &[u8] = b"group";
const INDEX: u32 = 3;
/// Public keys of X25519; beyond their length their bytes do not matter to the rules.
const LEAF: &[u8] = b"a leaf key in custody: 32 bytes.";
const INIT: &[u8] = b"an init key in custody: 32 bytes";
const OTHER: &[u8] = b"another key in custody: 32 bytes";
const APPS_OWN: &[u8] = b"a key of the app's own: 32 bytes";

type Result = std::result::Result<Vec<BindingChange>, BindingError<Infallible>>;

fn opaque(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_opaque(&mut out, bytes).unwrap();
    out
}

fn basic(name: &[u8]) -> Vec<u8> {
    [&[0, 1][..], &opaque(name)].concat()
}

fn position(group: &[u8], index: u32) -> Vec<u8> {
    [opaque(group), index.to_be_bytes().to_vec()].concat()
}

/// Puts a message around a leaf.
type Message = fn(&Leaf) -> Vec<u8>;

/// A leaf to be forged.
#[derive(Clone)]
struct Leaf {
    encryption_key: &'static [u8],
    signature_key: Vec<u8>,
    signed_by: SigningKey,
    credential: Vec<u8>,
    source: Vec<u8>,
    position: Vec<u8>,
}

impl Leaf {
    fn payload(&self) -> Vec<u8> {
        [
            opaque(self.encryption_key),
            opaque(&self.signature_key),
            self.credential.clone(),
            vec![0; 5], // capabilities
            self.source.clone(),
            vec![0], // extensions
        ]
        .concat()
    }

    fn tbs(&self) -> Vec<u8> {
        let content = [self.payload(), self.position.clone()].concat();
        sign_content(b"MLS 1.0 LeafNodeTBS", &content).unwrap()
    }

    fn signed(&self) -> Vec<u8> {
        let signature = self.signed_by.sign(&self.tbs()).to_bytes();
        [self.payload(), opaque(&signature)].concat()
    }
}

/// An identity with one signature key in custody, and a registry.
struct World {
    key: SigningKey,
    rotated: SigningKey,
    foreign: SigningKey,
    hpke: HashMap<Vec<u8>, HpkeKey>,
    leaving: HashSet<(Vec<u8>, Vec<u8>)>,
}

impl Custody for World {
    type Error = Infallible;
    fn hpke_key(&self, public_key: &[u8]) -> std::result::Result<HpkeKey, Infallible> {
        Ok(self
            .hpke
            .get(public_key)
            .cloned()
            .unwrap_or(HpkeKey::NotAlive))
    }
    fn signature_scheme(
        &self,
        public_key: &[u8],
    ) -> std::result::Result<Option<SignatureScheme>, Infallible> {
        let known = [&self.key, &self.rotated]
            .iter()
            .any(|key| key.verifying_key().as_bytes() == public_key);
        Ok(known.then_some(SignatureScheme::Ed25519))
    }
    fn may_leave(&self, group: &[u8], key: &[u8]) -> std::result::Result<bool, Infallible> {
        Ok(self.leaving.contains(&(group.to_vec(), key.to_vec())))
    }
}

impl World {
    fn new() -> Self {
        let unbound = |key: &[u8]| (key.to_vec(), HpkeKey::Unbound);
        Self {
            key: SigningKey::from_bytes(&[1; 32]),
            rotated: SigningKey::from_bytes(&[2; 32]),
            foreign: SigningKey::from_bytes(&[3; 32]),
            hpke: [LEAF, INIT, OTHER].map(unbound).into(),
            leaving: HashSet::new(),
        }
    }

    fn bind(&mut self, public_key: &[u8], key: HpkeKey) {
        self.hpke.insert(public_key.to_vec(), key);
    }

    fn check(&self, bytes: &[u8]) -> Result {
        let signable = Signable::parse(bytes);
        assert!(!matches!(signable, Signable::Unknown(_)), "{signable:?}");
        self.check_any(bytes)
    }

    fn check_any(&self, bytes: &[u8]) -> Result {
        let signer = Signer {
            scheme: SignatureScheme::Ed25519,
            public_key: &self.key.verifying_key().to_bytes(),
            credential: &basic(b"alice"),
        };
        check(&Signable::parse(bytes), signer, self)
    }

    fn leaf(&self, source: &[u8], position: Vec<u8>) -> Leaf {
        Leaf {
            encryption_key: LEAF,
            signature_key: self.key.verifying_key().as_bytes().to_vec(),
            signed_by: self.key.clone(),
            credential: basic(b"alice"),
            source: source.to_vec(),
            position,
        }
    }

    fn key_package_leaf(&self) -> Leaf {
        let lifetime = [10_u64.to_be_bytes(), 20_u64.to_be_bytes()].concat();
        self.leaf(&[vec![1], lifetime].concat(), Vec::new())
    }

    fn update_leaf(&self) -> Leaf {
        self.leaf(&[2], position(GROUP, INDEX))
    }

    fn commit_leaf(&self) -> Leaf {
        self.leaf(&[3, 0], position(GROUP, INDEX))
    }

    /// An own leaf as it goes into a message, and that message around it, for both kinds that members send.
    fn messages(&self) -> [(Leaf, Message); 2] {
        [
            (self.commit_leaf(), commit),
            (self.update_leaf(), update_proposal),
        ]
    }
}

impl Leaf {
    fn named_and_signed_by(mut self, key: &SigningKey) -> Self {
        self.signature_key = key.verifying_key().as_bytes().to_vec();
        self.signed_by = key.clone();
        self
    }
}

fn key_package(init_key: &[u8], leaf: &Leaf, extensions: &[u8]) -> Vec<u8> {
    [
        vec![0, 1, 0, 1],
        opaque(init_key),
        leaf.signed(),
        opaque(extensions),
    ]
    .concat()
}

fn key_package_tbs(init_key: &[u8], leaf: &Leaf) -> Vec<u8> {
    sign_content(b"MLS 1.0 KeyPackageTBS", &key_package(init_key, leaf, &[])).unwrap()
}

fn framed(sender: &[u8], body: &[u8], with_context: bool) -> Vec<u8> {
    let place = [opaque(GROUP), 7_u64.to_be_bytes().to_vec()].concat();
    let mut content = [&[0, 1, 0, 1], &place[..], sender, &[0], body].concat();
    if with_context {
        content.extend([&[0, 1, 0, 1], &place[..], &[0, 0, 0]].concat());
    }
    sign_content(b"MLS 1.0 FramedContentTBS", &content).unwrap()
}

fn member() -> Vec<u8> {
    [&[1][..], &INDEX.to_be_bytes()].concat()
}

fn commit(leaf: &Leaf) -> Vec<u8> {
    let body = [&[3, 0, 1][..], &leaf.signed(), &[0]].concat();
    framed(&member(), &body, true)
}

fn update_proposal(leaf: &Leaf) -> Vec<u8> {
    let body = [&[2, 0, 2][..], &leaf.signed()].concat();
    framed(&member(), &body, true)
}

fn external_commit(leaf: &Leaf) -> Vec<u8> {
    let external_init = [1, 0, 6, 0];
    let body = [
        &[3][..],
        &opaque(&external_init),
        &[1],
        &leaf.signed(),
        &[0],
    ]
    .concat();
    framed(&[4], &body, true)
}

fn add(key_package: &[u8], signed_by: &SigningKey) -> Vec<u8> {
    let content = sign_content(b"MLS 1.0 KeyPackageTBS", key_package).unwrap();
    let signature = signed_by.sign(&content).to_bytes();
    [&[2, 0, 1][..], key_package, &opaque(&signature)].concat()
}

fn bound_here() -> HpkeKey {
    HpkeKey::LeafOfGroup {
        group: GROUP.to_vec(),
        leaf_index: INDEX,
    }
}

fn init_binding() -> InitBinding {
    InitBinding {
        leaf_public: LEAF.to_vec(),
        not_before: 10,
        not_after: 20,
        last_resort: false,
    }
}

#[test]
fn honest_structures_bind_their_keys() {
    let world = World::new();
    let leaf_of_group = BindingChange::LeafOfGroup {
        leaf_public: LEAF.to_vec(),
        group: GROUP.to_vec(),
        leaf_index: INDEX,
    };
    let leaf_of_key_package = BindingChange::LeafOfKeyPackage {
        leaf_public: LEAF.to_vec(),
    };
    let init = BindingChange::Init {
        init_public: INIT.to_vec(),
        key_package: init_binding(),
    };
    let leaf = world.key_package_leaf();
    assert_eq!(
        world.check(&leaf.tbs()),
        Ok(vec![leaf_of_key_package.clone()])
    );
    assert_eq!(
        world.check(&key_package_tbs(INIT, &leaf)),
        Ok(vec![leaf_of_key_package, init])
    );
    for (leaf, message) in world.messages() {
        assert_eq!(world.check(&leaf.tbs()), Ok(vec![leaf_of_group.clone()]));
        assert_eq!(
            world.check(&message(&leaf)),
            Ok(vec![leaf_of_group.clone()])
        );
    }
}

#[test]
fn a_leaf_names_the_key_that_signs_it() {
    let world = World::new();
    for leaf in [
        world.key_package_leaf(),
        world.update_leaf(),
        world.commit_leaf(),
    ] {
        for key in [&world.foreign, &world.rotated] {
            let leaf = leaf.clone().named_and_signed_by(key);
            assert_eq!(
                world.check(&leaf.tbs()),
                Err(BindingError::NotTheSigningKey)
            );
        }
    }
}

#[test]
fn a_key_package_names_the_key_that_signs_it() {
    let world = World::new();
    for key in [&world.foreign, &world.rotated] {
        let leaf = world.key_package_leaf().named_and_signed_by(key);
        assert_eq!(
            world.check(&key_package_tbs(INIT, &leaf)),
            Err(BindingError::NotTheSigningKey)
        );
    }
}

#[test]
fn a_leaf_key_of_the_apps_own_is_refused_everywhere() {
    let mut world = World::new();
    let own = |leaf: Leaf| Leaf {
        encryption_key: APPS_OWN,
        ..leaf
    };
    let key_package_leaf = own(world.key_package_leaf());
    let mut attacks = vec![
        key_package_leaf.tbs(),
        key_package_tbs(INIT, &key_package_leaf),
        external_commit(&own(world.commit_leaf())),
        framed(
            &[3],
            &add(&key_package(INIT, &key_package_leaf, &[]), &world.key),
            false,
        ),
    ];
    for (leaf, message) in world.messages() {
        attacks.push(own(leaf.clone()).tbs());
        attacks.push(message(&own(leaf)));
    }
    for attack in &attacks {
        assert_eq!(world.check(attack), Err(BindingError::LeafKeyNotInCustody));
    }
    // It is the custody that is missing, and nothing else.
    world.bind(APPS_OWN, HpkeKey::Unbound);
    for attack in &attacks {
        assert!(matches!(
            world.check(attack),
            Ok(_) | Err(BindingError::UnknownLeafIndex)
        ));
    }
}

#[test]
fn an_init_key_of_the_apps_own_is_refused() {
    let world = World::new();
    let leaf = world.key_package_leaf();
    assert_eq!(
        world.check(&key_package_tbs(APPS_OWN, &leaf)),
        Err(BindingError::InitKeyNotInCustody)
    );
    let proposal = add(&key_package(APPS_OWN, &leaf, &[]), &world.key);
    assert_eq!(
        world.check(&framed(&[3], &proposal, false)),
        Err(BindingError::InitKeyNotInCustody)
    );
}

#[test]
fn init_key_and_leaf_key_differ() {
    let world = World::new();
    assert_eq!(
        world.check(&key_package_tbs(LEAF, &world.key_package_leaf())),
        Err(BindingError::SameKey)
    );
}

#[test]
fn a_leaf_of_a_foreign_signature_key_is_refused() {
    let mut world = World::new();
    world.bind(LEAF, bound_here());
    for (leaf, message) in world.messages() {
        let foreign = leaf.clone().named_and_signed_by(&world.foreign);
        assert_eq!(
            world.check(&message(&foreign)),
            Err(BindingError::ForeignSignatureKey)
        );
        let rotated = leaf.named_and_signed_by(&world.rotated);
        assert_eq!(world.check(&message(&rotated)), Ok(Vec::new()));
    }
    for key in [&world.foreign, &world.rotated] {
        let leaf = world.commit_leaf().named_and_signed_by(key);
        assert_eq!(
            world.check(&external_commit(&leaf)),
            Err(BindingError::NotTheSigningKey)
        );
    }
}

#[test]
fn a_leaf_that_was_not_signed_here_is_refused() {
    let mut world = World::new();
    let forged = |leaf: Leaf| Leaf {
        signed_by: world.foreign.clone(),
        ..leaf
    };
    let key_package_leaf = forged(world.key_package_leaf());
    let mut attacks = vec![
        key_package_tbs(INIT, &key_package_leaf),
        framed(
            &[3],
            &add(&key_package(INIT, &key_package_leaf, &[]), &world.key),
            false,
        ),
    ];
    for (leaf, message) in world.messages() {
        attacks.push(message(&forged(leaf)));
    }
    for attack in attacks {
        assert_eq!(world.check(&attack), Err(BindingError::LeafSignature));
    }
    let attack = external_commit(&forged(world.commit_leaf()));
    world.bind(LEAF, bound_here());
    assert_eq!(world.check(&attack), Err(BindingError::LeafSignature));
}

#[test]
fn a_leaf_replayed_from_another_group_or_leaf_is_refused() {
    let mut world = World::new();
    for (group, index) in [(&b"other"[..], INDEX), (GROUP, INDEX + 1)] {
        world.bind(
            LEAF,
            HpkeKey::LeafOfGroup {
                group: group.to_vec(),
                leaf_index: index,
            },
        );
        for (leaf, message) in world.messages() {
            let replayed = Leaf {
                position: position(group, index),
                ..leaf.clone()
            };
            // As it was signed for the other place ...
            assert_eq!(
                world.check(&message(&replayed)),
                Err(BindingError::LeafSignature)
            );
            // ... and with a signature for this place, which the registry contradicts.
            assert_eq!(world.check(&message(&leaf)), Err(BindingError::OtherLeaf));
            assert_eq!(world.check(&leaf.tbs()), Err(BindingError::OtherLeaf));
        }
    }
}

#[test]
fn an_external_commit_uses_the_leaf_that_was_signed_for_it() {
    let mut world = World::new();
    let message = external_commit(&world.commit_leaf());
    assert_eq!(world.check(&message), Err(BindingError::UnknownLeafIndex));
    world.bind(LEAF, bound_here());
    assert_eq!(world.check(&message), Ok(Vec::new()));
    for key in [
        HpkeKey::Init(init_binding()),
        HpkeKey::LeafOfKeyPackage {
            init_public: None,
            in_group: false,
        },
    ] {
        world.bind(LEAF, key);
        assert_eq!(world.check(&message), Err(BindingError::OtherPurpose));
    }
    // Signed and bound for another group.
    world.bind(
        LEAF,
        HpkeKey::LeafOfGroup {
            group: b"other".to_vec(),
            leaf_index: INDEX,
        },
    );
    let replayed = Leaf {
        position: position(b"other", INDEX),
        ..world.commit_leaf()
    };
    assert_eq!(
        world.check(&external_commit(&replayed)),
        Err(BindingError::LeafSignature)
    );
    assert_eq!(world.check(&message), Err(BindingError::OtherLeaf));
}

#[test]
fn a_leaf_says_to_be_the_identity() {
    let mut world = World::new();
    let mallory = |leaf: Leaf| Leaf {
        credential: basic(b"mallory"),
        ..leaf
    };
    world.bind(LEAF, bound_here());
    let key_package_leaf = mallory(world.key_package_leaf());
    let mut attacks = vec![
        key_package_leaf.tbs(),
        key_package_tbs(INIT, &key_package_leaf),
        external_commit(&mallory(world.commit_leaf())),
    ];
    for (leaf, message) in world.messages() {
        attacks.push(mallory(leaf.clone()).tbs());
        attacks.push(message(&mallory(leaf)));
    }
    for attack in attacks {
        assert_eq!(world.check(&attack), Err(BindingError::Credential));
    }
}

#[test]
fn an_init_key_serves_one_key_package() {
    let mut world = World::new();
    let leaf = world.key_package_leaf();
    world.bind(
        LEAF,
        HpkeKey::LeafOfKeyPackage {
            init_public: Some(INIT.to_vec()),
            in_group: false,
        },
    );
    world.bind(INIT, HpkeKey::Init(init_binding()));
    assert_eq!(world.check(&key_package_tbs(INIT, &leaf)), Ok(Vec::new()));

    let with_other_leaf = Leaf {
        encryption_key: OTHER,
        ..leaf.clone()
    };
    let mut longer = leaf.clone();
    *longer.source.last_mut().unwrap() += 1;
    let last_resort = sign_content(
        b"MLS 1.0 KeyPackageTBS",
        &key_package(INIT, &leaf, &[0, 0x0a, 0]),
    )
    .unwrap();
    for attack in [
        key_package_tbs(INIT, &with_other_leaf),
        key_package_tbs(INIT, &longer),
        last_resort,
    ] {
        assert_eq!(world.check(&attack), Err(BindingError::OtherKeyPackage));
    }
}

#[test]
fn a_leaf_replayed_in_a_second_key_package_is_refused() {
    let mut world = World::new();
    world.bind(
        LEAF,
        HpkeKey::LeafOfKeyPackage {
            init_public: Some(INIT.to_vec()),
            in_group: false,
        },
    );
    assert_eq!(
        world.check(&key_package_tbs(OTHER, &world.key_package_leaf())),
        Err(BindingError::OtherKeyPackage)
    );
}

#[test]
fn the_leaf_that_founded_a_group_goes_into_no_key_package() {
    let mut world = World::new();
    let leaf = world.key_package_leaf();
    world.bind(
        LEAF,
        HpkeKey::LeafOfKeyPackage {
            init_public: None,
            in_group: true,
        },
    );
    assert_eq!(world.check(&leaf.tbs()), Ok(Vec::new()));
    assert_eq!(
        world.check(&key_package_tbs(INIT, &leaf)),
        Err(BindingError::OtherLeaf)
    );
}

#[test]
fn a_key_keeps_its_purpose() {
    let mut world = World::new();
    let key_package_leaf = world.key_package_leaf();

    world.bind(LEAF, HpkeKey::Init(init_binding()));
    assert_eq!(
        world.check(&key_package_leaf.tbs()),
        Err(BindingError::OtherPurpose)
    );
    for (leaf, message) in world.messages() {
        assert_eq!(world.check(&leaf.tbs()), Err(BindingError::OtherPurpose));
        assert_eq!(
            world.check(&message(&leaf)),
            Err(BindingError::OtherPurpose)
        );
    }

    world.bind(
        LEAF,
        HpkeKey::LeafOfKeyPackage {
            init_public: None,
            in_group: false,
        },
    );
    for (leaf, message) in world.messages() {
        assert_eq!(world.check(&leaf.tbs()), Err(BindingError::OtherPurpose));
        assert_eq!(
            world.check(&message(&leaf)),
            Err(BindingError::OtherPurpose)
        );
    }

    for bound in [
        bound_here(),
        HpkeKey::LeafOfKeyPackage {
            init_public: None,
            in_group: false,
        },
    ] {
        world.bind(INIT, bound);
        assert_eq!(
            world.check(&key_package_tbs(INIT, &key_package_leaf)),
            Err(BindingError::OtherPurpose)
        );
    }

    world.bind(LEAF, bound_here());
    world.bind(INIT, HpkeKey::Unbound);
    assert_eq!(
        world.check(&key_package_leaf.tbs()),
        Err(BindingError::OtherLeaf)
    );
    assert_eq!(
        world.check(&key_package_tbs(INIT, &key_package_leaf)),
        Err(BindingError::OtherLeaf)
    );
}

#[test]
fn an_external_add_carries_a_key_package_that_was_signed_here() {
    let world = World::new();
    let package = key_package(INIT, &world.key_package_leaf(), &[]);
    let honest = framed(&[3], &add(&package, &world.key), false);
    assert_eq!(world.check(&honest).map(|changes| changes.len()), Ok(2));
    let forged = framed(&[3], &add(&package, &world.foreign), false);
    assert_eq!(world.check(&forged), Err(BindingError::KeyPackageSignature));
    let foreign_leaf = world.key_package_leaf().named_and_signed_by(&world.foreign);
    let foreign = add(&key_package(INIT, &foreign_leaf, &[]), &world.foreign);
    assert_eq!(
        world.check(&framed(&[3], &foreign, false)),
        Err(BindingError::NotTheSigningKey)
    );
}

#[test]
fn a_member_may_add_somebody_else() {
    let world = World::new();
    let bob = Leaf {
        credential: basic(b"bob"),
        encryption_key: APPS_OWN,
        ..world.key_package_leaf().named_and_signed_by(&world.foreign)
    };
    let proposal = add(&key_package(APPS_OWN, &bob, &[]), &world.foreign);
    let bytes = framed(&member(), &proposal, true);
    assert_eq!(world.check(&bytes), Ok(Vec::new()));
    let Signable::FramedContent(content) = Signable::parse(&bytes) else {
        panic!("no FramedContent");
    };
    let added: Vec<_> = content
        .added()
        .map(|added| added.tbs.leaf_node.payload.credential.raw)
        .collect();
    assert_eq!(added, [basic(b"bob")]);
}

#[test]
fn leaving_custody_takes_a_permit_for_this_group_and_key() {
    let mut world = World::new();
    let software = world.foreign.verifying_key().as_bytes().to_vec();
    let leaf = Leaf {
        encryption_key: APPS_OWN,
        ..world.commit_leaf().named_and_signed_by(&world.foreign)
    };
    world.leaving.insert((b"other".to_vec(), software.clone()));
    assert_eq!(
        world.check(&commit(&leaf)),
        Err(BindingError::ForeignSignatureKey)
    );
    world.leaving.insert((GROUP.to_vec(), software));
    assert_eq!(world.check(&commit(&leaf)), Ok(Vec::new()));

    // The permit is for that key, for commits, and for nothing else.
    let mallory = Leaf {
        credential: basic(b"mallory"),
        ..leaf.clone()
    };
    assert_eq!(
        world.check(&commit(&mallory)),
        Err(BindingError::Credential)
    );
    let unsigned = Leaf {
        signed_by: world.key.clone(),
        ..leaf.clone()
    };
    assert_eq!(
        world.check(&commit(&unsigned)),
        Err(BindingError::LeafSignature)
    );
    let still_in_custody = Leaf {
        encryption_key: APPS_OWN,
        ..world.commit_leaf()
    };
    assert_eq!(
        world.check(&commit(&still_in_custody)),
        Err(BindingError::LeafKeyNotInCustody)
    );
    let update = Leaf {
        source: vec![2],
        ..leaf.clone()
    };
    assert_eq!(
        world.check(&update_proposal(&update)),
        Err(BindingError::ForeignSignatureKey)
    );
    // A key in custody does not change its group on the way out.
    world.bind(APPS_OWN, HpkeKey::Init(init_binding()));
    assert_eq!(world.check(&commit(&leaf)), Err(BindingError::OtherPurpose));
}

#[test]
fn what_cannot_be_read_under_an_mls_label_is_refused() {
    let world = World::new();
    for label in [
        "FramedContent",
        "LeafNode",
        "KeyPackage",
        "GroupInfo",
        "TargetedMessage",
    ] {
        let label = format!("MLS 1.0 {label}TBS");
        let bytes = sign_content(label.as_bytes(), b"?").unwrap();
        assert_eq!(world.check_any(&bytes), Err(BindingError::Unreadable));
        let unfinished = opaque(label.as_bytes());
        assert_eq!(world.check_any(&unfinished), Err(BindingError::Unreadable));
    }
    let bytes = sign_content(b"MLS 1.0 SomethingElseTBS", b"?").unwrap();
    assert_eq!(world.check_any(&bytes), Ok(Vec::new()));
}

#[test]
fn a_registry_that_does_not_answer_is_a_failure_and_no_refusal() {
    struct Silent;
    impl Custody for Silent {
        type Error = std::fmt::Error;
        fn hpke_key(&self, _: &[u8]) -> std::result::Result<HpkeKey, Self::Error> {
            Err(std::fmt::Error)
        }
        fn signature_scheme(
            &self,
            _: &[u8],
        ) -> std::result::Result<Option<SignatureScheme>, Self::Error> {
            Err(std::fmt::Error)
        }
        fn may_leave(&self, _: &[u8], _: &[u8]) -> std::result::Result<bool, Self::Error> {
            Err(std::fmt::Error)
        }
    }
    let world = World::new();
    let signer = Signer {
        scheme: SignatureScheme::Ed25519,
        public_key: &world.key.verifying_key().to_bytes(),
        credential: &basic(b"alice"),
    };
    for bytes in [world.commit_leaf().tbs(), commit(&world.commit_leaf())] {
        assert_eq!(
            check(&Signable::parse(&bytes), signer, &Silent),
            Err(BindingError::Registry(std::fmt::Error))
        );
    }
}

#[test]
fn an_external_commit_holds_what_it_may() {
    let mut world = World::new();
    world.bind(LEAF, bound_here());
    let with = |proposals: &[u8]| {
        let body = [
            &[3][..],
            &opaque(proposals),
            &[1],
            &world.commit_leaf().signed(),
            &[0],
        ]
        .concat();
        world.check_any(&framed(&[4], &body, true))
    };
    let init = [1, 0, 6, 0];
    let remove = [1, 0, 3, 0, 0, 0, 1];
    let extensions = [1, 0, 7, 0];
    let reference = [2, 1, 9];
    assert_eq!(with(&[&init[..], &remove, &reference].concat()), Ok(vec![]));
    for proposals in [
        &[][..],
        &[init, init].concat(),
        &[&init[..], &remove, &remove].concat(),
        &[init, extensions].concat(),
    ] {
        assert_eq!(with(proposals), Err(BindingError::Unreadable));
    }
}

#[test]
fn a_lifetime_does_not_end_before_it_begins() {
    let world = World::new();
    let mut leaf = world.key_package_leaf();
    leaf.source = [vec![1], vec![0xff; 8], vec![0; 8]].concat();
    assert_eq!(world.check_any(&leaf.tbs()), Err(BindingError::Unreadable));
}

#[test]
fn a_leaf_of_another_source_does_not_pass() {
    let world = World::new();
    let at_home = position(GROUP, INDEX);
    for bytes in [
        commit(&world.update_leaf()),
        commit(&world.key_package_leaf()),
        update_proposal(&world.commit_leaf()),
        update_proposal(&world.key_package_leaf()),
        key_package_tbs(INIT, &world.leaf(&[2], at_home)),
    ] {
        assert_eq!(world.check_any(&bytes), Err(BindingError::Unreadable));
    }
}

#[test]
fn an_added_key_package_has_the_cipher_suite_of_the_group() {
    let world = World::new();
    let mut package = key_package(INIT, &world.key_package_leaf(), &[]);
    package[3] = 3;
    let bytes = framed(&member(), &add(&package, &world.key), true);
    assert_eq!(world.check_any(&bytes), Err(BindingError::Unreadable));
}
