//! An app over real OpenMLS, real storages and a stand-in crypto whose init and
//! leaf private keys live in the model.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use mlskeyd_protocol::v1::Handle;
use openmls::prelude::*;
use openmls_basic_credential::SignatureKeyPair;
use openmls_memory_storage::MemoryStorage;
use openmls_rust_crypto::RustCrypto;
use openmls_sqlite_storage::{Codec, Connection, SqliteStorageProvider};
use openmls_traits::random::OpenMlsRand;
use openmls_traits::storage::StorageProvider;
use tls_codec::SecretVLBytes;

use super::super::CustodyStorage;
use super::model::Model;
use crate::memory;

pub(super) const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

thread_local! {
    static LAST_RANDOM: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

pub(super) struct Crypto {
    inner: RustCrypto,
    model: Arc<Model>,
}

impl OpenMlsRand for Crypto {
    type Error = <RustCrypto as OpenMlsRand>::Error;

    fn random_array<const N: usize>(&self) -> Result<[u8; N], Self::Error> {
        self.inner.random_array()
    }

    fn random_vec(&self, len: usize) -> Result<Vec<u8>, Self::Error> {
        let bytes = self.inner.random_vec(len)?;
        LAST_RANDOM.set(Some(bytes.clone()));
        Ok(bytes)
    }
}

impl OpenMlsCrypto for Crypto {
    fn supports(&self, suite: Ciphersuite) -> Result<(), CryptoError> {
        self.inner.supports(suite)
    }
    fn supported_ciphersuites(&self) -> Vec<Ciphersuite> {
        self.inner.supported_ciphersuites()
    }
    fn hkdf_extract(
        &self,
        hash: HashType,
        salt: &[u8],
        ikm: &[u8],
    ) -> Result<SecretVLBytes, CryptoError> {
        self.inner.hkdf_extract(hash, salt, ikm)
    }
    fn hmac(&self, hash: HashType, key: &[u8], text: &[u8]) -> Result<SecretVLBytes, CryptoError> {
        self.inner.hmac(hash, key, text)
    }
    fn hkdf_expand(
        &self,
        hash: HashType,
        prk: &[u8],
        info: &[u8],
        len: usize,
    ) -> Result<SecretVLBytes, CryptoError> {
        self.inner.hkdf_expand(hash, prk, info, len)
    }
    fn hash(&self, hash: HashType, data: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.inner.hash(hash, data)
    }
    fn aead_encrypt(
        &self,
        alg: AeadType,
        key: &[u8],
        data: &[u8],
        nonce: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        self.inner.aead_encrypt(alg, key, data, nonce, aad)
    }
    fn aead_decrypt(
        &self,
        alg: AeadType,
        key: &[u8],
        data: &[u8],
        nonce: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        self.inner.aead_decrypt(alg, key, data, nonce, aad)
    }
    fn signature_key_gen(&self, alg: SignatureScheme) -> Result<(Vec<u8>, Vec<u8>), CryptoError> {
        self.inner.signature_key_gen(alg)
    }
    fn verify_signature(
        &self,
        alg: SignatureScheme,
        data: &[u8],
        pk: &[u8],
        signature: &[u8],
    ) -> Result<(), CryptoError> {
        self.inner.verify_signature(alg, data, pk, signature)
    }
    fn sign(&self, alg: SignatureScheme, data: &[u8], key: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.inner.sign(alg, data, key)
    }
    fn hpke_seal(
        &self,
        config: HpkeConfig,
        pk: &[u8],
        info: &[u8],
        aad: &[u8],
        text: &[u8],
    ) -> Result<HpkeCiphertext, CryptoError> {
        self.inner.hpke_seal(config, pk, info, aad, text)
    }
    fn hpke_open(
        &self,
        config: HpkeConfig,
        input: &HpkeCiphertext,
        sk: &[u8],
        info: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let Some(handle) = Handle::from_bytes(sk) else {
            return self.inner.hpke_open(config, input, sk, info, aad);
        };
        let opened = match self.model.private(handle.key()) {
            Some(private) => self.inner.hpke_open(config, input, &private, info, aad),
            None => Err(CryptoError::CryptoLibraryError),
        };
        memory::opened(handle.key(), opened.is_ok());
        opened
    }
    fn hpke_setup_sender_and_export(
        &self,
        config: HpkeConfig,
        pk: &[u8],
        info: &[u8],
        context: &[u8],
        len: usize,
    ) -> Result<(KemOutput, ExporterSecret), CryptoError> {
        self.inner
            .hpke_setup_sender_and_export(config, pk, info, context, len)
    }
    fn hpke_setup_receiver_and_export(
        &self,
        config: HpkeConfig,
        enc: &[u8],
        sk: &[u8],
        info: &[u8],
        context: &[u8],
        len: usize,
    ) -> Result<ExporterSecret, CryptoError> {
        self.inner
            .hpke_setup_receiver_and_export(config, enc, sk, info, context, len)
    }
    fn derive_hpke_keypair(
        &self,
        config: HpkeConfig,
        ikm: &[u8],
    ) -> Result<HpkeKeyPair, CryptoError> {
        let mut pair = self.inner.derive_hpke_keypair(config, ikm)?;
        if LAST_RANDOM.take().is_some_and(|random| random == ikm) {
            let key = self.model.generate(pair.private.to_vec());
            pair.private = Handle::new(key).to_bytes().to_vec().into();
        }
        Ok(pair)
    }
    #[cfg(feature = "targeted-messages-draft")]
    fn hpke_open_psk(
        &self,
        config: HpkeConfig,
        input: &HpkeCiphertext,
        sk: &[u8],
        info: &[u8],
        aad: &[u8],
        psk: &[u8],
        psk_id: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        self.inner
            .hpke_open_psk(config, input, sk, info, aad, psk, psk_id)
    }
    #[cfg(feature = "targeted-messages-draft")]
    fn hpke_seal_psk_resolved_aad<F, E>(
        &self,
        config: HpkeConfig,
        pk: &[u8],
        info: &[u8],
        text: &[u8],
        psk: &[u8],
        psk_id: &[u8],
        aad: F,
    ) -> Result<HpkeCiphertext, openmls_traits::crypto::HpkeSealPskResolvedAadError<E>>
    where
        F: FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    {
        self.inner
            .hpke_seal_psk_resolved_aad(config, pk, info, text, psk, psk_id, aad)
    }
    #[cfg(feature = "virtual-clients-draft")]
    fn ff1_aes128_encrypt(&self, key: &[u8; 16], plaintext: u32) -> Result<u32, CryptoError> {
        self.inner.ff1_aes128_encrypt(key, plaintext)
    }
    #[cfg(feature = "virtual-clients-draft")]
    fn ff1_aes128_decrypt(&self, key: &[u8; 16], ciphertext: u32) -> Result<u32, CryptoError> {
        self.inner.ff1_aes128_decrypt(key, ciphertext)
    }
}

/// A database of an app.
pub(super) trait Backend {
    type Storage: StorageProvider<1>;
    fn create() -> Self;
    /// Opens the database (again): what `old` shows is there.
    fn open(&self, old: Option<&Self::Storage>) -> Self::Storage;
    fn begin(&self, storage: &Self::Storage);
    fn commit(&self, storage: &Self::Storage);
    fn rollback(&self, storage: &Self::Storage);
}

type Values = HashMap<Vec<u8>, Vec<u8>>;

#[derive(Default)]
pub(super) struct Memory(RefCell<Option<Values>>);

impl Backend for Memory {
    type Storage = MemoryStorage;
    fn create() -> Self {
        Self::default()
    }
    fn open(&self, old: Option<&MemoryStorage>) -> MemoryStorage {
        let storage = MemoryStorage::default();
        if let Some(old) = old {
            *storage.values.write().unwrap() = old.values.read().unwrap().clone();
        }
        storage
    }
    fn begin(&self, storage: &MemoryStorage) {
        self.0.replace(Some(storage.values.read().unwrap().clone()));
    }
    fn commit(&self, _: &MemoryStorage) {
        self.0.take().unwrap();
    }
    fn rollback(&self, storage: &MemoryStorage) {
        *storage.values.write().unwrap() = self.0.take().unwrap();
    }
}

#[derive(Default)]
pub(super) struct Json;

impl Codec for Json {
    type Error = serde_json::Error;
    fn to_vec<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Self::Error> {
        serde_json::to_vec(value)
    }
    fn from_slice<T: serde::de::DeserializeOwned>(slice: &[u8]) -> Result<T, Self::Error> {
        serde_json::from_slice(slice)
    }
}

pub(super) struct Sqlite {
    dir: tempfile::TempDir,
    connection: RefCell<Option<Rc<Connection>>>,
}

impl Sqlite {
    pub(super) fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("app.db")
    }

    fn run(&self, sql: &str) {
        self.connection
            .borrow()
            .as_ref()
            .unwrap()
            .execute_batch(sql)
            .unwrap();
    }
}

