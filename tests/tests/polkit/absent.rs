//! Where polkit is not there, or not always.

use crate::scene::{Scene, YES};

const ABSENT: &str =
    "only root and the daemon's own user administer mlskeyd while it cannot ask polkit";

#[test]
fn without_polkit_nobody_else_administers_and_is_told_why() {
    let mut scene = Scene::without_polkit("");
    let refused = scene.ctl(&["frozen"]);
    refused.fails(4, ABSENT);
    refused.fails(4, "sudo mlskeyctl");
    refused.fails(4, "install polkit");
    assert_eq!(
        scene.on_record(),
        ["Administer refused by builtin/administrators"]
    );
    let root = scene.daemon.ctl_for_people(&["frozen"]).output().unwrap();
    assert!(root.status.success(), "{root:?}");

    // It is not looked for before somebody asks, and so is found as soon as it is there.
    scene.start_polkit(YES);
    scene.ctl(&["frozen"]).served();
    scene.polkit().kill();
    scene.ctl(&["frozen"]).fails(4, ABSENT);
    scene.polkit().restart();
    scene.ctl(&["frozen"]).served();
}

#[test]
fn a_bus_that_was_restarted_is_found_again() {
    let mut scene = Scene::new(YES);
    scene.ctl(&["frozen"]).served();
    scene.bus.kill();
    scene.ctl(&["frozen"]).fails(4, ABSENT);
    scene.bus.restart();
    // It ended with the bus.
    scene.polkit().kill();
    scene.polkit().restart();
    scene.ctl(&["frozen"]).served();
}

/// polkit is there, and nobody has installed what it is to be asked.
#[test]
fn a_polkit_that_does_not_know_mlskeyd_is_none() {
    let mut scene = Scene::without_polkit("");
    scene.start_polkit(YES);
    scene.polkit().kill();
    let file = scene.stage.path("polkit/actions/org.mlskeyd.policy");
    std::fs::remove_file(file).unwrap();
    scene.polkit().restart();
    let refused = scene.ctl(&["frozen"]);
    refused.fails(4, ABSENT);
    refused.fails(4, "org.mlskeyd.view is not registered");
}
