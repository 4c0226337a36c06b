//! What YubiKeys really say.

use super::*;
use crate::attest::tpm::{EkKind, Tpm2Challenge};
use crate::attest::yubikey::{Attested, Firmware, FormFactor, PinPolicy, TouchPolicy};
use crate::attest::{Activation, Challenge, DeviceChallenge, NoChallenge, Secret, challenge};
use crate::mls::{ParseError, Signable};

const ACCEPTED: Result<Verdict, &str> = Ok(Verdict::Accepted);

#[test]
fn honest_evidence_is_accepted_without_a_challenge() {
    for key in [Key::p256(), Key::p384(), Key::ed25519()] {
        let card = Card::with(Signing::p256(), key);
        let honest = card.envelope();
        let document = honest.write();
        assert!(document.contains("\"version\": 2"), "{document}");
        assert!(document.contains("\"yubikey\""), "{document}");
        let envelope = Envelope::read(document.as_bytes()).unwrap();
        assert_eq!(envelope, honest);
        assert_eq!(card.judge(&envelope), ACCEPTED);
        assert!(!envelope.evidence.is_challenged());
        let asked = challenge(&envelope, &card.roots, now()).unwrap_err();
        assert_eq!(asked, NoChallenge::NotNeeded);
    }
}

/// Whatever key is in F9.
#[test]
fn f9_signs_by_rsa_and_on_both_curves() {
    for f9 in [Signing::rsa_2048(), Signing::p384(), Signing::p256()] {
        assert_eq!(Card::with(f9, Key::p384()).verdict(), ACCEPTED);
    }
}

#[test]
fn what_the_yubikey_says_is_read() {
    let card = Card::new();
    let said = card.certificates().attested().unwrap();
    let expected = Attested {
        slot: 0x9c,
        firmware: Firmware {
            major: 5,
            minor: 7,
            patch: 4,
        },
        serial: 12_345_678,
        pin: PinPolicy::Once,
        touch: TouchPolicy::Never,
        form_factor: Some(FormFactor(1)),
    };
    assert_eq!(said, expected);
    assert_eq!(said.firmware.to_string(), "5.7.4");
    let shown = |byte| FormFactor(byte).to_string();
    assert_eq!(shown(1), "USB-A keychain");
    assert_eq!(shown(0x83), "USB-C keychain, FIPS");
    assert_eq!(shown(0), "unknown (0x00)");
}

/// As of firmware 5.7.4: two authorities between F9 and the root.
#[test]
fn authorities_above_f9_are_in_the_evidence_or_among_the_roots() {
    let root = Authority::root("Yubico Attestation Root 1", Signing::rsa_2048());
    let upper = root.below("Yubico Attestation Intermediate B 1", |order| {
        order.authority = Some(Some(2));
    });
    let lower = upper.below("Yubico PIV Attestation B 1", |order| {
        order.authority = Some(Some(1));
    });
    let f9 = lower.below_with(FACTORY, Signing::rsa_2048(), of_f9);
    let mut card = Card::made(root, f9, Key::ed25519());
    assert_eq!(card.verdict(), Err("f9-chain"));
    card.chain = vec![lower.certificate.clone()];
    assert_eq!(card.verdict(), Err("f9-chain"));
    for chain in [[&lower, &upper], [&upper, &lower]] {
        card.chain = chain.map(|one| one.certificate.clone()).to_vec();
        assert_eq!(card.verdict(), ACCEPTED);
    }
    card.chain.clear();
    for trusted in [&lower, &card.f9] {
        card.roots = roots(trusted);
        assert_eq!(card.verdict(), ACCEPTED);
    }
}

#[test]
fn a_chain_is_no_longer_than_any() {
    let mut card = Card::new();
    let most = crate::attest::MAX_INTERMEDIATES;
    for (length, is_one) in [(most, true), (most + 1, false)] {
        card.chain = vec![card.maker.certificate.clone(); length];
        let document = card.envelope().write();
        assert_eq!(Envelope::read(document.as_bytes()).is_ok(), is_one);
    }
}

/// Some of Yubico's certificates do not say that they are an authority's.
#[test]
fn a_factory_certificate_without_constraints_is_one() {
    let maker = || Authority::root("Yubico PIV Root CA", Signing::p256());
    let without = |name: &str| {
        let maker = maker();
        let f9 = maker.below_with(name, Signing::rsa_2048(), |order| {
            order.extensions = Some(vec![extension(FIRMWARE, false, vec![4, 3, 7])]);
        });
        Card::made(maker, f9, Key::p256())
    };
    assert_eq!(without(FACTORY).verdict(), ACCEPTED);
    // Nobody else's does without.
    assert_eq!(without("Bank PIV Attestation").verdict(), Err("f9-chain"));
    let with = |constraints: &str| {
        let maker = maker();
        let f9 = maker.below(FACTORY, |order| {
            let constraints = hex::decode(constraints).unwrap();
            order.extensions = Some(vec![extension(BASIC_CONSTRAINTS, true, constraints)]);
        });
        Card::made(maker, f9, Key::p256()).verdict()
    };
    assert_eq!(with("30030101ff"), ACCEPTED);
    assert_eq!(with("3000"), Err("f9-chain"), "it says that it is none");
    let of_another = {
        let mut card = without(FACTORY);
        card.roots = roots(&maker());
        card.verdict()
    };
    assert_eq!(of_another, Err("f9-chain"));
}

#[test]
fn what_is_signed_is_no_mls() {
    let card = Card::new();
    let statement = card.certificates().statement(&card.claims());
    assert!(statement.starts_with(b"mlskeyd attestation 1 yubikey"));
    assert_eq!(statement.len(), 29 + 32);
    let Signable::Unknown(unknown) = Signable::parse(&statement) else {
        panic!("it parses");
    };
    assert_eq!(unknown.label, None);
    assert_eq!(unknown.why, ParseError::Truncated);
    // However much follows, it has no label of MLS's.
    let longer = [statement, vec![0; 1 << 16]].concat();
    assert!(matches!(Signable::parse(&longer), Signable::Unknown(_)));
}

/// No challenge is made for such evidence, so no answer to one belongs to it.
#[test]
fn an_answer_to_a_challenge_is_refused() {
    let card = Card::new();
    let envelope = card.envelope();
    let evidence = envelope.digest();
    let secret = format!(
        r#"{{"format": "mlskeyd attestation secret", "version": 1,
            "content": {{"evidence": "{}", "secret": "{}"}}}}"#,
        hex::encode(evidence),
        hex::encode([7; 32]),
    );
    let challenge = DeviceChallenge::Tpm2(Tpm2Challenge {
        ek: EkKind::EccP256,
        credential: Vec::new(),
        encrypted_seed: Vec::new(),
    });
    let challenge = Challenge {
        evidence,
        challenge,
    };
    let activation = Some(Activation {
        secret: &Secret::read(secret.as_bytes()).unwrap(),
        response: &challenge.answer(&[7; 32]),
    });
    let verdict = verify(&envelope, &NONCE, &card.roots, now(), activation);
    assert_eq!(verdict, Err(Refusal::OtherSecret));
}
