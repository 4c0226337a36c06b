//! What a daemon does with a state directory that is in use, was written by a
//! newer daemon, or whose store key is lost.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Chat, Daemon, Hub, Options, Stage};
use rusqlite::Connection;
use serde_json::Value;

/// The state of each key, by its id.
fn keys(daemon: &Daemon) -> BTreeMap<String, String> {
    let keys = daemon.ctl(&["keys"]).unwrap();
    let text = |key: &Value, field| key[field].as_str().unwrap().to_owned();
    let keys = keys.as_array().unwrap().iter();
    keys.map(|key| (text(key, "id"), text(key, "state")))
        .collect()
}

fn read_only(daemon: &Daemon) -> Option<String> {
    let status = daemon.ctl(&["status"]).unwrap();
    status["read_only"].as_str().map(str::to_owned)
}

/// A daemon with the keys of two messengers in one group.
struct InUse {
    daemon: Daemon,
    _hub: Hub,
    alice: Chat,
    bob: Chat,
    stage: Stage,
}

impl InUse {
    fn new() -> Self {
        let stage = Stage::new(programs!());
        let daemon = Daemon::start(&stage, &Options::default());
        let hub = Hub::start(&stage);
        let mut alice = Chat::start(&stage, &daemon, &hub, "alice", 1);
        let mut bob = Chat::start(&stage, &daemon, &hub, "bob", 2);
        // A KeyPackage in another suite than the group's stays unused.
        bob.ok("keypackage");
        bob.quit();
        bob = Chat::start(&stage, &daemon, &hub, "robert", 1);
        bob.ok("keypackage");
        alice.ok("create team");
        alice.ok("add team robert");
        bob.ok("receive");
        Self {
            daemon,
            _hub: hub,
            alice,
            bob,
            stage,
        }
    }

    /// Everything works as if nothing had happened.
    fn goes_on(&mut self) {
        self.bob.ok("update team");
        self.alice.ok("receive");
        self.alice.ok("send team All is well.");
        let events = self.bob.ok("receive").events;
        assert!(
            events.iter().any(|event| event.contains("All is well.")),
            "{events:?}"
        );
    }
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let mut used = InUse::new();
    let log = Daemon::try_start(&used.stage, &Options::default()).unwrap_err();
    let pid = used.daemon.pid().as_raw_nonzero();
    assert!(
        log.contains(&format!("another mlskeyd (pid {pid})")),
        "{log}"
    );
    assert!(log.contains("stop it first"), "{log}");
    used.goes_on();
    used.daemon.stop();
}

#[test]
fn newer_state_is_refused_and_left_as_it_is() {
    let mut used = InUse::new();
    let before = keys(&used.daemon);
    used.daemon.stop();
    let database = used.daemon.state().join("registry.db");
    let schema = set_schema(&database, 1_000);
    let bytes = fs::read(&database).unwrap();

    let log = Daemon::try_start(&used.stage, &Options::default()).unwrap_err();
    assert!(log.contains("newer mlskeyd (schema 1000"), "{log}");
    assert!(log.contains("upgrade"), "{log}");
    assert!(
        fs::read(&database).unwrap() == bytes,
        "the database was changed"
    );

    set_schema(&database, schema);
    used.daemon.restart(&Options::default());
    assert_eq!(keys(&used.daemon), before);
    used.goes_on();
}

/// Sets the schema that the database says it has; answers what it said before.
fn set_schema(database: &Path, schema: u32) -> u32 {
    let connection = Connection::open(database).unwrap();
    let before = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    connection
        .pragma_update(None, "user_version", schema)
        .unwrap();
    before
}

#[test]
fn a_lost_store_key_loses_nothing_else() {
    without_its_store_key(|key| fs::remove_file(key).unwrap());
}

#[test]
fn a_wrong_store_key_destroys_nothing() {
    without_its_store_key(|key| {
        fs::write(key, [7; 32]).unwrap();
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    });
}

/// A daemon whose store key was spoilt shows its keys as missing and changes
/// nothing; with the right one everything is there again.
fn without_its_store_key(spoil: impl Fn(&Path)) {
    let mut used = InUse::new();
    let before = keys(&used.daemon);
    assert!(
        before.values().all(|state| state != "missing"),
        "{before:?}"
    );
    used.daemon.stop();
    let key = used.daemon.store_key();
    let saved = fs::read(&key).unwrap();
    spoil(&key);
    let spoilt = fs::read(&key).ok();

    used.daemon.restart(&Options::default());
    assert!(read_only(&used.daemon).is_some_and(|reason| reason.contains("store key")));
    let missing = keys(&used.daemon);
    assert!(missing.keys().eq(before.keys()), "{missing:?}");
    assert!(
        missing.values().all(|state| state == "missing"),
        "{missing:?}"
    );
    let refused = used.alice.command("update team").unwrap_err();
    assert!(refused.reason.contains("store key"), "{refused}");
    assert!(used.bob.command("keypackage").is_err());
    used.daemon.ctl(&["keys", "sweep"]).unwrap_err();
    used.daemon.stop();
    assert_eq!(fs::read(&key).ok(), spoilt, "the daemon wrote a store key");

    fs::write(&key, saved).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    used.daemon.restart(&Options::default());
    assert_eq!(read_only(&used.daemon), None);
    assert!(keys(&used.daemon).keys().eq(before.keys()));
    assert!(keys(&used.daemon).values().all(|state| state != "missing"));
    used.goes_on();
    used.daemon.stop();
}
