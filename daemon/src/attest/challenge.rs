//! What a verifier asks a device again: a secret that only the right one can open, and what it answers.
//!
//! The secret itself never travels back. The answer is a MAC under it over the evidence that it was made
//! for, so it serves no other evidence, and no other verifier can have it made for its own purposes.

use rand_core::{OsRng, RngCore};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::Refusal;
use super::document::{self, Document, DocumentError};
use super::tpm::Tpm2Challenge;
use super::transcript::{Hash, hmac};

/// What the MAC is for.
const RESPONSE: &[u8] = b"mlskeyd attestation 1 response";

/// For the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// The digest of the evidence that is asked about.
    #[serde(with = "hex::serde")]
    pub evidence: Hash,
    /// What the device has to open.
    pub challenge: DeviceChallenge,
}

/// What a device has to open: one variant for each kind that is challenged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum DeviceChallenge {
    /// A TPM 2.0.
    Tpm2(Tpm2Challenge),
}

/// For the verifier alone.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    #[serde(with = "hex::serde")]
    evidence: Hash,
    #[serde(with = "hex::serde")]
    secret: [u8; 32],
}

/// What the device answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    #[serde(with = "hex::serde")]
    evidence: Hash,
    #[serde(with = "hex::serde")]
    proof: Hash,
}

/// Makes a challenge for this evidence.
pub(super) fn make(
    evidence: Hash,
    for_device: impl FnOnce(&[u8; 32]) -> Option<DeviceChallenge>,
) -> Option<(Challenge, Secret)> {
    let mut secret = Secret {
        evidence,
        secret: [0; 32],
    };
    OsRng.try_fill_bytes(&mut secret.secret).ok()?;
    let challenge = for_device(&secret.secret)?;
    Some((
        Challenge {
            evidence,
            challenge,
        },
        secret,
    ))
}

impl Challenge {
    /// Reads a challenge whole.
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

    /// The answer of whoever could open it.
    #[must_use]
    pub fn answer(&self, secret: &[u8; 32]) -> Response {
        Response {
            evidence: self.evidence,
            proof: proof(secret, &self.evidence),
        }
    }
}

impl Secret {
    /// Reads a secret whole.
    ///
    /// # Errors
    /// Why it is none.
    pub fn read(document: &[u8]) -> Result<Self, DocumentError> {
        document::read(document)
    }

    /// The document: for the verifier's eyes only.
    #[must_use]
    pub fn write(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(document::write(self))
    }

    /// Does the response show that the device which this evidence came from could open the challenge?
    pub(super) fn verify(&self, evidence: Hash, response: &Response) -> Result<(), Refusal> {
        if self.evidence != evidence {
            return Err(Refusal::OtherSecret);
        }
        if response.evidence != evidence {
            return Err(Refusal::OtherResponse);
        }
        if proof(&self.secret, &evidence).ct_eq(&response.proof).into() {
            Ok(())
        } else {
            Err(Refusal::WrongResponse)
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

impl Response {
    /// Reads a response whole.
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
}

impl Document for Challenge {
    const FORMAT: &'static str = "mlskeyd attestation challenge";
}

impl Document for Secret {
    const FORMAT: &'static str = "mlskeyd attestation secret";
}

impl Document for Response {
    const FORMAT: &'static str = "mlskeyd attestation response";
}

fn proof(secret: &[u8; 32], evidence: &Hash) -> Hash {
    hmac(secret, &[RESPONSE, evidence])
}
