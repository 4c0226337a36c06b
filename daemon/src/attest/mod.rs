//! Attestation: evidence that a key in custody is in hardware, for whoever does not trust this machine.
//!
//! A device makes an [`Envelope`]. The verifier needs no device and no daemon: it reads the envelope,
//! sends a [`Challenge`] if the device is of a kind that takes one, and believes what it says when the
//! [`Response`] is right ([`verify`]).
//! docs/attestation.md describes all documents, and what they prove.

mod chain;
mod challenge;
mod document;
mod envelope;
mod names;
mod refusal;
mod signatures;
#[cfg(test)]
mod tests;
pub mod tpm;
mod transcript;
pub mod yubikey;

pub(crate) use chain::verify_chain;
pub use chain::{MAX_INTERMEDIATES, Roots, RootsError};
pub use challenge::{Challenge, DeviceChallenge, Response, Secret};
pub use document::{DocumentError, MAX_DOCUMENT};
pub use envelope::{Claims, Envelope, Evidence, HexBytes, is_nonce};
pub use refusal::Refusal;
pub use transcript::Hash;

use mlskeyd_protocol::v1::Tier;
use pki_types::UnixTime;

/// What a verifier may believe of evidence that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The key is in the TPM that the manufacturer's certificate is for, or in the YubiKey that Yubico's is
    /// for.
    Accepted,
    /// The key is where the AK is; that the AK is in a TPM was not shown yet.
    AkNotBound,
}

/// What a verifier has sent to a device, and got back.
#[derive(Clone, Copy, Debug)]
pub struct Activation<'a> {
    /// The secret that it kept.
    pub secret: &'a Secret,
    /// What came back.
    pub response: &'a Response,
}

/// Why there is no challenge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoChallenge {
    /// The evidence is not believed, whatever the device would answer.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is nothing left to ask: [`verify`] accepts the evidence as it is.
    #[error("such evidence needs no challenge")]
    NotNeeded,
    /// The system has no randomness.
    #[error("the system has no randomness for a challenge")]
    Randomness,
}

/// Evidence that is right, as far as can be said without asking the device again.
enum Examined {
    /// The TPM is to be asked again.
    Tpm2(tpm::Examined),
    /// Nothing is left to ask.
    Whole,
}

/// Judges evidence.
///
/// # Errors
/// Why it is not believed.
pub fn verify(
    envelope: &Envelope,
    nonce: &[u8],
    roots: &Roots,
    now: UnixTime,
    activation: Option<Activation<'_>>,
) -> Result<Verdict, Refusal> {
    if envelope.claims.nonce != nonce {
        return Err(Refusal::OtherNonce);
    }
    match (examine(envelope, roots, now)?, activation) {
        (Examined::Whole, None) => Ok(Verdict::Accepted),
        // No challenge was ever made for it.
        (Examined::Whole, Some(_)) => Err(Refusal::OtherSecret),
        (Examined::Tpm2(_), None) => Ok(Verdict::AkNotBound),
        (Examined::Tpm2(_), Some(Activation { secret, response })) => {
            secret.verify(envelope.digest(), response)?;
            Ok(Verdict::Accepted)
        }
    }
}

/// Makes a challenge for the device that evidence came from, and the secret that its answer is checked
/// with.
///
/// # Errors
/// Why there is none.
pub fn challenge(
    envelope: &Envelope,
    roots: &Roots,
    now: UnixTime,
) -> Result<(Challenge, Secret), NoChallenge> {
    let Examined::Tpm2(examined) = examine(envelope, roots, now)? else {
        return Err(NoChallenge::NotNeeded);
    };
    let made = challenge::make(envelope.digest(), |secret| {
        examined.challenge(secret).map(DeviceChallenge::Tpm2)
    });
    made.ok_or(NoChallenge::Randomness)
}

/// Everything that can be said without asking the device.
fn examine(envelope: &Envelope, roots: &Roots, now: UnixTime) -> Result<Examined, Refusal> {
    let claims = &envelope.claims;
    if claims.tier != Tier::Hardware {
        return Err(Refusal::NotInHardware);
    }
    match &envelope.evidence {
        Evidence::Tpm2(evidence) => evidence.examine(claims, roots, now).map(Examined::Tpm2),
        Evidence::YubiKey(evidence) => evidence
            .examine(claims, roots, now)
            .map(|()| Examined::Whole),
    }
}
