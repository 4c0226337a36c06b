//! The daemon dies between any two durable steps of a YubiKey device.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use mlskeyd::devices::yubikey::YubiKeyDevice;
use mlskeyd::devices::{
    Algorithm, Destroy as _, DeviceError, Generate as _, GenerationId, KeyId, NewKey, Sign as _,
    SignatureScheme, Start, StoredKey, Tier,
};
use mlskeyd_tests::failpoints;

use super::bench::{Bench, NEW, OLD, inside, open};

/// What the other process does: `first` makes a key that has to survive, `life` one that
/// lives and dies, and `after` looks what became of them.
const PART: &str = "MLSKEYD_TEST_PART";

/// Passed when a key is made and destroyed, on every card.
const MAKE: &[&str] = &[
    "yubikey.slot-reserved",
    "yubikey.key-made",
    "yubikey.key-noted",
];

/// On a card that deletes keys.
const DELETE: &[&str] = &["yubikey.key-deleted"];

/// On one that does not.
const OVERWRITE: &[&str] = &["yubikey.key-ending", "yubikey.key-overwritten"];

/// The files of the device that are written meanwhile: each more than once.
const FILES: &[&str] = &["private-file-written", "private-file-named"];

#[test]
fn every_failpoint_of_a_yubikey_has_its_crash() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/src/devices/yubikey");
    let tested: BTreeSet<_> = [MAKE, DELETE, OVERWRITE].concat().into_iter().collect();
    let tested: BTreeSet<_> = tested.into_iter().map(str::to_owned).collect();
    assert_eq!(failpoints::in_source(&source), tested);
}

fn make(device: &mut YubiKeyDevice, number: u8) -> Result<StoredKey, DeviceError> {
    device.generate(NewKey {
        id: KeyId::from_bytes([number; 16]),
        algorithm: Algorithm::Signature(SignatureScheme::EcdsaP256Sha256),
        tier: Tier::Hardware,
        generation: GenerationId::from_bytes([number; 16]),
    })
}

fn new_key(device: &mut YubiKeyDevice, number: u8) -> StoredKey {
    let generation = GenerationId::from_bytes([number; 16]);
    device.create_generation(generation).unwrap();
    make(device, number).unwrap()
}

fn destroy(device: &mut YubiKeyDevice, number: u8) {
    let generation = GenerationId::from_bytes([number; 16]);
    device.destroy_generation(generation).unwrap();
}

/// Runs in a process of its own, which the test below starts and kills.
#[test]
#[ignore = "the other process of the crash tests"]
fn child() {
    let Some(stage) = inside() else { return };
    let settings = std::fs::read_to_string(stage.join("settings")).unwrap();
    let survivor = stage.join("survivor");
    match std::env::var(PART).unwrap().as_str() {
        "first" => {
            let mut device = open(&stage, &settings, Start::CreateIfAbsent);
            let key = new_key(&mut device, 9);
            std::fs::write(survivor, [&key.public, key.blob.as_bytes()].concat()).unwrap();
        }
        "life" => {
            let mut device = open(&stage, &settings, Start::MustExist);
            let key = new_key(&mut device, 1);
            device.sign(&key, b"content").unwrap();
            destroy(&mut device, 1);
        }
        _ => {
            let mut device = open(&stage, &settings, Start::MustExist);
            let kept = std::fs::read(survivor).unwrap();
            let key = StoredKey {
                id: KeyId::from_bytes([9; 16]),
                algorithm: Algorithm::Signature(SignatureScheme::EcdsaP256Sha256),
                tier: Tier::Hardware,
                generation: GenerationId::from_bytes([9; 16]),
                pin: false,
                public: kept[..65].to_vec(),
                blob: mlskeyd::devices::KeyBlob::new(kept[65..].to_vec()),
            };
            device.sign(&key, b"content").unwrap();
            // As custody repairs it: by destroying what its journal names.
            destroy(&mut device, 1);
            let gone = make(&mut device, 1).unwrap_err();
            assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
            let again = new_key(&mut device, 2);
            device.sign(&again, b"content").unwrap();
            destroy(&mut device, 2);
        }
    }
}

/// Runs that process: has it been killed?
fn dies(bench: &Bench, part: &str, failpoint: Option<&str>) -> bool {
    let mut command = bench.inside("crash::child");
    command.env(PART, part).env_remove("MLSKEYD_FAILPOINT");
    if let Some(failpoint) = failpoint {
        command.env("MLSKEYD_FAILPOINT", failpoint);
    }
    let output = command.output().unwrap();
    if output.status.signal() == Some(9) {
        return true;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{part}, {failpoint:?}: {said}");
    false
}

fn is_repaired(version: [u8; 3], failpoint: &str) -> bool {
    let mut bench = Bench::new(version, &[]);
    let settings = bench.with_pin("management_key = \"on-card\"");
    std::fs::write(bench.stage.path("settings"), settings).unwrap();
    assert!(!dies(&bench, "first", None));
    let before = bench.cards.snapshot(bench.card);
    let died = dies(&bench, "life", Some(failpoint));
    assert!(!dies(&bench, "after", None));
    let after = bench.cards.snapshot(bench.card);
    for entry in &before {
        assert!(after.contains(entry), "{failpoint}: {entry:?}");
    }
    // Nothing of it is left; where a card deletes nothing, fillers.
    let left = after.len() - before.len();
    assert!(
        left <= if version == NEW { 0 } else { 2 },
        "{failpoint}: {left}"
    );
    died
}

fn crash_at_each(version: [u8; 3], points: &[&str]) {
    for point in points {
        assert!(is_repaired(version, point), "{point} was not passed");
    }
    for point in FILES {
        let times = (1..20).take_while(|time| is_repaired(version, &format!("{point}:{time}")));
        assert!(times.count() >= 2, "{point}");
    }
}

#[test]
fn a_crash_between_any_two_steps_is_repaired_on_firmware_5_4() {
    crash_at_each(OLD, &[MAKE, OVERWRITE].concat());
}

#[test]
fn a_crash_between_any_two_steps_is_repaired_on_firmware_5_7() {
    crash_at_each(NEW, &[MAKE, DELETE].concat());
}
