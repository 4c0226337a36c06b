//! The private keys that a daemon's software device holds, read from a copy of
//! its state: what the scan searches an app for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mlskeyd::devices::software::SoftwareDevice;
use mlskeyd::devices::{Start, StoredKey};
use mlskeyd::store::{KeyRecord, Registry, Settings};
use mlskeyd::store_key::StoreKey;
use mlskeyd_protocol::v1::{Algorithm, Kem, KeyId, Purpose, SignatureScheme};
use tempfile::TempDir;

use crate::rig::Daemon;
use crate::scan::Stopped;
use crate::scan::encodings::{KeyKind, PrivateKey};
use crate::scan::windows::PublicKeys;

/// A key in custody with its private half.
#[derive(Clone)]
pub struct Revealed {
    /// What it is known to be for.
    pub purpose: Purpose,
    /// What it is made for.
    pub algorithm: Algorithm,
    /// Its public key, as MLS writes it.
    pub public: Vec<u8>,
    /// The private key, as `mlskeyd::devices::software` reveals it.
    pub private: Vec<u8>,
    /// The identity of a signature key.
    pub identity: Option<String>,
}

/// Keys that were in custody at some time, by name. Keys are destroyed while a
/// test runs, so it [looks](Self::look) again and again.
#[derive(Clone, Default)]
pub struct RegistryKeys {
    /// All of them.
    pub keys: BTreeMap<KeyId, Revealed>,
}

impl RegistryKeys {
    /// Adds the keys that a running daemon holds now.
    pub fn look(&mut self, daemon: &Daemon) {
        let copy = TempDir::new().expect("a temporary directory");
        let state = copy.path().join("state");
        // The daemon stands still, so that the copy is of one moment.
        let stopped = Stopped::stop(daemon.pid()).expect("the daemon runs");
        copy_directory(&daemon.state(), &state);
        drop(stopped);
        let key = StoreKey::load_file(&daemon.store_key()).expect("the store key");
        let records = records(&state, &key);
        let directory = state.join("devices/software");
        let mut device = SoftwareDevice::open("software", &directory, &key, Start::MustExist)
            .expect("the software device's directory is in the copy");
        for record in records {
            let stored = stored(&record);
            let private = device.reveal(&stored).expect("a living key reveals itself");
            let revealed = Revealed {
                purpose: record.purpose(),
                algorithm: record.algorithm,
                public: stored.public,
                private: private.to_vec(),
                identity: record.identity.clone(),
            };
            self.keys.insert(record.id, revealed);
        }
    }

    /// For the search that knows the private keys.
    pub fn private(&self) -> Vec<PrivateKey> {
        let private = self.keys.iter().map(|(id, key)| PrivateKey {
            name: format!("{} key {id}", key.purpose),
            kind: match key.algorithm {
                Algorithm::Signature(SignatureScheme::Ed25519) => KeyKind::Ed25519,
                Algorithm::Hpke(Kem::DhKemX25519) => KeyKind::X25519,
                _ => KeyKind::P256,
            },
            bytes: key.private.clone(),
        });
        private.collect()
    }

    /// For the search that knows only the public keys.
    pub fn public(&self) -> PublicKeys {
        let mut public = PublicKeys::default();
        for (id, key) in &self.keys {
            let name = format!("{} key {id}", key.purpose);
            let bytes = key.public.as_slice();
            let short = || bytes.try_into().expect("32 bytes");
            match key.algorithm {
                Algorithm::Signature(SignatureScheme::Ed25519) => {
                    public.add_ed25519(&name, short())
                }
                Algorithm::Hpke(Kem::DhKemX25519) => public.add_x25519(&name, short()),
                _ => public.add_p256(&name, bytes.try_into().expect("65 bytes")),
            }
        }
        public
    }

    /// How many keys of this role there are.
    pub fn count(&self, purpose: Purpose) -> usize {
        self.keys
            .values()
            .filter(|key| key.purpose == purpose)
            .count()
    }
}

/// The living keys of a daemon that was stopped, as its devices take them.
pub fn stored_keys(daemon: &Daemon) -> Vec<StoredKey> {
    let copy = TempDir::new().expect("a temporary directory");
    let state = copy.path().join("state");
    copy_directory(&daemon.state(), &state);
    let key = StoreKey::load_file(&daemon.store_key()).expect("the store key");
    records(&state, &key).iter().map(stored).collect()
}

fn records(state: &Path, key: &StoreKey) -> Vec<KeyRecord> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(all(state, key))
}

/// All records of living keys.
async fn all(state: &Path, key: &StoreKey) -> Vec<KeyRecord> {
    let mac_key = key
        .subkey("mlskeyd v1 registry")
        .expect("a subkey is derived");
    let registry = Registry::open(state, mac_key.expose(), Settings::default())
        .expect("the copy of the registry opens");
    assert_eq!(registry.read_only_reason(), None);
    let mut records: Vec<KeyRecord> = Vec::new();
    loop {
        let after = records.last().map(|record| record.id);
        let page = registry.keys_page(after, false).await.expect("a page");
        if page.is_empty() {
            break;
        }
        records.extend(page.into_iter().map(|(record, _)| record));
    }
    registry.close().await;
    records.retain(KeyRecord::is_active);
    records
}

fn stored(record: &KeyRecord) -> StoredKey {
    StoredKey {
        id: record.id,
        algorithm: record.algorithm,
        tier: record.tier,
        generation: record.generation,
        pin: record.pin,
        public: record.public_key.0.clone(),
        blob: record.blob.clone(),
    }
}

fn copy_directory(from: &Path, to: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir(to).expect("a directory");
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).expect("its mode");
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_directory(&path, &target);
        } else if path.is_file() {
            // With its mode.
            fs::copy(&path, &target).expect("a copy");
        }
    }
}
