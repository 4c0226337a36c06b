//! The rules of binding, in registries that answer in every way: none lets a key of the app's own in.

use std::fmt;

use mlskeyd::mls::binding::{
    self, BindingChange, BindingError, Custody, HpkeKey, InitBinding, Signer,
};
use mlskeyd::mls::{LeafNodePayload, OwnLeaf, Signable, scheme_of_cipher_suite};
use mlskeyd_protocol::v1::SignatureScheme;

use super::{LABELS, SIGNED_LABELS};

/// A registry that cannot be read.
#[derive(Debug, PartialEq, Eq)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken")
    }
}

impl std::error::Error for Broken {}

/// What the registry says.
#[derive(Clone, Copy)]
struct Registry<'a> {
    /// Of the leaf's HPKE key; nothing if it cannot be read.
    leaf: Option<&'a HpkeKey>,
    leaf_public: &'a [u8],
    /// Of all others.
    init: &'a HpkeKey,
    /// Of all signature keys.
    scheme: Option<SignatureScheme>,
    may_leave: bool,
}

impl Custody for Registry<'_> {
    type Error = Broken;

    fn hpke_key(&self, public_key: &[u8]) -> Result<HpkeKey, Broken> {
        if public_key == self.leaf_public {
            self.leaf.cloned().ok_or(Broken)
        } else {
            Ok(self.init.clone())
        }
    }
    fn signature_scheme(&self, _: &[u8]) -> Result<Option<SignatureScheme>, Broken> {
        Ok(self.scheme)
    }
    fn may_leave(&self, _: &[u8], _: &[u8]) -> Result<bool, Broken> {
        Ok(self.may_leave)
    }
}

type Outcome = Result<Vec<BindingChange>, BindingError<Broken>>;

/// The leaf that is signed, or that is in what is signed.
fn leaf_of<'s, 'a>(signable: &'s Signable<'a>) -> Option<&'s LeafNodePayload<'a>> {
    match signable {
        Signable::LeafNode(tbs) => Some(&tbs.payload),
        other => Some(&other.own_leaf()?.leaf_node().payload),
    }
}

/// Checks it, with a choice of registries that depends on `bytes` alone.
pub(super) fn check(signable: &Signable<'_>, bytes: &[u8]) {
    let unbound = Registry {
        leaf: Some(&HpkeKey::Unbound),
        leaf_public: &[],
        init: &HpkeKey::Unbound,
        scheme: None,
        may_leave: false,
    };
    let stranger = Signer {
        scheme: SignatureScheme::Ed25519,
        public_key: &[],
        credential: &[],
    };
    let suite = signable.cipher_suite();
    let scheme = suite.map(scheme_of_cipher_suite);
    if let Signable::Unknown(unknown) = signable {
        let speaks_mls = SIGNED_LABELS
            .iter()
            .any(|of| unknown.label == Some(LABELS[*of]));
        let outcome = judge(signable, stranger, unbound);
        assert_eq!(outcome.is_ok(), !speaks_mls);
        assert!(outcome.is_ok_and(|new| new.is_empty()) || speaks_mls);
        return;
    }
    let Some(leaf) = leaf_of(signable) else {
        // Nothing binds, and only the suite counts.
        let outcome = judge(signable, stranger, unbound);
        let fits = scheme.is_none_or(|scheme| scheme == Some(stranger.scheme));
        assert_eq!(
            outcome,
            if fits {
                Ok(Vec::new())
            } else {
                Err(BindingError::CipherSuite)
            }
        );
        return;
    };
    let by_length = match leaf.signature_key.len() {
        65 => SignatureScheme::EcdsaP256Sha256,
        97 => SignatureScheme::EcdsaP384Sha384,
        _ => SignatureScheme::Ed25519,
    };
    let signer = Signer {
        scheme: scheme.flatten().unwrap_or(by_length),
        public_key: leaf.signature_key,
        credential: leaf.credential.raw,
    };
    let registry = Registry {
        leaf_public: leaf.encryption_key,
        scheme: Some(signer.scheme),
        ..unbound
    };
    nobody_else(signable, signer, registry);
    let outcome = judge(signable, signer, registry);
    if outcome == Err(BindingError::LeafSignature) {
        // It comes before all that the registry says of HPKE keys.
        return;
    }
    learned(signable, leaf, &outcome);
    for choice in choices(bytes) {
        in_other_registries(signable, signer, registry, choice);
    }
}

fn judge(signable: &Signable<'_>, signer: Signer<'_>, registry: Registry<'_>) -> Outcome {
    let outcome = binding::check(signable, signer, &registry);
    if let Err(why) = &outcome {
        assert!(!why.to_string().is_empty() && !why.advice().is_empty());
    }
    outcome
}

/// Neither somebody else's key, nor another name, nor a key that is not in custody.
fn nobody_else(signable: &Signable<'_>, signer: Signer<'_>, registry: Registry<'_>) {
    let in_group = matches!(
        signable.own_leaf(),
        Some(OwnLeaf::Commit { .. } | OwnLeaf::Update { .. })
    );
    let other_name = Signer {
        credential: &[],
        ..signer
    };
    assert!(judge(signable, other_name, registry).is_err());
    if in_group {
        let foreign = Registry {
            scheme: None,
            ..registry
        };
        assert!(judge(signable, signer, foreign).is_err());
    } else {
        let other_key = Signer {
            public_key: &[],
            ..signer
        };
        assert!(signer.public_key.is_empty() || judge(signable, other_key, registry).is_err());
    }
}

