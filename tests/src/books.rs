//! What is on record about keys: with the daemon, and in the apps' databases.
//! The two are kept apart, so a test can hold one against the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use mlskeyd_protocol::handle::{Handle, KeyId};
use rusqlite::{Connection, OpenFlags};

use crate::rig::Daemon;

/// A key as `mlskeyctl keys` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// `signature`, `hpke`, `init` or `leaf`.
    pub purpose: String,
    /// Its public key in hexadecimal; empty if it never had one.
    pub public_key: String,
    /// Was it destroyed?
    pub destroyed: bool,
}

/// All keys that the daemon knows, those that are destroyed, too, by id.
///
/// # Errors
/// What `mlskeyctl` said.
pub fn keys(daemon: &Daemon) -> Result<BTreeMap<String, Listed>, String> {
    let listed = daemon.ctl(&["keys", "list", "--all"])?;
    Ok(listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|key| {
            let state = text(key, "state");
            assert_ne!(state, "missing", "{key}");
            let listed = Listed {
                purpose: text(key, "purpose"),
                public_key: text(key, "public_key"),
                destroyed: state == "destroyed",
            };
            (text(key, "id"), listed)
        })
        .collect())
}

/// The signature keys that can sign, each with whether it retires: as the list of
/// keys has them, and as that of identities has them. Both of one moment, though
/// apps may make more all the time.
pub fn signing(daemon: &Daemon) -> (BTreeMap<String, bool>, BTreeMap<String, bool>) {
    loop {
        let before = signing_for_identities(daemon);
        let listed = daemon.ctl(&["keys"]).expect("the daemon serves");
        if signing_for_identities(daemon) == before {
            let keys = listed.as_array().expect("a list").iter();
            let keys = keys
                .filter(|key| key["purpose"] == "signature" && key["state"] != "missing")
                .map(|key| (text(key, "id"), key["state"] == "retiring"));
            return (keys.collect(), before);
        }
    }
}

fn signing_for_identities(daemon: &Daemon) -> BTreeMap<String, bool> {
    let listed = daemon.ctl(&["identities"]).expect("the daemon serves");
    let mut keys = BTreeMap::new();
    for identity in listed.as_array().expect("a list") {
        keys.insert(text(identity, "key"), false);
        for key in identity["retiring"].as_array().expect("a list") {
            keys.insert(text(key, "key"), true);
        }
    }
    keys
}

fn text(of: &serde_json::Value, field: &str) -> String {
    of[field].as_str().expect("a field of text").to_owned()
}

/// The ids of the HPKE keys that are not destroyed.
pub fn living_hpke_keys(keys: &BTreeMap<String, Listed>) -> BTreeSet<String> {
    keys.iter()
        .filter(|(_, key)| !key.destroyed && key.purpose != "signature")
        .map(|(id, _)| id.clone())
        .collect()
}

/// What the journal has not finished: keys and generations that are being made
/// or destroyed.
pub fn unfinished(daemon: &Daemon) -> Vec<String> {
    let registry = open(&daemon.state().join("registry.db"));
    let mut unfinished = Vec::new();
    for (what, states) in [("keys", "(0, 2)"), ("generations", "(0, 3, 5)")] {
        let sql = format!("SELECT hex(id) FROM {what} WHERE state IN {states}");
        let mut statement = registry.prepare(&sql).expect("the registry's schema");
        let ids = statement.query_map([], |row| row.get::<_, String>(0));
        for id in ids.expect("the registry is read") {
            unfinished.push(format!("{what} {}", id.expect("an id")));
        }
    }
    unfinished
}

/// Destroyed keys that an older database would bring back: without a tombstone,
/// under a generation that is still there.
pub fn without_tombstone(daemon: &Daemon) -> Vec<String> {
    let stones = std::fs::read(daemon.state().join("tombstones")).expect("the tombstones");
    let stones = hex::encode(stones);
    let registry = open(&daemon.state().join("registry.db"));
    let mut statement = registry
        .prepare(
            "SELECT lower(hex(id)) FROM keys WHERE state = 3
             AND generation IN (SELECT id FROM generations WHERE state != 4)",
        )
        .expect("the registry's schema");
    let ids = statement.query_map([], |row| row.get::<_, String>(0));
    ids.expect("the registry is read")
        .map(|id| id.expect("an id"))
        .filter(|id| !stones.contains(id.as_str()))
        .collect()
}

/// The generation keys that the software device has, and those that the
/// registry says it has: the same, but for what is being made or destroyed.
pub fn generations(daemon: &Daemon) -> (BTreeSet<String>, BTreeSet<String>) {
    let directory = daemon.state().join("devices/software/generations");
    let files = std::fs::read_dir(directory)
        .expect("the generations' directory")
        .map(|file| {
            let name = file.expect("a file").file_name();
            name.to_string_lossy().to_ascii_lowercase()
        })
        .collect();
    let registry = open(&daemon.state().join("registry.db"));
    let mut statement = registry
        .prepare("SELECT lower(hex(id)) FROM generations WHERE state IN (1, 2)")
        .expect("the registry's schema");
    let rows = statement
        .query_map([], |row| row.get(0))
        .expect("the registry is read")
        .map(|id| id.expect("an id"))
        .collect();
    (files, rows)
}

/// The keys that an app's database names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// In groups' states and epochs.
    pub groups: BTreeSet<String>,
    /// In KeyPackages.
    pub key_packages: BTreeSet<String>,
    /// In the key pairs of Updates, which OpenMLS leaves behind.
    pub updates: BTreeSet<String>,
}

impl Named {
    /// Reads the database of a messenger in its directory.
    pub fn read(messenger: &Path) -> Self {
        let database = open(&messenger.join("chat.sqlite"));
        let mut groups = handles(&database, "openmls_group_data", "group_data");
        groups.append(&mut handles(
            &database,
            "openmls_epoch_keys_pairs",
            "key_pairs",
        ));
        Self {
            groups,
            key_packages: handles(&database, "openmls_key_packages", "key_package"),
            updates: handles(&database, "openmls_encryption_keys", "key_pair"),
        }
    }
}

/// The handles in a column of JSON, where they are arrays of numbers.
fn handles(database: &Connection, table: &str, column: &str) -> BTreeSet<String> {
    let sql = format!("SELECT CAST({column} AS TEXT) FROM {table}");
    let mut statement = database.prepare(&sql).expect("OpenMLS's schema");
    let texts = statement
        .query_map([], |row| row.get::<_, String>(0))
        .expect("the database is read");
    let mut found = BTreeSet::new();
    for text in texts {
        let text = text.expect("JSON");
        for array in text.split('[').filter_map(|rest| rest.split(']').next()) {
            let bytes: Result<Vec<u8>, _> = array.split(',').map(str::parse).collect();
            if let Some(handle) = bytes.ok().and_then(|bytes| Handle::from_bytes(&bytes)) {
                let key: KeyId = handle.key();
                found.insert(key.to_string());
            }
        }
    }
    found
}

fn open(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
