//! The first use of a TPM.

use mlskeyd::config::Tcti;
use mlskeyd::devices::tpm2::Tpm2Device;
use mlskeyd::devices::{
    Accept as _, Algorithm, Device as _, DeviceError, DeviceState, Kem, SignatureScheme, Start,
    Tier,
};
use mlskeyd::store_key::StoreKey;
use mlskeyd_tests::rig::{Swtpm, Tap};
use secrecy::SecretBox;

use super::bench::{Bench, KINDS, STORAGE_KEY, make, persist, state, use_key};

#[test]
fn a_device_with_keys_is_not_set_up_anew() {
    let bench = Bench::new();
    let device = bench.reopen();
    let (found, reason) = state(&device);
    assert_eq!(found, DeviceState::Failed);
    assert!(reason.contains("is missing"), "{reason}");
    drop(device);
    assert_eq!(bench.tpm.indices(), [""; 0]);
}

/// The store key may be elsewhere, and say where the root is: the volume with the
/// state is not mounted, or a second daemon has another one.
#[test]
fn a_start_without_the_files_costs_no_key() {
    let bench = Bench::new();
    let mut device = bench.first();
    let key = make(&mut device, 1, KINDS[0]).unwrap();
    drop(device);
    let real = bench.stage.path("real");
    std::fs::rename(&bench.directory, &real).unwrap();
    // Nothing is there, or an old copy of what is pinned.
    for copied in [false, true] {
        if copied {
            std::fs::create_dir_all(&bench.directory).unwrap();
            std::fs::copy(real.join("device"), bench.directory.join("device")).unwrap();
        }
        let (found, reason) = state(&bench.open(Start::CreateIfAbsent));
        assert_eq!(found, DeviceState::Failed);
        for words in ["is the state directory mounted", "devices accept tpm"] {
            assert!(reason.contains(words), "{reason}");
        }
    }
    std::fs::remove_dir_all(&bench.directory).unwrap();
    std::fs::rename(&real, &bench.directory).unwrap();
    use_key(&mut bench.reopen(), &key).unwrap();
}

/// By order it begins anew where its files are lost, and only there.
#[test]
fn a_device_that_lost_its_files_begins_anew_on_order() {
    for pinned in [false, true] {
        let bench = Bench::new();
        let mut device = bench.first();
        let key = make(&mut device, 1, KINDS[0]).unwrap();
        let found = device.look().unwrap();
        assert!(found.is_own);
        drop(device);
        let mut device = bench.reopen();
        device.accept(&found.serial).unwrap();
        use_key(&mut device, &key).unwrap();
        drop(device);

        let real = bench.stage.path("real");
        std::fs::rename(&bench.directory, &real).unwrap();
        if pinned {
            std::fs::create_dir_all(&bench.directory).unwrap();
            std::fs::copy(real.join("device"), bench.directory.join("device")).unwrap();
        }
        let mut device = bench.open(Start::CreateIfAbsent);
        let lost = device.look().unwrap();
        assert!(!lost.is_own);
        device.accept(&lost.serial).unwrap();
        let new = make(&mut device, 2, KINDS[0]).unwrap();
        use_key(&mut device, &new).unwrap();
        drop(device);
        assert_eq!(bench.tpm.indices().len(), 1);
        // As it was said.
        std::fs::remove_dir_all(&bench.directory).unwrap();
        std::fs::rename(&real, &bench.directory).unwrap();
        use_key(&mut bench.reopen(), &key).unwrap_err();
    }
}

/// Where it was put by another configuration, an old root opens an old file.
#[test]
fn a_set_up_leaves_no_older_root() {
    let mut bench = Bench::new();
    drop(bench.first());
    let own = bench.tpm.indices();
    let other = Swtpm::named(&bench.stage, "other");
    let first = std::mem::replace(&mut bench.config, other.config());
    accept(&bench);
    bench.config = first;
    bench.config.nv_index = Some(0x0180_0001);
    accept(&bench);
    let left = bench.tpm.indices();
    assert_eq!(left, ["0x1800001"], "not {own:?}");
    drop(bench.reopen());
}

fn accept(bench: &Bench) {
    let mut device = bench.reopen();
    let found = device.look().unwrap();
    device.accept(&found.serial).unwrap();
    assert_eq!(state(&device).0, DeviceState::Ready);
}

/// One that was found later does not make it another TPM.
#[test]
fn another_storage_key_in_the_devices_own_tpm_changes_nothing() {
    let bench = Bench::new();
    let mut device = bench.first();
    let key = make(&mut device, 1, KINDS[0]).unwrap();
    let own = device.look().unwrap();
    drop(device);
    persist(&bench, &["-a", STORAGE_KEY]);
    let config = &bench.config;
    let store_key = StoreKey::new(SecretBox::new(Box::new([7; 32])));
    let start = Start::MustExist;
    let device = Tpm2Device::new("tpm", config, &bench.directory, &store_key, start);
    // It is not open.
    let mut device = device.unwrap();
    assert_eq!(device.look().unwrap(), own);
    device.accept(&own.serial).unwrap();
    use_key(&mut device, &key).unwrap();
    drop(device);
    // Nor if it has lost what the keys need.
    let index = bench.tpm.indices().remove(0);
    bench.tpm.tool(&["nvundefine", "-C", "o", &index]);
    let lost = bench.reopen().look().unwrap();
    assert!(lost.serial == own.serial && !lost.is_own, "{lost:?}");
}

