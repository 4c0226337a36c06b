//! The signatures on the certificates of chips: those of RustCrypto, as webpki wants to ask them.

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use rsa::pkcs1::DecodeRsaPublicKey;
use rsa::traits::PublicKeyParts;
use sha2::{Digest, Sha256, Sha384, Sha512};

/// Smallest modulus of an RSA key that signs certificates, in bytes.
const MIN_RSA: usize = 256;

/// What the makers of TPMs sign with: RSA, and ECDSA on the curves up to P-521, with SHA-2.
pub(super) const ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    &Algorithm {
        key: alg_id::RSA_ENCRYPTION,
        signature: alg_id::RSA_PKCS1_SHA256,
        verify: rsa::<rsa::sha2::Sha256>,
    },
    &Algorithm {
        key: alg_id::RSA_ENCRYPTION,
        signature: alg_id::RSA_PKCS1_SHA384,
        verify: rsa::<rsa::sha2::Sha384>,
    },
    &Algorithm {
        key: alg_id::RSA_ENCRYPTION,
        signature: alg_id::RSA_PKCS1_SHA512,
        verify: rsa::<rsa::sha2::Sha512>,
    },
    &Algorithm {
        key: alg_id::ECDSA_P256,
        signature: alg_id::ECDSA_SHA256,
        verify: p256::<Sha256>,
    },
    &Algorithm {
        key: alg_id::ECDSA_P256,
        signature: alg_id::ECDSA_SHA384,
        verify: p256::<Sha384>,
    },
    &Algorithm {
        key: alg_id::ECDSA_P384,
        signature: alg_id::ECDSA_SHA256,
        verify: p384::<Sha256>,
    },
    &Algorithm {
        key: alg_id::ECDSA_P384,
        signature: alg_id::ECDSA_SHA384,
        verify: p384::<Sha384>,
    },
    &Algorithm {
        key: alg_id::ECDSA_P384,
        signature: alg_id::ECDSA_SHA512,
        verify: p384::<Sha512>,
    },
    &Algorithm {
        key: alg_id::ECDSA_P521,
        signature: alg_id::ECDSA_SHA384,
        verify: p521::<Sha384>,
    },
    &Algorithm {
        key: alg_id::ECDSA_P521,
        signature: alg_id::ECDSA_SHA512,
        verify: p521::<Sha512>,
    },
];

/// Verifies, by a key, a message's signature.
type Verify = fn(&[u8], &[u8], &[u8]) -> Option<()>;

/// One combination of a key and a hash.
#[derive(Debug)]
struct Algorithm {
    key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    verify: Verify,
}

impl SignatureVerificationAlgorithm for Algorithm {
    fn verify_signature(
        &self,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        (self.verify)(key, message, signature).ok_or(InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

/// PKCS#1 v1.5.
fn rsa<D>(key: &[u8], message: &[u8], signature: &[u8]) -> Option<()>
where
    D: rsa::sha2::Digest + rsa::pkcs8::AssociatedOid,
{
    let key = rsa::PublicKey::from_pkcs1_der(key).ok()?;
    if key.size() < MIN_RSA {
        return None;
    }
    key.pkcs1v15_verify::<D>(message, signature).ok()
}

/// ECDSA on a curve, with any hash.
macro_rules! ecdsa {
    ($curve:ident) => {
        fn $curve<D: Digest>(key: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
            let key = ::$curve::ecdsa::VerifyingKey::from_sec1_bytes(key).ok()?;
            let signature = ::$curve::ecdsa::Signature::from_der(signature).ok()?;
            key.verify_prehash(&D::digest(message), &signature).ok()
        }
    };
}

ecdsa!(p256);
ecdsa!(p384);
ecdsa!(p521);
