//! What is not as it seems, each with its own reason.

use mlskeyd_protocol::v1::{Algorithm, Kem, SignatureScheme, Tier};

use super::authority::{Order, spki};
use super::chip::{AK, KEY, Speech, point};
use super::*;
use crate::attest::tpm::attribute as a;

/// The reason why a TPM's speech is not believed after this change to it.
fn refused(change: impl FnOnce(&Scene, &mut Speech)) -> &'static str {
    let scene = Scene::new();
    let mut speech = scene.chip.speech();
    change(&scene, &mut speech);
    let envelope = speech.sign();
    let refused = scene.verdict(&envelope).unwrap_err();
    // Nobody is asked again about what is refused anyway, except about its age.
    let asked = challenge(&envelope, &scene.roots, now());
    if refused != "other-nonce" {
        assert!(
            matches!(&asked, Err(NoChallenge::Refused(refusal)) if refusal.code() == refused),
            "{asked:?}"
        );
    }
    refused
}

#[test]
fn a_software_key_beside_a_real_certificate_is_never_bound() {
    let scene = Scene::new();
    let mut speech = scene.chip.speech();
    // Nothing in the evidence tells it from the TPM's own.
    let software = Chip::of(&scene.maker);
    speech.ak = software.speech().ak;
    speech.signer = software.ak;
    let envelope = speech.sign();
    assert_eq!(scene.verdict(&envelope), Ok(Verdict::AkNotBound));
    let (challenge, secret) = scene.challenge(&envelope);
    // The TPM holds its own attestation key only.
    let own = scene.chip.speech().ak;
    assert_eq!(answer(&scene.chip, &challenge, &own), None);
    let guessed = challenge.answer(&[0; 32]);
    let verdict = scene.bound(&envelope, &secret, &guessed);
    assert_eq!(verdict, Err("wrong-response"));
}

#[test]
fn an_attestation_key_of_another_tpm_is_never_bound() {
    let scene = Scene::new();
    // All of it is another TPM's, but for the certificate and its key.
    let other = Chip::of(&scene.maker);
    let mut speech = other.speech();
    speech.ek = scene.chip.ek_public();
    speech.ek_certificate = scene.chip.ek_certificate.clone();
    let envelope = speech.sign();
    let (challenge, secret) = scene.challenge(&envelope);
    for chip in [&scene.chip, &other] {
        assert_eq!(answer(chip, &challenge, &chip.speech().ak), None);
    }
    // What the other TPM answers about evidence of its own does not help.
    let (own, _) = scene.challenge(&other.speech().sign());
    let response = answer(&other, &own, &other.speech().ak).unwrap();
    let verdict = scene.bound(&envelope, &secret, &response);
    assert_eq!(verdict, Err("other-response"));
}

#[test]
fn old_evidence_and_old_answers_are_refused() {
    let refusal = refused(|_, speech| speech.claims.nonce = vec![1; 32]);
    assert_eq!(refusal, "other-nonce");

    let scene = Scene::new();
    let mut speech = scene.chip.speech();
    let ak = speech.ak.clone();
    speech.claims.nonce = vec![1; 32];
    let (challenge, old_secret) = scene.challenge(&speech.sign());
    let old_response = answer(&scene.chip, &challenge, &ak).unwrap();
    let envelope = scene.chip.speech().sign();
    let verdict = scene.bound(&envelope, &old_secret, &old_response);
    assert_eq!(verdict, Err("other-secret"));
    let (_, secret) = scene.challenge(&envelope);
    let verdict = scene.bound(&envelope, &secret, &old_response);
    assert_eq!(verdict, Err("other-response"));
}

