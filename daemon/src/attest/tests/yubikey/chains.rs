//! From a key's certificate by F9's to a root.

use rsa::pkcs1v15::Pkcs1v15Sign;
use sha2::{Digest, Sha256};

use super::*;

const ACCEPTED: Result<Verdict, &str> = Ok(Verdict::Accepted);

#[test]
fn another_makers_root_vouches_for_nothing() {
    let mut card = Card::new();
    // Of the same name, with another key.
    for name in ["another", "Yubico PIV Root CA"] {
        let other = Authority::root(name, Signing::p256());
        card.roots = roots(&other);
        assert_eq!(card.verdict(), Err("f9-chain"), "{name}");
    }
    // Among others, the right one counts.
    let other = Authority::root("another", Signing::p256());
    let both = other.pem() + &card.maker.pem();
    card.roots = Roots::from_pem(both.as_bytes()).unwrap();
    assert_eq!(card.verdict(), ACCEPTED);
}

/// F9 takes any key and certificate of its owner's, of which there may be copies.
#[test]
fn f9_that_its_owner_replaced_is_only_its_owners() {
    let yubico = roots(&Card::new().maker);
    let owner = Authority::root("owner", Signing::p256());
    let f9 = owner.below(FACTORY, of_f9);
    let mut card = Card::made(owner, f9, Key::p256());
    assert_eq!(card.verdict(), ACCEPTED, "by who trusts the owner");
    card.roots = yubico;
    assert_eq!(card.verdict(), Err("f9-chain"));
    // Also one that signed itself.
    let mut card = Card::new();
    let own = Authority::root(FACTORY, Signing::p256());
    card.slot = own.issue(&certificate_of(&card.key, "9c"));
    card.f9 = own;
    assert_eq!(card.verdict(), Err("f9-chain"));
    // The factory's certificate beside the owner's key.
    card.f9 = card.maker.below(FACTORY, of_f9);
    assert_eq!(card.verdict(), Err("slot-issuer"));
}

#[test]
fn a_certificate_of_another_yubikey_is_not_this_ones() {
    let mut card = Card::new();
    // It is of the same maker, and its F9 has the same name.
    let f9 = card.maker.below(FACTORY, of_f9);
    card.slot = f9.issue(&certificate_of(&card.key, "9c"));
    assert_eq!(card.verdict(), Err("slot-issuer"));
    // Not even if it lies beside.
    card.chain = vec![f9.certificate];
    assert_eq!(card.verdict(), Err("slot-issuer"));
    // Nor is one that a maker issued by itself.
    card.slot = card.maker.issue(&certificate_of(&card.key, "9c"));
    assert_eq!(card.verdict(), Err("slot-issuer"));
    card.chain = vec![card.maker.certificate.clone()];
    assert_eq!(card.verdict(), Err("slot-issuer"));
}

/// The attack: a key in 9C signs what its user wants, also a certificate as F9 makes it, of a key in software.
#[test]
fn a_certified_key_certifies_no_other() {
    // F9 makes no authority; if it did, that one would be none either.
    for constraints in [
        None,
        Some("3000"),
        Some("30030101ff"),
        Some("30060101ff020100"),
    ] {
        let (card, forger) = (Card::new(), Key::p256());
        let Key::P256(signing) = &forger else {
            panic!("it is on P-256");
        };
        let mut order = certificate_of(&forger, "9c");
        if let Some(constraints) = constraints {
            let constraints = hex::decode(constraints).unwrap();
            let all = order.extensions.as_mut().unwrap();
            all.push(extension(BASIC_CONSTRAINTS, true, constraints));
        }
        let forger = Authority {
            certificate: card.f9.issue(&order),
            name: order.subject.parse().unwrap(),
            key: Signing::P256(signing.clone()),
        };
        let f9 = card.f9.certificate;
        let mut forged = Card {
            slot: forger.issue(&certificate_of(&card.key, "9c")),
            f9: forger,
            ..card
        };
        for chain in [vec![], vec![f9.clone()]] {
            forged.chain = chain;
            assert_eq!(forged.verdict(), Err("f9-certificate"), "{constraints:?}");
        }
        // Nor as one between.
        forged.chain = vec![forged.f9.certificate, f9.clone()];
        forged.f9.certificate = f9;
        assert_eq!(forged.verdict(), Err("slot-issuer"), "{constraints:?}");
    }
}

/// By its subject and by what it says, each on its own.
#[test]
fn a_certificate_of_a_key_is_never_f9s() {
    let refused = |subject: &str, more: Option<Extension>| {
        let maker = Authority::root("Yubico PIV Root CA", Signing::p256());
        let f9 = maker.below(subject, |order| {
            of_f9(order);
            order.extensions.as_mut().unwrap().extend(more);
        });
        Card::made(maker, f9, Key::p256()).verdict()
    };
    assert_eq!(refused("Bank PIV Attestation", None), ACCEPTED);
    let reason = Err("f9-certificate");
    assert_eq!(refused("YubiKey PIV Attestation 9c", None), reason);
    let policies = extension(POLICIES, false, vec![2, 1]);
    assert_eq!(refused(FACTORY, Some(policies)), reason);
}

