//! What P-256 alone makes possible: other encodings of a point and of a
//! signature, and one curve for signing and for opening.

use mlskeyd_protocol::v1::*;
use p256::NistP256;
use p256::elliptic_curve::Curve;
use p256::elliptic_curve::bigint::{Encoding, Limb, U256};

use crate::forge::*;
use crate::house::{App, House};
use crate::leave::{self, ALLOWED, leaving_leaf, leaving_with};
use crate::scene::{RULE, Scene};
use crate::suite::{SUITE_2, Suite, own_hpke, sealed};

/// A point in the encodings that MLS does not have (RFC 9420, 5.1.1), and what
/// is no point of the curve.
pub fn wrong_points(point: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let coordinates = &point[1..];
    let last = point.len() - 1;
    let odd = point[last] & 1;
    let mut beside = point.to_vec();
    beside[last] ^= 1;
    vec![
        (
            "a compressed point",
            [&[2 | odd], &coordinates[..last / 2]].concat(),
        ),
        ("a hybrid point", [&[6 | odd], coordinates].concat()),
        ("a point without its form", coordinates.to_vec()),
        ("the point at infinity", vec![0]),
        ("the point at infinity at full length", vec![0; point.len()]),
        (
            "a point of zeros",
            [&[4], vec![0; last].as_slice()].concat(),
        ),
        ("a point not on the curve", beside),
    ]
}

/// A DER value of less than 128 bytes.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
}

/// The shortest content of an INTEGER with this value.
fn shortest(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let number = &number[zeros..];
    match number.first() {
        Some(0..0x80) => number.to_vec(),
        _ => [&[0], number].concat(),
    }
}

/// A signature over the same content in encodings that are not DER, and numbers
/// that no signature has.
fn wrong_signatures(signature: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    const INTEGER: u8 = 2;
    const SEQUENCE: u8 = 0x30;
    let of = |r: &[u8], s: &[u8]| der(SEQUENCE, &[der(INTEGER, r), der(INTEGER, s)].concat());
    let order = NistP256::ORDER.to_be_bytes();
    let plus_order = |number: &[u8]| {
        let (sum, carry) = U256::from_be_slice(number).adc(&NistP256::ORDER, Limb::ZERO);
        let carry = u8::from(carry == Limb::ONE);
        shortest(&[&[carry], &sum.to_be_bytes()[..]].concat())
    };
    let padded = |number: &[u8]| [&[0], number].concat();

    let parsed = p256::ecdsa::Signature::from_der(signature).unwrap();
    let (long_r, long_s) = parsed.split_bytes();
    let (r, s) = (shortest(&long_r), shortest(&long_s));
    assert_eq!(of(&r, &s), signature);
    // Of s and -s, both of which verify, one has the highest bit set.
    let high = std::cmp::max(long_s, (-parsed.s()).to_bytes());
    assert!(high[0] >= 0x80);
    let content = &signature[2..];
    let length = signature[1];
    vec![
        ("no signature", Vec::new()),
        ("r = 0", of(&[0], &s)),
        ("s = 0", of(&r, &[0])),
        ("r = 0 and s = 0", of(&[0], &[0])),
        ("an empty r", of(&[], &s)),
        ("r = n", of(&shortest(&order), &s)),
        ("s = n", of(&r, &shortest(&order))),
        ("r plus n", of(&plus_order(&long_r), &s)),
        ("s plus n", of(&r, &plus_order(&long_s))),
        ("a padded r", of(&padded(&r), &s)),
        ("a padded s", of(&r, &padded(&s))),
        ("a negative s", of(&r, &high)),
        (
            "a length in long form",
            [&[SEQUENCE, 0x81, length], content].concat(),
        ),
        (
            "an indefinite length",
            [&[SEQUENCE, 0x80], content, &[0, 0]].concat(),
        ),
        ("a SET", der(0x31, content)),
        (
            "a number more",
            der(SEQUENCE, &[content, &der(INTEGER, &[1])].concat()),
        ),
        ("a byte behind it", [signature, &[0]].concat()),
        ("a byte less", signature[..signature.len() - 1].to_vec()),
        ("bare r and s", parsed.to_bytes().to_vec()),
    ]
}

#[test]
fn other_encodings_of_points_are_no_keys_in_custody() {
    let mut house = House::new("");
    let mut s = Scene::new(&house, SUITE_2);
    points_in_leaves(&mut s);
    points_in_key_packages(&mut s);
    points_in_messages(&mut s);
    s.play(&mut house);
}

