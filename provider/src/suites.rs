//! OpenMLS's names of algorithms in the protocol's, where custody serves them.

use mlskeyd_protocol::v1::{Aead, Kem, SignatureScheme as Scheme};
use openmls_traits::types::{
    Ciphersuite, HpkeAeadType, HpkeConfig, HpkeKdfType, HpkeKemType, SignatureScheme,
};

/// The cipher suites whose keys can be in custody: 0x0001, 0x0002 and 0x0003
/// (RFC 9420, 17.1).
pub const CUSTODY_CIPHERSUITES: [Ciphersuite; 3] = [
    Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
    Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
    Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
];

/// The KEM and the AEAD of `config`, if custody serves it.
pub(crate) const fn hpke(config: &HpkeConfig) -> Option<(Kem, Aead)> {
    let kem = match (config.0, config.1) {
        (HpkeKemType::DhKemP256, HpkeKdfType::HkdfSha256) => Kem::DhKemP256,
        (HpkeKemType::DhKem25519, HpkeKdfType::HkdfSha256) => Kem::DhKemX25519,
        _ => return None,
    };
    match config.2 {
        HpkeAeadType::AesGcm128 => Some((kem, Aead::Aes128Gcm)),
        HpkeAeadType::ChaCha20Poly1305 => Some((kem, Aead::ChaCha20Poly1305)),
        HpkeAeadType::AesGcm256 | HpkeAeadType::Export => None,
    }
}

/// Length of a KEM's public key, in bytes.
pub(crate) const fn public_key_len(kem: Kem) -> usize {
    match kem {
        Kem::DhKemP256 => 65,
        Kem::DhKemX25519 => 32,
    }
}

/// The signature scheme, if custody serves it.
pub(crate) const fn scheme(scheme: SignatureScheme) -> Option<Scheme> {
    match scheme {
        SignatureScheme::ECDSA_SECP256R1_SHA256 => Some(Scheme::EcdsaP256Sha256),
        SignatureScheme::ED25519 => Some(Scheme::Ed25519),
        _ => None,
    }
}

/// OpenMLS's name of a signature scheme.
pub(crate) const fn openmls_scheme(scheme: Scheme) -> SignatureScheme {
    match scheme {
        Scheme::Ed25519 => SignatureScheme::ED25519,
        Scheme::EcdsaP256Sha256 => SignatureScheme::ECDSA_SECP256R1_SHA256,
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
            hpke(&Ciphersuite::MLS_256_DHKEMP384_AES256GCM_SHA384_P384.hpke_config()).is_none()
        );
        assert!(scheme(SignatureScheme::ED448).is_none());
    }
}
