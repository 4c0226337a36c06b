//! An MLS member with the stock provider, whose private keys are in its memory
//! and in its storage: what the scan must find.

use std::error::Error;
use std::path::Path;

use openmls::prelude::*;
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::RustCrypto;
use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::scan::encodings::{KeyKind, PrivateKey};

/// JSON, as the apps of OpenMLS's own examples write it.
#[derive(Default)]
pub struct Json;

impl Codec for Json {
    type Error = serde_json::Error;

    fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, Self::Error> {
        serde_json::to_vec(value)
    }

    fn from_slice<T: DeserializeOwned>(slice: &[u8]) -> Result<T, Self::Error> {
        serde_json::from_slice(slice)
    }
}

/// RustCrypto, and a storage in SQLite.
struct StockProvider {
    crypto: RustCrypto,
    storage: SqliteStorageProvider<Json, Connection>,
}

impl OpenMlsProvider for StockProvider {
    type CryptoProvider = RustCrypto;
    type RandProvider = RustCrypto;
    type StorageProvider = SqliteStorageProvider<Json, Connection>;

    fn storage(&self) -> &Self::StorageProvider {
        &self.storage
    }

    fn crypto(&self) -> &RustCrypto {
        &self.crypto
    }

    fn rand(&self) -> &RustCrypto {
        &self.crypto
    }
}

/// A member of a group, alone in it, with an unused KeyPackage.
pub struct Member {
    _provider: StockProvider,
    _signer: SignatureKeyPair,
    _group: MlsGroup,
}

impl Member {
    /// Makes a KeyPackage, a group and a commit with a new leaf key, storing
    /// everything in a new database.
    ///
    /// # Errors
    /// Whatever OpenMLS or SQLite say.
    pub fn live(database: &Path, suite: u16) -> Result<Self, Box<dyn Error>> {
        let suite = Ciphersuite::try_from(suite)?;
        let mut storage = SqliteStorageProvider::new(Connection::open(database)?);
        storage.run_migrations()?;
        let provider = StockProvider {
            crypto: RustCrypto::default(),
            storage,
        };
        let signer = SignatureKeyPair::new(suite.signature_algorithm())?;
        signer.store(&provider.storage)?;
        let credential = CredentialWithKey {
            credential: BasicCredential::new(b"stock".to_vec()).into(),
            signature_key: signer.public().into(),
        };
        KeyPackage::builder().build(suite, &provider, &signer, credential.clone())?;
        let mut group = MlsGroup::builder()
            .ciphersuite(suite)
            .build(&provider, &signer, credential)?;
        group.self_update(&provider, &signer, LeafNodeParameters::default())?;
        group.merge_pending_commit(&provider)?;
        Ok(Self {
            _provider: provider,
            _signer: signer,
            _group: group,
        })
    }
}

/// Every private key in a member's database: the signature key, and of the
/// KeyPackage and the group the init and leaf keys.
///
/// # Errors
/// If the database is not what [`Member::live`] makes.
pub fn private_keys(database: &Path, suite: u16) -> Result<Vec<PrivateKey>, Box<dyn Error>> {
    let suite = Ciphersuite::try_from(suite)?;
    let (signature, hpke) = match suite.signature_algorithm() {
        SignatureScheme::ED25519 => (KeyKind::Ed25519, KeyKind::X25519),
        _ => (KeyKind::P256, KeyKind::P256),
    };
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let value = |table, column| -> Result<Value, Box<dyn Error>> {
        let query = format!("SELECT {column} FROM {table}");
        let bytes: Vec<u8> = connection.query_row(&query, [], |row| row.get(0))?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    let key = |name: &str, kind, value: &Value| -> Result<PrivateKey, Box<dyn Error>> {
        Ok(PrivateKey {
            name: name.to_owned(),
            kind,
            bytes: serde_json::from_value(bytes_within(value).clone())?,
        })
    };
    let signer = value("openmls_signature_keys", "signature_key")?;
    let bundle = value("openmls_key_packages", "key_package")?;
    let pairs = value("openmls_epoch_keys_pairs", "key_pairs")?;
    Ok(vec![
        key("signature", signature, &signer["private"])?,
        key("init", hpke, &bundle["private_init_key"])?,
        key(
            "leaf of the KeyPackage",
            hpke,
            &bundle["private_encryption_key"],
        )?,
        key("leaf of the group", hpke, &pairs[0]["private_key"])?,
    ])
}

/// A private key is an array of numbers, in some wrappings of one field.
fn bytes_within(value: &Value) -> &Value {
    match value.as_object().and_then(|object| object.values().next()) {
        Some(inner) => bytes_within(inner),
        None => value,
    }
}
