//! The daemon dies between any two durable steps of a TPM device.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use mlskeyd::config::{Tcti, Tpm2Config};
use mlskeyd::devices::{DeviceError, Start};
use mlskeyd_tests::failpoints;

use super::bench::{self, Bench, KINDS, destroy, make, use_key};

const TCTI: &str = "MLSKEYD_TEST_TCTI";
const DIRECTORY: &str = "MLSKEYD_TEST_DIRECTORY";

/// Each with the times that it is passed in one life of a generation.
const POINTS: &[(&str, u64)] = &[
    ("tpm2.index-made", 1),
    ("tpm2.root-made", 1),
    // The empty file, what is pinned, the generation, the file without it.
    ("tpm2.file-written", 4),
    ("tpm2.file-named", 4),
    ("tpm2.generations-moved", 1),
    ("tpm2.root-replaced", 1),
    ("tpm2.generation-destroyed", 1),
];

/// Runs in a process of its own, which the tests below start and kill.
#[test]
#[ignore = "the other process of the crash tests"]
fn child() {
    let Ok(tcti) = std::env::var(TCTI) else {
        return;
    };
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let config = Tpm2Config {
        tcti: Tcti::parse(&tcti).unwrap(),
        nv_index: None,
    };
    let mut device = bench::open(&config, &directory, Start::CreateIfAbsent);
    let key = make(&mut device, 1, KINDS[0]).unwrap();
    use_key(&mut device, &key).unwrap();
    destroy(&mut device, 1).unwrap();
}

fn run_child(bench: &Bench, failpoint: &str) -> ExitStatus {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--ignored"])
        .env(TCTI, bench.tpm.tcti())
        .env(DIRECTORY, &bench.directory)
        .env("MLSKEYD_FAILPOINT", failpoint)
        .output();
    output.unwrap().status
}

#[test]
fn a_crash_between_any_two_steps_is_repaired() {
    for (point, times) in POINTS {
        let bench = Bench::new();
        for time in 1..=*times {
            let _ = std::fs::remove_dir_all(&bench.directory);
            let failpoint = format!("{point}:{time}");
            let status = run_child(&bench, &failpoint);
            assert_eq!(status.signal(), Some(9), "{failpoint}: {status}");

            // As custody repairs it: by destroying what its journal names.
            let mut device = bench.first();
            destroy(&mut device, 1).unwrap();
            let gone = device_has(&mut device);
            assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
            let key = make(&mut device, 1, KINDS[0]).unwrap();
            use_key(&mut device, &key).unwrap();
            drop(device);
            // The set-up, and what lives, outlive the next start.
            let mut device = bench.reopen();
            use_key(&mut device, &key).unwrap();
            destroy(&mut device, 1).unwrap();
            assert_eq!(files(&bench.directory), 2, "{failpoint}");
            drop(device);
            assert_eq!(bench.tpm.indices().len(), 1, "{failpoint}");
        }
    }
    assert!(run_child(&Bench::new(), "no-such-point").success());
}

/// Does the generation of the tests still take keys?
fn device_has(device: &mut mlskeyd::devices::tpm2::Tpm2Device) -> DeviceError {
    use mlskeyd::devices::{Generate as _, KeyId, NewKey};
    let (algorithm, tier) = KINDS[0];
    let request = NewKey {
        id: KeyId::from_bytes([2; 16]),
        algorithm,
        tier,
        generation: bench::generation(1),
    };
    device.generate(request).unwrap_err()
}

/// What is pinned, and the generations.
fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn what_a_dead_predecessor_left_loaded_is_flushed() {
    let bench = Bench::new();
    run_child(&bench, "tpm2.generations-moved");
    let left = bench.tpm.loaded();
    let is_there = |kind: &str| left.iter().any(|handle| handle.contains(kind));
    assert!(is_there("0x8000000") && is_there("0x200000"), "{left:?}");
    let mut device = bench.reopen();
    for (number, kind) in (2..).zip(KINDS) {
        let key = make(&mut device, number, kind).unwrap();
        use_key(&mut device, &key).unwrap();
    }
    drop(device);
    assert_eq!(bench.tpm.loaded(), [""; 0]);
}

#[test]
fn every_failpoint_of_a_tpm_has_its_crash() {
    let tested: BTreeSet<String> = POINTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/src/devices/tpm2");
    assert_eq!(failpoints::in_source(&source), tested);
}
