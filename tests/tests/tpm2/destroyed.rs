//! A destroyed generation is out of reach of who copied everything before.

use std::fs;
use std::path::Path;
use std::process::Command;

use mlskeyd::config::Tcti;
use mlskeyd::devices::tpm2::Revealed;
use mlskeyd::devices::{Device as _, DeviceError, DeviceState, StoredKey};
use mlskeyd_tests::rig::Tap;

use super::bench::{Bench, KINDS, destroy, generation, generations_file, make, state, use_key};
use super::bystander::Bystander;

/// Its number, beside those of one key of each kind.
const SURVIVOR: u8 = 200;

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

#[test]
fn a_copy_of_all_files_brings_no_key_back() {
    let bench = Bench::new();
    let mut device = bench.first();
    let doomed: Vec<StoredKey> = (1..)
        .zip(KINDS)
        .map(|(number, kind)| make(&mut device, number, kind).unwrap())
        .collect();
    let survivor = make(&mut device, SURVIVOR, KINDS[0]).unwrap();
    let copied = bench.stage.path("copy");
    copy(&bench.directory, &copied);
    for key in &doomed {
        use_key(&mut device, key).unwrap();
    }
    for (number, _) in (1..).zip(KINDS) {
        destroy(&mut device, number).unwrap();
    }
    use_key(&mut device, &survivor).unwrap();
    drop(device);
    let now = bench.stage.path("now");
    copy(&bench.directory, &now);

    // As a backup brings it back.
    fs::remove_dir_all(&bench.directory).unwrap();
    copy(&copied, &bench.directory);
    let unusable = |words: &str| {
        let mut device = bench.reopen();
        let (found, reason) = state(&device);
        assert_eq!(found, DeviceState::Failed);
        assert!(reason.contains(words), "{reason}");
        for key in doomed.iter().chain([&survivor]) {
            use_key(&mut device, key).unwrap_err();
        }
        destroy(&mut device, SURVIVOR).unwrap_err();
    };
    unusable("is missing");
    // As somebody does who knows how the files are called.
    let old = generations_file(&copied);
    let current = generations_file(&now).file_name().unwrap().to_owned();
    fs::remove_file(generations_file(&bench.directory)).unwrap();
    fs::copy(&old, bench.directory.join(&current)).unwrap();
    unusable("was changed");

    // Nothing was lost meanwhile of what lives.
    fs::remove_dir_all(&bench.directory).unwrap();
    copy(&now, &bench.directory);
    let mut device = bench.reopen();
    use_key(&mut device, &survivor).unwrap();
    for key in &doomed {
        let gone = use_key(&mut device, key).unwrap_err();
        assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
    }
}

/// The file is written under the same root when a generation is made, so that more
/// than one file opens under it.
#[test]
fn an_older_file_of_the_same_root_hides_nothing_that_is_to_be_destroyed() {
    let bench = Bench::new();
    let mut device = bench.first();
    make(&mut device, 9, KINDS[0]).unwrap();
    let older = bench.stage.path("older");
    copy(&bench.directory, &older);
    let doomed = make(&mut device, 1, KINDS[0]).unwrap();
    drop(device);
    let newer = bench.stage.path("newer");
    std::fs::rename(&bench.directory, &newer).unwrap();

    copy(&older, &bench.directory);
    let mut device = bench.reopen();
    assert_eq!(state(&device).0, DeviceState::Ready, "nothing shows it");
    destroy(&mut device, 1).unwrap();
    drop(device);
    fs::remove_dir_all(&bench.directory).unwrap();
    copy(&newer, &bench.directory);
    use_key(&mut bench.reopen(), &doomed).unwrap_err();
}

/// The TPM's permanent memory wears out.
#[test]
fn what_nobody_was_told_of_is_taken_back_without_a_write() {
    let mut bench = Bench::new();
    let tap = Tap::before(&bench.tpm);
    bench.config.tcti = Tcti::parse(&tap.tcti()).unwrap();
    let mut device = bench.first();
    let set_up = tap.writes();
    let doomed = make(&mut device, 1, KINDS[0]).unwrap();
    let survivor = make(&mut device, 2, KINDS[0]).unwrap();
    let destroyer = device.destroyer().unwrap();
    for number in [1, 1, 3] {
        destroyer.undo_generation(generation(number)).unwrap();
    }
    assert_eq!(tap.writes(), set_up);
    for restarted in [false, true] {
        if restarted {
            drop(device);
            device = bench.reopen();
        }
        let gone = use_key(&mut device, &doomed).unwrap_err();
        assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
        use_key(&mut device, &survivor).unwrap();
    }
    destroy(&mut device, 2).unwrap();
    assert_eq!(tap.writes(), set_up + 1);
}

/// Even the object as the TPM wrapped it, which no file holds in the clear, is of
/// no use to another program without the value that died with the generation.
#[test]
fn another_program_cannot_use_what_it_loads() {
    let bench = Bench::new();
    let mut device = bench.first();
    for (number, kind) in [(1, KINDS[0]), (2, KINDS[2])] {
        let key = make(&mut device, number, kind).unwrap();
        use_key(&mut device, &key).unwrap();
        let mut revealed = device.reveal(&key).unwrap();
        drop(device);
        let auth = std::mem::take(&mut revealed.auth);
        let is_usable = |revealed: &Revealed| {
            let mut bystander = Bystander::over(&bench.tpm.tcti());
            match kind == KINDS[0] {
                true => bystander.sign(revealed).is_ok(),
                false => bystander.unseal(revealed).is_ok(),
            }
        };
        assert!(!is_usable(&revealed));
        revealed.auth = vec![1; 32];
        assert!(!is_usable(&revealed));
        // It is the value alone that they lack.
        revealed.auth = auth;
        assert!(is_usable(&revealed));
        // Nor does the guessing lock the TPM.
        let counter = bench.tpm.tool(&["getcap", "properties-variable"]);
        assert!(
            counter.contains("TPM2_PT_LOCKOUT_COUNTER: 0x0"),
            "{counter}"
        );
        device = bench.reopen();
    }
}
