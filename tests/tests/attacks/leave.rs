//! Leaving custody: with a permit one commit in one group, else nothing.

use std::sync::Barrier;

use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::*;

use crate::forge::*;
use crate::house::{App, House, failure};
use crate::p256_only::wrong_points;
use crate::scene::RULE;
use crate::suite::{OwnKey, Suite, for_each_suite};

for_each_suite!(
    nobody_leaves_whom_the_configuration_keeps,
    a_permit_serves_one_commit_in_one_group,
    of_commits_at_once_one_leaves,
    a_permit_is_worth_no_more_than_the_configuration,
);

pub const ALLOWED: &str = "[policy]\nallow_leave = true\n";

pub fn ask(app: &App, group: &str) -> Result<(), Failure> {
    let request = LeaveCustody {
        identity: app.me.name.clone(),
        group: Bytes::from(group.as_bytes()),
        signature_key: Bytes(app.own.public.clone()),
    };
    app.client
        .leave_custody(request, &Call::default())
        .map_err(failure)
}

/// A leaf with keys of the app's own.
pub fn leaving_leaf(app: &App) -> Leaf {
    Leaf {
        signature_key: app.own.public.clone(),
        ..app.leaf(&app.own_hpke(1), Source::Commit)
    }
}

/// A commit with this leaf.
pub fn leaving_with(app: &App, group: &str, epoch: u64, leaf: &[u8]) -> Vec<u8> {
    message(app.suite, group, epoch, Sender::Member(0), &commit(leaf))
}

/// A commit that takes the app's leaf out of custody.
fn leaving(app: &App, group: &str, epoch: u64) -> Vec<u8> {
    let leaf = app.self_signed(&leaving_leaf(app), group, 0);
    leaving_with(app, group, epoch, &leaf)
}

/// What the group could never encrypt to.
fn no_public_keys(suite: Suite, public_key: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    match suite.kem {
        Kem::DhKemP256 | Kem::DhKemP384 => wrong_points(public_key),
        Kem::DhKemX25519 => vec![
            ("a shorter key", public_key[1..].to_vec()),
            ("a longer key", [&[0], public_key].concat()),
        ],
    }
}

fn denied(result: Result<Vec<u8>, Failure>, by: &str) {
    let failure = result.unwrap_err();
    assert_eq!(failure.code, FailureCode::Denied, "{failure:?}");
    assert_eq!(failure.policy.as_deref(), Some(by), "{failure:?}");
}

const POLICY: &str = "builtin/leave-custody";

fn nobody_leaves_whom_the_configuration_keeps(suite: Suite) {
    let house = House::new("");
    let app = App::new(&house, suite, "alice");
    let before = house.keys();
    let refused = ask(&app, "g").unwrap_err();
    assert_eq!(refused.code, FailureCode::Denied);
    assert_eq!(refused.policy.as_deref(), Some(POLICY));
    assert_eq!(refused.key, Some(app.me.key));
    assert!(refused.advice.contains("allow_leave"), "{refused:?}");
    denied(app.sign(&leaving(&app, "g", 1)), RULE);
    assert_eq!(house.keys(), before);
    assert_eq!(
        house.denials(Some(app.me.key), "LeaveCustody", "does not let keys leave"),
        1
    );
    app.sign(&message(
        suite,
        "g",
        1,
        Sender::Member(0),
        &application("I stay"),
    ))
    .unwrap();
}

fn a_permit_serves_one_commit_in_one_group(suite: Suite) {
    let house = House::new(ALLOWED);
    let mut app = App::new(&house, suite, "alice");
    denied(app.sign(&leaving(&app, "g", 1)), RULE);
    ask(&app, "g").unwrap();

    // Not in another group, not with another key, not by an Update, not with
    // a leaf that is not sound, not with another's credential.
    denied(app.sign(&leaving(&app, "other", 1)), RULE);
    let permitted = std::mem::replace(&mut app.own, OwnKey::new(suite));
    denied(app.sign(&leaving(&app, "g", 1)), RULE);
    app.own = permitted;
    let mut leaf = app.leaf(&app.own_hpke(1), Source::Update);
    leaf.signature_key = app.own.public.clone();
    let forged = app.self_signed(&leaf, "g", 0);
    denied(
        app.sign(&message(suite, "g", 1, Sender::Member(0), &update(&forged))),
        RULE,
    );
    leaf.source = Source::Commit;
    let say = |leaf: &[u8]| message(suite, "g", 1, Sender::Member(0), &commit(leaf));
    denied(app.sign(&say(&leaf.signed(&[0; 64]))), RULE);
    let elsewhere = app.self_signed(&leaf, "g", 1);
    denied(app.sign(&say(&elsewhere)), RULE);
    let sound = leaf.encryption_key.clone();
    for (what, key) in no_public_keys(suite, &sound) {
        leaf.encryption_key = key;
        let forged = app.self_signed(&leaf, "g", 0);
        let refused = app.sign(&say(&forged)).unwrap_err();
        assert!(
            refused.message.contains("cipher suite"),
            "{what}: {refused}"
        );
    }
    leaf.encryption_key = sound;
    leaf.credential = credential("bob");
    let forged = app.self_signed(&leaf, "g", 0);
    denied(app.sign(&say(&forged)), RULE);

    // None of this used the permit up; the honest commit does.
    app.sign(&leaving(&app, "g", 1)).unwrap();
    denied(app.sign(&leaving(&app, "g", 1)), RULE);
    denied(app.sign(&leaving(&app, "g", 2)), RULE);
}

fn of_commits_at_once_one_leaves(suite: Suite) {
    let house = House::new(ALLOWED);
    let app = App::new(&house, suite, "alice");
    ask(&app, "g").unwrap();
    let start = Barrier::new(8);
    let signed = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|epoch| {
                let (app, start) = (&app, &start);
                scope.spawn(move || {
                    let content = leaving(app, "g", epoch);
                    start.wait();
                    app.sign(&content).is_ok()
                })
            })
            .collect();
        tries
            .into_iter()
            .map(|t| t.join().unwrap())
            .filter(|ok| *ok)
            .count()
    });
    assert_eq!(signed, 1);
}

fn a_permit_is_worth_no_more_than_the_configuration(suite: Suite) {
    let mut house = House::new(ALLOWED);
    let app = App::new(&house, suite, "alice");
    ask(&app, "g").unwrap();
    house.stop();
    house.start("");
    denied(app.sign(&leaving(&app, "g", 1)), POLICY);
    house.stop();
    house.start(ALLOWED);
    app.sign(&leaving(&app, "g", 1)).unwrap();
}
