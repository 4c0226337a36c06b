//! What polkit says, and what comes of it.

use std::collections::HashMap;

use mlskeyd_tests::rig::Process;
use tokio::runtime::Runtime;
use zbus::OwnedVariant;

use crate::scene::{Scene, YES};

/// Reads on until this line.
#[track_caller]
pub(crate) fn await_line(process: &mut Process, start: &str) -> String {
    loop {
        let line = process.line();
        let line = line.unwrap_or_else(|| panic!("no {start:?}:\n{}", process.log()));
        // libtest begins a line, and the test goes on with it.
        if let Some(at) = line.find(start) {
            return line[at..].to_owned();
        }
    }
}

#[test]
fn whom_polkit_lets_is_served_and_on_record() {
    let scene = Scene::new(YES);
    assert_eq!(scene.ctl(&["frozen"]).served(), "nothing is frozen\n");
    scene.ctl(&["status"]).served();
    scene.ctl(&["keys"]).served();
    scene.ctl(&["storage", "list"]).served();
    scene.ctl(&["keys", "sweep"]).served();
    scene.ctl(&["freeze", "user", "4000000"]).served();
    // Also where it comes by way of a bus.
    let frozen = scene.ctl_on_bus(&["frozen"]).served();
    assert_eq!(frozen, "user 4000000\n");
    let record = |action: &str, right: &str| format!("{action} by polkit/org.mlskeyd.{right}");
    assert_eq!(
        scene.on_record(),
        [
            record("Administer", "view"),
            record("Administer", "view"),
            record("Administer", "read-records"),
            record("Administer", "read-records"),
            record("Administer", "destroy-keys"),
            record("Freeze", "policies"),
            record("Administer", "view"),
        ]
    );
}

#[test]
fn whom_polkit_refuses_is_refused_and_on_record() {
    let scene = Scene::new(
        "polkit.addRule(function(action, subject) {
            if (action.id == 'org.mlskeyd.view') return polkit.Result.YES;
            return polkit.Result.NO;
        });",
    );
    scene.ctl(&["frozen"]).served();
    for _ in 0..2 {
        let refused = scene.ctl(&["freeze", "all"]);
        refused.fails(
            4,
            "polkit does not let this user do this (org.mlskeyd.policies)",
        );
        refused.fails(4, "sudo mlskeyctl");
    }
    assert_eq!(scene.ctl(&["frozen"]).served(), "nothing is frozen\n");
    assert_eq!(
        scene.on_record(),
        [
            "Administer by polkit/org.mlskeyd.view",
            "Freeze refused by polkit/org.mlskeyd.policies",
            "Freeze refused by polkit/org.mlskeyd.policies",
            "Administer by polkit/org.mlskeyd.view",
        ]
    );
    // Whom nobody need ask is not asked about.
    let root = scene
        .daemon
        .ctl_for_people(&["freeze", "user", "4000000"])
        .output();
    assert!(root.unwrap().status.success());
}

/// Each command takes the right that the documentation says.
#[test]
fn each_command_takes_its_right() {
    let scene = Scene::new("polkit.addRule(function() { return polkit.Result.NO; });");
    let anybody = "4000000/default";
    let table: [(&str, &[&str]); 20] = [
        ("view", &["status"]),
        ("view", &["devices"]),
        ("view", &["frozen"]),
        ("read-records", &["identities"]),
        ("read-records", &["keys"]),
        ("read-records", &["storage", "list"]),
        ("unlock", &["lock", "software"]),
        ("unlock", &["identities", "lock", anybody, "alice"]),
        (
            "manage-identities",
            &["identities", "create", anybody, "alice"],
        ),
        (
            "manage-identities",
            &["identities", "rotate", anybody, "alice"],
        ),
        (
            "manage-identities",
            &["keys", "reassign", anybody, "4000001/default", "--yes"],
        ),
        ("destroy-keys", &["keys", "sweep"]),
        (
            "destroy-keys",
            &["storage", "forget", anybody, "laptop", "--yes"],
        ),
        ("destroy-keys", &["devices", "accept", "software", "--yes"]),
        ("policies", &["policy", "reload"]),
        ("policies", &["freeze", "all"]),
        ("policies", &["thaw", "all"]),
        ("policies", &["guard", "reset", anybody, "alice", "00"]),
        ("policies", &["guard", "restored"]),
        ("read-records", &["devices", "measurements", "software"]),
    ];
    for (right, command) in table {
        let outcome = scene.ctl(command);
        outcome.fails(4, &format!("(org.mlskeyd.{right})"));
    }
    let records = scene.on_record();
    let refused = |record: &String| record.contains("refused by polkit/org.mlskeyd.");
    assert!(records.iter().all(refused), "{records:?}");
}

/// Rules see the app and the request, and are for whom they name.
#[test]
fn a_rule_for_another_user_or_request_does_not_help() {
    let scene = Scene::new(
        "polkit.addRule(function(action, subject) {
            if (subject.user == 'games') return polkit.Result.YES;
            if (action.lookup('request') == 'Freeze' && action.lookup('app') == 'default')
                return polkit.Result.YES;
            if (action.lookup('request') == 'Thaw' && action.lookup('app') == 'other')
                return polkit.Result.YES;
        });",
    );
    scene.ctl(&["freeze", "user", "4000000"]).served();
    let refused = scene.ctl(&["thaw", "user", "4000000"]);
    refused.fails(4, "has no agent to ask one with");
    assert_eq!(
        scene.on_record(),
        [
            "Freeze by polkit/org.mlskeyd.policies",
            "Thaw refused by polkit/org.mlskeyd.policies",
        ]
    );
}

