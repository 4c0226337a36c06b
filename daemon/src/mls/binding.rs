//! Binding by signing: what the daemon learns about its HPKE keys from the structures that it is asked to sign, and
//! the structures that it must not sign because they would put a key of the app's own in the place of one in custody.
//!
//! [`check`] is pure: what the registry knows comes in by [`Custody`], what it must write down goes out as
//! [`BindingChange`]s, to be durable before the signature leaves.

use mlskeyd_protocol::v1::SignatureScheme;
use thiserror::Error;

use super::{
    KeyPackage, KeyPackageTbs, LeafNode, LeafNodePayload, LeafNodeTbs, OwnLeaf, Signable,
    TreePosition, kem_of_cipher_suite, scheme_of_cipher_suite, verify,
};
use crate::devices::PeerPublic;

/// The key that is to sign.
#[derive(Clone, Copy, Debug)]
pub struct Signer<'a> {
    /// Its scheme.
    pub scheme: SignatureScheme,
    /// Its public key, encoded as [`verify`] takes it.
    pub public_key: &'a [u8],
    /// The credential that its identity has pinned: the whole Credential structure of RFC 9420 section 5.3.
    pub credential: &'a [u8],
}

/// What the registry knows about an HPKE key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HpkeKey {
    /// No such key of this owner is in custody, or it is destroyed, missing or waiting to be destroyed.
    NotAlive,
    /// In custody, alive, and not yet bound.
    Unbound,
    /// The init key of a KeyPackage.
    Init(InitBinding),
    /// The leaf key of a KeyPackage, or of a group's creator.
    LeafOfKeyPackage {
        /// The init key of that KeyPackage, once its KeyPackageTBS was signed.
        init_public: Option<Vec<u8>>,
        /// Whether it serves in a group already.
        in_group: bool,
    },
    /// The leaf key of a leaf that was signed for one place in one group.
    LeafOfGroup {
        /// The group's id.
        group: Vec<u8>,
        /// The leaf's index.
        leaf_index: u32,
    },
}

/// The KeyPackage that an init key belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitBinding {
    /// The public key of its leaf.
    pub leaf_public: Vec<u8>,
    /// The first second of its lifetime, since 1970-01-01 UTC.
    pub not_before: u64,
    /// The last second of its lifetime.
    pub not_after: u64,
    /// Whether it may be used more than once.
    pub last_resort: bool,
}

/// What the registry knows about the keys of one owner and one identity.
pub trait Custody {
    /// The failure of a look-up.
    type Error: std::error::Error + 'static;

    /// The HPKE key of this owner with this public key.
    fn hpke_key(&self, public_key: &[u8]) -> Result<HpkeKey, Self::Error>;

    /// The scheme of the signature key of this identity with this public key, if it is in custody.
    fn signature_scheme(&self, public_key: &[u8]) -> Result<Option<SignatureScheme>, Self::Error>;

    /// Whether the identity was permitted to leave custody in this group, with this signature key of software.
    fn may_leave(&self, group_id: &[u8], software_key: &[u8]) -> Result<bool, Self::Error>;
}

/// What is to be written down before the signature leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindingChange {
    /// This key is the init key of a KeyPackage, whose leaf key thereby has this init key.
    Init {
        /// Its public key.
        init_public: Vec<u8>,
        /// The KeyPackage.
        key_package: InitBinding,
    },
    /// This key is the leaf key of one place in one group.
    LeafOfGroup {
        /// Its public key.
        leaf_public: Vec<u8>,
        /// The group's id.
        group: Vec<u8>,
        /// The leaf's index.
        leaf_index: u32,
    },
    /// This key is the leaf key of a KeyPackage.
    LeafOfKeyPackage {
        /// Its public key.
        leaf_public: Vec<u8>,
    },
}

