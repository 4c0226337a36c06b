//! Contents beyond their bounds, and huge ones within.

use mlskeyd::audit::{AuditOutcome, Record};
use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::limits::{MAX_CONTENT, MAX_GROUP_ID};
use mlskeyd_protocol::v1::{FailureCode, SecretBytes, Sign};

use crate::forge::*;
use crate::house::{App, House};
use crate::scene::Scene;
use crate::suite::{SUITE_1, Suite, for_each_suite};

for_each_suite!(huge_external_adds_are_refused_and_large_ones_signed);

const MEMBER: Sender = Sender::Member(0);

/// The message of this length that `make` makes of so many zeros.
fn of_length(length: usize, make: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let some = length / 2;
    let rest = make(&vec![0; some]).len() - some;
    make(&vec![0; length - rest])
}

/// An external Add that was made huge after it was signed.
struct HugeAdd {
    what: &'static str,
    content: Vec<u8>,
    /// Why it is refused if it is within the bounds.
    why: Option<&'static str>,
}

/// External Adds of this length.
fn huge_adds(app: &App, length: usize) -> [HugeAdd; 4] {
    let suite = app.suite;
    let (init, key) = (app.generate(), app.generate());
    let leaf = app.leaf(&key, ALWAYS);
    let leaf_signature = app.sign(&leaf.tbs("", 0)).unwrap();
    let package = |leaf: &[u8], extensions: &[u8]| {
        key_package_with(suite, &init.public_key, leaf, extensions)
    };
    let signed_leaf = leaf.signed(&leaf_signature);
    let signature = app
        .sign(&key_package_tbs(&package(&signed_leaf, &[])))
        .unwrap();
    let ask = |package: &[u8]| {
        let add = add(package, &signature);
        message(suite, "g", 3, Sender::NewMemberProposal, &add)
    };
    let with_leaf = |leaf: &Leaf| ask(&package(&leaf.signed(&leaf_signature), &[]));
    const UNSIGNED: &str = "no valid signature";
    [
        HugeAdd {
            what: "an extension of the KeyPackage",
            content: of_length(length, |data| {
                ask(&package(&signed_leaf, &extension(0xff00, data)))
            }),
            why: Some(UNSIGNED),
        },
        HugeAdd {
            what: "an extension of the leaf",
            content: of_length(length, |data| {
                with_leaf(&Leaf {
                    extensions: extension(0xff00, data),
                    ..leaf.clone()
                })
            }),
            why: Some(UNSIGNED),
        },
        HugeAdd {
            what: "a credential",
            content: of_length(length, |data| {
                with_leaf(&Leaf {
                    credential: [&[0, 1], &*opaque(data)].concat(),
                    ..leaf.clone()
                })
            }),
            why: Some("credential"),
        },
        HugeAdd {
            what: "nothing but empty extensions",
            content: of_length(length, |zeros| ask(&package(&signed_leaf, zeros))),
            why: None,
        },
    ]
}

#[test]
fn contents_beyond_their_bounds_are_refused_and_on_record() {
    let mut house = House::new("");
    let app = App::new(&house, SUITE_1, "mallory");
    let long_group = "g".repeat(MAX_GROUP_ID + 1);
    // Longer than a record of the audit log may be.
    let huge_group = "g".repeat(20_000);
    let text = application("hello");
    let key = app.generate();
    let mut oversized = vec![
        Vec::new(),
        vec![0; MAX_CONTENT + 1],
        message(SUITE_1, &long_group, 1, MEMBER, &text),
        message(SUITE_1, &huge_group, 1, MEMBER, &text),
        app.leaf(&key, Source::Update).tbs(&huge_group, 0),
    ];
    oversized.extend(huge_adds(&app, MAX_CONTENT + 1).map(|add| add.content));
    let assert_refused = || {
        for content in &oversized {
            let failure = app.sign(content).unwrap_err();
            assert_eq!(failure.code, FailureCode::BadRequest, "{failure:?}");
            assert!(!failure.advice.is_empty());
            // Also those that were never read.
            assert_eq!(failure.key, Some(app.me.key));
            assert_eq!(failure.device.as_deref(), Some("software"));
            assert!(failure.to_string().contains(&app.me.key.to_string()));
        }
    };
    let before = house.keys();
    assert_refused();
    assert_eq!(house.keys(), before);
    let longest = "g".repeat(MAX_GROUP_ID);
    let honest = message(SUITE_1, &longest, 1, MEMBER, &text);
    app.sign(&honest).unwrap();
    assert_eq!(app.client.incarnation(), 0, "by the same connection");

    // A frame beyond all bounds is not even sent.
    let request = Sign {
        key: app.me.key,
        content: SecretBytes::new(vec![0; 5 << 20]),
    };
    app.client.sign(request, &Call::default()).unwrap_err();
    app.sign(&honest).unwrap();

    house.restart_without_device();
    assert_refused();
    app.sign(&honest).unwrap_err();
    house.stop();
    let code = FailureCode::BadRequest;
    let refused = |record: &&Record| record.outcome == AuditOutcome::Failed { code };
    let records = house.records();
    let refused = records.iter().filter(refused);
    let refused: u64 = refused.map(|record| record.repeated.max(1)).sum();
    assert_eq!(refused, 2 * u64::try_from(oversized.len()).unwrap());
}

fn huge_external_adds_are_refused_and_large_ones_signed(suite: Suite) {
    let mut house = House::new("");
    let mut s = Scene::new(&house, suite);
    for add in huge_adds(&s.app, MAX_CONTENT) {
        assert_eq!(add.content.len(), MAX_CONTENT);
        match add.why {
            Some(why) => s.attack(add.what, add.content, "SignProposalAdd", why),
            None => s.unknown(add.what, add.content),
        }
    }
    let (init, leaf) = (s.app.generate(), s.app.generate());
    let leaf = s.app.signed_leaf(&leaf, ALWAYS, "", 0);
    let large = extension(0xff00, &[0; 20_000]);
    let package = key_package_with(suite, &init.public_key, &leaf, &large);
    let signature = s.app.sign(&key_package_tbs(&package)).unwrap();
    let content = add(&package, &signature);
    let content = message(suite, "g", 3, Sender::NewMemberProposal, &content);
    s.honest.push(("a large external Add", content));
    s.play(&mut house);
}
