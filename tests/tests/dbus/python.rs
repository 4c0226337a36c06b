//! The example in another language.

use openmls::prelude::tls_codec::DeserializeBytes;
use openmls::prelude::{BasicCredential, KeyPackageIn, OpenMlsProvider, ProtocolVersion};
use openmls_rust_crypto::OpenMlsRustCrypto;

use crate::scene::Scene;

/// OpenMLS takes it for a KeyPackage of this name.
fn verify(package: &str, name: &str) {
    let bytes = hex::decode(package.trim()).unwrap();
    let package = KeyPackageIn::tls_deserialize_exact_bytes(&bytes).unwrap();
    let crypto = OpenMlsRustCrypto::default();
    let package = package
        .validate(crypto.crypto(), ProtocolVersion::Mls10)
        .unwrap();
    let credential = package.leaf_node().credential().clone();
    let credential = BasicCredential::try_from(credential).unwrap();
    assert_eq!(credential.identity(), name.as_bytes());
}

#[test]
fn python_lists_follows_and_signs() {
    let scene = Scene::new();
    let own = rustix::process::geteuid().as_raw();
    let mut follows = scene.start_python(own, &["follow", "4"]);
    follows.expect_line("following");
    let package = scene.python_prints(own, &["key-package", "alice@bank.example"]);
    verify(&package, "alice@bank.example");
    let list = scene.python_prints(own, &["list"]);
    let begins = |start: &str| list.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!(begins("device software: software, ready"), 1, "{list}");
    assert_eq!(
        begins("identity alice@bank.example: Ed25519, software"),
        1,
        "{list}"
    );
    let of = |purpose: &str| list.lines().filter(|line| line.contains(purpose)).count();
    for purpose in [": signature, ", ": leaf, ", ": init, "] {
        assert_eq!(of(purpose), 1, "{list}");
    }
    // Three keys and an identity.
    for _ in 0..4 {
        let line = follows.line().unwrap();
        assert!(line.starts_with("InterfacesAdded "), "{line}");
    }
    assert_eq!(follows.line(), None);
    // What is no MLS structure is refused, with the reason and the advice.
    let refused = scene.python(own, &["key-package", ""]).output().unwrap();
    assert!(!refused.status.success());
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.starts_with("custody.py: "), "{text}");
}