/// Why something must not be signed. The texts are for the app's developer and hold no secret.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BindingError<E: std::error::Error + 'static> {
    /// The registry did not answer. This is a failure and no refusal: the same request may work later.
    #[error("the key registry could not be read")]
    Registry(#[source] E),
    /// An MLS structure that cannot be read may hide a leaf, so no policy can permit it.
    #[error("the bytes carry the label of an MLS structure but are none that can be read")]
    Unreadable,
    /// The leaf or message would be verified with another key than the one that signs.
    #[error("the leaf names another signature key than the one that signs")]
    NotTheSigningKey,
    /// The embedded leaf names a signature key that is not in custody for this identity.
    #[error("the leaf names a signature key that is not in custody for this identity")]
    ForeignSignatureKey,
    /// The embedded leaf was not signed here for this place.
    #[error("the leaf within the message carries no valid signature for this group and place")]
    LeafSignature,
    /// The embedded KeyPackage was not signed here.
    #[error("the KeyPackage within the message carries no valid signature")]
    KeyPackageSignature,
    /// The leaf says to be somebody else.
    #[error("the credential in the leaf is not the one that is pinned for this identity")]
    Credential,
    /// The leaf key is the app's own, another owner's, or destroyed.
    #[error("the leaf's encryption key is not in custody or no longer alive")]
    LeafKeyNotInCustody,
    /// The init key is the app's own, another owner's, or destroyed.
    #[error("the init key is not in custody or no longer alive")]
    InitKeyNotInCustody,
    /// RFC 9420 section 10.1 demands two keys.
    #[error("init key and leaf key of the KeyPackage are the same")]
    SameKey,
    /// The key serves another KeyPackage already.
    #[error("the key belongs to another KeyPackage already")]
    OtherKeyPackage,
    /// The key is an init key and cannot be a leaf key, or the other way round.
    #[error("the key was bound to another purpose already")]
    OtherPurpose,
    /// The key is bound to another place in another group, or in this one.
    #[error("the leaf key belongs to another group or leaf")]
    OtherLeaf,
    /// Others would verify or open it with algorithms that its keys are not for, and a policy would judge a claim.
    #[error("the cipher suite that the structure names is not that of its keys")]
    CipherSuite,
    /// Nothing tells where in the tree the new leaf will be.
    #[error("the leaf of the external commit was never signed here")]
    UnknownLeafIndex,
}

impl<E: std::error::Error + 'static> BindingError<E> {
    /// What the app's developer, or its user, can do next.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Registry(_) => "try again, and see `mlskeyctl status` if it stays so",
            Self::Unreadable => "build them with a supported OpenMLS version",
            Self::NotTheSigningKey => "use the CredentialWithKey of the same CustodySigner",
            Self::ForeignSignatureKey => {
                "sign leaves with its CustodySigner, or ask for a permit to leave custody"
            }
            Self::LeafSignature => "drop the pending change and build it again",
            Self::KeyPackageSignature => "build a new KeyPackage",
            Self::Credential => "use the pinned one, or make another identity",
            Self::LeafKeyNotInCustody => "build the structure again with the CustodyProvider",
            Self::InitKeyNotInCustody => "build the KeyPackage again with the CustodyProvider",
            Self::SameKey => "build a new KeyPackage",
            Self::OtherKeyPackage => "build a new KeyPackage",
            Self::OtherPurpose => "build the structure again with fresh keys",
            Self::OtherLeaf => "build the structure again with fresh keys",
            Self::CipherSuite => "use an identity, and keys, of the group's cipher suite",
            Self::UnknownLeafIndex => "build the external commit again",
        }
    }
}

impl<E: std::error::Error + 'static> From<E> for BindingError<E> {
    fn from(error: E) -> Self {
        Self::Registry(error)
    }
}

