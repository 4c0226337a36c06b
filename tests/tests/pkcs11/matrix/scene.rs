//! A daemon with a token that fails and a software device, and who uses them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use mlskeyd_faulty_module::{CKR_DEVICE_MEMORY, Fault, Function};
use mlskeyd_protocol::client::{AdminClient, Call, CallError, ClientConfig};
use mlskeyd_protocol::v1::{KeyQuery, Purpose};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, FaultyHsm, Options, Shown, Stage, section_without_rates};

use super::Trouble;
use super::app::{App, Tally, is_of_device};

const APPS: usize = 8;

/// Objects of a signature key: itself, and its generation's key.
const OBJECTS_OF_IDENTITY: usize = 2;

pub struct Scene {
    /// With their keys on the token.
    apps: Vec<JoinHandle<()>>,
    tallies: Vec<Arc<Tally>>,
    /// The apps should rest.
    stop: Arc<AtomicBool>,
    /// The apps should end, and with them all of their keys.
    end: Arc<AtomicBool>,
    /// With its keys elsewhere: it never notices anything.
    other: App,
    admin: AdminClient,
    /// The connections of these two.
    connections: u32,
    daemon: Daemon,
    hsm: FaultyHsm,
    _stage: Stage,
}

impl Scene {
    pub fn new() -> Self {
        let stage = Stage::new(programs!());
        let hsm = FaultyHsm::new(&stage);
        hsm.softhsm().add_token("mlskeyd");
        let options = Options {
            // What nobody needs dies at once, and generations with it.
            lifetimes: [
                ("grace", "0s"),
                ("orphan_grace", "0s"),
                ("generation", "1s"),
            ]
            .map(|(key, value)| (key, value.to_owned()))
            .into(),
            extra: hsm.device("hsm", "mlskeyd")
                + "call_timeout = \"1s\"\n"
                + &section_without_rates(&stage.path("")),
            ..Options::default()
        };
        let daemon = Daemon::start(&stage, &options);
        let (stop, end): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
        let admin = AdminClient::new(ClientConfig::new(daemon.socket(), "matrix"));
        let other = App::new(&daemon.socket(), "other", "software", &end);
        other.key_package().unwrap();
        let connections = admin.status(&Call::default()).unwrap().connections;
        let app = |n| App::new(&daemon.socket(), &format!("app {n}"), "hsm", &end);
        let apps: Vec<_> = (0..APPS).map(app).collect();
        let tallies = apps.iter().map(App::tally).collect();
        let live = |app: App| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || app.live(&stop))
        };
        Self {
            apps: apps.into_iter().map(live).collect(),
            tallies,
            stop,
            end,
            other,
            admin,
            connections,
            daemon,
            hsm,
            _stage: stage,
        }
    }

    /// All apps work; there is trouble; all apps work, by themselves.
    pub fn have_trouble_under_load(&mut self, trouble: impl FnOnce(&Self)) {
        self.until(|scene| scene.tallies.iter().all(|app| app.rounds() >= 1));
        trouble(self);
        let (since, done) = (Instant::now(), self.done());
        self.until(|scene| scene.done() > done);
        println!("the first success came {:?} later", since.elapsed());
        let rounds: Vec<_> = self.tallies.iter().map(|app| app.rounds()).collect();
        self.until(|scene| {
            let mut both = scene.tallies.iter().zip(&rounds);
            both.all(|(app, before)| app.rounds() >= before + 2)
        });
        println!("all apps went on {:?} later", since.elapsed());
        self.stop.store(true, Ordering::SeqCst);
        self.until(|scene| scene.tallies.iter().all(|app| app.rests()));
    }

    /// All apps end; and while what they had is destroyed, which is all that is
    /// done, the fault comes and goes.
    pub fn have_trouble_while_keys_die(&mut self, trouble: Trouble, function: Function) {
        if function == Function::DestroyObject {
            let control = self.hsm.control();
            let hits = control.hits_in(function);
            control.arm(function, trouble.fault, 0, 1);
            self.end_apps();
            self.until(|scene| {
                scene.sweep();
                scene.hsm.control().hits_in(function) > hits
            });
            self.hsm.control().put_back();
        } else {
            self.end_apps();
        }
        // What was stuck is tried again, and one connection may have been lost.
        while self.sweep() != Some(0) {}
    }

    /// What the token has at the end.
    pub fn nothing_is_left_but_identities(&self) {
        let query = KeyQuery {
            after: None,
            destroyed: false,
        };
        let keys = self.admin.keys(query, &Call::default()).unwrap();
        let left: Vec<_> = keys
            .iter()
            .filter(|owned| owned.key.device == "hsm" && owned.key.purpose != Purpose::Signature)
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let softhsm = self.hsm.softhsm();
        let shown = softhsm.shown("mlskeyd");
        // SoftHSM makes an object in two steps. Killed in between, it leaves one that has
        // no name and no value yet, or a file that is none: nothing that a key is in.
        let (torn, whole): (Vec<_>, Vec<_>) = shown.iter().partition(|it| Shown::is_nameless(it));
        assert_eq!(whole.len(), APPS * OBJECTS_OF_IDENTITY, "{shown:#?}");
        println!("{} nameless of {} files", torn.len(), softhsm.objects());
        assert_eq!(self.hsm.control().finds_unfinished(), 0);
    }

    /// The fault comes after so many calls, and goes when it was there as often
    /// as it should. What is taken out is put back when every app has noticed.
    pub fn suffer(&self, trouble: Trouble, function: Function, after: u32) {
        let control = self.hsm.control();
        let hits = control.hits_in(function) + u64::from(trouble.times);
        control.arm(function, trouble.fault, after, trouble.times);
        if matches!(function, Function::OpenSession | Function::Login) {
            // Sessions are opened when one is lost. Again and again: while the
            // lost one is not closed yet, the next one need not log in.
            control.arm(Function::Sign, Fault::Error(CKR_DEVICE_MEMORY), 0, u32::MAX);
        }
        self.until(|scene| scene.hsm.control().hits_in(function) == hits);
        control.disarm(Function::Sign);
        if matches!(trouble.fault, Fault::Removed(_)) {
            let failed = self.failed();
            self.until(|scene| {
                let now = scene.failed();
                now.iter().zip(&failed).all(|(now, before)| now > before)
            });
        }
        control.put_back();
    }

    /// Waits for the apps, and sees meanwhile that nobody else is in trouble.
    fn until(&self, is_so: impl Fn(&Self) -> bool) {
        self.daemon.ctl(&["status"]).unwrap();
        while !is_so(self) {
            let ended = self.apps.iter().any(JoinHandle::is_finished);
            assert!(!ended || self.apps.is_empty(), "an app gave up");
            self.other.key_package().unwrap();
            self.admin.status(&Call::default()).unwrap();
        }
        self.daemon.ctl(&["status"]).unwrap();
    }

    /// Destroys what is due; answers how many keys. `None`: the token is in
    /// trouble, or was when it was to let go of something.
    fn sweep(&self) -> Option<u64> {
        match self.admin.sweep_all(&Call::default(), |_| {}) {
            Ok(swept) => {
                assert_eq!(swept.waiting, 0);
                (swept.stuck == 0).then_some(swept.destroyed)
            }
            Err(CallError::Failure(failure)) => {
                assert!(is_of_device(&failure), "{failure:?}");
                None
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn end_apps(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        for app in self.apps.drain(..) {
            app.thread().unpark();
            app.join().unwrap();
        }
        // The daemon learns by and by that they are gone.
        while self.admin.status(&Call::default()).unwrap().connections > self.connections {
            std::thread::yield_now();
        }
    }

    fn failed(&self) -> Vec<u64> {
        self.tallies.iter().map(|app| app.failed()).collect()
    }

    fn done(&self) -> u64 {
        self.tallies.iter().map(|app| app.done()).sum()
    }
}

impl Drop for Scene {
    /// A test that failed leaves no app behind.
    fn drop(&mut self) {
        for order in [&self.stop, &self.end] {
            order.store(true, Ordering::SeqCst);
        }
        for app in self.apps.drain(..) {
            app.thread().unpark();
            // What it has to say was said.
            let _ = app.join();
        }
    }
}
