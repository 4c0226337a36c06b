//! What must not be opened, and what must not be let out.

use std::time::SystemTime;

use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::limits::{MAX_CONTENT, MAX_PUBLIC_KEY};
use mlskeyd_protocol::v1::*;

use crate::forge::*;
use crate::house::{App, House};
use crate::p256_only::wrong_points;
use crate::suite::{SUITE_1, SUITE_2, SUITE_3, SUITE_7, Suite, for_each_suite, sealed};

for_each_suite!(
    each_key_opens_what_it_is_for_and_nothing_else,
    what_opens_to_something_else_is_withheld,
    an_init_key_opens_within_its_lifetime_only,
    an_init_key_opens_nothing_after_the_join,
    malformed_opens_are_refused,
);

fn welcome() -> Vec<u8> {
    labelled("Welcome", b"the sealed GroupInfo")
}

fn path(suite: Suite, group: &str) -> Vec<u8> {
    labelled("UpdatePathNode", &group_context(suite, group, 1))
}

/// What keeps keys to what they are for.
const BINDING: &str = "rule/open-by-binding";
const UNKNOWN: &str = "builtin/unknown-structure";

/// Refused by this rule, and put on record as that.
fn assert_denied(
    house: &House,
    key: &GeneratedHpke,
    refused: Result<Vec<u8>, Failure>,
    (by, why): (&str, &str),
) {
    let failure = refused.unwrap_err();
    assert_eq!(failure.code, FailureCode::Denied, "{failure:?}");
    assert_eq!(failure.policy.as_deref(), Some(by), "{failure:?}");
    assert!(failure.message.contains(why), "{why}: {failure:?}");
    assert!(!failure.advice.is_empty());
    assert_eq!(failure.key, Some(key.key));
    assert_eq!(failure.device.as_deref(), Some("software"));
    let actions = ["OpenWelcome", "OpenPathSecret", "OpenUnknown"];
    let recorded = actions.map(|action| house.denials(Some(key.key), action, why));
    assert_ne!(recorded, [0; 3], "{why} is not on record");
}

fn each_key_opens_what_it_is_for_and_nothing_else(suite: Suite) {
    let mut house = House::new("");
    let app = App::new(&house, suite, "mallory");
    let (init, leaf, member, unbound) = (
        app.generate(),
        app.generate(),
        app.generate(),
        app.generate(),
    );
    app.key_package(&init, &leaf, ALWAYS, false);
    app.signed_leaf(&member, Source::Commit, "g", 0);
    let before = house.keys();

    let secret = suite.path_secret();
    let open = |key, info: &[u8], plaintext: &[u8]| app.open(key, info, plaintext);
    let all_are_refused = |house: &House| {
        for key in [&init, &unbound] {
            assert_denied(
                house,
                key,
                open(key, &path(suite, "g"), &secret),
                (BINDING, "encryption key of a leaf"),
            );
        }
        for key in [&leaf, &member, &unbound] {
            assert_denied(
                house,
                key,
                open(key, &welcome(), &suite.group_secrets()),
                (BINDING, "only the init key"),
            );
        }
        assert_denied(
            house,
            &member,
            open(&member, &path(suite, "other"), &secret),
            (BINDING, "another group"),
        );
        let whole = path(suite, "g");
        for key in [&init, &leaf, &member, &unbound] {
            for info in [
                labelled("External", b"context"),
                b"no structure".to_vec(),
                Vec::new(),
                whole[..whole.len() - 1].to_vec(),
                [whole.clone(), vec![0]].concat(),
                labelled(
                    "UpdatePathNode",
                    &[group_context(suite, "g", 1), vec![0]].concat(),
                ),
            ] {
                let refused = open(key, &info, &secret);
                assert_denied(house, key, refused, (UNKNOWN, "no MLS structure"));
            }
        }
    };
    all_are_refused(&house);
    // Nothing of this reaches the device: it is not even there.
    house.restart_without_device();
    all_are_refused(&house);
    let absent = open(&member, &path(suite, "g"), &secret).unwrap_err();
    assert_eq!(absent.code, FailureCode::DeviceFailed, "{absent}");
    assert!(absent.message.contains("is failed"), "{absent}");
    house.restart_with_device();
    assert_eq!(house.keys(), before, "a refused request changes no key");

    assert_eq!(
        open(&init, &welcome(), &suite.group_secrets()).unwrap(),
        suite.group_secrets()
    );
    assert_eq!(open(&member, &path(suite, "g"), &secret).unwrap(), secret);
    assert_eq!(open(&leaf, &path(suite, "first"), &secret).unwrap(), secret);
    assert_denied(
        &house,
        &leaf,
        open(&leaf, &path(suite, "second"), &secret),
        (BINDING, "another group"),
    );
    assert_eq!(open(&leaf, &path(suite, "first"), &secret).unwrap(), secret);
}

