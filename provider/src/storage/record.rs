//! The records that matter, between OpenMLS's keys and the wire's names.
//!
//! A [`Record`] names what OpenMLS stores by raw bytes and numbers, whatever the
//! inner storage's codec is. To read a record again, its keys and the type of
//! its value must serialise as OpenMLS's own do: mostly they are OpenMLS's own.

use mlskeyd_protocol::v1::{Bytes, KeyId, Record};
use openmls::group::{GroupContext, GroupEpoch, GroupId, MlsGroupState};
use openmls::prelude::{KeyPackageBundle, KeyPackageRef, LeafNodeIndex};
use openmls::treesync::EncryptionKey;
use openmls_traits::storage::{CURRENT_VERSION, Entity, StorageProvider, traits};
use openmls_traits::types::HpkePrivateKey;
use serde::{Deserialize, Serialize};
use tls_codec::{DeserializeBytes, Serialize as _, VLByteSlice};

use super::walker::{self, Findings};

/// An HPKE key pair as OpenMLS stores it: its own type is private to it.
#[derive(Serialize, Deserialize)]
#[serde(rename = "EncryptionKeyPair")]
pub(super) struct KeyPair {
    public_key: EncryptionKey,
    private_key: PrivateKey,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "EncryptionPrivateKey")]
struct PrivateKey {
    key: HpkePrivateKey,
}

impl Entity<CURRENT_VERSION> for KeyPair {}
impl traits::HpkeKeyPair<CURRENT_VERSION> for KeyPair {}

/// The raw bytes of a group id.
pub(super) fn group_bytes<G: Serialize>(group_id: &G) -> Option<Bytes> {
    walker::first_bytes(group_id).map(Bytes)
}

/// The record of a group's state.
pub(super) fn group_state<G: Serialize>(group_id: &G) -> Option<Record> {
    Some(Record::GroupState {
        group: group_bytes(group_id)?,
    })
}

/// The record of one epoch's key pairs.
pub(super) fn epoch<G: Serialize, E: Serialize>(
    group_id: &G,
    epoch: &E,
    leaf_index: u32,
) -> Option<Record> {
    let group = group_bytes(group_id)?;
    Some(Record::Epoch {
        group,
        epoch: walker::first_number(epoch)?,
        leaf_index,
    })
}

/// The record of an Update's key pair.
pub(super) fn update<K: Serialize>(public_key: &K) -> Option<Record> {
    Some(Record::Update {
        public_key: Bytes(walker::first_bytes(public_key)?),
    })
}

/// The record of a KeyPackage.
pub(super) fn key_package<R: Serialize>(reference: &R) -> Option<Record> {
    Some(Record::KeyPackage {
        reference: Bytes(walker::first_bytes(reference)?),
    })
}

/// A KeyPackageRef from its raw bytes, which OpenMLS makes only by hashing or
/// from the wire.
pub(super) fn reference(bytes: &[u8]) -> Option<KeyPackageRef> {
    let framed = VLByteSlice(bytes).tls_serialize_detached().ok()?;
    KeyPackageRef::tls_deserialize_exact_bytes(&framed).ok()
}

/// The inner storage does not give, or delete, a record.
#[derive(Debug, thiserror::Error)]
#[error("the storage does not give the record")]
pub(super) struct Unreadable;

/// Reads a record again from the inner storage. `None`: it is not there.
pub(super) fn read<S: StorageProvider<CURRENT_VERSION>>(
    inner: &S,
    record: &Record,
) -> Result<Option<Findings>, Unreadable> {
    match record {
        Record::GroupState { group } => {
            found(inner.group_state::<MlsGroupState, _>(&GroupId::from_slice(group)))
        }
        Record::Epoch {
            group,
            epoch,
            leaf_index,
        } => {
            let pairs: Vec<KeyPair> = inner
                .encryption_epoch_key_pairs(
                    &GroupId::from_slice(group),
                    &GroupEpoch::from(*epoch),
                    *leaf_index,
                )
                .map_err(|_| Unreadable)?;
            walker::find_handles(&pairs)
                .map(Some)
                .map_err(|_| Unreadable)
        }
        Record::Update { public_key } => found(
            inner.encryption_key_pair::<KeyPair, _>(&EncryptionKey::from(public_key.to_vec())),
        ),
        Record::KeyPackage { reference: bytes } => {
            let reference = reference(bytes).ok_or(Unreadable)?;
            found(inner.key_package::<_, KeyPackageBundle>(&reference))
        }
    }
}

fn found<T: Serialize, E>(read: Result<Option<T>, E>) -> Result<Option<Findings>, Unreadable> {
    let Some(value) = read.map_err(|_| Unreadable)? else {
        return Ok(None);
    };
    walker::find_handles(&value)
        .map(Some)
        .map_err(|_| Unreadable)
}

/// Does the inner storage still hold this key in this record? What cannot be
/// read may hold it.
pub(super) fn holds<S: StorageProvider<CURRENT_VERSION>>(
    inner: &S,
    record: &Record,
    key: KeyId,
) -> bool {
    match read(inner, record) {
        Ok(findings) => findings.is_some_and(|findings| findings.keys().contains(&key)),
        Err(Unreadable) => true,
    }
}

/// Is this the key pair record that a group of the inner storage lives on? What
/// cannot be read may be.
pub(super) fn in_use<S: StorageProvider<CURRENT_VERSION>>(inner: &S, record: &Record) -> bool {
    let Record::Epoch {
        group,
        epoch,
        leaf_index,
    } = record
    else {
        return false;
    };
    let group = GroupId::from_slice(group);
    let Ok(context) = inner.group_context::<_, GroupContext>(&group) else {
        return true;
    };
    let Ok(leaf) = inner.own_leaf_index::<_, LeafNodeIndex>(&group) else {
        return true;
    };
    let Ok(state) = inner.group_state::<MlsGroupState, _>(&group) else {
        return true;
    };
    context.is_some_and(|context| context.epoch().as_u64() == *epoch)
        && leaf.is_some_and(|leaf| leaf.u32() == *leaf_index)
        && state.is_some_and(|state| !matches!(state, MlsGroupState::Inactive))
}

/// Is the state of this group stored, and not inactive?
pub(super) fn group_lives<S: StorageProvider<CURRENT_VERSION>>(
    inner: &S,
    group: &Bytes,
) -> Result<bool, Unreadable> {
    let state: Option<MlsGroupState> = inner
        .group_state(&GroupId::from_slice(group))
        .map_err(|_| Unreadable)?;
    Ok(state.is_some_and(|state| !matches!(state, MlsGroupState::Inactive)))
}

/// Deletes a record from the inner storage, but never a group's state: that is
/// for the app alone.
pub(super) fn delete<S: StorageProvider<CURRENT_VERSION>>(
    inner: &S,
    record: &Record,
) -> Result<(), Unreadable> {
    let result = match record {
        Record::GroupState { .. } => return Err(Unreadable),
        Record::Epoch {
            group,
            epoch,
            leaf_index,
        } => inner.delete_encryption_epoch_key_pairs(
            &GroupId::from_slice(group),
            &GroupEpoch::from(*epoch),
            *leaf_index,
        ),
        Record::Update { public_key } => {
            inner.delete_encryption_key_pair(&EncryptionKey::from(public_key.to_vec()))
        }
        Record::KeyPackage { reference: bytes } => {
            inner.delete_key_package(&reference(bytes).ok_or(Unreadable)?)
        }
    };
    result.map_err(|_| Unreadable)
}
