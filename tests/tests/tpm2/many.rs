//! Very many keys of one TPM: it does not notice them.
//!
//! What something costs is counted in commands to the TPM, since what takes time on
//! a chip is these.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mlskeyd_protocol::client::{AdminClient, Call, Client, ClientConfig};
use mlskeyd_protocol::v1::{GeneratedHpke, Owner, Placement, RotateIdentity};
use mlskeyd_tests::forge::labelled;
use mlskeyd_tests::member::{Member, client, keep, let_go, message};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, Stage, Swtpm, Tap, code, section_without_rates};
use mlskeyd_tests::suite::{SUITE_1, SUITE_2, Suite, sealed};
use tss_esapi::constants::CommandCode;

const FEW: usize = 12;
#[cfg(feature = "full")]
const MANY: usize = 1_000;
#[cfg(not(feature = "full"))]
const MANY: usize = 100;

/// How often each thing is done with few keys, and with many.
const TIMES: usize = 9;

/// Members; all other keys are those of KeyPackages.
const MEMBERS: usize = 60;

const STORAGE: &str = "many";

struct Scene {
    admin: AdminClient,
    client: Client,
    daemon: Daemon,
    tap: Tap,
    tpm: Swtpm,
    _stage: Stage,
}

/// What is done, and in which suite.
type What = (u16, &'static str);

/// What each thing costs.
#[derive(Default)]
struct Costs(BTreeMap<What, Cost>);

/// Of each time: the commands, and how long it took.
#[derive(Default)]
struct Cost {
    commands: Vec<Vec<CommandCode>>,
    times: Vec<Duration>,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new(programs!());
        let tpm = Swtpm::new(&stage);
        let tap = Tap::before(&tpm);
        let at_once = ["grace", "storage_horizon"].map(|name| (name, "0s".to_owned()));
        let options = Options {
            extra: Swtpm::device_at("tpm", &tap.tcti()) + &section_without_rates(&stage.path("")),
            lifetimes: at_once.into(),
            ..Options::default()
        };
        let daemon = Daemon::start(&stage, &options);
        Self {
            admin: AdminClient::new(ClientConfig::new(daemon.socket(), "many")),
            client: client(&daemon.socket()),
            daemon,
            tap,
            tpm,
            _stage: stage,
        }
    }

    fn sweep(&self) {
        let swept = self.admin.sweep_all(&Call::default(), |_| {}).unwrap();
        assert_eq!((swept.stuck, swept.waiting), (0, 0));
    }
}

/// A member and its KeyPackages.
struct Holder {
    suite: Suite,
    member: Member,
    packages: Vec<[GeneratedHpke; 2]>,
}

impl Holder {
    fn new(scene: &Scene, number: usize) -> Self {
        let suite = match number % 4 {
            0 => SUITE_1,
            _ => SUITE_2,
        };
        let name = format!("holder {number}");
        let mut holder = Self {
            suite,
            member: Member::of_suite(&scene.client, suite, &name, "tpm").unwrap(),
            packages: Vec::new(),
        };
        holder.take_package(scene);
        holder
    }

    fn take_package(&mut self, scene: &Scene) {
        let package = self.member.key_package(&scene.client);
        keep(&scene.client, STORAGE, &package);
        self.packages.push(package);
    }

    fn keys(&self) -> usize {
        1 + self.packages.iter().flatten().count()
    }

    fn sign(&self, scene: &Scene) {
        self.member.sign(&scene.client, &message(self.suite));
    }

    fn open(&self, scene: &Scene, [init, _]: &[GeneratedHpke; 2]) {
        let info = labelled("Welcome", b"the sealed GroupInfo");
        let welcome = sealed(self.suite, init, &info, &self.suite.group_secrets());
        let opened = scene.client.open(welcome, &Call::default()).unwrap();
        assert_eq!(opened.expose(), self.suite.group_secrets());
    }

