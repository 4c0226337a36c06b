//! A card that is pulled out at each command of what is done with it.

use mlskeyd_protocol::client::{Call, CallError, Client};
use mlskeyd_protocol::v1::{FailureCode, GenerateHpke, GeneratedHpke, Kem, Placement, Tier};
use mlskeyd_tests::member::{Member, Seat, client, message};
use mlskeyd_tests::suite::SUITE_2;

use super::bench::{Bench, NEW, OLD};
use super::scene::{Scene, failure};

/// A daemon that may fill slots, and destroys at once what nobody needs.
pub(crate) fn scene(version: [u8; 3]) -> Scene {
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
/// other, before it is done and after; until it is over before that. What `prepare`
/// makes is made while nobody pulls; then the work is begun, and ended with the card
/// back in.
fn at_each_command<T>(
    scene: &mut Scene,
    mut prepare: impl FnMut(&mut Scene) -> T,
    mut begin: impl FnMut(&mut Scene, &mut T),
    mut end: impl FnMut(&mut Scene, T),
) {
    let card = scene.bench.card;
    for done in [false, true] {
        for after in 0.. {
            assert!(after < 200, "it does not end");
            let mut prepared = prepare(scene);
            scene.bench.cards.pull_at(0, after, done);
            begin(scene, &mut prepared);
            let was_pulled = !scene.bench.cards.is_in(0);
            scene.bench.cards.remove(0);
            scene.await_state("absent");
            scene.bench.cards.insert(card, 0);
            scene.await_state("ready");
            end(scene, prepared);
            if !was_pulled {
                break;
            }
        }
    }
    assert_eq!(scene.bench.cards.tries(card), 3);
}

/// It went well, or the card went away.
pub(crate) fn allow_absence<T: std::fmt::Debug>(result: Result<T, CallError>) {
    let right = [FailureCode::DeviceAbsent, FailureCode::DeviceFailed];
    if result.is_err() {
        let failure = failure(result);
        assert!(right.contains(&failure.code), "{failure}");
    }
}

fn signs_and_opens(version: [u8; 3]) {
    let mut scene = scene(version);
    scene.adopt("alice", "9a", "p256").unwrap();
    let client = client(&scene.daemon.socket());
    let member = Member::new(&client, "alice", "yubikey");
    let seat = Seat::take(&member, &client);
    let before = scene.bench.cards.snapshot(scene.bench.card);
    let sign = || member.try_sign(&client, &message(SUITE_2));
    at_each_command(
        &mut scene,
        |_| (),
        |_, ()| allow_absence(sign()),
        |_, ()| drop(sign().unwrap()),
    );
    at_each_command(
        &mut scene,
        |_| (),
        |_, ()| allow_absence(seat.try_open(&client)),
        |_, ()| seat.try_open(&client).unwrap(),
    );
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
pub(crate) fn generate(client: &Client) -> Result<GeneratedHpke, CallError> {
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

/// Destroys all keys in slots, which nobody needs any more.
pub(crate) fn destroy_all(scene: &Scene) {
    loop {
        let swept = scene.daemon.ctl(&["keys", "sweep"]).unwrap();
        if in_slots(scene) == 0 && swept["stuck"] == 0 {
            return;
        }
    }
}

/// No key is lost, none is doubled, and none lives on after its end.
fn makes_and_destroys(version: [u8; 3]) {
    let mut scene = scene(version);
    let socket = scene.daemon.socket();
    let card = scene.bench.card;
    let others = scene.bench.cards.snapshot(card);
    at_each_command(
        &mut scene,
        |_| (),
        |_, ()| allow_absence(generate(&client(&socket))),
        |scene, ()| {
            drop(generate(&client(&socket)).unwrap());
            destroy_all(scene);
        },
    );
    at_each_command(
        &mut scene,
        |_| {
            // Its key lives as long as it is connected.
            let client = client(&socket);
            generate(&client).unwrap();
            Some(client)
        },
        |scene, client| {
            *client = None;
            // It may be stuck: the card is away.
            let _ = scene.daemon.ctl(&["keys", "sweep"]);
        },
        |scene, _| destroy_all(scene),
    );
    let left = scene.bench.cards.snapshot(card);
    for entry in &others {
        assert!(left.contains(entry), "{entry:?} is not as it was");
    }
    if version == NEW {
        assert_eq!(left, others, "deleted is deleted");
    } else {
        let fillers = left.len() - others.len();
        assert!(fillers <= 20, "{fillers} fillers");
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