/// Applies the rules to something that `signer` is to sign. `Ok` holds what is new; signing the same thing again
/// yields nothing new.
pub fn check<C: Custody>(
    signable: &Signable<'_>,
    signer: Signer<'_>,
    custody: &C,
) -> Result<Vec<BindingChange>, BindingError<C::Error>> {
    let rules = Rules { signer, custody };
    if let Signable::LeafNode(leaf) = signable {
        return rules.leaf_to_sign(leaf);
    }
    if let Signable::Unknown(unknown) = signable
        && unknown
            .label
            .is_some_and(|label| super::signable::MLS_LABELS.contains(&label))
    {
        return Err(BindingError::Unreadable);
    }
    let suite = signable.cipher_suite();
    if suite.is_some_and(|suite| scheme_of_cipher_suite(suite) != Some(signer.scheme)) {
        return Err(BindingError::CipherSuite);
    }
    let Some(own_leaf) = signable.own_leaf() else {
        return Ok(Vec::new());
    };
    let changes = match own_leaf {
        OwnLeaf::KeyPackage(tbs) => rules.key_package_to_sign(tbs),
        OwnLeaf::ExternalAdd { key_package, .. } => rules.external_add(key_package),
        OwnLeaf::Update {
            group_id,
            leaf_index,
            leaf_node,
        } => rules.leaf_in_group(
            leaf_node,
            TreePosition {
                group_id,
                leaf_index,
            },
        ),
        OwnLeaf::Commit {
            group_id,
            leaf_index,
            cipher_suite,
            leaf_node,
        } => rules.leaf_in_commit(
            leaf_node,
            TreePosition {
                group_id,
                leaf_index,
            },
            cipher_suite,
        ),
        OwnLeaf::ExternalCommit {
            group_id,
            leaf_node,
        } => rules.leaf_in_external_commit(leaf_node, group_id),
    }?;
    // They are in custody, or the leaf leaves it; are they of the group's suite?
    for public_key in own_leaf.hpke_keys() {
        is_key_of_suite(public_key, suite)?;
    }
    Ok(changes)
}

struct Rules<'a, C> {
    signer: Signer<'a>,
    custody: &'a C,
}

