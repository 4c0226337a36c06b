//! A long random life of one MLS group: members come, go, write, replace their
//! leaf keys and lose races, apps and the daemon end and come back, and between
//! two steps the daemon destroys what it thinks is not needed any more.
//!
//! The participants are apps of one user, each with a database and a storage
//! name of its own, so that several of them are in the same group under one
//! owner. They run in this process; the daemon is a real one.
//!
//! What is done is drawn from a seed, which is printed. `MLSKEYD_SEED` sets it,
//! so that a failure can be replayed.

mod app;
mod checks;

use std::time::{SystemTime, UNIX_EPOCH};

use mlskeyd_protocol::client::{AdminClient, Call, ClientConfig};
use openmls::prelude::{Ciphersuite, CommitMessageBundle, LeafNodeIndex, MlsMessageOut};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use self::app::{App, Received};
pub use self::checks::Remains;
use crate::rig::{Daemon, Options, Stage};

/// The participants; the group has at least [`FEWEST`] of them.
const NAMES: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];

/// A member is removed only if so many are left.
const FEWEST: usize = 3;

/// What is run, and on what.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The cipher suite of the group.
    pub suite: Ciphersuite,
    /// How many operations.
    pub operations: usize,
    /// How the daemon is started. The run sets the lifetimes itself.
    pub options: Options,
    /// The configured name of the device where all keys are made.
    pub device: String,
    /// The bus on which the daemon is, if apps are to find no socket.
    pub bus: Option<String>,
}

/// What can happen in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Message,
    PublishKeyPackage,
    WithdrawKeyPackage,
    Add,
    Update,
    SelfUpdate,
    Remove,
    ExternalJoin,
    LostExternalJoin,
    Conflict,
    ClearedCommit,
    RolledBack,
    DeathInTransaction,
    RestartApp,
    RestartDaemon,
    Sweep,
}

/// Each with its weight.
const OPERATIONS: [(Operation, u32); 16] = [
    (Operation::Message, 16),
    (Operation::PublishKeyPackage, 6),
    (Operation::WithdrawKeyPackage, 2),
    (Operation::Add, 14),
    (Operation::Update, 14),
    (Operation::SelfUpdate, 12),
    (Operation::Remove, 10),
    (Operation::ExternalJoin, 8),
    (Operation::LostExternalJoin, 3),
    (Operation::Conflict, 7),
    (Operation::ClearedCommit, 5),
    (Operation::RolledBack, 6),
    (Operation::DeathInTransaction, 6),
    (Operation::RestartApp, 8),
    (Operation::RestartDaemon, 4),
    (Operation::Sweep, 6),
];

/// A group, its participants, and the daemon that holds their keys.
pub struct Run {
    // The apps first: they end before the daemon does.
    apps: Vec<App>,
    admin: AdminClient,
    daemon: Daemon,
    options: Options,
    rng: StdRng,
}

/// The seed of `MLSKEYD_SEED`, else one of the time.
///
/// # Panics
/// If the variable holds no number.
pub fn seed() -> u64 {
    match std::env::var("MLSKEYD_SEED") {
        Ok(seed) => seed.parse().expect("MLSKEYD_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.expect("it is after 1970").as_nanos() as u64
        }
    }
}

impl Run {
    /// Runs a plan from beginning to end; answers what is left then.
    ///
    /// # Panics
    /// If anything is not as it must be.
    pub fn play(stage: &Stage, plan: &Plan, seed: u64) -> Remains {
        println!("replay with MLSKEYD_SEED={seed}");
        let mut run = Self::start(stage, plan, seed);
        for step in 1..=plan.operations {
            let operation = run.draw();
            println!("{step}: {operation:?}");
            run.perform(operation);
            run.check_agreement();
            run.check_custody();
        }
        run.finish()
    }

    /// Starts the daemon and the apps, and makes a group of the first three.
    fn start(stage: &Stage, plan: &Plan, seed: u64) -> Self {
        let options = Options {
            // Nothing is due by itself; but generations change all the time.
            lifetimes: lifetimes("1d", "1s"),
            ..plan.options.clone()
        };
        let daemon = Daemon::start(stage, &options);
        let apps = NAMES
            .iter()
            .map(|name| {
                let database = stage.path(format!("{name}.sqlite"));
                App::install(name, database, daemon.socket(), plan)
            })
            .collect();
        let mut run = Self {
            apps,
            admin: AdminClient::new(ClientConfig::new(daemon.socket(), "mlskeyd-tests")),
            daemon,
            options,
            rng: StdRng::seed_from_u64(seed),
        };
        run.apps[0].create();
        run.add(0, 1);
        run.add(0, 2);
        run
    }

