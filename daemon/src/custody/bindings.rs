//! What the registry knows, for the rules of binding by signing.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use mlskeyd_protocol::v1::{Algorithm, Bytes, Credential, Failure, KeyId, SignatureScheme};

use super::{Session, failure};
use crate::mls::binding::{BindingChange, Custody, HpkeKey, InitBinding};
use crate::mls::{OwnLeaf, Signable, credential_bytes};
use crate::store::{Binding, GuardId, KeyRecord, Rebind};

/// A permit to leave custody that the structure makes use of.
pub(super) struct Leaving {
    /// Whose, and in which group.
    pub(super) of: GuardId,
    /// The public half of the app's own signature key.
    pub(super) key: Bytes,
}

/// What the registry knows about the keys that a structure names, looked up
/// before the rules are applied.
pub(super) struct Known {
    /// The identity's pinned credential, as MLS encodes it.
    pub(super) credential: Vec<u8>,
    /// The same as it is pinned.
    pub(super) pinned: Option<Credential>,
    /// The keys of the signing key's owner that the structure names.
    keys: HashMap<Vec<u8>, Arc<KeyRecord>>,
    identity: Option<String>,
    /// The group and the software signature key with which the identity may
    /// leave custody, if the structure is about that.
    pub(super) leaving: Option<Leaving>,
    /// The public keys of init keys that leaf keys name.
    inits: HashMap<KeyId, Vec<u8>>,
}

impl Known {
    /// Looks up what `signable` names, for the owner of `signer`.
    pub(super) async fn about(
        signable: &Signable<'_>,
        signer: &KeyRecord,
        session: &Session,
    ) -> Result<Self, Failure> {
        let registry = &session.custody().registry;
        let mut known = Self {
            credential: Vec::new(),
            pinned: None,
            keys: HashMap::new(),
            identity: signer.identity.clone(),
            leaving: None,
            inits: HashMap::new(),
        };
        let named = public_keys(signable);
        if named.is_empty() {
            return Ok(known);
        }
        if let Some(name) = &signer.identity {
            let identity = registry
                .identity(&signer.owner, name)
                .await
                .map_err(failure::of_store)?
                .ok_or_else(|| failure::not_found("identity"))?;
            known.credential =
                credential_bytes(&identity.credential).ok_or_else(failure::internal)?;
            known.pinned = Some(identity.credential);
        }
        for public_key in named {
            let key = registry
                .key_by_public(&signer.owner, &Bytes::from(public_key))
                .await
                .map_err(failure::of_store)?;
            // One that is over is as good as destroyed.
            let Some(key) = key.filter(|key| !registry.has_ended(key)) else {
                continue;
            };
            if let Binding::LeafOfKeyPackage {
                init: Some(init), ..
            } = &key.binding
            {
                let init_key = registry.key(*init).await.map_err(failure::of_store)?;
                if let Some(init_key) = init_key {
                    known.inits.insert(*init, init_key.public_key.0.clone());
                }
            }
            known.keys.insert(public_key.to_vec(), key);
        }
        if let (
            Some(name),
            Some(OwnLeaf::Commit {
                group_id,
                leaf_node,
                ..
            }),
        ) = (&signer.identity, signable.own_leaf())
        {
            let foreign = leaf_node.payload.signature_key;
            let group = Bytes::from(group_id);
            let of = GuardId {
                owner: signer.owner.clone(),
                identity: name.clone(),
                group,
            };
            let permit = registry
                .leave_permit(&of)
                .await
                .map_err(failure::of_store)?;
            known.leaving = permit
                .filter(|key| **key == *foreign)
                .map(|key| Leaving { of, key });
        }
        Ok(known)
    }

    /// The registry's changes that these findings are, each on condition that
    /// the key is still bound as it was when the rules were applied.
    pub(super) fn rebinds(&self, changes: Vec<BindingChange>) -> Vec<Rebind> {
        changes
            .into_iter()
            .flat_map(|change| self.rebind(change))
            .collect()
    }

