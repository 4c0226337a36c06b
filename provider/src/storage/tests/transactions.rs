//! What the app may still roll back.

use std::sync::Arc;

use mlskeyd_protocol::v1::{Note, Record, Settlement};
use openmls::prelude::*;
use openmls_traits::storage::StorageProvider;

use super::app::{App, Backend, Memory, Sqlite, on_both_storages};
use super::model::{Event, Model};

on_both_storages! {
    a_rolled_back_commit_destroys_nothing
    a_committed_transaction_releases_all_at_once
    a_transaction_within_another_waits_for_it
    a_rolled_back_join_can_be_done_again
    a_database_put_back_within_the_grace_keeps_its_keys
    a_record_deleted_and_written_again_stays_claimed
    own_leaves_cleared_and_appended_again_keep_their_update
    a_group_deleted_and_created_again_keeps_its_keys
    a_record_written_again_while_the_daemon_is_away_stays_claimed
    a_rolled_back_write_is_said_again
    a_welcome_opened_in_a_rolled_back_transaction_shows_again
    a_rolled_back_key_package_is_released
    a_rolled_back_claim_on_what_is_still_there_stays
    a_delete_is_carried_out_when_its_transaction_ends
    a_delete_is_not_undone_by_the_rollback_of_a_later_transaction
    a_rolled_back_delete_is_none
    a_rollback_that_comes_after_its_guard_is_dropped_loses_nothing
    a_commit_rolled_back_after_its_guard_is_dropped_loses_nothing
    what_a_transaction_of_another_wrapper_may_hold_is_not_answered_for
}

fn releases(log: &[Event]) -> usize {
    log.iter()
        .filter(|event| match event {
            Event::Settle(_) => true,
            Event::Note(note) => !matches!(note, Note::OwnLeaf { .. }),
            _ => false,
        })
        .count()
}

fn a_rolled_back_commit_destroys_nothing<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let storage = &alice.provider.storage;
    let mut group = alice.create(b"group");
    model.take_log();

    alice.backend.begin(storage.inner());
    let transaction = storage.begin();
    alice.update(&mut group);
    assert_eq!(releases(&model.take_log()), 0);
    alice.backend.rollback(storage.inner());
    drop(transaction);

    let epoch_before = |event: &Event| {
        matches!(event, Event::Settle(
            Settlement::Deleted { record, .. } | Settlement::Written { record, .. },
        ) if matches!(record, Record::Epoch { epoch: 0, .. }))
    };
    let mut group = alice.load(b"group");
    assert!(!model.take_log().iter().any(epoch_before));
    assert_eq!(alice.claimed(), 1);
    alice.sweep();
    assert_eq!(group.epoch().as_u64(), 0);
    alice.update(&mut group);
    alice.update(&mut group);
    alice.sweep();
    assert_eq!(
        model.alive().len(),
        1,
        "what the rollback left over is gone too"
    );
    alice.update(&mut group);
}

fn a_committed_transaction_releases_all_at_once<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let storage = &alice.provider.storage;
    let mut group = alice.create(b"group");
    model.take_log();

    alice.backend.begin(storage.inner());
    let transaction = storage.begin();
    alice.update(&mut group);
    let log = model.take_log();
    assert_eq!(releases(&log), 0);
    assert!(
        log.iter().any(|event| matches!(event, Event::Claim(..))),
        "claims do not wait"
    );
    alice.backend.commit(storage.inner());
    transaction.committed();
    assert!(releases(&model.take_log()) > 0);
    assert_eq!(alice.claimed(), 1);
    alice.sweep();
    assert_eq!(model.alive().len(), 1);
}

