//! What people do with identities that have a PIN: a daemon and its apps.

use std::process::{Command, Output};
use std::sync::mpsc;

use mlskeyd::audit::{AuditOutcome, Entries, FILE_NAME};
use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::{FailureCode, Interaction, KeyPin, Progress, SecretBytes, Sign};
use mlskeyd_provider::{CustodyIdentity, CustodyProvider, ProviderError};
use mlskeyd_tests::member::{Member, client, message};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, Stage, Swtpm, is_anywhere, with_input};
use mlskeyd_tests::suite::SUITE_2;
use openmls::prelude::{Ciphersuite, KeyPackage};
use openmls_memory_storage::MemoryStorage;
use serde_json::Value;

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;

const PIN: &str = "31415926";
const WRONG: &str = "27182818";

/// A daemon with a software device and a TPM.
struct Scene {
    daemon: Daemon,
    options: Options,
    tpm: Swtpm,
    stage: Stage,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new(programs!());
        let tpm = Swtpm::new(&stage);
        let options = Options {
            extra: tpm.device("tpm"),
            ..Options::default()
        };
        Self {
            daemon: Daemon::start(&stage, &options),
            options,
            tpm,
            stage,
        }
    }

    fn restart(&mut self) {
        self.daemon.stop();
        self.daemon.restart(&self.options);
    }

    /// `mlskeyctl identities` with this verb, for an identity of this test's user;
    /// the exit code, and what it says.
    fn identities(
        &self,
        verb: &str,
        name: &str,
        more: &[&str],
        input: &str,
    ) -> (i32, Result<Value, String>) {
        let owner = format!("{}/default", rustix::process::geteuid().as_raw());
        let arguments = [&["identities", verb, &owner, name], more].concat();
        let output = with_input(self.daemon.ctl_command(&arguments), input);
        let said = match output.stdout.as_slice() {
            [] => Err(text(&output)),
            json => Ok(serde_json::from_slice(json).unwrap()),
        };
        (output.status.code().unwrap(), said)
    }

    fn create(&self, name: &str, scheme: &str) -> Value {
        let more = ["--device", "tpm", "--scheme", scheme, "--pin"];
        self.identities("create", name, &more, PIN).1.unwrap()
    }

    fn unlock(&self, name: &str, pin: &str, more: &[&str]) -> Result<Value, String> {
        self.identities("unlock", name, more, pin).1
    }

    fn lock(&self, name: &str) -> Value {
        self.identities("lock", name, &[], "").1.unwrap()
    }

    /// As lists show it: of the identity, and of its key.
    fn shown(&self, name: &str) -> [Value; 2] {
        let of = |list: &str, field: &str| {
            let all = self.daemon.ctl(&[list]).unwrap();
            let mut all = all.as_array().unwrap().iter();
            let one = all.find(|one| one[field] == name && one["state"] != "retiring");
            one.unwrap()["pin"].clone()
        };
        [of("identities", "name"), of("keys", "identity")]
    }

    fn app(&self, interaction: Interaction) -> App {
        let provider = CustodyProvider::builder()
            .socket(self.daemon.socket())
            .storage("app", MemoryStorage::default())
            .device("tpm")
            .interaction(interaction)
            .build()
            .unwrap();
        App(provider)
    }

    /// An app that waits for a locked key, and tells when it does.
    fn waiting_app(&self) -> (App, mpsc::Receiver<()>) {
        let (told, tells) = mpsc::channel();
        let provider = CustodyProvider::builder()
            .socket(self.daemon.socket())
            .storage("waits", MemoryStorage::default())
            .device("tpm")
            .on_progress(move |progress| {
                if matches!(progress, Progress::Locked { .. }) {
                    told.send(()).unwrap();
                }
            })
            .build()
            .unwrap();
        (App(provider), tells)
    }

    /// How the acts of a kind ended, as they are on record.
    fn records(&self, action: &str) -> Vec<AuditOutcome> {
        let log = self.daemon.state().join(FILE_NAME);
        let records = Entries::open(&log).unwrap().map(|it| it.unwrap().record);
        let of_it = records.filter(|record| record.action == action);
        of_it.map(|record| record.outcome).collect()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

struct App(CustodyProvider<MemoryStorage>);

impl App {
    fn identity(&self, name: &str) -> CustodyIdentity {
        self.0.identity(name).unwrap()
    }

    /// Makes a KeyPackage with this identity; or the reason why not.
    fn key_package(&self, name: &str) -> Result<(), (FailureCode, String)> {
        let identity = self.identity(name);
        let with_key = identity.credential_with_key().unwrap();
        let built = KeyPackage::builder().build(SUITE, &self.0, &identity.signer(), with_key);
        built.map(|_| ()).map_err(|_| {
            let failure = self.0.last_failure().expect("there is a reason");
            match &failure.error {
                ProviderError::Failure(why) => (why.code, failure.to_string()),
                other => panic!("{other}"),
            }
        })
    }
}

const NOBODY_COMES: Interaction = Interaction::UpTo(50);

#[test]
fn what_waits_for_a_locked_key_goes_on_when_somebody_unlocks_it() {
    let mut scene = Scene::new();
    let made = scene.create("alice", "p256");
    assert_eq!(
        (&made["pin"], &made["tier"]),
        (&"locked".into(), &"hardware".into())
    );
    assert_eq!(scene.shown("alice"), ["locked", "locked"]);
    let app = scene.app(Interaction::Never);
    assert_eq!(app.identity("alice").info().pin, KeyPin::Locked);
    app.0.prepare("alice").unwrap_err();
    let (code, why) = app.key_package("alice").unwrap_err();
    assert_eq!(code, FailureCode::InteractionRequired, "{why}");
    assert!(why.contains("mlskeyctl identities unlock"), "{why}");
    let (code, why) = scene.app(NOBODY_COMES).key_package("alice").unwrap_err();
    assert_eq!(code, FailureCode::DeviceLocked, "{why}");
    assert!(why.contains("mlskeyctl identities unlock"), "{why}");

    let (waiting, tells) = scene.waiting_app();
    std::thread::scope(|scope| {
        let signing = scope.spawn(move || waiting.key_package("alice"));
        tells.recv().unwrap();
        let unlocked = scene.unlock("alice", PIN, &[]).unwrap();
        assert_eq!(unlocked["pin_tried"], true);
        signing.join().unwrap().unwrap();
    });
    app.0.prepare("alice").unwrap();
    app.key_package("alice").unwrap();
    assert_eq!(scene.shown("alice"), ["unlocked", "unlocked"]);
    // Who gives a wrong one now is told that nobody looked at it.
    let (code, idle) = scene.identities("unlock", "alice", &[], WRONG);
    assert_eq!((code, &idle.unwrap()["pin_tried"]), (5, &false.into()));

    assert_eq!(scene.lock("alice")["pin"], "locked");
    let (code, _) = app.key_package("alice").unwrap_err();
    assert_eq!(code, FailureCode::InteractionRequired);
    scene.unlock("alice", PIN, &[]).unwrap();
    app.key_package("alice").unwrap();
    // What a person gave is not kept.
    scene.restart();
    assert_eq!(scene.shown("alice"), ["locked", "locked"]);
    let (code, _) = scene.app(NOBODY_COMES).key_package("alice").unwrap_err();
    assert_eq!(code, FailureCode::DeviceLocked);
    scene.unlock("alice", PIN, &[]).unwrap();
    scene.app(NOBODY_COMES).key_package("alice").unwrap();
    assert_eq!(scene.records("CreateIdentityFor").len(), 1);
    assert_eq!(scene.records("UnlockIdentity").len(), 4);
    assert_eq!(scene.records("LockIdentity").len(), 1);
}

#[test]
fn a_wrong_pin_is_on_record_and_reaches_the_tpm_once() {
    let mut scene = Scene::new();
    scene.create("alice", "ed25519");
    let refused = scene.unlock("alice", WRONG, &[]).unwrap_err();
    assert!(refused.contains("is wrong; 2 tries are left"), "{refused}");
    for _ in 0..2 {
        let refused = scene.unlock("alice", WRONG, &[]).unwrap_err();
        assert!(refused.contains("give another one"), "{refused}");
        scene.restart();
    }
    for failed in scene.records("UnlockIdentity") {
        let expected = AuditOutcome::Failed {
            code: FailureCode::DeviceLocked,
        };
        assert_eq!(failed, expected);
    }
    let refused = scene.unlock("alice", "00000000", &[]).unwrap_err();
    assert!(refused.contains("one more would lock"), "{refused}");
    let refused = scene.unlock("alice", PIN, &[]).unwrap_err();
    assert!(refused.contains("--last-try"), "{refused}");
    scene.unlock("alice", PIN, &["--last-try"]).unwrap();
    scene.daemon.stop();
    let log = scene.daemon.log();
    for pin in [PIN, WRONG, "00000000"] {
        assert!(!log.contains(pin));
        let everything = scene.stage.path("daemon");
        assert!(!is_anywhere(&everything, pin.as_bytes()), "{pin}");
    }
}

/// Passed when a PIN is tried.
pub const PIN_POINTS: [&str; 2] = ["tpm2.pin-noted", "tpm2.pin-tried"];

#[test]
fn a_pin_is_noted_before_it_is_tried() {
    for point in PIN_POINTS {
        let mut scene = Scene::new();
        scene.create("alice", "p256");
        scene.daemon.stop();
        let armed = Options {
            failpoint: Some(point.to_owned()),
            ..scene.options.clone()
        };
        scene.daemon.restart(&armed);
        scene.unlock("alice", WRONG, &[]).expect_err(point);
        scene.daemon.wait();
        let directory = std::fs::read_dir(scene.daemon.state().join("devices/tpm")).unwrap();
        let mut names = directory.map(|entry| entry.unwrap().file_name());
        let is_noted = names.any(|name| name.to_string_lossy().starts_with("pin-"));
        assert!(is_noted, "{point}");
        // Nobody knows how it ended, so a person may insist, once more.
        scene.daemon.restart(&scene.options);
        let refused = scene.unlock("alice", WRONG, &["--last-try"]).unwrap_err();
        assert!(refused.contains("is wrong"), "{point}: {refused}");
        let refused = scene.unlock("alice", WRONG, &["--last-try"]).unwrap_err();
        assert!(refused.contains("give another one"), "{point}: {refused}");
        scene.unlock("alice", PIN, &["--last-try"]).unwrap();
        scene.app(NOBODY_COMES).key_package("alice").unwrap();
    }
}

#[test]
fn a_lockout_is_shown_and_named_and_the_others_go_on() {
    let mut scene = Scene::new();
    scene.create("alice", "p256");
    let more = ["--device", "tpm", "--scheme", "p256"];
    let made = scene.identities("create", "bob", &more, "").1.unwrap();
    assert_eq!(made["pin"], "none");
    let lockout = |scene: &Scene| {
        let devices = scene.daemon.ctl(&["devices"]).unwrap();
        let mut devices = devices.as_array().unwrap().iter();
        let tpm = devices.find(|device| device["name"] == "tpm").unwrap();
        assert_eq!(tpm["state"], "ready");
        tpm["facts"]["lockout"].clone()
    };
    for number in 0..3 {
        assert!(lockout(&scene).is_null());
        let wrong = format!("{WRONG}{number}");
        scene.unlock("alice", &wrong, &["--last-try"]).unwrap_err();
    }
    let shown = lockout(&scene).to_string();
    assert!(
        shown.contains("every 1000 s") && shown.contains("--clear-lockout"),
        "{shown}"
    );
    let refused = scene.unlock("alice", PIN, &["--last-try"]).unwrap_err();
    assert!(refused.contains("is locked out"), "{refused}");
    assert!(refused.contains("lockout hierarchy"), "{refused}");
    scene.app(NOBODY_COMES).key_package("bob").unwrap();
    scene.daemon.stop();
    scene.tpm.tool(&["dictionarylockout", "--clear-lockout"]);
    scene.daemon.restart(&scene.options);
    scene.unlock("alice", PIN, &[]).unwrap();
    assert!(lockout(&scene).is_null());
    scene.app(NOBODY_COMES).key_package("alice").unwrap();
}

/// Who waits for a person gets nothing once it is frozen, even if the person comes.
#[test]
fn what_waits_is_frozen_as_well() {
    let scene = Scene::new();
    scene.create("alice", "p256");
    let (waiting, tells) = scene.waiting_app();
    std::thread::scope(|scope| {
        let signing = scope.spawn(move || waiting.key_package("alice"));
        tells.recv().unwrap();
        scene.daemon.ctl(&["freeze", "all"]).unwrap();
        scene.unlock("alice", PIN, &[]).unwrap();
        let (code, why) = signing.join().unwrap().unwrap_err();
        assert_eq!(code, FailureCode::Denied, "{why}");
    });
    let frozen = |outcome: &AuditOutcome| matches!(outcome, AuditOutcome::Denied { policy, .. } if policy == "rule/frozen");
    let records = scene.records("SignLeafNode");
    assert!(
        records.iter().all(frozen) && records.len() == 1,
        "{records:?}"
    );
    // Why is explained, though no policy can say more of it.
    let explained = scene.daemon.ctl(&["policy", "explain"]).unwrap();
    assert_eq!(explained[0]["refused"]["policy"], "rule/frozen");
    assert_eq!(explained[0]["by_rule"], true);
}

#[test]
fn a_rotation_loses_no_pin_by_mistake() {
    let scene = Scene::new();
    let made = scene.create("alice", "p256");
    scene.unlock("alice", PIN, &[]).unwrap();
    let (_, refused) = scene.identities("rotate", "alice", &[], "");
    let refused = refused.unwrap_err();
    assert!(
        refused.contains("--pin") && refused.contains("--no-pin"),
        "{refused}"
    );
    // Nor one that a device cannot keep.
    let to_software = ["--device", "software", "--tier", "software"];
    let with_pin = [to_software.as_slice(), &["--pin"]].concat();
    let (_, refused) = scene.identities("rotate", "alice", &with_pin, PIN);
    let refused = refused.unwrap_err();
    assert!(refused.contains("cannot give a key a PIN"), "{refused}");
    assert_eq!(scene.shown("alice"), ["unlocked", "unlocked"]);

    let new_pin = "16180339";
    let (_, rotated) = scene.identities("rotate", "alice", &["--pin"], new_pin);
    let rotated = rotated.unwrap();
    assert_eq!(rotated["pin"], "locked");
    let before = &rotated["retiring"][0];
    assert_eq!(before["key"], made["key"]);
    assert_eq!(before["pin"], "unlocked");
    let app = scene.app(Interaction::Never);
    app.key_package("alice").unwrap_err();
    scene.unlock("alice", new_pin, &[]).unwrap();
    app.key_package("alice").unwrap();
    // Both, and the one before again by its name.
    let locked = scene.lock("alice");
    assert_eq!(locked["pin"], "locked");
    assert_eq!(locked["retiring"][0]["pin"], "locked");
    let old = made["key"].as_str().unwrap();
    let unlocked = scene.unlock("alice", PIN, &["--key", old]).unwrap();
    assert_eq!(unlocked["retiring"][0]["pin"], "unlocked");
    assert_eq!(unlocked["pin"], "locked");
    let bobs = scene.create("bob", "p256");
    let bobs = bobs["key"].as_str().unwrap();
    let refused = scene.unlock("alice", PIN, &["--key", bobs]).unwrap_err();
    assert!(refused.contains("is none of"), "{refused}");

    let without = ["--no-pin"];
    let (_, rotated) = scene.identities("rotate", "alice", &without, "");
    assert_eq!(rotated.unwrap()["pin"], "none");
    app.key_package("alice").unwrap();
    let refused = scene.unlock("alice", PIN, &[]).unwrap_err();
    assert!(refused.contains("has no PIN"), "{refused}");
}

/// The key that a certificate is to be for keeps the protection of the one before.
#[test]
fn a_new_key_for_a_certificate_loses_no_pin_by_mistake() {
    let scene = Scene::new();
    scene.create("alice", "p256");
    scene.unlock("alice", PIN, &[]).unwrap();
    let csr = |more: &[&str], input| {
        let (_, said) = scene.identities("csr", "alice", &[&["--new-key"], more].concat(), input);
        said
    };
    let pin_of = |asked: &Value| {
        let keys = scene.daemon.ctl(&["keys"]).unwrap();
        let mut keys = keys.as_array().unwrap().iter();
        keys.find(|key| key["id"] == asked["key"]).unwrap()["pin"].clone()
    };
    let refused = csr(&[], "").unwrap_err();
    assert!(
        refused.contains("--pin") && refused.contains("--no-pin"),
        "{refused}"
    );

    // The PIN is taken for the request, and for nothing after it.
    let asked = csr(&["--pin"], "16180339").unwrap();
    assert_eq!(pin_of(&asked), "locked");
    let mut verify = Command::new("openssl");
    verify.args(["req", "-verify", "-noout"]);
    let verified = with_input(verify, asked["request"].as_str().unwrap());
    assert!(verified.status.success(), "{}", text(&verified));

    let asked = csr(&["--no-pin"], "").unwrap();
    assert_eq!(pin_of(&asked), "none");
}

#[test]
fn a_device_that_keeps_no_pins_says_so() {
    let scene = Scene::new();
    let more = ["--device", "software", "--pin"];
    let (code, refused) = scene.identities("create", "alice", &more, PIN);
    let refused = refused.unwrap_err();
    assert_eq!(code, 1);
    assert!(refused.contains("cannot give a key a PIN"), "{refused}");
    for list in ["identities", "keys"] {
        assert_eq!(scene.daemon.ctl(&[list]).unwrap(), serde_json::json!([]));
    }
}

/// Else an app that has no PIN could fill the guard with commits that nobody signed.
#[test]
fn what_is_refused_for_want_of_a_pin_counts_for_nothing() {
    let scene = Scene::new();
    scene.create("alice", "p256");
    let client = client(&scene.daemon.socket());
    let alice = Member::new(&client, "alice", "tpm");
    let call = Call {
        interaction: Interaction::Never,
        ..Call::default()
    };
    let sign = || {
        let request = Sign {
            key: alice.identity.key,
            content: SecretBytes::new(message(SUITE_2)),
        };
        client.sign(request, &call)
    };
    let marks = || -> u32 {
        let registry = scene.daemon.state().join("registry.db");
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let registry = rusqlite::Connection::open_with_flags(registry, flags).unwrap();
        let count = registry.query_row("SELECT count(*) FROM guards", [], |row| row.get(0));
        count.unwrap()
    };
    sign().unwrap_err();
    assert_eq!(marks(), 0);
    scene.unlock("alice", PIN, &[]).unwrap();
    sign().unwrap();
    assert_eq!(marks(), 1);
}
