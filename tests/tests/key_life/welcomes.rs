//! KeyPackages and the Welcomes to them.

use std::time::Duration;

use super::bench::{App, Bench, DAY, HOUR, Invitation, damaged};
use mlskeyd_protocol::v1::{FailureCode, KeyState};
use mlskeyd_provider::{Operation, ProviderError};
use openmls::prelude::*;
use openmls_traits::storage::StorageProvider as _;

/// Alice invites Bob to a group with this KeyPackage.
fn invite(alice: &App, group: &[u8], invitation: &Invitation) -> (MlsGroup, Welcome) {
    let mut hers = alice.create(group);
    let (_, welcome) = alice.add(&mut hers, invitation);
    (hers, welcome)
}

#[test]
fn a_refused_welcome_is_retried() {
    let mut bench = Bench::new();
    let (mut alice, mut bob) = (bench.app("alice"), bench.app("bob"));
    let invitation = bob.key_package();
    let (mut hers, welcome) = invite(&alice, b"group", &invitation);

    bob.stage(&damaged(&welcome)).unwrap_err();
    let [failure] = <[_; 1]>::try_from(bob.take_failures()).unwrap();
    assert_eq!(failure.operation, Operation::Open);
    assert!(bob.has(&invitation));

    bench.daemon.pause();
    bob.stage(&welcome).unwrap_err();
    let [failure] = <[_; 1]>::try_from(bob.take_failures()).unwrap();
    assert_eq!(failure.operation, Operation::Open);
    assert!(bob.has(&invitation));
    bench.daemon.resume().unwrap();

    bench.days_pass(&mut [&mut alice, &mut bob]);
    assert!(bob.has(&invitation));
    let mut his = bob.join(&welcome);
    assert!(!bob.has(&invitation));
    bob.receive(&mut his, &alice.update(&mut hers));
    bench.days_pass(&mut [&mut alice, &mut bob]);
    bob.assert_destroyed(&bench, invitation.init);
    assert_eq!(bench.state(invitation.leaf), KeyState::Active);
    alice.receive(&mut hers, &bob.update(&mut his));
}

#[test]
fn a_declined_welcome_ends_its_keys() {
    let bench = Bench::new();
    let (mut alice, mut bob) = (bench.app("alice"), bench.app("bob"));
    let invitation = bob.key_package();
    let (_, welcome) = invite(&alice, b"group", &invitation);

    drop(bob.stage(&welcome).unwrap());
    assert!(!bob.has(&invitation), "hidden");
    assert!(bob.provider().storage().discard_welcome().unwrap());
    assert!(!bob.provider().storage().discard_welcome().unwrap());
    assert_eq!(bench.state(invitation.init), KeyState::Idle);
    bench.days_pass(&mut [&mut alice, &mut bob]);
    bob.assert_destroyed(&bench, invitation.init);
    bob.assert_destroyed(&bench, invitation.leaf);
    bob.stage(&welcome).unwrap_err();
}

#[test]
fn a_welcome_that_was_opened_and_not_joined_is_there_after_a_restart() {
    let bench = Bench::new();
    let (mut alice, mut bob) = (bench.app("alice"), bench.app("bob"));
    let invitation = bob.key_package();
    let (mut hers, welcome) = invite(&alice, b"group", &invitation);

    drop(bob.stage(&welcome).unwrap());
    bob.stage(&welcome).unwrap_err();
    bob.restart();
    bench.days_pass(&mut [&mut alice, &mut bob]);
    let mut his = bob.join(&welcome);
    bob.receive(&mut his, &alice.update(&mut hers));
}

#[test]
fn a_second_open_after_the_join_is_refused() {
    let bench = Bench::new();
    let (alice, bob) = (bench.app("alice"), bench.app("bob"));
    let invitation = bob.key_package();
    let (_, first) = invite(&alice, b"group", &invitation);
    let (_, second) = invite(&alice, b"other", &invitation);
    bob.join(&first);
    bob.stage(&second).unwrap_err();
    assert_eq!(bob.take_failures(), [], "the record is gone");

    // An app that kept a copy of the record is told so by the daemon.
    let reference = bob.reference(&invitation);
    let inner = bob.provider().storage().inner();
    inner
        .write_key_package(&reference, &invitation.bundle)
        .unwrap();
    bob.stage(&second).unwrap_err();
    let [failure] = <[_; 1]>::try_from(bob.take_failures()).unwrap();
    assert_eq!(failure.operation, Operation::Open);
    assert_eq!(failure.key, Some(invitation.init));
    let ProviderError::Failure(failure) = failure.error else {
        panic!("{failure}");
    };
    assert_eq!(failure.code, FailureCode::Denied);
}

