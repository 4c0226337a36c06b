//! Storages that come and go.

use std::process::Command;

use super::bench::{Bench, DAY, HOME, HOUR, Pair, SUITE, loose_key};
use mlskeyd_protocol::v1::{FailureCode, KeyState};
use mlskeyd_provider::{CustodyProvider, Operation, ProviderError};
use openmls::prelude::*;

#[test]
fn a_key_that_no_record_named_dies_after_its_connection() {
    let bench = Bench::new();
    let mut alice = bench.app("alice");
    let key = alice.loose_key();
    bench.daemon.pass(3 * DAY);
    bench.sweep();
    assert_eq!(bench.state(key), KeyState::Active, "connected");
    alice.end();
    bench.await_alone();
    bench.daemon.pass(HOUR / 2);
    bench.sweep();
    assert_eq!(
        bench.state(key),
        KeyState::Active,
        "within the orphan grace"
    );
    bench.daemon.pass(HOUR);
    bench.sweep();
    alice.restart();
    alice.assert_destroyed(&bench, key);
}

#[test]
fn a_key_that_no_record_named_has_a_maximum_age() {
    let bench = Bench::new();
    let alice = bench.app("alice");
    let key = alice.loose_key();
    bench.daemon.pass(7 * DAY - HOUR);
    bench.sweep();
    assert_eq!(bench.state(key), KeyState::Active);
    bench.daemon.pass(2 * HOUR);
    bench.sweep();
    alice.assert_destroyed(&bench, key);
}

#[test]
fn a_key_that_no_record_named_dies_after_a_restart_of_the_daemon() {
    let mut bench = Bench::new();
    let mut alice = bench.app("alice");
    let key = alice.loose_key();
    bench.daemon.resume().unwrap();
    bench.sweep();
    assert_eq!(bench.state(key), KeyState::Active);
    bench.daemon.pass(2 * HOUR);
    bench.sweep();
    alice.restart();
    alice.assert_destroyed(&bench, key);
}

#[test]
fn a_storage_in_memory_ends_with_its_connection() {
    let bench = Bench::new();
    let provider = CustodyProvider::builder()
        .socket(bench.daemon.socket())
        .build()
        .unwrap();
    let credential = BasicCredential::new(b"carol".to_vec()).into();
    let identity = provider
        .create_identity("carol", &credential, SUITE.signature_algorithm())
        .unwrap();
    let group = MlsGroup::builder()
        .ciphersuite(SUITE)
        .build(
            &provider,
            &identity.signer(),
            identity.credential_with_key().unwrap(),
        )
        .unwrap();
    let keys = bench.alive();
    assert_eq!(keys.len(), 1);
    bench.daemon.pass(30 * DAY);
    bench.sweep();
    assert_eq!(bench.alive(), keys, "connected");
    assert_eq!(bench.storages().len(), 1);

    drop(group);
    let loose = loose_key(&provider);
    drop((provider, identity));
    bench.await_alone();
    bench.daemon.pass(HOUR / 2);
    bench.sweep();
    assert_eq!(bench.storages().len(), 1, "within the orphan grace");
    bench.daemon.pass(HOUR);
    bench.sweep();
    assert_eq!(bench.storages(), []);
    assert_eq!(bench.state(loose), KeyState::Destroyed);
    assert_eq!(bench.alive(), keys, "within the grace");
    bench.daemon.pass(DAY);
    bench.sweep();
    assert_eq!(bench.alive(), []);
}

