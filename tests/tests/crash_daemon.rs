//! The daemon dies by SIGKILL between any two of its durable steps.
//!
//! Messengers live on meanwhile. Whenever the daemon has died it is started
//! again without a failpoint, and asked: is every key there that it had
//! acknowledged, none twice, none back from the dead, and is nothing left half
//! done? Then the messengers' request, which was interrupted, has to succeed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use mlskeyd_protocol::client::{Call, Client, ClientConfig};
use mlskeyd_protocol::v1::{GenerateHpke, Kem, Placement};
use mlskeyd_tests::books::{self, Listed, Named};
use mlskeyd_tests::rig::{Answer, Chat, Daemon, Hub, Options, Process, Stage};
use mlskeyd_tests::{failpoints, programs};

/// Passed at the first start only.
const FIRST_START: &[&str] = &["store-key-written", "device-marker-written"];

const CREATE: &[&str] = &[
    "store.begin_create.before_commit",
    "store.begin_create.after_commit",
    "generation-written",
    "generation-named",
    "generation-created",
    "custody.create.made",
    "store.create_identity.before_commit",
    "store.create_identity.after_commit",
    "store.current_generation.before_commit",
    "custody.generation.made",
    "store.finish_generation.before_commit",
    "store.finish_generation.after_commit",
    "store.finish_create.before_commit",
    "store.finish_create.after_commit",
    "store.rotate_identity.before_commit",
    "store.rotate_identity.after_commit",
    "store.recredential.before_commit",
    "store.recredential.after_commit",
    "store.reassign.before_commit",
    "store.reassign.after_commit",
];

const USE: &[&str] = &[
    "store.attach.before_commit",
    "store.bind.before_commit",
    "store.bind.after_commit",
    "store.claim.before_commit",
    "store.claim.after_commit",
    "store.settle.before_commit",
    "store.settle.after_commit",
    "store.report.before_commit",
    "store.report.after_commit",
    "store.guard.before_commit",
    "store.guard.after_commit",
    "store.before_commit",
    "store.after_commit",
];

const DESTROY: &[&str] = &[
    "store.looked.before_commit",
    "store.looked.after_commit",
    "store.begin_destroy.before_commit",
    "store.begin_destroy.after_commit",
    "store.before_tombstones",
    "store.after_tombstones",
    "store.finish_destroy.before_commit",
    "store.finish_destroy.after_commit",
];

const DESTROY_GENERATION: &[&str] = &[
    "store.begin_destroy_generation.before_commit",
    "store.begin_destroy_generation.after_commit",
    "generation-overwritten",
    "generation-removed",
    "generation-destroyed",
    "custody.generation.destroyed",
    "store.finish_destroy_generation.before_commit",
    "store.finish_destroy_generation.after_commit",
];

/// Passed when a device has lost the generation of new keys.
const LOSE_GENERATION: &[&str] = &[
    "store.retire_generation.before_commit",
    "store.retire_generation.after_commit",
];

/// More laps than any list of points takes.
const LAPS: usize = 40;

#[test]
fn every_failpoint_of_the_daemon_has_its_crash() {
    let lists = [
        FIRST_START,
        CREATE,
        USE,
        DESTROY,
        DESTROY_GENERATION,
        LOSE_GENERATION,
        failpoints::OF_TOKENS,
    ];
    let tested: BTreeSet<String> = lists.concat().into_iter().map(str::to_owned).collect();
    let daemon = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/src");
    // Those of TPMs and YubiKeys have tests of their own.
    let tpm2 = failpoints::in_source(&daemon.join("devices/tpm2"));
    let yubikey = failpoints::in_source(&daemon.join("devices/yubikey"));
    let others = &failpoints::in_source(&daemon) - &tpm2;
    assert_eq!(&others - &yubikey, tested);
}

#[test]
fn a_first_start_that_died_is_made_again() {
    for point in FIRST_START {
        let stage = Stage::new(programs!());
        let armed = Options {
            failpoint: Some((*point).to_owned()),
            ..calm()
        };
        let died = Daemon::try_start(&stage, &armed);
        assert!(died.is_err(), "{point} was not passed");
        let mut story = Story::begin(stage, &[]);
        story.lap(0);
    }
}

#[test]
fn a_key_is_made_whole_or_not_at_all() {
    Story::through(CREATE);
}

#[test]
fn claims_bindings_and_marks_outlive_the_daemon() {
    Story::through(USE);
}

#[test]
fn a_key_is_destroyed_once_and_for_all() {
    Story::through(DESTROY);
}

