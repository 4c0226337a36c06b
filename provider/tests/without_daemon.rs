//! What a provider does where no daemon runs: it can be made, it says so, and
//! it never falls back to software keys by itself.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mlskeyd_provider::{
    Availability, BuildError, CUSTODY_CIPHERSUITES, CustodyProvider, Handle, Operation,
    ProviderError,
};
use openmls::prelude::tls_codec::VLBytes;
use openmls::prelude::*;
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::{MemoryStorage, RustCrypto};

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

fn absent() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("no-daemon.sock");
    (dir, socket)
}

fn not_installed(socket: &Path) -> ProviderError {
    let doors = format!("at the socket {}", socket.display());
    ProviderError::NotInstalled { doors }
}

fn credential() -> Credential {
    BasicCredential::new(b"alice".to_vec()).into()
}

#[test]
fn a_provider_is_made_without_a_daemon() {
    let (_dir, socket) = absent();
    let provider = CustodyProvider::builder().socket(socket).build().unwrap();
    assert_eq!(provider.availability(), Availability::NotInstalled);
    let suites = provider.crypto().supported_ciphersuites();
    assert_eq!(suites, RustCrypto::default().supported_ciphersuites());
    // Asking whether it is there is no failure.
    assert!(provider.last_failure().is_none());
}

#[test]
#[cfg(all(feature = "bus", target_os = "linux"))]
fn availability_looks_behind_both_doors_and_does_not_wait() {
    let (dir, socket) = absent();
    let path = dir.path().join("bus");
    let bus = format!("unix:path={}", path.display());
    let builder = || CustodyProvider::builder().socket(&socket).bus(&bus);
    let provider = builder().build().unwrap();
    assert_eq!(provider.availability(), Availability::NotInstalled);
    let error = provider.prepare("alice").unwrap_err().to_string();
    assert!(
        error.contains(&socket.display().to_string()) && error.contains(&bus),
        "{error}"
    );

    // A bus that does not answer. The deadline of the app's own requests is no matter.
    let _hangs = std::os::unix::net::UnixListener::bind(path).unwrap();
    let provider = builder()
        .deadline(std::time::Duration::from_secs(3600))
        .build()
        .unwrap();
    let available = provider.availability();
    let in_time = ProviderError::Timeout.to_string();
    assert_eq!(available, Availability::Unreachable(in_time));
    assert!(provider.last_failure().is_none());
}

/// What no cipher suite of custody has, and the inner provider does.
const NO_SUITE: HpkeConfig = HpkeConfig(
    HpkeKemType::DhKemP256,
    HpkeKdfType::HkdfSha256,
    HpkeAeadType::AesGcm256,
);

/// Does the inner provider say that it has this suite?
fn has_inner(suite: &Ciphersuite) -> bool {
    RustCrypto::default().supports(*suite).is_ok()
}

#[test]
fn required_custody_leaves_only_its_own_suites() {
    let provider = CustodyProvider::builder()
        .require_custody(true)
        .build()
        .unwrap();
    let mut suites = provider.crypto().supported_ciphersuites();
    suites.sort();
    let served = CUSTODY_CIPHERSUITES.into_iter().filter(has_inner);
    assert_eq!(suites, served.collect::<Vec<_>>());
    let foreign = Ciphersuite::MLS_256_DHKEMX448_AES256GCM_SHA512_Ed448;
    assert!(provider.crypto().supports(foreign).is_err());
}

#[test]
fn fresh_keys_of_other_suites_are_software_unless_custody_is_required() {
    let fresh = |required: bool| {
        let provider = CustodyProvider::builder()
            .require_custody(required)
            .build()
            .unwrap();
        let ikm = provider.rand().random_vec(48).unwrap();
        let pair = provider.crypto().derive_hpke_keypair(NO_SUITE, &ikm);
        (
            pair.map(|pair| pair.public.len()),
            provider.last_failure().map(|failure| failure.error),
        )
    };
    let (pair, told) = fresh(false);
    assert_eq!(pair, Ok(65));
    assert!(
        matches!(told, Some(ProviderError::MadeInSoftware(_))),
        "never silently: {told:?}"
    );
    let (pair, error) = fresh(true);
    assert_eq!(pair, Err(CryptoError::UnsupportedCiphersuite));
    assert!(matches!(error, Some(ProviderError::HpkeUnsupported(_))));
}

