//! The random life of a group on every cipher suite of custody, on the software
//! device.

use mlskeyd_tests::mls_run::{Plan, Remains, Run, seed};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Bus, Options, Stage};
use openmls::prelude::Ciphersuite;

/// Plays a run, and expects that nothing of it is left.
fn play(suite: Ciphersuite, operations: usize) {
    let stage = Stage::new(programs!());
    let plan = Plan {
        suite,
        operations,
        options: Options::default(),
        device: "software".to_owned(),
        bus: None,
    };
    run(&stage, &plan);
}

fn run(stage: &Stage, plan: &Plan) {
    let remains = Run::play(stage, plan, seed());
    assert_eq!(remains, Remains::of_identities(remains.participants));
    // What the registry says is true of the device.
    let files = stage.path("daemon/state/devices/software/generations");
    let files = std::fs::read_dir(files).unwrap().count();
    assert_eq!(files, remains.own_generations + remains.shared_generations);
}

#[test]
fn a_group_lives_with_suite_0x0001() {
    play(
        Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
        200,
    );
}

#[test]
fn a_group_lives_with_suite_0x0002() {
    play(Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256, 200);
}

#[test]
fn a_group_lives_with_suite_0x0003() {
    play(
        Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
        200,
    );
}

#[test]
fn a_group_lives_with_suite_0x0007() {
    play(Ciphersuite::MLS_256_DHKEMP384_AES256GCM_SHA384_P384, 200);
}

/// Apps that cannot come to the socket, as in a sandbox, do the same by way of a bus.
#[test]
fn a_group_lives_where_there_is_a_bus_alone() {
    let stage = Stage::new(programs!());
    let bus = Bus::start(&stage);
    let plan = Plan {
        suite: Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
        operations: 200,
        options: Options {
            extra: bus.section(),
            ..Options::default()
        },
        device: "software".to_owned(),
        bus: Some(bus.address()),
    };
    run(&stage, &plan);
}

#[cfg(feature = "full")]
#[test]
fn a_group_lives_long() {
    play(Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256, 2000);
}