impl<C: Custody> Rules<'_, C> {
    fn leaf_to_sign(
        &self,
        leaf: &LeafNodeTbs<'_>,
    ) -> Result<Vec<BindingChange>, BindingError<C::Error>> {
        self.is_signing_key(&leaf.payload)?;
        self.is_pinned_credential(&leaf.payload)?;
        let key = self.custody.hpke_key(leaf.payload.encryption_key)?;
        let change = match leaf.position {
            None => bind_to_key_package(leaf.payload.encryption_key, &key, None)?,
            Some(position) => bind_to_group(leaf.payload.encryption_key, &key, position)?,
        };
        Ok(change.into_iter().collect())
    }

    fn key_package_to_sign(
        &self,
        tbs: &KeyPackageTbs<'_>,
    ) -> Result<Vec<BindingChange>, BindingError<C::Error>> {
        let payload = &tbs.leaf_node.payload;
        self.is_signing_key(payload)?;
        self.is_pinned_credential(payload)?;
        leaf_is_signed(self.signer.scheme, &tbs.leaf_node, None)?;
        self.bind_key_package(tbs)
    }

    /// The sender has no leaf yet, so its message is verified with the key in the KeyPackage.
    fn external_add(
        &self,
        key_package: &KeyPackage<'_>,
    ) -> Result<Vec<BindingChange>, BindingError<C::Error>> {
        let changes = self.key_package_to_sign(&key_package.tbs)?;
        let content = key_package
            .signed_content()
            .ok_or(BindingError::KeyPackageSignature)?;
        if !verify(
            self.signer.scheme,
            self.signer.public_key,
            &content,
            key_package.signature,
        ) {
            return Err(BindingError::KeyPackageSignature);
        }
        Ok(changes)
    }

    fn leaf_in_group(
        &self,
        leaf: &LeafNode<'_>,
        position: TreePosition<'_>,
    ) -> Result<Vec<BindingChange>, BindingError<C::Error>> {
        self.is_pinned_credential(&leaf.payload)?;
        // Key rotation: the message is signed with the old key, the leaf in it with the new one.
        let scheme = self
            .custody
            .signature_scheme(leaf.payload.signature_key)?
            .ok_or(BindingError::ForeignSignatureKey)?;
        leaf_is_signed(scheme, leaf, Some(position))?;
        let key = self.custody.hpke_key(leaf.payload.encryption_key)?;
        let change = bind_to_group(leaf.payload.encryption_key, &key, position)?;
        Ok(change.into_iter().collect())
    }

    fn leaf_in_commit(
        &self,
        leaf: &LeafNode<'_>,
        position: TreePosition<'_>,
        cipher_suite: u16,
    ) -> Result<Vec<BindingChange>, BindingError<C::Error>> {
        let signature_key = leaf.payload.signature_key;
        let in_custody = self.custody.signature_scheme(signature_key)?.is_some();
        if in_custody || !self.custody.may_leave(position.group_id, signature_key)? {
            return self.leaf_in_group(leaf, position);
        }
        // Leaving custody: from this leaf on both keys are the app's own. It stays the same member, and the leaf
        // must be sound, or the group would be stuck with it.
        self.is_pinned_credential(&leaf.payload)?;
        let scheme =
            scheme_of_cipher_suite(cipher_suite).ok_or(BindingError::ForeignSignatureKey)?;
        leaf_is_signed(scheme, leaf, Some(position))?;
        match self.custody.hpke_key(leaf.payload.encryption_key)? {
            HpkeKey::NotAlive => Ok(Vec::new()),
            key => Ok(bind_to_group(leaf.payload.encryption_key, &key, position)?
                .into_iter()
                .collect()),
        }
    }

    /// The message does not tell the new leaf's index; signing the leaf a moment ago did, and bound its key to it.
    fn leaf_in_external_commit(
        &self,
        leaf: &LeafNode<'_>,
        group_id: &[u8],
    ) -> Result<Vec<BindingChange>, BindingError<C::Error>> {
        self.is_signing_key(&leaf.payload)?;
        let leaf_index = match self.custody.hpke_key(leaf.payload.encryption_key)? {
            HpkeKey::NotAlive => return Err(BindingError::LeafKeyNotInCustody),
            HpkeKey::Unbound => return Err(BindingError::UnknownLeafIndex),
            HpkeKey::Init(_) | HpkeKey::LeafOfKeyPackage { .. } => {
                return Err(BindingError::OtherPurpose);
            }
            HpkeKey::LeafOfGroup { leaf_index, .. } => leaf_index,
        };
        self.leaf_in_group(
            leaf,
            TreePosition {
                group_id,
                leaf_index,
            },
        )
    }

    fn bind_key_package(
        &self,
        tbs: &KeyPackageTbs<'_>,
    ) -> Result<Vec<BindingChange>, BindingError<C::Error>> {
        let leaf_public = tbs.leaf_node.payload.encryption_key;
        if tbs.init_key == leaf_public {
            return Err(BindingError::SameKey);
        }
        let leaf = self.custody.hpke_key(leaf_public)?;
        let leaf_change = bind_to_key_package(leaf_public, &leaf, Some(tbs.init_key))?;
        let wanted = InitBinding {
            leaf_public: leaf_public.to_vec(),
            not_before: tbs.lifetime.not_before,
            not_after: tbs.lifetime.not_after,
            last_resort: tbs.last_resort(),
        };
        let init_change = match self.custody.hpke_key(tbs.init_key)? {
            HpkeKey::NotAlive => return Err(BindingError::InitKeyNotInCustody),
            HpkeKey::LeafOfKeyPackage { .. } | HpkeKey::LeafOfGroup { .. } => {
                return Err(BindingError::OtherPurpose);
            }
            HpkeKey::Init(bound) if bound == wanted => None,
            HpkeKey::Init(_) => return Err(BindingError::OtherKeyPackage),
            HpkeKey::Unbound => Some(BindingChange::Init {
                init_public: tbs.init_key.to_vec(),
                key_package: wanted,
            }),
        };
        Ok(leaf_change.into_iter().chain(init_change).collect())
    }

    fn is_signing_key(&self, leaf: &LeafNodePayload<'_>) -> Result<(), BindingError<C::Error>> {
        if leaf.signature_key == self.signer.public_key {
            Ok(())
        } else {
            Err(BindingError::NotTheSigningKey)
        }
    }

    fn is_pinned_credential(
        &self,
        leaf: &LeafNodePayload<'_>,
    ) -> Result<(), BindingError<C::Error>> {
        if leaf.credential.raw == self.signer.credential {
            Ok(())
        } else {
            Err(BindingError::Credential)
        }
    }
}