fn a_transaction_within_another_waits_for_it<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let storage = &alice.provider.storage;
    let mut group = alice.create(b"group");
    model.take_log();
    let outer = storage.begin();
    let within = storage.begin();
    alice.update(&mut group);
    within.committed();
    assert_eq!(releases(&model.take_log()), 0);
    outer.committed();
    assert!(releases(&model.take_log()) > 0);

    let outer = storage.begin();
    drop(storage.begin());
    alice.update(&mut group);
    assert_eq!(releases(&model.take_log()), 0);
    outer.committed();
    assert_eq!(model.take_log(), [], "a part of it was rolled back");
    let mut group = alice.load(b"group");
    let found = |event: &Event| matches!(event, Event::Settle(Settlement::Found { .. }));
    let log = model.take_log();
    assert!(
        log.iter().any(found),
        "so what is there is looked at: {log:?}"
    );
    alice.update(&mut group);
    assert_eq!(alice.claimed(), 1);
}

fn a_rolled_back_join_can_be_done_again<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let bob = App::<B>::new("bob", &model);
    let storage = &bob.provider.storage;
    let package = bob.key_package(false);
    let reference = package.hash_ref(bob.provider.crypto()).unwrap();
    let mut group = alice.create(b"group");
    let (_, welcome) = alice.add(&mut group, package);

    for committed in [false, true] {
        bob.backend.begin(storage.inner());
        let transaction = storage.begin();
        bob.join(&welcome);
        assert_eq!(bob.claimed(), 2);
        if committed {
            bob.backend.commit(storage.inner());
            transaction.committed();
        } else {
            bob.backend.rollback(storage.inner());
            drop(transaction);
            let shown: Option<KeyPackageBundle> = storage.key_package(&reference).unwrap();
            assert!(shown.is_some());
        }
        bob.sweep();
    }
    assert_eq!(bob.claimed(), 1);
    bob.update(&mut bob.load(b"group"));
}

fn a_database_put_back_within_the_grace_keeps_its_keys<B: Backend>() {
    let model = Arc::new(Model::default());
    let mut alice = App::<B>::new("alice", &model);
    let mut group = alice.create(b"group");
    // Put back without a word to the wrapper, as a backup is.
    alice.backend.begin(alice.provider.storage.inner());
    alice.update(&mut group);
    alice.backend.rollback(alice.provider.storage.inner());
    alice.restart();
    alice.sweep();
    let mut group = alice.load(b"group");
    assert_eq!(group.epoch().as_u64(), 0);
    assert!(model.lock().failures.is_empty());
    alice.update(&mut group);
    alice.sweep();
    assert_eq!(
        model.alive().len(),
        1,
        "also the key of the commit that is no more has died"
    );
}

fn a_record_deleted_and_written_again_stays_claimed<B: Backend>() {
    let model = Arc::new(Model::default());
    let bob = App::<B>::new("bob", &model);
    let storage = &bob.provider.storage;
    let package = bob.key_package(true);
    let reference = package.hash_ref(bob.provider.crypto()).unwrap();
    let bundle: KeyPackageBundle = storage.key_package(&reference).unwrap().unwrap();
    model.take_log();
    let transaction = storage.begin();
    storage.delete_key_package(&reference).unwrap();
    storage.write_key_package(&reference, &bundle).unwrap();
    transaction.committed();
    let log = model.take_log();
    let deleted = |event: &Event| matches!(event, Event::Settle(Settlement::Deleted { .. }));
    assert!(!log.iter().any(deleted), "{log:?}");
    assert_eq!(bob.claimed(), 2);
}

fn own_leaves_cleared_and_appended_again_keep_their_update<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let storage = &alice.provider.storage;
    let mut group = alice.create(b"group");
    group
        .propose_self_update(
            &alice.provider,
            &alice.signer,
            LeafNodeParameters::default(),
        )
        .unwrap();
    let id = group.group_id();
    let leaves: Vec<LeafNode> = storage.own_leaf_nodes(id).unwrap();
    let transaction = storage.begin();
    storage.delete_own_leaf_nodes(id).unwrap();
    for leaf in &leaves {
        storage.append_own_leaf_node(id, leaf).unwrap();
    }
    model.take_log();
    transaction.committed();
    let log = model.take_log();
    assert!(
        matches!(log.last(), Some(Event::Note(Note::OwnLeaf { .. }))),
        "{log:?}"
    );
}

