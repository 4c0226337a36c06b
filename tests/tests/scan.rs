//! The scan finds what it is there to find: each encoding of a private key,
//! planted once, and the keys of the stock provider.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use mlskeyd_tests::rig::Process;
use mlskeyd_tests::scan::encodings::{self, KeyKind, PrivateKey, Searcher};
use mlskeyd_tests::scan::windows::{self, PublicKeys};
use mlskeyd_tests::scan::{Finding, Snapshot};
use mlskeyd_tests::stock;
use openmls::prelude::{OpenMlsCrypto as _, SignatureScheme};
use openmls_traits::types::{HpkeAeadType, HpkeConfig, HpkeKdfType, HpkeKemType};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Pid;
use tempfile::TempDir;

fn plant(directory: &TempDir, arguments: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plant"));
    command.args(arguments);
    Process::start("plant", command, &directory.path().join("plant.log"))
}

/// A process that has these bytes in its memory.
fn plant_bytes(directory: &TempDir, bytes: &[u8]) -> Process {
    let mut process = plant(directory, &["bytes"]);
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    assert!(process.write(&[&length, bytes].concat()));
    process.expect_line("ready");
    process
}

fn seeded() -> StdRng {
    let seed = rand::random();
    eprintln!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

fn key(random: &mut StdRng, kind: KeyKind) -> PrivateKey {
    let bytes: [u8; 32] = random.random();
    PrivateKey {
        name: "planted".to_owned(),
        kind,
        bytes: bytes.to_vec(),
    }
}

fn found(findings: &[Finding], in_memory: bool) -> BTreeSet<(&str, &str)> {
    let wanted = findings
        .iter()
        .filter(|finding| finding.in_memory == in_memory);
    wanted
        .map(|finding| (finding.form, finding.writing))
        .collect()
}

#[test]
fn each_encoding_is_found_in_memory_and_in_a_file() {
    let mut random = seeded();
    for kind in [
        KeyKind::Ed25519,
        KeyKind::X25519,
        KeyKind::P256,
        KeyKind::Other,
    ] {
        let (key, absent) = (key(&mut random, kind), key(&mut random, kind));
        let encodings = encodings::of(&key);
        let mut planted = Vec::new();
        for encoding in &encodings {
            planted.extend_from_slice(&encoding.bytes);
            planted.extend_from_slice(b"...");
        }
        let directory = TempDir::new().unwrap();
        std::fs::create_dir(directory.path().join("below")).unwrap();
        std::fs::write(directory.path().join("below/it"), &planted).unwrap();
        let process = plant_bytes(&directory, &planted);
        let snapshot = Snapshot::of_child(process.pid(), Some(directory.path())).unwrap();

        let findings = Searcher::new(&[key]).find(&snapshot);
        let expected: BTreeSet<_> = (encodings.iter())
            .map(|encoding| (encoding.form, encoding.writing))
            .collect();
        assert_eq!(found(&findings, true), expected, "{kind:?}, in memory");
        assert_eq!(found(&findings, false), expected, "{kind:?}, in the file");
        assert_eq!(Searcher::new(&[absent]).find(&snapshot), []);
    }
}

#[test]
fn a_key_is_found_in_an_open_file_without_a_name() {
    let mut random = seeded();
    let key = key(&mut random, KeyKind::X25519);
    let directory = TempDir::new().unwrap();
    let mut file = tempfile::tempfile_in(directory.path()).unwrap();
    file.write_all(&key.bytes).unwrap();
    let mut command = Command::new("sleep");
    command.arg("infinity").stdin(file).stdout(Stdio::null());
    let mut process = command.spawn().unwrap();
    let pid = Pid::from_child(&process);
    let snapshot = Snapshot::of_child(pid, Some(directory.path()));
    process.kill().unwrap();
    process.wait().unwrap();
    let findings = Searcher::new(&[key]).find(&snapshot.unwrap());
    assert!(
        found(&findings, false).contains(&("as it is", "bytes")),
        "{findings:?}"
    );
}

#[test]
fn half_of_a_key_is_found_and_less_is_not() {
    let mut random = seeded();
    let key = key(&mut random, KeyKind::X25519);
    let directory = TempDir::new().unwrap();
    for (range, expected) in [
        (0..16, true),
        (16..32, true),
        // So much less that no neighbour makes it up by chance.
        (0..12, false),
        (20..32, false),
    ] {
        let process = plant_bytes(&directory, &key.bytes[range.clone()]);
        let snapshot = Snapshot::of_child(process.pid(), None).unwrap();
        let findings = Searcher::new(std::slice::from_ref(&key)).find(&snapshot);
        assert_eq!(!findings.is_empty(), expected, "{range:?}: {findings:?}");
    }
}

#[test]
fn a_process_goes_on_after_the_scan() {
    let directory = TempDir::new().unwrap();
    let mut process = plant_bytes(&directory, &[7; 100]);
    Snapshot::of_child(process.pid(), None).unwrap();
    assert!(process.wait().success());
    assert!(Snapshot::of_child(process.pid(), None).is_err());
}

#[test]
fn the_windows_find_a_planted_key_and_no_other() {
    let mut random = seeded();
    let crypto = openmls_rust_crypto::RustCrypto::default();
    let directory = TempDir::new().unwrap();
    let mut keys = PublicKeys::default();
    let mut planted = Vec::new();
    let mut expected = BTreeSet::new();

    let (_, p256) = crypto
        .signature_key_gen(SignatureScheme::ECDSA_SECP256R1_SHA256)
        .unwrap();
    keys.add_p256("absent", p256.try_into().unwrap());
    for (name, reversed) in [("P-256 scalar", false), ("P-256 scalar, reversed", true)] {
        let (mut private, public) = crypto
            .signature_key_gen(SignatureScheme::ECDSA_SECP256R1_SHA256)
            .unwrap();
        keys.add_p256(name, public.try_into().unwrap());
        if reversed {
            private.reverse();
        }
        planted.extend_from_slice(&private);
        planted.push(random.random());
        expected.insert(name);
    }
    let seed: [u8; 32] = random.random();
    let public = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
    keys.add_ed25519("Ed25519 seed", public.to_bytes());
    planted.extend_from_slice(&seed);
    expected.insert("Ed25519 seed");
    let scalar = x25519_dalek::StaticSecret::from(random.random::<[u8; 32]>());
    keys.add_x25519(
        "X25519 scalar",
        x25519_dalek::PublicKey::from(&scalar).to_bytes(),
    );
    planted.extend_from_slice(scalar.as_bytes());
    expected.insert("X25519 scalar");

    for (name, kem) in [
        ("ikm of X25519", HpkeKemType::DhKem25519),
        ("ikm of P-256", HpkeKemType::DhKemP256),
    ] {
        let ikm: [u8; 32] = random.random();
        let config = HpkeConfig(kem, HpkeKdfType::HkdfSha256, HpkeAeadType::AesGcm128);
        let public = crypto.derive_hpke_keypair(config, &ikm).unwrap().public;
        match kem {
            HpkeKemType::DhKem25519 => keys.add_x25519(name, public.try_into().unwrap()),
            _ => keys.add_p256(name, public.try_into().unwrap()),
        }
        planted.extend_from_slice(&ikm);
        expected.insert(name);
    }

    let process = plant_bytes(&directory, &planted);
    let snapshot = Snapshot::of_child(process.pid(), None).unwrap();
    let searched = windows::find(&snapshot, &keys);
    eprintln!("{} bytes, {} windows", searched.bytes, searched.windows);
    // Each key is named after the form in which it was planted.
    assert!(
        searched
            .findings
            .iter()
            .all(|finding| finding.key == finding.form)
    );
    let found: BTreeSet<_> = searched.findings.iter().map(|f| f.key.as_str()).collect();
    assert_eq!(found, expected);
}

/// Both searches, and the storage, of a messenger without custody.
fn the_stock_provider_is_caught(suite: u16) {
    let directory = TempDir::new().unwrap();
    let database = directory.path().join("stock.db");
    let mut process = plant(&directory, &["stock", path(&database), &suite.to_string()]);
    process.expect_line("ready");
    let snapshot = Snapshot::of_child(process.pid(), Some(directory.path())).unwrap();
    let keys = stock::private_keys(&database, suite).unwrap();

    let findings = Searcher::new(&keys).find(&snapshot);
    for key in &keys {
        for in_memory in [true, false] {
            let of_key: Vec<_> = findings
                .iter()
                .filter(|f| f.key == key.name)
                .cloned()
                .collect();
            let found = found(&of_key, in_memory);
            eprintln!("{}, in memory: {in_memory}: {found:?}", key.name);
            assert!(found.contains(&("as it is", "JSON numbers")));
        }
    }

    let mut public = PublicKeys::default();
    for key in &keys {
        let private: [u8; 32] = key.bytes.as_slice().try_into().unwrap();
        match key.kind {
            KeyKind::Ed25519 => {
                let key_pair = ed25519_dalek::SigningKey::from_bytes(&private);
                public.add_ed25519(&key.name, key_pair.verifying_key().to_bytes());
            }
            KeyKind::X25519 => {
                let secret = x25519_dalek::StaticSecret::from(private);
                public.add_x25519(&key.name, x25519_dalek::PublicKey::from(&secret).to_bytes());
            }
            KeyKind::P256 => {
                let secret = p256::SecretKey::from_slice(&private).unwrap();
                let point = secret.public_key().to_sec1_bytes();
                public.add_p256(&key.name, point.as_ref().try_into().unwrap());
            }
            KeyKind::Other => unreachable!(),
        }
    }
    let searched = windows::find(&snapshot, &public);
    eprintln!(
        "{} windows in {} bytes: {:?}",
        searched.windows, searched.bytes, searched.findings,
    );
    assert!(
        searched
            .findings
            .iter()
            .any(|finding| finding.key == "signature")
    );
}

#[test]
fn the_stock_provider_is_caught_with_x25519() {
    the_stock_provider_is_caught(1);
}

#[test]
fn the_stock_provider_is_caught_with_p256() {
    the_stock_provider_is_caught(2);
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