#[test]
fn a_certificate_of_a_key_is_no_authoritys() {
    let mut card = Card::new();
    let mut order = certificate_of(&card.key, "9c");
    let constraints = hex::decode("30030101ff").unwrap();
    let all = order.extensions.as_mut().unwrap();
    all.push(extension(BASIC_CONSTRAINTS, true, constraints));
    card.slot = card.f9.issue(&order);
    assert_eq!(card.verdict(), Err("slot-issuer"));
    // F9's own in its place.
    card.slot = card.f9.certificate.clone();
    assert_eq!(card.verdict(), Err("slot-issuer"));
}

#[test]
fn f9_is_valid_and_for_no_other_use() {
    let made = |change: fn(&mut Order)| {
        let maker = Authority::root("Yubico PIV Root CA", Signing::p256());
        let f9 = maker.below(FACTORY, |order| {
            of_f9(order);
            change(order);
        });
        Card::made(maker, f9, Key::p256()).verdict()
    };
    assert_eq!(made(|_| {}), ACCEPTED);
    assert_eq!(made(|o| o.years = (-2, -1)), Err("f9-validity"));
    assert_eq!(made(|o| o.years = (1, 2)), Err("f9-validity"));
    let used = made(|order| {
        let uses = hex::decode("300a06082b06010505070301").unwrap();
        let uses = extension("2.5.29.37", false, uses);
        order.extensions.as_mut().unwrap().push(uses);
    });
    assert_eq!(used, Err("f9-usage"));
    let odd = made(|order| {
        let odd = extension("1.2.3.4.5", true, vec![5, 0]);
        order.extensions.as_mut().unwrap().push(odd);
    });
    assert_eq!(odd, Err("f9-certificate"));
}

#[test]
fn an_authority_vouches_for_no_more_below_it_than_it_may() {
    for (most, verdict) in [(1, ACCEPTED), (0, Err("f9-chain"))] {
        let root = Authority::root("root", Signing::p256());
        let between = root.below("between", |o| o.authority = Some(Some(most)));
        let f9 = between.below(FACTORY, of_f9);
        let mut card = Card::made(root, f9, Key::p256());
        card.chain = vec![between.certificate];
        assert_eq!(card.verdict(), verdict);
    }
}

/// What a lax reader of PKCS#1 v1.5 takes: with a small exponent anybody can make such signatures.
#[test]
fn an_rsa_signature_has_one_padding() {
    let f9 = Signing::rsa_2048();
    let mut card = Card::with(f9, Key::p256());
    let Signing::Rsa(key) = &card.f9.key else {
        panic!("it is RSA");
    };
    let key = key.clone();
    let padded = |head: &str, tail: &[u8]| {
        let head = hex::decode(head).unwrap();
        let order = certificate_of(&card.key, "9c");
        card.f9.issue_by(&order, |content| {
            let hash = Sha256::digest(content).to_vec();
            let block = [&head[..], &hash, tail].concat();
            key.sign(Pkcs1v15Sign::new_unprefixed(), &block).unwrap()
        })
    };
    let good = "3031300d060960864801650304020105000420";
    let certificates = [
        (padded(good, &[]), ACCEPTED),
        // Something after the hash.
        (padded(good, &[0]), Err("slot-issuer")),
        (padded(good, &[7; 100]), Err("slot-issuer")),
        // Without parameters; with lengths in two bytes; something in the parameters; another hash's name.
        (
            padded("302f300b0609608648016503040201".to_owned().as_str(), &[]),
            Err("slot-issuer"),
        ),
        (
            padded("308131300d060960864801650304020105000420", &[]),
            Err("slot-issuer"),
        ),
        (
            padded("3033300f0609608648016503040201050200000420", &[]),
            Err("slot-issuer"),
        ),
        (
            padded("3031300d060960864801650304020305000420", &[]),
            Err("slot-issuer"),
        ),
        // The hash alone.
        (padded("", &[]), Err("slot-issuer")),
    ];
    for (n, (slot, verdict)) in certificates.into_iter().enumerate() {
        card.slot = slot;
        assert_eq!(card.verdict(), verdict, "padding {n}");
    }
    // Longer than the key is, with zeros before it.
    let order = certificate_of(&card.key, "9c");
    card.slot = card.f9.issue_by(&order, |content| {
        let signature = key.pkcs1v15_sign::<rsa::sha2::Sha256>(content).unwrap();
        [vec![0], signature].concat()
    });
    assert_eq!(card.verdict(), Err("slot-issuer"));
}
