//! What is read again must serialise as OpenMLS's own types do.

use std::sync::Arc;

use mlskeyd_protocol::v1::{Bytes, Handle, KeyId, Record};
use openmls::prelude::*;
use openmls_basic_credential::SignatureKeyPair;
use openmls_traits::storage::StorageProvider;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::{INIT_KEY, LEAF_KEY, record, walker};
use super::app::{App, Backend, Memory, SUITE, Sqlite, on_both_storages};
use super::model::{Event, Model};

on_both_storages! {
    records_are_read_again
}

/// The leaf key pair of a KeyPackage as OpenMLS puts it into an epoch record.
pub(super) fn leaf_pair(bundle: &KeyPackageBundle) -> record::KeyPair {
    let json = serde_json::to_value(bundle).unwrap();
    let public = &json["key_package"]["payload"]["leaf_node"]["payload"]["encryption_key"];
    let pair = serde_json::json!({ "public_key": public, "private_key": json[LEAF_KEY] });
    serde_json::from_value(pair).unwrap()
}

/// Serialises, reads and serialises again; both must be the same.
fn round_trips<T: Serialize, Mirror: Serialize + DeserializeOwned>(value: &T) {
    let json = serde_json::to_vec(value).unwrap();
    let mirror: Mirror = serde_json::from_slice(&json).unwrap();
    assert_eq!(serde_json::to_vec(&mirror).unwrap(), json);
    let postcard = postcard::to_stdvec(value).unwrap();
    let mirror: Mirror = postcard::from_bytes(&postcard).unwrap();
    assert_eq!(postcard::to_stdvec(&mirror).unwrap(), postcard);
}

fn records_are_read_again<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let package = alice.key_package(false);
    let mut group = alice.create(b"group");
    group
        .propose_self_update(
            &alice.provider,
            &alice.signer,
            LeafNodeParameters::default(),
        )
        .unwrap();
    group
        .clear_pending_proposals(&alice.provider.storage)
        .unwrap();
    group
        .self_update(
            &alice.provider,
            &alice.signer,
            LeafNodeParameters::default(),
        )
        .unwrap();

    let inner = alice.provider.storage.inner();
    let mut kinds = [0; 4];
    let mut all = 0;
    for record in model.records("alice") {
        let findings = record::read(inner, &record).unwrap().unwrap();
        kinds[match record {
            Record::GroupState { .. } => 0,
            Record::Epoch { .. } => 1,
            Record::Update { .. } => 2,
            Record::KeyPackage { .. } => 3,
        }] = findings.keys().len();
        for key in findings.keys() {
            assert!(record::holds(inner, &record, key));
            all += 1;
        }
        assert!(!record::holds(inner, &record, KeyId::from_bytes([1; 16])));
        if !matches!(record, Record::GroupState { .. }) {
            assert_eq!(
                record::in_use(inner, &record),
                matches!(record, Record::Epoch { .. })
            );
            record::delete(inner, &record).unwrap();
            let gone = record::read(inner, &record).unwrap();
            assert!(gone.is_none_or(|findings| findings.keys().is_empty()));
        }
    }
    assert_eq!(
        kinds,
        [1, 1, 1, 2],
        "a commit's, an epoch's, an Update's, a KeyPackage's"
    );
    assert_eq!(all, alice.claimed());
    let absent = package.hash_ref(alice.provider.crypto()).unwrap();
    assert!(
        inner
            .key_package::<_, KeyPackageBundle>(&absent)
            .unwrap()
            .is_none()
    );
}

#[test]
fn mirrors_serialise_as_the_originals() {
    let model = Arc::new(Model::default());
    let alice = App::<Memory>::new("alice", &model);
    let package = alice.key_package(false);
    let reference = package.hash_ref(alice.provider.crypto()).unwrap();
    let bundle: KeyPackageBundle = alice
        .provider
        .storage
        .key_package(&reference)
        .unwrap()
        .unwrap();
    round_trips::<_, KeyPackageBundle>(&bundle);
    round_trips::<_, record::KeyPair>(&leaf_pair(&bundle));

    let again = record::reference(reference.as_slice()).unwrap();
    assert_eq!(again, reference);
    round_trips::<_, KeyPackageRef>(&reference);
    round_trips::<_, GroupId>(&GroupId::from_slice(b""));
}

#[test]
fn keys_name_records_by_raw_bytes() {
    let group = GroupId::from_slice(b"group");
    assert_eq!(record::group_bytes(&group), Some(Bytes(b"group".to_vec())));
    assert_eq!(
        record::group_bytes(&GroupId::from_slice(b"")),
        Some(Bytes(Vec::new()))
    );
    assert_eq!(record::group_bytes(&GroupId::from_slice(&[1; 1025])), None);
    let epoch = record::epoch(&group, &GroupEpoch::from(7), 3);
    let expected = Record::Epoch {
        group: Bytes(b"group".to_vec()),
        epoch: 7,
        leaf_index: 3,
    };
    assert_eq!(epoch, Some(expected));
}

