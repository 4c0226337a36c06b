//! The envelope: what is claimed of a key, and the evidence of its device's kind. One format for all kinds
//! of devices; docs/attestation.md describes it.

use mlskeyd_protocol::limits::{MAX_NAME, MAX_NONCE, MAX_PUBLIC_KEY, MIN_NONCE};
use mlskeyd_protocol::v1::{Algorithm, Tier};
use serde::{Deserialize, Serialize};

use super::document::{self, Document, DocumentError};
use super::names::{self, Named};
use super::tpm::Tpm2Evidence;
use super::transcript::Hash;
use super::yubikey::YubiKeyEvidence;

/// Evidence that a key is in a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// What is claimed.
    pub claims: Claims,
    /// What proves it.
    pub evidence: Evidence,
}

/// What is claimed of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The owner's user id.
    pub uid: u32,
    /// The owner's app.
    pub app: String,
    /// The identity that the key signs for.
    pub identity: String,
    /// The device's name in the daemon's configuration.
    pub device: String,
    /// The key's name in custody, as in the audit log.
    #[serde(with = "hex::serde")]
    pub key: [u8; 16],
    /// What the key is for.
    #[serde(with = "names")]
    pub algorithm: Algorithm,
    /// How it is kept.
    #[serde(with = "names")]
    pub tier: Tier,
    /// The public key, as MLS writes it.
    #[serde(with = "hex::serde")]
    pub public_key: Vec<u8>,
    /// What the verifier chose, so that this cannot be older.
    #[serde(with = "hex::serde")]
    pub nonce: Vec<u8>,
}

/// What proves the claims: one variant for each kind of device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Evidence {
    /// A TPM 2.0.
    Tpm2(Tpm2Evidence),
    /// A YubiKey's PIV application.
    YubiKey(YubiKeyEvidence),
}

/// Bytes that a document writes in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HexBytes(#[serde(with = "hex::serde")] pub Vec<u8>);

impl Evidence {
    /// Does it prove anything only together with the answer to a challenge?
    #[must_use]
    pub const fn is_challenged(&self) -> bool {
        match self {
            Self::Tpm2(_) => true,
            Self::YubiKey(_) => false,
        }
    }
}

impl Envelope {
    /// Reads an envelope whole. Nothing in it is verified by that.
    ///
    /// # Errors
    /// Why it is none.
    pub fn read(document: &[u8]) -> Result<Self, DocumentError> {
        document::read(document)
    }

    /// The document.
    #[must_use]
    pub fn write(&self) -> String {
        document::write(self)
    }

    /// What names this envelope: no other one has the same, whatever its document looks like.
    #[must_use]
    pub fn digest(&self) -> Hash {
        match &self.evidence {
            Evidence::Tpm2(evidence) => evidence.digest(&self.claims),
            Evidence::YubiKey(evidence) => evidence.digest(&self.claims),
        }
    }
}

impl Document for Envelope {
    const FORMAT: &'static str = "mlskeyd attestation evidence";
    const NEWEST: u32 = 2;

    fn version(&self) -> u32 {
        match self.evidence {
            Evidence::Tpm2(_) => 1,
            Evidence::YubiKey(_) => 2,
        }
    }

    fn check(&self) -> Result<(), String> {
        let claims = &self.claims;
        let names = [
            ("the app's name", &claims.app),
            ("the identity's name", &claims.identity),
            ("the device's name", &claims.device),
        ];
        for (what, name) in names {
            if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
                return Err(format!(
                    "{what} is not 1 to {MAX_NAME} bytes without control characters"
                ));
            }
        }
        if claims.public_key.is_empty() || claims.public_key.len() > MAX_PUBLIC_KEY {
            return Err(format!("the public key is not 1 to {MAX_PUBLIC_KEY} bytes"));
        }
        if !is_nonce(&claims.nonce) {
            return Err(format!("the nonce is not {MIN_NONCE} to {MAX_NONCE} bytes"));
        }
        match &self.evidence {
            Evidence::Tpm2(evidence) => evidence.check(),
            Evidence::YubiKey(evidence) => evidence.check(),
        }
    }
}

/// Is this long enough that nobody can guess it, and no longer than need be?
#[must_use]
pub fn is_nonce(bytes: &[u8]) -> bool {
    (MIN_NONCE..=MAX_NONCE).contains(&bytes.len())
}

impl Claims {
    /// The hash of all of them.
    pub(super) fn digest(&self) -> Hash {
        super::transcript::hash(
            "mlskeyd attestation 1 claims",
            &[
                &self.uid.to_be_bytes(),
                self.app.as_bytes(),
                self.identity.as_bytes(),
                self.device.as_bytes(),
                &self.key,
                self.algorithm.name().as_bytes(),
                self.tier.name().as_bytes(),
                &self.public_key,
                &self.nonce,
            ],
        )
    }
}