fn points_in_leaves(s: &mut Scene) {
    let key = s.app.generate();
    for source in [ALWAYS, Source::Update, Source::Commit] {
        for (what, point) in wrong_points(&key.public_key) {
            let mut leaf = s.app.leaf(&key, source);
            leaf.encryption_key = point;
            s.attack(
                format!("{what} as leaf key"),
                leaf.tbs("g", 0),
                "SignLeafNode",
                "encryption key is not in custody",
            );
        }
        for (what, point) in wrong_points(&s.app.me.public_key) {
            let mut leaf = s.app.leaf(&key, source);
            leaf.signature_key = point;
            s.attack(
                format!("{what} as signature key"),
                leaf.tbs("g", 0),
                "SignLeafNode",
                "another signature key",
            );
        }
    }
    s.honest
        .push(("a leaf", s.app.leaf(&key, Source::Commit).tbs("g", 0)));
}

fn points_in_key_packages(s: &mut Scene) {
    const ACTION: &str = "SignKeyPackage";
    let (init, key) = (s.app.generate(), s.app.generate());
    let leaf = s.app.leaf(&key, ALWAYS);
    let signature = s.app.sign(&leaf.tbs("", 0)).unwrap();
    let signed = leaf.signed(&signature);
    let tbs = |init: &[u8], leaf: &[u8]| key_package_tbs(&key_package(SUITE_2, init, leaf, false));
    for (of, right) in [("init", &init), ("leaf", &key)] {
        for (what, point) in wrong_points(&right.public_key) {
            s.attack(
                format!("the {of} key, as {what}, as init key"),
                tbs(&point, &signed),
                ACTION,
                "init key is not in custody",
            );
        }
    }
    for (what, point) in wrong_points(&key.public_key) {
        let mut forged = leaf.clone();
        forged.encryption_key = point;
        s.attack(
            format!("{what} as leaf key"),
            tbs(&init.public_key, &forged.signed(&signature)),
            ACTION,
            "no valid signature",
        );
    }
    s.honest
        .push(("a KeyPackage", tbs(&init.public_key, &signed)));
}

fn points_in_messages(s: &mut Scene) {
    for kind in KINDS {
        let key = s.app.generate();
        let leaf = s.app.leaf(&key, kind.source);
        let signature = s.app.sign(&leaf.tbs("g", 4)).unwrap();
        for (what, point) in wrong_points(&key.public_key) {
            let mut forged = leaf.clone();
            forged.encryption_key = point;
            s.attack(
                format!("{what} as leaf key"),
                kind.say(&forged.signed(&signature)),
                kind.action,
                kind.unknown_leaf_key,
            );
        }
        s.honest
            .push((kind.action, kind.say(&leaf.signed(&signature))));
    }
}

/// A kind of message with a leaf of its sender in it.
struct Kind {
    source: Source,
    action: &'static str,
    sender: Sender,
    body: fn(&[u8]) -> Vec<u8>,
    /// Why a leaf is refused whose encryption key nobody knows.
    unknown_leaf_key: &'static str,
}

impl Kind {
    fn say(&self, leaf: &[u8]) -> Vec<u8> {
        message(SUITE_2, "g", 3, self.sender, &(self.body)(leaf))
    }
}

const KINDS: [Kind; 3] = [
    Kind {
        source: Source::Update,
        action: "SignProposalUpdate",
        sender: Sender::Member(4),
        body: update,
        unknown_leaf_key: "no valid signature",
    },
    Kind {
        source: Source::Commit,
        action: "SignCommit",
        sender: Sender::Member(4),
        body: commit,
        unknown_leaf_key: "no valid signature",
    },
    Kind {
        source: Source::Commit,
        action: "SignCommit",
        sender: Sender::NewMemberCommit,
        body: |leaf| external_commit(&own_hpke(SUITE_2, 2).public_key, leaf),
        // Nothing but the key tells the leaf's index.
        unknown_leaf_key: "encryption key is not in custody",
    },
];

