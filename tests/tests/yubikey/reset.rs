//! A card that loses its power for a moment in the middle of what is done with it, and
//! nobody is told: pcscd does so for a program that died with the card in its hands.

use mlskeyd::devices::Start;
use mlskeyd_tests::member::{Member, Seat, client, message};
use mlskeyd_tests::suite::SUITE_2;

use super::bench::{Bench, NEW, OLD, inside, open};
use super::pulled::{allow_absence, destroy_all, generate, scene};
use super::scene::Scene;

/// Does something again and again, with a reset at one command after the other, until it
/// is over before that.
fn at_each_command(scene: &mut Scene, mut work: impl FnMut(&mut Scene)) {
    let card = scene.bench.card;
    for after in 0..200 {
        scene.bench.cards.seen(card);
        scene.bench.cards.reset_at(0, after);
        work(scene);
        if scene.bench.cards.seen(card).len() <= after as usize {
            assert!(after > 2, "it does nothing with the card");
            assert_eq!(scene.bench.cards.tries(card), 3);
            return;
        }
    }
    panic!("it does not end");
}

/// What is harmless to repeat is repeated: nobody notices.
#[test]
fn signing_and_opening_goes_on() {
    let mut scene = scene(OLD);
    scene.adopt("alice", "9a", "p256").unwrap();
    let client = client(&scene.daemon.socket());
    let member = Member::new(&client, "alice", "yubikey");
    let seat = Seat::take(&member, &client);
    at_each_command(&mut scene, |_| {
        member.try_sign(&client, &message(SUITE_2)).unwrap();
    });
    at_each_command(&mut scene, |_| seat.try_open(&client).unwrap());
}

/// Runs in a process of its own, which the test below starts: finds the card by one look.
#[test]
#[ignore = "the other process of the test below"]
fn looks() {
    let Some(stage) = inside() else { return };
    let settings = std::fs::read_to_string(stage.join("settings")).unwrap();
    open(&stage, &settings, Start::CreateIfAbsent);
}

#[test]
fn one_look_finds_it() {
    let mut bench = Bench::new(OLD, &[]);
    std::fs::write(bench.stage.path("settings"), bench.with_pin("")).unwrap();
    // Before it is given its PIN, which is not repeated.
    for after in 0..7 {
        bench.cards.reset_at(0, after);
        bench.play_inside("reset::looks");
    }
}

/// No key is lost, none is doubled, and none lives on after its end.
fn makes_and_destroys(version: [u8; 3]) {
    let mut scene = scene(version);
    let socket = scene.daemon.socket();
    let card = scene.bench.card;
    let before = scene.bench.cards.snapshot(card);
    at_each_command(&mut scene, |scene| {
        allow_absence(generate(&client(&socket)));
        scene.await_state("ready");
        destroy_all(scene);
    });
    let left = scene.bench.cards.snapshot(card);
    for entry in &before {
        assert!(left.contains(entry), "{entry:?} is not as it was");
    }
    let fillers = left.len() - before.len();
    assert!(fillers <= if version == NEW { 0 } else { 20 }, "{fillers}");
}

#[test]
fn making_and_destroying_on_firmware_5_4() {
    makes_and_destroys(OLD);
}

#[test]
fn making_and_destroying_on_firmware_5_7() {
    makes_and_destroys(NEW);
}
