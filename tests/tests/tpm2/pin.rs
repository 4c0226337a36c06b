//! Signature keys with a PIN of their own, without a daemon.

use mlskeyd::config::{Tcti, Tpm2Config};
use mlskeyd::devices::tpm2::Tpm2Device;
use mlskeyd::devices::{
    Algorithm, Approve as _, Device, DeviceError, KeyId, NewKey, SecretBytes, StoredKey, Tier,
    Unlocking,
};
use mlskeyd_tests::rig::{Recovery, Swtpm, Tap, is_anywhere};

use super::bench::{Bench, KINDS, destroy, generation, make, open, use_key};

pub const PIN: &str = "31415926";
const WRONG: &str = "27182818";

/// What the rigs' TPMs take of wrong passwords.
pub const MOST: u32 = 3;

/// The kinds of signature keys.
fn signatures() -> impl Iterator<Item = (Algorithm, Tier)> {
    let is_one = |(algorithm, _): &(Algorithm, Tier)| matches!(algorithm, Algorithm::Signature(_));
    KINDS.into_iter().filter(is_one)
}

fn pin(text: &str) -> SecretBytes {
    SecretBytes::new(text.as_bytes().to_vec())
}

/// A key of this number with [`PIN`], in the generation of this number.
fn make_with_pin(device: &mut Tpm2Device, number: u8, kind: (Algorithm, Tier)) -> StoredKey {
    let generator = device.generator().unwrap();
    generator.create_generation(generation(number)).unwrap();
    let new = NewKey {
        id: KeyId::from_bytes([number; 16]),
        algorithm: kind.0,
        tier: kind.1,
        generation: generation(number),
    };
    let pins = device.key_pins().unwrap();
    pins.generate_with_pin(new, &pin(PIN)).unwrap()
}

fn unlock(device: &mut Tpm2Device, key: &StoredKey, text: &str) -> Result<Unlocking, DeviceError> {
    let pins = device.key_pins().unwrap();
    pins.unlock_key(key, &pin(text), false)
}

fn last_try(device: &mut Tpm2Device, key: &StoredKey, text: &str) -> Result<(), DeviceError> {
    let pins = device.key_pins().unwrap();
    pins.unlock_key(key, &pin(text), true).map(|_| ())
}

fn is_locked(device: &mut Tpm2Device, key: &StoredKey) {
    let refused = use_key(device, key).unwrap_err();
    assert!(
        matches!(refused, DeviceError::KeyLocked { .. }),
        "{refused}"
    );
    assert!(
        refused.to_string().contains("waits for its PIN"),
        "{refused}"
    );
    assert!(!device.info().unlocked.contains(&key.id));
}

/// How many wrong passwords the TPM has counted. Nobody may be connected.
pub fn counted(tpm: &Swtpm) -> u32 {
    let properties = tpm.tool(&["getcap", "properties-variable"]);
    let mut lines = properties.lines();
    let line = lines.find(|line| line.contains("TPM2_PT_LOCKOUT_COUNTER"));
    let (_, number) = line.unwrap().split_once("0x").unwrap();
    u32::from_str_radix(number.trim(), 16).unwrap()
}

#[test]
fn a_key_signs_from_when_it_is_unlocked_until_it_is_locked() {
    let bench = Bench::new();
    let mut device = bench.first();
    for (number, kind) in (1..).zip(signatures()) {
        let key = make_with_pin(&mut device, number, kind);
        assert!(key.pin);
        is_locked(&mut device, &key);
        let how = unlock(&mut device, &key, PIN).unwrap();
        assert_eq!(how, Unlocking::ByThePin);
        assert!(device.info().unlocked.contains(&key.id));
        use_key(&mut device, &key).unwrap();
        // It has no need of another PIN, and does not look at it.
        let how = unlock(&mut device, &key, WRONG).unwrap();
        assert_eq!(how, Unlocking::WasUnlocked);
        device.key_pins().unwrap().lock_key(&key);
        is_locked(&mut device, &key);
        unlock(&mut device, &key, PIN).unwrap();
        use_key(&mut device, &key).unwrap();

        drop(device);
        device = bench.reopen();
        is_locked(&mut device, &key);
        unlock(&mut device, &key, PIN).unwrap();
        destroy(&mut device, number).unwrap();
        let gone = unlock(&mut device, &key, PIN).unwrap_err();
        assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
        assert!(device.info().unlocked.is_empty());
    }
    drop(device);
    assert_eq!(counted(&bench.tpm), 0);
    assert_eq!(bench.tpm.loaded(), [""; 0]);
}