#[test]
fn a_generation_is_destroyed_once_and_for_all() {
    let (begun, _) = DESTROY_GENERATION.split_at(DESTROY_GENERATION.len() / 2);
    Story::through(begun);
}

#[test]
fn the_end_of_a_generation_is_not_forgotten() {
    let (_, done) = DESTROY_GENERATION.split_at(DESTROY_GENERATION.len() / 2);
    Story::through(done);
}

#[test]
fn a_generation_that_was_lost_is_given_up_and_no_key_with_it() {
    for point in LOSE_GENERATION {
        let stage = Stage::new(programs!());
        let mut options = Options::default();
        let mut daemon = Daemon::start(&stage, &options);
        let make = |daemon: &Daemon| {
            let client = Client::new(ClientConfig::new(daemon.socket(), "test"));
            let request = GenerateHpke {
                kem: Kem::DhKemP256,
                placement: Placement::default(),
            };
            client.generate_hpke(request, &Call::default())
        };
        make(&daemon).unwrap();
        daemon.stop();
        let generations = daemon.state().join("devices/software/generations");
        for file in std::fs::read_dir(&generations).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        options.failpoint = Some((*point).to_owned());
        daemon.restart(&options);
        make(&daemon).unwrap_err();
        assert_eq!(daemon.wait().signal(), Some(9), "{point}");
        daemon.restart(&Options::default());
        make(&daemon).unwrap();
        let keys = books::keys(&daemon).unwrap();
        assert_eq!(keys.len(), 2, "{point}: {keys:?}");
        assert!(keys.values().all(|key| !key.destroyed), "{point}");
        assert_eq!(std::fs::read_dir(&generations).unwrap().count(), 1);
        assert_eq!(books::unfinished(&daemon), Vec::<String>::new());
    }
}

/// Destroys nothing by itself; makes a new generation each second.
fn calm() -> Options {
    Options {
        lifetimes: vec![("generation", "1s".to_owned())],
        ..Options::default()
    }
}

/// Destroys at once what is not needed.
fn sweeping() -> Options {
    let at_once = ["grace", "orphan_grace", "max_unclaimed_age"];
    let mut options = calm();
    options
        .lifetimes
        .extend(at_once.map(|name| (name, "0s".to_owned())));
    options
}

/// Where the daemon is still to die, and what it has acknowledged.
struct Plan {
    waiting: VecDeque<&'static str>,
    sweeping: bool,
    deaths: usize,
    acknowledged: BTreeMap<String, Listed>,
}

impl Plan {
    /// Starts the daemon so that it dies at the next point, and again if it
    /// does so while it starts.
    fn start(&mut self, daemon: &mut Daemon) {
        let mut options = if self.sweeping { sweeping() } else { calm() };
        loop {
            options.failpoint = self.waiting.front().map(|point| (*point).to_owned());
            match daemon.try_restart(&options) {
                Ok(()) => return,
                Err(status) => self.died(daemon, status),
            }
        }
    }

    /// The daemon has ended.
    fn revive(&mut self, daemon: &mut Daemon) {
        let status = daemon.wait();
        self.died(daemon, status);
        self.start(daemon);
    }

    /// Something failed: since the daemon has died, or dies just now.
    fn expect_death(&mut self, daemon: &mut Daemon, why: &str) {
        assert!(daemon.ctl(&["status"]).is_err(), "{why}\n{}", daemon.log());
        self.revive(daemon);
    }

    fn died(&mut self, daemon: &mut Daemon, status: ExitStatus) {
        let Some(point) = self.waiting.pop_front() else {
            panic!("the daemon ended by itself: {status}\n{}", daemon.log());
        };
        assert_eq!(status.signal(), Some(9), "{point}: {}", daemon.log());
        self.deaths += 1;
        daemon.restart(&calm());
        self.check(daemon, point);
        daemon.kill();
    }

