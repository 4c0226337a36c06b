//! What must hold between any two operations, and at the end.

use std::collections::HashMap;

use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::{KeyQuery, KeyState, OwnedKey};
use mlskeyd_provider::{KeyCustody, LeafCustody};
use openmls::prelude::KeyPackage;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use tls_codec::{DeserializeBytes as _, Serialize as _, VLBytes};

use super::Run;
use super::app::App;

/// What the daemon holds after a run, when all groups are deleted and the grace
/// is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remains {
    /// Participants, each with a signature key.
    pub participants: usize,
    /// Keys as `mlskeyctl --json keys` shows them: signature keys.
    pub signature_keys: usize,
    /// All others.
    pub hpke_keys: usize,
    /// Generation keys of one signature key each.
    pub own_generations: usize,
    /// Generation keys of HPKE keys: each goes with its last key.
    pub shared_generations: usize,
}

impl Remains {
    /// Each participant has its signature key, and nothing else is left.
    pub const fn of_identities(participants: usize) -> Self {
        Self {
            participants,
            signature_keys: participants,
            hpke_keys: 0,
            own_generations: participants,
            // The last key takes its generation with it.
            shared_generations: 0,
        }
    }
}

impl Run {
    /// All members are in the same epoch with the same secrets.
    pub(super) fn check_agreement(&self) {
        let groups: Vec<_> = self.apps.iter().filter_map(App::group).collect();
        let first = groups.first().expect("there are members always");
        assert_eq!(first.members().count(), groups.len());
        for group in &groups {
            assert_eq!(group.epoch(), first.epoch());
            assert_eq!(
                group.epoch_authenticator().as_slice(),
                first.epoch_authenticator().as_slice()
            );
        }
    }

    /// Every private key that is in use is in custody, and some record claims
    /// it. Nothing was refused.
    pub(super) fn check_custody(&self) {
        let held = self.keys();
        for app in &self.apps {
            assert_eq!(app.take_refusals(), [""; 0], "for {}", app.name());
            check_key_package(app, &held);
            let Some(group) = app.group() else {
                continue;
            };
            let status = app.provider().custody_status(group).unwrap();
            let status = status.expect("a member");
            status.require().unwrap();
            let pending = status.pending_commit.iter().chain(&status.pending_updates);
            for leaf in std::iter::once(&status.leaf).chain(pending) {
                check_leaf(app, leaf, &held);
            }
        }
    }

    /// All keys that are not destroyed, by their public halves.
    fn keys(&self) -> HashMap<Vec<u8>, OwnedKey> {
        let mut keys = HashMap::new();
        let mut after = None;
        loop {
            let query = KeyQuery {
                after,
                destroyed: false,
            };
            let page = self.admin.keys(query, &Call::default()).unwrap();
            let Some(last) = page.last() else {
                return keys;
            };
            after = Some(last.key.id);
            keys.extend(
                page.into_iter()
                    .map(|key| (key.key.public_key.0.clone(), key)),
            );
        }
    }

    /// What is left, as the administrator and the registry see it.
    pub(super) fn remains(mut self) -> Remains {
        let keys = self.daemon.ctl(&["keys"]).unwrap();
        let keys = keys.as_array().expect("a list");
        let signature_keys = keys
            .iter()
            .filter(|key| key["purpose"] == "signature")
            .count();
        self.daemon.stop();
        let registry = Connection::open_with_flags(
            self.daemon.state().join("registry.db"),
            OpenFlags::SQLITE_OPEN_READ_ONLY,
        )
        .unwrap();
        let generations = |own: bool| -> usize {
            let query = "SELECT count(*) FROM generations WHERE own = ?1 AND state != 4";
            let count: i64 = registry.query_row(query, [own], |row| row.get(0)).unwrap();
            count.try_into().unwrap()
        };
        print_kept(&registry);
        Remains {
            participants: self.apps.len(),
            signature_keys,
            hpke_keys: keys.len() - signature_keys,
            own_generations: generations(true),
            shared_generations: generations(false),
        }
    }
}

/// Prints what keeps each HPKE key that is left: why a run failed.
fn print_kept(registry: &Connection) {
    let query = "SELECT hex(keys.id), keys.wait, keys.since, claims.storage, claims.released,
            records.kind, records.dead, records.joined, records.unbound
        FROM keys JOIN generations ON generations.id = keys.generation
            LEFT JOIN claims ON claims.key = keys.id
            LEFT JOIN records ON records.id = claims.record
        WHERE keys.state = 1 AND generations.own = 0";
    let mut statement = registry.prepare(query).unwrap();
    let columns: Vec<_> = statement
        .column_names()
        .iter()
        .map(|name| (*name).to_owned())
        .collect();
    let mut rows = statement.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let values: Vec<_> = columns
            .iter()
            .enumerate()
            .map(|(index, name)| (name, row.get::<_, Value>(index).unwrap()))
            .collect();
        println!("kept: {values:?}");
    }
}

fn check_key_package(app: &App, held: &HashMap<Vec<u8>, OwnedKey>) {
    let Some(key_package) = app.key_package() else {
        return;
    };
    for public_key in [
        key_package.hpke_init_key().as_slice().to_vec(),
        leaf_key(key_package),
    ] {
        let key = held.get(&public_key);
        let key = key.unwrap_or_else(|| panic!("{}'s KeyPackage is void", app.name()));
        assert_eq!(key.key.state, KeyState::Active, "{key:?}");
        assert!(key.claims > 0, "{key:?}");
    }
}

fn check_leaf(app: &App, leaf: &LeafCustody, held: &HashMap<Vec<u8>, OwnedKey>) {
    let KeyCustody::InCustody(key) = &leaf.encryption else {
        panic!("{}'s leaf key is in software", app.name());
    };
    assert_eq!(key.state, KeyState::Active, "{key:?}");
    let key = &held[&key.public_key.0];
    assert!(key.claims > 0, "{key:?}");
}

/// The bytes of the leaf's HPKE public key. OpenMLS shows them only in TLS's
/// encoding.
fn leaf_key(key_package: &KeyPackage) -> Vec<u8> {
    let key = key_package.leaf_node().encryption_key();
    let encoded = key.tls_serialize_detached().unwrap();
    VLBytes::tls_deserialize_exact_bytes(&encoded)
        .unwrap()
        .into()
}
