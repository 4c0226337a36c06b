//! A module that dies or hangs, a token that comes late, and a PIN that is
//! wrong.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mlskeyd_provider::{CustodyIdentity, CustodyProvider};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, SoftHsm, Stage};
use openmls::prelude::*;
use openmls_memory_storage::MemoryStorage;
use rustix::process::{Pid, Signal, kill_process};

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;

/// A daemon with a software device and a token.
struct Scene {
    daemon: Daemon,
    softhsm: SoftHsm,
    options: Options,
    _stage: Stage,
}

impl Scene {
    fn new(tokens: &[&str], more: &str) -> Self {
        let stage = Stage::new(programs!());
        let softhsm = SoftHsm::new(&stage);
        tokens.iter().for_each(|label| softhsm.add_token(label));
        let options = Options {
            extra: softhsm.device("hsm", "mlskeyd") + more,
            ..Options::default()
        };
        Self {
            daemon: Daemon::start(&stage, &options),
            softhsm,
            options,
            _stage: stage,
        }
    }

    /// The state of the token, once it was looked at, and why it is in it.
    fn state(&self) -> (String, String) {
        loop {
            let (state, detail) = self.state_now();
            if !detail.contains("not been looked at yet") {
                return (state, detail);
            }
            std::thread::yield_now();
        }
    }

    fn state_now(&self) -> (String, String) {
        let devices = self.daemon.ctl(&["devices"]).unwrap();
        let mut devices = devices.as_array().unwrap().iter();
        let hsm = devices.find(|device| device["name"] == "hsm").unwrap();
        let text = |field: &str| hsm[field].as_str().unwrap_or_default().to_owned();
        (text("state"), text("detail"))
    }

    /// Asks until the token is in this state: nobody else says when.
    fn await_state(&self, wanted: &str) {
        while self.state().0 != wanted {
            std::thread::yield_now();
        }
    }

    /// The one helper that runs.
    fn helper(&self) -> Pid {
        loop {
            if let [helper] = self.daemon.children().as_slice() {
                return *helper;
            }
            std::thread::yield_now();
        }
    }

    fn app(&self, name: &str, device: &str) -> App {
        App::new(&self.daemon.socket(), name, device)
    }
}

/// An app that makes KeyPackages: two HPKE keys and two signatures each.
struct App {
    provider: CustodyProvider<MemoryStorage>,
    identity: CustodyIdentity,
}

impl App {
    fn new(socket: &Path, name: &str, device: &str) -> Self {
        let provider = CustodyProvider::builder()
            .socket(socket)
            .storage(name, MemoryStorage::default())
            .device(device)
            .build()
            .unwrap();
        let credential = BasicCredential::new(name.as_bytes().to_vec()).into();
        let scheme = SUITE.signature_algorithm();
        let identity = provider.create_identity(name, &credential, scheme).unwrap();
        Self { provider, identity }
    }

    /// Makes a KeyPackage that others accept; or the reason why not.
    fn key_package(&self) -> Result<(), String> {
        let with_key = self.identity.credential_with_key().unwrap();
        let signer = self.identity.signer();
        let built = KeyPackage::builder().build(SUITE, &self.provider, &signer, with_key);
        match built {
            Ok(bundle) => {
                let package = KeyPackageIn::from(bundle.key_package().clone());
                package
                    .validate(self.provider.crypto(), ProtocolVersion::Mls10)
                    .unwrap();
                Ok(())
            }
            Err(_) => {
                let failure = self.provider.last_failure();
                Err(failure.expect("there is a reason").to_string())
            }
        }
    }
}

#[test]
fn a_helper_that_is_killed_under_load_is_started_again() {
    let scene = Scene::new(&["mlskeyd"], "");
    let apps: Vec<_> = (0..8)
        .map(|n| scene.app(&format!("app {n}"), "hsm"))
        .collect();
    let (made, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for app in apps {
            let (made, done) = (&made, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    match app.key_package() {
                        Ok(()) => {
                            made.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(reason) => {
                            assert!(reason.contains("the module's helper"), "{reason}");
                        }
                    }
                }
            });
        }
        for _ in 0..5 {
            let before = made.load(Ordering::Relaxed);
            let helper = scene.helper();
            kill_process(helper, Signal::KILL).unwrap();
            while made.load(Ordering::Relaxed) < before + 8 || scene.helper() == helper {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(scene.state().0, "ready");
}

#[test]
fn a_helper_that_hangs_is_ended_and_others_do_not_notice() {
    let scene = Scene::new(&["mlskeyd"], "call_timeout = \"1s\"\n");
    let (stuck, other) = (scene.app("stuck", "hsm"), scene.app("other", "software"));
    let helper = scene.helper();
    kill_process(helper, Signal::STOP).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| stuck.key_package());
        // Meanwhile:
        for _ in 0..20 {
            other.key_package().unwrap();
            scene.daemon.ctl(&["status"]).unwrap();
        }
        // Making a key is not repeated; what comes after has a new helper.
        if let Err(reason) = waiting.join().unwrap() {
            assert!(reason.contains("the module's helper"), "{reason}");
        }
    });
    stuck.key_package().unwrap();
    assert_ne!(scene.helper(), helper);
}

