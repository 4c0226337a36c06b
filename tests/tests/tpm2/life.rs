//! A group's random life with all keys on a TPM.

use mlskeyd_tests::mls_run::{Plan, Remains, Run, seed};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Options, Stage, Swtpm};
use openmls::prelude::Ciphersuite;

use super::bench::generations;

const OPERATIONS: usize = if cfg!(feature = "full") { 200 } else { 40 };

fn play(suite: Ciphersuite) {
    let stage = Stage::new(programs!());
    let tpm = Swtpm::new(&stage);
    let plan = Plan {
        suite,
        operations: OPERATIONS,
        options: Options {
            extra: tpm.device("tpm"),
            ..Options::default()
        },
        device: "tpm".to_owned(),
        bus: None,
    };
    let remains = Run::play(&stage, &plan, seed());
    assert_eq!(remains, Remains::of_identities(remains.participants));
    assert_eq!(tpm.loaded(), [""; 0], "nothing of ours is left");
    assert_eq!(tpm.indices().len(), 1, "one index, of the root");
    // What the registry says is true of the device: so many secrets are left.
    let secrets = remains.own_generations + remains.shared_generations;
    assert_eq!(
        generations(&stage.path("daemon/state/devices/tpm")),
        secrets
    );
}

/// In the TPM.
#[test]
fn a_group_lives_with_suite_0x0002() {
    play(Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256);
}

/// The same on P-384.
#[test]
fn a_group_lives_with_suite_0x0007() {
    play(Ciphersuite::MLS_256_DHKEMP384_AES256GCM_SHA384_P384);
}

/// Sealed by the TPM.
#[test]
fn a_group_lives_with_suite_0x0001() {
    play(Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519);
}
