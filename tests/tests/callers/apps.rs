//! Apps of one user, each with keys of its own.

use mlskeyd_protocol::v1::KeyId;
use serde_json::Value;

use crate::scene::{Scene, ran_inside};

const STRANGER: u32 = 65_533;

fn made(output: &str) -> KeyId {
    KeyId::from_hex(output.trim().strip_prefix("made ").expect(output)).unwrap()
}

/// What became of each thing that a program tried with this key.
fn tried(scene: &Scene, user: u32, key: KeyId) -> Vec<Value> {
    let key = key.to_string();
    let socket = scene.socket();
    let content = hex::encode("no structure of MLS");
    let arguments: [&str; 6] = [&socket, &key, &key, &content, "alice", "laptop"];
    let output = scene.output("stranger", user, &arguments);
    output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn assert_of_no_use(outcomes: &[Value]) {
    let of = |what: &str| outcomes.iter().find(|it| it["what"] == what).unwrap();
    for what in [
        "sign",
        "sign with an HPKE key",
        "open",
        "open with a signature key",
        "prepare",
        "leave",
    ] {
        assert_eq!(of(what)["code"], "NotFound", "{}", of(what));
    }
    assert_eq!(of("identities")["reply"], "[]");
}

#[test]
fn another_app_of_the_user_neither_sees_nor_uses_a_key() {
    if ran_inside(
        "apps::another_app_of_the_user_neither_sees_nor_uses_a_key",
        &[],
    ) {
        return;
    }
    let scene = Scene::new();
    let make =
        |program: &str, name: &str| scene.output(program, 0, &["identity", &scene.socket(), name]);
    let key = made(&make("wire", "alice"));
    assert_eq!(
        scene.last_caller(),
        ("wire".into(), "observed".into(), scene.path("wire"))
    );
    assert_eq!(scene.keys()[0].owner.to_string(), "0/wire");
    assert_of_no_use(&tried(&scene, 0, key));
    // Nor does this app, as another user runs it.
    assert_of_no_use(&tried(&scene, STRANGER, key));

    // The same name is another identity's in another app; and a program that has no name
    // is `default`.
    assert_ne!(made(&make("signal", "alice")), key);
    assert_ne!(made(&make("evil", "alice")), key);
    assert_eq!(
        scene.last_caller(),
        ("default".into(), "unknown".into(), scene.path("evil"))
    );
    assert_eq!(made(&make("wire", "alice")), key);
    // An app that has a name has one identity of its user.
    let second = make("wire", "bob");
    assert!(second.contains("one-identity"), "{second}");
    assert!(make("evil", "bob").starts_with("made"));
}

#[test]
fn a_program_that_others_may_write_is_no_app() {
    if ran_inside("apps::a_program_that_others_may_write_is_no_app", &[]) {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let mode = PermissionsExt::from_mode(0o775);
    std::fs::set_permissions(scene.stage.path("wire"), mode).unwrap();
    made(&scene.output("wire", 0, &["identity", &scene.socket(), "alice"]));
    assert_eq!(scene.last_caller().0, "default");
    // As a link another file is no more than that.
    std::os::unix::fs::symlink(scene.path("wire"), scene.stage.path("link")).unwrap();
    made(&scene.output("link", 0, &["identity", &scene.socket(), "alice"]));
    assert_eq!(scene.last_caller().0, "default");
}

#[test]
fn an_app_that_was_updated_while_it_runs_stays_what_it_is() {
    if ran_inside(
        "apps::an_app_that_was_updated_while_it_runs_stays_what_it_is",
        &["--pid", "--fork", "--mount-proc"],
    ) {
        return;
    }
    let scene = Scene::new();
    let mut wire = scene.start("wire", "say runs go identity @@ alice");
    wire.expect_line("runs");
    std::fs::copy(scene.stage.path("wire"), scene.stage.path("new")).unwrap();
    std::fs::rename(scene.stage.path("new"), scene.stage.path("wire")).unwrap();
    assert!(wire.write(b"\n"));
    made(&wire.line().unwrap());
    assert_eq!(scene.last_caller().0, "wire");
}
