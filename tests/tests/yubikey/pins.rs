//! PINs: what one costs, and what is never tried.

use mlskeyd_tests::member::{Member, message};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{PIN, Stage, YubiKeys};
use mlskeyd_tests::suite::SUITE_2;

use super::bench::{Bench, NEW, OLD};
use super::scene::{Scene, create, failure};
use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::{FailureCode, Interaction};

const WRONG: &str = "000000";

#[test]
fn a_person_gives_the_pin_and_a_wrong_one_costs_one_try() {
    for version in [OLD, NEW] {
        let bench = Bench::new(version, &["--signature", "9a:p256"]);
        let mut scene = Scene::new(bench, "");
        let detail = scene.await_state("locked");
        assert!(detail.contains("3 tries left"), "{detail}");
        let (card, tries) = (scene.bench.card, |scene: &mut Scene| {
            let card = scene.bench.card;
            scene.bench.cards.tries(card)
        });
        let refused = scene.unlock(WRONG, &[]).unwrap_err();
        assert!(refused.contains("2 tries left"), "{refused}");
        assert_eq!(tries(&mut scene), 2);
        // The same one is not tried again, also by another daemon.
        let refused = scene.unlock(WRONG, &[]).unwrap_err();
        assert!(refused.contains("was wrong"), "{refused}");
        scene.daemon.stop();
        scene.daemon.restart(&scene.options);
        scene.await_state("locked");
        let refused = scene.unlock(WRONG, &[]).unwrap_err();
        assert!(refused.contains("was wrong"), "{refused}");
        assert_eq!(tries(&mut scene), 2);
        let shown = scene.shown();
        assert_eq!(shown["facts"]["pin"], "2 of 3 tries left");

        scene.unlock("111111", &[]).unwrap_err();
        assert_eq!(tries(&mut scene), 1);
        // The last one is kept, whoever gives the PIN.
        let refused = scene.unlock(PIN, &[]).unwrap_err();
        assert!(refused.contains("one try left"), "{refused}");
        assert_eq!(tries(&mut scene), 1);
        scene.unlock(PIN, &["--last-try"]).unwrap();
        assert_eq!(tries(&mut scene), 3);
        scene.adopt("alice", "9a", "p256").unwrap();
        Member::new(&scene.client(), "alice", "yubikey").key_package(&scene.client());
        scene.bench.cards.seen(card);
    }
}

#[test]
fn what_cannot_be_a_pin_costs_nothing() {
    let bench = Bench::new(NEW, &[]);
    let mut scene = Scene::new(bench, "");
    scene.await_state("locked");
    for pin in ["12345", "123456789"] {
        let refused = scene.unlock(pin, &[]).unwrap_err();
        assert!(refused.contains("6 to 8 characters"), "{refused}");
    }
    let card = scene.bench.card;
    assert_eq!(scene.bench.cards.tries(card), 3);
}

#[test]
fn a_configured_pin_that_is_wrong_is_tried_once() {
    let bench = Bench::new(OLD, &[]);
    let settings = bench.with_pin("");
    std::fs::write(bench.stage.path("pin"), WRONG).unwrap();
    let mut scene = Scene::new(bench, &settings);
    let detail = scene.await_state("locked");
    assert!(detail.contains("was wrong"), "{detail}");
    let card = scene.bench.card;
    for _ in 0..2 {
        scene.daemon.stop();
        scene.daemon.restart(&scene.options);
        scene.await_state("locked");
        scene.bench.cards.remove(0);
        scene.await_state("absent");
        scene.bench.cards.insert(card, 0);
        scene.await_state("locked");
    }
    assert_eq!(scene.bench.cards.tries(card), 2);
    // Once there is another one, it comes back by itself when the card does.
    std::fs::write(scene.bench.stage.path("pin"), PIN).unwrap();
    scene.bench.cards.remove(0);
    scene.bench.cards.insert(card, 0);
    scene.await_state("ready");
}

#[test]
fn what_must_not_wait_for_a_person_does_not() {
    let bench = Bench::new(NEW, &[]);
    let scene = Scene::new(bench, "management_key = \"on-card\"");
    scene.await_state("locked");
    let call = Call {
        interaction: Interaction::Never,
        ..Call::default()
    };
    let refused = failure(scene.client().create_identity(create("alice"), &call));
    assert_eq!(refused.code, FailureCode::InteractionRequired, "{refused}");
}

#[test]
fn a_card_from_the_factory_is_refused() {
    let stage = Stage::new(programs!());
    let mut cards = YubiKeys::new(&stage);
    let card = cards.make(77, NEW);
    cards.insert(card, 0);
    let scene = Scene::new(Bench { cards, card, stage }, "");
    let detail = scene.await_state("failed");
    for what in ["PIN, PUK, management key", "mlskeyctl provision yubikey"] {
        assert!(detail.contains(what), "{detail}");
    }
    scene.bench.cards.provision(&[]).unwrap();
    // Whoever unlocks it has it looked at again.
    scene.unlock(PIN, &[]).unwrap();
    scene.await_state("ready");
}

#[test]
fn who_locks_it_has_it_wait_for_a_person() {
    for version in [OLD, NEW] {
        let bench = Bench::new(version, &["--signature", "9a:p256"]);
        let settings = bench.with_pin("");
        let mut scene = Scene::new(bench, &settings);
        scene.await_state("ready");
        scene.adopt("alice", "9a", "p256").unwrap();
        let client = scene.client();
        let member = Member::new(&client, "alice", "yubikey");
        member.key_package(&client);
        let locked = scene.daemon.ctl(&["lock", "yubikey"]).unwrap();
        assert_eq!(locked["state"], "locked");
        let never = Call {
            interaction: Interaction::Never,
            ..Call::default()
        };
        let sign = mlskeyd_protocol::v1::Sign {
            key: member.identity.key,
            content: message(SUITE_2).into(),
        };
        let refused = failure(client.sign(sign, &never));
        assert_eq!(refused.code, FailureCode::InteractionRequired, "{refused}");
        // The configured PIN is not given again by itself, also to a card that comes back.
        let card = scene.bench.card;
        scene.bench.cards.remove(0);
        scene.await_state("absent");
        scene.bench.cards.insert(card, 0);
        scene.await_state("locked");
        scene.unlock(PIN, &[]).unwrap();
        member.key_package(&client);
    }
}
