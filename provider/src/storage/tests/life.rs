//! A group's life: keys that are done with die when due, those in use never.

use std::sync::Arc;

use mlskeyd_protocol::v1::{Bytes, Note, Record};
use openmls::prelude::*;
use openmls_traits::storage::StorageProvider;

use super::app::{App, Backend, Memory, Sqlite, on_both_storages};
use super::model::{Event, Model};

on_both_storages! {
    commits_leave_one_key
    a_cleared_commits_key_dies
    a_superseded_commits_key_dies
    an_applied_updates_key_lives_and_an_ignored_ones_dies
    a_removed_members_keys_die
    a_deleted_groups_keys_die
    two_storages_in_one_group_do_not_collide
    an_external_commits_key_lives
    a_record_that_is_in_use_is_not_deleted_as_dead
    an_end_that_an_earlier_process_did_not_tell_is_told
    an_end_that_did_not_come_is_told
}

/// Alice and Bob in one group.
fn pair<B: Backend>() -> (Arc<Model>, App<B>, MlsGroup, App<B>, MlsGroup) {
    let model = Arc::new(Model::default());
    let alice = App::<B>::new("alice", &model);
    let bob = App::<B>::new("bob", &model);
    let mut hers = alice.create(b"group");
    let (_, welcome) = alice.add(&mut hers, bob.key_package(false));
    let his = bob.join(&welcome);
    (model, alice, hers, bob, his)
}

fn commits_leave_one_key<B: Backend>() {
    let (model, alice, mut hers, bob, mut his) = pair::<B>();
    for _ in 0..3 {
        bob.receive(&mut his, &alice.update(&mut hers));
        alice.sweep();
        bob.sweep();
        alice.receive(&mut hers, &bob.update(&mut his));
        alice.sweep();
        bob.sweep();
        assert_eq!(model.alive().len(), 2);
    }
    assert_eq!(
        hers.epoch_authenticator().as_slice(),
        his.epoch_authenticator().as_slice()
    );
    assert!(model.lock().failures.is_empty());
}

fn a_cleared_commits_key_dies<B: Backend>() {
    let (model, alice, mut hers, ..) = pair::<B>();
    alice.sweep();
    let before = model.alive();
    hers.self_update(
        &alice.provider,
        &alice.signer,
        LeafNodeParameters::default(),
    )
    .unwrap();
    alice.sweep();
    assert_eq!(model.alive().len(), before.len() + 1, "it is pending");
    hers.clear_pending_commit(&alice.provider.storage).unwrap();
    alice.sweep();
    assert_eq!(model.alive(), before);
}

fn a_superseded_commits_key_dies<B: Backend>() {
    let (model, alice, mut hers, bob, mut his) = pair::<B>();
    hers.self_update(
        &alice.provider,
        &alice.signer,
        LeafNodeParameters::default(),
    )
    .unwrap();
    // Bob's commit wins the epoch.
    alice.receive(&mut hers, &bob.update(&mut his));
    alice.sweep();
    bob.sweep();
    assert_eq!(model.alive().len(), 2);
    bob.receive(&mut his, &alice.update(&mut hers));
}

fn an_applied_updates_key_lives_and_an_ignored_ones_dies<B: Backend>() {
    let (model, alice, mut hers, bob, mut his) = pair::<B>();
    let parameters = LeafNodeParameters::default;
    let (applied, _) = hers
        .propose_self_update(&alice.provider, &alice.signer, parameters())
        .unwrap();
    alice.sweep();
    bob.receive(&mut his, &applied);
    let (commit, ..) = his
        .commit_to_pending_proposals(&bob.provider, &bob.signer)
        .unwrap();
    his.merge_pending_commit(&bob.provider).unwrap();
    alice.receive(&mut hers, &commit);
    alice.sweep();
    bob.sweep();
    assert_eq!(model.alive().len(), 2);
    bob.receive(&mut his, &alice.update(&mut hers));

    // Bob never hears of this one.
    hers.propose_self_update(&alice.provider, &alice.signer, parameters())
        .unwrap();
    alice.sweep();
    assert_eq!(model.alive().len(), 3);
    alice.receive(&mut hers, &bob.update(&mut his));
    alice.sweep();
    bob.sweep();
    assert_eq!(model.alive().len(), 2);
    bob.receive(&mut his, &alice.update(&mut hers));
    assert!(model.lock().failures.is_empty());
}

fn a_removed_members_keys_die<B: Backend>() {
    let (model, alice, mut hers, bob, mut his) = pair::<B>();
    his.propose_self_update(&bob.provider, &bob.signer, LeafNodeParameters::default())
        .unwrap();
    let (commit, ..) = hers
        .remove_members(&alice.provider, &alice.signer, &[his.own_leaf_index()])
        .unwrap();
    hers.merge_pending_commit(&alice.provider).unwrap();
    bob.receive(&mut his, &commit);
    assert!(!his.is_active());
    alice.sweep();
    bob.sweep();
    assert_eq!(bob.claimed(), 0);
    assert_eq!(model.alive().len(), 1, "Alice's");
    // OpenMLS left them behind; the wrapper deleted them from the storage too.
    let epoch = Record::Epoch {
        group: b"group"[..].into(),
        epoch: 1,
        leaf_index: 1,
    };
    let left = super::super::record::read(bob.provider.storage.inner(), &epoch).unwrap();
    assert!(left.unwrap().keys().is_empty());
}