    /// Gets a new signature key, and has the old one destroyed.
    fn rotate(&mut self, scene: &Scene) {
        let request = RotateIdentity {
            owner: Owner {
                uid: rustix::process::geteuid().as_raw(),
                app: "default".to_owned(),
            },
            name: self.member.identity.name.clone(),
            placement: Placement {
                device: Some("tpm".to_owned()),
                tier: None,
            },
            grace: Some(0),
            pin: None,
            drop_pin: false,
        };
        let rotated = scene.admin.rotate_identity(request, &Call::default());
        self.member.identity = rotated.unwrap();
        scene.sweep();
    }

    /// Makes, uses and destroys keys of each kind; there are as many afterwards.
    fn live(&mut self, scene: &Scene, costs: &mut Costs, time: usize) {
        let number = self.suite.number;
        let mut note = |what, work: &mut dyn FnMut()| costs.note(scene, (number, what), work);
        let any = self.packages[time * 7 % self.packages.len()].clone();
        let mut new = Vec::new();
        note("sign", &mut || self.sign(scene));
        note("sign again", &mut || self.sign(scene));
        note("make a KeyPackage", &mut || {
            new.push(self.member.key_package(&scene.client));
        });
        keep(&scene.client, STORAGE, &new[0]);
        note("open with a new key", &mut || self.open(scene, &new[0]));
        note("open with any key", &mut || self.open(scene, &any));
        note("destroy HPKE keys", &mut || {
            let_go(&scene.client, STORAGE, &new[0]);
            scene.sweep();
        });
        note("replace a signature key", &mut || self.rotate(scene));
    }
}

impl Costs {
    /// Does something, and notes what it costs.
    fn note(&mut self, scene: &Scene, what: What, work: &mut dyn FnMut()) {
        let (before, begun) = (scene.tap.count(), Instant::now());
        work();
        let took = begun.elapsed();
        let commands = scene.tap.commands(before);
        let commands = commands.iter().map(|command| code(command).unwrap());
        let cost = self.0.entry(what).or_default();
        cost.commands.push(commands.collect());
        cost.times.push(took);
    }

    /// Of all that there is to do, by some of the holders.
    fn of(scene: &Scene, holders: &mut [Holder]) -> Self {
        let mut costs = Self::default();
        // What is loaded is the same each time from the second time on.
        for time in 0..=TIMES {
            if time == 1 {
                costs = Self::default();
            }
            for holder in holders.iter_mut() {
                holder.live(scene, &mut costs, time);
            }
        }
        costs
    }
}

#[test]
fn a_key_among_many_costs_what_it_costs_among_few() {
    let mut scene = Scene::new();
    let mut holders: Vec<Holder> = Vec::new();
    let fill = |holders: &mut Vec<Holder>, keys: usize| {
        for number in 0.. {
            if holders.iter().map(Holder::keys).sum::<usize>() >= keys {
                return;
            }
            match holders.len() {
                MEMBERS => holders[number % MEMBERS].take_package(&scene),
                others => holders.push(Holder::new(&scene, others)),
            }
        }
    };
    fill(&mut holders, FEW);
    let few = Costs::of(&scene, &mut holders[..2]);
    let begun = Instant::now();
    fill(&mut holders, MANY);
    println!("{MANY} keys after {:?}", begun.elapsed());
    let many = Costs::of(&scene, &mut holders[..2]);
    for (what, of_few) in &few.0 {
        let of_many = &many.0[what];
        let [few, many] = [of_few, of_many].map(|cost| median(&cost.times));
        let commands = &of_few.commands;
        println!(
            "{what:x?}: {few:?} among few, {many:?} among many: {:?}",
            commands[0]
        );
        assert!(!commands[0].is_empty());
        assert_eq!(of_many.commands, *commands, "{what:?}");
    }
    // Any of them does what it is for; for each use room is made, and it is loaded.
    for holder in &holders {
        let before = scene.tap.count();
        holder.sign(&scene);
        holder.open(&scene, &holder.packages[0]);
        assert!(scene.tap.count() - before <= 2 * 3);
    }
    scene.daemon.stop();
    assert_eq!(scene.tpm.loaded(), [""; 0]);
    assert_eq!(scene.tpm.persistent(), [""; 0]);
    assert_eq!(scene.tpm.indices().len(), 1, "one index, of the root");
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}
