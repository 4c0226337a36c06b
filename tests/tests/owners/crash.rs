//! The daemon dies while keys get another owner: all of them have, or none.

use std::os::unix::process::ExitStatusExt;

use mlskeyd_tests::books;
use mlskeyd_tests::rig::Options;

use crate::scene::{Scene, of};

/// Each with the app whose everything is then.
const POINTS: [(&str, &str); 2] = [
    ("store.reassign.before_commit", "default"),
    ("store.reassign.after_commit", "wire"),
];

/// They have the same owner, and what they had before.
fn assert_whole(scene: &Scene, app: &str, point: &str) {
    assert_eq!(scene.owners(), of(&[app]), "{point}");
    assert_eq!(books::unfinished(&scene.daemon), Vec::<String>::new());
    let (signing, of_identities) = books::signing(&scene.daemon);
    assert_eq!(signing, of_identities, "{point}");
    assert_eq!(signing.len(), 2, "{point}");
    scene.assert_nothing_forgotten();
}

#[test]
fn an_order_that_was_cut_off_is_done_or_not() {
    for (point, app) in POINTS {
        let mut scene = Scene::new();
        let [from, to] = ["default", "wire"].map(|app| scene.owner(app));
        let named = scene.named("");
        let armed = Options {
            failpoint: Some(point.to_owned()),
            ..named.clone()
        };
        scene.daemon.stop();
        scene.daemon.restart(&armed);
        scene.reassign(&[&from, &to]).unwrap_err();
        assert_eq!(scene.daemon.wait().signal(), Some(9), "{point}");
        scene.daemon.restart(&named);
        assert_whole(&scene, app, point);
        // What is to be done was on record before.
        assert_eq!(scene.notes("KeysReassigned").len(), 1, "{point}");
        if app == "default" {
            scene.reassign(&[&from, &to]).unwrap();
        }
        scene.talk();
    }
}

#[test]
fn taking_over_that_was_cut_off_is_done_once() {
    for (point, _) in POINTS {
        let mut scene = Scene::new();
        let named = scene.named("takes_over = \"default\"\n");
        let armed = Options {
            failpoint: Some(point.to_owned()),
            ..named.clone()
        };
        scene.daemon.stop();
        scene.daemon.restart(&armed);
        let mut deaths = 0;
        let Scene { alice, daemon, .. } = &mut scene;
        let mut revive = |daemon: &mut mlskeyd_tests::rig::Daemon| {
            deaths += 1;
            assert_eq!(daemon.wait().signal(), Some(9), "{point}");
            daemon.restart(&named);
        };
        // It may be told that the daemon went away, or wait for it.
        if alice
            .command_through("update g", daemon, &mut revive)
            .is_err()
        {
            alice.ok("update g");
        }
        assert_eq!(deaths, 1, "{point}");
        scene.bob.ok("receive");
        scene.talk();
        assert_whole(&scene, "wire", point);
    }
}
