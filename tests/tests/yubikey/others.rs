//! Other cards, and other keys in the slots of this one.

use mlskeyd_tests::member::Member;
use mlskeyd_tests::rig::PIN;

use super::bench::{Bench, NEW, OLD};
use super::scene::{Scene, failure};

#[test]
fn another_card_is_not_asked_for_a_pin_until_somebody_accepts_it() {
    let bench = Bench::new(NEW, &["--signature", "9a:p256"]);
    let settings = bench.with_pin("");
    let mut scene = Scene::new(bench, &settings);
    scene.await_state("ready");
    scene.adopt("alice", "9a", "p256").unwrap();
    let client = scene.client();
    let member = Member::new(&client, "alice", "yubikey");
    scene.bench.cards.remove(0);
    scene.await_state("absent");

    let other = scene.bench.cards.make(5678, OLD);
    scene.bench.cards.insert(other, 0);
    let detail = scene.await_state("failed");
    assert!(detail.contains("\"5678\"") && detail.contains("mlskeyctl devices accept yubikey"));
    scene.bench.cards.provision(&[]).unwrap();
    scene.bench.cards.seen(other);
    failure(member.try_key_package(&client));
    let refused = scene.unlock(PIN, &[]).unwrap_err();
    assert!(refused.contains("5678"), "{refused}");
    assert_eq!(scene.bench.cards.tries(other), 3);
    let seen = scene.bench.cards.seen(other);
    assert!(seen.iter().all(|command| command[0] != 0x20), "{seen:02x?}");

    // Beside it the right one is found.
    let card = scene.bench.card;
    scene.bench.cards.insert(card, 1);
    scene.await_state("ready");
    member.key_package(&client);

    scene.bench.cards.remove(1);
    scene.await_state("failed");
    let accepted = scene.daemon.ctl(&["devices", "accept", "yubikey", "--yes"]);
    let accepted = accepted.unwrap();
    assert_eq!(
        (&accepted["serial"], &accepted["before"]),
        (&"5678".into(), &"1234".into())
    );
    scene.await_state("ready");
    failure(member.try_key_package(&client));
}

#[test]
fn keys_that_are_not_suitable_are_not_adopted() {
    let more = ["--signature", "9a:p256", "--consent", "9e"];
    let bench = Bench::new(OLD, &more);
    let settings = bench.with_pin("");
    let scene = Scene::new(bench, &settings);
    scene.await_state("ready");
    for (slot, scheme, why) in [
        ("9a", "ed25519", "another algorithm"),
        ("9c", "p256", "is empty"),
        ("9d", "p256", "sealed under it"),
        ("9e", "p256", "touched for each message"),
        ("80", "p256", "a slot is"),
        ("work", "p256", "a slot is"),
    ] {
        let refused = scene.adopt("alice", slot, scheme).unwrap_err();
        assert!(refused.contains(why), "{slot}: {refused}");
    }
    scene.adopt("alice", "9a", "p256").unwrap();
    let refused = scene.adopt("bob", "9a", "p256").unwrap_err();
    assert!(refused.contains("in use already"), "{refused}");
}

/// What is signed with another key than the identity's is no signature.
#[test]
fn a_key_that_somebody_replaced_is_missing() {
    let bench = Bench::new(NEW, &["--signature", "9a:p256"]);
    let settings = bench.with_pin("management_key = \"on-card\"");
    let mut scene = Scene::new(bench, &settings);
    scene.await_state("ready");
    scene.adopt("alice", "9a", "p256").unwrap();
    let client = scene.client();
    let member = Member::new(&client, "alice", "yubikey");
    let card = scene.bench.card;
    scene.bench.cards.remake(card, 0x9a);
    let message = mlskeyd_tests::member::message(mlskeyd_tests::suite::SUITE_2);
    let refused = failure(member.try_sign(&client, &message));
    assert!(
        refused.message.contains("the key in slot 9a is missing"),
        "{refused}"
    );
}
