//! The daemon's own registry is put back from a copy: the guard has forgotten, and says so.

use std::path::{Path, PathBuf};

use mlskeyd::audit::{AuditOutcome, Entries, FILE_NAME};
use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::{Bytes, ResetGuard};
use mlskeyd_tests::rig::{Daemon, Options, Stage};
use mlskeyd_tests::{member, programs};

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

/// The registry is put back as it was before `meanwhile`.
fn put_back(house: &mut House, meanwhile: impl FnOnce(&mut House)) {
    house.stop();
    let backup = tempfile::tempdir().unwrap();
    copy(&house.state(), backup.path());
    house.start("");
    meanwhile(house);
    house.stop();
    for name in ["registry.db-wal", "registry.db-shm"] {
        let _ = std::fs::remove_file(house.state().join(name));
    }
    copy(backup.path(), &house.state());
}

/// A registry as it was when `talk` was in epoch 10; since then it got to epoch 20, and
/// `later` was entered.
fn restored() -> (House, App) {
    let mut house = House::new("");
    let app = App::new(&house, SUITE, "mallory");
    app.sign(&text("talk", 10)).unwrap();
    app.sign(&text("quiet", 3)).unwrap();
    put_back(&mut house, |_| {
        app.sign(&text("talk", 20)).unwrap();
        app.sign(&text("later", 7)).unwrap();
    });
    house.start("");
    (house, app)
}

fn log(house: &House) -> PathBuf {
    house.state().join(FILE_NAME)
}

/// What the daemon said when it found a registry put back.
fn findings(house: &House) -> Vec<String> {
    let records = house.records().into_iter();
    let found = records.filter(|record| record.action == "RegistryRestored");
    let note = |record: mlskeyd::audit::Record| match record.outcome {
        AuditOutcome::Noted { note } => note.into_owned(),
        other => panic!("{other:?}"),
    };
    found.map(note).collect()
}

fn reset(house: &House, group: &str) {
    let request = ResetGuard {
        owner: house.keys()[0].owner.clone(),
        identity: "mallory".to_owned(),
        group: Bytes::from(group.as_bytes()),
    };
    let reset = house.admin().reset_guard(request, &Call::default());
    reset.unwrap();
}

#[test]
fn a_restored_registry_is_told_by_the_records_and_refuses_what_it_may_have_forgotten() {
    let (mut house, app) = restored();
    let found = findings(&house);
    assert!(found[0].contains("2 groups"), "{found:?}");

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
    assert_eq!(findings(&house).len(), 1);
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
    // Whether the group took it shows in what comes after it.
    for epoch in [20, 21] {
        let refused = refused_by(&app, &text("talk", epoch));
        let expected = match epoch {
            20 => "no-rollback",
            _ => "restored-registry",
        };
        assert_eq!(refused, expected, "{epoch}");
    }
    app.sign(&text("talk", 22)).unwrap();

    reset(&house, "later");
    app.sign(&text("later", 7)).unwrap();
    assert_eq!(refused_by(&app, &text("quiet", 3)), "restored-registry");
}

/// The registry forgets this, which was signed in `talk` when that was in epoch 10.
fn forgotten(content: impl FnOnce(&App) -> Vec<u8>) -> (House, App) {
    let mut house = House::new("");
    let app = App::new(&house, SUITE, "mallory");
    app.sign(&text("talk", 10)).unwrap();
    put_back(&mut house, |_| drop(app.sign(&content(&app)).unwrap()));
    house.start("");
    assert_eq!(findings(&house).len(), 1);
    (house, app)
}

#[test]
fn commits_that_were_forgotten_within_an_epoch_are_missed() {
    let (_house, app) = forgotten(|app| {
        let leaf = app.signed_leaf(&app.generate(), Source::Commit, "talk", 0);
        message(SUITE, "talk", 10, Sender::Member(0), &commit(&leaf))
    });
    assert_eq!(refused_by(&app, &text("talk", 10)), "restored-registry");
}

#[test]
fn proposals_that_were_forgotten_are_missed() {
    let (_house, app) = forgotten(|_| {
        let removal = proposal(&remove(3));
        message(SUITE, "talk", 11, Sender::Member(0), &removal)
    });
    assert_eq!(refused_by(&app, &text("talk", 10)), "no-rollback");
}

