//! A TPM that goes away, comes back, or is not the one that it was.

use mlskeyd::config::Tcti;
use mlskeyd::devices::{Accept as _, Device as _, DeviceError, DeviceState, Generate as _, Start};
use mlskeyd_tests::rig::{Fault, Swtpm, Tap};

use super::bench::{Bench, KINDS, STORAGE_KEY, destroy, generation, make, persist, state, use_key};

#[test]
fn keys_outlive_a_loss_of_power_and_work_goes_on() {
    let mut bench = Bench::new();
    let mut device = bench.first();
    let keys: Vec<_> = (1..)
        .zip(KINDS)
        .map(|(number, kind)| make(&mut device, number, kind).unwrap())
        .collect();
    for key in &keys {
        bench.tpm.kill();
        let gone = use_key(&mut device, key).unwrap_err();
        assert!(
            matches!(gone, DeviceError::Absent { .. } | DeviceError::Lost { .. }),
            "{gone}"
        );
        assert_eq!(state(&device).0, DeviceState::Absent);
        bench.tpm.start();
        device.probe();
        assert_eq!(state(&device).0, DeviceState::Ready);
        use_key(&mut device, key).unwrap();

        // Between two requests: the TPM knows nothing of what was loaded.
        bench.tpm.kill();
        bench.tpm.start();
        use_key(&mut device, key).unwrap();
    }
    // And one that there never was.
    for number in [1, 200] {
        bench.tpm.kill();
        bench.tpm.start();
        destroy(&mut device, number).unwrap();
    }
    let gone = use_key(&mut device, &keys[0]).unwrap_err();
    assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
}

#[test]
fn what_makes_something_is_repeated_only_if_the_tpm_has_not_begun() {
    let mut bench = Bench::new();
    let mut device = bench.first();
    make(&mut device, 1, KINDS[0]).unwrap();
    for kind in KINDS {
        // It refuses what it does not know any more.
        bench.tpm.kill();
        bench.tpm.start();
        make(&mut device, 1, kind).unwrap();

        // It does not answer.
        bench.tpm.kill();
        let lost = make(&mut device, 1, kind).unwrap_err();
        assert!(matches!(lost, DeviceError::Lost { .. }), "{lost}");
        assert_eq!(state(&device).0, DeviceState::Absent);
        bench.tpm.start();
        make(&mut device, 1, kind).unwrap();
    }
}

#[test]
fn a_cleared_tpm_is_named_and_nothing_is_made_anew() {
    let bench = Bench::new();
    let mut device = bench.first();
    let key = make(&mut device, 1, KINDS[0]).unwrap();
    drop(device);
    bench.tpm.tool(&["clear"]);
    for _ in 0..2 {
        let mut device = bench.reopen();
        let (found, reason) = state(&device);
        assert_eq!(found, DeviceState::Failed);
        assert!(reason.contains("the TPM was cleared"), "{reason}");
        let missing = use_key(&mut device, &key).unwrap_err();
        assert!(matches!(missing, DeviceError::Missing { .. }), "{missing}");
        assert!(destroy(&mut device, 1).is_err());
        assert!(device.create_generation(generation(2)).is_err());
    }
    assert_eq!(bench.tpm.indices(), [""; 0]);
    // Unless no key is known on it.
    drop(bench.first());
    assert_eq!(bench.tpm.indices().len(), 1);
}

/// The registry's keys of the day before are not those of a device that was set
/// up in between.
#[test]
fn a_tpm_that_is_cleared_under_a_running_device_is_not_set_up_again() {
    let bench = Bench::new();
    let mut device = bench.open(Start::CreateIfAbsent);
    let key = make(&mut device, 1, KINDS[0]).unwrap();
    let mut bench = bench;
    bench.tpm.kill();
    bench.tpm.start();
    bench.tpm.tool(&["clear"]);
    let missing = use_key(&mut device, &key).unwrap_err();
    assert!(matches!(missing, DeviceError::Missing { .. }), "{missing}");
    drop(device);
    assert_eq!(bench.tpm.indices(), [""; 0]);
}

#[test]
fn a_lost_index_is_named_and_not_made_anew() {
    let bench = Bench::new();
    let mut device = bench.first();
    let key = make(&mut device, 1, KINDS[0]).unwrap();
    drop(device);
    let index = bench.tpm.indices().remove(0);
    bench.tpm.tool(&["nvundefine", "-C", "o", &index]);
    // Nor is one that somebody else made there taken for it.
    for foreign in [false, true] {
        if foreign {
            let attributes = "authread|authwrite|no_da|writeall";
            let define = ["nvdefine", &index, "-C", "o", "-s", "40", "-a", attributes];
            bench.tpm.tool(&define);
        }
        let mut device = bench.reopen();
        let (found, reason) = state(&device);
        assert_eq!(found, DeviceState::Failed);
        assert!(reason.contains("NV index"), "{reason}");
        let missing = use_key(&mut device, &key).unwrap_err();
        assert!(matches!(missing, DeviceError::Missing { .. }), "{missing}");
    }
}

