//! One process connects and another program, or another process, speaks.

use crate::scene::{DOORS, Scene, ran_inside};

const STARTED: &str = "refused: the process has started another program since it connected";
const ANOTHER: &str = "refused: another process has answered than the one that connected";
const ENDED: &str = "refused: the process that connected has ended";

fn assert_begins(line: Option<String>, wanted: &str) {
    let line = line.unwrap();
    assert!(line.starts_with(wanted), "{line}");
}

#[test]
fn an_honest_process_is_served() {
    let scene = Scene::new();
    for door in DOORS {
        for echo in ["echo", "echo-from-a-thread"] {
            let mut wire = scene.start("wire", &format!("{door} hello challenge {echo} answer"));
            assert_begins(wire.line(), "agreed");
        }
    }
}

/// Even if the program that follows answers: it is not the one that connected.
#[test]
fn a_program_that_is_executed_after_connect_is_not_taken_for_the_caller() {
    let scene = Scene::new();
    for door in DOORS {
        let steps = format!("{door} hello challenge exec @wire echo answer");
        let mut evil = scene.start("evil", &steps);
        assert_begins(evil.line(), STARTED);
        // What was sent before the challenge is not even read as an answer.
        let steps = format!("{door} hello echo exec @wire answer answer");
        let mut evil = scene.start("evil", &steps);
        assert_ne!(evil.line().as_deref(), Some("agreed 0"));
        // Nor, if it came a moment after the greeting, is it known whose that is.
        let line = evil.line().unwrap();
        assert!(line == "closed" || line.starts_with(ANOTHER), "{line}");
    }
}

/// The daemon is slow, and reads the answer when the program has long been another one.
#[test]
fn an_answer_that_was_queued_before_exec_is_not_taken() {
    let scene = Scene::new();
    for door in DOORS {
        let steps = "hello challenge say ready go echo exec @wire say wire answer";
        let mut evil = scene.start("evil", &format!("{door} {steps}"));
        evil.expect_line("ready");
        scene.daemon_pauses(|| {
            assert!(evil.write(b"\n"));
            evil.expect_line("wire");
        });
        assert_begins(evil.line(), STARTED);
    }
}

#[test]
fn a_child_does_not_speak_for_the_program_that_its_parent_became() {
    let scene = Scene::new();
    for (door, go) in DOORS.into_iter().zip(["go", "go-too"]) {
        let child = format!("child @evil await @{go} hello challenge echo answer --");
        let steps = format!("{door} {child} exec @wire say wire rest");
        let mut wire = scene.start("evil", &steps);
        wire.expect_line("wire");
        scene.happened(go);
        assert_begins(wire.line(), ANOTHER);
    }
}

#[test]
fn a_child_of_the_app_makes_a_connection_of_its_own() {
    let scene = Scene::new();
    for door in DOORS {
        let greets = "hello challenge echo answer";
        let child = format!("child @wire {greets} {door} {greets} --");
        let mut wire = scene.start("wire", &format!("{door} {child} rest"));
        assert_begins(wire.line(), ANOTHER);
        assert_begins(wire.line(), "agreed");
    }
}

#[test]
fn who_has_exited_is_not_identified() {
    let scene = Scene::new();
    for (door, go) in DOORS.into_iter().zip(["go", "go-too"]) {
        let child = format!("child @evil await @{go} hello answer --");
        let mut evil = scene.start_parent("evil", &format!("{door} {child}"));
        evil.end();
        scene.happened(go);
        assert_begins(Some(evil.line()), ENDED);
    }
}

/// It answered itself, and was gone when the daemon came to read it.
#[test]
fn an_answer_of_a_process_that_exits_is_not_taken() {
    let scene = Scene::new();
    for door in DOORS {
        let child = "child @evil answer --";
        let steps = format!("{door} hello challenge say ready go echo {child}");
        let mut evil = scene.start_parent("evil", &steps);
        assert_eq!(evil.line(), "ready");
        scene.daemon_pauses(|| evil.end());
        assert_begins(Some(evil.line()), ANOTHER);
    }
}

#[test]
fn a_connection_is_of_no_use_to_another_users_process() {
    let test = "handshake::a_connection_is_of_no_use_to_another_users_process";
    if ran_inside(test, &[]) {
        return;
    }
    let scene = Scene::new();
    for door in DOORS {
        let child = "child-of 65533 child @wire hello challenge echo answer --";
        let mut wire = scene.start("wire", &format!("{door} {child} rest"));
        assert_begins(wire.line(), ANOTHER);
    }
}

/// On a bus there is no nonce: so who has called stays what it was.
#[test]
fn a_program_that_is_executed_is_not_answered_on_the_bus_of_the_one_before() {
    let scene = Scene::new();
    let steps = "connect-bus @bus list exec @wire list";
    let mut evil = scene.start("evil", steps);
    evil.expect_line("listed: true");
    evil.expect_line("listed: false");
    let mut wire = scene.start("wire", "connect-bus @bus list list");
    wire.expect_line("listed: true");
    wire.expect_line("listed: true");
}