    /// Holds what the daemon knows against what it knew.
    fn check(&mut self, daemon: &Daemon, point: &str) {
        let status = daemon.ctl(&["status"]).expect("the daemon serves");
        assert!(status["read_only"].is_null(), "{point}: {status}");
        assert_eq!(status["devices"][0]["state"], "ready", "{point}: {status}");
        // What devices have to finish they finish beside the daemon's start.
        while !books::unfinished(daemon).is_empty() {
            std::thread::yield_now();
        }
        let (files, rows) = books::generations(daemon);
        assert_eq!(files, rows, "{point}");
        let exposed = books::without_tombstone(daemon);
        assert_eq!(exposed, Vec::<String>::new(), "{point}");

        let keys = books::keys(daemon).expect("the daemon serves");
        for (id, before) in &self.acknowledged {
            let now = keys
                .get(id)
                .unwrap_or_else(|| panic!("{point}: {id} is lost"));
            assert_eq!(now.public_key, before.public_key, "{point}: {id}");
            if before.destroyed {
                assert!(now.destroyed, "{point}: {id} is back");
            } else if !self.sweeping {
                assert!(!now.destroyed, "{point}: {id} was destroyed");
            }
        }
        let (signing, of_identities) = books::signing(daemon);
        assert_eq!(signing, of_identities, "{point}");
        let publics: BTreeSet<_> = keys.values().map(|key| &key.public_key).collect();
        assert_eq!(publics.len(), keys.len(), "{point}: a key is there twice");
        self.acknowledged = keys;
    }
}

/// Two members of a group, and newcomers. The stage comes last: it is removed
/// after its processes.
struct Story {
    plan: Plan,
    alice: Chat,
    bob: Chat,
    hub: Hub,
    daemon: Daemon,
    stage: Stage,
}

