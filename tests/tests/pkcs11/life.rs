//! A group's random life with all keys on a token.

use mlskeyd_tests::mls_run::{Plan, Remains, Run, seed};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Options, SoftHsm, Stage};
use openmls::prelude::Ciphersuite;

/// Objects of a signature key: itself, and its generation's key.
const OBJECTS_OF_SIGNATURE_KEY: usize = 2;

fn play(suite: Ciphersuite) {
    let stage = Stage::new(programs!());
    let softhsm = SoftHsm::new(&stage);
    softhsm.add_token("foreign");
    softhsm.add_token("mlskeyd");
    let plan = Plan {
        suite,
        operations: 200,
        options: Options {
            extra: softhsm.device("hsm", "mlskeyd"),
            ..Options::default()
        },
        device: "hsm".to_owned(),
    };
    let remains = Run::play(&stage, &plan, seed());
    assert_eq!(remains, Remains::of_identities(remains.participants));
    assert_eq!(
        softhsm.objects(),
        remains.participants * OBJECTS_OF_SIGNATURE_KEY,
        "nothing else is left on the token"
    );
}

/// HPKE keys are wrapped.
#[test]
fn a_group_lives_with_suite_0x0002() {
    play(Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256);
}

/// HPKE keys are objects: SoftHSM does not wrap those of Curve25519.
#[test]
fn a_group_lives_with_suite_0x0001() {
    play(Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519);
}
