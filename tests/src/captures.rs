//! What MLS implementations really gave a Signer and really opened, and checks that hold for all of it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

use mlskeyd::mls::binding::{BindingChange, Custody, HpkeKey};
use mlskeyd::mls::{Openable, OwnLeaf, Signable, TreePosition, verify};
use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::SignatureScheme;
use openmls::prelude::tls_codec::{Deserialize, Serialize};
use tls_codec::VLBytes;

use crate::crypto::Open;

/// What was recorded of one group's life, or of one app's.
#[derive(Debug, Default)]
pub struct Capture {
    /// The number of the cipher suite.
    pub suite: u16,
    /// What was signed, in order.
    pub signed: Vec<Vec<u8>>,
    /// What was signed, and has a proposal of a type for private use in it.
    pub custom: Vec<Vec<u8>>,
    /// What was opened.
    pub opened: Vec<Open>,
}

/// Where the captures of this implementation are kept.
pub fn directory(implementation: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("captured")
        .join(implementation)
}

/// Reads all that was recorded of this implementation. `tests/captured/README.md` describes the files.
///
/// # Panics
/// If they are not as described.
pub fn read(implementation: &str) -> Vec<Capture> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory(implementation))
        .expect("the directory is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    let mut captures = Vec::new();
    for file in files {
        for line in std::fs::read_to_string(file).expect("text").lines() {
            read_line(line, &mut captures);
        }
    }
    captures
}

fn read_line(line: &str, captures: &mut Vec<Capture>) {
    let words: Vec<&str> = line.split(' ').collect();
    let bytes = |word: &str| hex::decode(word).expect("hex");
    if let ["suite", number] = words[..] {
        captures.push(Capture {
            suite: number.parse().expect("a number"),
            ..Capture::default()
        });
        return;
    }
    let capture = captures.last_mut().expect("a suite comes first");
    match words[..] {
        ["sign", payload] => capture.signed.push(bytes(payload)),
        ["custom", payload] => capture.custom.push(bytes(payload)),
        ["open", info, plaintext] => capture.opened.push(Open {
            info: bytes(info),
            plaintext: bytes(plaintext),
        }),
        _ => panic!("not a line of a capture: {line}"),
    }
}

/// Takes `{ label<V>, content<V> }` apart, and puts it together again with other content.
///
/// # Panics
/// If it is none.
pub fn with_content(payload: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut rest = payload;
    let label = VLBytes::tls_deserialize(&mut rest).expect("a label");
    let mut content = Vec::from(VLBytes::tls_deserialize(&mut rest).expect("content"));
    change(&mut content);
    let mut out = label.tls_serialize_detached().expect("it fits");
    let content = VLBytes::new(content);
    out.extend(content.tls_serialize_detached().expect("it fits"));
    out
}

/// Whatever is cut from what was signed, or added to it, makes it unknown.
///
/// # Panics
/// If it does not.
pub fn only_whole(payload: &[u8]) {
    let is_unknown = |bytes: &[u8]| matches!(Signable::parse(bytes), Signable::Unknown(_));
    for cut in 0..payload.len() {
        assert!(is_unknown(&payload[..cut]), "cut to {cut}");
    }
    assert!(is_unknown(&[payload, &[0][..]].concat()));
    assert!(is_unknown(&payload.repeat(2)));
    // The same within a SignContent that is sound.
    let mut length = 0;
    with_content(payload, |content| length = content.len());
    for cut in 0..length {
        let bytes = with_content(payload, |content| content.truncate(cut));
        assert!(is_unknown(&bytes), "cut to {cut}: {}", hex::encode(bytes));
    }
    assert!(is_unknown(&with_content(payload, |c| c.push(0))));
    assert!(is_unknown(&with_content(payload, |c| *c = c.repeat(2))));
}

/// What was opened is known, yields what it must, and would not if anything were cut or added. Its kind.
///
/// # Panics
/// If it does not.
pub fn opens_only_whole(suite: u16, Open { info, plaintext }: &Open) -> Action {
    let open = Openable::parse(info);
    assert_eq!(open.check_plaintext(suite, plaintext), Ok(()), "{open:?}");
    for cut in 0..plaintext.len() {
        assert!(open.check_plaintext(suite, &plaintext[..cut]).is_err());
    }
    let longer = [plaintext, &[0][..]].concat();
    assert!(open.check_plaintext(suite, &longer).is_err());
    for cut in 0..info.len() {
        assert_eq!(Openable::parse(&info[..cut]).action(), Action::OpenUnknown);
    }
    for longer in [[info, &[0][..]].concat(), info.repeat(2)] {
        assert_eq!(Openable::parse(&longer).action(), Action::OpenUnknown);
    }
    open.action()
}