impl Backend for Sqlite {
    type Storage = SqliteStorageProvider<Json, Rc<Connection>>;
    fn create() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let this = Self {
            dir,
            connection: RefCell::default(),
        };
        let mut connection = Connection::open(this.path()).unwrap();
        SqliteStorageProvider::<Json, &mut Connection>::new(&mut connection)
            .run_migrations()
            .unwrap();
        this
    }
    fn open(&self, _: Option<&Self::Storage>) -> Self::Storage {
        let connection = Rc::new(Connection::open(self.path()).unwrap());
        self.connection.replace(Some(Rc::clone(&connection)));
        SqliteStorageProvider::new(connection)
    }
    fn begin(&self, _: &Self::Storage) {
        self.run("BEGIN IMMEDIATE");
    }
    fn commit(&self, _: &Self::Storage) {
        self.run("COMMIT");
    }
    fn rollback(&self, _: &Self::Storage) {
        self.run("ROLLBACK");
    }
}

pub(super) struct Provider<B: Backend> {
    crypto: Crypto,
    pub(super) storage: CustodyStorage<B::Storage>,
}

impl<B: Backend> OpenMlsProvider for Provider<B> {
    type CryptoProvider = Crypto;
    type RandProvider = Crypto;
    type StorageProvider = CustodyStorage<B::Storage>;
    fn storage(&self) -> &Self::StorageProvider {
        &self.storage
    }
    fn crypto(&self) -> &Crypto {
        &self.crypto
    }
    fn rand(&self) -> &Crypto {
        &self.crypto
    }
}