/// What the company forbids polkit does not permit.
#[test]
fn the_policies_decide_after_polkit() {
    let policies = tempfile::tempdir().unwrap();
    let file = policies.path().join("90-company.cedar");
    std::fs::write(
        file,
        "@id(\"root-alone\") @reason(\"root alone says who somebody is\")\n\
         forbid(principal, action == Action::\"CreateIdentityFor\", resource)\n\
         when { principal.user.uid != 0 };",
    )
    .unwrap();
    let extra = format!("[policy]\nlocal_dir = {:?}\n", policies.path());
    let scene = Scene::with(YES, &extra);
    let create = ["identities", "create", "1000/default", "alice"];
    scene
        .ctl(&create)
        .fails(4, "root alone says who somebody is");
    assert_eq!(
        scene.on_record(),
        ["CreateIdentityFor refused by root-alone"]
    );
}

/// The file is one that polkit reads, with what each action is by default.
#[test]
fn polkit_lists_the_actions() {
    let scene = Scene::new("");
    type Listed = (
        String,
        String,
        String,
        String,
        String,
        String,
        u32,
        u32,
        u32,
        HashMap<String, String>,
    );
    let listed: Vec<Listed> = Runtime::new().unwrap().block_on(async {
        let address = scene.bus.address();
        let bus = zbus::connection::Builder::address(address.as_str());
        let bus = bus.build().await.unwrap();
        let name = "org.freedesktop.PolicyKit1";
        let path = "/org/freedesktop/PolicyKit1/Authority";
        let authority = "org.freedesktop.PolicyKit1.Authority";
        let listed = bus.call_method(Some(name), path, Some(authority), "EnumerateActions", &"");
        let (listed,) = listed.await.unwrap().body().deserialize().unwrap();
        listed
    });
    // As polkit numbers them: 2 is auth_admin, 4 auth_admin_keep, 5 yes.
    let expected = [
        ("destroy-keys", [2, 2, 2]),
        ("manage-identities", [2, 2, 2]),
        ("policies", [2, 2, 2]),
        ("read-records", [4, 4, 4]),
        ("unlock", [4, 4, 4]),
        ("view", [4, 4, 5]),
    ];
    let mut found: Vec<_> = listed
        .iter()
        .filter(|it| it.0.starts_with("org.mlskeyd."))
        .collect();
    found.sort_by_key(|it| &it.0);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (action, (name, defaults)) in found.into_iter().zip(expected) {
        assert_eq!(action.0, format!("org.mlskeyd.{name}"));
        assert_eq!([action.6, action.7, action.8], defaults, "{name}");
        assert!(action.2.starts_with("Authentication is required"), "{name}");
        let owner = action.9.get("org.freedesktop.policykit.owner");
        assert_eq!(owner.map(String::as_str), Some("unix-user:mlskeyd"));
    }
}

/// What is asked on a bus itself is asked polkit for in the same way.
#[test]
fn methods_on_the_bus_take_polkit_too() {
    let scene = Scene::new(YES);
    let mut command = scene.as_user(crate::scene::NOBODY, "/usr/bin/dbus-send".as_ref());
    command.args(["--print-reply", "--dest=org.mlskeyd.Custody1"]);
    command.arg(format!("--bus={}", scene.bus.address()));
    command.args([
        "/org/mlskeyd/Custody1",
        "org.mlskeyd.Custody1.ReloadPolicies",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        scene.on_record(),
        ["Administer by polkit/org.mlskeyd.policies"]
    );
}

/// Waits in the rule until the test lets it go on.
const THINKS: &str = "polkit.addRule(function(action, subject) {
    if (subject.user != 'nobody') return null;
    polkit.spawn(['/bin/sh', '-c', 'touch SCRATCH/asked; while ! [ -e SCRATCH/go ]; do sleep 0.01; done']);
    return polkit.Result.YES;
});";

#[test]
fn who_becomes_another_program_while_polkit_thinks_is_refused() {
    does_something_else_meanwhile("exec");
}

#[test]
fn who_ends_while_polkit_thinks_is_refused() {
    does_something_else_meanwhile("end");
}

fn does_something_else_meanwhile(act: &str) {
    let mut scene = Scene::without_polkit("");
    let rule = THINKS.replace("SCRATCH", scene.scratch().to_str().unwrap());
    scene.start_polkit(&rule);
    let mut actor = scene.actor(act);
    await_line(&mut actor, "rests");
    std::fs::write(scene.scratch().join("go"), "").unwrap();
    while scene.on_record().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(
        scene.on_record(),
        ["Freeze refused by polkit/org.mlskeyd.policies"]
    );
    let frozen = scene.daemon.ctl_for_people(&["frozen"]).output().unwrap();
    assert_eq!(frozen.stdout, b"nothing is frozen\n");
}

/// For what a variant of a subject is.
pub(crate) type Values = HashMap<String, OwnedVariant>;