#[test]
fn an_index_of_somebody_else_is_left_alone() {
    let model = Bench::new();
    drop(model.first());
    let index = model.tpm.indices().remove(0);

    let mut bench = Bench::new();
    // Just like ours, but for what opens it.
    let attributes = "authread|authwrite|no_da|writeall";
    let define = [
        "nvdefine", &index, "-C", "o", "-s", "40", "-a", attributes, "-p", "theirs",
    ];
    bench.tpm.tool(&define);
    let mut device = bench.first();
    let key = make(&mut device, 1, KINDS[0]).unwrap();
    use_key(&mut device, &key).unwrap();
    drop(device);
    let indices = bench.tpm.indices();
    assert!(
        indices.len() == 2 && indices.contains(&index),
        "{indices:?}"
    );
    let read = bench.tpm.try_tool(&["nvread", &index, "-P", "theirs"]);
    assert!(read.unwrap_err().contains("0x14A"), "still never written");

    bench.config.nv_index = u32::from_str_radix(index.trim_start_matches("0x"), 16).ok();
    std::fs::remove_dir_all(&bench.directory).unwrap();
    let device = bench.open(Start::CreateIfAbsent);
    let (found, reason) = state(&device);
    assert_eq!(found, DeviceState::Failed);
    assert!(reason.contains("somebody else's"), "{reason}");
}

#[test]
fn an_owner_password_is_named() {
    let bench = Bench::new();
    bench.tpm.tool(&["changeauth", "-c", "owner", "secret"]);
    let device = bench.open(Start::CreateIfAbsent);
    let (found, reason) = state(&device);
    assert_eq!(found, DeviceState::Failed);
    assert!(
        reason.contains("owner hierarchy has a password") && !reason.contains("secret"),
        "{reason}"
    );
    drop(device);
    bench
        .tpm
        .tool(&["changeauth", "-c", "owner", "-p", "secret"]);
    drop(bench.first());
}

#[test]
fn the_systems_storage_key_is_used_if_it_is_one() {
    for (more, is_used) in [
        (["-a", STORAGE_KEY].as_slice(), true),
        // With a password.
        (&["-a", STORAGE_KEY, "-p", "secret"], false),
        // Named by another hash.
        (&["-a", STORAGE_KEY, "-g", "sha1"], false),
        // Wrong passwords would be counted.
        (&[], false),
    ] {
        let bench = Bench::new();
        persist(&bench, more);
        let mut device = bench.first();
        for (number, kind) in (1..).zip(KINDS) {
            let key = make(&mut device, number, kind).unwrap();
            use_key(&mut device, &key).unwrap();
        }
        drop(device);
        assert_eq!(bench.tpm.loaded(), [""; 0]);
        // Without it the keys that hang under it are missing, the others are not.
        bench
            .tpm
            .tool(&["evictcontrol", "-C", "o", "-c", "0x81000001"]);
        let found = state(&bench.reopen()).0;
        let expected = match is_used {
            true => DeviceState::Failed,
            false => DeviceState::Ready,
        };
        assert_eq!(found, expected, "{more:?}");
    }
}

/// Else keys would be kept in a lower tier, and nobody would know.
#[test]
fn nobody_on_the_way_to_the_tpm_takes_a_curve_from_it() {
    let mut bench = Bench::new();
    let tap = Tap::before(&bench.tpm);
    bench.config.tcti = Tcti::parse(&tap.tcti()).unwrap();
    // TPM_CAP_ECC_CURVES, one of them, P-384; and P-521 in its place.
    let has_p384 = [0, 0, 0, 8, 0, 0, 0, 1, 0, 4];
    let has_another = [0, 0, 0, 8, 0, 0, 0, 1, 0, 5];
    tap.lie(&has_p384, &has_another);
    let mut device = bench.open(Start::CreateIfAbsent);
    assert!(!tap.waits());
    assert_eq!(state(&device).0, DeviceState::Absent);
    let p384 = KINDS.into_iter().filter(|(algorithm, _)| {
        matches!(
            algorithm,
            Algorithm::Signature(SignatureScheme::EcdsaP384Sha384)
                | Algorithm::Hpke(Kem::DhKemP384)
        )
    });
    let p384: Vec<_> = p384.collect();
    assert_eq!(p384.len(), 2);
    for (algorithm, _) in &p384 {
        tap.lie(&has_p384, &has_another);
        let refused = make(&mut device, 1, (*algorithm, Tier::Sealed)).unwrap_err();
        assert!(matches!(refused, DeviceError::Lost { .. }), "{refused}");
        assert!(!tap.waits());
    }
    device.probe();
    assert_eq!(state(&device).0, DeviceState::Ready);
    for (number, (algorithm, tier)) in (1..).zip(p384) {
        assert_eq!(tier, Tier::Hardware);
        let refused = make(&mut device, number, (algorithm, Tier::Sealed)).unwrap_err();
        assert!(
            matches!(refused, DeviceError::Unsupported { .. }),
            "{refused}"
        );
        make(&mut device, number, (algorithm, tier)).unwrap();
    }
}
