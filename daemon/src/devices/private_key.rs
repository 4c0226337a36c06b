//! What is done with a bare private key of 32 bytes, in the tiers in which the
//! daemon does it.

use ed25519_dalek::ed25519::signature::Signer;
use rand_core::{OsRng, RngCore};
use secrecy::SecretBox;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::{Algorithm, DeviceError, Kem, PeerPublic, SharedSecret, SignatureScheme};

/// Makes a key pair: the private key, and the public key as MLS writes it.
pub(super) fn generate(
    algorithm: Algorithm,
) -> Result<(Zeroizing<[u8; 32]>, Vec<u8>), DeviceError> {
    match algorithm {
        Algorithm::Signature(SignatureScheme::Ed25519) => {
            let private = random()?;
            let public = ed25519_dalek::SigningKey::from_bytes(&private).verifying_key();
            Ok((private, public.to_bytes().to_vec()))
        }
        Algorithm::Hpke(Kem::DhKemX25519) => {
            let private = random()?;
            let public = x25519_dalek::PublicKey::from(&StaticSecret::from(*private));
            Ok((private, public.to_bytes().to_vec()))
        }
        Algorithm::Signature(SignatureScheme::EcdsaP256Sha256)
        | Algorithm::Hpke(Kem::DhKemP256) => generate_p256(),
    }
}

/// Signs the whole content; ECDSA over its SHA-256, with the nonce of RFC 6979.
pub(super) fn sign(
    scheme: SignatureScheme,
    private: &[u8; 32],
    content: &[u8],
) -> Result<Vec<u8>, DeviceError> {
    match scheme {
        SignatureScheme::Ed25519 => {
            let key = ed25519_dalek::SigningKey::from_bytes(private);
            Ok(key.sign(content).to_bytes().to_vec())
        }
        SignatureScheme::EcdsaP256Sha256 => {
            let key =
                p256::ecdsa::SigningKey::from_slice(private).map_err(|_| DeviceError::BadBlob)?;
            let signature: p256::ecdsa::Signature =
                key.try_sign(content).map_err(|_| DeviceError::Failed {
                    reason: "ECDSA gave no signature".to_owned(),
                })?;
            Ok(signature.to_der().as_bytes().to_vec())
        }
    }
}

/// The DH result of a private key of the peer's KEM and the peer.
pub(super) fn agree(private: &[u8; 32], peer: &PeerPublic) -> Result<SharedSecret, DeviceError> {
    let mut result = SecretBox::new(Box::new([0; 32]));
    match peer {
        PeerPublic::P256(peer) => {
            let key = p256::SecretKey::from_slice(private).map_err(|_| DeviceError::BadBlob)?;
            let shared = p256::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
            copy_secret(&mut result, shared.raw_secret_bytes());
        }
        PeerPublic::X25519(peer) => {
            let shared =
                StaticSecret::from(*private).diffie_hellman(&x25519_dalek::PublicKey::from(*peer));
            copy_secret(&mut result, shared.as_bytes());
        }
    }
    SharedSecret::new(peer.kem(), result)
}

fn copy_secret(to: &mut SecretBox<[u8; 32]>, from: &[u8]) {
    use secrecy::ExposeSecretMut as _;
    for (to, from) in to.expose_secret_mut().iter_mut().zip(from) {
        *to = *from;
    }
}

/// Draws again for the numbers that are no scalar: zero, or the group's order
/// and above, one draw in 2^32.
fn generate_p256() -> Result<(Zeroizing<[u8; 32]>, Vec<u8>), DeviceError> {
    for _ in 0..8 {
        let private = random()?;
        if let Ok(key) = p256::SecretKey::from_slice(private.as_slice()) {
            let public = key.public_key().to_sec1_bytes();
            return Ok((private, public.into_vec()));
        }
    }
    Err(DeviceError::Failed {
        reason: "the system's random bytes are not random".to_owned(),
    })
}

fn random() -> Result<Zeroizing<[u8; 32]>, DeviceError> {
    let mut bytes = Zeroizing::new([0; 32]);
    fill_random(bytes.as_mut_slice())?;
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