    fn perform(&mut self, operation: Operation) {
        match operation {
            Operation::Message => {
                let from = self.member();
                // OpenMLS sends no text while there is a proposal to commit.
                if self.apps[from].has_proposals() {
                    let bundle = self.apps[from].commit(|builder| builder);
                    self.accepted(from, &bundle);
                }
                self.say(from);
            }
            Operation::PublishKeyPackage => {
                let who = self.outsider().expect("one is there");
                self.apps[who].publish_key_package();
            }
            Operation::WithdrawKeyPackage => {
                let who = self.with_key_package().expect("one is there");
                self.apps[who].withdraw_key_package();
            }
            Operation::Add => {
                let (who, whom) = (self.member(), self.outsider().expect("one is there"));
                self.add(who, whom);
            }
            Operation::Update => self.update(),
            Operation::SelfUpdate => {
                let who = self.member();
                let bundle = self.apps[who].commit(|builder| builder.force_self_update(true));
                self.accepted(who, &bundle);
            }
            Operation::Remove => self.remove(),
            Operation::ExternalJoin => self.join_externally(true),
            Operation::LostExternalJoin => self.join_externally(false),
            Operation::Conflict => self.conflict(),
            Operation::ClearedCommit => {
                let who = self.member();
                self.apps[who].commit(|builder| builder.force_self_update(true));
                self.interlude(who);
                self.apps[who].clear_pending_commit();
            }
            Operation::RolledBack => {
                let who = self.member();
                let choice = self.rng.random_range(0..4);
                self.apps[who].roll_back(choice);
            }
            Operation::DeathInTransaction => {
                let who = self.member();
                let choice = self.rng.random_range(0..4);
                self.apps[who].die_in_transaction(choice);
            }
            Operation::RestartApp => {
                let who = self.rng.random_range(0..self.apps.len());
                self.apps[who].restart();
            }
            Operation::RestartDaemon => self.restart_daemon(),
            Operation::Sweep => self.sweep(),
        }
    }

    /// The next operation: one that is possible.
    fn draw(&mut self) -> Operation {
        let total = OPERATIONS.iter().map(|(_, weight)| weight).sum();
        loop {
            let mut left = self.rng.random_range(0..total);
            let drawn = OPERATIONS.iter().find(|(_, weight)| {
                let hit = left < *weight;
                left = left.saturating_sub(*weight);
                hit
            });
            let (operation, _) = drawn.expect("the weights add up");
            let members = self.members().len();
            let possible = match operation {
                Operation::Add
                | Operation::ExternalJoin
                | Operation::LostExternalJoin
                | Operation::PublishKeyPackage => members < self.apps.len(),
                Operation::WithdrawKeyPackage => self.with_key_package().is_some(),
                Operation::Remove => members > FEWEST,
                _ => true,
            };
            if possible {
                return *operation;
            }
        }
    }

    fn members(&self) -> Vec<usize> {
        (0..self.apps.len())
            .filter(|&index| self.apps[index].is_member())
            .collect()
    }

    fn member(&mut self) -> usize {
        let members = self.members();
        members[self.rng.random_range(0..members.len())]
    }

    fn other_member(&mut self, than: usize) -> usize {
        let others = self.members().into_iter().filter(|&index| index != than);
        others.choose(&mut self.rng).expect("three are members")
    }

    fn outsider(&mut self) -> Option<usize> {
        (0..self.apps.len())
            .filter(|&index| !self.apps[index].is_member())
            .choose(&mut self.rng)
    }

    fn with_key_package(&mut self) -> Option<usize> {
        (0..self.apps.len())
            .filter(|&index| self.apps[index].has_key_package())
            .choose(&mut self.rng)
    }

    /// One member writes, all others read exactly that.
    fn say(&mut self, from: usize) {
        let text = format!("{:x}", self.rng.random::<u64>());
        let message = self.apps[from].write(&text);
        for to in self.members() {
            if to != from {
                let received = self.apps[to].receive(&message);
                assert_eq!(received, Received::Text(text.clone()), "for {}", NAMES[to]);
            }
        }
    }

    fn add(&mut self, who: usize, whom: usize) {
        if !self.apps[whom].has_key_package() {
            self.apps[whom].publish_key_package();
        }
        self.interlude(whom);
        let key_package = self.apps[whom].key_package().cloned();
        let bundle = self.apps[who].commit(|builder| builder.propose_adds(key_package));
        self.accepted(who, &bundle);
        self.interlude(whom);
        let welcome = bundle.to_welcome_msg().expect("somebody was added");
        if self.rng.random_ratio(1, 4) {
            self.apps[whom].open_welcome_in_vain(&welcome);
            self.interlude(whom);
        }
        self.apps[whom].join(&welcome);
        self.say(whom);
    }

    /// A member proposes to replace its leaf key. It may be that the proposal
    /// gets lost, that its sender commits itself, or that nobody does.
    fn update(&mut self) {
        let who = self.member();
        let proposal = self.apps[who].propose_update();
        if self.rng.random_ratio(3, 4) {
            for to in self.members() {
                if to != who {
                    assert_eq!(self.apps[to].receive(&proposal), Received::Proposal);
                }
            }
        }
        self.interlude(who);
        let committer = match self.rng.random_range(0..6) {
            0 => return,
            1 => who,
            _ => self.other_member(who),
        };
        let bundle = self.apps[committer].commit(|builder| builder);
        self.accepted(committer, &bundle);
        self.say(who);
    }

