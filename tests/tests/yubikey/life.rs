//! A group's random life with all keys on a YubiKey, beside what others have on it.

use mlskeyd_tests::mls_run::{Plan, Remains, Run, seed};
use mlskeyd_tests::rig::{Options, YubiKeys};
use openmls::prelude::Ciphersuite;

use super::bench::{Bench, NEW, OLD};

const OPERATIONS: usize = if cfg!(feature = "full") { 200 } else { 40 };

const SUITE_1: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
const SUITE_2: Ciphersuite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;

/// Names of objects: the CHUID, and the certificates of slots 9c and 84.
const OBJECTS: [&str; 3] = ["5fc102", "5fc10a", "5fc10f"];

fn play(version: [u8; 3], suite: Ciphersuite) {
    // Somebody else's keys are in some of the slots, and something in others' objects.
    let mut bench = Bench::new(version, &["--signature", "9c:p256,82:p384,85:p256"]);
    for (object, content) in OBJECTS.into_iter().zip(["3019", "7001aa", "7002bbcc"]) {
        bench.cards.put(bench.card, object, content);
    }
    let before = bench.cards.snapshot(bench.card);
    let plan = Plan {
        suite,
        operations: OPERATIONS,
        options: Options {
            extra: YubiKeys::device("yubikey", &bench.with_pin("management_key = \"on-card\"")),
            pcscd: Some(bench.cards.socket().to_owned()),
            ..Options::default()
        },
        device: "yubikey".to_owned(),
        bus: None,
    };
    let remains = Run::play(&bench.stage, &plan, seed());
    assert_eq!(remains, Remains::of_identities(remains.participants));
    let after = bench.cards.snapshot(bench.card);
    for entry in &before {
        assert!(after.contains(entry), "{entry:?} is not as it was");
    }
    let in_the_card = version == NEW || suite == SUITE_2;
    let own = if in_the_card { remains.participants } else { 0 };
    assert_eq!(after.len(), before.len() + own);
}

#[test]
fn a_group_lives_with_suite_0x0002_on_firmware_5_4() {
    play(OLD, SUITE_2);
}

/// Firmware 5.4 does not know the suite's curves.
#[test]
fn a_group_lives_with_suite_0x0001_on_firmware_5_4() {
    play(OLD, SUITE_1);
}

#[test]
fn a_group_lives_with_suite_0x0002_on_firmware_5_7() {
    play(NEW, SUITE_2);
}

#[test]
fn a_group_lives_with_suite_0x0001_on_firmware_5_7() {
    play(NEW, SUITE_1);
}
