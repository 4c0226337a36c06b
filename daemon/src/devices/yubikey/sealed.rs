//! Keys that are sealed under the key agreement key of a card.
//!
//! The key that encrypts a private key follows from two things: what the card computes
//! with its key agreement key and an ephemeral public key (of P-256), and the key of the
//! private key's generation, which is here. So sealing takes no card, opening takes
//! one that has its PIN, and destroying the generation destroys what it sealed.
//!
//! ```text
//! HKDF-SHA256(x-coordinate (32) | generation key (32), info: text | ephemeral (65) | agreement key (65))
//! ```

use hkdf::Hkdf;
use p256::elliptic_curve::sec1::ToEncodedPoint;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::devices::private_key::{self, PrivateKey};
use crate::devices::sealing::{self, Unauthentic};
use crate::devices::{Algorithm, DeviceError, Kem, PeerPublic};

/// A private key that a card helps to open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sealed {
    /// The ephemeral public key: 65 bytes.
    pub(super) ephemeral: Vec<u8>,
    /// The card's key agreement key that it was made for: 65 bytes.
    pub(super) agreement_key: Vec<u8>,
    /// The private key, encrypted.
    private: Vec<u8>,
}

/// Seals a private key for all that `context` says.
pub(super) fn seal(
    agreement_key: &p256::PublicKey,
    generation: &[u8; 32],
    context: &[u8],
    private: &[u8],
) -> Result<Sealed, DeviceError> {
    let (ephemeral, public) = private_key::generate(Algorithm::Hpke(Kem::DhKemP256))?;
    let peer = PeerPublic::P256(*agreement_key);
    let shared = private_key::agree(&ephemeral, &peer)?;
    let agreement_key = agreement_key.to_encoded_point(false).as_bytes().to_vec();
    let key = derive(shared.expose(), generation, &public, &agreement_key)?;
    Ok(Sealed {
        private: sealing::seal(&key, context, private)?,
        ephemeral: public,
        agreement_key,
    })
}

impl Sealed {
    /// Opens it with what the card has computed.
    pub(super) fn open(
        &self,
        shared: &[u8],
        generation: &[u8; 32],
        context: &[u8],
    ) -> Result<PrivateKey, DeviceError> {
        let key = derive(shared, generation, &self.ephemeral, &self.agreement_key)?;
        sealing::open(&key, context, &self.private).map_err(|Unauthentic| DeviceError::BadBlob)
    }
}

fn derive(
    shared: &[u8],
    generation: &[u8; 32],
    ephemeral: &[u8],
    agreement_key: &[u8],
) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
    let mut secret = Zeroizing::new(Vec::with_capacity(64));
    secret.extend_from_slice(shared);
    secret.extend_from_slice(generation);
    let mut key = Zeroizing::new([0; 32]);
    let info = [
        b"mlskeyd v1 yubikey sealed".as_slice(),
        ephemeral,
        agreement_key,
    ];
    Hkdf::<Sha256>::new(None, &secret)
        .expand_multi_info(&info, key.as_mut_slice())
        .map_err(|_| DeviceError::Failed {
            reason: "the key derivation failed".to_owned(),
        })?;
    Ok(key)
}
