//! Evidence of TPMs that say what a test wants, from makers that issue what a test wants. What real ones
//! say is in the tests of the whole system.

mod authority;
mod chains;
mod chip;
mod forgeries;
mod mutations;
mod recorded;
mod yubikey;

use std::collections::BTreeSet;
use std::time::Duration;

use pki_types::UnixTime;

use super::*;
use authority::{Authority, NOW, Signing};
use chip::{Chip, NONCE};

/// A maker, one of its TPMs, and a verifier that trusts the maker.
struct Scene {
    maker: Authority,
    chip: Chip,
    roots: Roots,
}

impl Scene {
    fn new() -> Self {
        let maker = Authority::root("maker", Signing::p256());
        Self {
            chip: Chip::of(&maker),
            roots: Roots::from_pem(maker.pem().as_bytes()).unwrap(),
            maker,
        }
    }

    /// The verdict before anything was asked again.
    fn verdict(&self, envelope: &Envelope) -> Result<Verdict, &'static str> {
        let verdict = verify(envelope, &NONCE, &self.roots, now(), None);
        verdict.map_err(|refusal| refusal.code())
    }

    fn challenge(&self, envelope: &Envelope) -> (Challenge, Secret) {
        challenge(envelope, &self.roots, now()).unwrap()
    }

    /// The verdict after this response.
    fn bound(
        &self,
        envelope: &Envelope,
        secret: &Secret,
        response: &Response,
    ) -> Result<Verdict, &'static str> {
        let activation = Some(Activation { secret, response });
        let verdict = verify(envelope, &NONCE, &self.roots, now(), activation);
        verdict.map_err(|refusal| refusal.code())
    }
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW))
}

/// What a TPM makes of a challenge with its own attestation key, or with another one.
fn answer(chip: &Chip, challenge: &Challenge, ak: &chip::Area) -> Option<Response> {
    let DeviceChallenge::Tpm2(tpm) = &challenge.challenge;
    let secret = chip.activate(&ak.name(), &tpm.credential, &tpm.encrypted_seed)?;
    Some(challenge.answer(&secret))
}

#[test]
fn honest_evidence_is_accepted_when_the_tpm_has_answered() {
    let scene = Scene::new();
    let speech = scene.chip.speech();
    let envelope = Envelope::read(speech.sign().write().as_bytes()).unwrap();
    assert_eq!(scene.verdict(&envelope), Ok(Verdict::AkNotBound));
    let (challenge, secret) = scene.challenge(&envelope);
    // All of them travel as documents.
    let challenge = Challenge::read(challenge.write().as_bytes()).unwrap();
    let secret = Secret::read(secret.write().as_bytes()).unwrap();
    let response = answer(&scene.chip, &challenge, &speech.ak).unwrap();
    let response = Response::read(response.write().as_bytes()).unwrap();
    let verdict = scene.bound(&envelope, &secret, &response);
    assert_eq!(verdict, Ok(Verdict::Accepted));
}

/// It stays in the TPM however it is authorised there.
#[test]
fn a_key_under_a_policy_is_accepted_as_one_without() {
    let scene = Scene::new();
    let mut speech = scene.chip.speech();
    speech.key.attributes &= !tpm::attribute::USER_WITH_AUTH;
    speech.key.attributes |= tpm::attribute::ADMIN_WITH_POLICY;
    speech.key.policy = vec![7; 32];
    assert_eq!(scene.verdict(&speech.sign()), Ok(Verdict::AkNotBound));
}

#[test]
fn a_challenge_is_answered_by_one_tpm_with_one_attestation_key() {
    let scene = Scene::new();
    let speech = scene.chip.speech();
    let (challenge, _) = scene.challenge(&speech.sign());
    let other_ak = Chip::of(&scene.maker).speech().ak;
    assert!(answer(&scene.chip, &challenge, &speech.ak).is_some());
    assert!(answer(&scene.chip, &challenge, &other_ak).is_none());
    let other_tpm = Chip::of(&scene.maker);
    assert!(answer(&other_tpm, &challenge, &speech.ak).is_none());
}

#[test]
fn no_two_challenges_have_one_secret() {
    let scene = Scene::new();
    let envelope = scene.chip.speech().sign();
    let (first, secret) = scene.challenge(&envelope);
    let (second, _) = scene.challenge(&envelope);
    assert_ne!(first, second);
    // An answer to one is none to the other, though both are about the same evidence.
    let response = answer(&scene.chip, &second, &scene.chip.speech().ak).unwrap();
    let verdict = scene.bound(&envelope, &secret, &response);
    assert_eq!(verdict, Err("wrong-response"));
}

/// Verifiers' programs go by them, so none is left out, and none is told that there is not.
#[test]
fn the_reasons_are_those_of_the_documentation() {
    let quoted = |line: &'static str, mark| line.split(mark).skip(1).step_by(2);
    let source = include_str!("refusal.rs").lines();
    let source = source.filter(|line| line.contains("=> \""));
    let codes: BTreeSet<_> = source.flat_map(|line| quoted(line, '"')).collect();
    assert_eq!(codes.len(), 34);
    let table = include_str!("../../../docs/attestation.md");
    let table = table.split("| reason | what it means |").nth(1).unwrap();
    let table = table.split("\n\n").next().unwrap();
    let documented = table.lines().filter_map(|line| line.split('|').nth(1));
    let documented: BTreeSet<_> = documented.flat_map(|cell| quoted(cell, '`')).collect();
    assert_eq!(codes, documented);
}
