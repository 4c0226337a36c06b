//! What is done with a bare private key, in the tiers in which the daemon does it.

use ed25519_dalek::ed25519::signature::Signer;
use rand_core::{OsRng, RngCore};
use secrecy::SecretSlice;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::{Algorithm, DeviceError, Kem, PeerPublic, SharedSecret, SignatureScheme};

/// A bare private key: 48 bytes for P-384, else 32.
pub(super) type PrivateKey = Zeroizing<Vec<u8>>;

/// Length of the private keys of an algorithm, in bytes.
pub(super) const fn len(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::Signature(SignatureScheme::EcdsaP384Sha384)
        | Algorithm::Hpke(Kem::DhKemP384) => 48,
        Algorithm::Signature(SignatureScheme::Ed25519 | SignatureScheme::EcdsaP256Sha256)
        | Algorithm::Hpke(Kem::DhKemP256 | Kem::DhKemX25519) => 32,
    }
}

/// Makes a key pair: the private key, and the public key as MLS writes it.
pub(super) fn generate(algorithm: Algorithm) -> Result<(PrivateKey, Vec<u8>), DeviceError> {
    // Draws again for the numbers that are no scalar: zero, or the group's order and
    // above, one draw in 2^32 of P-256.
    for _ in 0..8 {
        let private = random(len(algorithm))?;
        if let Some(public) = public(algorithm, &private) {
            return Ok((private, public));
        }
    }
    Err(DeviceError::Failed {
        reason: "the system's random bytes are not random".to_owned(),
    })
}

/// The public key of a private one, if that is one.
fn public(algorithm: Algorithm, private: &[u8]) -> Option<Vec<u8>> {
    match algorithm {
        Algorithm::Signature(SignatureScheme::Ed25519) => {
            let key = ed25519_dalek::SigningKey::try_from(private).ok()?;
            Some(key.verifying_key().to_bytes().to_vec())
        }
        Algorithm::Hpke(Kem::DhKemX25519) => {
            let key = StaticSecret::from(*x25519(private).ok()?);
            Some(x25519_dalek::PublicKey::from(&key).to_bytes().to_vec())
        }
        Algorithm::Signature(SignatureScheme::EcdsaP256Sha256)
        | Algorithm::Hpke(Kem::DhKemP256) => {
            let key = p256::SecretKey::from_slice(private).ok()?;
            Some(key.public_key().to_sec1_bytes().into_vec())
        }
        Algorithm::Signature(SignatureScheme::EcdsaP384Sha384)
        | Algorithm::Hpke(Kem::DhKemP384) => {
            let key = p384::SecretKey::from_slice(private).ok()?;
            Some(key.public_key().to_sec1_bytes().into_vec())
        }
    }
}

/// Signs the whole content; ECDSA over its hash of the curve's length, with the
/// nonce of RFC 6979.
pub(super) fn sign(
    scheme: SignatureScheme,
    private: &[u8],
    content: &[u8],
) -> Result<Vec<u8>, DeviceError> {
    check_len(Algorithm::Signature(scheme), private)?;
    let no_signature = || DeviceError::Failed {
        reason: "ECDSA gave no signature".to_owned(),
    };
    match scheme {
        SignatureScheme::Ed25519 => {
            let key = ed25519_dalek::SigningKey::try_from(private);
            let key = key.map_err(|_| DeviceError::BadBlob)?;
            Ok(key.sign(content).to_bytes().to_vec())
        }
        SignatureScheme::EcdsaP256Sha256 => {
            let key =
                p256::ecdsa::SigningKey::from_slice(private).map_err(|_| DeviceError::BadBlob)?;
            let signature: p256::ecdsa::Signature =
                key.try_sign(content).map_err(|_| no_signature())?;
            Ok(signature.to_der().as_bytes().to_vec())
        }
        SignatureScheme::EcdsaP384Sha384 => {
            let key =
                p384::ecdsa::SigningKey::from_slice(private).map_err(|_| DeviceError::BadBlob)?;
            let signature: p384::ecdsa::Signature =
                key.try_sign(content).map_err(|_| no_signature())?;
            Ok(signature.to_der().as_bytes().to_vec())
        }
    }
}

/// The DH result of a private key of the peer's KEM and the peer.
pub(super) fn agree(private: &[u8], peer: &PeerPublic) -> Result<SharedSecret, DeviceError> {
    check_len(Algorithm::Hpke(peer.kem()), private)?;
    let shared = match peer {
        PeerPublic::P256(peer) => {
            let key = p256::SecretKey::from_slice(private).map_err(|_| DeviceError::BadBlob)?;
            let shared = p256::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
            secret(shared.raw_secret_bytes())
        }
        PeerPublic::P384(peer) => {
            let key = p384::SecretKey::from_slice(private).map_err(|_| DeviceError::BadBlob)?;
            let shared = p384::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
            secret(shared.raw_secret_bytes())
        }
        PeerPublic::X25519(peer) => {
            let key = StaticSecret::from(*x25519(private)?);
            let shared = key.diffie_hellman(&x25519_dalek::PublicKey::from(*peer));
            secret(shared.as_bytes())
        }
    };
    SharedSecret::new(peer.kem(), shared)
}

/// The crates of the curves would take shorter ones for P-256 and P-384.
fn check_len(algorithm: Algorithm, private: &[u8]) -> Result<(), DeviceError> {
    if private.len() == len(algorithm) {
        return Ok(());
    }
    Err(DeviceError::BadBlob)
}

fn secret(bytes: &[u8]) -> SecretSlice<u8> {
    SecretSlice::from(bytes.to_vec())
}

fn x25519(private: &[u8]) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
    let private: &[u8; 32] = private.try_into().map_err(|_| DeviceError::BadBlob)?;
    Ok(Zeroizing::new(*private))
}

fn random(length: usize) -> Result<PrivateKey, DeviceError> {
    let mut bytes = Zeroizing::new(vec![0; length]);
    fill_random(&mut bytes)?;
    Ok(bytes)
}

/// Random bytes of the system.
pub(super) fn fill_random(bytes: &mut [u8]) -> Result<(), DeviceError> {
    OsRng
        .try_fill_bytes(bytes)
        .map_err(|_| DeviceError::Failed {
            reason: "the system gives no random bytes".to_owned(),
        })
}
