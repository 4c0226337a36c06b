//! OpenMLS's names of algorithms in the protocol's, where custody serves them.

use mlskeyd_protocol::v1::{Aead, Kem, SignatureScheme as Scheme};
use openmls_traits::types::{
    Ciphersuite, HpkeAeadType, HpkeConfig, HpkeKdfType, HpkeKemType, SignatureScheme,
};

/// The cipher suites whose keys can be in custody: 0x0001, 0x0002, 0x0003 and 0x0007
/// (RFC 9420, 17.1). The last one needs an inner [`OpenMlsCrypto`] that has it, which
/// `openmls_rust_crypto` 0.6 does not say of itself.
///
/// [`OpenMlsCrypto`]: openmls_traits::crypto::OpenMlsCrypto
pub const CUSTODY_CIPHERSUITES: [Ciphersuite; 4] = [
    Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
    Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
    Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
    Ciphersuite::MLS_256_DHKEMP384_AES256GCM_SHA384_P384,
];

/// The KEM and the AEAD of `config`, if custody serves it.
pub(crate) const fn hpke(config: &HpkeConfig) -> Option<(Kem, Aead)> {
    let kem = match (config.0, config.1) {
        (HpkeKemType::DhKemP256, HpkeKdfType::HkdfSha256) => Kem::DhKemP256,
        (HpkeKemType::DhKemP384, HpkeKdfType::HkdfSha384) => Kem::DhKemP384,
        (HpkeKemType::DhKem25519, HpkeKdfType::HkdfSha256) => Kem::DhKemX25519,
        _ => return None,
    };
    match (kem, config.2) {
        (Kem::DhKemP384, HpkeAeadType::AesGcm256) => Some((kem, Aead::Aes256Gcm)),
        (Kem::DhKemP384, _) => None,
        (_, HpkeAeadType::AesGcm128) => Some((kem, Aead::Aes128Gcm)),
        (_, HpkeAeadType::ChaCha20Poly1305) => Some((kem, Aead::ChaCha20Poly1305)),
        (_, HpkeAeadType::AesGcm256 | HpkeAeadType::Export) => None,
    }
}

/// Length of a KEM's public key, in bytes.
pub(crate) const fn public_key_len(kem: Kem) -> usize {
    match kem {
        Kem::DhKemP256 => 65,
        Kem::DhKemP384 => 97,
        Kem::DhKemX25519 => 32,
    }
}

/// The signature scheme, if custody serves it.
pub(crate) const fn scheme(scheme: SignatureScheme) -> Option<Scheme> {
    match scheme {
        SignatureScheme::ECDSA_SECP256R1_SHA256 => Some(Scheme::EcdsaP256Sha256),
        SignatureScheme::ECDSA_SECP384R1_SHA384 => Some(Scheme::EcdsaP384Sha384),
        SignatureScheme::ED25519 => Some(Scheme::Ed25519),
        _ => None,
    }
}

/// OpenMLS's name of a signature scheme.
pub(crate) const fn openmls_scheme(scheme: Scheme) -> SignatureScheme {
    match scheme {
        Scheme::Ed25519 => SignatureScheme::ED25519,
        Scheme::EcdsaP256Sha256 => SignatureScheme::ECDSA_SECP256R1_SHA256,
        Scheme::EcdsaP384Sha384 => SignatureScheme::ECDSA_SECP384R1_SHA384,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_of_custody_is_served_whole() {
        for suite in CUSTODY_CIPHERSUITES {
            assert!(hpke(&suite.hpke_config()).is_some(), "{suite:?}");
            let here = scheme(suite.signature_algorithm()).unwrap();
            assert_eq!(openmls_scheme(here), suite.signature_algorithm());
        }
    }

    #[test]
    fn no_other_suite_is_taken_for_one_of_them() {
        let p256_with_aes256 = HpkeConfig(
            HpkeKemType::DhKemP256,
            HpkeKdfType::HkdfSha256,
            HpkeAeadType::AesGcm256,
        );
        assert!(hpke(&p256_with_aes256).is_none());
        let wrong_kdf = HpkeConfig(
            HpkeKemType::DhKem25519,
            HpkeKdfType::HkdfSha512,
            HpkeAeadType::AesGcm128,
        );
        assert!(hpke(&wrong_kdf).is_none());
        assert!(
            hpke(&Ciphersuite::MLS_256_DHKEMP521_AES256GCM_SHA512_P521.hpke_config()).is_none()
        );
        assert!(scheme(SignatureScheme::ED448).is_none());
    }
}
