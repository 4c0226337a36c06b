//! Attestation: evidence that a key in custody is in hardware, for whoever does not trust this machine.
//!
//! A device makes an [`Envelope`]. The verifier needs no device and no daemon: it reads the envelope,
//! sends a [`Challenge`], and believes what it says when the [`Response`] is right ([`verify`]).
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

pub use chain::{MAX_INTERMEDIATES, Roots, RootsError};
pub use challenge::{Challenge, DeviceChallenge, Response, Secret};
pub use document::{DocumentError, MAX_DOCUMENT};
pub use envelope::{Claims, Envelope, Evidence, is_nonce};
pub use refusal::Refusal;
pub use transcript::Hash;

use mlskeyd_protocol::v1::Tier;
use pki_types::UnixTime;

/// What a verifier may believe of evidence that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The key is in the TPM that the manufacturer's certificate is for.
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
    examine(envelope, roots, now)?;
    match activation {
        None => Ok(Verdict::AkNotBound),
        Some(Activation { secret, response }) => {
            secret.verify(envelope.digest(), response)?;
            Ok(Verdict::Accepted)
        }
    }
}

/// Makes a challenge for the device that evidence came from, and the secret that its answer is checked
/// with. `Ok(None)` if the system has no randomness.
///
/// # Errors
/// Why the evidence is not believed, whatever the device would answer.
pub fn challenge(
    envelope: &Envelope,
    roots: &Roots,
    now: UnixTime,
) -> Result<Option<(Challenge, Secret)>, Refusal> {
    let examined = examine(envelope, roots, now)?;
    Ok(challenge::make(envelope.digest(), |secret| {
        examined.challenge(secret).map(DeviceChallenge::Tpm2)
    }))
}

/// Everything that can be said without asking the device.
fn examine(envelope: &Envelope, roots: &Roots, now: UnixTime) -> Result<tpm::Examined, Refusal> {
    if envelope.claims.tier != Tier::Hardware {
        return Err(Refusal::NotInHardware);
    }
    match &envelope.evidence {
        Evidence::Tpm2(evidence) => evidence.examine(&envelope.claims, roots, now),
    }
}
