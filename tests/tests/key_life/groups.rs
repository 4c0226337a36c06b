//! What becomes of leaf keys in a group.

use super::bench::{DAY, HOME, HOUR, Pair};
use mlskeyd_protocol::v1::{FailureCode, KeyId, KeyState};
use mlskeyd_provider::{Operation, ProviderError};
use openmls::prelude::*;

/// An own leaf with the credential of somebody else: the daemon refuses it.
fn somebody_else(pair: &Pair) -> LeafNodeParameters {
    let credential = CredentialWithKey {
        credential: BasicCredential::new(b"mallory".to_vec()).into(),
        ..pair.alice.credential()
    };
    LeafNodeParameters::builder()
        .with_credential_with_key(credential)
        .build()
}

fn assert_refused(pair: &Pair) {
    let [failure] = <[_; 1]>::try_from(pair.alice.take_failures()).unwrap();
    assert_eq!(failure.operation, Operation::Sign);
    let ProviderError::Failure(failure) = failure.error else {
        panic!("{failure}");
    };
    assert_eq!(failure.code, FailureCode::Denied);
}

#[test]
fn replaced_keys_die_and_keys_in_use_never() {
    let mut pair = Pair::new();
    let first = pair.alice.leaf_key(&pair.hers);
    for _ in 0..3 {
        pair.both_commit();
    }
    pair.days_pass();
    pair.alice.assert_destroyed(&pair.bench, first);
    (pair.hers, pair.his) = (pair.alice.load(b"group"), pair.bob.load(b"group"));
    pair.only_keys_in_use_are_left();
}

#[test]
fn an_app_that_is_never_started_again_learns_what_is_due() {
    let mut pair = Pair::new();
    let first = pair.alice.leaf_key(&pair.hers);
    for _ in 0..4 {
        pair.both_commit();
        pair.bench.daemon.pass(DAY + HOUR);
        pair.bench.sweep();
    }
    pair.alice.assert_destroyed(&pair.bench, first);
    pair.both_commit();
}

#[test]
fn a_cleared_commits_key_dies() {
    let mut pair = Pair::new();
    let before = pair.bench.alive();
    pair.alice.commit(&mut pair.hers);
    let key = pair.bench.new_key(&before);
    pair.days_pass();
    assert_eq!(pair.bench.state(key), KeyState::Active, "it is pending");

    pair.hers = pair.alice.load(b"group");
    let storage = pair.alice.provider().storage();
    pair.hers.clear_pending_commit(storage).unwrap();
    assert_eq!(pair.bench.state(key), KeyState::Idle);
    pair.days_pass();
    pair.alice.assert_destroyed(&pair.bench, key);
    pair.only_keys_in_use_are_left();
}

#[test]
fn a_superseded_commits_key_dies() {
    let mut pair = Pair::new();
    let before = pair.bench.alive();
    pair.alice.commit(&mut pair.hers);
    let key = pair.bench.new_key(&before);
    let commit = pair.bob.update(&mut pair.his);
    pair.alice.receive(&mut pair.hers, &commit);
    pair.days_pass();
    pair.alice.assert_destroyed(&pair.bench, key);
    (pair.hers, pair.his) = (pair.alice.load(b"group"), pair.bob.load(b"group"));
    pair.only_keys_in_use_are_left();
}

fn proposed_key(pair: &mut Pair) -> (MlsMessageOut, KeyId) {
    let before = pair.bench.alive();
    let proposal = pair.alice.propose_update(&mut pair.hers);
    (proposal, pair.bench.new_key(&before))
}

#[test]
fn an_ignored_updates_key_dies() {
    let mut pair = Pair::new();
    let (_, key) = proposed_key(&mut pair);
    pair.days_pass();
    assert_eq!(pair.bench.state(key), KeyState::Active, "it is proposed");
    pair.hers = pair.alice.load(b"group");
    let commit = pair.bob.update(&mut pair.his);
    pair.alice.receive(&mut pair.hers, &commit);
    pair.days_pass();
    pair.alice.assert_destroyed(&pair.bench, key);
    pair.only_keys_in_use_are_left();
}

#[test]
fn a_committed_updates_key_lives() {
    let mut pair = Pair::new();
    let old = pair.alice.leaf_key(&pair.hers);
    let (proposal, key) = proposed_key(&mut pair);
    pair.days_pass();
    pair.hers = pair.alice.load(b"group");
    pair.bob.receive(&mut pair.his, &proposal);
    let (commit, ..) = pair
        .his
        .commit_to_pending_proposals(pair.bob.provider(), &pair.bob.signer())
        .unwrap();
    pair.his.merge_pending_commit(pair.bob.provider()).unwrap();
    pair.alice.receive(&mut pair.hers, &commit);
    assert_eq!(pair.alice.leaf_key(&pair.hers), key);
    pair.days_pass();
    pair.alice.assert_destroyed(&pair.bench, old);
    assert_eq!(pair.bench.state(key), KeyState::Active);
    (pair.hers, pair.his) = (pair.alice.load(b"group"), pair.bob.load(b"group"));
    let commit = pair.bob.update(&mut pair.his);
    pair.alice.receive(&mut pair.hers, &commit);
    pair.only_keys_in_use_are_left();
}

