//! Verifies signatures of the schemes that keys in custody have.

use mlskeyd_protocol::v1::{Kem, SignatureScheme};

use ed25519_dalek::{Signature as Ed25519Signature, VerifyingKey as Ed25519Key};
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{DerSignature, VerifyingKey as P256Key};
use sha2::{Digest, Sha256, Sha384};

/// The signature scheme of a cipher suite (RFC 9420 section 17.1), if it is supported.
pub fn scheme_of_cipher_suite(cipher_suite: u16) -> Option<SignatureScheme> {
    match cipher_suite {
        1 | 3 => Some(SignatureScheme::Ed25519),
        2 => Some(SignatureScheme::EcdsaP256Sha256),
        7 => Some(SignatureScheme::EcdsaP384Sha384),
        _ => None,
    }
}

/// The KEM of a cipher suite (RFC 9420 section 17.1), if it is supported.
pub fn kem_of_cipher_suite(cipher_suite: u16) -> Option<Kem> {
    match cipher_suite {
        1 | 3 => Some(Kem::DhKemX25519),
        2 => Some(Kem::DhKemP256),
        7 => Some(Kem::DhKemP384),
        _ => None,
    }
}

/// The hash of these bytes by a cipher suite's function (RFC 9420 section 17.1), if the suite is supported.
pub fn hash_of_cipher_suite(cipher_suite: u16, bytes: &[u8]) -> Option<Vec<u8>> {
    match cipher_suite {
        1..=3 => Some(Sha256::digest(bytes).to_vec()),
        7 => Some(Sha384::digest(bytes).to_vec()),
        _ => None,
    }
}

/// Whether `signature` is one over `content` by the owner of `public_key`. A malformed key or signature is a wrong
/// one. Ed25519 is verified strictly: no weak keys, no malleable signatures.
pub fn verify(
    scheme: SignatureScheme,
    public_key: &[u8],
    content: &[u8],
    signature: &[u8],
) -> bool {
    match scheme {
        SignatureScheme::Ed25519 => verify_ed25519(public_key, content, signature).is_some(),
        SignatureScheme::EcdsaP256Sha256 => verify_p256(public_key, content, signature).is_some(),
        SignatureScheme::EcdsaP384Sha384 => verify_p384(public_key, content, signature).is_some(),
    }
}

fn verify_ed25519(public_key: &[u8], content: &[u8], signature: &[u8]) -> Option<()> {
    let key = Ed25519Key::from_bytes(public_key.try_into().ok()?).ok()?;
    let signature = Ed25519Signature::from_slice(signature).ok()?;
    key.verify_strict(content, &signature).ok()
}

fn verify_p256(public_key: &[u8], content: &[u8], signature: &[u8]) -> Option<()> {
    // SEC1 knows compressed points too; MLS does not (RFC 9420 section 5.1.1).
    if public_key.len() != 65 {
        return None;
    }
    let key = P256Key::from_sec1_bytes(public_key).ok()?;
    let signature = DerSignature::try_from(signature).ok()?;
    key.verify(content, &signature).ok()
}

fn verify_p384(public_key: &[u8], content: &[u8], signature: &[u8]) -> Option<()> {
    if public_key.len() != 97 {
        return None;
    }
    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(public_key).ok()?;
    let signature = p384::ecdsa::DerSignature::try_from(signature).ok()?;
    key.verify(content, &signature).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    #[test]
    fn ed25519() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = key.verifying_key().to_bytes();
        let signature = key.sign(b"content").to_bytes();
        let ok = |p: &[u8], c: &[u8], s: &[u8]| verify(SignatureScheme::Ed25519, p, c, s);
        assert!(ok(&public, b"content", &signature));
        assert!(!ok(&public, b"Content", &signature));
        assert!(!ok(&public[1..], b"content", &signature));
        assert!(!ok(&public, b"content", &signature[..63]));
        assert!(!ok(&[8; 32], b"content", &signature));
    }

    #[test]
    fn ed25519_refuses_a_weak_key() {
        // The neutral element as key, and as R with s = 0: passes lax verification for every content.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!verify(
            SignatureScheme::Ed25519,
            &neutral,
            b"any",
            &signature
        ));
    }

    #[test]
    fn p256() {
        let key = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let public = key.verifying_key().to_encoded_point(false);
        let compressed = key.verifying_key().to_encoded_point(true);
        let signature: p256::ecdsa::Signature = key.sign(b"content");
        let der = signature.to_der();
        let ok = |p: &[u8], c: &[u8], s: &[u8]| verify(SignatureScheme::EcdsaP256Sha256, p, c, s);
        assert!(ok(public.as_bytes(), b"content", der.as_bytes()));
        assert!(!ok(public.as_bytes(), b"Content", der.as_bytes()));
        assert!(!ok(compressed.as_bytes(), b"content", der.as_bytes()));
        assert!(!ok(public.as_bytes(), b"content", &signature.to_bytes()));
        assert!(!ok(public.as_bytes(), b"content", &[]));
        assert!(!ok(&[4; 65], b"content", der.as_bytes()));
    }

    #[test]
    fn p384() {
        let key = p384::ecdsa::SigningKey::from_slice(&[7; 48]).unwrap();
        let public = key.verifying_key().to_encoded_point(false);
        let compressed = key.verifying_key().to_encoded_point(true);
        let signature: p384::ecdsa::Signature = key.sign(b"content");
        let der = signature.to_der();
        let ok = |p: &[u8], c: &[u8], s: &[u8]| verify(SignatureScheme::EcdsaP384Sha384, p, c, s);
        assert!(ok(public.as_bytes(), b"content", der.as_bytes()));
        assert!(!ok(public.as_bytes(), b"Content", der.as_bytes()));
        assert!(!ok(compressed.as_bytes(), b"content", der.as_bytes()));
        assert!(!ok(public.as_bytes(), b"content", &signature.to_bytes()));
        assert!(!ok(&[4; 97], b"content", der.as_bytes()));
    }
}