/// The leaf within a message is one of those that were signed before, and its signature is one for its place and no
/// other. `newcomer` is the leaf index of who enters by an external commit.
///
/// # Panics
/// If it is not.
pub fn own_leaf_is_signed(
    scheme: SignatureScheme,
    own_leaf: OwnLeaf<'_, '_>,
    newcomer: impl FnOnce() -> u32,
    before: impl Fn(&[u8]) -> bool,
) {
    let leaf = own_leaf.leaf_node();
    let verifies = |content: &[u8], signature: &[u8]| {
        verify(scheme, leaf.payload.signature_key, content, signature)
    };
    let position = match own_leaf {
        OwnLeaf::KeyPackage(_) => None,
        OwnLeaf::ExternalAdd { key_package, .. } => {
            let content = key_package.signed_content().expect("it fits");
            assert!(before(&content));
            assert!(verifies(&content, key_package.signature));
            None
        }
        OwnLeaf::Update {
            group_id,
            leaf_index,
            ..
        }
        | OwnLeaf::Commit {
            group_id,
            leaf_index,
            ..
        } => Some(TreePosition {
            group_id,
            leaf_index,
        }),
        OwnLeaf::ExternalCommit { group_id, .. } => Some(TreePosition {
            group_id,
            leaf_index: newcomer(),
        }),
    };
    let content = leaf.signed_content(position).expect("it has its place");
    assert!(before(&content), "{own_leaf:?}");
    assert!(verifies(&content, leaf.signature), "{own_leaf:?}");
    if let Some(position) = position {
        let elsewhere = TreePosition {
            leaf_index: position.leaf_index + 1,
            ..position
        };
        let content = leaf.signed_content(Some(elsewhere)).expect("it fits");
        assert!(!verifies(&content, leaf.signature));
        assert_eq!(leaf.signed_content(None), None);
    }
}

/// The kinds of own leaves, to count them by.
pub fn kind_of(own_leaf: OwnLeaf<'_, '_>) -> &'static str {
    match own_leaf {
        OwnLeaf::KeyPackage(_) => "KeyPackage",
        OwnLeaf::ExternalAdd { .. } => "external Add",
        OwnLeaf::Update { .. } => "Update",
        OwnLeaf::Commit { .. } => "commit",
        OwnLeaf::ExternalCommit { .. } => "external commit",
    }
}

/// How many kinds [`kind_of`] tells.
pub const KINDS_OF_OWN_LEAVES: usize = 5;

/// A registry in which every HPKE key is in custody, unbound until a signature binds it, and each signature key that
/// is said to be.
#[derive(Debug)]
pub struct Registry<F> {
    scheme: SignatureScheme,
    is_signature_key: F,
    bound: RefCell<HashMap<Vec<u8>, HpkeKey>>,
}

impl<F: Fn(&[u8]) -> bool> Registry<F> {
    /// One of this scheme's keys.
    pub fn new(scheme: SignatureScheme, is_signature_key: F) -> Self {
        Self {
            scheme,
            is_signature_key,
            bound: RefCell::default(),
        }
    }

    /// Writes down what a signature bound.
    pub fn apply(&self, changes: Vec<BindingChange>) {
        let mut bound = self.bound.borrow_mut();
        let leaf_of_key_package = |init_public| HpkeKey::LeafOfKeyPackage {
            init_public,
            in_group: false,
        };
        for change in changes {
            match change {
                BindingChange::Init {
                    init_public,
                    key_package,
                } => {
                    let leaf = leaf_of_key_package(Some(init_public.clone()));
                    bound.insert(key_package.leaf_public.clone(), leaf);
                    bound.insert(init_public, HpkeKey::Init(key_package));
                }
                BindingChange::LeafOfGroup {
                    leaf_public,
                    group,
                    leaf_index,
                } => {
                    bound.insert(leaf_public, HpkeKey::LeafOfGroup { group, leaf_index });
                }
                BindingChange::LeafOfKeyPackage { leaf_public } => {
                    bound.insert(leaf_public, leaf_of_key_package(None));
                }
            }
        }
    }
}

impl<F: Fn(&[u8]) -> bool> Custody for Registry<F> {
    type Error = Infallible;

    fn hpke_key(&self, public_key: &[u8]) -> Result<HpkeKey, Infallible> {
        let bound = self.bound.borrow();
        Ok(bound.get(public_key).cloned().unwrap_or(HpkeKey::Unbound))
    }

    fn signature_scheme(&self, public_key: &[u8]) -> Result<Option<SignatureScheme>, Infallible> {
        Ok((self.is_signature_key)(public_key).then_some(self.scheme))
    }

    fn may_leave(&self, _: &[u8], _: &[u8]) -> Result<bool, Infallible> {
        Ok(false)
    }
}
