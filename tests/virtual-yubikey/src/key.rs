//! The private keys in slots.

use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use rand_core::OsRng;

/// A private key.
#[derive(Clone)]
pub(crate) enum Key {
    P256(p256::SecretKey),
    P384(p384::SecretKey),
    Ed25519(ed25519_dalek::SigningKey),
    X25519(x25519_dalek::StaticSecret),
}

impl Key {
    /// A new one, by the card's number for its algorithm.
    pub(crate) fn generate(algorithm: u8) -> Option<Self> {
        Some(match algorithm {
            0x11 => Self::P256(p256::SecretKey::random(&mut OsRng)),
            0x14 => Self::P384(p384::SecretKey::random(&mut OsRng)),
            0xe0 => {
                let seed = random::<32>();
                Self::Ed25519(ed25519_dalek::SigningKey::from_bytes(&seed))
            }
            0xe1 => Self::X25519(x25519_dalek::StaticSecret::from(random::<32>())),
            _ => return None,
        })
    }

    /// One that somebody brings along.
    pub(crate) fn import(algorithm: u8, private: &[u8]) -> Option<Self> {
        Some(match algorithm {
            0x11 => Self::P256(p256::SecretKey::from_slice(private).ok()?),
            0x14 => Self::P384(p384::SecretKey::from_slice(private).ok()?),
            0xe0 => Self::Ed25519(ed25519_dalek::SigningKey::from_bytes(
                private.try_into().ok()?,
            )),
            0xe1 => {
                let private: [u8; 32] = private.try_into().ok()?;
                Self::X25519(private.into())
            }
            _ => return None,
        })
    }

    pub(crate) const fn algorithm(&self) -> u8 {
        match self {
            Self::P256(_) => 0x11,
            Self::P384(_) => 0x14,
            Self::Ed25519(_) => 0xe0,
            Self::X25519(_) => 0xe1,
        }
    }

    /// An uncompressed point, or 32 bytes.
    pub(crate) fn public(&self) -> Vec<u8> {
        match self {
            Self::P256(key) => key.public_key().to_encoded_point(false).as_bytes().to_vec(),
            Self::P384(key) => key.public_key().to_encoded_point(false).as_bytes().to_vec(),
            Self::Ed25519(key) => key.verifying_key().to_bytes().to_vec(),
            Self::X25519(key) => x25519_dalek::PublicKey::from(key).to_bytes().to_vec(),
        }
    }

    /// A signature over a hash of the curve's length or shorter, or a content for Ed25519.
    pub(crate) fn sign(&self, content: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::P256(key) => {
                let signer = p256::ecdsa::SigningKey::from(key);
                let signature: p256::ecdsa::Signature =
                    signer.sign_prehash(&filled_up::<32>(content)?).ok()?;
                Some(signature.to_der().as_bytes().to_vec())
            }
            Self::P384(key) => {
                let signer = p384::ecdsa::SigningKey::from(key);
                let signature: p384::ecdsa::Signature =
                    signer.sign_prehash(&filled_up::<48>(content)?).ok()?;
                Some(signature.to_der().as_bytes().to_vec())
            }
            Self::Ed25519(key) => {
                use ed25519_dalek::Signer as _;
                Some(key.sign(content).to_bytes().to_vec())
            }
            Self::X25519(_) => None,
        }
    }

    /// What it has in common with a peer.
    pub(crate) fn agree(&self, peer: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::P256(key) if peer.len() == 65 => {
                let peer = p256::PublicKey::from_sec1_bytes(peer).ok()?;
                let shared = p256::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
                Some(shared.raw_secret_bytes().to_vec())
            }
            Self::P384(key) if peer.len() == 97 => {
                let peer = p384::PublicKey::from_sec1_bytes(peer).ok()?;
                let shared = p384::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
                Some(shared.raw_secret_bytes().to_vec())
            }
            Self::X25519(key) => {
                let peer: [u8; 32] = peer.try_into().ok()?;
                let shared = key.diffie_hellman(&peer.into());
                shared
                    .was_contributory()
                    .then(|| shared.to_bytes().to_vec())
            }
            _ => None,
        }
    }
}

/// A hash as a number of so many bytes; `None`: it is longer.
fn filled_up<const N: usize>(hash: &[u8]) -> Option<[u8; N]> {
    let mut number = [0; N];
    let start = N.checked_sub(hash.len())?;
    number.get_mut(start..)?.copy_from_slice(hash);
    Some(number)
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    use rand_core::RngCore as _;

    let mut bytes = [0; N];
    OsRng.fill_bytes(&mut bytes);
    bytes
}