fn a_group_deleted_and_created_again_keeps_its_keys<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let storage = &alice.provider.storage;
    let mut group = alice.create(b"group");
    let transaction = storage.begin();
    group.delete(storage).unwrap();
    let mut group = alice.create(b"group");
    model.take_log();
    transaction.committed();
    let ended = |event: &Event| matches!(event, Event::Note(Note::GroupEnded { .. }));
    assert!(!model.take_log().iter().any(ended));
    alice.sweep();
    assert_eq!(alice.claimed(), 1);
    assert_eq!(model.alive().len(), 1);
    alice.update(&mut group);
}

fn a_record_written_again_while_the_daemon_is_away_stays_claimed<B: Backend>() {
    let model = Arc::new(Model::default());
    let bob = App::<B>::new("bob", &model);
    let storage = &bob.provider.storage;
    let package = bob.key_package(true);
    let reference = package.hash_ref(bob.provider.crypto()).unwrap();
    let bundle: KeyPackageBundle = storage.key_package(&reference).unwrap().unwrap();
    let transaction = storage.begin();
    storage.delete_key_package(&reference).unwrap();
    model.lock().away = true;
    storage.write_key_package(&reference, &bundle).unwrap();
    model.lock().away = false;
    transaction.committed();
    assert_eq!(bob.claimed(), 2);
}

fn a_rolled_back_write_is_said_again<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let storage = &alice.provider.storage;
    let mut group = alice.create(b"group");
    group
        .self_update(
            &alice.provider,
            &alice.signer,
            LeafNodeParameters::default(),
        )
        .unwrap();
    alice.backend.begin(storage.inner());
    let transaction = storage.begin();
    group.clear_pending_commit(storage).unwrap();
    alice.backend.rollback(storage.inner());
    drop(transaction);
    assert_eq!(alice.claimed(), 2);
    let id = group.group_id();
    storage
        .write_group_state(id, &MlsGroupState::Operational)
        .unwrap();
    assert_eq!(alice.claimed(), 1);
}

fn a_welcome_opened_in_a_rolled_back_transaction_shows_again<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let bob = App::<B>::new("bob", &model);
    let storage = &bob.provider.storage;
    let mut group = alice.create(b"group");
    let (_, welcome) = alice.add(&mut group, bob.key_package(false));
    let transaction = storage.begin();
    drop(bob.stage(&welcome).unwrap());
    drop(transaction);
    bob.join(&welcome);
}

fn a_rolled_back_key_package_is_released<B: Backend>() {
    let model = Arc::new(Model::default());
    let bob = App::<B>::new("bob", &model);
    let storage = &bob.provider.storage;
    bob.backend.begin(storage.inner());
    let transaction = storage.begin();
    bob.key_package(false);
    assert_eq!(bob.claimed(), 2);
    bob.backend.rollback(storage.inner());
    drop(transaction);
    drop(storage.begin());
    assert_eq!(bob.claimed(), 0);
    bob.sweep();
    assert_eq!(model.alive().len(), 0);
}

fn a_rolled_back_claim_on_what_is_still_there_stays<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let storage = &alice.provider.storage;
    let mut group = alice.create(b"group");
    let update = |group: &mut MlsGroup| {
        let parameters = LeafNodeParameters::default();
        group
            .self_update(&alice.provider, &alice.signer, parameters)
            .unwrap();
    };
    update(&mut group);
    alice.backend.begin(storage.inner());
    let transaction = storage.begin();
    group.clear_pending_commit(storage).unwrap();
    update(&mut group);
    assert_eq!(alice.claimed(), 3, "two pending commits, and the epoch");
    alice.backend.rollback(storage.inner());
    drop(transaction);
    let mut group = alice.load(b"group");
    assert_eq!(alice.claimed(), 2);
    alice.sweep();
    group.merge_pending_commit(&alice.provider).unwrap();
    alice.update(&mut group);
    assert!(model.lock().failures.is_empty());
}

/// Bob's database, with the KeyPackage that he published.
fn published<B: Backend>() -> (App<B>, KeyPackageRef) {
    let bob = App::<B>::new("bob", &Arc::new(Model::default()));
    let package = bob.key_package(false);
    let reference = package.hash_ref(bob.provider.crypto()).unwrap();
    (bob, reference)
}