impl Story {
    /// Lives until the daemon has died at every one of these points.
    fn through(points: &[&'static str]) {
        let mut story = Self::begin(Stage::new(programs!()), points);
        for n in 0..LAPS {
            story.lap(n);
            if story.plan.waiting.is_empty() {
                story.lap(n + 1);
                assert_eq!(story.plan.deaths, points.len());
                return;
            }
        }
        panic!("not passed: {:?}", story.plan.waiting);
    }

    fn begin(stage: Stage, points: &[&'static str]) -> Self {
        let hub = Hub::start(&stage);
        let mut daemon = Daemon::start(&stage, &calm());
        daemon.kill();
        let mut plan = Plan {
            waiting: points.iter().copied().collect(),
            sweeping: false,
            deaths: 0,
            acknowledged: BTreeMap::new(),
        };
        plan.start(&mut daemon);
        Self {
            plan,
            alice: Chat::start(&stage, &daemon, &hub, "alice", 1),
            bob: Chat::start(&stage, &daemon, &hub, "bob", 1),
            hub,
            daemon,
            stage,
        }
    }

    /// All that happens to keys happens in here.
    fn lap(&mut self, n: usize) {
        let deaths = self.plan.deaths;
        self.newcomer(n);
        if n == 0 {
            self.alice("create g");
            while !self.alice("members g").text.contains("bob") {
                self.bob("keypackage");
                self.alice("add g bob");
            }
            self.bob("receive");
        }
        if self
            .plan
            .waiting
            .iter()
            .any(|point| DESTROY_GENERATION.contains(point))
        {
            self.outlive_the_generation();
        }
        self.alice("update g");
        self.bob("receive");
        self.bob("propose-update g");
        self.alice("receive");
        self.alice("update g");
        self.bob("receive");
        self.bob("update g");
        self.alice("receive");
        self.talk(n);
        self.sweep(deaths);
        self.talk(n);
    }

    /// Makes keys until they go under a new generation: time passes for the
    /// daemon in whole seconds of one life of it.
    fn outlive_the_generation(&mut self) {
        let (_, before) = books::generations(&self.daemon);
        while books::generations(&self.daemon).1.is_subset(&before) {
            self.alice("update g");
            self.bob("receive");
        }
    }

    /// Somebody makes an identity and a KeyPackage, gets another signature key and
    /// credential, is given to another app, and loses the database.
    fn newcomer(&mut self, n: usize) {
        let name = format!("carol{n}");
        let mut carol = Chat::start(&self.stage, &self.daemon, &self.hub, &name, 2);
        ask(&mut carol, "keypackage", &mut self.daemon, &mut self.plan);
        carol.kill();
        let owner = format!("{}/default", rustix::process::geteuid().as_raw());
        self.ctl(&["identities", "rotate", &owner, &name]);
        let credential = format!("{name}@bank.example");
        self.ctl(&["identities", "credential", &owner, &name, &credential]);
        let storage = format!("chat/{name}");
        let others = format!("{}/other", rustix::process::geteuid().as_raw());
        let is_given = |identities: &serde_json::Value| {
            let mut all = identities.as_array().expect("a list").iter();
            all.any(|it| it["name"] == name.as_str() && it["owner"]["app"] == "other")
        };
        let is_listed = |storages: &serde_json::Value| {
            let mut all = storages.as_array().expect("a list").iter();
            all.any(|listed| listed["name"] == storage.as_str())
        };
        while !is_given(&self.ctl(&["identities"])) {
            let mut part = vec!["keys", "reassign", &owner, &others];
            part.extend(["--identity", &name, "--yes"]);
            // A daemon that died may have been told of no claim.
            if is_listed(&self.ctl(&["storage", "list"])) {
                part.extend(["--storage", &storage]);
            }
            self.try_ctl(&part);
        }
        while is_listed(&self.ctl(&["storage", "list"])) {
            self.try_ctl(&["storage", "forget", &others, &storage, "--yes"]);
        }
    }

    /// What one says, the other one reads.
    fn talk(&mut self, n: usize) {
        let (alices, bobs) = (self.alice("authenticator g"), self.bob("authenticator g"));
        assert_eq!(alices, bobs);
        self.alice(&format!("send g hello {n}"));
        self.bob("receive");
        self.bob(&format!("send g hello {n} to you"));
        self.alice("receive");
    }

    /// Destroys what is due, and holds what is left against what is needed. A
    /// crash may keep a key until its record is next written: so none is too
    /// many only if there were no deaths since those that are known.
    fn sweep(&mut self, deaths: usize) {
        self.restart(true);
        loop {
            // Reads, which also answer the last look.
            self.alice("authenticator g");
            self.bob("authenticator g");
            let swept = self.ctl(&["keys", "sweep"]);
            if swept["waiting"] == 0 && swept["destroyed"] == 0 {
                break;
            }
        }
        self.restart(false);

        let living = books::living_hpke_keys(&self.plan.acknowledged);
        let named = [&self.alice, &self.bob].map(|chat| Named::read(chat.directory()));
        let needed: BTreeSet<_> = named
            .iter()
            .flat_map(|named| named.groups.union(&named.key_packages))
            .cloned()
            .collect();
        let updates = named.iter().flat_map(|named| &named.updates).cloned();
        let known = needed.iter().cloned().chain(updates).collect();
        assert!(needed.is_subset(&living), "{needed:?} of {living:?}");
        if self.plan.deaths == deaths {
            assert!(living.is_subset(&known), "{living:?} of {known:?}");
        }
    }

    /// Changes what the daemon does with what is not needed.
    fn restart(&mut self, sweeping: bool) {
        self.daemon.kill();
        self.daemon.restart(&calm());
        self.plan.check(&self.daemon, "a kill");
        self.daemon.kill();
        self.plan.sweeping = sweeping;
        self.plan.start(&mut self.daemon);
    }

    fn alice(&mut self, command: &str) -> Answer {
        ask(&mut self.alice, command, &mut self.daemon, &mut self.plan)
    }

    fn bob(&mut self, command: &str) -> Answer {
        ask(&mut self.bob, command, &mut self.daemon, &mut self.plan)
    }

    /// Runs `mlskeyctl`, again if the daemon dies over it.
    fn ctl(&mut self, arguments: &[&str]) -> serde_json::Value {
        loop {
            if let Some(answer) = self.try_ctl(arguments) {
                return answer;
            }
        }
    }

    /// Runs `mlskeyctl`; `None` if the daemon died over it.
    fn try_ctl(&mut self, arguments: &[&str]) -> Option<serde_json::Value> {
        let log = self.stage.path("ctl.log");
        let mut ctl = Process::start("mlskeyctl", self.daemon.ctl_command(arguments), &log);
        if !ctl.speaks_before_end_of(self.daemon.process()) {
            ctl.kill();
            self.plan.revive(&mut self.daemon);
            return None;
        }
        let text: String = std::iter::from_fn(|| ctl.line()).collect();
        ctl.wait();
        let answer = serde_json::from_str(&text).ok();
        if answer.is_none() {
            let why = format!("mlskeyctl {arguments:?}: {}", ctl.log());
            self.plan.expect_death(&mut self.daemon, &why);
        }
        answer
    }
}

/// Gives a command until it succeeds. It may fail only if the daemon died.
fn ask(chat: &mut Chat, command: &str, daemon: &mut Daemon, plan: &mut Plan) -> Answer {
    loop {
        let deaths = plan.deaths;
        match chat.command_through(command, daemon, &mut |daemon| plan.revive(daemon)) {
            Ok(answer) => return answer,
            Err(refused) if plan.deaths == deaths => {
                plan.expect_death(daemon, &refused.to_string());
            }
            Err(_) => {}
        }
    }
}
