//! When what is said to the daemon.

use std::sync::{Arc, Mutex};

use mlskeyd_protocol::v1::{Note, Record, Settlement};
use openmls::prelude::*;
use openmls_sqlite_storage::Connection;
use openmls_traits::storage::StorageProvider;
use serde::ser::SerializeStruct;

use super::app::{App, Backend, Memory, Sqlite, on_both_storages};
use super::model::{Event, Model};

on_both_storages! {
    nothing_is_said_when_nothing_changed
    a_read_claims_once_in_a_process
    a_write_that_fails_releases_nothing
    claims_wait_while_the_daemon_is_away_and_hold_releases_back
    nothing_fails_without_a_daemon
    an_emptied_record_is_released_in_a_new_process
}

fn claims(log: &[Event]) -> usize {
    log.iter()
        .filter(|event| matches!(event, Event::Claim(..)))
        .count()
}

#[test]
fn a_claim_comes_before_the_write_and_its_settlement_after() {
    let model = Arc::new(Model::default());
    let bob = App::<Sqlite>::new("bob", &model);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (path, log) = (bob.backend.path(), Arc::clone(&seen));
    model.lock().hook = Some(Box::new(move |event| {
        let stored: u32 = Connection::open(&path)
            .unwrap()
            .query_row("SELECT count(*) FROM openmls_key_packages", [], |row| {
                row.get(0)
            })
            .unwrap();
        let kind = match event {
            Event::Claim(..) => "claim",
            Event::Settle(Settlement::Written { .. }) => "written",
            Event::Settle(Settlement::Deleted { .. }) => "deleted",
            _ => return,
        };
        log.lock().unwrap().push((kind, stored));
    }));
    let package = bob.key_package(false);
    let reference = package.hash_ref(bob.provider.crypto()).unwrap();
    bob.provider.storage.delete_key_package(&reference).unwrap();
    let _: Option<KeyPackageBundle> = bob.provider.storage.key_package(&reference).unwrap();
    assert_eq!(
        *seen.lock().unwrap(),
        [("claim", 0), ("written", 1), ("claim", 1), ("deleted", 0)],
        "a delete is announced, too"
    );
}

fn nothing_is_said_when_nothing_changed<B: Backend>() {
    let model = Arc::new(Model::default());
    let bob = App::<B>::new("bob", &model);
    let package = bob.key_package(false);
    let reference = package.hash_ref(bob.provider.crypto()).unwrap();
    let storage = &bob.provider.storage;
    let bundle: KeyPackageBundle = storage.key_package(&reference).unwrap().unwrap();
    model.take_log();
    storage.write_key_package(&reference, &bundle).unwrap();
    let _: Option<KeyPackageBundle> = storage.key_package(&reference).unwrap();
    assert_eq!(model.take_log(), []);

    // A state without handles claims nothing, however often it is written.
    let group = GroupId::from_slice(b"group");
    storage
        .write_group_state(&group, &MlsGroupState::Operational)
        .unwrap();
    storage
        .write_group_state(&group, &MlsGroupState::Operational)
        .unwrap();
    assert_eq!(model.take_log(), []);
}

fn a_read_claims_once_in_a_process<B: Backend>() {
    let model = Arc::new(Model::default());
    let mut bob = App::<B>::new("bob", &model);
    let package = bob.key_package(false);
    let reference = package.hash_ref(bob.provider.crypto()).unwrap();
    bob.restart();
    model.take_log();
    for _ in 0..3 {
        let _: Option<KeyPackageBundle> = bob.provider.storage.key_package(&reference).unwrap();
    }
    let log = model.take_log();
    assert_eq!(claims(&log), 1);
    assert_eq!(
        log.len(),
        2,
        "it is attached and claimed, nothing is settled: {log:?}"
    );
}

/// A value that the inner storage cannot write.
#[derive(serde::Deserialize)]
struct Fails(std::cell::Cell<bool>);

impl serde::Serialize for Fails {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The first walk is the wrapper's.
        if self.0.replace(true) {
            return Err(serde::ser::Error::custom("no"));
        }
        let handle =
            mlskeyd_protocol::v1::Handle::new(mlskeyd_protocol::v1::KeyId::from_bytes([3; 16]));
        let mut pair = serializer.serialize_struct("Fails", 1)?;
        pair.serialize_field("private_key", &handle.to_bytes().to_vec())?;
        pair.end()
    }
}

impl openmls_traits::storage::Entity<1> for Fails {}
impl openmls_traits::storage::traits::HpkeKeyPair<1> for Fails {}

fn a_write_that_fails_releases_nothing<B: Backend>() {
    let model = Arc::new(Model::default());
    let bob = App::<B>::new("bob", &model);
    let group = GroupId::from_slice(b"group");
    let pairs = [Fails(std::cell::Cell::new(false))];
    let storage = &bob.provider.storage;
    let written = storage.write_encryption_epoch_key_pairs(&group, &GroupEpoch::from(0), 0, &pairs);
    assert!(written.is_err());
    let log = model.take_log();
    assert_eq!(claims(&log), 1);
    assert!(
        !log.iter().any(|event| matches!(event, Event::Settle(_))),
        "{log:?}"
    );
}