#[test]
fn an_apps_own_delete_goes_through() {
    let bench = Bench::new();
    let mut bob = bench.app("bob");
    let invitation = bob.key_package();
    let storage = bob.provider().storage();
    storage
        .delete_key_package(&bob.reference(&invitation))
        .unwrap();
    assert!(!bob.has(&invitation));
    bench.days_pass(&mut [&mut bob]);
    assert!(!bob.has(&invitation));
    bob.assert_destroyed(&bench, invitation.init);
    bob.assert_destroyed(&bench, invitation.leaf);
}

#[test]
fn a_last_resort_key_package_serves_two_groups() {
    let bench = Bench::new();
    let (mut alice, mut bob) = (bench.app("alice"), bench.app("bob"));
    let invitation = bob.last_resort_key_package();
    let (mut hers, first) = invite(&alice, b"group", &invitation);
    bob.join(&first);
    bench.days_pass(&mut [&mut alice, &mut bob]);
    let (mut others, second) = invite(&alice, b"other", &invitation);
    bob.join(&second);
    bench.days_pass(&mut [&mut alice, &mut bob]);
    assert!(bob.has(&invitation));
    assert_eq!(bench.state(invitation.init), KeyState::Active);

    // In one group the leaf key is replaced; in the other it is needed still.
    let (mut his, mut his_other) = (bob.load(b"group"), bob.load(b"other"));
    alice.receive(&mut hers, &bob.update(&mut his));
    let storage = bob.provider().storage();
    storage
        .delete_key_package(&bob.reference(&invitation))
        .unwrap();
    bench.days_pass(&mut [&mut alice, &mut bob]);
    bob.assert_destroyed(&bench, invitation.init);
    assert_eq!(bench.state(invitation.leaf), KeyState::Active);
    bob.receive(&mut his_other, &alice.update(&mut others));

    alice.receive(&mut others, &bob.update(&mut his_other));
    bench.days_pass(&mut [&mut alice, &mut bob]);
    bob.assert_destroyed(&bench, invitation.leaf);
}

#[test]
fn an_init_key_ends_with_its_key_package() {
    let bench = Bench::new();
    let mut bob = bench.app("bob");
    let lifetime = Lifetime::new(HOUR.as_secs());
    let short = bob.key_package_with(KeyPackage::builder().key_package_lifetime(lifetime));
    let long = bob.key_package();

    bench.daemon.pass(2 * HOUR);
    bench.sweep();
    bench.daemon.pass(DAY - 2 * HOUR);
    bench.sweep();
    assert_eq!(
        bench.state(short.init),
        KeyState::Active,
        "within the grace"
    );
    bench.daemon.pass(2 * HOUR);
    bench.sweep();
    bob.assert_destroyed(&bench, short.init);
    assert_eq!(
        bench.state(short.leaf),
        KeyState::Active,
        "its record is there"
    );
    bench.days_pass(&mut [&mut bob]);
    assert!(!bob.has(&short));
    bob.assert_destroyed(&bench, short.leaf);
    assert!(bob.has(&long));
    assert_eq!(bench.state(long.init), KeyState::Active);
    assert_eq!(bench.lost_claims(), []);
}

#[test]
fn a_clock_that_jumps_ends_no_init_key() {
    let bench = Bench::new();
    let (mut alice, mut bob) = (bench.app("alice"), bench.app("bob"));
    let invitation = bob.key_package();
    let (_, welcome) = invite(&alice, b"group", &invitation);

    bench.daemon.set_date_ahead(3650 * DAY);
    bench.sweep();
    bench.daemon.pass(DAY - HOUR);
    bench.sweep();
    assert_eq!(bench.state(invitation.init), KeyState::Active);
    bench.daemon.set_date_ahead(Duration::ZERO);
    bench.sweep();
    bench.days_pass(&mut [&mut alice, &mut bob]);
    // What had passed of the grace does not count.
    bench.daemon.set_date_ahead(3650 * DAY);
    bench.sweep();
    bench.daemon.set_date_ahead(Duration::ZERO);
    assert_eq!(bench.state(invitation.init), KeyState::Active);
    bob.join(&welcome);
}
