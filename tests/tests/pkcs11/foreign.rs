//! Modules that the daemon was not written on: each does less than SoftHSM
//! somewhere, and says so in its own way.

use std::path::Path;

use mlskeyd::devices::conformance;
use mlskeyd::devices::{Algorithm, Kem, SignatureScheme, Tier};
use mlskeyd_provider::{CustodyIdentity, CustodyProvider};
use mlskeyd_tests::mls_run::{Plan, Remains, Run, seed};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Kryoptic, Library, Options, Stage, Tpm2Pkcs11};
use openmls::prelude::{
    BasicCredential, Ciphersuite, KeyPackage, KeyPackageIn, OpenMlsProvider as _, ProtocolVersion,
};
use openmls_memory_storage::MemoryStorage;
use openmls_rust_crypto::OpenMlsRustCrypto;

use super::bench::Bench;

const P256: Ciphersuite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;
const CURVE25519: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

/// All that the daemon knows.
const ALL: [Algorithm; 6] = [
    Algorithm::Signature(SignatureScheme::Ed25519),
    Algorithm::Signature(SignatureScheme::EcdsaP256Sha256),
    Algorithm::Hpke(Kem::DhKemP256),
    Algorithm::Hpke(Kem::DhKemX25519),
    Algorithm::Signature(SignatureScheme::EcdsaP384Sha384),
    Algorithm::Hpke(Kem::DhKemP384),
];

/// The suite of all devices, on the token `mlskeyd` of a module that keeps these
/// keys in hardware, and no others; and all others' in tier `sealed`, if it can.
fn conform(stage: &Stage, library: &Library, kept: &[Algorithm], seals: bool) {
    let bench = Bench::new(stage, library, "mlskeyd");
    let open = || bench.open();
    let info = open().info();
    for algorithm in ALL {
        let mut expected = Vec::new();
        expected.extend(kept.contains(&algorithm).then_some(Tier::Hardware));
        expected.extend(seals.then_some(Tier::Sealed));
        assert_eq!(info.tiers(algorithm), expected, "{algorithm}");
    }
    conformance::run(&open);
}

#[test]
fn kryoptic_conforms() {
    let stage = Stage::new(programs!());
    let mut kryoptic = Kryoptic::new(&stage);
    kryoptic.add_token("another");
    kryoptic.add_token("mlskeyd");
    conform(&stage, kryoptic.library(), &ALL, true);
}

#[test]
fn tpm2_pkcs11_conforms() {
    let stage = Stage::new(programs!());
    let mut tpm = Tpm2Pkcs11::new(&stage);
    tpm.add_token("mlskeyd");
    let kept = [
        SignatureScheme::EcdsaP256Sha256,
        SignatureScheme::EcdsaP384Sha384,
    ];
    let kept = kept.map(Algorithm::Signature);
    conform(&stage, tpm.library(), &kept, false);
}

fn play_on_kryoptic(suite: Ciphersuite) {
    let stage = Stage::new(programs!());
    let mut kryoptic = Kryoptic::new(&stage);
    kryoptic.add_token("mlskeyd");
    let plan = Plan {
        suite,
        operations: 200,
        options: Options {
            extra: kryoptic.device("hsm", "mlskeyd"),
            ..Options::default()
        },
        device: "hsm".to_owned(),
        bus: None,
    };
    let remains = Run::play(&stage, &plan, seed());
    assert_eq!(remains, Remains::of_identities(remains.participants));
}

#[test]
fn a_group_lives_on_kryoptic_with_suite_0x0001() {
    play_on_kryoptic(CURVE25519);
}

#[test]
fn a_group_lives_on_kryoptic_with_suite_0x0002() {
    play_on_kryoptic(P256);
}

/// An app whose new keys are on this device.
fn provider(socket: &Path, device: &str) -> CustodyProvider<MemoryStorage> {
    let builder = CustodyProvider::builder().socket(socket).device(device);
    let storage = MemoryStorage::default();
    builder.memory_storage(storage).build().unwrap()
}

/// Makes a KeyPackage, whose two signatures somebody else's code verifies; or
/// the reason why not.
fn key_package(
    provider: &CustodyProvider<MemoryStorage>,
    identity: &CustodyIdentity,
) -> Result<(), String> {
    let with_key = identity.credential_with_key().unwrap();
    let built = KeyPackage::builder().build(P256, provider, &identity.signer(), with_key);
    let Ok(bundle) = built else {
        let failure = provider.last_failure();
        return Err(failure.expect("there is a reason").to_string());
    };
    let package = KeyPackageIn::from(bundle.key_package().clone());
    let other = OpenMlsRustCrypto::default();
    let package = package.validate(other.crypto(), ProtocolVersion::Mls10);
    let key = package.unwrap().leaf_node().signature_key().clone();
    assert_eq!(*key.as_slice(), *identity.info().public_key);
    Ok(())
}

/// A TPM makes P-256 keys that sign, and agrees on nothing through this module:
/// an app has its identity there and its HPKE keys elsewhere.
#[test]
fn tpm2_pkcs11_signs() {
    let stage = Stage::new(programs!());
    let mut tpm = Tpm2Pkcs11::new(&stage);
    tpm.add_token("another");
    tpm.add_token("mlskeyd");
    let options = Options {
        extra: tpm.device("tpm", "mlskeyd"),
        ..Options::default()
    };
    let mut daemon = Daemon::start(&stage, &options);
    let on_tpm = provider(&daemon.socket(), "tpm");
    let elsewhere = provider(&daemon.socket(), "software");
    let credential = BasicCredential::new(b"alice".to_vec()).into();
    let scheme = P256.signature_algorithm();
    // More than a TPM has room for at a time.
    let identities: Vec<_> = (0..5)
        .map(|n| {
            let name = format!("alice {n}");
            on_tpm.create_identity(&name, &credential, scheme).unwrap()
        })
        .collect();
    for identity in &identities {
        assert_eq!(identity.info().tier, Tier::Hardware);
        key_package(&elsewhere, identity).unwrap();
        let refused = key_package(&on_tpm, identity).unwrap_err();
        assert!(refused.contains("tpm"), "{refused}");
    }

    daemon.stop();
    daemon.restart(&options);
    for identity in &identities {
        key_package(&elsewhere, identity).unwrap();
    }
}