#[test]
fn other_encodings_of_signatures_sign_no_leaf_and_no_key_package() {
    let mut house = House::new("");
    let mut s = Scene::new(&house, SUITE_2);
    const WHY: &str = "no valid signature";
    for kind in KINDS {
        let leaf = s.app.leaf(&s.app.generate(), kind.source);
        let signature = s.app.sign(&leaf.tbs("g", 4)).unwrap();
        for (what, wrong) in wrong_signatures(&signature) {
            s.attack(what, kind.say(&leaf.signed(&wrong)), kind.action, WHY);
        }
        s.honest
            .push((kind.action, kind.say(&leaf.signed(&signature))));
    }

    let (init, key) = (s.app.generate(), s.app.generate());
    let leaf = s.app.leaf(&key, ALWAYS);
    let signature = s.app.sign(&leaf.tbs("", 0)).unwrap();
    let package = |leaf: &[u8]| key_package(SUITE_2, &init.public_key, leaf, false);
    for (what, wrong) in wrong_signatures(&signature) {
        let tbs = key_package_tbs(&package(&leaf.signed(&wrong)));
        s.attack(what, tbs, "SignKeyPackage", WHY);
    }
    let tbs = key_package_tbs(&package(&leaf.signed(&signature)));
    s.honest.push(("a KeyPackage", tbs));

    let (init, key) = (s.app.generate(), s.app.generate());
    let (package, signature) = s.app.key_package(&init, &key, ALWAYS, false);
    let ask = |signature: &[u8]| {
        let add = add(&package, signature);
        message(SUITE_2, "g", 3, Sender::NewMemberProposal, &add)
    };
    for (what, wrong) in wrong_signatures(&signature) {
        s.attack(what, ask(&wrong), "SignProposalAdd", WHY);
    }
    s.honest.push(("an external Add", ask(&signature)));
    s.play(&mut house);
}

/// The only leaf whose signature key, and so whose signature, are the app's.
#[test]
fn other_encodings_do_not_leave_custody() {
    let house = House::new(ALLOWED);
    let mut app = App::new(&house, SUITE_2, "alice");
    let right = app.own.public.clone();
    for (what, point) in wrong_points(&right) {
        app.own.public = point;
        leave::ask(&app, "g").unwrap();
        let leaf = leaving_leaf(&app);
        let leaf = app.self_signed(&leaf, "g", 0);
        let failure = app.sign(&leaving_with(&app, "g", 1, &leaf)).unwrap_err();
        assert_eq!(failure.policy.as_deref(), Some(RULE), "{what}: {failure:?}");
        let why = "no valid signature";
        assert!(failure.message.contains(why), "{what}: {failure:?}");
    }
    app.own.public = right;
    leave::ask(&app, "g").unwrap();
    let leaf = leaving_leaf(&app);
    let signature = app.own.sign(&leaf.tbs("g", 0));
    for (what, wrong) in wrong_signatures(&signature) {
        let content = leaving_with(&app, "g", 1, &leaf.signed(&wrong));
        let failure = app.sign(&content).unwrap_err();
        assert_eq!(failure.policy.as_deref(), Some(RULE), "{what}: {failure:?}");
    }
    app.sign(&leaving_with(&app, "g", 1, &leaf.signed(&signature)))
        .unwrap();
}

#[test]
fn signature_keys_and_hpke_keys_of_one_curve_keep_to_their_purpose() {
    let house = House::new("");
    let app = App::new(&house, SUITE_2, "mallory");
    let key = app.generate();
    let before = house.keys();
    let text = message(SUITE_2, "g", 1, Sender::Member(0), &application("hello"));
    let failure = app.sign_with(key.key, &text).unwrap_err();
    assert_eq!(failure.code, FailureCode::BadRequest, "{failure:?}");

    let me = GeneratedHpke {
        key: app.me.key,
        public_key: app.me.public_key.clone(),
    };
    let failure = app
        .open(&me, &labelled("Welcome", b""), &SUITE_2.group_secrets())
        .unwrap_err();
    assert_eq!(failure.code, FailureCode::BadRequest, "{failure:?}");

    let mut leaf = app.leaf(&key, Source::Commit);
    leaf.signature_key = key.public_key.0.clone();
    let leaf = app.self_signed(&leaf, "g", 0);
    let content = message(SUITE_2, "g", 1, Sender::Member(0), &commit(&leaf));
    let failure = app.sign(&content).unwrap_err();
    let why = "signature key that is not in custody";
    assert!(failure.message.contains(why), "{failure:?}");
    assert_eq!(house.keys(), before);
    app.sign(&text).unwrap();
}

#[test]
fn p256_with_chacha20_is_no_suite() {
    let house = House::new("");
    let app = App::new(&house, SUITE_2, "mallory");
    let no_suite = Suite {
        aead: Aead::ChaCha20Poly1305,
        ..SUITE_2
    };
    let (init, leaf) = (app.generate(), app.generate());
    app.key_package(&init, &leaf, ALWAYS, false);
    let path = labelled("UpdatePathNode", &group_context(SUITE_2, "g", 1));
    for (key, info, plaintext) in [
        (&init, labelled("Welcome", b""), SUITE_2.group_secrets()),
        (&leaf, path, vec![7; 32]),
    ] {
        let request = sealed(no_suite, key, &info, &plaintext);
        let failure = app.open_with(request).unwrap_err();
        assert_eq!(failure.code, FailureCode::Withheld, "{failure:?}");
        assert_eq!(app.open(key, &info, &plaintext).unwrap(), plaintext);
    }
}