fn a_deleted_groups_keys_die<B: Backend>() {
    let (model, alice, _, bob, mut his) = pair::<B>();
    his.propose_self_update(&bob.provider, &bob.signer, LeafNodeParameters::default())
        .unwrap();
    assert_eq!(bob.claimed(), 2);
    his.delete(&bob.provider.storage).unwrap();
    bob.sweep();
    assert_eq!(bob.claimed(), 0);
    alice.sweep();
    assert_eq!(model.alive().len(), 1, "Alice's");
}

fn two_storages_in_one_group_do_not_collide<B: Backend>() {
    let (model, alice, mut hers, bob, mut his) = pair::<B>();
    alice.sweep();
    let alice_keys = model.claimed("alice");
    // The same group, the same record kinds: only the storage tells them apart.
    his.delete(&bob.provider.storage).unwrap();
    bob.sweep();
    assert_eq!(model.claimed("alice"), alice_keys);
    assert_eq!(model.alive(), alice_keys);
    alice.update(&mut hers);
}

fn an_external_commits_key_lives<B: Backend>() {
    let (model, alice, mut hers, bob, mut his) = pair::<B>();
    let info = hers
        .export_group_info(alice.provider.crypto(), &alice.signer, true)
        .unwrap();
    his.delete(&bob.provider.storage).unwrap();
    let MlsMessageBodyIn::GroupInfo(info) = MlsMessageIn::from(info).extract() else {
        panic!()
    };
    let (mut again, bundle) = MlsGroup::external_commit_builder()
        .with_config(super::app::join_config())
        .build_group(&bob.provider, info, bob.credential())
        .unwrap()
        .load_psks(bob.provider.storage())
        .unwrap()
        .build(
            bob.provider.rand(),
            bob.provider.crypto(),
            &bob.signer,
            |_| true,
        )
        .unwrap()
        .finalize(&bob.provider)
        .unwrap();
    alice.receive(&mut hers, &bundle.into_commit());
    alice.sweep();
    bob.sweep();
    assert_eq!(bob.claimed(), 1);
    assert_eq!(
        hers.epoch_authenticator().as_slice(),
        again.epoch_authenticator().as_slice()
    );
    alice.receive(&mut hers, &bob.update(&mut again));
    bob.receive(&mut again, &alice.update(&mut hers));
    alice.sweep();
    bob.sweep();
    assert_eq!(bob.claimed(), 1);
    let state: Option<MlsGroupState> = bob.provider.storage.group_state(again.group_id()).unwrap();
    assert!(state.is_some());
    assert!(model.lock().failures.is_empty());
}

fn a_record_that_is_in_use_is_not_deleted_as_dead<B: Backend>() {
    let (model, alice, mut hers, bob, mut his) = pair::<B>();
    let record = |epoch| Record::Epoch {
        group: b"group"[..].into(),
        epoch,
        leaf_index: 0,
    };
    // As after a database was put back to an epoch that the daemon holds for past.
    alice
        .provider
        .storage
        .state
        .ledger()
        .dead
        .extend([record(1), record(7)]);
    alice.key_package(false);
    assert!(alice.provider.storage.state.ledger().dead.is_empty());
    // It is needed to read this.
    alice.receive(&mut hers, &bob.update(&mut his));
    assert!(model.lock().failures.is_empty());
}

/// Alice dies around the end of her group; answers what her next process says.
fn after_an_untold_end<B: Backend>(ended: bool) -> (App<B>, Vec<Event>) {
    let model = Arc::new(Model::default());
    let mut alice = App::<B>::new("alice", &model);
    let mut group = alice.create(b"group");
    if ended {
        // Past the wrapper: what it would have said is lost with the process.
        group.delete(alice.provider.storage.inner()).unwrap();
    }
    alice.restart();
    let group = Bytes::from(&b"group"[..]);
    model.lock().ending.insert(("alice".to_owned(), group));
    model.take_log();
    let _ = MlsGroup::load(&alice.provider.storage, &GroupId::from_slice(b"group")).unwrap();
    let log = model.take_log();
    (alice, log)
}

fn an_end_that_an_earlier_process_did_not_tell_is_told<B: Backend>() {
    let (alice, log) = after_an_untold_end::<B>(true);
    let gone = |event: &Event| matches!(event, Event::Note(Note::GroupGone { .. }));
    assert!(log.iter().any(gone), "{log:?}");
    alice.sweep();
    assert_eq!(alice.claimed(), 0);
}

fn an_end_that_did_not_come_is_told<B: Backend>() {
    let (alice, log) = after_an_untold_end::<B>(false);
    let lives = |event: &Event| matches!(event, Event::Note(Note::GroupLives { .. }));
    assert!(log.iter().any(lives), "{log:?}");
    alice.sweep();
    assert_eq!(alice.claimed(), 1);
    alice.update(&mut alice.load(b"group"));
}