fn is_stored<B: Backend>(bob: &App<B>, reference: &KeyPackageRef) -> bool {
    let stored: Option<KeyPackageBundle> =
        bob.provider.storage.inner().key_package(reference).unwrap();
    stored.is_some()
}

fn a_delete_is_carried_out_when_its_transaction_ends<B: Backend>() {
    let (bob, reference) = published::<B>();
    let storage = &bob.provider.storage;
    bob.backend.begin(storage.inner());
    let transaction = storage.begin();
    storage.delete_key_package(&reference).unwrap();
    bob.backend.commit(storage.inner());
    transaction.committed();
    assert!(!is_stored(&bob, &reference));
    assert_eq!(bob.claimed(), 0);
}

fn a_delete_is_not_undone_by_the_rollback_of_a_later_transaction<B: Backend>() {
    let (bob, reference) = published::<B>();
    let storage = &bob.provider.storage;
    storage.delete_key_package(&reference).unwrap();

    bob.backend.begin(storage.inner());
    let transaction = storage.begin();
    bob.key_package(false);
    assert!(is_stored(&bob, &reference), "it would come back");
    bob.backend.rollback(storage.inner());
    drop(transaction);
    let shown: Option<KeyPackageBundle> = storage.key_package(&reference).unwrap();
    assert!(shown.is_none());
    assert!(!is_stored(&bob, &reference));
    assert_eq!(bob.claimed(), 0);
}

fn a_rolled_back_delete_is_none<B: Backend>() {
    let (bob, reference) = published::<B>();
    let storage = &bob.provider.storage;
    bob.backend.begin(storage.inner());
    let transaction = storage.begin();
    storage.delete_key_package(&reference).unwrap();
    bob.backend.rollback(storage.inner());
    drop(transaction);
    let shown: Option<KeyPackageBundle> = storage.key_package(&reference).unwrap();
    assert!(shown.is_some());
    assert_eq!(bob.claimed(), 2);
}

/// Rust drops a guard before the database's transaction, if that was declared
/// first.
fn a_rollback_that_comes_after_its_guard_is_dropped_loses_nothing<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let bob = App::<B>::new("bob", &model);
    let storage = &bob.provider.storage;
    let mut group = alice.create(b"group");
    let (_, welcome) = alice.add(&mut group, bob.key_package(false));
    bob.backend.begin(storage.inner());
    let transaction = storage.begin();
    bob.join(&welcome);
    drop(transaction);
    bob.backend.rollback(storage.inner());
    bob.sweep();
    let mut joined = bob.join(&welcome);
    bob.update(&mut joined);
    assert!(model.lock().failures.is_empty());
    bob.sweep();
    assert_eq!(bob.claimed(), 1);
}

fn a_commit_rolled_back_after_its_guard_is_dropped_loses_nothing<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let storage = &alice.provider.storage;
    let mut group = alice.create(b"group");
    model.take_log();
    alice.backend.begin(storage.inner());
    let transaction = storage.begin();
    alice.update(&mut group);
    model.take_log();
    drop(transaction);
    assert_eq!(model.take_log(), [], "nothing is known yet");
    alice.backend.rollback(storage.inner());
    let mut group = alice.load(b"group");
    assert_eq!(group.epoch().as_u64(), 0);
    alice.sweep();
    alice.update(&mut group);
    alice.sweep();
    assert_eq!(model.alive().len(), 1);
    assert!(model.lock().failures.is_empty());
}

fn what_a_transaction_of_another_wrapper_may_hold_is_not_answered_for<B: Backend>() {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let storage = &alice.provider.storage;
    let beside = storage.beside(alice.backend.open(Some(storage.inner())));
    let mut group = alice.create(b"group");
    let transaction = storage.begin();
    alice.update(&mut group);
    model.look_for_all("alice");
    model.take_log();
    let _ = MlsGroup::load(&beside, &GroupId::from_slice(b"other")).unwrap();
    assert!(!model.take_log().contains(&Event::Looked));
    transaction.committed();
    assert!(model.take_log().contains(&Event::Looked));
}
