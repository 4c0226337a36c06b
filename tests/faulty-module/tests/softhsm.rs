//! The module before SoftHSM, as a program that loads it sees it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is the report"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use mlskeyd_faulty_module::{
    CKR_DEVICE_MEMORY, CKR_DEVICE_REMOVED, CKR_TOKEN_NOT_PRESENT, Control, Fault, Function, library,
};

const PIN: &str = "271828";

/// Where distributions install SoftHSM.
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib/pkcs11/libsofthsm2.so",
];

/// The DER of secp256r1's OID.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// Runs a test of this file in a process of its own, whose environment is the
/// module's; there `test` runs. Answers how that process ended.
fn apart(name: &str, test: fn(&Bench)) -> Option<std::process::ExitStatus> {
    if let Some(control) = std::env::var_os("FAULTY_CONTROL") {
        test(&Bench::load(Path::new(&control)));
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let config = directory.path().join("softhsm2.conf");
    let text = format!(
        "directories.tokendir = {}\nlog.level = ERROR\n",
        tokens.display()
    );
    std::fs::write(&config, text).unwrap();
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "token"])
        .args(["--pin", PIN, "--so-pin", "31415926"])
        .env("SOFTHSM2_CONF", &config)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let control = Control::create(&directory.path().join("control")).unwrap();
    let softhsm: Option<PathBuf> = MODULES
        .map(PathBuf::from)
        .into_iter()
        .find(|it| it.exists());
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("SOFTHSM2_CONF", &config)
        .env("FAULTY_MODULE", softhsm.unwrap())
        .env("FAULTY_CONTROL", control.path())
        .status();
    Some(ended.unwrap())
}

fn apart_and_well(name: &str, test: fn(&Bench)) {
    if let Some(status) = apart(name, test) {
        assert!(status.success(), "{status}");
    }
}

struct Bench {
    control: Control,
    pkcs11: Pkcs11,
}

impl Bench {
    fn load(control: &Path) -> Self {
        let pkcs11 = Pkcs11::new(library().unwrap()).unwrap();
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        pkcs11.initialize(arguments).unwrap();
        Self {
            control: Control::open(control).unwrap(),
            pkcs11,
        }
    }

    fn try_session(&self) -> Result<Session, Error> {
        let slots = self.pkcs11.get_slots_with_initialized_token()?;
        let slot = slots.first().ok_or(Error::InvalidValue)?;
        let session = self.pkcs11.open_rw_session(*slot)?;
        match session.login(UserType::User, Some(&AuthPin::from(PIN))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(error) => Err(error),
        }
    }

    fn session(&self) -> Session {
        self.try_session().unwrap()
    }
}

fn generate(session: &Session) -> Result<(ObjectHandle, ObjectHandle), Error> {
    let public = [Attribute::EcParams(P256.to_vec())];
    let private = [Attribute::Sign(true), Attribute::Derive(true)];
    session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)
}

fn sign(session: &Session, key: ObjectHandle) -> Result<Vec<u8>, Error> {
    session.sign(&Mechanism::Ecdsa, key, &[7; 32])
}