/// A member with a database.
pub(super) struct App<B: Backend> {
    pub(super) name: &'static str,
    pub(super) model: Arc<Model>,
    pub(super) backend: B,
    pub(super) provider: Provider<B>,
    pub(super) signer: SignatureKeyPair,
}

impl<B: Backend> App<B> {
    pub(super) fn new(name: &'static str, model: &Arc<Model>) -> Self {
        let backend = B::create();
        let inner = backend.open(None);
        Self {
            name,
            model: Arc::clone(model),
            provider: provider(name, model, inner, false),
            backend,
            signer: SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap(),
        }
    }

    /// The process dies and comes back.
    pub(super) fn restart(&mut self) {
        let inner = self.backend.open(Some(self.provider.storage.inner()));
        // A process that dies runs no destructors.
        let died = std::mem::replace(
            &mut self.provider,
            provider(self.name, &self.model, inner, false),
        );
        std::mem::forget(died.storage);
        self.model.restart();
    }

    /// From now on its storage is strict.
    pub(super) fn strict(&mut self) {
        let inner = self.backend.open(Some(self.provider.storage.inner()));
        self.provider = provider(self.name, &self.model, inner, true);
    }

    pub(super) fn credential(&self) -> CredentialWithKey {
        CredentialWithKey {
            credential: BasicCredential::new(self.name.as_bytes().to_vec()).into(),
            signature_key: self.signer.public().to_vec().into(),
        }
    }

    pub(super) fn key_package(&self, last_resort: bool) -> KeyPackage {
        let mut builder = KeyPackage::builder();
        if last_resort {
            builder = builder
                .mark_as_last_resort()
                .leaf_node_capabilities(Capabilities::new(
                    None,
                    None,
                    Some(&[ExtensionType::LastResort]),
                    None,
                    None,
                ));
        }
        let bundle = builder
            .build(SUITE, &self.provider, &self.signer, self.credential())
            .unwrap();
        bundle.key_package().clone()
    }