#[test]
fn a_key_with_a_pin_is_not_taken_for_one_without() {
    let bench = Bench::new();
    let mut device = bench.first();
    let mut key = make_with_pin(&mut device, 1, KINDS[0]);
    key.pin = false;
    let refused = use_key(&mut device, &key).unwrap_err();
    assert!(matches!(refused, DeviceError::BadBlob), "{refused}");
    let mut key = make(&mut device, 2, KINDS[0]).unwrap();
    let refused = unlock(&mut device, &key, PIN).unwrap_err();
    assert!(refused.to_string().contains("has no PIN"), "{refused}");
    key.pin = true;
    let refused = unlock(&mut device, &key, PIN).unwrap_err();
    assert!(matches!(refused, DeviceError::BadBlob), "{refused}");
    // Nothing decrypts with one.
    let new = NewKey {
        id: KeyId::from_bytes([3; 16]),
        algorithm: KINDS[1].0,
        tier: KINDS[1].1,
        generation: generation(2),
    };
    let pins = device.key_pins().unwrap();
    let refused = pins.generate_with_pin(new, &pin(PIN)).unwrap_err();
    assert!(matches!(refused, DeviceError::WrongKeyType { .. }));
}

#[test]
fn a_wrong_pin_is_counted_once_and_not_tried_again() {
    let bench = Bench::new();
    let mut device = bench.first();
    let key = make_with_pin(&mut device, 1, KINDS[0]);
    let other = make_with_pin(&mut device, 2, KINDS[2]);
    let refused = unlock(&mut device, &key, WRONG).unwrap_err();
    assert!(
        refused.to_string().contains("is wrong; 2 tries are left"),
        "{refused}"
    );
    for _ in 0..2 {
        let again = unlock(&mut device, &key, WRONG).unwrap_err();
        assert!(again.to_string().contains("give another one"), "{again}");
        is_locked(&mut device, &key);
        drop(device);
        assert_eq!(counted(&bench.tpm), 1);
        device = bench.reopen();
    }
    // Of another key nothing is known; this leaves one more.
    let refused = unlock(&mut device, &other, WRONG).unwrap_err();
    assert!(
        refused.to_string().contains("one more would lock"),
        "{refused}"
    );
    // So far nothing more is done, right or wrong.
    for text in [PIN, "00000000"] {
        let refused = unlock(&mut device, &key, text).unwrap_err();
        assert!(refused.to_string().contains("--last-try"), "{refused}");
    }
    drop(device);
    assert_eq!(counted(&bench.tpm), 2);
    let mut device = bench.reopen();
    last_try(&mut device, &key, PIN).unwrap();
    use_key(&mut device, &key).unwrap();
    // What was right leaves no note, and a destroyed key none either.
    let note = |number: u8| bench.directory.join(format!("pin-{}", generation(number)));
    assert!(!note(1).exists() && note(2).exists());
    destroy(&mut device, 2).unwrap();
    assert!(!note(2).exists());
}

#[test]
fn a_lockout_is_named_and_ends_by_its_owner_and_the_others_go_on() {
    let bench = Bench::new();
    let mut device = bench.first();
    let key = make_with_pin(&mut device, 1, KINDS[0]);
    let unlocked = make_with_pin(&mut device, 2, KINDS[0]);
    unlock(&mut device, &unlocked, PIN).unwrap();
    let free = make(&mut device, 3, KINDS[0]).unwrap();
    let lockout = |device: &Tpm2Device| {
        let info = device.info();
        let mut facts = info.facts.iter();
        facts
            .find(|fact| fact.name == "lockout")
            .map(|fact| fact.value.clone())
    };
    for number in 0..MOST {
        assert_eq!(lockout(&device), None);
        let wrong = format!("{WRONG}{number}");
        let refused = last_try(&mut device, &key, &wrong).unwrap_err();
        assert!(refused.to_string().contains("is wrong"), "{refused}");
    }
    let shown = lockout(&device).unwrap();
    assert!(
        shown.contains("--clear-lockout") && shown.contains("every 1000 s"),
        "{shown}"
    );
    for again in [
        last_try(&mut device, &key, PIN).unwrap_err(),
        use_key(&mut device, &unlocked).unwrap_err(),
    ] {
        assert!(matches!(again, DeviceError::LockedOut { .. }), "{again}");
        assert!(again.to_string().contains("after 3 wrong"), "{again}");
    }
    for kind in KINDS {
        let number = 10 + KINDS.iter().position(|it| *it == kind).unwrap() as u8;
        let key = make(&mut device, number, kind).unwrap();
        use_key(&mut device, &key).unwrap();
    }
    use_key(&mut device, &free).unwrap();
    drop(device);
    assert_eq!(counted(&bench.tpm), MOST);
    // Also who comes new is told.
    let device = bench.reopen();
    assert!(lockout(&device).is_some());
    drop(device);

    bench.tpm.tool(&["dictionarylockout", "--clear-lockout"]);
    let mut device = bench.reopen();
    assert_eq!(lockout(&device), None);
    for key in [&key, &unlocked] {
        unlock(&mut device, key, PIN).unwrap();
        use_key(&mut device, key).unwrap();
    }
}