/// What is learned of keys that nothing was known of, is about the keys in it.
fn learned(signable: &Signable<'_>, leaf: &LeafNodePayload<'_>, outcome: &Outcome) {
    let Ok(changes) = outcome else { return };
    let expected = match (signable, signable.own_leaf()) {
        (_, Some(OwnLeaf::KeyPackage(_) | OwnLeaf::ExternalAdd { .. })) => 2,
        _ => 1,
    };
    assert_eq!(changes.len(), expected);
    for change in changes {
        let leaf_public = match change {
            BindingChange::Init {
                init_public,
                key_package,
            } => {
                assert_ne!(init_public, leaf.encryption_key);
                &key_package.leaf_public
            }
            BindingChange::LeafOfGroup { leaf_public, .. }
            | BindingChange::LeafOfKeyPackage { leaf_public } => leaf_public,
        };
        assert_eq!(leaf_public, leaf.encryption_key);
    }
}

/// Some of the registries below, by the input: each takes time to verify signatures.
fn choices(bytes: &[u8]) -> [u8; 3] {
    let hash = bytes.iter().fold(7_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    let [a, b, c, _] = hash.to_be_bytes();
    [a, b, c]
}

fn in_other_registries(
    signable: &Signable<'_>,
    signer: Signer<'_>,
    registry: Registry<'_>,
    choice: u8,
) {
    let own_leaf = signable.own_leaf();
    let (group, leaf_index) = match (signable, own_leaf) {
        (Signable::LeafNode(tbs), _) => match tbs.position {
            Some(position) => (position.group_id, position.leaf_index),
            None => (&b"g"[..], 0),
        },
        (
            _,
            Some(
                OwnLeaf::Update {
                    group_id,
                    leaf_index,
                    ..
                }
                | OwnLeaf::Commit {
                    group_id,
                    leaf_index,
                    ..
                },
            ),
        ) => (group_id, leaf_index),
        (
            _,
            Some(OwnLeaf::ExternalCommit { group_id, .. } | OwnLeaf::ExternalAdd { group_id, .. }),
        ) => (group_id, u32::from(choice & 3)),
        _ => (&b"g"[..], 0),
    };
    let init_public = own_leaf
        .and_then(|own| own.hpke_keys().nth(1))
        .unwrap_or_default();
    let wanted = init_binding(signable, registry.leaf_public);
    let in_group = |leaf_index| HpkeKey::LeafOfGroup {
        group: group.to_vec(),
        leaf_index,
    };
    let of_key_package = |init_public: Option<&[u8]>, in_group| HpkeKey::LeafOfKeyPackage {
        init_public: init_public.map(<[u8]>::to_vec),
        in_group,
    };
    let keys = [
        HpkeKey::NotAlive,
        HpkeKey::Init(wanted.clone()),
        of_key_package(None, false),
        of_key_package(None, true),
        of_key_package(Some(init_public), false),
        of_key_package(Some(b"other"), false),
        in_group(leaf_index),
        in_group(leaf_index.wrapping_add(1)),
    ];
    let inits = [
        HpkeKey::Unbound,
        HpkeKey::NotAlive,
        in_group(0),
        HpkeKey::Init(wanted.clone()),
        HpkeKey::Init(InitBinding {
            last_resort: !wanted.last_resort,
            ..wanted
        }),
    ];
    let leaf = keys.get(usize::from(choice & 0xf) % (keys.len() + 1));
    let leaving = choice & 0xc0 == 0xc0;
    let other = Registry {
        leaf,
        init: &inits[usize::from(choice >> 4) % inits.len()],
        scheme: registry.scheme.filter(|_| !leaving),
        may_leave: leaving,
        ..registry
    };
    let outcome = judge(signable, signer, other);
    assert_eq!(
        outcome,
        judge(signable, signer, other),
        "it is judged the same twice"
    );
    if leaf == Some(&HpkeKey::NotAlive) && outcome.is_ok() {
        let leaves = leaving && matches!(own_leaf, Some(OwnLeaf::Commit { .. }));
        assert!(leaves, "a leaf key that is not in custody was let in");
    }
    if matches!(leaf, Some(HpkeKey::Init(_))) {
        assert!(outcome.is_err(), "an init key became a leaf's");
    }
    if leaf.is_none() && outcome.is_ok() {
        panic!("nothing was known of the key");
    }
}

/// That of the KeyPackage in it.
fn init_binding(signable: &Signable<'_>, leaf_public: &[u8]) -> InitBinding {
    let tbs = match signable.own_leaf() {
        Some(OwnLeaf::KeyPackage(tbs)) => Some(tbs),
        Some(OwnLeaf::ExternalAdd { key_package, .. }) => Some(&key_package.tbs),
        _ => None,
    };
    InitBinding {
        leaf_public: leaf_public.to_vec(),
        not_before: tbs.map_or(0, |tbs| tbs.lifetime.not_before),
        not_after: tbs.map_or(0, |tbs| tbs.lifetime.not_after),
        last_resort: tbs.is_some_and(|tbs| tbs.last_resort()),
    }
}
