//! The first use of a TPM.

use mlskeyd::devices::{DeviceState, Start};

use super::bench::{Bench, KINDS, make, state, use_key};

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

const STORAGE_KEY: &str =
    "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";

/// Leaves a storage key where systems put it.
fn persist(bench: &Bench, more: &[&str]) {
    let create = ["createprimary", "-C", "o", "-G", "rsa2048", "-c", "srk.ctx"];
    bench.tpm.tool(&[&create, more].concat());
    bench
        .tpm
        .tool(&["evictcontrol", "-C", "o", "-c", "srk.ctx", "0x81000001"]);
    bench.tpm.tool(&["flushcontext", "-t"]);
}

#[test]
fn the_systems_storage_key_is_used_if_it_is_one() {
    for (more, is_used) in [
        (["-a", STORAGE_KEY].as_slice(), true),
        // With a password.
        (&["-a", STORAGE_KEY, "-p", "secret"], false),
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
