//! Attestation: what the machine makes, and what a verifier makes of it.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::limits::MAX_DEADLINE;
use mlskeyd_protocol::v1::{AnswerChallenge, AttestIdentity, Bytes, Owner};
use pki_types::UnixTime;
use serde_json::{Value, json};

use super::CtlError;
use super::attested::Device;
use super::commands::{Answer, Context};
use super::files::{at, create, read};
use super::table::printable;
use crate::attest::{
    Activation, DocumentError, Envelope, MAX_DOCUMENT, NoChallenge, Refusal, Response, Roots,
    Secret, Verdict, challenge, is_nonce, verify,
};
use crate::freeze_target::owner;
use crate::private_file;

/// Exit codes, as `--help` documents them.
const REFUSED: u8 = 6;
const NOT_BOUND: u8 = 7;

/// Longest file of trusted certificates: all makers' together have less.
const MAX_ROOTS: usize = 4 * 1024 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum AttestCommand {
    /// The machine: make evidence that an identity's signature key is in hardware
    Evidence {
        /// As `identities` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        identity: String,
        /// What the verifier chose: 16 to 64 bytes
        #[arg(long, value_name = "HEX", value_parser = nonce)]
        nonce: Nonce,
    },
    /// The verifier: make a challenge for the device that evidence came from
    ///
    /// Evidence of a YubiKey needs none: `attest verify` judges it as it is.
    Challenge {
        /// The evidence
        evidence: PathBuf,
        /// Certificates of the makers that are trusted, in PEM
        #[arg(long, value_name = "PEM")]
        roots: PathBuf,
        /// Where the challenge goes; it must not be there yet
        #[arg(long, value_name = "FILE")]
        out_challenge: PathBuf,
        /// Where the secret goes that the answer is checked with; it must not be there
        /// yet, and stays with the verifier
        #[arg(long, value_name = "FILE")]
        out_secret: PathBuf,
    },
    /// The machine: answer a challenge
    Activate {
        /// The device that the evidence came from
        device: String,
        /// The challenge
        challenge: PathBuf,
    },
    /// The verifier: judge evidence
    ///
    /// Of evidence of a TPM: without the response to a challenge it is not shown that the
    /// attestation key is in a TPM at all, so the verdict is no better than `ak-not-bound`.
    Verify {
        /// The evidence
        evidence: PathBuf,
        /// Certificates of the makers that are trusted, in PEM
        #[arg(long, value_name = "PEM")]
        roots: PathBuf,
        /// What the verifier chose
        #[arg(long, value_name = "HEX", value_parser = nonce)]
        nonce: Nonce,
        /// The secret of the challenge
        #[arg(long, value_name = "FILE", requires = "response")]
        secret: Option<PathBuf>,
        /// The answer to the challenge
        #[arg(long, value_name = "FILE", requires = "secret")]
        response: Option<PathBuf>,
    },
}

/// What a verifier chose. (Of bytes alone clap would make a list of values.)
#[derive(Clone, Debug)]
pub(super) struct Nonce(Vec<u8>);

fn nonce(text: &str) -> Result<Nonce, String> {
    match hex::decode(text) {
        Ok(nonce) if is_nonce(&nonce) => Ok(Nonce(nonce)),
        _ => Err("a nonce is 16 to 64 bytes in hexadecimal digits".to_owned()),
    }
}