#[test]
fn handles_are_found_where_openmls_puts_them() {
    let model = Arc::new(Model::default());
    let alice = App::<Memory>::new("alice", &model);
    for last_resort in [false, true] {
        let package = alice.key_package(last_resort);
        let reference = package.hash_ref(alice.provider.crypto()).unwrap();
        let bundle: KeyPackageBundle = alice
            .provider
            .storage
            .key_package(&reference)
            .unwrap()
            .unwrap();
        let findings = walker::find_handles(&bundle).unwrap();
        assert_eq!(findings.handles.len(), 2);
        assert!(findings.key_in(INIT_KEY).is_some() && findings.key_in(LEAF_KEY).is_some());
        assert_eq!(findings.last_resort, last_resort);
        let leaf = package.leaf_node();
        let public = walker::bytes_at(leaf, &["payload", "encryption_key"]).unwrap();
        let expected = record::update(leaf.encryption_key()).unwrap();
        assert_eq!(
            expected,
            Record::Update {
                public_key: Bytes(public)
            }
        );
    }
    let inactive = walker::find_handles(&MlsGroupState::Inactive).unwrap();
    assert_eq!(inactive.unit_variant, Some("Inactive"));
}

#[test]
fn a_run_of_bytes_is_a_handle_only_if_it_is_exactly_one() {
    let key = KeyId::from_bytes([5; 16]);
    let handle = Handle::new(key).to_bytes();
    let found = |value: &dyn Fn() -> Result<walker::Findings, walker::NotSerialisable>| {
        value().unwrap().keys()
    };
    let list = handle.to_vec();
    assert_eq!(
        found(&|| walker::find_handles(&KeyPair { private_key: &list })),
        [key]
    );
    let bytes = Bytes(list.clone());
    assert_eq!(
        found(&|| walker::find_handles(&KeyPair {
            private_key: &bytes
        })),
        [key]
    );
    assert_eq!(
        found(&|| walker::find_handles(&KeyPair {
            private_key: &handle
        })),
        [key]
    );
    let twice = [&list, &list];
    assert_eq!(
        found(&|| walker::find_handles(&KeyPair {
            private_key: &twice
        })),
        [key]
    );
    let mut longer = list.clone();
    longer.push(0);
    let bytes = Bytes(longer.clone());
    assert!(
        found(&|| walker::find_handles(&KeyPair {
            private_key: &longer
        }))
        .is_empty()
    );
    assert!(
        found(&|| walker::find_handles(&KeyPair {
            private_key: &bytes
        }))
        .is_empty()
    );
    assert!(
        found(&|| walker::find_handles(&KeyPair {
            private_key: &list[1..]
        }))
        .is_empty()
    );
    // Two halves side by side are no handle.
    let halves = (&list[..12], &list[12..]);
    assert!(
        found(&|| walker::find_handles(&KeyPair {
            private_key: &halves
        }))
        .is_empty()
    );
    let scattered: Vec<u16> = list.iter().map(|byte| u16::from(*byte)).collect();
    assert!(
        found(&|| walker::find_handles(&KeyPair {
            private_key: &scattered
        }))
        .is_empty()
    );
    // A handle that is no private key is somebody else's bytes.
    assert!(found(&|| walker::find_handles(&list)).is_empty());
    assert!(found(&|| walker::find_handles(&twice)).is_empty());
}

/// A value that stands where OpenMLS puts the private half of a key pair.
#[derive(Serialize)]
struct KeyPair<'a, T: ?Sized> {
    private_key: &'a T,
}

#[test]
fn handles_that_another_member_plants_are_not_claimed() {
    let model = Arc::new(Model::default());
    let alice = App::<Memory>::new("alice", &model);
    let mallory = App::<Memory>::new("mallory", &model);
    let mut group = alice.create(b"group");
    let planted: Vec<_> = (0..70).map(|n| KeyId::from_bytes([n; 16])).collect();
    let packages: Vec<_> = planted
        .iter()
        .map(|key| {
            let signer = SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap();
            let credential = CredentialWithKey {
                credential: BasicCredential::new(Handle::new(*key).to_bytes().to_vec()).into(),
                signature_key: signer.public().to_vec().into(),
            };
            KeyPackage::builder()
                .build(SUITE, &mallory.provider, &signer, credential)
                .unwrap()
                .key_package()
                .clone()
        })
        .collect();
    model.take_log();
    group
        .add_members(&alice.provider, &alice.signer, &packages)
        .unwrap();
    let claims: Vec<_> = model
        .take_log()
        .into_iter()
        .filter_map(|event| match event {
            Event::Claim(Record::GroupState { .. }, keys) => Some(keys),
            _ => None,
        })
        .collect();
    assert!(
        matches!(claims.as_slice(), [keys] if keys.len() == 1 && !planted.contains(&keys[0])),
        "the pending commit's own leaf key, and no other: {claims:?}"
    );
    assert!(model.lock().failures.is_empty());
}

#[test]
fn a_record_that_cannot_be_read_may_hold_every_key() {
    let model = Arc::new(Model::default());
    let bob = App::<Sqlite>::new("bob", &model);
    let package = bob.key_package(false);
    let reference = package.hash_ref(bob.provider.crypto()).unwrap();
    let record = record::key_package(&reference).unwrap();
    openmls_sqlite_storage::Connection::open(bob.backend.path())
        .unwrap()
        .execute("UPDATE openmls_key_packages SET key_package = x'00'", [])
        .unwrap();
    let inner = bob.provider.storage.inner();
    assert!(record::holds(inner, &record, KeyId::from_bytes([1; 16])));
}
