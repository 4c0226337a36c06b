//! An app that gets a name, and what was made before.

use crate::scene::{Scene, of};

const TAKES_OVER: &str = "takes_over = \"default\"\n";

#[test]
fn a_chat_goes_on_when_its_app_gets_a_name() {
    let mut scene = Scene::new();
    scene.name(TAKES_OVER);
    // What another program of the user makes stays with that one.
    let uid = scene.owner("default");
    scene.talk();
    assert_eq!(scene.owners(), of(&["wire"]));
    let noted = scene.notes("KeysTakenOver");
    assert_eq!(noted.len(), 1, "{noted:?}");
    let (by_somebody, note) = &noted[0];
    assert!(
        !by_somebody && note.contains("\"alice\", \"bob\""),
        "{note}"
    );
    let made = ["identities", "create", &uid, "later"];
    scene.daemon.ctl(&made).unwrap();
    // Once only, also over a restart.
    scene.name(TAKES_OVER);
    scene.alice.kill();
    scene.alice.restart();
    scene.talk();
    assert_eq!(scene.owners(), of(&["default", "wire"]));
    assert_eq!(scene.notes("KeysTakenOver").len(), 1);
    let options = scene.named(TAKES_OVER);
    scene.assert_claims_are_kept(&options);
    scene.talk();
    scene.assert_nothing_forgotten();
}

#[test]
fn without_the_word_an_app_with_a_name_finds_nothing() {
    let mut scene = Scene::new();
    scene.name("");
    scene.alice.command("send g hello").unwrap_err();
    assert_eq!(scene.notes("KeysTakenOver"), []);
}

#[test]
fn an_app_that_has_such_an_identity_takes_nothing_over_and_is_served() {
    let mut scene = Scene::new();
    let wire = scene.owner("wire");
    let made = ["identities", "create", &wire, "bob"];
    scene.daemon.ctl(&made).unwrap();
    scene.name(TAKES_OVER);
    // It is told of its own, and that is all.
    scene.alice.ok("members g");
    scene.alice.command("send g hello").unwrap_err();
    let noted = scene.notes("KeysTakenOver");
    assert_eq!(noted.len(), 1, "{noted:?}");
    assert!(
        noted[0].1.contains("has an identity \"bob\" already"),
        "{noted:?}"
    );
    assert!(scene.daemon.log().contains("mlskeyctl keys reassign"));
    // The administrator gives it what there is no conflict about.
    let (from, alice) = (scene.owner("default"), "chat/alice");
    let part = [&from, &wire, "--identity", "alice", "--storage", alice];
    scene.reassign(&part.map(|word| word as &str)).unwrap();
    scene.alice.ok("send g hello");
}