#[test]
fn a_sealed_key_is_no_hardware_whatever_it_says() {
    for tier in [Tier::Sealed, Tier::Software] {
        assert_eq!(refused(|_, s| s.claims.tier = tier), "not-in-hardware");
    }
    for algorithm in [
        Algorithm::Signature(SignatureScheme::Ed25519),
        Algorithm::Hpke(Kem::DhKemX25519),
    ] {
        let refusal = refused(|_, speech| speech.claims.algorithm = algorithm);
        assert_eq!(refusal, "not-in-hardware");
    }
    // It was made by the daemon, and loaded into the TPM to be certified.
    for (loaded, missing) in [
        (KEY & !a::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (KEY & !a::FIXED_TPM, "fixedTPM"),
        (KEY & !a::FIXED_PARENT, "fixedParent"),
    ] {
        let scene = Scene::new();
        let mut speech = scene.chip.speech();
        speech.key.attributes = loaded;
        let refused = verify(&speech.sign(), &NONCE, &scene.roots, now(), None);
        let missing = missing.to_owned();
        assert_eq!(refused, Err(Refusal::KeyAttributes { missing }));
    }
    // Another key of the TPM's is certified in its place.
    let public = |scene: &Scene| point(&Chip::of(&scene.maker).key.verifying_key().into());
    let refusal = refused(|scene, speech| speech.claims.public_key = public(scene));
    assert_eq!(refusal, "key-public");
}

#[test]
fn a_key_of_another_tpm_is_not_the_certified_one() {
    let other = |scene: &Scene| Chip::of(&scene.maker).speech();
    let refusal = refused(|scene, speech| {
        let other = other(scene);
        speech.name = Some(speech.key.name());
        speech.claims.public_key = other.claims.public_key;
        speech.key = other.key;
    });
    assert_eq!(refusal, "other-key");
    // Evidence of the other TPM under this one's endorsement key: its signer is not this AK.
    let refusal = refused(|scene, speech| speech.signer = other(scene).signer);
    assert_eq!(refusal, "ak-signature");
}

#[test]
fn what_is_claimed_is_what_was_certified() {
    let data = |speech: &Speech| {
        let Evidence::Tpm2(evidence) = speech.sign().evidence else {
            panic!("it is of a TPM");
        };
        evidence.keys.statement(&speech.claims).to_vec()
    };
    let changes: [fn(&mut Speech); 10] = [
        |speech| speech.claims.uid = 0,
        |speech| speech.claims.app.push('x'),
        |speech| speech.claims.identity.push('x'),
        |speech| speech.claims.device.push('x'),
        |speech| speech.claims.key[0] ^= 1,
        |speech| speech.claims.algorithm = Algorithm::Hpke(Kem::DhKemP256),
        |speech| speech.claims.public_key[64] ^= 1,
        |speech| speech.chain.push(vec![1, 2, 3]),
        |speech| speech.key.attributes ^= a::NO_DA,
        |speech| speech.ak.attributes ^= a::NO_DA,
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let refusal = refused(|_, speech| {
            speech.data = Some(data(speech));
            change(speech);
        });
        assert_eq!(refusal, "claims", "change {n}");
    }
    // Another certificate for the same key.
    let refusal = refused(|scene, speech| {
        speech.data = Some(data(speech));
        let order = Order {
            years: (-1, 20),
            ..Order::ek(spki(&scene.chip.ek.public_key()))
        };
        speech.ek_certificate = scene.maker.issue(&order);
    });
    assert_eq!(refusal, "claims");
    // The nonce is one of them: nobody signs anew for a verifier what was signed for another.
    let scene = Scene::new();
    let mut speech = scene.chip.speech();
    speech.claims.nonce = vec![1; 32];
    speech.data = Some(data(&speech));
    speech.claims.nonce = NONCE.to_vec();
    assert_eq!(scene.verdict(&speech.sign()), Err("claims"));
}

#[test]
fn an_attestation_key_that_signs_anything_is_none() {
    for (attributes, missing) in [
        (AK & !a::RESTRICTED, "restricted"),
        (AK & !a::FIXED_TPM, "fixedTPM"),
        (AK & !a::FIXED_PARENT, "fixedParent"),
        (AK & !a::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (AK & !a::SIGN | a::DECRYPT, "sign"),
    ] {
        let scene = Scene::new();
        let mut speech = scene.chip.speech();
        speech.ak.attributes = attributes;
        let refused = verify(&speech.sign(), &NONCE, &scene.roots, now(), None);
        let missing = missing.to_owned();
        assert_eq!(refused, Err(Refusal::AkAttributes { missing }));
    }
    // One that would take its scheme from each command.
    let refusal = refused(|_, speech| speech.ak.algorithms = vec![0, 0x10, 0, 0x10]);
    assert_eq!(refusal, "ak-kind");
}

#[test]
fn what_the_tpm_did_not_say_is_not_believed() {
    assert_eq!(refused(|_, s| s.magic = 0xff54_4348), "not-generated");
    // A quote.
    assert_eq!(refused(|_, s| s.kind = 0x8018), "not-a-certification");
}

#[test]
fn a_key_has_the_use_of_its_algorithm_and_no_other() {
    for attributes in [
        KEY | a::RESTRICTED,
        KEY | a::DECRYPT,
        KEY & !a::SIGN | a::DECRYPT,
        KEY & !a::SIGN,
    ] {
        let refusal = refused(|_, speech| speech.key.attributes = attributes);
        assert_eq!(refusal, "key-use", "{attributes:#x}");
    }
    let scene = Scene::new();
    let mut speech = scene.chip.speech();
    speech.claims.algorithm = Algorithm::Hpke(Kem::DhKemP256);
    speech.key.attributes = KEY & !a::SIGN | a::DECRYPT;
    assert_eq!(scene.verdict(&speech.sign()), Ok(Verdict::AkNotBound));
}

#[test]
fn the_endorsement_key_is_the_certified_one_and_as_its_maker_made_it() {
    let refusal = refused(|scene, speech| speech.ek = Chip::of(&scene.maker).ek_public());
    assert_eq!(refusal, "ek-key");
    let changes: [fn(&mut Speech); 5] = [
        |speech| speech.ek.attributes |= a::USER_WITH_AUTH,
        |speech| speech.ek.attributes &= !a::RESTRICTED,
        |speech| speech.ek.policy[0] ^= 1,
        // No storage key.
        |speech| speech.ek.algorithms = vec![0, 0x10, 0, 0x10],
        // Of one use only.
        |speech| speech.ek.algorithms = vec![0, 6, 0, 128, 0, 0x43, 0, 0x19, 0, 0x0b],
    ];
    for change in changes {
        assert_eq!(refused(|_, speech| change(speech)), "ek-template");
    }
    // Off the curve.
    assert_eq!(refused(|_, s| s.ek.point[64] ^= 1), "ek-template");
}
