//! A polkit that does not answer.

use rustix::process::Signal;

use crate::answers::await_line;
use crate::scene::{Scene, YES};

#[test]
fn a_polkit_that_hangs_keeps_deadlines_and_nobody_else_waits() {
    let mut scene = Scene::new(YES);
    scene.ctl(&["frozen"]).served();
    scene.polkit().process().signal(Signal::STOP);
    let mut patient = scene.actor("freeze-in-two-seconds");
    await_line(&mut patient, "begins");
    let root = scene.daemon.ctl_for_people(&["status"]).output().unwrap();
    assert!(root.status.success(), "{root:?}");
    let outcome = await_line(&mut patient, "outcome: ");
    assert!(outcome.contains("Denied"), "{outcome}");
    assert!(outcome.contains("nobody authenticated for this (org.mlskeyd.policies) in time"));

    let mut hasty = scene.actor("freeze-without-a-person");
    await_line(&mut hasty, "begins");
    hasty.write(b"\n");
    let outcome = await_line(&mut hasty, "outcome: ");
    assert!(!outcome.contains("served"), "{outcome}");
    scene.polkit().process().signal(Signal::CONT);
    scene.ctl(&["frozen"]).served();
    // The one that gave up itself was not refused; at most the daemon was first to see that
    // its time was over.
    let mut records = scene.on_record();
    records.retain(|record| record != "Freeze failed: Timeout");
    assert_eq!(
        records,
        [
            "Administer by polkit/org.mlskeyd.view",
            "Freeze refused by polkit/org.mlskeyd.policies",
            "Administer by polkit/org.mlskeyd.view",
        ]
    );
}

#[test]
fn nobody_lines_up_more_than_four_questions() {
    let mut scene = Scene::new(YES);
    scene.polkit().process().signal(Signal::STOP);
    let mut actor = scene.actor("ask-five-times");
    let outcomes: Vec<_> = (0..5)
        .map(|_| await_line(&mut actor, "outcome: "))
        .collect();
    let busy = |outcome: &&String| outcome.contains("too many requests of this user wait");
    assert_eq!(outcomes.iter().filter(busy).count(), 1, "{outcomes:?}");
    assert!(
        !outcomes.iter().any(|it| it.contains("served")),
        "{outcomes:?}"
    );
    scene.polkit().process().signal(Signal::CONT);
    scene.ctl(&["frozen"]).served();
}
