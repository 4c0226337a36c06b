//! Where the keys are: in custody, or, for comparison, in this process.
//!
//! An app that moves from the one to the other changes its provider and its
//! signer, which is all of the difference between the two halves of this file;
//! and it may show what `explain` and `status` tell.

use std::cell::{RefCell, RefMut};
use std::path::PathBuf;

use mlskeyd_provider::{CustodyIdentity, CustodyProvider, CustodySigner};
use openmls::prelude::{BasicCredential, Ciphersuite, Credential, CredentialWithKey, MlsGroup};
use openmls::storage::OpenMlsProvider;
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::RustCrypto;
use openmls_traits::signatures::Signer;
use rusqlite::Connection;

use crate::commands::{Readable, Result};
use crate::store::{MlsStorage, Store};

/// Where a participant's keys are.
pub(crate) trait Keys {
    type Provider: OpenMlsProvider;
    type Signer: Signer;

    fn provider(&self) -> &Self::Provider;

    /// The participant's signer and credential, for what is new; made when first
    /// asked for.
    fn identity(&self) -> Result<(Self::Signer, CredentialWithKey)>;

    /// The participant's signer with the key that the group knows.
    fn signer_for(&self, group: &MlsGroup) -> Result<Self::Signer>;

    /// A new signer and credential, if the group is to get to know another key.
    fn rotation(&self, group: &MlsGroup) -> Result<Option<(Self::Signer, CredentialWithKey)>>;

    /// Does `work` in a transaction of the database: all of it, or nothing.
    fn in_transaction<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T>;

    /// Why the last operation failed, where OpenMLS cannot say it.
    fn explain(&self) -> Option<String>;

    /// Where the keys of a group's own leaf are.
    fn status(&self, group: &MlsGroup) -> Result<String>;
}

fn credential(name: &str) -> Credential {
    BasicCredential::new(name.as_bytes().to_vec()).into()
}

/// Keys in custody.
pub(crate) struct Custody<'a> {
    name: String,
    suite: Ciphersuite,
    connection: &'a Connection,
    provider: CustodyProvider<MlsStorage<'a>>,
    /// Made when it is first needed.
    identity: RefCell<Option<CustodyIdentity>>,
}

impl<'a> Custody<'a> {
    pub(crate) fn new(
        connection: &'a Connection,
        name: &str,
        suite: Ciphersuite,
        socket: Option<PathBuf>,
        bus: Option<String>,
    ) -> Result<Self> {
        let mut builder = CustodyProvider::builder();
        if let Some(socket) = socket {
            builder = builder.socket(socket);
        }
        if let Some(bus) = bus {
            builder = builder.bus(bus);
        }
        let provider = builder
            .storage(format!("chat/{name}"), MlsStorage::new(connection))
            .require_custody(true)
            .build()
            .readable()?;
        Ok(Self {
            name: name.to_owned(),
            suite,
            connection,
            provider,
            identity: RefCell::default(),
        })
    }
}

impl Custody<'_> {
    fn custody_identity(&self) -> Result<RefMut<'_, CustodyIdentity>> {
        let mut known = self.identity.borrow_mut();
        if known.is_none() {
            let scheme = self.suite.signature_algorithm();
            let made = self
                .provider
                .create_identity(&self.name, &credential(&self.name), scheme);
            *known = Some(made.readable()?);
        }
        RefMut::filter_map(known, Option::as_mut).map_err(|_| "no identity".to_owned())
    }
}

impl<'a> Keys for Custody<'a> {
    type Provider = CustodyProvider<MlsStorage<'a>>;
    type Signer = CustodySigner;

    fn provider(&self) -> &Self::Provider {
        &self.provider
    }

    fn identity(&self) -> Result<(CustodySigner, CredentialWithKey)> {
        let identity = self.custody_identity()?;
        Ok((
            identity.signer(),
            identity.credential_with_key().readable()?,
        ))
    }

    fn signer_for(&self, group: &MlsGroup) -> Result<CustodySigner> {
        self.custody_identity()?.signer_for(group).readable()
    }

