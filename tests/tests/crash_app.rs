//! The app dies by SIGKILL between any two steps of claim, write, settle and
//! delete, at each time that it comes past them.
//!
//! It is started again on the same database, and goes on: it joins, commits,
//! follows the others and understands them. Once all graces are over, the keys
//! that its database names are there, and no others.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use mlskeyd_tests::books::{self, Named};
use mlskeyd_tests::rig::{Chat, Daemon, Hub, Options, Stage};
use mlskeyd_tests::{failpoints, programs};

const WRITE: &[&str] = &[
    "provider.write.before_claim",
    "provider.write.claimed",
    "provider.write.written",
];

const DELETE: &[&str] = &[
    "provider.delete.before_claim",
    "provider.delete.before",
    "provider.delete.deleted",
    "provider.forward.held_back",
    "provider.forward.before",
    "provider.forward.deleted",
];

const RELEASE: &[&str] = &[
    "provider.commit.committed",
    "provider.commit.released",
    "provider.look.found",
    "provider.look.answered",
];

#[test]
fn every_failpoint_of_the_provider_has_its_crash() {
    let tested: BTreeSet<String> = [WRITE, DELETE, RELEASE]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let provider = Path::new(env!("CARGO_MANIFEST_DIR")).join("../provider/src");
    assert_eq!(failpoints::in_source(&provider), tested);
}

#[test]
fn an_app_that_dies_around_a_write_goes_on() {
    WRITE.iter().for_each(|point| Story::through(point));
}

#[test]
fn an_app_that_dies_around_a_delete_goes_on() {
    DELETE.iter().for_each(|point| Story::through(point));
}

#[test]
fn an_app_that_dies_around_a_release_goes_on() {
    RELEASE.iter().for_each(|point| Story::through(point));
}

/// Destroys at once what is not needed.
fn sweeping() -> Options {
    let at_once = ["grace", "orphan_grace", "max_unclaimed_age"];
    Options {
        lifetimes: at_once.map(|name| (name, "0s".to_owned())).to_vec(),
        ..Options::default()
    }
}

/// Bob dies, alice does not. The stage comes last: it is removed after its
/// processes.
struct Story {
    point: &'static str,
    deaths: usize,
    alice: Chat,
    bob: Chat,
    _hub: Hub,
    daemon: Daemon,
    _stage: Stage,
}

impl Story {
    fn through(point: &'static str) {
        let stage = Stage::new(programs!());
        let hub = Hub::start(&stage);
        let daemon = Daemon::start(&stage, &Options::default());
        let mut story = Self {
            point,
            deaths: 0,
            alice: Chat::start(&stage, &daemon, &hub, "alice", 1),
            bob: Chat::start(&stage, &daemon, &hub, "bob", 1),
            _hub: hub,
            daemon,
            _stage: stage,
        };
        story.live();
        story.sweep();
        story.talk();
        story.part();
        assert!(story.deaths > 0, "{point} was not passed");
    }

    fn live(&mut self) {
        self.alice.ok("create g");
        self.bob_dies_over("keypackage");
        self.alice.ok("add g bob");
        self.bob_dies_over("receive");
        self.talk();
        self.bob_dies_over("update g");
        self.talk();
        self.alice.ok("update g");
        self.bob_dies_over("receive");
        self.talk();
        self.bob_dies_over("propose-update g");
        self.alice.ok("receive");
        self.alice.ok("update g");
        self.bob_dies_over("receive");
        self.talk();
    }

    /// Bob is told to do something, dies when he first comes past the point, is
    /// started again and told again, and dies the second time, and so on.
    fn bob_dies_over(&mut self, command: &str) {
        for pass in 1.. {
            self.bob.kill();
            self.bob.restart_to_die(&format!("{}:{pass}", self.point));
            match self.bob.command(command) {
                Ok(_) => break,
                Err(refused) => {
                    assert_eq!(refused.reason, "it ended", "{}: {refused}", self.point);
                    let status = self.bob.wait();
                    assert_eq!(status.signal(), Some(9), "{} in {command}", self.point);
                    self.deaths += 1;
                }
            }
        }
        self.bob.kill();
        self.bob.restart();
    }

    /// What one says, the other one reads, and both are where the other is.
    fn talk(&mut self) {
        self.bob.ok("receive");
        self.alice.ok("receive");
        let authenticators = [&mut self.alice, &mut self.bob].map(|chat| {
            let answer = chat.ok("authenticator g");
            answer.text
        });
        assert_eq!(authenticators[0], authenticators[1], "{}", self.point);
        self.alice.ok("send g hello");
        let heard = self.bob.ok("receive").events;
        assert_eq!(heard, ["message g alice hello"], "{}", self.point);
        self.bob.ok("send g hello, too");
        let heard = self.alice.ok("receive").events;
        assert_eq!(heard, ["message g bob hello, too"], "{}", self.point);
    }

    /// Destroys what is due, twice: a write tells what a crash left untold, and
    /// the write after the grace deletes the records that died. Then holds what
    /// is left against what is needed.
    fn sweep(&mut self) {
        for _ in 0..2 {
            self.alice.ok("update g");
            self.bob.ok("receive");
            self.bob.ok("update g");
            self.alice.ok("receive");
            self.destroy_what_is_due();
        }

        let keys = books::keys(&self.daemon).expect("the daemon serves");
        let living = books::living_hpke_keys(&keys);
        let mut needed = BTreeSet::new();
        for chat in [&self.alice, &self.bob] {
            let named = Named::read(chat.directory());
            assert_eq!(named.groups.len(), 1, "{}: {named:?}", self.point);
            assert!(named.updates.is_empty(), "{}: {named:?}", self.point);
            needed.extend(named.groups);
            needed.extend(named.key_packages);
        }
        assert!(
            needed.is_subset(&living),
            "{}: {needed:?} {living:?}",
            self.point
        );
        assert_eq!(living, needed, "{}", self.point);
    }

    /// Bob is removed, and nothing of his stays. Alice stays.
    fn part(&mut self) {
        self.alice.ok("remove g bob");
        self.bob_dies_over("receive");
        self.destroy_what_is_due();
        let named = Named::read(self.bob.directory());
        assert!(named.groups.is_empty(), "{}: {named:?}", self.point);
        let mut needed = Named::read(self.alice.directory()).groups;
        needed.extend(named.key_packages);
        let keys = books::keys(&self.daemon).expect("the daemon serves");
        assert_eq!(books::living_hpke_keys(&keys), needed, "{}", self.point);
    }

    /// Reads, which answer the last look, and sweeps, until nothing is due.
    /// Nobody writes meanwhile: there is no grace.
    fn destroy_what_is_due(&mut self) {
        self.daemon.stop();
        self.daemon.restart(&sweeping());
        loop {
            self.alice.ok("status");
            self.bob_dies_over("status");
            self.bob.ok("status");
            let swept = self.daemon.ctl(&["keys", "sweep"]).expect("a sweep");
            if swept["waiting"] == 0 && swept["destroyed"] == 0 {
                break;
            }
        }
        self.daemon.stop();
        self.daemon.restart(&Options::default());
    }
}
