//! The daemon's own registry is put back from a copy: the guard has forgotten, and says so.

use std::path::Path;

use mlskeyd::audit::AuditOutcome;
use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::{Bytes, ResetGuard};

use crate::forge::*;
use crate::house::{App, House};
use crate::policies::refused_by;
use crate::suite::SUITE_1 as SUITE;

fn text(group: &str, epoch: u64) -> Vec<u8> {
    message(
        SUITE,
        group,
        epoch,
        Sender::Member(0),
        &application("hello"),
    )
}

fn copy(from: &Path, to: &Path) {
    for name in ["registry.db", "registry.db-wal"] {
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

/// A registry as it was when `talk` was in epoch 10; since then it got to epoch 20, and
/// `later` was entered.
fn restored() -> (House, App) {
    let mut house = House::new("");
    let app = App::new(&house, SUITE, "mallory");
    app.sign(&text("talk", 10)).unwrap();
    app.sign(&text("quiet", 3)).unwrap();
    house.stop();
    let backup = tempfile::tempdir().unwrap();
    copy(&house.state(), backup.path());
    house.start("");
    app.sign(&text("talk", 20)).unwrap();
    app.sign(&text("later", 7)).unwrap();
    house.stop();
    for name in ["registry.db-wal", "registry.db-shm"] {
        let _ = std::fs::remove_file(house.state().join(name));
    }
    copy(backup.path(), &house.state());
    house.start("");
    (house, app)
}

#[test]
fn a_restored_registry_is_told_by_the_records_and_refuses_what_it_may_have_forgotten() {
    let (mut house, app) = restored();
    let found = |record: &&mlskeyd::audit::Record| record.action == "RegistryRestored";
    let records = house.records();
    let note = records.iter().find(found).unwrap();
    let AuditOutcome::Noted { note } = &note.outcome else {
        panic!("{note:?}")
    };
    assert!(note.contains("2 groups"), "{note}");

    // Neither behind nor in what seems to be the newest epoch, nor where nothing happened.
    for group in [("talk", 10), ("talk", 20), ("later", 7), ("quiet", 3)] {
        let refused = refused_by(&app, &text(group.0, group.1));
        let expected = if group == ("talk", 10) {
            "no-rollback"
        } else {
            "restored-registry"
        };
        assert_eq!(refused, expected, "{group:?}");
    }
    // That stays so, and is found once.
    house.stop();
    house.start("");
    assert_eq!(refused_by(&app, &text("talk", 20)), "restored-registry");
    assert_eq!(house.records().iter().filter(found).count(), 1);
    // A new group is none of those.
    app.sign(&text("new", 1)).unwrap();
}

#[test]
fn both_ways_out_of_a_restored_registry_work() {
    let (house, app) = restored();
    let failure = app.sign(&text("talk", 20)).unwrap_err();
    assert!(failure.advice.contains("external commit"), "{failure:?}");
    assert!(failure.advice.contains("guard reset"), "{failure:?}");

    let leaf = app.signed_leaf(&app.generate(), Source::Commit, "talk", 0);
    let join = external_commit(b"encapsulated", &leaf);
    app.sign(&message(SUITE, "talk", 21, Sender::NewMemberCommit, &join))
        .unwrap();
    app.sign(&text("talk", 22)).unwrap();

    let request = ResetGuard {
        owner: house.keys()[0].owner.clone(),
        identity: "mallory".to_owned(),
        group: Bytes::from(b"later".as_slice()),
    };
    house
        .admin()
        .reset_guard(request, &Call::default())
        .unwrap();
    app.sign(&text("later", 7)).unwrap();
    assert_eq!(refused_by(&app, &text("quiet", 3)), "restored-registry");
}

/// What an administrator had the guard forget is not missed at the next start.
#[test]
fn a_reset_is_no_restored_registry() {
    let mut house = House::new("");
    let app = App::new(&house, SUITE, "mallory");
    app.sign(&text("talk", 20)).unwrap();
    let request = ResetGuard {
        owner: house.keys()[0].owner.clone(),
        identity: "mallory".to_owned(),
        group: Bytes::from(b"talk".as_slice()),
    };
    house
        .admin()
        .reset_guard(request, &Call::default())
        .unwrap();
    house.stop();
    house.start("");
    app.sign(&text("talk", 5)).unwrap();
    // Nor is a log that was moved aside.
    house.stop();
    std::fs::remove_file(house.state().join(mlskeyd::audit::FILE_NAME)).unwrap();
    house.start("");
    app.sign(&text("talk", 6)).unwrap();
}