/// What nobody can compare counts as put back.
#[test]
fn a_log_that_cannot_be_read_is_no_proof_that_nothing_was_forgotten() {
    let mut house = House::new("");
    let app = App::new(&house, SUITE, "mallory");
    app.sign(&text("talk", 10)).unwrap();
    let before = std::fs::metadata(log(&house)).unwrap().len();
    // More than are checked at every start.
    for _ in 0..600 {
        app.sign(&text("talk", 11)).unwrap();
    }
    house.stop();
    let mut damaged = std::fs::read(log(&house)).unwrap();
    damaged[usize::try_from(before).unwrap() + 40] ^= 1;
    std::fs::write(log(&house), damaged).unwrap();
    house.start("");
    assert_eq!(refused_by(&app, &text("talk", 11)), "restored-registry");
    // An administrator who has looked at it lets the group go on, once for all.
    reset(&house, "talk");
    app.sign(&text("talk", 11)).unwrap();
    house.stop();
    house.start("");
    app.sign(&text("talk", 11)).unwrap();
}

/// A log that was moved aside hides nothing that the new one tells.
#[test]
fn a_new_log_is_compared_from_its_start() {
    let mut house = House::new("");
    let app = App::new(&house, SUITE, "mallory");
    app.sign(&text("talk", 10)).unwrap();
    put_back(&mut house, |house| {
        house.stop();
        std::fs::remove_file(log(house)).unwrap();
        house.start("");
        app.sign(&text("talk", 20)).unwrap();
    });
    house.start("");
    assert_eq!(findings(&house).len(), 1);
    assert_eq!(refused_by(&app, &text("talk", 20)), "restored-registry");
}

/// A daemon that dies while it makes up for what was forgotten does so at the next start.
#[test]
fn a_crash_does_not_lose_what_was_found() {
    for point in ["store.guard.before_commit", "store.guard.after_commit"] {
        let mut house = House::new("");
        let app = App::new(&house, SUITE, "mallory");
        app.sign(&text("talk", 10)).unwrap();
        app.sign(&text("quiet", 3)).unwrap();
        put_back(&mut house, |_| {
            app.sign(&text("talk", 20)).unwrap();
        });
        house.crash_at_start(point);
        house.start("");
        for group in [("talk", 20), ("quiet", 3)] {
            let refused = refused_by(&app, &text(group.0, group.1));
            assert_eq!(refused, "restored-registry", "{point}: {group:?}");
        }
    }
}

/// What an administrator had the guard forget is not missed at the next start.
#[test]
fn a_reset_is_no_restored_registry() {
    let mut house = House::new("");
    let app = App::new(&house, SUITE, "mallory");
    app.sign(&text("talk", 20)).unwrap();
    reset(&house, "talk");
    house.stop();
    house.start("");
    app.sign(&text("talk", 5)).unwrap();
    // Nor is a log that was moved aside.
    house.stop();
    std::fs::remove_file(log(&house)).unwrap();
    house.start("");
    app.sign(&text("talk", 6)).unwrap();
}

/// A power cut in the middle of a reset, on either side of what it does.
#[test]
fn a_reset_that_was_cut_off_is_no_restored_registry() {
    for (point, newest) in [
        ("store.guard.before_commit:2", 20),
        ("store.guard.after_commit:2", 5),
    ] {
        let stage = Stage::new(programs!());
        let options = Options {
            failpoint: Some(point.to_owned()),
            ..Options::default()
        };
        let mut daemon = Daemon::start(&stage, &options);
        let app = App::at(member::client(&daemon.socket()), SUITE, "mallory");
        app.sign(&text("talk", 20)).unwrap();
        let owner = format!("{}/default", rustix::process::geteuid().as_raw());
        let group = hex::encode("talk");
        let reset = daemon.ctl(&["guard", "reset", &owner, "mallory", &group]);
        assert!(reset.is_err(), "{point}");
        assert!(!daemon.wait().success());
        daemon.restart(&Options::default());
        app.sign(&text("talk", newest)).unwrap();
        let entries = Entries::open(&daemon.state().join(FILE_NAME)).unwrap();
        let actions: Vec<_> = entries.map(|it| it.unwrap().record.action).collect();
        assert!(!actions.contains(&"RegistryRestored".into()), "{point}");
        assert!(actions.contains(&"GuardReset".into()), "{point}");
    }
}
