//! A module that dies or hangs, a token that comes late, and a PIN that is
//! wrong.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mlskeyd_provider::CustodyProvider;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{FaultyHsm, SoftHsm, Stage};
use openmls::prelude::*;
use openmls_memory_storage::MemoryStorage;
use rustix::process::{Signal, kill_process};

use super::scene::{SUITE, Scene};

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

#[test]
fn one_token_in_trouble_is_no_trouble_for_another() {
    let stage = Stage::new(programs!());
    let hsm = FaultyHsm::new(&stage);
    hsm.softhsm().add_token("mlskeyd");
    hsm.softhsm().add_token("second");
    // The same tokens, one by the module that fails and one without.
    let devices = hsm.device("hsm", "mlskeyd") + &hsm.softhsm().device("second", "second");
    let control = hsm.control();
    let scene = Scene::with(stage, hsm.softhsm().clone(), devices);
    scene.await_state("ready");
    let (one, other) = (scene.app("one", "hsm"), scene.app("other", "second"));
    one.key_package().unwrap();
    control.take_out();
    while scene.state().0 == "ready" {
        one.key_package().unwrap_err();
        other.key_package().unwrap();
    }
    for _ in 0..5 {
        other.key_package().unwrap();
    }
    control.put_back();
    scene.await_state("ready");
    one.key_package().unwrap();
}

#[test]
fn a_token_is_chosen_by_its_serial_number() {
    let stage = Stage::new(programs!());
    let softhsm = SoftHsm::new(&stage);
    // Labels may repeat.
    softhsm.add_token("mlskeyd");
    let serial = softhsm.serials().pop().unwrap();
    softhsm.add_token("mlskeyd");
    let device = softhsm.device("hsm", "mlskeyd");
    let device = device.replace("token = \"mlskeyd\"", &format!("serial = {serial:?}"));
    let scene = Scene::with(stage, softhsm, device);
    scene.await_state("ready");
    scene.app("app", "hsm").key_package().unwrap();
}