pub(super) fn run(command: &AttestCommand, context: &Context) -> Result<Answer, CtlError> {
    let client = &context.client;
    // A chip may take minutes to make an RSA key.
    let call = &Call {
        deadline: MAX_DEADLINE,
        ..context.call
    };
    let show = |json: Value, text: String| context.text(&json, text);
    match command {
        AttestCommand::Evidence {
            owner,
            identity,
            nonce,
        } => {
            let request = AttestIdentity {
                owner: owner.clone(),
                name: identity.clone(),
                nonce: Bytes(nonce.0.clone()),
            };
            Ok(document(&client.attest_identity(request, call)?))
        }
        AttestCommand::Activate { device, challenge } => {
            let challenge = read(challenge, MAX_DOCUMENT)?;
            if Envelope::read(&challenge).is_ok_and(|one| !one.evidence.is_challenged()) {
                return Err(no_challenge());
            }
            let request = AnswerChallenge {
                device: device.clone(),
                challenge: Bytes(challenge),
            };
            Ok(document(&client.answer_challenge(request, call)?))
        }
        AttestCommand::Challenge {
            evidence,
            roots,
            out_challenge,
            out_secret,
        } => {
            let (evidence, roots) = (read(evidence, MAX_DOCUMENT)?, read_roots(roots)?);
            let envelope = match Envelope::read(&evidence).map_err(Refusal::Document) {
                Ok(envelope) => envelope,
                Err(refusal) => return Ok(Judged::refused(refusal).answer(show)),
            };
            let (challenge, secret) = match challenge(&envelope, &roots, UnixTime::now()) {
                Ok(made) => made,
                Err(NoChallenge::Refused(refusal)) => {
                    return Ok(Judged::refused(refusal).answer(show));
                }
                Err(NoChallenge::NotNeeded) => return Err(no_challenge()),
                Err(NoChallenge::Randomness) => return Err(CtlError::Randomness),
            };
            keep(out_secret, out_challenge, &secret, &challenge.write())?;
            Ok(challenged(&envelope, out_challenge, out_secret, show))
        }
        AttestCommand::Verify {
            evidence,
            roots,
            nonce,
            secret,
            response,
        } => {
            let (evidence, roots) = (read(evidence, MAX_DOCUMENT)?, read_roots(roots)?);
            let answer = match secret.as_deref().zip(response.as_deref()) {
                None => None,
                Some((secret, response)) => {
                    Some((read_secret(secret)?, read(response, MAX_DOCUMENT)?))
                }
            };
            let judged = judge(&evidence, &nonce.0, &roots, answer.as_ref());
            Ok(judged.unwrap_or_else(Judged::refused).answer(show))
        }
    }
}

/// What is said where one is neither made nor answered.
fn no_challenge() -> CtlError {
    CtlError::Usage(
        "evidence of a YubiKey needs no challenge: `mlskeyctl attest verify` judges it as it is"
            .to_owned(),
    )
}

/// What is said where a challenge was made.
fn challenged(
    envelope: &Envelope,
    challenge: &Path,
    secret: &Path,
    show: impl Fn(Value, String) -> String,
) -> Answer {
    let device = printable(&envelope.claims.device);
    let json = json!({
        "challenge": challenge,
        "secret": secret,
        "evidence": hex::encode(envelope.digest()),
        "claims": &envelope.claims,
    });
    let text = format!(
        "The challenge is in {}: have the machine answer it by `mlskeyctl attest activate {device} CHALLENGE`.\nKeep {} to yourself: `mlskeyctl attest verify` takes it together with the answer.\n",
        challenge.display(),
        secret.display(),
    );
    Answer {
        text: show(json, text),
        code: 0,
    }
}

/// What a verifier makes of evidence, and of the answer to its challenge.
fn judge(
    evidence: &[u8],
    nonce: &[u8],
    roots: &Roots,
    answer: Option<&(Secret, Vec<u8>)>,
) -> Result<Judged, Refusal> {
    let envelope = Envelope::read(evidence).map_err(Refusal::Document)?;
    let response = answer.map(|(_, response)| Response::read(response));
    let response = response.transpose().map_err(Refusal::Response)?;
    let activation = answer.zip(response.as_ref());
    let activation = activation.map(|((secret, _), response)| Activation { secret, response });
    let verdict = verify(&envelope, nonce, roots, UnixTime::now(), activation)?;
    Ok(Judged::believed(envelope, verdict))
}

/// What there is to say about evidence.
struct Judged {
    verdict: Result<Verdict, Refusal>,
    /// What may be believed, if it is not refused: who does not look at the verdict must not find claims
    /// that nobody believes.
    envelope: Option<Envelope>,
}

impl Judged {
    const fn refused(refusal: Refusal) -> Self {
        Self {
            verdict: Err(refusal),
            envelope: None,
        }
    }

    const fn believed(envelope: Envelope, verdict: Verdict) -> Self {
        Self {
            verdict: Ok(verdict),
            envelope: Some(envelope),
        }
    }

