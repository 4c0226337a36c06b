//! `mlskeyctl` as an administrator and a script meet it: every command against
//! a running daemon, in tables and in JSON, and the exit codes of its `--help`.
//! (The one for strangers is in `attacks/callers.rs`, where there are some.)

use std::process::{Command, Output};

use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Chat, Daemon, Hub, Options, Stage};

const WRONG_USAGE: i32 = 2;
const NOT_THERE: i32 = 3;

/// A daemon with the keys of one messenger.
struct Scene {
    _chat: Chat,
    _hub: Hub,
    daemon: Daemon,
    stage: Stage,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new(programs!());
        let hub = Hub::start(&stage);
        let daemon = Daemon::start(&stage, &Options::default());
        let mut chat = Chat::start(&stage, &daemon, &hub, "alice", 1);
        chat.ok("create g");
        Self {
            _chat: chat,
            _hub: hub,
            daemon,
            stage,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.stage.programs().ctl);
        command.arg("--socket").arg(self.daemon.socket());
        command.args(arguments);
        command
    }

    /// What a person reads.
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_person_reads_tables() {
    let scene = Scene::new();
    for (arguments, words) in [
        (&["status"][..], &["up for", "DEVICE", "ready"][..]),
        (
            &["devices"],
            &[
                "software *",
                "DHKEM X25519 (software)",
                "0x0002",
                "has no hardware",
            ],
        ),
        (&["identities"], &["alice", "Ed25519"]),
        (&["keys"], &["signature", "leaf", "alice", "software"]),
        (&["keys", "sweep"], &["destroyed"]),
        (&["storage", "list"], &["alice"]),
    ] {
        let text = scene.text(arguments);
        for word in words {
            assert!(text.contains(word), "{arguments:?}: no {word:?} in\n{text}");
        }
    }
}

#[test]
fn a_program_reads_json() {
    let scene = Scene::new();
    let json = |arguments: &[&str]| scene.daemon.ctl(arguments).unwrap();
    let devices = json(&["devices"]);
    assert_eq!(devices[0]["name"], "software");
    assert_eq!(devices[0]["state"], "ready");
    assert_eq!(devices[0]["offers"].as_array().unwrap().len(), 4);
    assert_eq!(devices[0]["suites"][0]["suite"], "0x0001");
    assert_eq!(devices[0]["suites"][0]["tier"], "software");
    let identities = json(&["identities"]);
    assert_eq!(identities[0]["name"], "alice");
    assert_eq!(identities[0]["tier"], "software");
    assert_eq!(json(&["status"])["keys"], 2);
    assert_eq!(json(&["storage", "list"])[0]["attached"], true);
    assert_eq!(json(&["keys", "sweep"])["destroyed"], 0);
}

#[test]
fn exit_codes_are_those_of_the_help() {
    let scene = Scene::new();
    let run = |arguments: &[&str]| scene.command(arguments).output().unwrap();
    assert_eq!(run(&["nonsense"]).status.code(), Some(WRONG_USAGE));

    let unknown = run(&["storage", "forget", "--yes", "0/default", "nope"]);
    assert_eq!(unknown.status.code(), Some(1));
    let text = stderr(&unknown);
    assert!(text.contains("0/default has no storage"), "{text}");
    assert!(text.contains("mlskeyctl storage list"), "{text}");

    let nowhere = Command::new(&scene.stage.programs().ctl)
        .args(["--socket", "/nonexistent/socket", "status"])
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(NOT_THERE));
}
