//! Where the keys of a group member are.

use mlskeyd_protocol::v1::{Bytes, KeyInfo, KeyState};
use openmls::prelude::{LeafNode, MlsGroup, Proposal, Sender};
use tls_codec::{DeserializeBytes, Serialize as _, VLBytes};

use crate::failure::ProviderError;
use crate::link::Link;

/// Where a private key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyCustody {
    /// With the daemon: on which device and at which tier.
    InCustody(KeyInfo),
    /// Not with the daemon, or not for this app.
    Software,
}

impl KeyCustody {
    /// Is the key in custody, and not destroyed?
    #[must_use]
    pub const fn is_in_custody(&self) -> bool {
        match self {
            Self::InCustody(info) => !matches!(info.state, KeyState::Destroyed),
            Self::Software => false,
        }
    }
}

impl std::fmt::Display for KeyCustody {
    /// `software (device-name)` with the tier first, or `in the app`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InCustody(info) => write!(f, "{} ({})", info.tier, info.device),
            Self::Software => f.write_str("in the app"),
        }
    }
}

/// Where the two private keys of a leaf are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafCustody {
    /// The signature key.
    pub signature: KeyCustody,
    /// The HPKE key that path secrets are encrypted to.
    pub encryption: KeyCustody,
}

/// Where the private keys of a member of a group are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustodyStatus {
    /// Of the leaf that is in the group.
    pub leaf: LeafCustody,
    /// Of the leaf that a pending commit brings, if it brings one.
    pub pending_commit: Option<LeafCustody>,
    /// Of the leaves of own Updates that nobody committed yet.
    pub pending_updates: Vec<LeafCustody>,
}

/// A key that should be in custody is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {key} key of {leaf} is not in custody: migrate the group before it is used")]
pub struct NotInCustody {
    /// Which key: `signature` or `encryption`.
    pub key: &'static str,
    /// Which leaf: `the leaf`, `the pending commit` or `a pending update`.
    pub leaf: &'static str,
}

impl CustodyStatus {
    /// Refuses to go on unless every key is in custody.
    ///
    /// # Errors
    /// Names the first key that is not.
    pub fn require(&self) -> Result<(), NotInCustody> {
        let leaves = std::iter::once(("the leaf", &self.leaf))
            .chain(
                self.pending_commit
                    .iter()
                    .map(|leaf| ("the pending commit", leaf)),
            )
            .chain(
                self.pending_updates
                    .iter()
                    .map(|leaf| ("a pending update", leaf)),
            );
        for (leaf, custody) in leaves {
            for (key, custody) in [
                ("signature", &custody.signature),
                ("encryption", &custody.encryption),
            ] {
                if !custody.is_in_custody() {
                    return Err(NotInCustody { key, leaf });
                }
            }
        }
        Ok(())
    }
}

/// Asks the daemon for the keys of `group`'s own leaf, present and pending.
pub(crate) fn custody_status(
    link: &Link,
    group: &MlsGroup,
) -> Result<Option<CustodyStatus>, ProviderError> {
    let Some(own) = group.own_leaf_node() else {
        return Ok(None);
    };
    let committed = group
        .pending_commit()
        .and_then(|commit| commit.update_path_leaf_node());
    let updates = group
        .pending_proposals()
        .filter(|queued| *queued.sender() == Sender::Member(group.own_leaf_index()))
        .filter_map(|queued| match queued.proposal() {
            Proposal::Update(update) => Some(update.leaf_node()),
            _ => None,
        });
    let leaves: Vec<&LeafNode> = [own].into_iter().chain(committed).chain(updates).collect();

    let mut found = look_up_leaves(link, &leaves)?.into_iter();
    let Some(leaf) = found.next() else {
        return Ok(None);
    };
    let pending_commit = committed.and_then(|_| found.next());
    Ok(Some(CustodyStatus {
        leaf,
        pending_commit,
        pending_updates: found.collect(),
    }))
}

/// Where the keys of these leaves are, in the order asked.
pub(crate) fn look_up_leaves(
    link: &Link,
    leaves: &[&LeafNode],
) -> Result<Vec<LeafCustody>, ProviderError> {
    let mut keys = Vec::new();
    for leaf in leaves {
        keys.push(Bytes::from(leaf.signature_key().as_slice()));
        keys.push(encryption_key(leaf)?);
    }
    let mut found = link
        .look_up(keys)?
        .into_iter()
        .map(|info| info.map_or(KeyCustody::Software, KeyCustody::InCustody));
    let mut custody = Vec::new();
    while let (Some(signature), Some(encryption)) = (found.next(), found.next()) {
        custody.push(LeafCustody {
            signature,
            encryption,
        });
    }
    Ok(custody)
}

/// The bytes of a leaf's HPKE public key. OpenMLS shows them only in TLS's
/// encoding.
fn encryption_key(leaf: &LeafNode) -> Result<Bytes, ProviderError> {
    let encoding = |_| ProviderError::Protocol("a leaf's key has no encoding".to_owned());
    let encoded = leaf
        .encryption_key()
        .tls_serialize_detached()
        .map_err(encoding)?;
    let key = VLBytes::tls_deserialize_exact_bytes(&encoded).map_err(encoding)?;
    Ok(Bytes::from(Vec::from(key)))
}

#[cfg(test)]
mod tests {
    use mlskeyd_protocol::v1::{Algorithm, KeyId, KeyPin, Purpose, SignatureScheme, Tier};

    use super::*;

    fn held(state: KeyState) -> KeyCustody {
        KeyCustody::InCustody(KeyInfo {
            id: KeyId::from_bytes([1; 16]),
            algorithm: Algorithm::Signature(SignatureScheme::Ed25519),
            purpose: Purpose::Signature,
            state,
            public_key: Bytes::default(),
            device: "disk".into(),
            tier: Tier::Software,
            created: 0,
            ends: None,
            adopted: false,
            pin: KeyPin::None,
        })
    }

    fn leaf(signature: KeyCustody, encryption: KeyCustody) -> LeafCustody {
        LeafCustody {
            signature,
            encryption,
        }
    }

    #[test]
    fn custody_is_required_of_every_key() {
        let good = || leaf(held(KeyState::Active), held(KeyState::Idle));
        let mut status = CustodyStatus {
            leaf: good(),
            pending_commit: Some(good()),
            pending_updates: vec![good()],
        };
        assert_eq!(status.require(), Ok(()));

        status
            .pending_updates
            .push(leaf(held(KeyState::Active), KeyCustody::Software));
        let expected = NotInCustody {
            key: "encryption",
            leaf: "a pending update",
        };
        assert_eq!(status.require(), Err(expected));

        status.pending_commit = Some(leaf(KeyCustody::Software, held(KeyState::Active)));
        let expected = NotInCustody {
            key: "signature",
            leaf: "the pending commit",
        };
        assert_eq!(status.require(), Err(expected));

        status.leaf = leaf(held(KeyState::Destroyed), held(KeyState::Active));
        assert_eq!(
            status.require(),
            Err(NotInCustody {
                key: "signature",
                leaf: "the leaf"
            })
        );
    }
}