fn claims_wait_while_the_daemon_is_away_and_hold_releases_back<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let mut group = alice.create(b"group");
    let before = model.claimed("alice");
    model.take_log();

    // The keys exist already, then the daemon goes away in the middle.
    group
        .self_update(
            &alice.provider,
            &alice.signer,
            LeafNodeParameters::default(),
        )
        .unwrap();
    let during = model.claimed("alice");
    model.lock().away = true;
    group.merge_pending_commit(&alice.provider).unwrap();
    assert_eq!(model.claimed("alice"), during);
    model.take_log();

    model.lock().away = false;
    model.restart();
    // The next call that has something to say brings the rest.
    alice.update(&mut group);
    let log = model.take_log();
    let epoch_claim = log.iter().position(
        |event| matches!(event, Event::Claim(Record::Epoch { epoch: 1, .. }, keys) if keys.len() == 1),
    );
    let first_release = log
        .iter()
        .position(|event| matches!(event, Event::Settle(_)));
    assert!(
        epoch_claim.is_some() && epoch_claim < first_release,
        "{log:?}"
    );
    alice.sweep();
    assert_eq!(alice.claimed(), 1);
    assert!(model.claimed("alice").is_disjoint(&before));
    assert_eq!(model.alive().len(), 1);
    alice.update(&mut group);
}

fn nothing_fails_without_a_daemon<B: Backend>() {
    let model = Arc::new(Model::default());
    model.lock().away = true;
    let alice = App::<B>::new("alice", &model);
    let bob = App::<B>::new("bob", &model);
    let mut group = alice.create(b"group");
    let (_, welcome) = alice.add(&mut group, bob.key_package(false));
    let mut theirs = bob.join(&welcome);
    alice.receive(&mut group, &bob.update(&mut theirs));
    assert_eq!(model.take_log(), []);
    model.lock().away = false;
    alice.update(&mut group);
    assert_eq!(alice.claimed(), 1);
}

fn an_emptied_record_is_released_in_a_new_process<B: Backend>() {
    let model = Arc::new(Model::default());
    let mut alice = App::<B>::new("alice", &model);
    let mut group = alice.create(b"group");
    group
        .self_update(
            &alice.provider,
            &alice.signer,
            LeafNodeParameters::default(),
        )
        .unwrap();
    assert_eq!(alice.claimed(), 2);
    alice.restart();
    let mut group = alice.load(b"group");
    group.clear_pending_commit(&alice.provider.storage).unwrap();
    assert_eq!(alice.claimed(), 1);
}

#[test]
fn a_key_that_is_lost_is_never_silent() {
    let model = Arc::new(Model::default());
    let mut bob = App::<Memory>::new("bob", &model);
    let package = bob.key_package(false);
    let reference = package.hash_ref(bob.provider.crypto()).unwrap();
    let keys = model.claimed("bob");
    model.lock().destroyed.extend(keys.clone());
    bob.restart();
    let _: Option<KeyPackageBundle> = bob.provider.storage.key_package(&reference).unwrap();
    let failures = std::mem::take(&mut model.lock().failures);
    let lost: Vec<_> = failures.iter().filter_map(|failure| failure.key).collect();
    assert_eq!(lost, keys.into_iter().collect::<Vec<_>>());
}

#[test]
fn the_end_of_own_leaves_is_said_once() {
    let model = Arc::new(Model::default());
    let alice = App::<Memory>::new("alice", &model);
    let bob = App::<Memory>::new("bob", &model);
    let mut group = alice.create(b"group");
    let (_, welcome) = alice.add(&mut group, bob.key_package(false));
    let mut theirs = bob.join(&welcome);
    model.take_log();
    for _ in 0..3 {
        alice.receive(&mut group, &bob.update(&mut theirs));
    }
    let log = model.take_log();
    let ends = log
        .iter()
        .filter(|e| matches!(e, Event::Note(Note::OwnLeavesDeleted { .. })));
    assert_eq!(ends.count(), 1, "one, although every merge deletes them");
}

#[test]
fn overlapping_writes_of_one_record_release_nothing() {
    let model = Arc::new(Model::default());
    let bob = App::<Memory>::new("bob", &model);
    let state = &bob.provider.storage.state;
    let record = Record::Update {
        public_key: vec![1].into(),
    };
    let key = |n| mlskeyd_protocol::v1::KeyId::from_bytes([n; 16]);
    let first = state.begin_write(record.clone(), vec![key(1)]);
    let second = state.begin_write(record.clone(), vec![key(2)]);
    assert_eq!(state.end_write(second, true), None);
    assert_eq!(state.end_write(first, true), None);
    let third = state.begin_write(record, vec![key(2)]);
    assert!(state.end_write(third, true).is_some());
}
