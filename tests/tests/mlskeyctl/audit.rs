//! `mlskeyctl audit`: the log of a daemon that runs, and copies of it that were changed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use mlskeyd::audit::FILE_NAME;
use serde_json::Value;

use super::{Scene, WRONG_USAGE, owner, stderr};

const BROKEN: i32 = 8;

impl Scene {
    fn log(&self) -> String {
        self.daemon.state().join(FILE_NAME).display().to_string()
    }

    fn config(&self) -> String {
        let path = self.stage.path("daemon").join("mlskeyd.toml");
        path.display().to_string()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        self.daemon.ctl(arguments).unwrap()
    }
}

#[test]
fn a_log_holds_or_it_is_said_where_it_is_broken() {
    let scene = Scene::new();
    let (log, config) = (scene.log(), scene.config());
    let text = scene.text(&["audit", "verify", &log]);
    assert!(text.contains("the chain holds, "), "{text}");
    let by_config = scene.json(&["audit", "verify", "--config", &config]);
    assert_eq!(by_config["holds"], true);
    assert_eq!(by_config["hash"].as_str().unwrap().len(), 64);
    let records = by_config["records"].as_u64().unwrap();
    assert_eq!(scene.json(&["status"])["audit_sequence"], records);

    // Behind the first record, whose length is at byte 32.
    let mut bytes = fs::read(&log).unwrap();
    let first = usize::try_from(u32::from_be_bytes(bytes[32..36].try_into().unwrap())).unwrap();
    let second = 32 + 8 + first + 36;
    bytes[second + 20] ^= 1;
    let changed = scene.stage.path("changed.log").display().to_string();
    fs::write(&changed, &bytes).unwrap();
    let output = scene
        .command(&["audit", "verify", &changed])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(BROKEN), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let where_ = format!("BROKEN at byte {second}, after record 1");
    assert!(text.contains(&where_), "{text}");
    let output = scene
        .command(&["audit", "verify", &changed, "--json"])
        .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(BROKEN));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["holds"], false);
    assert_eq!(
        (&json["broken"]["offset"], &json["broken"]["after"]),
        (&second.into(), &1.into())
    );
    // What is broken is not shown, either.
    let output = scene
        .command(&["audit", "show", &changed])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("the chain is broken"),
        "{output:?}"
    );

    // An entry that is cut off is no fault: a power cut does that.
    bytes[second + 20] ^= 1;
    bytes.truncate(bytes.len() - 5);
    fs::write(&changed, &bytes).unwrap();
    let torn = scene.json(&["audit", "verify", &changed]);
    assert_eq!(
        (&torn["holds"], &torn["records"]),
        (&true.into(), &(records - 1).into())
    );
    assert!(torn["torn"].as_u64().unwrap() > 0);

    fs::write(&changed, "no log").unwrap();
    for (arguments, code) in [
        (&["audit", "verify", &changed][..], 1),
        (&["audit", "verify", "/nonexistent"], 1),
        (&["audit", "verify", &log, "--config", &config], WRONG_USAGE),
        (&["audit", "show", &log, "--since", "soon"], WRONG_USAGE),
        (&["audit", "show", &log, "--last", "10001"], WRONG_USAGE),
    ] {
        let output = scene.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn records_are_found_by_what_they_are_about() {
    let scene = Scene::new();
    let log = scene.log();
    let refused = scene
        .command(&["guard", "reset", "1/x", "alice", "00"])
        .output();
    assert_eq!(refused.unwrap().status.code(), Some(1));
    let shown = |arguments: &[&str]| {
        let json = scene.json(&[&["audit", "show", &log], arguments].concat());
        json.as_array().unwrap().clone()
    };
    let all = shown(&["--last", "10000"]);
    assert_eq!(all[0]["action"], "DaemonStarted");
    assert_eq!(
        (&all[0]["record"], &all[0]["outcome"]),
        (&1.into(), &"noted".into())
    );
    assert!(all[0]["caller"].is_null());
    let numbers: Vec<u64> = all
        .iter()
        .map(|it| it["record"].as_u64().unwrap())
        .collect();
    assert!(numbers.is_sorted());

    assert_eq!(shown(&["--last", "2"]), all[all.len() - 2..]);
    assert_eq!(shown(&["--last", "0"]).len(), 0);
    let created = shown(&["--action", "CreateIdentity"]);
    assert_eq!(created.len(), 1);
    assert_eq!(created[0]["identity"], "alice");
    assert_eq!(created[0]["outcome"], "served");
    assert_eq!(created[0]["caller"]["owner"]["app"], "default");
    let more = shown(&["--action", "CreateIdentity", "--action", "DaemonStarted"]);
    assert_eq!(more.len(), 2);
    let mine = shown(&["--owner", &owner()]);
    assert!(!mine.is_empty() && mine.len() < all.len());
    assert_eq!(shown(&["--owner", "4711/nobody"]).len(), 0);
    assert_eq!(shown(&["--since", "1h"]).len(), all.len());
    assert_eq!(shown(&["--since", "2100-01-01"]).len(), 0);
    for record in shown(&["--denied"]) {
        assert_eq!(record["outcome"], "denied");
    }

    let text = scene.text(&["audit", "show", &log, "--last", "1"]);
    assert!(text.starts_with("RECORD  TIME"), "{text}");
    assert!(text.contains(" more before these: see --last"), "{text}");
    let text = scene.text(&["audit", "show", &log, "--action", "CreateIdentity"]);
    assert!(
        text.contains("permitted by") && text.contains("alice"),
        "{text}"
    );
    let none = scene.text(&["audit", "show", &log, "--action", "Nothing"]);
    assert_eq!(none, "no such records\n");
}

#[test]
fn what_is_refused_is_found() {
    let stage = mlskeyd_tests::rig::Stage::new(mlskeyd_tests::programs!());
    let dir = stage.path("policies");
    fs::create_dir(&dir).unwrap();
    let policy = "@id(\"company/none\") @reason(\"none today\") forbid(principal, action == Action::\"Look\", resource);";
    fs::write(dir.join("90.cedar"), policy).unwrap();
    let options = mlskeyd_tests::rig::Options {
        extra: format!("[policy]\nlocal_dir = {:?}", dir.display().to_string()),
        ..Default::default()
    };
    let daemon = mlskeyd_tests::rig::Daemon::start(&stage, &options);
    let client = mlskeyd_tests::member::client(&daemon.socket());
    client.status(&Default::default()).unwrap_err();
    let log = daemon.state().join(FILE_NAME).display().to_string();
    let denied = daemon.ctl(&["audit", "show", &log, "--denied"]).unwrap();
    assert_eq!(denied[0]["action"], "Look");
    assert_eq!(denied[0]["policy"], "company/none");
    assert_eq!(denied[0]["reason"], "none today");
    assert_eq!(denied.as_array().unwrap().len(), 1);
}

/// `audit follow`, and what it has printed.
struct Follower {
    child: Child,
    lines: Option<BufReader<ChildStdout>>,
}

impl Follower {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = child.stdout.take().map(BufReader::new);
        Self { child, lines }
    }

    /// Waits for a line; the test's own time-out ends that.
    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.as_mut().unwrap().read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}"))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn who_follows_the_log_sees_records_as_they_are_written() {
    let scene = Scene::new();
    let log = scene.log();
    let follow = [
        "audit",
        "follow",
        &log,
        "--json",
        "--action",
        "Freeze",
        "--action",
        "DaemonStarted",
    ];
    let mut follower = Follower::start(scene.command(&follow));
    // It watches since before it read the first one.
    assert_eq!(follower.next()["action"], "DaemonStarted");
    scene.text(&["freeze", "device", "software", "--reason", "a"]);
    let frozen = follower.next();
    assert_eq!(frozen["action"], "Freeze");
    scene.text(&["freeze", "app", "x"]);
    let again = follower.next();
    assert!(again["record"].as_u64() > frozen["record"].as_u64());

    // Nobody reads any more: it ends without anything to write.
    drop(follower.lines.take());
    let status = follower.child.wait().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn who_follows_a_log_that_is_replaced_is_told() {
    let scene = Scene::new();
    let copy = scene.stage.path("copy.log");
    fs::copy(scene.log(), &copy).unwrap();
    let path = copy.display().to_string();
    let mut command = scene.command(&["audit", "follow", &path, "--json", "--last", "1"]);
    command.stderr(Stdio::piped());
    let mut follower = Follower::start(command);
    follower.next();
    // One that is as long by itself, and shorter.
    let file = fs::File::options().write(true).open(&copy).unwrap();
    file.set_len(32).unwrap();
    assert_eq!(follower.child.wait().unwrap().code(), Some(1));
    let mut told = String::new();
    let errors = follower.child.stderr.take().unwrap();
    BufReader::new(errors).read_line(&mut told).unwrap();
    assert!(
        told.contains("copy.log: another log is in its place"),
        "{told}"
    );
}
