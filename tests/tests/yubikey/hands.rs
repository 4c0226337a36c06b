//! Cards that come and go, and other programs on them.

use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::FailureCode;
use mlskeyd_tests::member::Member;
use mlskeyd_tests::rig::PIN;

use super::bench::{Bench, NEW, OLD};
use super::scene::{Scene, failure};

fn ready(version: [u8; 3]) -> (Scene, Member) {
    let bench = Bench::new(version, &["--signature", "9a:p256"]);
    let settings = bench.with_pin("");
    let scene = Scene::new(bench, &settings);
    scene.await_state("ready");
    scene.adopt("alice", "9a", "p256").unwrap();
    let member = Member::new(&scene.client(), "alice", "yubikey");
    (scene, member)
}

#[test]
fn a_card_that_was_pulled_out_works_again_when_it_is_back() {
    for version in [OLD, NEW] {
        let (mut scene, member) = ready(version);
        let client = scene.client();
        member.key_package(&client);
        scene.bench.cards.remove(0);
        scene.await_state("absent");
        let message = mlskeyd_tests::member::message(mlskeyd_tests::suite::SUITE_2);
        let refused = failure(member.try_sign(&client, &message));
        assert_eq!(refused.code, FailureCode::DeviceAbsent, "{refused}");
        // In the other reader it is the same card.
        let card = scene.bench.card;
        scene.bench.cards.insert(card, 1);
        scene.await_state("ready");
        member.key_package(&client);
    }
}

#[test]
fn pcscd_may_start_again() {
    let (mut scene, member) = ready(NEW);
    scene.bench.cards.restart_pcscd();
    let client = scene.client();
    loop {
        match member.try_key_package(&client) {
            Ok(_) => break,
            Err(error) => drop(failure::<()>(Err(error))),
        }
    }
    scene.await_state("ready");
}

#[test]
fn another_program_may_use_the_card_in_between() {
    for version in [OLD, NEW] {
        let (mut scene, member) = ready(version);
        let client = scene.client();
        member.key_package(&client);
        let card = scene.bench.card;
        for commands in [
            // It selects the application, and so forgets the PIN; or another one, which
            // is not there.
            &["00a4040005a000000308"][..],
            &["00a4040007d2760001240102"],
            // It begins something and does not end it.
            &["00a4040005a000000308", "1087119a0411223344"],
        ] {
            scene.bench.cards.disturb(0, commands);
            member.key_package(&client);
        }
        assert_eq!(scene.bench.cards.tries(card), 3);
        // Nothing keeps one from having it for itself while nothing is done.
        scene.bench.cards.hold(0);
        std::thread::scope(|scope| {
            let signing = scope.spawn(|| member.try_key_package(&client));
            scene.bench.cards.let_go();
            signing.join().unwrap().unwrap();
        });
    }
}

/// Else any program could have the card sign what the policy refuses.
#[test]
fn what_the_daemon_unlocked_is_locked_for_others() {
    let sign = format!("0087119a26{}{}00", "7c2482008120", "5a".repeat(32));
    let generate = "00470095 05 ac03800111 00".replace(' ', "");
    let verify = format!("0020008008{:f<16}", hex::encode(PIN));
    for version in [OLD, NEW] {
        let bench = Bench::new(version, &["--signature", "9a:p256"]);
        let managed = "management_key = \"on-card\"\nhpke_tier = \"hardware\"";
        let settings = bench.with_pin(managed);
        let mut scene = Scene::new(bench, &settings);
        scene.await_state("ready");
        scene.adopt("alice", "9a", "p256").unwrap();
        let client = scene.client();
        let member = Member::new(&client, "alice", "yubikey");
        let cards = &mut scene.bench.cards;
        member.key_package(&client);
        let answers = cards.disturb(0, &[&sign, &generate]);
        assert_eq!(answers, ["6982", "6982"]);
        // What another program has unlocked for itself stays so, as long as the daemon
        // makes no keys.
        let message = mlskeyd_tests::member::message(mlskeyd_tests::suite::SUITE_2);
        assert_eq!(cards.disturb(0, &[&verify]), ["9000"]);
        member.try_sign(&client, &message).unwrap();
        let answers = cards.disturb(0, &[&sign]);
        assert!(answers[0].ends_with("9000"), "{answers:?}");
    }
}

#[test]
fn who_does_not_let_go_of_the_card_is_named() {
    let (mut scene, member) = ready(NEW);
    scene.bench.cards.hold(0);
    let refused = failure(member.try_key_package(&scene.client()));
    assert!(refused.message.contains("another program"), "{refused}");
    scene.bench.cards.let_go();
    member.key_package(&scene.client());
}

#[test]
fn a_daemon_without_a_card_waits_for_it_without_a_timer() {
    let (mut scene, member) = ready(NEW);
    scene.bench.cards.remove(0);
    scene.await_state("absent");
    scene.daemon.stop();
    scene.daemon.restart(&scene.options);
    scene.await_state("absent");
    let card = scene.bench.card;
    scene.bench.cards.insert(card, 0);
    scene.await_state("ready");
    let identity = scene.client().identities(&Call::default()).unwrap();
    assert_eq!(identity[0].key, member.identity.key);
    member.key_package(&scene.client());
}
