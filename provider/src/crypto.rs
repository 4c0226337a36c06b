//! The cryptography: private HPKE operations go to the daemon, the rest is the
//! inner provider's.

use std::sync::Arc;

use mlskeyd_protocol::handle::Handle;
#[cfg(feature = "targeted-messages-draft")]
use openmls_traits::crypto::HpkeSealPskResolvedAadError;
use openmls_traits::crypto::OpenMlsCrypto;
use openmls_traits::types::{
    AeadType, Ciphersuite, CryptoError, ExporterSecret, HashType, HpkeCiphertext, HpkeConfig,
    HpkeKeyPair, KemOutput, SignatureScheme,
};
use tls_codec::SecretVLBytes;

use crate::failure::{Operation, ProviderError};
use crate::link::Link;
use crate::suites::{self, CUSTODY_CIPHERSUITES};
use crate::{fresh, memory};

/// Makes init and leaf keys in custody, and opens with them there.
///
/// Where OpenMLS expects the bytes of such a private key, it gets a handle.
/// Keys that MLS derives from group secrets (parent nodes, `external_priv`)
/// stay in software, as the protocol wants.
#[derive(Debug)]
pub struct CustodyCrypto<C> {
    inner: Arc<C>,
    link: Arc<Link>,
    require_custody: bool,
}

impl<C> Clone for CustodyCrypto<C> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            link: Arc::clone(&self.link),
            require_custody: self.require_custody,
        }
    }
}

impl<C> CustodyCrypto<C> {
    pub(crate) const fn new(inner: Arc<C>, link: Arc<Link>, require_custody: bool) -> Self {
        Self {
            inner,
            link,
            require_custody,
        }
    }

    fn generate(&self, config: HpkeConfig) -> Result<HpkeKeyPair, CryptoError> {
        let Some((kem, _)) = suites::hpke(&config) else {
            let error = ProviderError::no_custody_for(&config);
            self.link
                .watch()
                .failed(Operation::GenerateHpke, None, error);
            return Err(CryptoError::UnsupportedCiphersuite);
        };
        let (handle, public) = self
            .link
            .generate_hpke(kem)
            .map_err(|_| CryptoError::CryptoLibraryError)?;
        Ok(HpkeKeyPair {
            private: handle.to_bytes().as_slice().into(),
            public,
        })
    }

    fn open(
        &self,
        handle: Handle,
        config: &HpkeConfig,
        input: &HpkeCiphertext,
        info: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let Some(algorithms) = suites::hpke(config) else {
            // The KeyPackage's delete came before: it must not count as the app's.
            memory::opened(handle.key(), false);
            let error = ProviderError::no_custody_for(config);
            self.link
                .watch()
                .failed(Operation::Open, Some(handle.key()), error);
            return Err(CryptoError::UnsupportedCiphersuite);
        };
        let opened = self.link.open(handle.key(), algorithms, input, info, aad);
        memory::opened(handle.key(), opened.is_ok());
        opened.map_err(|_| CryptoError::HpkeDecryptionError)
    }

    /// Refuses an operation that no key in custody does.
    fn refuse(&self, handle: Handle, operation: Operation, what: &'static str) -> CryptoError {
        let error = ProviderError::OperationUnsupported(what);
        self.link
            .watch()
            .failed(operation, Some(handle.key()), error);
        CryptoError::CryptoLibraryError
    }
}

impl<C: OpenMlsCrypto> OpenMlsCrypto for CustodyCrypto<C> {
    /// With `require_custody`, only the suites whose keys can be in custody.
    fn supports(&self, ciphersuite: Ciphersuite) -> Result<(), CryptoError> {
        if self.require_custody && !CUSTODY_CIPHERSUITES.contains(&ciphersuite) {
            return Err(CryptoError::UnsupportedCiphersuite);
        }
        self.inner.supports(ciphersuite)
    }

    fn supported_ciphersuites(&self) -> Vec<Ciphersuite> {
        let mut suites = self.inner.supported_ciphersuites();
        suites.retain(|suite| self.supports(*suite).is_ok());
        suites
    }

    /// With the random bytes that this thread drew last: a new key pair in
    /// custody, made from the daemon's own randomness. Of the drawn bytes
    /// nothing is kept or sent. For a suite without custody it is refused if
    /// custody is required, else made in software, and the app is told.
    fn derive_hpke_keypair(
        &self,
        config: HpkeConfig,
        ikm: &[u8],
    ) -> Result<HpkeKeyPair, CryptoError> {
        if !fresh::is_fresh(ikm) {
            return self.inner.derive_hpke_keypair(config, ikm);
        }
        if self.require_custody || suites::hpke(&config).is_some() {
            return self.generate(config);
        }
        let told = ProviderError::made_in_software(&config);
        let pair = self.inner.derive_hpke_keypair(config, ikm)?;
        self.link
            .watch()
            .failed(Operation::GenerateHpke, None, told);
        Ok(pair)
    }

