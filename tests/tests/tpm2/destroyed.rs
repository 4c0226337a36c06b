//! A destroyed generation is out of reach of who copied everything before.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::str::FromStr as _;

use mlskeyd::devices::tpm2::Tpm2Device;
use mlskeyd::devices::{DeviceError, DeviceState, StoredKey};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Auth, Digest, HashcheckTicket, Private, Public, SignatureScheme};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::traits::UnMarshall as _;
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;
use tss_esapi::{Context, constants::tss};

use super::bench::{Bench, KINDS, destroy, make, state, use_key};

/// The one file of generations.
fn generations_file(directory: &Path) -> std::path::PathBuf {
    let entries = fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut files: Vec<_> = paths
        .filter(|path| name(path).starts_with("generations-"))
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

#[test]
fn a_copy_of_all_files_brings_no_key_back() {
    let bench = Bench::new();
    let mut device = bench.first();
    let doomed: Vec<StoredKey> = (1..=4)
        .zip(KINDS)
        .map(|(number, kind)| make(&mut device, number, kind).unwrap())
        .collect();
    let survivor = make(&mut device, 9, KINDS[0]).unwrap();
    let copied = bench.stage.path("copy");
    copy(&bench.directory, &copied);
    for key in &doomed {
        use_key(&mut device, key).unwrap();
    }
    for number in 1..=4 {
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
        destroy(&mut device, 9).unwrap_err();
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

/// Even the object as the TPM wrapped it, which no file holds in the clear, is of
/// no use to another program without the value that died with the generation.
#[test]
fn another_program_cannot_use_what_it_loads() {
    let bench = Bench::new();
    let mut device = bench.first();
    for (number, kind) in [(1, KINDS[0]), (2, KINDS[2])] {
        let key = make(&mut device, number, kind).unwrap();
        use_key(&mut device, &key).unwrap();
        let (object, auth) = device.reveal(&key).unwrap();
        drop(device);
        let sign = kind == KINDS[0];
        assert!(load_and_use(&bench, &object, &[], sign).is_err());
        assert!(load_and_use(&bench, &object, &[1; 32], sign).is_err());
        // It is the value alone that they lack.
        load_and_use(&bench, &object, &auth, sign).unwrap();
        // Nor does the guessing lock the TPM.
        let counter = bench.tpm.tool(&["getcap", "properties-variable"]);
        assert!(
            counter.contains("TPM2_PT_LOCKOUT_COUNTER: 0x0"),
            "{counter}"
        );
        device = bench.reopen();
    }
}

/// Loads an object under the storage key, and signs with it or unseals it.
pub fn load_and_use(
    bench: &Bench,
    (private, public): &(Vec<u8>, Vec<u8>),
    auth: &[u8],
    sign: bool,
) -> tss_esapi::Result<()> {
    let tcti = TctiNameConf::from_str(&bench.tpm.tcti()).unwrap();
    let mut context = Context::new(tcti).unwrap();
    let parent = Tpm2Device::standard_parent(&mut context).unwrap();
    let private = Private::try_from(private.as_slice()).unwrap();
    let public = Public::unmarshall(public).unwrap();
    context.execute_with_session(Some(AuthSession::Password), |context| {
        let key: KeyHandle = context.load(parent, private, public).unwrap();
        context.tr_set_auth(key.into(), Auth::try_from(auth).unwrap())?;
        if !sign {
            return context.unseal(key.into()).map(|_| ());
        }
        let ticket = HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
            tag: tss::TPM2_ST_HASHCHECK,
            hierarchy: tss::TPM2_RH_NULL,
            ..TPMT_TK_HASHCHECK::default()
        });
        let digest = Digest::try_from([1; 32].as_slice()).unwrap();
        let signed = context.sign(key, digest, SignatureScheme::Null, ticket.unwrap());
        signed.map(|_| ())
    })
}
