//! `mlskeyctl` as an administrator and a script meet it: every command against
//! a running daemon, in tables and in JSON, and the exit codes of its `--help`.
//! (The one for strangers is in `attacks/callers.rs`, where there are some.)

mod audit;
mod doctor;
mod pages;

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use mlskeyd::audit::{AuditOutcome, Entries, FILE_NAME, Record};
use mlskeyd_protocol::client::{Call, Client};
use mlskeyd_protocol::v1::{
    Bytes, CreateIdentity, Credential, GenerateHpke, Kem, Placement, SignatureScheme,
};
use mlskeyd_provider::testing::TestDaemon;
use mlskeyd_tests::member::client;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Chat, Daemon, Hub, Options, SshKey, Stage, without_rates};
use rustix::process::{Pid, Signal, kill_process};

const WRONG_USAGE: i32 = 2;
const NOT_THERE: i32 = 3;

/// So long is waited for what the daemon does by itself.
const PATIENCE: Duration = Duration::from_secs(30);

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

/// All that is on record.
fn records(daemon: &Daemon) -> Vec<Record> {
    let entries = Entries::open(&daemon.state().join(FILE_NAME)).unwrap();
    entries.map(|entry| entry.unwrap().record).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_person_reads_tables() {
    let scene = Scene::new();
    for (arguments, words) in [
        (
            &["status"][..],
            &[
                "up for",
                "DEVICE",
                "software *",
                "ready",
                "software: Ed25519, ECDSA P-256, ECDSA P-384, DHKEM P-256, DHKEM P-384",
            ][..],
        ),
        (
            &["devices"],
            &[
                "software *  software  ready",
                "DHKEM X25519  software  encrypted under the store key",
                "0x0002  software",
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
    assert_eq!(devices[0]["offers"].as_array().unwrap().len(), 6);
    let how = "encrypted under the store key";
    assert_eq!(devices[0]["offers"][0]["how"], how);
    assert_eq!(devices[0]["hpke_tier"], serde_json::Value::Null);
    for none in ["facts", "counts"] {
        assert_eq!(devices[0][none], serde_json::json!({}));
    }
    assert_eq!(devices[0]["suites"][0]["suite"], "0x0001");
    assert_eq!(devices[0]["suites"][0]["tier"], "software");
    let identities = json(&["identities"]);
    assert_eq!(identities[0]["name"], "alice");
    assert_eq!(identities[0]["tier"], "software");
    assert_eq!(json(&["status"])["keys"], 2);
    assert_eq!(json(&["storage", "list"])[0]["attached"], true);
    assert_eq!(json(&["keys", "sweep"])["destroyed"], 0);
}

/// As `identities` shows it.
fn owner() -> String {
    format!("{}/default", rustix::process::geteuid().as_raw())
}

#[test]
fn a_new_signature_key_and_the_end_of_the_old_one_are_shown() {
    let scene = Scene::new();
    let json = |arguments: &[&str]| scene.daemon.ctl(arguments).unwrap();
    let before = json(&["identities"])[0]["key"].clone();
    let text = scene.text(&["identities", "rotate", &owner(), "alice"]);
    for word in ["alice", "software", "retiring until 2", "UTC"] {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
    let text = scene.text(&["identities"]);
    for word in ["current", "retiring until 2"] {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
    assert!(scene.text(&["keys"]).contains("retiring until 2"));

    let retiring = json(&["identities"])[0]["retiring"][0].clone();
    assert_eq!(retiring["key"], before);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let left = retiring["ends"].as_u64().unwrap() - now.unwrap().as_secs();
    let month = 30 * 24 * 3600;
    assert!((month - 60..=month).contains(&left), "{left}");

    json(&["identities", "rotate", &owner(), "alice", "--grace", "0s"]);
    json(&["keys", "sweep"]);
    let left = json(&["identities"])[0]["retiring"].clone();
    assert_eq!(left.as_array().unwrap().len(), 1);
    assert_eq!(left[0]["key"], before);
}

/// Runs a command with this standard input.
fn run_with_input(mut command: Command, input: &[u8]) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_pin_comes_by_standard_input_and_an_unlocking_says_how_it_went() {
    let scene = Scene::new();
    let unlock = |device: &str, input: &[u8]| {
        let output = run_with_input(scene.command(&["unlock", device]), input);
        (output.status.code(), stderr(&output))
    };
    let (code, text) = unlock("software", b"123456\n");
    assert_eq!(code, Some(1));
    assert!(text.contains("cannot be unlocked"), "{text}");
    let (code, text) = unlock("nowhere", b"123456\n");
    assert_eq!(code, Some(1));
    assert!(text.contains("configured are: software"), "{text}");
    for none in [&b""[..], b"\n", &[b'7'; 257]] {
        assert_eq!(unlock("software", none).0, Some(WRONG_USAGE));
    }
    let given = scene.command(&["unlock", "software", "123456"]).output();
    assert_eq!(given.unwrap().status.code(), Some(WRONG_USAGE));
}

#[test]
fn what_cannot_be_adopted_or_rotated_is_told() {
    let scene = Scene::new();
    for (arguments, word) in [
        (
            &["identities", "rotate", "4711/default", "alice"][..],
            "4711/default has no identity",
        ),
        (
            &[
                "identities",
                "adopt",
                "4711/default",
                "carol",
                "--device",
                "software",
                "--label",
                "mine",
            ],
            "cannot adopt keys",
        ),
    ] {
        let output = scene.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(text.contains(word), "{text}");
    }
    let wrong = [
        "identities",
        "rotate",
        "0/default",
        "alice",
        "--grace",
        "soon",
    ];
    let wrong = scene.command(&wrong).output().unwrap();
    assert_eq!(wrong.status.code(), Some(WRONG_USAGE));
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

/// A daemon with so many keys that are due, of which its own timer knows nothing;
/// and who made them, and lives on without a claim.
fn with_due_keys(count: usize) -> (TestDaemon, Client) {
    let daemon = TestDaemon::start_with(|config| {
        let directory = config.socket.parent().unwrap();
        config.policy.dirs.local = without_rates(directory);
    });
    let daemon = daemon.unwrap();
    let client = client(daemon.socket());
    for _ in 0..count {
        let request = GenerateHpke {
            kem: Kem::DhKemX25519,
            placement: Placement {
                device: None,
                tier: None,
            },
        };
        client.generate_hpke(request, &Call::default()).unwrap();
    }
    daemon.pass(Duration::from_secs(8 * 24 * 3600));
    (daemon, client)
}

fn sweep(daemon: &TestDaemon) -> Command {
    let mut command = Command::new(programs!().ctl);
    command.arg("--socket").arg(daemon.socket());
    command.args(["keys", "sweep"]);
    command
}

fn living(daemon: &TestDaemon) -> usize {
    let mut command = Command::new(programs!().ctl);
    command.arg("--socket").arg(daemon.socket());
    let output = command.args(["keys", "--json"]).output().unwrap();
    let keys: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    keys.as_array().unwrap().len()
}

#[test]
fn a_sweep_says_in_the_end_what_all_its_portions_did() {
    let (daemon, _client) = with_due_keys(200);
    let output = sweep(&daemon).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(text.starts_with("200 keys destroyed; 0 wait"), "{text}");
    // Nobody looks at how far it has come.
    assert_eq!(stderr(&output), "");
    assert_eq!(living(&daemon), 0);
}

#[test]
fn a_sweep_that_a_person_ends_leaves_the_rest_for_the_next_one() {
    let (daemon, _client) = with_due_keys(400);
    let mut begun = sweep(&daemon)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Somewhere in the middle.
    while living(&daemon) == 400 {
        std::thread::yield_now();
    }
    // It may be done by now.
    let _ = kill_process(Pid::from_child(&begun), Signal::INT);
    begun.wait().unwrap();
    let output = sweep(&daemon).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(living(&daemon), 0);
}

#[test]
fn who_freezes_and_thaws_reads_what_is_frozen() {
    let scene = Scene::new();
    assert_eq!(scene.text(&["frozen"]), "nothing is frozen\n");
    let frozen = scene.text(&["freeze", "device", "software", "--reason", "it was lost"]);
    assert_eq!(frozen, "device \"software\": it was lost\n");
    assert_eq!(scene.text(&["frozen"]), frozen);
    let again = scene.command(&["thaw", "all"]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(stderr(&again).contains("everything is not frozen"));
    let thawed = scene.text(&["thaw", "device", "software"]);
    assert_eq!(thawed, "nothing is frozen\n");
    let unknown = scene.command(&["guard", "reset", "1/x", "alice", "00"]);
    let unknown = { unknown }.output().unwrap();
    assert!(
        stderr(&unknown).contains("the guard knows nothing"),
        "{unknown:?}"
    );
}

#[test]
fn who_writes_policies_reads_what_is_wrong_and_what_they_answer() {
    let stage = Stage::new(programs!());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&stage.programs().ctl);
        let output = command.args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    };
    let (code, text) = run(&["policy", "test"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.ends_with(" passed, 0 failed\n"), "{text}");

    let dir = stage.path("policies");
    std::fs::create_dir(&dir).unwrap();
    let path = dir.display().to_string();
    let good = "@id(\"company/quiet\") @reason(\"x\")\nforbid(principal in Group::\"no such group\", action == Action::\"SignCommit\", resource);";
    std::fs::write(dir.join("90.cedar"), good).unwrap();
    let (code, text) = run(&["policy", "check", &path]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("90.cedar:1: lint: there is no Group \"no such group\""),
        "{text}"
    );
    let case = |expect: &str| {
        format!(
            "[[case]]\nname = \"one of them commits\"\naction = \"SignCommit\"\ncaller = {{ groups = [\"no such group\"] }}\nexpect = \"{expect}\"\n"
        )
    };
    std::fs::write(dir.join("cases.toml"), case("deny")).unwrap();
    assert_eq!(
        run(&["policy", "test", &path]),
        (0, "1 passed, 0 failed\n".to_owned())
    );
    std::fs::write(dir.join("cases.toml"), case("permit")).unwrap();
    let (code, text) = run(&["policy", "test", &path]);
    assert_eq!(code, 1);
    assert!(text.contains("FAILED  one of them commits") && text.ends_with("0 passed, 1 failed\n"));

    let bad = good.replace("SignCommit", "SignComit");
    std::fs::write(dir.join("90.cedar"), bad).unwrap();
    let (code, text) = run(&["--json", "policy", "check", &path]);
    assert_eq!(code, 1);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["good"], false);
    assert_eq!(json["problems"][0]["level"], "error");
    assert_eq!(json["problems"][0]["file"], "90.cedar");
}

#[test]
fn who_rolls_policies_out_writes_a_manifest_and_checks_its_signature() {
    let stage = Stage::new(programs!());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&stage.programs().ctl);
        let output = command.args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        (output.status.code().unwrap(), text, stderr(&output))
    };
    let dir = stage.path("policies");
    std::fs::create_dir(&dir).unwrap();
    let path = dir.display().to_string();
    let policy = "@id(\"company/none\") @reason(\"none today\") forbid(principal, action == Action::\"Look\", resource);";
    std::fs::write(dir.join("90.cedar"), policy).unwrap();
    let key = SshKey::new(&stage.path(""), "security", "ed25519");
    let public = stage.path("security.pub").display().to_string();

    let (code, text, _) = run(&["policy", "manifest", &path, "--serial", "7"]);
    assert_eq!(code, 0);
    let sign = format!("ssh-keygen -Y sign -f KEY -n policies@mlskeyd {path}/manifest.toml");
    assert!(
        text.contains("lists 1 files, serial 7") && text.contains(&sign),
        "{text}"
    );
    let check = |arguments: &[&str]| run(&[&["policy", "check", &path], arguments].concat());
    let (code, text, _) = check(&[]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("serial 7; who signed it is not looked at"),
        "{text}"
    );
    let (code, text, _) = check(&["--signer", &public]);
    assert_eq!(code, 1);
    assert!(
        text.contains("manifest.toml.sig: it is not there; sign"),
        "{text}"
    );
    key.sign("policies@mlskeyd", &dir.join("manifest.toml"));
    let (code, text, _) = check(&["--signer", &public]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("serial 7, signed by security@bank (SHA256:"),
        "{text}"
    );
    // As the daemon would.
    let config = stage.path("mlskeyd.toml");
    std::fs::write(&config, format!("[policy]\nsigners = [{:?}]", key.public())).unwrap();
    let config = config.display().to_string();
    std::fs::write(dir.join("90.cedar"), "").unwrap();
    let (code, text, _) = check(&["--json", "--config", &config]);
    assert_eq!(code, 1);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&json["good"], &json["manifest"]["serial"]),
        (&false.into(), &().into())
    );
    let why = json["manifest"]["why"].as_str().unwrap();
    assert!(
        why.contains("90.cedar: it is not as the manifest has it"),
        "{why}"
    );

    // The signature of the one before is none of the next one.
    let expires = ["--expires", "2020-01-01"];
    let next = |serial: &str| {
        run(&[
            &["policy", "manifest", &path, "--serial", serial],
            &expires[..],
        ]
        .concat())
    };
    let (code, _, error) = next("6");
    assert_eq!(code, 1);
    assert!(error.contains("it has serial 7 already"), "{error}");
    assert_eq!(next("8").0, 0);
    assert!(!dir.join("manifest.toml.sig").exists());
    key.sign("policies@mlskeyd", &dir.join("manifest.toml"));
    let (code, text, _) = check(&["--signer", &public]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("WARNING: it EXPIRED at 2020-01-01T00:00:00Z"),
        "{text}"
    );
    for (arguments, status) in [
        (&["policy", "manifest", &path][..], WRONG_USAGE),
        (&["policy", "manifest", &path, "--serial", "x"], WRONG_USAGE),
        (
            &[
                "policy",
                "manifest",
                &path,
                "--serial",
                "9",
                "--expires",
                "soon",
            ],
            WRONG_USAGE,
        ),
        (&["policy", "manifest", "/nonexistent", "--serial", "9"], 1),
        (&["policy", "check", &path, "--signer", "/nonexistent"], 1),
        (&["policy", "check", &path, "--config", "/nonexistent"], 1),
    ] {
        assert_eq!(run(arguments).0, status, "{arguments:?}");
    }

    // And what a daemon says of it.
    let options = Options {
        extra: format!(
            "[policy]\nlocal_dir = {path:?}\nsigners = [{:?}]",
            key.public()
        ),
        ..Options::default()
    };
    let daemon = Daemon::start(&stage, &options);
    let status = daemon.ctl(&["status"]).unwrap();
    assert_eq!(status["policies"]["signed"]["serial"], 8);
    let told = daemon
        .ctl_for_people(&["policy", "reload"])
        .output()
        .unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(
        told.contains("policies are in force, serial 8, signed by security@bank"),
        "{told}"
    );
    assert!(
        told.contains("WARNING: the policies of serial 8 EXPIRED"),
        "{told}"
    );
    std::fs::remove_file(dir.join("manifest.toml.sig")).unwrap();
    let refused = daemon.ctl(&["policy", "reload"]).unwrap_err();
    assert!(
        refused.contains("manifest.toml.sig: it is not there"),
        "{refused}"
    );
    let told = daemon.ctl_for_people(&["status"]).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(
        told.contains("WARNING: what the directories have is not in force"),
        "{told}"
    );
}

#[test]
fn policies_are_read_again_on_a_signal_and_when_they_change() {
    let stage = Stage::new(programs!());
    let dir = stage.path("policies");
    std::fs::create_dir(&dir).unwrap();
    let options = Options {
        extra: format!("[policy]\nlocal_dir = {:?}", dir.display().to_string()),
        ..Options::default()
    };
    let daemon = Daemon::start(&stage, &options);
    let client = client(&daemon.socket());
    let generate = || {
        let request = GenerateHpke {
            kem: Kem::DhKemX25519,
            placement: Placement::default(),
        };
        client.generate_hpke(request, &Call::default())
    };
    generate().unwrap();
    let policy = "@id(\"company/none\") @reason(\"none today\") forbid(principal, action == Action::\"Look\", resource);";
    std::fs::write(dir.join("90.cedar"), policy).unwrap();
    kill_process(daemon.pid(), Signal::HUP).unwrap();
    // The files' change is seen as well: only the record tells what came of the signal.
    let loaded_by = |what: &str| {
        let loaded = records(&daemon)
            .into_iter()
            .filter(|it| it.action == "PoliciesLoaded");
        let mut outcomes = loaded.map(|it| it.outcome);
        let start = format!("by {what}: ");
        outcomes.any(|it| matches!(it, AuditOutcome::Noted { note } if note.starts_with(&start)))
    };
    let until_loaded_by = |what: &str| {
        let soon = Instant::now() + PATIENCE;
        while !loaded_by(what) {
            assert!(Instant::now() < soon, "no policies were loaded by {what}");
            std::thread::yield_now();
        }
    };
    until_loaded_by("a signal");
    let await_refusal = |why: &str| {
        loop {
            match client.status(&Call::default()) {
                Err(refused) if refused.to_string().contains(why) => return,
                _ => std::thread::yield_now(),
            }
        }
    };
    await_refusal("none today");
    generate().unwrap();
    let explained = daemon.ctl(&["policy", "explain"]).unwrap();
    let explained = &explained[0];
    assert_eq!(explained["refused"]["policy"], "company/none");
    assert_eq!(explained["policies"], serde_json::json!(["company/none"]));
    assert_eq!(explained["permitted_by"], "attend");
    assert_eq!(explained["facts"]["caller"]["app"], "default");
    // The same by its number on record, and what was permitted as well.
    let audit = daemon.state().join(FILE_NAME);
    let entries = Entries::open(&audit).unwrap();
    let mut looks = 0;
    for entry in entries.map(Result::unwrap) {
        let number = entry.sequence.to_string();
        let explained = daemon.ctl(&["policy", "explain", "--record", &number]);
        match entry.record.action.as_ref() {
            "GenerateHpke" => {
                let explained = &explained.unwrap()[0];
                assert_eq!(explained["permitted_by"], "own-hpke-keys");
                assert!(explained["refused"].is_null());
            }
            "Look" => {
                looks += 1;
                assert_eq!(explained.unwrap()[0]["policies"][0], "company/none");
            }
            "DaemonStarted" => assert!(explained.unwrap_err().contains("no record")),
            _ => {}
        }
    }
    assert!(looks > 0);

    std::fs::write(dir.join("91.new"), policy.replace("none", "nobody")).unwrap();
    std::fs::rename(dir.join("91.new"), dir.join("90.cedar")).unwrap();
    await_refusal("nobody today");
    until_loaded_by("a change of their files");
    std::fs::remove_file(dir.join("90.cedar")).unwrap();
    while client.status(&Call::default()).is_err() {
        std::thread::yield_now();
    }
}

#[test]
fn what_looks_wrong_with_policies_is_told_when_they_are_loaded() {
    let stage = Stage::new(programs!());
    let dir = stage.path("policies");
    std::fs::create_dir(&dir).unwrap();
    let policies = r#"
        @id("company/a") @reason("x") forbid(principal in App::"wier", action == Action::"Look", resource);
        @id("company/b") @reason("x") forbid(principal, action in Action::"Open", resource in Device::"tokn");
        @id("company/c") @reason("x") forbid(principal, action in Action::"Open", resource in Identity::"alice");
        @id("company/d") @reason("x") forbid(principal in App::"default", action in Action::"Open", resource in Device::"software")
        when { context.rates.opens_hour > 1000000 };"#;
    std::fs::write(dir.join("90.cedar"), policies).unwrap();
    let options = Options {
        extra: format!("[policy]\nlocal_dir = {:?}", dir.display().to_string()),
        ..Options::default()
    };
    let daemon = Daemon::start(&stage, &options);
    let lint = |line: usize, what: &str| {
        format!("90.cedar:{line}: lint: there is no {what} on this machine")
    };
    let (app, device, identity) = (
        lint(2, "App \"wier\""),
        lint(3, "Device \"tokn\""),
        lint(4, "Identity \"alice\""),
    );
    let log = daemon.log();
    // Quotes are written with a backslash there.
    assert!(
        log.contains("90.cedar:3: lint: there is no Device"),
        "{log}"
    );
    let loaded = daemon.ctl(&["policy", "reload"]).unwrap();
    assert_eq!(
        loaded["warnings"],
        serde_json::json!([app, device, identity])
    );
    let status = daemon.ctl(&["status"]).unwrap();
    assert_eq!(
        status["policies"]["warnings"],
        serde_json::json!(["the policies have 3 lints: `mlskeyctl policy reload` says what"])
    );
    let request = CreateIdentity {
        name: "alice".to_owned(),
        credential: Credential::Basic(Bytes::from(&b"alice"[..])),
        scheme: SignatureScheme::Ed25519,
        placement: Placement::default(),
    };
    let client = client(&daemon.socket());
    client.create_identity(request, &Call::default()).unwrap();
    let loaded = daemon.ctl(&["policy", "reload"]).unwrap();
    assert_eq!(loaded["warnings"], serde_json::json!([app, device]));
    let notes: Vec<String> = Entries::open(&daemon.state().join("audit.log"))
        .unwrap()
        .map(|entry| entry.unwrap().record)
        .filter(|record| record.action == "PoliciesLoaded")
        .map(|record| format!("{:?}", record.outcome))
        .collect();
    assert!(
        notes[0].contains("; the policies have 3 lints"),
        "{notes:?}"
    );
    assert!(
        notes[1].contains("; the policies have 2 lints"),
        "{notes:?}"
    );

    // Without the daemon its configuration says which devices there are.
    let config = stage.path("mlskeyd.toml");
    std::fs::write(&config, "[[devices]]\nname = \"soft\"\nkind = \"software\"").unwrap();
    let (config, path) = (config.display().to_string(), dir.display().to_string());
    let mut check = daemon.ctl_command(&["policy", "check", &path, "--config", &config]);
    let checked = check.output().unwrap();
    let checked: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    let messages = checked["problems"].as_array().unwrap().iter();
    let messages: Vec<&str> = messages.map(|it| it["message"].as_str().unwrap()).collect();
    assert_eq!(
        messages,
        [
            "there is no App \"wier\" on this machine",
            "there is no Device \"tokn\" on this machine",
            "there is no Device \"software\" on this machine",
        ]
    );
}