fn what_opens_to_something_else_is_withheld(suite: Suite) {
    let house = House::new("");
    let app = App::new(&house, suite, "mallory");
    let (init, leaf) = (app.generate(), app.generate());
    app.key_package(&init, &leaf, ALWAYS, false);
    let secrets = suite.group_secrets();
    let wrong = [
        b"a secret that was sealed to this key".to_vec(),
        Vec::new(),
        secrets[..secrets.len() - 1].to_vec(),
        [secrets.clone(), vec![0]].concat(),
    ];
    let before = house.keys();
    let tries = wrong
        .iter()
        .map(|plaintext| (&init, welcome(), plaintext.clone()))
        .chain(
            [suite.hash_len() - 1, suite.hash_len() + 1]
                .map(|length| (&leaf, path(suite, "g"), vec![7; length])),
        );
    // A key of this suite serves no group of another.
    let others = [SUITE_1, SUITE_2, SUITE_3, SUITE_7]
        .into_iter()
        .filter(|other| other.number != suite.number);
    let tries = tries.chain(others.map(|other| (&leaf, path(other, "g"), other.path_secret())));
    for (key, info, plaintext) in tries {
        let failure = app.open(key, &info, &plaintext).unwrap_err();
        assert_eq!(failure.code, FailureCode::Withheld, "{failure:?}");
        assert_eq!(failure.policy.as_deref(), Some("rule/withheld"));
        assert_eq!(failure.key, Some(key.key));
        let said = format!("{failure:?}");
        assert!(
            !said.contains("sealed to this key")
                && !said.contains(&hex::encode(&plaintext[..plaintext.len().min(8)]))
                || plaintext.is_empty()
        );
        assert_ne!(
            house.denials(
                Some(key.key),
                if key.key == init.key {
                    "OpenWelcome"
                } else {
                    "OpenPathSecret"
                },
                "not what MLS seals"
            ),
            0
        );
    }
    assert_eq!(house.keys(), before);
    // What was withheld has bound the leaf to no group.
    app.open(&leaf, &path(suite, "other"), &suite.path_secret())
        .unwrap();
    app.open(&init, &welcome(), &secrets).unwrap();
}

fn an_init_key_opens_within_its_lifetime_only(suite: Suite) {
    let house = House::new("");
    let app = App::new(&house, suite, "mallory");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap().as_secs();
    for lifetime in [
        Source::KeyPackage(0, 1),
        Source::KeyPackage(now + 10 * 86_400, now + 20 * 86_400),
    ] {
        let (init, leaf) = (app.generate(), app.generate());
        app.key_package(&init, &leaf, lifetime, false);
        let refused = app.open(&init, &welcome(), &suite.group_secrets());
        assert_denied(&house, &init, refused, (BINDING, "out of its lifetime"));
    }
    let (init, leaf) = (app.generate(), app.generate());
    app.key_package(&init, &leaf, ALWAYS, false);
    app.open(&init, &welcome(), &suite.group_secrets()).unwrap();
}