#[test]
fn a_lockout_that_is_over_is_not_shown_any_more() {
    let bench = Bench::new();
    let setup = [
        "dictionarylockout",
        "--setup-parameters",
        "--max-tries=1",
        "--recovery-time=1",
        "--lockout-recovery-time=1",
    ];
    bench.tpm.tool(&setup);
    let mut device = bench.first();
    let key = make_with_pin(&mut device, 1, KINDS[0]);
    let free = make(&mut device, 2, KINDS[0]).unwrap();
    let refused = last_try(&mut device, &key, WRONG).unwrap_err();
    assert!(refused.to_string().contains("the last try"), "{refused}");
    // It ends by itself, and who uses the TPM for something else hears of it.
    while device
        .info()
        .facts
        .iter()
        .any(|fact| fact.name == "lockout")
    {
        use_key(&mut device, &free).unwrap();
    }
    last_try(&mut device, &key, PIN).unwrap();
    use_key(&mut device, &key).unwrap();
}

#[test]
fn an_unlocked_key_survives_the_tpms_loss_of_power() {
    let mut bench = Bench::new();
    let mut device = bench.first();
    let key = make_with_pin(&mut device, 1, KINDS[0]);
    unlock(&mut device, &key, PIN).unwrap();
    bench.tpm.kill();
    bench.tpm.start();
    use_key(&mut device, &key).unwrap();
}

#[test]
fn nobody_on_the_way_to_the_tpm_sees_a_pin() {
    let mut bench = Bench::new();
    let tap = Tap::before(&bench.tpm);
    bench.config = Tpm2Config {
        tcti: Tcti::parse(&tap.tcti()).unwrap(),
        ..bench.tpm.config()
    };
    let mut device = open(
        &bench.config,
        &bench.directory,
        mlskeyd::devices::Start::CreateIfAbsent,
    );
    for (number, kind) in (1..).zip(signatures()) {
        let key = make_with_pin(&mut device, number, kind);
        unlock(&mut device, &key, WRONG).unwrap_err();
        last_try(&mut device, &key, PIN).unwrap();
        use_key(&mut device, &key).unwrap();
        let revealed = device.reveal(&key).unwrap();
        assert!(tap.saw(&revealed.public), "it hears the TPM");
        for secret in [revealed.auth.as_slice(), PIN.as_bytes(), WRONG.as_bytes()] {
            assert!(!tap.saw(secret));
            assert!(!is_anywhere(&bench.directory, secret));
        }
    }
}

/// Both are needed, and a PIN that comes with other measurements is not tried.
#[test]
fn a_key_with_a_pin_may_be_bound_to_measurements() {
    let mut bench = Bench::new();
    let recovery = Recovery::new(&bench.stage, "recovery");
    bench.config.measured = Some(recovery.binding(&[7]));
    let mut device = bench.first();
    let numbered = (1..).zip(signatures());
    let keys: Vec<_> = numbered
        .map(|(number, kind)| make_with_pin(&mut device, number, kind))
        .collect();
    for key in &keys {
        is_locked(&mut device, key);
        unlock(&mut device, key, PIN).unwrap();
        use_key(&mut device, key).unwrap();
    }
    drop(device);
    bench.tpm.measure(7, 1);
    let before = counted(&bench.tpm);
    let mut device = bench.reopen();
    for key in &keys {
        for text in [WRONG, PIN, PIN] {
            let refused = unlock(&mut device, key, text).unwrap_err();
            let measured = matches!(refused, DeviceError::OtherMeasurements { .. });
            assert!(measured, "{refused}");
        }
    }
    drop(device);
    assert_eq!(counted(&bench.tpm), before, "none was tried");
    let mut device = bench.reopen();
    let request = bench.stage.path("request");
    std::fs::write(&request, device.measurements().unwrap().to_sign).unwrap();
    let signature = std::fs::read(recovery.sign(&request)).unwrap();
    device.approve(&signature).unwrap();
    for key in &keys {
        is_locked(&mut device, key);
        unlock(&mut device, key, PIN).unwrap();
        use_key(&mut device, key).unwrap();
    }
    device.key_pins().unwrap().lock_key(&keys[0]);
    let wrong = unlock(&mut device, &keys[0], WRONG).unwrap_err();
    assert!(wrong.to_string().contains("the PIN is wrong"), "{wrong}");
    drop(device);
    assert_eq!(counted(&bench.tpm), before + 1);
    assert_eq!(bench.tpm.loaded(), [""; 0]);
}
