//! The daemon dies between any two durable steps of a TPM device.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use mlskeyd::config::{Tcti, Tpm2Config};
use mlskeyd::devices::tpm2::Tpm2Device;
use mlskeyd::devices::{Accept as _, DeviceError, Generate as _, KeyId, NewKey, Start, StoredKey};
use mlskeyd_tests::failpoints;
use mlskeyd_tests::rig::Swtpm;

use super::bench::{self, Bench, KINDS, destroy, make, use_key};
use super::people::PIN_POINTS;

const TCTI: &str = "MLSKEYD_TEST_TCTI";
const DIRECTORY: &str = "MLSKEYD_TEST_DIRECTORY";
const ACCEPT: &str = "MLSKEYD_TEST_ACCEPT";

/// Passed when the device is set up: each with how often.
const SETUP: &[(&str, u64)] = &[
    ("tpm2.index-made", 1),
    ("tpm2.root-made", 1),
    // The file without generations, and what is pinned.
    ("private-file-written", 2),
    ("private-file-named", 2),
];

/// Passed in the life of a generation.
const LIFE: &[(&str, u64)] = &[
    // The file with it, and the one without it.
    ("private-file-written", 2),
    ("private-file-named", 2),
    ("tpm2.generations-moved", 1),
    ("tpm2.root-replaced", 1),
    ("tpm2.generation-destroyed", 1),
];

/// Each time that a point is passed, as the environment names it.
fn each_time(points: &'static [(&str, u64)]) -> impl Iterator<Item = String> {
    let time = |(point, times): &'static (&str, u64)| {
        (1..=*times).map(move |time| format!("{point}:{time}"))
    };
    points.iter().flat_map(time)
}

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
        ..Tpm2Config::default()
    };
    if std::env::var_os(ACCEPT).is_some() {
        let mut device = bench::open(&config, &directory, Start::MustExist);
        let found = device.look().unwrap();
        return device.accept(&found.serial).unwrap();
    }
    let mut device = bench::open(&config, &directory, Start::CreateIfAbsent);
    let key = make(&mut device, 1, KINDS[0]).unwrap();
    use_key(&mut device, &key).unwrap();
    destroy(&mut device, 1).unwrap();
}

fn child_of(bench: &Bench, tpm: &Swtpm, failpoint: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "crash::child", "--ignored"])
        .env(TCTI, tpm.tcti())
        .env(DIRECTORY, &bench.directory)
        .env("MLSKEYD_FAILPOINT", failpoint);
    command
}

fn run_child(bench: &Bench, failpoint: &str) -> ExitStatus {
    let output = child_of(bench, &bench.tpm, failpoint).output();
    output.unwrap().status
}

#[test]
fn a_set_up_that_died_is_made_again() {
    for failpoint in each_time(SETUP) {
        let bench = Bench::new();
        let status = run_child(&bench, &failpoint);
        assert_eq!(status.signal(), Some(9), "{failpoint}: {status}");
        let mut device = bench.first();
        let key = make(&mut device, 1, KINDS[0]).unwrap();
        drop(device);
        use_key(&mut bench.reopen(), &key).unwrap();
        assert_eq!(files(&bench.directory), 2, "{failpoint}");
        assert_eq!(bench.tpm.indices().len(), 1, "{failpoint}");
    }
    assert!(run_child(&Bench::new(), "no-such-point").success());
}

#[test]
fn a_crash_between_any_two_steps_is_repaired_and_costs_no_other_key() {
    for failpoint in each_time(LIFE) {
        let bench = Bench::new();
        let survivor = make(&mut bench.first(), 9, KINDS[0]).unwrap();
        let status = run_child(&bench, &failpoint);
        assert_eq!(status.signal(), Some(9), "{failpoint}: {status}");

        let mut device = bench.reopen();
        use_key(&mut device, &survivor).unwrap_or_else(|error| panic!("{failpoint}: {error}"));
        // As custody repairs it: by destroying what its journal names.
        destroy(&mut device, 1).unwrap();
        let gone = generate(&mut device).unwrap_err();
        assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
        let key = make(&mut device, 1, KINDS[0]).unwrap();
        drop(device);
        let mut device = bench.reopen();
        for key in [&key, &survivor] {
            use_key(&mut device, key).unwrap();
        }
        assert_eq!(files(&bench.directory), 2, "{failpoint}");
    }
}

/// A key in the generation of the child.
fn generate(device: &mut Tpm2Device) -> Result<StoredKey, DeviceError> {
    let (algorithm, tier) = KINDS[0];
    device.generate(NewKey {
        id: KeyId::from_bytes([2; 16]),
        algorithm,
        tier,
        generation: bench::generation(1),
    })
}

/// What is pinned, and the generations.
fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// Until another TPM is the device's own, the one before loses nothing.
#[test]
fn another_tpm_takes_its_place_whole_or_not_at_all() {
    let bench = Bench::new();
    let survivor = make(&mut bench.first(), 9, KINDS[0]).unwrap();
    let other = Swtpm::named(&bench.stage, "other");
    for failpoint in each_time(SETUP) {
        let mut child = child_of(&bench, &other, &failpoint);
        let status = child.env(ACCEPT, "yes").output().unwrap().status;
        assert_eq!(status.signal(), Some(9), "{failpoint}: {status}");
        if failpoint != "private-file-named:2" {
            let found = use_key(&mut bench.reopen(), &survivor);
            found.unwrap_or_else(|error| panic!("{failpoint}: {error}"));
        }
    }
    // Its name was the last step.
    let mut device = bench::open(&other.config(), &bench.directory, Start::MustExist);
    let gone = use_key(&mut device, &survivor).unwrap_err();
    assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
    assert_eq!(files(&bench.directory), 2);
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
    let points = SETUP.iter().chain(LIFE);
    let points = points.map(|(name, _)| *name).chain(PIN_POINTS);
    let tested: BTreeSet<String> = points.map(str::to_owned).collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/src/devices/tpm2");
    // Those of files that are replaced are not a TPM's alone.
    let own = tested.into_iter().filter(|name| name.starts_with("tpm2."));
    assert_eq!(failpoints::in_source(&source), own.collect());
}
