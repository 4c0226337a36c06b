//! Chats of apps that come by way of the bus.

use mlskeyd_protocol::client::{Call, Client, ClientConfig, Doors};
use mlskeyd_tests::member::{Member, Seat};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Bus, Chat, Daemon, Hub, Options, SoftHsm, Stage, with_input};
use rustix::process::Signal;

use crate::monitor::Monitor;
use crate::scene::Scene;

/// Each says something, and the other reads it.
fn talk(people: &mut [Chat; 2], text: &str) {
    let [alice, bob] = people;
    says(alice, bob, text);
    says(bob, alice, text);
}

fn says(from: &mut Chat, to: &mut Chat, text: &str) {
    let said = format!("{text} from {}", from.name());
    from.ok(&format!("send g {said}"));
    let events = to.ok("receive").events;
    assert!(
        events.iter().any(|event| event.contains(&said)),
        "{events:?}"
    );
}

/// Founds a group, and does in it whatever takes keys.
fn whole_chat(people: &mut [Chat; 2]) {
    talk(people, "hello");
    let [alice, bob] = people;
    bob.ok("update g");
    alice.ok("receive");
    bob.ok("propose-update g");
    alice.ok("receive");
    alice.ok("update g");
    bob.ok("receive");
    talk(people, "later");
}

fn meet(alice: &mut Chat, bob: &mut Chat) {
    bob.ok("keypackage");
    alice.ok("create g");
    alice.ok("add g bob");
    bob.ok("receive");
}

fn on_the_bus(scene: &Scene, hub: &Hub) -> [Chat; 2] {
    let start = |name: &str| Chat::start_on_bus(&scene.stage, &scene.bus, hub, name, 1);
    let mut people = ["alice", "bob"].map(start);
    let [alice, bob] = &mut people;
    meet(alice, bob);
    people
}

#[test]
fn a_whole_chat_goes_by_the_bus_while_daemon_and_bus_are_started_again() {
    let mut scene = Scene::new();
    let hub = Hub::start(&scene.stage);
    let mut people = on_the_bus(&scene, &hub);
    whole_chat(&mut people);

    // Channels outlive the bus.
    scene.bus.kill();
    talk(&mut people, "without a bus");
    scene.bus.restart();
    scene.guest().await_object(crate::scene::ROOT);

    // And a daemon that comes back is found there again.
    scene.daemon.stop();
    scene.daemon.restart(&scene.options);
    whole_chat(&mut people);
    scene.daemon.kill();
    scene.daemon.restart(&scene.options);
    talk(&mut people, "after a crash");
    for person in &mut people {
        person.quit();
        person.restart();
    }
    talk(&mut people, "the next day");
}

#[test]
fn people_at_both_doors_are_in_one_group() {
    let mut scene = Scene::new();
    let hub = Hub::start(&scene.stage);
    let mut alice = Chat::start_on_bus(&scene.stage, &scene.bus, &hub, "alice", 1);
    let mut bob = Chat::start(&scene.stage, &scene.daemon, &hub, "bob", 1);
    meet(&mut alice, &mut bob);
    let mut people = [alice, bob];
    whole_chat(&mut people);
    // Who was at one door is at the other next: its keys are where they were.
    let [alice, bob] = &mut people;
    alice.quit();
    alice.restart_at_socket(&scene.daemon);
    bob.quit();
    bob.restart_on_bus(&scene.bus);
    whole_chat(&mut people);

    scene.bus.kill();
    talk(&mut people, "without a bus");
    scene.bus.restart();
    scene.guest().await_object(crate::scene::ROOT);
    scene.daemon.kill();
    scene.daemon.restart(&scene.options);
    whole_chat(&mut people);
}

/// A daemon that hangs while a channel is asked for makes no app wait for ever, and the app
/// goes on when it does.
#[test]
fn a_daemon_that_hangs_on_the_bus_is_waited_for() {
    let scene = Scene::new();
    let hub = Hub::start(&scene.stage);
    let mut people = on_the_bus(&scene, &hub);
    scene.daemon.process().signal(Signal::STOP);
    let client = Client::new(ClientConfig::through(
        Doors::bus(scene.bus.address().as_str()),
        "waits",
    ));
    let call = Call {
        deadline: std::time::Duration::from_millis(200),
        ..Call::default()
    };
    client.status(&call).unwrap_err();
    scene.daemon.process().signal(Signal::CONT);
    client.status(&Call::default()).unwrap();
    talk(&mut people, "and on");
}

#[test]
fn a_monitor_of_the_bus_sees_no_text_no_secret_and_no_pin() {
    let stage = Stage::new(programs!());
    let bus = Bus::start(&stage);
    let monitor = Monitor::start(&bus);
    let hsm = SoftHsm::new(&stage);
    let pin = "no-other-pin-is-4711";
    hsm.add_token_with_pin("token", pin);
    let device = hsm.device("hsm", "token");
    let lines = device.lines().filter(|line| !line.starts_with("pin_file"));
    let device: String = lines.map(|line| format!("{line}\n")).collect();
    let options = Options {
        extra: format!("{device}\n{}", bus.section()),
        ..Options::default()
    };
    let daemon = Daemon::start(&stage, &options);
    let hub = Hub::start(&stage);
    let start = |name: &str| Chat::start_on_bus(&stage, &bus, &hub, name, 1);
    let mut people = ["alice", "bob"].map(start);
    let [alice, bob] = &mut people;
    meet(alice, bob);
    whole_chat(&mut people);

    // An administrator unlocks by way of the bus, and somebody opens a known secret.
    let mut unlock = std::process::Command::new(&stage.programs().ctl);
    unlock.args(["--bus", &bus.address(), "unlock", "hsm"]);
    let unlocked = with_input(unlock, &format!("{pin}\n"));
    assert!(unlocked.status.success(), "{unlocked:?}");
    let doors = Doors::bus(bus.address().as_str());
    let client = Client::new(ClientConfig::through(doors, "member"));
    let member = Member::new(&client, "carol", "software");
    let seat = Seat::take(&member, &client);
    seat.open(&client);
    seat.speak(&client);
    drop(daemon);

    let word = "what goes over a bus is seen";
    let seen = monitor.stop(&bus, word);
    assert!(seen.holds(word.as_bytes()));
    for secret in [
        b"hello from alice".as_slice(),
        b"later from bob",
        pin.as_bytes(),
        &mlskeyd_tests::member::PATH_SECRET,
        seat.message(),
    ] {
        assert!(!seen.holds(secret), "{}", String::from_utf8_lossy(secret));
    }
    // It did see what there was: nothing but how channels are asked for.
    assert!(seen.count("OpenChannel") >= 4, "{seen:?}");
    assert_eq!(seen.others(), Vec::<String>::new());
}
