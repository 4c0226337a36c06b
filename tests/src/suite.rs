//! The cipher suites of custody (RFC 9420, 17.1), and keys of them that an app
//! makes itself.

use mlskeyd_protocol::v1::*;
use openmls_rust_crypto::RustCrypto;
use openmls_traits::crypto::OpenMlsCrypto;
use openmls_traits::types::{self, HpkeAeadType, HpkeConfig, HpkeKdfType, HpkeKemType};

use crate::forge::opaque;

/// A cipher suite, in the protocol's words and in those of OpenMLS.
#[derive(Clone, Copy)]
pub struct Suite {
    pub number: u16,
    pub scheme: SignatureScheme,
    pub kem: Kem,
    pub aead: Aead,
}

pub const SUITE_1: Suite = Suite {
    number: 0x0001,
    scheme: SignatureScheme::Ed25519,
    kem: Kem::DhKemX25519,
    aead: Aead::Aes128Gcm,
};

pub const SUITE_2: Suite = Suite {
    number: 0x0002,
    scheme: SignatureScheme::EcdsaP256Sha256,
    kem: Kem::DhKemP256,
    aead: Aead::Aes128Gcm,
};

pub const SUITE_3: Suite = Suite {
    number: 0x0003,
    scheme: SignatureScheme::Ed25519,
    kem: Kem::DhKemX25519,
    aead: Aead::ChaCha20Poly1305,
};

pub const SUITE_7: Suite = Suite {
    number: 0x0007,
    scheme: SignatureScheme::EcdsaP384Sha384,
    kem: Kem::DhKemP384,
    aead: Aead::Aes256Gcm,
};

impl Suite {
    /// A path secret: as long as the hash of the suite's KDF (RFC 9420, 8).
    pub fn path_secret(self) -> Vec<u8> {
        vec![7; self.hash_len()]
    }

    /// GroupSecrets with a joiner secret and nothing else.
    pub fn group_secrets(self) -> Vec<u8> {
        [opaque(&vec![5; self.hash_len()]), vec![0, 0]].concat()
    }

    pub const fn hash_len(self) -> usize {
        match self.kem {
            Kem::DhKemP256 | Kem::DhKemX25519 => 32,
            Kem::DhKemP384 => 48,
        }
    }

    pub fn hpke_config(self) -> HpkeConfig {
        let (kem, kdf) = match self.kem {
            Kem::DhKemP256 => (HpkeKemType::DhKemP256, HpkeKdfType::HkdfSha256),
            Kem::DhKemP384 => (HpkeKemType::DhKemP384, HpkeKdfType::HkdfSha384),
            Kem::DhKemX25519 => (HpkeKemType::DhKem25519, HpkeKdfType::HkdfSha256),
        };
        let aead = match self.aead {
            Aead::Aes128Gcm => HpkeAeadType::AesGcm128,
            Aead::Aes256Gcm => HpkeAeadType::AesGcm256,
            Aead::ChaCha20Poly1305 => HpkeAeadType::ChaCha20Poly1305,
        };
        HpkeConfig(kem, kdf, aead)
    }

    const fn openmls_scheme(self) -> types::SignatureScheme {
        match self.scheme {
            SignatureScheme::Ed25519 => types::SignatureScheme::ED25519,
            SignatureScheme::EcdsaP256Sha256 => types::SignatureScheme::ECDSA_SECP256R1_SHA256,
            SignatureScheme::EcdsaP384Sha384 => types::SignatureScheme::ECDSA_SECP384R1_SHA384,
        }
    }
}

/// A signature key of the app's own.
pub struct OwnKey {
    scheme: types::SignatureScheme,
    private: Vec<u8>,
    pub public: Vec<u8>,
}

impl OwnKey {
    pub fn new(suite: Suite) -> Self {
        let scheme = suite.openmls_scheme();
        let (private, public) = RustCrypto::default()
            .signature_key_gen(scheme)
            .expect("RustCrypto has the suite");
        Self {
            scheme,
            private,
            public,
        }
    }

    pub fn sign(&self, content: &[u8]) -> Vec<u8> {
        let crypto = RustCrypto::default();
        crypto
            .sign(self.scheme, content, &self.private)
            .expect("RustCrypto has the suite")
    }
}

/// Does this public key verify it, as members of a group do?
pub fn verifies(suite: Suite, public: &[u8], content: &[u8], signature: &[u8]) -> bool {
    let crypto = RustCrypto::default();
    let verified = crypto.verify_signature(suite.openmls_scheme(), content, public, signature);
    verified.is_ok()
}

/// An HPKE key pair of the app's own.
pub fn own_hpke(suite: Suite, seed: u8) -> GeneratedHpke {
    let pair = RustCrypto::default().derive_hpke_keypair(suite.hpke_config(), &[seed; 48]);
    GeneratedHpke {
        key: KeyId::from_bytes([seed; 16]),
        public_key: Bytes(pair.expect("RustCrypto has the suite").public),
    }
}

/// A request to open what is sealed to `key` here.
pub fn sealed(suite: Suite, key: &GeneratedHpke, info: &[u8], plaintext: &[u8]) -> Open {
    let crypto = RustCrypto::default();
    let config = suite.hpke_config();
    let sealed = crypto.hpke_seal(config, &key.public_key, info, &[], plaintext);
    let sealed = sealed.expect("anybody can seal");
    Open {
        key: key.key,
        kem: suite.kem,
        aead: suite.aead,
        enc: Bytes::from(sealed.kem_output.as_slice()),
        info: Bytes::from(info),
        aad: Bytes::default(),
        ciphertext: Bytes::from(sealed.ciphertext.as_slice()),
    }
}