    fn answer(self, show: impl Fn(Value, String) -> String) -> Answer {
        let (verdict, code) = match &self.verdict {
            Ok(Verdict::Accepted) => ("accepted", 0),
            Ok(Verdict::AkNotBound) => ("ak-not-bound", NOT_BOUND),
            Err(_) => ("refused", REFUSED),
        };
        let envelope = self.envelope.as_ref();
        let device = envelope.map(|envelope| Device(&envelope.evidence));
        let detail = match &self.verdict {
            Ok(Verdict::Accepted) => {
                let noun = device.as_ref().map_or("device", Device::noun);
                format!("the key is in this {noun}, and nowhere else")
            }
            Ok(Verdict::AkNotBound) => {
                "the AK is not bound to this TPM: that takes a challenge, and its answer".to_owned()
            }
            Err(refusal) => refusal.to_string(),
        };
        let reason = self.verdict.as_ref().err().map(Refusal::code);
        let json = json!({
            "verdict": verdict,
            "reason": reason,
            "detail": detail,
            "evidence": envelope.map(|envelope| hex::encode(envelope.digest())),
            "ek_certificate": device.as_ref().and_then(Device::ek_certificate),
            "yubikey": device.as_ref().and_then(Device::yubikey),
            "claims": envelope.map(|envelope| &envelope.claims),
        });
        let because = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        let mut text = format!("{verdict}{because}: {}\n", printable(&detail));
        if let Some((envelope, device)) = envelope.zip(device) {
            let claims = &envelope.claims;
            text.push_str(&format!(
                "identity    {} of {}/{}\npublic key  {}\n{}",
                printable(&claims.identity),
                claims.uid,
                printable(&claims.app),
                hex::encode(&claims.public_key),
                device.text(),
            ));
        }
        Answer {
            text: show(json, text),
            code,
        }
    }
}

/// A document of the daemon's, for a pipe or a file: it is JSON with and without `--json`.
fn document(bytes: &[u8]) -> Answer {
    Answer {
        text: String::from_utf8_lossy(bytes).into_owned(),
        code: 0,
    }
}

fn read_roots(path: &Path) -> Result<Roots, CtlError> {
    let pem = read(path, MAX_ROOTS)?;
    if pem.len() > MAX_ROOTS {
        return Err(at(path, format!("longer than {MAX_ROOTS} bytes")));
    }
    Roots::from_pem(&pem).map_err(|error| at(path, error))
}

fn read_secret(path: &Path) -> Result<Secret, CtlError> {
    let document = zeroize::Zeroizing::new(read(path, MAX_DOCUMENT)?);
    Secret::read(&document).map_err(|error: DocumentError| at(path, printable(&error.to_string())))
}

/// Writes a secret and its challenge, each into a file that must not be there: neither is of use without the
/// other.
fn keep(
    secret_path: &Path,
    challenge_path: &Path,
    secret: &Secret,
    challenge: &str,
) -> Result<(), CtlError> {
    let secret = secret.write();
    private_file::create(secret_path, secret.as_bytes()).map_err(|error| at(secret_path, error))?;
    let written = create(challenge_path).and_then(|mut file| file.write_all(challenge.as_bytes()));
    written.map_err(|error| {
        let _ = std::fs::remove_file(secret_path);
        at(challenge_path, error)
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::commands::{Args, Command};
    use super::*;

    #[test]
    fn a_nonce_is_bytes_in_hexadecimal() {
        let given = |nonce: &str| {
            let evidence = [
                "mlskeyctl",
                "attest",
                "evidence",
                "0/app",
                "alice",
                "--nonce",
            ];
            Args::try_parse_from(evidence.iter().chain([&nonce]))
        };
        for right in ["00".repeat(16), "Ff".repeat(64)] {
            let Command::Attest {
                command: AttestCommand::Evidence { nonce, .. },
            } = given(&right).unwrap().command
            else {
                panic!("another command")
            };
            assert_eq!(nonce.0, hex::decode(right).unwrap());
        }
        for wrong in [
            "00".repeat(15),
            "00".repeat(65),
            "0".repeat(33),
            "x".repeat(32),
        ] {
            assert!(given(&wrong).is_err(), "{wrong}");
        }
    }
}
