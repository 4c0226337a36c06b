//! What an app has signed that is no MLS structure.
#![cfg(feature = "testing")]
#![allow(clippy::panic, clippy::unwrap_used)]

use mlskeyd_protocol::app_content::app_content;
use mlskeyd_provider::testing::TestDaemon;
use mlskeyd_provider::{CustodyProvider, ProviderError};
use openmls::prelude::{BasicCredential, Ciphersuite, OpenMlsProvider};
use openmls_traits::crypto::OpenMlsCrypto;

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

const LOGIN: &str = r#"
@id("company/login") @reason("the delivery service knows people by their keys")
permit(principal, action == Action::"SignApp", resource) when { context.label == "login" };
"#;

#[test]
fn it_is_signed_under_labels_that_the_company_permits() {
    let policies = tempfile::tempdir().unwrap();
    std::fs::write(policies.path().join("90-company.cedar"), LOGIN).unwrap();
    let local = policies.path().to_owned();
    let daemon = TestDaemon::start_with(|config| config.policy.dirs.local = local).unwrap();
    let provider = CustodyProvider::builder()
        .socket(daemon.socket())
        .build()
        .unwrap();
    let credential = BasicCredential::new(b"alice".to_vec()).into();
    let alice = provider
        .create_identity("alice", &credential, SUITE.signature_algorithm())
        .unwrap();

    let signature = alice.sign_app("login", b"challenge").unwrap();
    let verifies = |label, content: &[u8]| {
        let signed = app_content(label, content).unwrap();
        let key = &alice.info().public_key;
        let scheme = SUITE.signature_algorithm();
        let crypto = provider.crypto();
        crypto.verify_signature(scheme, signed.expose(), key, &signature)
    };
    verifies("login", b"challenge").unwrap();
    verifies("login", b"another").unwrap_err();
    verifies("payment", b"challenge").unwrap_err();

    let ProviderError::Failure(refused) = alice.sign_app("payment", b"challenge").unwrap_err()
    else {
        panic!("it is refused")
    };
    assert_eq!(refused.policy.as_deref(), Some("rule/not-permitted"));
    let no_label = alice.sign_app("", b"challenge").unwrap_err();
    assert!(matches!(no_label, ProviderError::NoLabel(_)), "{no_label}");
}