    fn rotation(&self, group: &MlsGroup) -> Result<Option<(CustodySigner, CredentialWithKey)>> {
        // An administrator may have given the identity another key meanwhile.
        let mut identity = self.custody_identity()?;
        identity.refresh().readable()?;
        let new = identity.credential_with_key().readable()?;
        let leaf = group.own_leaf_node().map(|leaf| leaf.signature_key());
        let is_known = leaf == Some(&new.signature_key);
        Ok((!is_known).then(|| (identity.signer(), new)))
    }

    fn in_transaction<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        // Until both are committed, both count as rolled back.
        let custody = self.provider.transaction();
        let database = self.connection.unchecked_transaction().readable()?;
        let done = work()?;
        database.commit().readable()?;
        custody.committed();
        Ok(done)
    }

    fn explain(&self) -> Option<String> {
        self.provider
            .last_failure()
            .map(|failure| failure.to_string())
    }

    fn status(&self, group: &MlsGroup) -> Result<String> {
        let status = self.provider.custody_status(group).readable()?;
        Ok(status.map_or_else(
            || "not a member".to_owned(),
            |status| {
                format!(
                    "signature {}, leaf {}",
                    status.leaf.signature, status.leaf.encryption
                )
            },
        ))
    }
}

/// Keys in this process, as OpenMLS has them by itself.
pub(crate) struct Stock<'a> {
    name: String,
    suite: Ciphersuite,
    connection: &'a Connection,
    provider: StockProvider<'a>,
}

/// OpenMLS's own cryptography and storage.
pub(crate) struct StockProvider<'a> {
    crypto: RustCrypto,
    storage: MlsStorage<'a>,
}

impl<'a> openmls_traits::OpenMlsProvider for StockProvider<'a> {
    type CryptoProvider = RustCrypto;
    type RandProvider = RustCrypto;
    type StorageProvider = MlsStorage<'a>;

    fn storage(&self) -> &MlsStorage<'a> {
        &self.storage
    }

    fn crypto(&self) -> &RustCrypto {
        &self.crypto
    }

    fn rand(&self) -> &RustCrypto {
        &self.crypto
    }
}

impl<'a> Stock<'a> {
    pub(crate) fn new(connection: &'a Connection, name: &str, suite: Ciphersuite) -> Self {
        let provider = StockProvider {
            crypto: RustCrypto::default(),
            storage: MlsStorage::new(connection),
        };
        Self {
            name: name.to_owned(),
            suite,
            connection,
            provider,
        }
    }
}

impl<'a> Keys for Stock<'a> {
    type Provider = StockProvider<'a>;
    type Signer = SignatureKeyPair;

    fn provider(&self) -> &Self::Provider {
        &self.provider
    }

    fn identity(&self) -> Result<(SignatureKeyPair, CredentialWithKey)> {
        let (store, scheme) = (
            Store::new(self.connection),
            self.suite.signature_algorithm(),
        );
        let stored = store.state("signature key")?.and_then(|public| {
            let public = hex::decode(public).ok()?;
            SignatureKeyPair::read(&self.provider.storage, &public, scheme)
        });
        let pair = match stored {
            Some(pair) => pair,
            None => {
                let pair = SignatureKeyPair::new(scheme).readable()?;
                pair.store(&self.provider.storage).readable()?;
                store.set_state("signature key", &hex::encode(pair.public()))?;
                pair
            }
        };
        let signature_key = pair.to_public_vec().into();
        Ok((
            pair,
            CredentialWithKey {
                credential: credential(&self.name),
                signature_key,
            },
        ))
    }

    fn signer_for(&self, _: &MlsGroup) -> Result<SignatureKeyPair> {
        self.identity().map(|(signer, _)| signer)
    }

    fn rotation(&self, _: &MlsGroup) -> Result<Option<(SignatureKeyPair, CredentialWithKey)>> {
        Ok(None)
    }

    fn in_transaction<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let database = self.connection.unchecked_transaction().readable()?;
        let done = work()?;
        database.commit().readable()?;
        Ok(done)
    }

    fn explain(&self) -> Option<String> {
        None
    }

    fn status(&self, _: &MlsGroup) -> Result<String> {
        Ok("signature in the app, leaf in the app".to_owned())
    }
}