    fn remove(&mut self) {
        let who = self.member();
        let whom = self.other_member(who);
        let index: LeafNodeIndex = self.apps[whom].leaf_index();
        let bundle = self.apps[who].commit(|builder| builder.propose_removals([index]));
        self.accepted(who, &bundle);
        assert!(!self.apps[whom].is_member());
        if self.rng.random_ratio(1, 2) {
            self.apps[whom].delete_group();
        }
    }

    /// An outsider joins with the GroupInfo of a member, unless somebody else's
    /// commit was first.
    fn join_externally(&mut self, accepted: bool) {
        let (from, who) = (self.member(), self.outsider().expect("one is there"));
        let info = self.apps[from].group_info();
        let commit = self.apps[who].join_externally(&info);
        self.interlude(who);
        if accepted {
            for to in self.members() {
                if to != who {
                    assert_eq!(self.apps[to].receive(&commit), Received::Epoch);
                }
            }
            self.say(who);
        } else {
            self.apps[who].delete_group();
        }
    }

    /// Two commit in the same epoch. Who comes second drops the own commit, or
    /// has it dropped by OpenMLS.
    fn conflict(&mut self) {
        let first = self.member();
        let second = self.other_member(first);
        let bundle = self.apps[first].commit(|builder| builder.force_self_update(true));
        self.apps[second].commit(|builder| builder.force_self_update(true));
        self.interlude(second);
        if self.rng.random_ratio(1, 2) {
            self.apps[second].clear_pending_commit();
        }
        self.accepted(first, &bundle);
        self.say(second);
    }

    /// The delivery service takes a commit: all others receive it, and its
    /// sender merges it.
    fn accepted(&mut self, who: usize, bundle: &CommitMessageBundle) {
        let commit: &MlsMessageOut = bundle.commit();
        self.interlude(who);
        for to in self.members() {
            if to != who {
                let received = self.apps[to].receive(commit);
                assert!(matches!(received, Received::Epoch | Received::Removed));
            }
        }
        self.interlude(who);
        self.apps[who].merge_pending_commit();
        self.say(who);
    }

    /// What may happen between any two transactions of an app.
    fn interlude(&mut self, who: usize) {
        match self.rng.random_range(0..20) {
            0 | 1 => self.apps[who].restart(),
            2 => self.restart_daemon(),
            3 => self.sweep(),
            _ => {}
        }
    }

    fn restart_daemon(&mut self) {
        let options = self.options.clone();
        self.restart_daemon_with(&options);
    }

    fn restart_daemon_with(&mut self, options: &Options) {
        if self.rng.random_ratio(1, 2) {
            println!("   the daemon is killed");
            self.daemon.kill();
        } else {
            println!("   the daemon is stopped");
            self.daemon.stop();
        }
        self.daemon.restart(options);
    }

    /// Lets the daemon destroy all that no record needs any more, without any
    /// grace: for this time only, since within an operation OpenMLS relies on
    /// it.
    fn sweep(&mut self) {
        self.restart_daemon_with(&Options {
            lifetimes: lifetimes("0s", "1s"),
            ..self.options.clone()
        });
        self.destroy_what_is_due();
        self.check_custody();
        self.restart_daemon();
    }

    /// Sweeps, and lets the storages answer whether they need what is due,
    /// until nothing more is.
    fn destroy_what_is_due(&mut self) {
        let (mut destroyed, mut rounds, mut idle) = (0, 0, 0);
        while idle < 2 {
            rounds += 1;
            assert!(rounds < 100, "keys wait for storages that are there");
            for app in &self.apps {
                app.look_around();
            }
            let swept = self.admin.sweep(&Call::default()).expect("a sweep");
            destroyed += swept.destroyed;
            idle = if (swept.destroyed, swept.waiting, swept.stuck) == (0, 0, 0) {
                idle + 1
            } else {
                0
            };
        }
        println!("   swept: {destroyed} destroyed");
    }

    /// Everybody deletes the group and what is published, and the grace is
    /// over.
    fn finish(mut self) -> Remains {
        for app in &mut self.apps {
            app.delete_group();
            if app.has_key_package() {
                app.withdraw_key_package();
            }
        }
        self.sweep();
        self.remains()
    }
}

/// How long keys live after they were needed, and how long keys are made under
/// one generation key.
fn lifetimes(grace: &str, generation: &str) -> Vec<(&'static str, String)> {
    vec![
        ("grace", grace.to_owned()),
        ("orphan_grace", grace.to_owned()),
        ("max_unclaimed_age", grace.to_owned()),
        ("generation", generation.to_owned()),
    ]
}