/// Whoever has the private half of the leaf's signature key signed it for this place. If that key is in custody, the
/// daemon did, by these same rules.
fn leaf_is_signed<E: std::error::Error + 'static>(
    scheme: SignatureScheme,
    leaf: &LeafNode<'_>,
    position: Option<TreePosition<'_>>,
) -> Result<(), BindingError<E>> {
    let content = leaf
        .signed_content(position)
        .ok_or(BindingError::LeafSignature)?;
    if verify(scheme, leaf.payload.signature_key, &content, leaf.signature) {
        Ok(())
    } else {
        Err(BindingError::LeafSignature)
    }
}

/// An HPKE public key of this cipher suite, and not just bytes.
fn is_key_of_suite<E: std::error::Error + 'static>(
    public_key: &[u8],
    cipher_suite: Option<u16>,
) -> Result<(), BindingError<E>> {
    let kem = cipher_suite
        .and_then(kem_of_cipher_suite)
        .ok_or(BindingError::CipherSuite)?;
    PeerPublic::parse(kem, public_key)
        .map(|_| ())
        .map_err(|_| BindingError::CipherSuite)
}

/// A leaf of source update or commit belongs to exactly one place in one group.
fn bind_to_group<E: std::error::Error + 'static>(
    public_key: &[u8],
    key: &HpkeKey,
    position: TreePosition<'_>,
) -> Result<Option<BindingChange>, BindingError<E>> {
    match key {
        HpkeKey::NotAlive => Err(BindingError::LeafKeyNotInCustody),
        HpkeKey::Init(_) | HpkeKey::LeafOfKeyPackage { .. } => Err(BindingError::OtherPurpose),
        HpkeKey::LeafOfGroup { group, leaf_index }
            if group == position.group_id && *leaf_index == position.leaf_index =>
        {
            Ok(None)
        }
        HpkeKey::LeafOfGroup { .. } => Err(BindingError::OtherLeaf),
        HpkeKey::Unbound => Ok(Some(BindingChange::LeafOfGroup {
            leaf_public: public_key.to_vec(),
            group: position.group_id.to_vec(),
            leaf_index: position.leaf_index,
        })),
    }
}

/// A leaf of source key_package belongs to one KeyPackage; which one shows when its init key is known.
fn bind_to_key_package<E: std::error::Error + 'static>(
    public_key: &[u8],
    key: &HpkeKey,
    init_key: Option<&[u8]>,
) -> Result<Option<BindingChange>, BindingError<E>> {
    match key {
        HpkeKey::NotAlive => Err(BindingError::LeafKeyNotInCustody),
        HpkeKey::Init(_) => Err(BindingError::OtherPurpose),
        HpkeKey::LeafOfGroup { .. } => Err(BindingError::OtherLeaf),
        HpkeKey::LeafOfKeyPackage {
            init_public: Some(bound),
            ..
        } if init_key.is_some_and(|init| init != bound) => Err(BindingError::OtherKeyPackage),
        // The leaf that founded a group stays there: in a KeyPackage it would be admitted to others.
        HpkeKey::LeafOfKeyPackage {
            init_public: None,
            in_group: true,
        } if init_key.is_some() => Err(BindingError::OtherLeaf),
        HpkeKey::LeafOfKeyPackage { .. } => Ok(None),
        HpkeKey::Unbound => Ok(Some(BindingChange::LeafOfKeyPackage {
            leaf_public: public_key.to_vec(),
        })),
    }
}

#[cfg(test)]
mod tests;