#[test]
fn a_refused_updates_key_dies() {
    let mut pair = Pair::new();
    let before = pair.bench.alive();
    let parameters = somebody_else(&pair);
    pair.hers
        .propose_self_update(pair.alice.provider(), &pair.alice.signer(), parameters)
        .unwrap_err();
    assert_refused(&pair);
    let key = pair.bench.new_key(&before);
    pair.days_pass();
    pair.alice.assert_destroyed(&pair.bench, key);
    pair.hers = pair.alice.load(b"group");
    pair.only_keys_in_use_are_left();
}

#[test]
fn a_refused_commits_key_dies() {
    let mut pair = Pair::new();
    let before = pair.bench.alive();
    let parameters = somebody_else(&pair);
    pair.hers
        .self_update(pair.alice.provider(), &pair.alice.signer(), parameters)
        .unwrap_err();
    assert_refused(&pair);
    let key = pair.bench.new_key(&before);
    pair.alice.end();
    // No record ever named it.
    pair.bench.days_pass(&mut [&mut pair.bob]);
    pair.alice.restart();
    pair.alice.assert_destroyed(&pair.bench, key);
    pair.hers = pair.alice.load(b"group");
    pair.only_keys_in_use_are_left();
}

#[test]
fn a_removed_members_keys_die() {
    let mut pair = Pair::new();
    let key = pair.bob.leaf_key(&pair.his);
    let before = pair.bench.alive();
    pair.bob.propose_update(&mut pair.his);
    let proposed = pair.bench.new_key(&before);
    let (commit, ..) = pair
        .hers
        .remove_members(
            pair.alice.provider(),
            &pair.alice.signer(),
            &[pair.his.own_leaf_index()],
        )
        .unwrap();
    pair.hers
        .merge_pending_commit(pair.alice.provider())
        .unwrap();
    pair.bob.receive(&mut pair.his, &commit);
    assert!(!pair.his.is_active());
    assert_ne!(pair.bench.state(key), KeyState::Destroyed);
    pair.days_pass();
    pair.bob.assert_destroyed(&pair.bench, key);
    pair.bob.assert_destroyed(&pair.bench, proposed);
    pair.hers = pair.alice.load(b"group");
    pair.alice.update(&mut pair.hers);
}

/// OpenMLS keeps the proposals of a membership that ended, under the group's name.
#[test]
fn who_joins_again_finds_no_update_of_the_time_before() {
    let mut pair = Pair::new();
    pair.bob.propose_update(&mut pair.his);
    let (commit, ..) = pair
        .hers
        .remove_members(
            pair.alice.provider(),
            &pair.alice.signer(),
            &[pair.his.own_leaf_index()],
        )
        .unwrap();
    pair.hers
        .merge_pending_commit(pair.alice.provider())
        .unwrap();
    pair.bob.receive(&mut pair.his, &commit);
    let (_, welcome) = pair.alice.add(&mut pair.hers, &pair.bob.key_package());
    let config = MlsGroupJoinConfig::builder()
        .use_ratchet_tree_extension(true)
        .build();
    StagedWelcome::build_from_welcome(pair.bob.provider(), &config, welcome)
        .unwrap()
        .replace_old_group()
        .build()
        .unwrap()
        .into_group(pair.bob.provider())
        .unwrap();
    pair.his = pair.bob.load(b"group");
    assert_eq!(pair.his.pending_proposals().count(), 0);
    let status = pair.bob.provider().custody_status(&pair.his).unwrap();
    status.unwrap().require().unwrap();
    let update = pair.bob.update(&mut pair.his);
    pair.alice.receive(&mut pair.hers, &update);
}

/// Two storages of one uid in one group: what ends in one does not end in the
/// other.
#[test]
fn a_deleted_groups_keys_die_and_those_of_another_storage_live() {
    let mut pair = Pair::new();
    let (her_key, his_key) = (
        pair.alice.leaf_key(&pair.hers),
        pair.bob.leaf_key(&pair.his),
    );
    let before = pair.bench.alive();
    pair.bob.propose_update(&mut pair.his);
    let proposed = pair.bench.new_key(&before);
    pair.his.delete(pair.bob.provider().storage()).unwrap();
    pair.days_pass();
    pair.bob.assert_destroyed(&pair.bench, his_key);
    pair.bob.assert_destroyed(&pair.bench, proposed);
    assert_eq!(pair.bench.state(her_key), KeyState::Active);
    let home = pair.bob.leaf_key(&pair.bob.load(HOME));
    assert_eq!(pair.bench.state(home), KeyState::Active);
    pair.hers = pair.alice.load(b"group");
    pair.alice.update(&mut pair.hers);
}
