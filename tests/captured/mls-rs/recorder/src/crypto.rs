//! RustCrypto as mls-rs uses it, remembering what is signed and opened.

use std::sync::{Arc, Mutex};

use mls_rs_core::crypto::{
    CipherSuite, CipherSuiteProvider, CryptoProvider, HpkeCiphertext, HpkePsk, HpkePublicKey,
    HpkeSecretKey, SignaturePublicKey, SignatureSecretKey,
};
use mls_rs_crypto_rustcrypto::RustCryptoProvider;
use zeroize::Zeroizing;

type Inner = <RustCryptoProvider as CryptoProvider>::CipherSuiteProvider;

/// One thing that was signed or opened.
pub enum Record {
    /// What `sign` received.
    Sign(Vec<u8>),
    /// What `hpke_open` received as `info`, and what it gave.
    Open(Vec<u8>, Vec<u8>),
}

/// The provider. Its clones write to one list.
#[derive(Clone, Default)]
pub struct Recording {
    inner: RustCryptoProvider,
    log: Arc<Mutex<Vec<Record>>>,
}

impl Recording {
    /// What was recorded since this was asked last.
    pub fn take(&self) -> Vec<Record> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

impl CryptoProvider for Recording {
    type CipherSuiteProvider = RecordingSuite;

    fn supported_cipher_suites(&self) -> Vec<CipherSuite> {
        self.inner.supported_cipher_suites()
    }

    fn cipher_suite_provider(&self, cipher_suite: CipherSuite) -> Option<RecordingSuite> {
        Some(RecordingSuite {
            inner: self.inner.cipher_suite_provider(cipher_suite)?,
            log: self.log.clone(),
        })
    }
}

/// The provider of one cipher suite.
#[derive(Clone)]
pub struct RecordingSuite {
    inner: Inner,
    log: Arc<Mutex<Vec<Record>>>,
}

impl RecordingSuite {
    fn record(&self, record: Record) {
        self.log.lock().unwrap().push(record);
    }
}

type Result<T> = std::result::Result<T, <Inner as CipherSuiteProvider>::Error>;

impl CipherSuiteProvider for RecordingSuite {
    type Error = <Inner as CipherSuiteProvider>::Error;
    type HpkeContextS = <Inner as CipherSuiteProvider>::HpkeContextS;
    type HpkeContextR = <Inner as CipherSuiteProvider>::HpkeContextR;

    fn sign(&self, secret_key: &SignatureSecretKey, data: &[u8]) -> Result<Vec<u8>> {
        self.record(Record::Sign(data.to_vec()));
        self.inner.sign(secret_key, data)
    }

    fn hpke_open(
        &self,
        ciphertext: &HpkeCiphertext,
        local_secret: &HpkeSecretKey,
        local_public: &HpkePublicKey,
        info: &[u8],
        aad: Option<&[u8]>,
    ) -> Result<Zeroizing<Vec<u8>>> {
        assert!(aad.is_none_or(<[u8]>::is_empty), "RFC 9420 has no aad here");
        let plaintext = self
            .inner
            .hpke_open(ciphertext, local_secret, local_public, info, aad)?;
        self.record(Record::Open(info.to_vec(), plaintext.to_vec()));
        Ok(plaintext)
    }

    // All below only hands on.

    fn cipher_suite(&self) -> CipherSuite {
        self.inner.cipher_suite()
    }
    fn hash(&self, data: &[u8]) -> Result<Vec<u8>> {
        self.inner.hash(data)
    }
    fn mac(&self, key: &[u8], data: &[u8]) -> Result<Vec<u8>> {
        self.inner.mac(key, data)
    }
    fn aead_seal(
        &self,
        key: &[u8],
        data: &[u8],
        aad: Option<&[u8]>,
        nonce: &[u8],
    ) -> Result<Vec<u8>> {
        self.inner.aead_seal(key, data, aad, nonce)
    }
    fn aead_open(
        &self,
        key: &[u8],
        ciphertext: &[u8],
        aad: Option<&[u8]>,
        nonce: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>> {
        self.inner.aead_open(key, ciphertext, aad, nonce)
    }
    fn aead_key_size(&self) -> usize {
        self.inner.aead_key_size()
    }
    fn aead_nonce_size(&self) -> usize {
        self.inner.aead_nonce_size()
    }
    fn kdf_extract(&self, salt: &[u8], ikm: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        self.inner.kdf_extract(salt, ikm)
    }
    fn kdf_expand(&self, prk: &[u8], info: &[u8], len: usize) -> Result<Zeroizing<Vec<u8>>> {
        self.inner.kdf_expand(prk, info, len)
    }
    fn kdf_extract_size(&self) -> usize {
        self.inner.kdf_extract_size()
    }
    fn hpke_seal(
        &self,
        remote_key: &HpkePublicKey,
        info: &[u8],
        aad: Option<&[u8]>,
        pt: &[u8],
    ) -> Result<HpkeCiphertext> {
        self.inner.hpke_seal(remote_key, info, aad, pt)
    }
    fn hpke_seal_psk(
        &self,
        remote_key: &HpkePublicKey,
        info: &[u8],
        aad: Option<&[u8]>,
        pt: &[u8],
        psk: HpkePsk<'_>,
    ) -> Result<HpkeCiphertext> {
        self.inner.hpke_seal_psk(remote_key, info, aad, pt, psk)
    }
    fn hpke_open_psk(
        &self,
        ciphertext: &HpkeCiphertext,
        local_secret: &HpkeSecretKey,
        local_public: &HpkePublicKey,
        info: &[u8],
        aad: Option<&[u8]>,
        psk: HpkePsk<'_>,
    ) -> Result<Zeroizing<Vec<u8>>> {
        self.inner
            .hpke_open_psk(ciphertext, local_secret, local_public, info, aad, psk)
    }
    fn hpke_setup_s(
        &self,
        remote_key: &HpkePublicKey,
        info: &[u8],
    ) -> Result<(Vec<u8>, Self::HpkeContextS)> {
        self.inner.hpke_setup_s(remote_key, info)
    }
    fn hpke_setup_r(
        &self,
        kem_output: &[u8],
        local_secret: &HpkeSecretKey,
        local_public: &HpkePublicKey,
        info: &[u8],
    ) -> Result<Self::HpkeContextR> {
        self.inner
            .hpke_setup_r(kem_output, local_secret, local_public, info)
    }
    fn kem_derive(&self, ikm: &[u8]) -> Result<(HpkeSecretKey, HpkePublicKey)> {
        self.inner.kem_derive(ikm)
    }
    fn kem_generate(&self) -> Result<(HpkeSecretKey, HpkePublicKey)> {
        self.inner.kem_generate()
    }
    fn kem_public_key_validate(&self, key: &HpkePublicKey) -> Result<()> {
        self.inner.kem_public_key_validate(key)
    }
    fn random_bytes(&self, out: &mut [u8]) -> Result<()> {
        self.inner.random_bytes(out)
    }
    fn signature_key_generate(&self) -> Result<(SignatureSecretKey, SignaturePublicKey)> {
        self.inner.signature_key_generate()
    }
    fn signature_key_derive_public(
        &self,
        secret_key: &SignatureSecretKey,
    ) -> Result<SignaturePublicKey> {
        self.inner.signature_key_derive_public(secret_key)
    }
    fn verify(&self, public_key: &SignaturePublicKey, signature: &[u8], data: &[u8]) -> Result<()> {
        self.inner.verify(public_key, signature, data)
    }
}
