//! An administrator gives what one owner has to another one.

use crate::scene::{Scene, of};

#[test]
fn a_chat_goes_on_when_an_administrator_gives_its_keys_to_its_app() {
    let mut scene = Scene::new();
    let [from, to, other] = ["default", "wire", "other"].map(|app| scene.owner(app));
    // Another user's, of the same names.
    let nobodys = "65534/default";
    let made = ["identities", "create", nobodys, "alice"];
    scene.daemon.ctl(&made).unwrap();
    scene.name("");
    // It came before its keys, and finds them by the same connections.
    scene.alice.command("send g hello").unwrap_err();
    let told = scene.reassign(&[&from, &to]).unwrap();
    assert_eq!(told["identities"], serde_json::json!(["alice", "bob"]));
    assert_eq!(
        told["storages"],
        serde_json::json!(["chat/alice", "chat/bob"])
    );
    assert_eq!(told["signature_keys"], 2);
    assert_eq!(
        (&told["from"]["app"], &told["to"]["app"]),
        (&"default".into(), &"wire".into())
    );
    assert_eq!(scene.owners(), of(&["wire"]));
    scene.talk();
    let options = scene.named("");
    scene.assert_claims_are_kept(&options);
    scene.talk();
    let listed = scene.daemon.ctl(&["identities"]).unwrap();
    let listed = listed.as_array().unwrap().iter();
    let nobodys =
        listed.filter(|it| it["owner"]["uid"] == 65534 && it["owner"]["app"] == "default");
    assert_eq!(nobodys.count(), 1);
    // A messenger that runs loses it.
    scene.reassign(&[&to, &other]).unwrap();
    scene.alice.command("send g hello").unwrap_err();
    scene.reassign(&[&other, &to]).unwrap();
    scene.talk();
    let noted = scene.notes("KeysReassigned");
    assert_eq!(noted.len(), 3, "{noted:?}");
    let wanted = format!("{from} -> {to}: identities \"alice\", \"bob\"; storages");
    assert!(noted[0].0 && noted[0].1.starts_with(&wanted), "{noted:?}");
    scene.daemon.stop();
    scene.daemon.restart(&options);
    scene.talk();
    scene.assert_nothing_forgotten();
}

#[test]
fn a_conflict_changes_nothing() {
    let mut scene = Scene::new();
    let [from, to] = ["default", "wire"].map(|app| scene.owner(app));
    scene
        .daemon
        .ctl(&["identities", "create", &to, "bob"])
        .unwrap();
    let list = |scene: &Scene| {
        ["keys", "identities", "storage"].map(|what| scene.daemon.ctl(&[what]).unwrap())
    };
    let mut before = list(&scene);
    let error = scene.reassign(&[&from, &to]).unwrap_err();
    assert!(error.contains("has an identity \"bob\" already"), "{error}");
    let shown = |lists: &mut [serde_json::Value]| {
        for storage in lists[2].as_array_mut().unwrap() {
            storage["last_attached"].take();
        }
        lists.to_vec()
    };
    assert_eq!(shown(&mut list(&scene)), shown(&mut before));
    let error = scene.reassign(&[&from, &from]).unwrap_err();
    assert!(error.contains("its own keys already"), "{error}");
    let nobody = scene.owner("nobody");
    let error = scene.reassign(&[&nobody, &to]).unwrap_err();
    assert!(error.contains("owns nothing"), "{error}");
    scene.talk();
}

#[test]
fn nobody_gets_a_credential_that_he_may_not_have() {
    let mut scene = Scene::new();
    let [from, to] = ["default", "wire"].map(|app| scene.owner(app));
    let options = mlskeyd_tests::rig::Options {
        extra: "[policy]\ncredentials = [\"alice\"]\n[policy.users.nobody]\ncredentials = [\"nobody\"]\n"
            .to_owned(),
        ..Default::default()
    };
    scene.daemon.stop();
    scene.daemon.restart(&options);
    let alice = ["--identity", "alice"];
    let to_nobody = [&*from, "65534/wire", alice[0], alice[1]];
    let error = scene.reassign(&to_nobody).unwrap_err();
    assert!(error.contains("does not let this user have"), "{error}");
    assert_eq!(scene.owners(), of(&["default"]));
    // It is the new owner who is judged, and all identities that are to go.
    let error = scene.reassign(&[&from, &to]).unwrap_err();
    assert!(error.contains("does not let this user have"), "{error}");
    scene.reassign(&[&from, &to, alice[0], alice[1]]).unwrap();
    assert_eq!(scene.owners(), of(&["default", "wire"]));
}
