//! The end of a daemon, and of its tokens' helpers.

use std::os::fd::OwnedFd;

use mlskeyd_faulty_module::{Fault, Function};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{FaultyHsm, Stage};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use super::scene::Scene;

/// What the log says of a helper that did not end by itself.
const KILLED: &str = "its helper was killed";

/// A token in use.
fn scene(more: &str) -> (Scene, FaultyHsm) {
    let stage = Stage::new(programs!());
    let hsm = FaultyHsm::new(&stage);
    hsm.softhsm().add_token("mlskeyd");
    let device = hsm.device("hsm", "mlskeyd") + more;
    let scene = Scene::with(stage, hsm.softhsm().clone(), device);
    let apps: Vec<_> = (0..4)
        .map(|n| scene.app(&format!("app {n}"), "hsm"))
        .collect();
    std::thread::scope(|scope| {
        for app in &apps {
            scope.spawn(|| app.key_package().unwrap());
        }
    });
    assert!(hsm.control().sessions_open() > 0);
    (scene, hsm)
}

/// What ends with the helper.
fn helper(scene: &Scene) -> OwnedFd {
    pidfd_open(scene.helper(), PidfdFlags::empty()).unwrap()
}

fn await_end(helper: &OwnedFd) {
    let mut end = [PollFd::new(helper, PollFlags::IN)];
    poll(&mut end, None).unwrap();
}

fn assert_nothing_is_left_open(hsm: &FaultyHsm) {
    let control = hsm.control();
    assert_eq!(control.sessions_open(), 0);
    let opened = control.calls(Function::OpenSession);
    assert_eq!(control.calls(Function::CloseSession), opened);
    assert_eq!(control.calls(Function::Finalize), 1);
}

#[test]
fn a_daemon_that_stops_ends_its_sessions_and_the_module() {
    let (mut scene, hsm) = scene("");
    let helper = helper(&scene);
    scene.daemon.stop();
    // The daemon has waited for it.
    assert_nothing_is_left_open(&hsm);
    await_end(&helper);
    assert!(!scene.daemon.log().contains(KILLED));
}

#[test]
fn a_daemon_that_is_killed_leaves_no_session_open() {
    let (mut scene, hsm) = scene("");
    let helper = helper(&scene);
    scene.daemon.kill();
    await_end(&helper);
    assert_nothing_is_left_open(&hsm);
}

#[test]
fn a_module_that_hangs_at_its_end_does_not_hold_the_daemon() {
    for function in [Function::CloseSession, Function::Finalize] {
        let (mut scene, hsm) = scene("");
        let helper = helper(&scene);
        hsm.control().arm(function, Fault::Hang, 0, u32::MAX);
        scene.daemon.stop();
        assert!(hsm.control().hits_in(function) > 0);
        await_end(&helper);
        assert!(scene.daemon.log().contains(KILLED));
    }
}

#[test]
fn a_call_that_hangs_does_not_hold_the_daemon() {
    let (mut scene, hsm) = scene("call_timeout = \"30d\"\n");
    let helper = helper(&scene);
    let stuck = scene.app("stuck", "hsm");
    let control = hsm.control();
    control.arm(Function::Sign, Fault::Hang, 0, u32::MAX);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| stuck.key_package());
        while control.hits_in(Function::Sign) == 0 {
            std::thread::yield_now();
        }
        scene.daemon.stop();
        waiting.join().unwrap().unwrap_err();
    });
    await_end(&helper);
}

#[test]
fn a_helper_that_nobody_needs_any_more_ends_though_its_module_hangs() {
    let (mut scene, hsm) = scene("");
    let helper = helper(&scene);
    hsm.control()
        .arm(Function::Finalize, Fault::Hang, 0, u32::MAX);
    scene.daemon.kill();
    await_end(&helper);
    assert_eq!(hsm.control().hits_in(Function::Finalize), 1);
}