fn an_init_key_opens_nothing_after_the_join(suite: Suite) {
    let house = House::new("");
    let app = App::new(&house, suite, "mallory");
    let call = Call::default();
    let claim = |record: &Record, keys: &[&GeneratedHpke]| {
        let claim = Claim {
            storage: "laptop".to_owned(),
            record: record.clone(),
            keys: keys.iter().map(|key| key.key).collect(),
        };
        let claimed = app.client.claim(claim, &call).unwrap();
        assert_eq!(claimed.lost, []);
        let settlements = vec![Settlement::Written {
            record: record.clone(),
            generation: claimed.generation,
        }];
        let storage = "laptop".to_owned();
        app.client
            .settle(
                Settle {
                    storage,
                    settlements,
                },
                &call,
            )
            .unwrap()
    };
    for (number, last_resort) in [false, true].into_iter().enumerate() {
        let (init, leaf) = (app.generate(), app.generate());
        app.key_package(&init, &leaf, ALWAYS, last_resort);
        let package = Record::KeyPackage {
            reference: Bytes(vec![u8::try_from(number).unwrap(); 32]),
        };
        claim(&package, &[&init, &leaf]);
        app.open(&init, &welcome(), &suite.group_secrets()).unwrap();
        let group = Bytes(vec![b'g', u8::try_from(number).unwrap()]);
        let epoch = Record::Epoch {
            group,
            epoch: 1,
            leaf_index: 1,
        };
        let next = claim(&epoch, &[&leaf]);
        assert_eq!(next.joined.is_empty(), last_resort, "{next:?}");
        if last_resort {
            app.open(&init, &welcome(), &suite.group_secrets()).unwrap();
            continue;
        }
        let settle = Settle {
            storage: "laptop".to_owned(),
            settlements: vec![Settlement::Deleted {
                record: package,
                generation: None,
            }],
        };
        app.client.settle(settle, &call).unwrap();
        let refused = app.open(&init, &welcome(), &suite.group_secrets());
        assert_denied(
            &house,
            &init,
            refused,
            (BINDING, "served to join a group already"),
        );
        let again = key_package(
            suite,
            &init.public_key,
            &app.signed_leaf(&leaf, ALWAYS, "", 0),
            false,
        );
        app.sign(&key_package_tbs(&again)).unwrap_err();
    }
}

fn malformed_opens_are_refused(suite: Suite) {
    let house = House::new("");
    let app = App::new(&house, suite, "mallory");
    let (init, leaf) = (app.generate(), app.generate());
    app.key_package(&init, &leaf, ALWAYS, false);
    let honest = || sealed(suite, &init, &welcome(), &suite.group_secrets());
    let before = house.keys();
    let (other_kem, no_points) = match suite.kem {
        Kem::DhKemX25519 => (Kem::DhKemP256, vec![("a small-order point", vec![0; 32])]),
        Kem::DhKemP256 | Kem::DhKemP384 => (Kem::DhKemX25519, wrong_points(&honest().enc)),
    };
    let big = Bytes(vec![0; MAX_CONTENT + 1]);
    let malformed = [
        (
            "a short enc",
            Open {
                enc: Bytes(vec![9; 31]),
                ..honest()
            },
        ),
        (
            "an empty enc",
            Open {
                enc: Bytes(vec![]),
                ..honest()
            },
        ),
        (
            "a long enc",
            Open {
                enc: Bytes(vec![9; MAX_PUBLIC_KEY + 1]),
                ..honest()
            },
        ),
        (
            "another KEM",
            Open {
                kem: other_kem,
                ..honest()
            },
        ),
        (
            "associated data",
            Open {
                aad: Bytes(vec![1]),
                ..honest()
            },
        ),
        (
            "a long ciphertext",
            Open {
                ciphertext: big.clone(),
                ..honest()
            },
        ),
        (
            "a long info",
            Open {
                info: big.clone(),
                ..honest()
            },
        ),
        (
            "a long aad",
            Open {
                aad: big,
                ..honest()
            },
        ),
        (
            "the signature key",
            Open {
                key: app.me.key,
                ..honest()
            },
        ),
    ];
    let no_points = no_points.into_iter().map(|(what, enc)| {
        let enc = Bytes(enc);
        (what, Open { enc, ..honest() })
    });
    for (what, request) in malformed.into_iter().chain(no_points) {
        let key = request.key;
        let failure = app.open_with(request).unwrap_err();
        assert_eq!(failure.code, FailureCode::BadRequest, "{what}: {failure:?}");
        assert!(!failure.advice.is_empty(), "{what}");
        assert!(failure.key.is_none_or(|named| named == key), "{what}");
    }
    for (what, ciphertext) in [("no ciphertext", vec![]), ("a damaged one", vec![1; 50])] {
        let request = Open {
            ciphertext: Bytes(ciphertext),
            ..honest()
        };
        let failure = app.open_with(request).unwrap_err();
        assert_eq!(
            failure.code,
            FailureCode::DecryptionFailed,
            "{what}: {failure:?}"
        );
        assert_eq!(failure.key, Some(init.key));
    }
    assert_eq!(house.keys(), before);
    app.open_with(honest()).unwrap();
    assert!(
        house
            .records()
            .iter()
            .any(|record| record.key == Some(init.key) && record.is_refusal())
    );
}