#[test]
fn storages_have_names_of_bounded_length() {
    let build = |name: &str| {
        CustodyProvider::builder()
            .storage(name, MemoryStorage::default())
            .build()
            .err()
    };
    assert_eq!(build(""), Some(BuildError::StorageName));
    assert_eq!(build(&"n".repeat(256)), Some(BuildError::StorageName));
    assert_eq!(build(&"n".repeat(255)), None);
}

#[test]
fn a_fresh_key_is_never_made_in_software() {
    let (_dir, socket) = absent();
    let told = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&told);
    let provider = CustodyProvider::builder()
        .socket(&socket)
        .on_refusal(move |failure| ear.lock().unwrap().push(failure.clone()))
        .build()
        .unwrap();
    let software = SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap();
    let with_key = CredentialWithKey {
        credential: credential(),
        signature_key: software.to_public_vec().into(),
    };
    let refused = KeyPackage::builder().build(SUITE, &provider, &software, with_key);
    assert!(refused.is_err());

    let failure = provider.last_failure().unwrap();
    assert_eq!(failure.operation, Operation::GenerateHpke);
    assert_eq!(failure.error, not_installed(&socket));
    assert!(provider.last_failure().is_none(), "answered once");
    assert_eq!(*told.lock().unwrap(), [failure]);
}

#[test]
fn identities_need_the_daemon_and_say_so() {
    let (_dir, socket) = absent();
    let provider = CustodyProvider::builder().socket(&socket).build().unwrap();
    let absent = not_installed(&socket);
    let scheme = SUITE.signature_algorithm();
    let made = provider.create_identity("alice", &credential(), scheme);
    assert_eq!(made.err(), Some(absent.clone()));
    assert_eq!(provider.identity("alice").err(), Some(absent.clone()));
    assert_eq!(provider.prepare("alice"), Err(absent));

    // What custody does not do is refused before it is asked.
    let made = provider.create_identity("alice", &credential(), SignatureScheme::ED448);
    assert_eq!(
        made.err(),
        Some(ProviderError::SchemeUnsupported(SignatureScheme::ED448))
    );
}

#[test]
fn derived_keys_are_the_inner_providers() {
    let (_dir, socket) = absent();
    let provider = CustodyProvider::builder().socket(socket).build().unwrap();
    let drawn = provider.rand().random_vec(32).unwrap();
    assert_ne!(drawn, [7; 32]);
    for suite in CUSTODY_CIPHERSUITES {
        let ours = provider
            .crypto()
            .derive_hpke_keypair(suite.hpke_config(), &[7; 32])
            .unwrap();
        let inner = RustCrypto::default()
            .derive_hpke_keypair(suite.hpke_config(), &[7; 32])
            .unwrap();
        assert_eq!(
            (&*ours.private, &ours.public),
            (&*inner.private, &inner.public)
        );
    }
}

#[test]
fn what_no_key_in_custody_does_is_refused_and_noted() {
    let (_dir, socket) = absent();
    let provider = CustodyProvider::builder().socket(&socket).build().unwrap();
    let (crypto, config) = (provider.crypto(), || SUITE.hpke_config());
    let key = KEY;
    let handle = Handle::new(key).to_bytes();

    assert!(
        crypto
            .hpke_setup_receiver_and_export(config(), &[9; 32], &handle, b"", b"", 32)
            .is_err()
    );
    let failure = provider.last_failure().unwrap();
    assert_eq!(
        (failure.operation, failure.key),
        (Operation::Export, Some(key))
    );
    assert_eq!(
        failure.error,
        ProviderError::OperationUnsupported("HPKE export")
    );

    let ciphertext = HpkeCiphertext {
        kem_output: VLBytes::from(vec![9; 32]),
        ciphertext: VLBytes::from(vec![0; 40]),
    };
    assert!(
        crypto
            .hpke_open(config(), &ciphertext, &handle, b"", b"")
            .is_err()
    );
    let failure = provider.last_failure().unwrap();
    assert_eq!(
        (failure.operation, failure.key),
        (Operation::Open, Some(key))
    );
    assert_eq!(failure.error, not_installed(&socket));

    assert!(
        crypto
            .hpke_open(NO_SUITE, &ciphertext, &handle, b"", b"")
            .is_err()
    );
    let failure = provider.last_failure().unwrap();
    assert!(matches!(failure.error, ProviderError::HpkeUnsupported(_)));
}

const KEY: mlskeyd_provider::KeyId = mlskeyd_provider::KeyId::from_bytes([3; 16]);