    fn hpke_open(
        &self,
        config: HpkeConfig,
        input: &HpkeCiphertext,
        sk_r: &[u8],
        info: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        match Handle::from_bytes(sk_r) {
            Some(handle) => self.open(handle, &config, input, info, aad),
            None => self.inner.hpke_open(config, input, sk_r, info, aad),
        }
    }

    /// Refused with a handle: no HPKE context leaves the daemon.
    fn hpke_setup_receiver_and_export(
        &self,
        config: HpkeConfig,
        enc: &[u8],
        sk_r: &[u8],
        info: &[u8],
        exporter_context: &[u8],
        exporter_length: usize,
    ) -> Result<ExporterSecret, CryptoError> {
        match Handle::from_bytes(sk_r) {
            Some(handle) => Err(self.refuse(handle, Operation::Export, "HPKE export")),
            None => self.inner.hpke_setup_receiver_and_export(
                config,
                enc,
                sk_r,
                info,
                exporter_context,
                exporter_length,
            ),
        }
    }

    /// Refused with a handle: keys in custody open in base mode only.
    #[cfg(feature = "targeted-messages-draft")]
    fn hpke_open_psk(
        &self,
        config: HpkeConfig,
        input: &HpkeCiphertext,
        sk_r: &[u8],
        info: &[u8],
        aad: &[u8],
        psk: &[u8],
        psk_id: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        match Handle::from_bytes(sk_r) {
            Some(handle) => Err(self.refuse(handle, Operation::Open, "HPKE's PSK mode")),
            None => self
                .inner
                .hpke_open_psk(config, input, sk_r, info, aad, psk, psk_id),
        }
    }

    // What follows knows no key in custody.

    fn hkdf_extract(
        &self,
        hash_type: HashType,
        salt: &[u8],
        ikm: &[u8],
    ) -> Result<SecretVLBytes, CryptoError> {
        self.inner.hkdf_extract(hash_type, salt, ikm)
    }

    fn hmac(
        &self,
        hash_type: HashType,
        key: &[u8],
        message: &[u8],
    ) -> Result<SecretVLBytes, CryptoError> {
        self.inner.hmac(hash_type, key, message)
    }

    fn hkdf_expand(
        &self,
        hash_type: HashType,
        prk: &[u8],
        info: &[u8],
        okm_len: usize,
    ) -> Result<SecretVLBytes, CryptoError> {
        self.inner.hkdf_expand(hash_type, prk, info, okm_len)
    }

    fn hash(&self, hash_type: HashType, data: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.inner.hash(hash_type, data)
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
        ct_tag: &[u8],
        nonce: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        self.inner.aead_decrypt(alg, key, ct_tag, nonce, aad)
    }

    /// A software key, as the inner provider makes it. OpenMLS never asks for
    /// one: its signers are the app's.
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

    /// With a software key, as the inner provider does it.
    fn sign(&self, alg: SignatureScheme, data: &[u8], key: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.inner.sign(alg, data, key)
    }

    fn hpke_seal(
        &self,
        config: HpkeConfig,
        pk_r: &[u8],
        info: &[u8],
        aad: &[u8],
        ptxt: &[u8],
    ) -> Result<HpkeCiphertext, CryptoError> {
        self.inner.hpke_seal(config, pk_r, info, aad, ptxt)
    }

    fn hpke_setup_sender_and_export(
        &self,
        config: HpkeConfig,
        pk_r: &[u8],
        info: &[u8],
        exporter_context: &[u8],
        exporter_length: usize,
    ) -> Result<(KemOutput, ExporterSecret), CryptoError> {
        self.inner.hpke_setup_sender_and_export(
            config,
            pk_r,
            info,
            exporter_context,
            exporter_length,
        )
    }

    #[cfg(feature = "targeted-messages-draft")]
    fn hpke_seal_psk_resolved_aad<F, E>(
        &self,
        config: HpkeConfig,
        pk_r: &[u8],
        info: &[u8],
        ptxt: &[u8],
        psk: &[u8],
        psk_id: &[u8],
        aad_builder: F,
    ) -> Result<HpkeCiphertext, HpkeSealPskResolvedAadError<E>>
    where
        F: FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    {
        self.inner
            .hpke_seal_psk_resolved_aad(config, pk_r, info, ptxt, psk, psk_id, aad_builder)
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