#[test]
fn a_token_that_comes_late_is_found() {
    let scene = Scene::new(&["another"], "");
    let (state, detail) = scene.state();
    assert_eq!(state, "absent");
    assert!(detail.contains("\"mlskeyd\""), "{detail}");
    scene.softhsm.add_token("mlskeyd");
    scene.await_state("ready");
    scene.app("app", "hsm").key_package().unwrap();
}

#[test]
fn two_tokens_of_one_label_are_not_guessed_between() {
    let scene = Scene::new(&["mlskeyd", "mlskeyd"], "");
    let (state, detail) = scene.state();
    assert_eq!(state, "failed");
    assert!(detail.contains("serial number"), "{detail}");
}

#[test]
fn a_wrong_pin_is_tried_once() {
    let mut scene = Scene::new(&["mlskeyd"], "");
    let app = scene.app("app", "hsm");
    app.key_package().unwrap();
    scene.daemon.stop();
    std::fs::write(scene.softhsm.pin_file(), "000000\n").unwrap();
    scene.daemon.restart(&scene.options);
    let (state, detail) = scene.state();
    assert_eq!(state, "locked");
    assert!(detail.contains("the PIN is wrong"), "{detail}");
    for _ in 0..2 {
        scene.daemon.stop();
        scene.daemon.restart(&scene.options);
        let (state, detail) = scene.state();
        assert_eq!(state, "locked");
        // By itself, without a word to the token.
        assert!(detail.contains("give another one"), "{detail}");
    }
    let refused = app.key_package().unwrap_err();
    assert!(refused.contains("device hsm is locked"), "{refused}");
    std::fs::write(scene.softhsm.pin_file(), SoftHsm::PIN).unwrap();
    scene.await_state("ready");
    app.key_package().unwrap();
}

#[test]
fn a_pin_that_others_may_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt as _;

    let mut scene = Scene::new(&["mlskeyd"], "");
    scene.daemon.stop();
    let mode = std::fs::Permissions::from_mode(0o640);
    std::fs::set_permissions(scene.softhsm.pin_file(), mode).unwrap();
    scene.daemon.restart(&scene.options);
    let (state, detail) = scene.state();
    assert_eq!(state, "locked");
    assert!(detail.contains("0600"), "{detail}");
}

#[test]
fn a_token_takes_no_more_keys_than_it_may() {
    let scene = Scene::new(&["mlskeyd"], "max_objects = 3\n");
    let app = scene.app("app", "hsm");
    // Wrapped keys take no room.
    for _ in 0..5 {
        app.key_package().unwrap();
    }
    assert_eq!(
        scene.softhsm.objects(),
        3,
        "two generations, one signature key"
    );
    for n in 0..2 {
        scene.app(&format!("other {n}"), "hsm");
    }
    let full = CustodyProvider::builder()
        .socket(scene.daemon.socket())
        .memory_storage(MemoryStorage::default())
        .device("hsm")
        .build()
        .unwrap();
    let credential = BasicCredential::new(b"last".to_vec()).into();
    let scheme = SUITE.signature_algorithm();
    let refused = full.create_identity("last", &credential, scheme);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("max_objects"), "{refused}");
    assert_eq!(scene.state().0, "ready");
    app.key_package().unwrap();
}

#[test]
fn a_token_that_is_unplugged_takes_no_key_with_it() {
    let scene = Scene::new(&["mlskeyd"], "");
    let app = scene.app("app", "hsm");
    app.key_package().unwrap();
    scene.softhsm.unplug();
    // Nothing is told of it before somebody asks.
    while scene.state().0 == "ready" {
        let refused = app.key_package().unwrap_err();
        assert!(!refused.contains("cannot come back"), "{refused}");
    }
    scene.softhsm.plug_in();
    scene.await_state("ready");
    app.key_package().unwrap();
}
