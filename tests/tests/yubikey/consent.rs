//! A person's consent, by touching a key of its own.

use std::sync::mpsc;

use mlskeyd::audit::{AuditOutcome, Entries, FILE_NAME};
use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::{FailureCode, Interaction, Progress};
use mlskeyd_tests::member::{Member, message};
use mlskeyd_tests::suite::SUITE_2;
use mlskeyd_virtual_yubikey::control::FingerOrder;

use super::bench::{Bench, NEW, OLD};
use super::scene::{Scene, create, failure};

fn scene(version: [u8; 3]) -> Scene {
    scene_with(version, "")
}

/// With more under `[policy]`.
fn scene_with(version: [u8; 3], policy: &str) -> Scene {
    let bench = Bench::new(version, &["--consent", "9e"]);
    let settings = bench.with_pin("management_key = \"on-card\"\nconsent_slot = \"9e\"");
    let settings = format!("{settings}\n[policy]\nconsent_device = \"yubikey\"{policy}");
    let scene = Scene::new(bench, &settings);
    scene.await_state("ready");
    scene
}

/// The actions that are on record, with what came of them.
fn recorded(scene: &Scene) -> Vec<(String, AuditOutcome)> {
    let entries = Entries::open(&scene.daemon.state().join(FILE_NAME)).unwrap();
    let records = entries.map(|entry| entry.unwrap().record);
    records
        .map(|record| (record.action.into_owned(), record.outcome))
        .collect()
}

fn consents(scene: &Scene) -> usize {
    let records = recorded(scene).into_iter();
    records.filter(|(action, _)| action == "Consent").count()
}

#[test]
fn an_identity_is_made_once_somebody_has_touched_the_card() {
    for version in [OLD, NEW] {
        let mut scene = scene(version);
        let (client, card) = (scene.client(), scene.bench.card);
        let other = scene.client();
        let bob = Member::new(&other, "bob", "software");
        scene.bench.cards.finger(card, FingerOrder::Waits);
        let (told, tells) = mpsc::channel();
        let cards = &mut scene.bench.cards;
        std::thread::scope(|scope| {
            let creating = scope.spawn(|| {
                let tell = move |progress: &Progress| told.send(progress.clone()).unwrap();
                let waiting = Call {
                    on_progress: Some(&tell),
                    ..Call::default()
                };
                client.create_identity(create("alice"), &waiting)
            });
            let device = "yubikey".to_owned();
            assert_eq!(tells.recv().unwrap(), Progress::WaitingForTouch { device });
            // Nobody else waits for the finger.
            bob.key_package(&other);
            cards.finger(card, FingerOrder::Now);
            creating.join().unwrap().unwrap();
        });
        assert_eq!(consents(&scene), 2, "bob's identity took one, too");
        // What is there already takes none, and neither does a message.
        scene.bench.cards.finger(card, FingerOrder::Never);
        let alice = Member::new(&client, "alice", "yubikey");
        alice.sign(&client, &message(SUITE_2));
        assert_eq!(consents(&scene), 2);
    }
}

#[test]
fn without_a_touch_nothing_is_made() {
    let mut scene = scene(NEW);
    let (client, card) = (scene.client(), scene.bench.card);
    scene.bench.cards.finger(card, FingerOrder::Never);
    let before = scene.bench.cards.snapshot(card);
    let refused = failure(client.create_identity(create("alice"), &Call::default()));
    assert_eq!(refused.code, FailureCode::Denied, "{refused}");
    assert_eq!(refused.policy.as_deref(), Some("builtin/consent"));
    let never = Call {
        interaction: Interaction::Never,
        ..Call::default()
    };
    scene.bench.cards.finger(card, FingerOrder::Now);
    let refused = failure(client.create_identity(create("alice"), &never));
    assert_eq!(refused.code, FailureCode::InteractionRequired, "{refused}");
    assert_eq!(scene.bench.cards.snapshot(card), before);
    assert_eq!(scene.bench.cards.tries(card), 3);
    assert_eq!(consents(&scene), 0);
    let denied = recorded(&scene).into_iter().any(|(action, outcome)| {
        let by_rule =
            matches!(outcome, AuditOutcome::Denied { policy, .. } if policy == "builtin/consent");
        action == "CreateIdentity" && by_rule
    });
    assert!(denied);
}

#[test]
fn a_consent_key_that_somebody_replaced_gives_no_consent() {
    let mut scene = scene(OLD);
    let (client, card) = (scene.client(), scene.bench.card);
    scene.bench.cards.remake(card, 0x9e);
    let refused = failure(client.create_identity(create("alice"), &Call::default()));
    assert_eq!(refused.code, FailureCode::KeyMissing, "{refused}");
    scene.bench.cards.remove(0);
    scene.await_state("absent");
    scene.bench.cards.insert(card, 0);
    scene.await_state("ready");
    let refused = failure(client.create_identity(create("alice"), &Call::default()));
    assert_eq!(refused.code, FailureCode::Unsupported, "{refused}");
    assert!(
        refused.message.contains("another key than before"),
        "{refused}"
    );
}

/// A policy can want it for what the configuration cannot: here, for what is said in a group.
#[test]
fn a_policy_takes_a_touch_for_each_signature_that_it_names() {
    let directory = tempfile::tempdir().unwrap();
    let policy = r#"@id("company/touch") @reason("what is said there is binding") @consent
        forbid(principal, action == Action::"SignApplicationMessage", resource);"#;
    std::fs::write(directory.path().join("90.cedar"), policy).unwrap();
    let mut scene = scene_with(NEW, &format!("\nlocal_dir = {:?}", directory.path()));
    let (client, card) = (scene.client(), scene.bench.card);
    scene.bench.cards.finger(card, FingerOrder::Now);
    let alice = Member::new(&client, "alice", "software");
    let before = consents(&scene);
    alice.sign(&client, &message(SUITE_2));
    alice.sign(&client, &message(SUITE_2));
    assert_eq!(consents(&scene), before + 2);
    alice.key_package(&client);
    assert_eq!(consents(&scene), before + 2, "nothing else takes one");

    scene.bench.cards.finger(card, FingerOrder::Never);
    let refused = failure(alice.try_sign(&client, &message(SUITE_2)));
    assert_eq!(
        refused.policy.as_deref(),
        Some("company/touch"),
        "{refused}"
    );
    assert_eq!(consents(&scene), before + 2);
}