fn error<T>(result: Result<T, Error>) -> RvError {
    match result {
        Err(Error::Pkcs11(error, _)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it succeeded"),
    }
}

#[test]
fn calls_are_forwarded_and_counted() {
    apart_and_well("calls_are_forwarded_and_counted", |bench| {
        let session = bench.session();
        let (public, key) = generate(&session).unwrap();
        let signature = sign(&session, key).unwrap();
        let verified = session.verify(&Mechanism::Ecdsa, public, &[7; 32], &signature);
        verified.unwrap();
        let control = &bench.control;
        assert_eq!(control.calls(Function::Sign), 1, "a length is not counted");
        assert_eq!(control.calls(Function::GenerateKeyPair), 1);
        assert_eq!(control.hits(), 0);
        assert_eq!((control.sessions_open(), control.objects()), (1, 2));
        session.destroy_object(public).unwrap();
        session.find_objects(&[]).unwrap();
        assert_eq!((control.finds_unfinished(), control.objects()), (0, 1));
        let other = bench.session();
        drop(session);
        assert_eq!((control.sessions_open(), control.sessions_peak()), (1, 2));
        drop(other);
        assert_eq!(control.sessions_open(), 0);
    });
}

#[test]
fn errors_come_before_and_after_the_call() {
    apart_and_well("errors_come_before_and_after_the_call", |bench| {
        let (control, session) = (&bench.control, bench.session());
        let (_, key) = generate(&session).unwrap();
        control.arm(Function::Sign, Fault::Error(CKR_DEVICE_MEMORY), 1, 1);
        sign(&session, key).unwrap();
        assert_eq!(error(sign(&session, key)), RvError::DeviceMemory);
        assert_eq!(control.hits(), 1);
        // A signature was begun and not finished, as after a real error.
        let session = bench.session();

        let before = control.objects();
        let lost = Fault::ErrorAfter(CKR_DEVICE_MEMORY);
        control.arm(Function::GenerateKeyPair, lost, 0, u32::MAX);
        assert_eq!(error(generate(&session)), RvError::DeviceMemory);
        assert_eq!(control.objects(), before + 2, "they were made");
        control.disarm(Function::GenerateKeyPair);
        generate(&session).unwrap();
        assert_eq!(control.hits(), 2);
    });
}

#[test]
fn a_token_goes_with_its_sessions_and_comes_back() {
    apart_and_well("a_token_goes_with_its_sessions_and_comes_back", |bench| {
        let (control, session) = (&bench.control, bench.session());
        let (_, key) = generate(&session).unwrap();
        let slot = bench.pkcs11.get_slots_with_token().unwrap()[0];
        for told in [CKR_DEVICE_REMOVED, CKR_TOKEN_NOT_PRESENT] {
            let session = bench.session();
            control.arm(Function::GenerateKeyPair, Fault::Removed(told), 0, 1);
            let first = error(generate(&session));
            assert_eq!(first == RvError::DeviceRemoved, told == CKR_DEVICE_REMOVED);
            assert!(control.is_out());
            assert_eq!(error(sign(&session, key)), RvError::DeviceRemoved);
            assert_eq!(control.sessions_open(), 0);
            assert!(bench.pkcs11.get_slots_with_token().unwrap().is_empty());
            let told = error(bench.pkcs11.get_token_info(slot));
            assert_eq!(told, RvError::TokenNotPresent);
            let told = error(bench.pkcs11.open_rw_session(slot));
            assert_eq!(told, RvError::TokenNotPresent);
            control.put_back();
            let stale = error(sign(&session, key));
            assert_eq!(stale, RvError::SessionHandleInvalid);
            let anew = bench.pkcs11.open_rw_session(slot).unwrap();
            assert_eq!(error(sign_any(&anew)), RvError::UserNotLoggedIn);
            drop(anew);
            sign_any(&bench.session()).unwrap();
        }
        assert_eq!(error(sign(&session, key)), RvError::SessionHandleInvalid);
        assert_eq!(control.hits(), 2);
    });
}

fn sign_any(session: &Session) -> Result<Vec<u8>, Error> {
    let public = [Attribute::EcParams(P256.to_vec())];
    let private = [Attribute::Sign(true), Attribute::Private(true)];
    let mechanism = Mechanism::EccKeyPairGen;
    let (_, key) = session.generate_key_pair(&mechanism, &public, &private)?;
    sign(session, key)
}

#[test]
fn tokens_may_lack_things() {
    apart_and_well("tokens_may_lack_things", |bench| {
        let (control, session) = (&bench.control, bench.session());
        let slot = bench.pkcs11.get_slots_with_token().unwrap()[0];
        let edwards = MechanismType::ECC_EDWARDS_KEY_PAIR_GEN;
        let knows = || {
            let all = bench.pkcs11.get_mechanism_list(slot).unwrap();
            assert!(all.contains(&MechanismType::ECC_KEY_PAIR_GEN));
            all.contains(&edwards)
        };
        assert!(knows());
        control.set_without_curve25519(true);
        assert!(!knows());
        let told = error(bench.pkcs11.get_mechanism_info(slot, edwards));
        assert_eq!(told, RvError::MechanismInvalid);
        let made = session.generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &[], &[]);
        assert_eq!(error(made), RvError::MechanismInvalid);

        let aes = |more: &[Attribute]| {
            let template = [&[Attribute::ValueLen(32.into())], more].concat();
            session.generate_key(&Mechanism::AesKeyGen, &template)
        };
        aes(&[]).unwrap();
        control.set_without_unwrap_template(true);
        let kind = AttributeType::VendorDefined(0x4000_0212);
        let unwrap = Attribute::VendorDefined((kind, Vec::new()));
        assert_eq!(error(aes(&[unwrap])), RvError::AttributeTypeInvalid);
        aes(&[]).unwrap();
        control.set_without_aes(true);
        assert_eq!(error(aes(&[])), RvError::MechanismInvalid);

        control.set_max_sessions(2);
        let second = bench.session();
        assert_eq!(error(bench.try_session()), RvError::SessionCount);
        drop(second);
        bench.session();
    });
}

#[test]
fn a_slow_token_signs_late() {
    apart_and_well("a_slow_token_signs_late", |bench| {
        let (control, session) = (&bench.control, bench.session());
        let (_, key) = generate(&session).unwrap();
        let delay = Duration::from_millis(20);
        control.set_delay(delay);
        let start = Instant::now();
        sign(&session, key).unwrap();
        assert!(start.elapsed() >= delay);
    });
}

#[test]
fn a_crash_is_a_segmentation_fault() {
    use std::os::unix::process::ExitStatusExt as _;

    let ended = apart("a_crash_is_a_segmentation_fault", |bench| {
        let session = bench.session();
        bench
            .control
            .arm(Function::GenerateKeyPair, Fault::Crash, 0, 1);
        let _ = generate(&session);
        panic!("it lives");
    });
    if let Some(status) = ended {
        const SIGSEGV: i32 = 11;
        assert_eq!(status.signal(), Some(SIGSEGV), "{status}");
    }
}

#[test]
fn many_threads_see_one_token_go() {
    apart_and_well("many_threads_see_one_token_go", |bench| {
        let bench = Arc::new(bench);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        // Whatever happens: no crash.
                        let _ = bench.try_session().and_then(|session| sign_any(&session));
                    }
                });
            }
            for _ in 0..50 {
                bench.control.take_out();
                std::thread::yield_now();
                bench.control.put_back();
                std::thread::yield_now();
            }
        });
        sign_any(&bench.session()).unwrap();
    });
}
