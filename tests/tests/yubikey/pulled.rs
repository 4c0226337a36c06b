//! A card that is pulled out at each command of what is done with it.

use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::{FailureCode, GenerateHpke, GeneratedHpke, Kem, Placement, Tier};
use mlskeyd_tests::member::{Member, Seat, client, message};
use mlskeyd_tests::suite::SUITE_2;

use super::bench::{Bench, NEW, OLD};
use super::scene::{Scene, failure};

/// A daemon that may fill slots, and destroys at once what nobody needs.
fn scene(version: [u8; 3]) -> Scene {
    let bench = Bench::new(version, &["--signature", "9a:p256"]);
    let settings = bench.with_pin("management_key = \"on-card\"");
    let mut scene = Scene::new(bench, &settings);
    scene.daemon.stop();
    scene.options.lifetimes = vec![("orphan_grace", "0s".into()), ("grace", "0s".into())];
    scene.daemon.restart(&scene.options);
    scene.await_state("ready");
    scene
}

/// Does something again and again, with the card pulled out at one command after the
/// other, before it is done and after; until it is over before that.
fn at_each_command(scene: &mut Scene, mut work: impl FnMut(&mut Scene, bool)) {
    for done in [false, true] {
        for after in 0.. {
            assert!(after < 200, "it does not end");
            scene.bench.cards.pull_at(0, after, done);
            work(scene, true);
            let was_pulled = !scene.bench.cards.is_in(0);
            let card = scene.bench.card;
            scene.bench.cards.remove(0);
            scene.await_state("absent");
            scene.bench.cards.insert(card, 0);
            scene.await_state("ready");
            work(scene, false);
            if !was_pulled {
                break;
            }
        }
    }
    let card = scene.bench.card;
    assert_eq!(scene.bench.cards.tries(card), 3);
}

/// Is that the right one for a card that went away?
fn expect_absence(failure: &mlskeyd_protocol::v1::Failure) {
    let right = [FailureCode::DeviceAbsent, FailureCode::DeviceFailed];
    assert!(right.contains(&failure.code), "{failure}");
}

fn signs_and_opens(version: [u8; 3]) {
    let mut scene = scene(version);
    scene.adopt("alice", "9a", "p256").unwrap();
    let client = client(&scene.daemon.socket());
    let member = Member::new(&client, "alice", "yubikey");
    let seat = Seat::take(&member, &client);
    let before = scene.bench.cards.snapshot(scene.bench.card);
    at_each_command(&mut scene, |_, may_fail| {
        match member.try_sign(&client, &message(SUITE_2)) {
            Err(error) if may_fail => expect_absence(&failure::<()>(Err(error))),
            signed => drop(signed.unwrap()),
        }
    });
    at_each_command(&mut scene, |_, may_fail| match seat.try_open(&client) {
        Err(error) if may_fail => expect_absence(&failure::<()>(Err(error))),
        opened => opened.unwrap(),
    });
    assert_eq!(scene.bench.cards.snapshot(scene.bench.card), before);
}

#[test]
fn signing_and_opening_on_firmware_5_4() {
    signs_and_opens(OLD);
}

#[test]
fn signing_and_opening_on_firmware_5_7() {
    signs_and_opens(NEW);
}

/// Makes a key in a slot.
fn generate(
    client: &mlskeyd_protocol::client::Client,
) -> Result<GeneratedHpke, mlskeyd_protocol::client::CallError> {
    let request = GenerateHpke {
        kem: Kem::DhKemP256,
        placement: Placement {
            device: Some("yubikey".to_owned()),
            tier: Some(Tier::Hardware),
        },
    };
    client.generate_hpke(request, &Call::default())
}

/// Keys in slots as `mlskeyctl keys` shows them.
fn in_slots(scene: &Scene) -> usize {
    let keys = scene.daemon.ctl(&["keys"]).unwrap();
    let keys = keys.as_array().unwrap().iter();
    keys.filter(|key| key["tier"] == "hardware" && key["state"] != "destroyed")
        .count()
}

/// No key is lost, none is doubled, and none lives on after its end.
fn makes_and_destroys(version: [u8; 3]) {
    let mut scene = scene(version);
    let socket = scene.daemon.socket();
    let card = scene.bench.card;
    let others = scene.bench.cards.snapshot(card).len();
    // Fillers are nobody's keys.
    let mut most = 0;
    at_each_command(&mut scene, |scene, may_fail| {
        let client = client(&socket);
        match generate(&client) {
            Err(error) if may_fail => expect_absence(&failure::<()>(Err(error))),
            made => drop(made.unwrap()),
        }
        drop(client);
        if !may_fail {
            loop {
                let swept = scene.daemon.ctl(&["keys", "sweep"]).unwrap();
                if in_slots(scene) == 0 && swept["stuck"] == 0 {
                    break;
                }
            }
            most = most.max(scene.bench.cards.snapshot(card).len() - others);
        }
    });
    let left = scene.bench.cards.snapshot(card).len() - others;
    if version == NEW {
        assert_eq!(left, 0, "deleted is deleted");
    } else {
        assert!(left <= 20, "{left} fillers");
    }
}

#[test]
fn making_and_destroying_on_firmware_5_4() {
    makes_and_destroys(OLD);
}

#[test]
fn making_and_destroying_on_firmware_5_7() {
    makes_and_destroys(NEW);
}
