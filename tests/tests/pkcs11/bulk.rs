//! Very many init keys of one token: it does not notice them.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mlskeyd_protocol::client::{AdminClient, Call, Client, ClientConfig};
use mlskeyd_protocol::v1::{GeneratedHpke, KeyQuery};
use mlskeyd_tests::forge::labelled;
use mlskeyd_tests::member::{Member, client, keep};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, SoftHsm, Stage, section_without_rates};
use mlskeyd_tests::suite::{SUITE_2, sealed};
use mlskeyd_tests::vitals::Vitals;

/// KeyPackages, each with an init key and a leaf key.
#[cfg(feature = "full")]
const PACKAGES: usize = 10_000;
#[cfg(not(feature = "full"))]
const PACKAGES: usize = 300;

const CLIENTS: usize = 6;

/// The storage whose records name them.
const STORAGE: &str = "bulk";

/// Keys that are opened with after the daemon was started again.
const SAMPLE: usize = 100;

struct Scene {
    daemon: Daemon,
    options: Options,
    softhsm: SoftHsm,
    _stage: Stage,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new(programs!());
        let softhsm = SoftHsm::new(&stage);
        softhsm.add_token("mlskeyd");
        let options = Options {
            extra: softhsm.device("hsm", "mlskeyd") + &section_without_rates(&stage.path("")),
            ..Options::default()
        };
        Self {
            daemon: Daemon::start(&stage, &options),
            options,
            softhsm,
            _stage: stage,
        }
    }

    fn client(&self) -> Client {
        client(&self.daemon.socket())
    }

    /// Makes so many KeyPackages by several clients; their init keys.
    fn make(&self, member: &Member, count: usize) -> Vec<GeneratedHpke> {
        let made = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for n in 0..CLIENTS {
                let (made, client) = (&made, self.client());
                let own = count / CLIENTS + usize::from(n < count % CLIENTS);
                scope.spawn(move || {
                    for _ in 0..own {
                        let keys = member.key_package(&client);
                        keep(&client, STORAGE, &keys);
                        let [init, _] = keys;
                        made.lock().unwrap().push(init);
                    }
                });
            }
        });
        made.into_inner().unwrap()
    }

    /// Opens a Welcome with each of these keys.
    fn open(&self, keys: &[GeneratedHpke]) {
        let client = self.client();
        for key in keys {
            let info = labelled("Welcome", b"the sealed GroupInfo");
            let welcome = sealed(SUITE_2, key, &info, &SUITE_2.group_secrets());
            let opened = client.open(welcome, &Call::default()).unwrap();
            assert_eq!(opened.expose(), SUITE_2.group_secrets());
        }
    }

    fn memory(&self) -> u64 {
        Vitals::of(self.daemon.pid()).memory
    }
}

/// How many of these were done in a second.
fn rate(count: usize, work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    count as f64 / begun.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}

#[test]
fn many_init_keys_live_and_die_beside_the_token() {
    let mut scene = Scene::new();
    let member = Member::new(&scene.client(), "bulk", "hsm");
    let before = scene.softhsm.objects();
    let memory = scene.memory();

    let tenth = PACKAGES / 10;
    let (mut keys, mut made, mut opened) = (Vec::new(), Vec::new(), Vec::new());
    let mut objects = HashSet::new();
    for _ in 0..10 {
        made.push(rate(tenth, || keys.extend(scene.make(&member, tenth))));
        let newest = &keys[keys.len() - tenth.min(SAMPLE)..];
        opened.push(rate(newest.len(), || scene.open(newest)));
        objects.insert(scene.softhsm.objects());
    }
    let wrapper = 1;
    assert_eq!(objects, HashSet::from([before + wrapper]));
    let different: HashSet<_> = keys.iter().map(|key| &key.public_key).collect();
    assert_eq!(different.len(), PACKAGES);
    println!(
        "the last tenth over the first: made {:.2}, opened {:.2} (at first {:.0}/s and {:.0}/s)",
        made[9] / made[0],
        opened[9] / opened[0],
        made[0],
        opened[0]
    );
    println!(
        "the daemon's memory: {} bytes for each of {} keys",
        scene.memory().saturating_sub(memory) / (2 * PACKAGES as u64),
        2 * PACKAGES
    );

    scene.daemon.stop();
    scene.daemon.restart(&scene.options);
    let sample: Vec<_> = keys.iter().step_by(PACKAGES / SAMPLE).cloned().collect();
    scene.open(&sample);
    assert_eq!(scene.softhsm.objects(), before + wrapper);

    // The app's database is gone, and nobody waits for it any more.
    scene.daemon.stop();
    let at_once = ["grace", "orphan_grace"].map(|name| (name, "0s".to_owned()));
    scene.options.lifetimes = at_once.into();
    scene.daemon.restart(&scene.options);
    let admin = AdminClient::new(ClientConfig::new(scene.daemon.socket(), "bulk"));
    for storage in admin.storages(&Call::default()).unwrap() {
        let forgotten = admin.forget_storage(storage.owner, &storage.name, &Call::default());
        assert_eq!(forgotten.unwrap() as usize, PACKAGES);
    }
    let alive = || {
        let query = KeyQuery {
            after: None,
            destroyed: false,
        };
        admin.keys(query, &Call::default()).unwrap().len()
    };
    while alive() > 1 {
        admin.sweep_all(&Call::default(), |_| {}).unwrap();
    }
    assert_eq!(scene.softhsm.objects(), before);
    member.key_package(&scene.client());
}