#[test]
fn an_index_that_goes_under_a_running_device_is_missed_before_anything_is_made() {
    let bench = Bench::new();
    drop(bench.first());
    let index = bench.tpm.indices().remove(0);
    for destroys in [false, true] {
        let mut device = bench.first();
        make(&mut device, 1, KINDS[0]).unwrap();
        bench.tpm.tool(&["nvundefine", "-C", "o", &index]);
        let missing = match destroys {
            false => device.create_generation(generation(2)),
            true => destroy(&mut device, 1),
        };
        let missing = missing.unwrap_err();
        assert!(matches!(missing, DeviceError::Missing { .. }), "{missing}");
        let (found, reason) = state(&device);
        assert_eq!(found, DeviceState::Failed);
        assert!(reason.contains("NV index"), "{reason}");
    }
}

#[test]
fn a_storage_key_that_goes_under_a_running_device_is_missed() {
    let bench = Bench::new();
    persist(&bench, &["-a", STORAGE_KEY]);
    for kind in KINDS {
        let mut device = bench.first();
        make(&mut device, 1, kind).unwrap();
        let evict = ["evictcontrol", "-C", "o", "-c", "0x81000001"];
        bench.tpm.tool(&evict);
        let missing = make(&mut device, 1, kind).unwrap_err();
        assert!(matches!(missing, DeviceError::Missing { .. }), "{missing}");
        let (found, reason) = state(&device);
        assert_eq!(found, DeviceState::Failed);
        assert!(reason.contains("storage key"), "{reason}");
        drop(device);
        persist(&bench, &["-a", STORAGE_KEY]);
    }
}

/// The TPM obeys, and says that it does not; or it does not, after that.
#[test]
fn a_root_of_which_nobody_knows_whether_it_was_written_is_read_again() {
    let mut bench = Bench::new();
    let tap = Tap::before(&bench.tpm);
    bench.config.tcti = Tcti::parse(&tap.tcti()).unwrap();
    let mut device = bench.first();
    let survivor = make(&mut device, 1, KINDS[0]).unwrap();
    make(&mut device, 2, KINDS[0]).unwrap();
    for fault in [Fault::Answer, Fault::Command, Fault::Answer] {
        tap.spoil_next_write(fault);
        let failed = destroy(&mut device, 2).unwrap_err();
        assert!(failed.to_string().contains("slows writing"), "{failed}");
    }
    let new = make(&mut device, 3, KINDS[0]).unwrap();
    drop(device);
    let mut device = bench.reopen();
    for key in [&survivor, &new] {
        use_key(&mut device, key).unwrap();
    }
    destroy(&mut device, 2).unwrap();
}

#[test]
fn a_locked_tpm_serves_keys_without_a_pin() {
    let bench = Bench::new();
    let mut device = bench.first();
    let key = make(&mut device, 1, KINDS[0]).unwrap();
    drop(device);
    let tpm = &bench.tpm;
    // Tools leave loaded what they saved.
    let flush = || tpm.tool(&["flushcontext", "-t"]);
    tpm.tool(&["createprimary", "-C", "o", "-c", "p.ctx"]);
    flush();
    let auth = ["-p", "right"];
    let create = ["create", "-C", "p.ctx", "-u", "u", "-r", "r", "-c", "k.ctx"];
    tpm.tool(&[create.as_slice(), &auth].concat());
    flush();
    std::fs::write(tpm.state().join("data"), "data").unwrap();
    let locked = (0..40).any(|_| {
        let sign = [
            "sign", "-c", "k.ctx", "-p", "wrong", "-g", "sha256", "-o", "s", "data",
        ];
        let refused = tpm.try_tool(&sign).unwrap_err();
        flush();
        refused.contains("lockout mode")
    });
    assert!(locked, "the TPM never locks");
    use_key(&mut bench.reopen(), &key).unwrap();
}

#[test]
fn another_tpm_takes_its_place_on_order_alone() {
    let mut bench = Bench::new();
    let mut device = bench.first();
    let key = make(&mut device, 1, KINDS[0]).unwrap();
    let own = device.look().unwrap();
    assert_eq!(own.own.as_deref(), Some(own.serial.as_str()));
    drop(device);

    let other = Swtpm::named(&bench.stage, "other");
    let first = std::mem::replace(&mut bench.config, other.config());
    let mut device = bench.reopen();
    assert_eq!(state(&device).0, DeviceState::Failed);
    let found = device.look().unwrap();
    assert_eq!(found.own, Some(own.serial.clone()));
    assert_ne!(found.serial, own.serial);
    // Not the one that was looked at.
    device.accept(&own.serial).unwrap_err();
    assert_eq!(other.indices(), [""; 0]);
    // Nothing was lost so far.
    let second = std::mem::replace(&mut bench.config, first);
    drop(device);
    use_key(&mut bench.reopen(), &key).unwrap();

    bench.config = second;
    let mut device = bench.reopen();
    device.accept(&found.serial).unwrap();
    assert_eq!(state(&device).0, DeviceState::Ready);
    for restarted in [false, true] {
        if restarted {
            drop(device);
            device = bench.reopen();
        }
        let gone = use_key(&mut device, &key).unwrap_err();
        assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
        destroy(&mut device, 1).unwrap();
    }
    let second_key = make(&mut device, 2, KINDS[0]).unwrap();
    use_key(&mut device, &second_key).unwrap();
    drop(device);

    // Not even the first one brings back what was on it.
    bench.config = bench.tpm.config();
    let mut device = bench.reopen();
    device.accept(&own.serial).unwrap();
    for key in [&key, &second_key] {
        let gone = use_key(&mut device, key).unwrap_err();
        assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
    }
}