    pub(super) fn create(&self, group: &[u8]) -> MlsGroup {
        MlsGroup::builder()
            .ciphersuite(SUITE)
            .with_group_id(GroupId::from_slice(group))
            .use_ratchet_tree_extension(true)
            .build(&self.provider, &self.signer, self.credential())
            .unwrap()
    }

    pub(super) fn load(&self, group: &[u8]) -> MlsGroup {
        MlsGroup::load(&self.provider.storage, &GroupId::from_slice(group))
            .unwrap()
            .unwrap()
    }

    /// Adds a member; answers the commit and the Welcome.
    pub(super) fn add(
        &self,
        group: &mut MlsGroup,
        package: KeyPackage,
    ) -> (MlsMessageOut, Welcome) {
        let (commit, welcome, _) = group
            .add_members(&self.provider, &self.signer, &[package])
            .unwrap();
        group.merge_pending_commit(&self.provider).unwrap();
        let MlsMessageBodyOut::Welcome(welcome) = welcome.body().clone() else {
            panic!()
        };
        (commit, welcome)
    }

    pub(super) fn stage(&self, welcome: &Welcome) -> Result<StagedWelcome, String> {
        StagedWelcome::new_from_welcome(&self.provider, &join_config(), welcome.clone(), None)
            .map_err(|error| format!("{error:?}"))
    }

    pub(super) fn join(&self, welcome: &Welcome) -> MlsGroup {
        self.stage(welcome)
            .unwrap()
            .into_group(&self.provider)
            .unwrap()
    }

    /// A commit with a new leaf key; merged at once.
    pub(super) fn update(&self, group: &mut MlsGroup) -> MlsMessageOut {
        let bundle = group
            .self_update(&self.provider, &self.signer, LeafNodeParameters::default())
            .unwrap();
        group.merge_pending_commit(&self.provider).unwrap();
        bundle.into_commit()
    }

    /// Processes a handshake message.
    pub(super) fn receive(&self, group: &mut MlsGroup, message: &MlsMessageOut) {
        let message = MlsMessageIn::from(message.clone());
        let message = message.try_into_protocol_message().unwrap();
        let processed = group.process_message(&self.provider, message).unwrap();
        match processed.into_content() {
            ProcessedMessageContent::StagedCommitMessage(commit) => {
                group.merge_staged_commit(&self.provider, *commit).unwrap();
            }
            ProcessedMessageContent::ProposalMessage(proposal) => {
                group
                    .store_pending_proposal(&self.provider.storage, *proposal)
                    .unwrap();
            }
            _ => panic!("not a handshake message"),
        }
    }

    /// Lets everything that is due die, as the daemon does between operations:
    /// first dead records, then the keys that only they named.
    pub(super) fn sweep(&self) {
        for _ in 0..2 {
            self.model.sweep();
            self.model.restart();
            self.provider.storage.state.attach().unwrap();
            self.provider.storage.bury();
            self.provider.storage.look();
        }
    }

    /// How many keys of this app's storage are claimed.
    pub(super) fn claimed(&self) -> usize {
        self.model.claimed(self.name).len()
    }
}

pub(super) fn join_config() -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .use_ratchet_tree_extension(true)
        .build()
}

fn provider<B: Backend>(
    name: &str,
    model: &Arc<Model>,
    inner: B::Storage,
    strict: bool,
) -> Provider<B> {
    let custodian = Arc::clone(model) as Arc<_>;
    Provider {
        crypto: Crypto {
            inner: RustCrypto::default(),
            model: Arc::clone(model),
        },
        storage: CustodyStorage::new(inner, name.to_owned(), false, strict, custodian),
    }
}

/// Runs a test over both storages.
macro_rules! on_both_storages {
    ($($name:ident)*) => {
        mod memory {
            $(#[test] fn $name() { super::$name::<super::Memory>(); })*
        }
        mod sqlite {
            $(#[test] fn $name() { super::$name::<super::Sqlite>(); })*
        }
    };
}
pub(super) use on_both_storages;
