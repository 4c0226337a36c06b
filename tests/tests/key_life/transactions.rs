//! What the app's database takes back.

use super::bench::{DAY, HOUR, Pair};
use mlskeyd_protocol::v1::KeyState;

#[test]
fn a_rolled_back_transaction_keeps_its_keys() {
    let mut pair = Pair::new();
    let before = pair.bench.alive();
    let old = pair.alice.leaf_key(&pair.hers);

    let custody = pair.alice.provider().transaction();
    pair.alice.sql("BEGIN IMMEDIATE");
    pair.alice.update(&mut pair.hers);
    pair.alice.sql("ROLLBACK");
    drop(custody);
    let new = pair.bench.new_key(&before);
    pair.hers = pair.alice.load(b"group");
    assert_eq!(pair.alice.leaf_key(&pair.hers), old);
    pair.days_pass();

    pair.hers = pair.alice.load(b"group");
    // The old key opens this.
    let commit = pair.bob.update(&mut pair.his);
    pair.alice.receive(&mut pair.hers, &commit);
    // By then the records are written again that named the new one.
    pair.only_keys_in_use_are_left();
    pair.alice.assert_destroyed(&pair.bench, new);
}

#[test]
fn a_crash_before_the_commit_keeps_the_keys() {
    let mut pair = Pair::new();
    let before = pair.bench.alive();

    pair.alice.sql("BEGIN IMMEDIATE");
    std::mem::forget(pair.alice.provider().transaction());
    pair.alice.update(&mut pair.hers);
    pair.alice.restart();
    let new = pair.bench.new_key(&before);
    pair.days_pass();

    pair.hers = pair.alice.load(b"group");
    let commit = pair.bob.update(&mut pair.his);
    pair.alice.receive(&mut pair.hers, &commit);
    pair.only_keys_in_use_are_left();
    pair.alice.assert_destroyed(&pair.bench, new);
}

#[test]
fn a_committed_transaction_lets_its_keys_go() {
    let mut pair = Pair::new();
    let old = pair.alice.leaf_key(&pair.hers);

    let custody = pair.alice.provider().transaction();
    pair.alice.sql("BEGIN IMMEDIATE");
    let commit = pair.alice.update(&mut pair.hers);
    assert_eq!(pair.bench.state(old), KeyState::Active);
    pair.alice.sql("COMMIT");
    assert_eq!(pair.bench.state(old), KeyState::Active);
    custody.committed();
    assert_eq!(pair.bench.state(old), KeyState::Idle);

    // Not before it is due.
    pair.bench.daemon.pass(DAY - HOUR);
    pair.alice.restart();
    pair.alice.load(b"group");
    pair.bench.sweep();
    assert_eq!(pair.bench.state(old), KeyState::Idle);
    pair.days_pass();
    pair.alice.assert_destroyed(&pair.bench, old);

    pair.hers = pair.alice.load(b"group");
    pair.bob.receive(&mut pair.his, &commit);
    pair.only_keys_in_use_are_left();
}

#[test]
fn a_database_restored_within_the_grace_works_again() {
    let mut pair = Pair::new();
    let old = pair.alice.leaf_key(&pair.hers);
    pair.alice.end();
    let copy = std::fs::read(&pair.alice.path).unwrap();
    pair.alice.restart();
    pair.hers = pair.alice.load(b"group");
    pair.alice.update(&mut pair.hers);
    let lost = pair.alice.leaf_key(&pair.hers);
    assert_eq!(pair.bench.state(old), KeyState::Idle);

    pair.bench.daemon.pass(DAY - HOUR);
    pair.alice.end();
    std::fs::write(&pair.alice.path, &copy).unwrap();
    pair.alice.restart();
    // The last look finds the key in a record that no load reads.
    pair.days_pass();
    assert_eq!(pair.bench.state(old), KeyState::Active);

    pair.hers = pair.alice.load(b"group");
    let commit = pair.bob.update(&mut pair.his);
    pair.alice.receive(&mut pair.hers, &commit);
    pair.only_keys_in_use_are_left();
    pair.alice.assert_destroyed(&pair.bench, lost);
    assert_eq!(pair.bench.lost_claims(), []);
}
