//! What is not as it seems, each with its own reason.

use mlskeyd_protocol::v1::Kem;
use sha2::{Digest, Sha256};

use super::*;

#[test]
fn a_software_key_beside_a_real_chain_is_refused() {
    let card = Card::new();
    for software in [Key::p256(), Key::p384(), Key::ed25519()] {
        // It is claimed, and signs.
        let claims = Claims {
            algorithm: Algorithm::Signature(software.scheme()),
            public_key: software.public(),
            ..card.claims()
        };
        let envelope = signed(claims, card.certificates(), &software);
        assert_eq!(card.judge(&envelope), Err("key-public"));
        // It only signs.
        let envelope = signed(card.claims(), card.certificates(), &software);
        assert_eq!(card.judge(&envelope), Err("key-signature"));
        // It is only claimed.
        let claims = Claims {
            algorithm: Algorithm::Signature(software.scheme()),
            public_key: software.public(),
            ..card.claims()
        };
        let envelope = signed(claims, card.certificates(), &card.key);
        assert_eq!(card.judge(&envelope), Err("key-public"));
    }
}

#[test]
fn a_certificate_of_another_slot_is_of_another_key() {
    let mut card = Card::new();
    card.slot = card.f9.issue(&certificate_of(&Key::p256(), "9a"));
    assert_eq!(card.verdict(), Err("key-public"));
    // Of the same key, and yet another than the one that was signed with the claims.
    let mut envelope = Card::new().envelope();
    let card = Card::new();
    envelope.claims = card.claims();
    evidence(&mut envelope).certificates = card.certificates();
    assert_eq!(card.judge(&envelope), Err("key-signature"));
}

#[test]
fn a_public_key_has_one_form() {
    let card = Card::new();
    let Key::P256(key) = &card.key else {
        panic!("it is on P-256");
    };
    let compressed = key.verifying_key().to_encoded_point(true);
    for public_key in [
        compressed.as_bytes().to_vec(),
        card.key.public()[1..].to_vec(),
        [card.key.public(), vec![0]].concat(),
        card.key.info(),
    ] {
        let claims = Claims {
            public_key,
            ..card.claims()
        };
        let envelope = signed(claims, card.certificates(), &card.key);
        assert_eq!(card.judge(&envelope), Err("key-public"));
    }
    // Certified compressed, it is none of MLS's.
    let mut card = Card::new();
    let mut order = certificate_of(&card.key, "9c");
    let Key::P256(key) = &card.key else {
        panic!("it is on P-256");
    };
    let compressed = key.verifying_key().to_encoded_point(true);
    let head = hex::decode("3039301306072a8648ce3d020106082a8648ce3d030107032200").unwrap();
    order.public = [&head, compressed.as_bytes()].concat();
    card.slot = card.f9.issue(&order);
    assert_eq!(card.verdict(), Err("key-public"));
}

#[test]
fn old_evidence_is_refused() {
    let card = Card::new();
    let claims = Claims {
        nonce: vec![1; 32],
        ..card.claims()
    };
    let mut envelope = signed(claims, card.certificates(), &card.key);
    assert_eq!(card.judge(&envelope), Err("other-nonce"));
    envelope.claims.nonce = NONCE.to_vec();
    assert_eq!(card.judge(&envelope), Err("key-signature"));
}

#[test]
fn what_is_claimed_is_what_was_signed() {
    let changes: [fn(&mut Envelope); 8] = [
        |envelope| envelope.claims.uid = 0,
        |envelope| envelope.claims.app.push('x'),
        |envelope| envelope.claims.identity.push('x'),
        |envelope| envelope.claims.device.push('x'),
        |envelope| envelope.claims.key[0] ^= 1,
        |envelope| {
            let one = HexBytes(vec![1, 2, 3]);
            evidence(envelope).certificates.chain.push(one);
        },
        |envelope| evidence(envelope).signature.clear(),
        |envelope| evidence(envelope).signature.push(0),
    ];
    let card = Card::new();
    for (n, change) in changes.into_iter().enumerate() {
        let mut envelope = card.envelope();
        change(&mut envelope);
        assert_ne!(envelope.digest(), card.envelope().digest());
        assert_eq!(card.judge(&envelope), Err("key-signature"), "change {n}");
    }
    // Other certificates of the same keys.
    let mut envelope = card.envelope();
    let again = card.f9.issue(&certificate_of(&card.key, "9d"));
    evidence(&mut envelope).certificates.slot = again;
    assert_eq!(card.judge(&envelope), Err("key-signature"));
    let mut envelope = card.envelope();
    let mut order = Order {
        subject: format!("CN={FACTORY}"),
        years: (-1, 20),
        ..Order::ek(card.f9.key.public())
    };
    of_f9(&mut order);
    evidence(&mut envelope).certificates.f9 = card.maker.issue(&order);
    assert_eq!(card.judge(&envelope), Err("key-signature"));
}

/// What the key signs for its app is no statement, and no hash of one.
#[test]
fn a_signature_over_something_else_is_none_over_the_claims() {
    let card = Card::new();
    let statement = card.certificates().statement(&card.claims());
    for other in [
        statement[29..].to_vec(),
        Sha256::digest(&statement).to_vec(),
        [&[0x10][..], b"MLS 1.0 mlskeyd", &statement].concat(),
        card.claims().digest().to_vec(),
    ] {
        let mut envelope = card.envelope();
        evidence(&mut envelope).signature = card.key.sign(&other);
        assert_eq!(card.judge(&envelope), Err("key-signature"));
    }
}

#[test]
fn a_sealed_key_is_no_hardware_whatever_it_says() {
    let card = Card::new();
    for tier in [Tier::Sealed, Tier::Software] {
        let claims = Claims {
            tier,
            ..card.claims()
        };
        let envelope = signed(claims, card.certificates(), &card.key);
        assert_eq!(card.judge(&envelope), Err("not-in-hardware"));
    }
    // Claimed as hardware, it is another than the one that the YubiKey has certified: the one that seals it.
    let sealed = Key::ed25519();
    let claims = Claims {
        algorithm: Algorithm::Signature(sealed.scheme()),
        public_key: sealed.public(),
        ..card.claims()
    };
    let envelope = signed(claims, card.certificates(), &sealed);
    assert_eq!(card.judge(&envelope), Err("key-public"));
    // A key that signs nothing signs no claims.
    for kem in [Kem::DhKemP256, Kem::DhKemX25519, Kem::DhKemP384] {
        let claims = Claims {
            algorithm: Algorithm::Hpke(kem),
            ..card.claims()
        };
        let envelope = signed(claims, card.certificates(), &card.key);
        assert_eq!(card.judge(&envelope), Err("not-in-hardware"));
    }
}
