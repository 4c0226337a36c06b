//! What people say to pinentry, and do not.

use mlskeyd_tests::rig::PIN;

use super::scene::{Scene, create, refusal};

const WRONG: &str = "pin 000000";

fn right() -> String {
    format!("pin {PIN}")
}

#[test]
fn who_gives_the_right_pin_is_asked_once() {
    let scene = Scene::new();
    let agent = scene.agent("agent", &[&right()]);
    let client = scene.client();
    create(&client, "alice").unwrap();
    create(&client, "bob").unwrap();
    assert_eq!(agent.questions(), 1);
    let log = agent.log();
    // In the daemon's words.
    for told in [
        "CreateIdentity",
        "yubikey",
        "1234",
        "3 tries left",
        "The app default",
    ] {
        assert!(log.contains(told), "{told}: {log}");
    }
    assert!(!scene.daemon.log().contains(PIN));
}

#[test]
fn a_wrong_pin_costs_one_try_and_is_asked_for_again() {
    let mut scene = Scene::new();
    let agent = scene.agent("agent", &[WRONG, &right()]);
    create(&scene.client(), "alice").unwrap();
    assert_eq!(agent.questions(), 2);
    let log = agent.log();
    assert!(
        log.contains("SETERROR") && log.contains("2 tries left"),
        "{log}"
    );
    assert_eq!(scene.cards.tries(scene.card), 3);
}

#[test]
fn the_last_try_is_not_the_agents() {
    let mut scene = Scene::new();
    let agent = scene.agent("agent", &[WRONG, "pin 111111", &right(), &right()]);
    let refused = refusal(create(&scene.client(), "alice"));
    assert!(refused.contains("did not want to unlock it"), "{refused}");
    assert_eq!(scene.cards.tries(scene.card), 1);
    assert_eq!(agent.questions(), 3);
}

#[test]
fn who_cancels_is_asked_again_when_something_happened() {
    let mut scene = Scene::new();
    let agent = scene.agent("agent", &["cancel", &right()]);
    let client = scene.client();
    for _ in 0..2 {
        let refused = refusal(create(&client, "alice"));
        assert!(refused.contains("did not want to unlock it"), "{refused}");
    }
    assert_eq!(agent.questions(), 1);
    scene.cards.remove(0);
    scene.await_state("absent");
    scene.cards.insert(scene.card, 0);
    scene.await_state("locked");
    create(&client, "alice").unwrap();
    assert_eq!(agent.questions(), 2);
}

#[test]
fn a_pinentry_that_dies_or_talks_nonsense_is_one_that_was_cancelled() {
    for says in ["die", "garbage"] {
        let scene = Scene::new();
        let agent = scene.agent("agent", &[says]);
        let refused = refusal(create(&scene.client(), "alice"));
        assert!(refused.contains("did not want to unlock it"), "{refused}");
        assert_eq!(agent.questions(), 1);
    }
}

#[test]
fn a_question_is_taken_back_when_nothing_waits_for_it_any_more() {
    let scene = Scene::new();
    let agent = scene.agent("agent", &["hang", &right()]);
    let client = scene.client();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| create(&client, "alice"));
        agent.await_questions(1);
        // Somebody else unlocks it meanwhile.
        let unlock = scene.daemon.ctl_command(&["unlock", "yubikey"]);
        let unlocked = mlskeyd_tests::rig::with_input(unlock, PIN);
        assert!(unlocked.status.success());
        waits.join().unwrap().unwrap();
    });
    // It is free for the next question.
    scene.daemon.ctl(&["lock", "yubikey"]).unwrap();
    create(&client, "bob").unwrap();
    assert_eq!(agent.questions(), 2);
}

#[test]
fn what_was_unlocked_is_locked_when_the_agent_goes() {
    let scene = Scene::new();
    let mut agent = scene.agent("agent", &[&right()]);
    let client = scene.client();
    create(&client, "alice").unwrap();
    agent.process.kill();
    scene.await_state("locked");
    let again = scene.agent("again", &[&right()]);
    create(&client, "bob").unwrap();
    assert_eq!(again.questions(), 1);
}

#[test]
fn an_agent_finds_the_daemon_that_started_again() {
    let mut scene = Scene::new();
    let agent = scene.agent("agent", &[&right(), &right()]);
    create(&scene.client(), "alice").unwrap();
    scene.daemon.stop();
    // The agent's look is no call that the daemon waits for.
    assert!(!scene.daemon.log().contains("did not end in time"));
    scene.daemon.restart(&scene.options);
    scene.await_state("locked");
    create(&scene.client(), "bob").unwrap();
    assert_eq!(agent.questions(), 2);
}