#[test]
fn keys_wait_for_a_storage_that_is_not_connected_to_the_horizon() {
    let mut pair = Pair::new();
    pair.days_pass();
    let in_use = pair.alice.leaf_key(&pair.hers);
    let before = pair.bench.alive();
    pair.alice.commit(&mut pair.hers);
    let released = pair.bench.new_key(&before);
    let storage = pair.alice.provider().storage();
    pair.hers.clear_pending_commit(storage).unwrap();
    pair.alice.end();
    pair.bench.await_gone("alice");

    pair.bench.daemon.pass(89 * DAY);
    assert_eq!(pair.bench.sweep().waiting, 1);
    assert_eq!(pair.bench.state(released), KeyState::Idle);
    pair.bench.daemon.pass(2 * DAY);
    assert_eq!(pair.bench.sweep().waiting, 0);
    assert_eq!(pair.bench.state(released), KeyState::Destroyed);
    // What its records name waits for ever.
    pair.bench.daemon.pass(3650 * DAY);
    pair.bench.sweep();
    assert_eq!(pair.bench.state(in_use), KeyState::Active);
    pair.alice.restart();
    pair.alice.assert_destroyed(&pair.bench, released);
    pair.hers = pair.alice.load(b"group");
    pair.both_commit();
}

#[test]
fn sweeps_at_once_are_not_in_each_others_way() {
    let bench = Bench::new();
    let alice = bench.app("alice");
    let keys: Vec<_> = (0..24).map(|_| alice.loose_key()).collect();
    bench.daemon.pass(8 * DAY);
    // And the daemon's own one may come in between.
    let daemon = &bench.daemon;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| daemon.sweep().unwrap());
        }
    });
    for key in keys {
        alice.assert_destroyed(&bench, key);
    }
}

/// Runs `mlskeyctl --json`.
fn ctl(bench: &Bench, arguments: &[&str]) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_test-ctl"))
        .arg("--socket")
        .arg(bench.daemon.socket())
        .arg("--json")
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_administrator_forgets_a_storage_and_its_claims_are_lost_loudly() {
    let mut pair = Pair::new();
    pair.days_pass();
    let keys = [
        pair.bob.leaf_key(&pair.bob.load(HOME)),
        pair.bob.leaf_key(&pair.his),
    ];
    pair.bob.end();

    let listed = ctl(&pair.bench, &["storage", "list"]);
    let bobs = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|storage| storage["name"] == "bob")
        .unwrap();
    assert_eq!((&bobs["records"], &bobs["keys"]), (&2.into(), &2.into()));
    let owner = format!(
        "{}/{}",
        bobs["owner"]["uid"],
        bobs["owner"]["app"].as_str().unwrap()
    );
    let forgotten = ctl(&pair.bench, &["storage", "forget", &owner, "bob", "--yes"]);
    assert_eq!(forgotten["records"], 2);
    let listed = ctl(&pair.bench, &["storage", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");

    let swept = ctl(&pair.bench, &["keys", "sweep"]);
    assert_eq!(swept["destroyed"], 0, "within the grace");
    pair.bench.daemon.pass(DAY + HOUR);
    let before = pair.bench.alive().len();
    let swept = ctl(&pair.bench, &["keys", "sweep"]);
    // The daemon's own task may have been faster.
    assert!(swept["destroyed"].as_u64().unwrap() <= before as u64);
    assert_eq!(swept["waiting"], 0);
    for key in keys {
        assert_eq!(pair.bench.state(key), KeyState::Destroyed);
    }
    pair.bench.sweep();

    // The database was not gone after all.
    pair.bob.restart();
    pair.his = pair.bob.load(b"group");
    assert_eq!(pair.bench.lost_claims(), []);
    let commit = pair.alice.update(&mut pair.hers);
    pair.bob.try_receive(&mut pair.his, &commit).unwrap_err();
    assert_eq!(pair.bench.lost_claims(), [keys[1]]);
    let failures = pair.bob.take_failures();
    let met: Vec<_> = failures.iter().map(|failure| failure.operation).collect();
    assert_eq!(met, [Operation::Claim, Operation::Open]);
    for failure in failures {
        assert_eq!(failure.key, Some(keys[1]));
        let ProviderError::Failure(failure) = failure.error else {
            panic!("{failure}");
        };
        assert_eq!(failure.code, FailureCode::Destroyed);
    }
}