    fn rebind(&self, change: BindingChange) -> Vec<Rebind> {
        match change {
            BindingChange::Init {
                init_public,
                key_package,
            } => {
                let Some(init) = self.keys.get(&init_public) else {
                    return Vec::new();
                };
                let leaf = self.keys.get(&key_package.leaf_public);
                let leaf = leaf.map(|leaf| Rebind {
                    key: leaf.id,
                    from: leaf.binding.clone(),
                    to: Binding::LeafOfKeyPackage {
                        init: Some(init.id),
                        last_resort: key_package.last_resort,
                        groups: Vec::new(),
                    },
                });
                let init = Rebind {
                    key: init.id,
                    from: init.binding.clone(),
                    to: Binding::Init {
                        leaf_public: Bytes(key_package.leaf_public),
                        not_before: key_package.not_before,
                        not_after: key_package.not_after,
                        last_resort: key_package.last_resort,
                        consumed_by: None,
                    },
                };
                leaf.into_iter().chain([init]).collect()
            }
            BindingChange::LeafOfGroup {
                leaf_public,
                group,
                leaf_index,
            } => self.rebind_leaf(
                &leaf_public,
                Binding::Leaf {
                    group: Bytes(group),
                    leaf_index,
                },
            ),
            BindingChange::LeafOfKeyPackage { leaf_public } => self.rebind_leaf(
                &leaf_public,
                Binding::LeafOfKeyPackage {
                    init: None,
                    last_resort: false,
                    groups: Vec::new(),
                },
            ),
        }
    }

    fn rebind_leaf(&self, public_key: &[u8], to: Binding) -> Vec<Rebind> {
        let key = self.keys.get(public_key);
        key.map(|key| Rebind {
            key: key.id,
            from: key.binding.clone(),
            to,
        })
        .into_iter()
        .collect()
    }
}

impl Custody for Known {
    type Error = Infallible;

    fn hpke_key(&self, public_key: &[u8]) -> Result<HpkeKey, Infallible> {
        let Some(key) = self.keys.get(public_key) else {
            return Ok(HpkeKey::NotAlive);
        };
        if !key.is_active() || !matches!(key.algorithm, Algorithm::Hpke(_)) {
            return Ok(HpkeKey::NotAlive);
        }
        Ok(match &key.binding {
            Binding::None => HpkeKey::Unbound,
            Binding::Init {
                consumed_by: Some(_),
                ..
            } => HpkeKey::NotAlive,
            Binding::Init {
                leaf_public,
                not_before,
                not_after,
                last_resort,
                ..
            } => HpkeKey::Init(InitBinding {
                leaf_public: leaf_public.0.clone(),
                not_before: *not_before,
                not_after: *not_after,
                last_resort: *last_resort,
            }),
            Binding::Leaf { group, leaf_index } => HpkeKey::LeafOfGroup {
                group: group.0.clone(),
                leaf_index: *leaf_index,
            },
            Binding::LeafOfKeyPackage { init, groups, .. } => HpkeKey::LeafOfKeyPackage {
                init_public: init.and_then(|init| self.inits.get(&init).cloned()),
                in_group: !groups.is_empty(),
            },
        })
    }

    fn signature_scheme(&self, public_key: &[u8]) -> Result<Option<SignatureScheme>, Infallible> {
        let key = self.keys.get(public_key);
        Ok(key.and_then(|key| match key.algorithm {
            Algorithm::Signature(scheme) if key.is_active() && key.identity == self.identity => {
                Some(scheme)
            }
            _ => None,
        }))
    }

    fn may_leave(&self, group_id: &[u8], software_key: &[u8]) -> Result<bool, Infallible> {
        let leaving = self.leaving.as_ref();
        Ok(leaving
            .is_some_and(|leaving| *leaving.of.group == *group_id && *leaving.key == *software_key))
    }
}

/// The public keys whose custody the rules ask for.
fn public_keys<'a>(signable: &Signable<'a>) -> Vec<&'a [u8]> {
    match signable {
        Signable::LeafNode(leaf) => vec![leaf.payload.encryption_key, leaf.payload.signature_key],
        Signable::KeyPackage(package) => {
            let leaf = &package.leaf_node.payload;
            vec![package.init_key, leaf.encryption_key, leaf.signature_key]
        }
        Signable::FramedContent(_) => match signable.own_leaf() {
            Some(OwnLeaf::ExternalAdd { key_package, .. }) => {
                let leaf = &key_package.tbs.leaf_node.payload;
                vec![
                    key_package.tbs.init_key,
                    leaf.encryption_key,
                    leaf.signature_key,
                ]
            }
            Some(leaf) => {
                let leaf = &leaf.leaf_node().payload;
                vec![leaf.encryption_key, leaf.signature_key]
            }
            None => Vec::new(),
        },
        Signable::GroupInfo(_)
        | Signable::TargetedMessage(_)
        | Signable::App(_)
        | Signable::Unknown(_) => Vec::new(),
    }
}
