//! What people do with a token: unlock it, and bring keys of their own.

use std::process::{Command, Output};
use std::sync::mpsc;

use mlskeyd_faulty_module::Function;
use mlskeyd_protocol::v1::{Progress, Tier};
use mlskeyd_provider::CustodyProvider;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{FaultyHsm, Options, SoftHsm, Stage, is_anywhere, with_input};
use openmls::prelude::Ciphersuite;
use openmls_memory_storage::MemoryStorage;

use super::scene::{App, Scene, without_pin};

const P256: Ciphersuite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;
const CURVE25519: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

#[test]
fn what_waits_for_a_locked_token_goes_on_when_somebody_unlocks_it() {
    let stage = Stage::new(programs!());
    let softhsm = SoftHsm::new(&stage);
    softhsm.add_token("mlskeyd");
    let device = without_pin(&softhsm.device("hsm", "mlskeyd"));
    let mut scene = Scene::with(stage, softhsm, device);
    let (state, detail) = scene.state();
    assert_eq!(state, "locked");
    assert!(detail.contains("waits for its PIN"), "{detail}");
    scene.unlock(SoftHsm::PIN, &[]).unwrap();
    scene.app("app", "hsm").key_package().unwrap();

    // What a person gave is not kept.
    scene.daemon.stop();
    scene.daemon.restart(&scene.options);
    assert_eq!(scene.state().0, "locked");
    let (told, tells) = mpsc::channel();
    let provider = CustodyProvider::builder()
        .socket(scene.daemon.socket())
        .storage("app", MemoryStorage::default())
        .device("hsm")
        .on_progress(move |progress| {
            if matches!(progress, Progress::Locked { .. }) {
                told.send(()).unwrap();
            }
        })
        .build()
        .unwrap();
    std::thread::scope(|scope| {
        let signing = scope.spawn(move || {
            let identity = provider.identity("app").unwrap();
            let app = App {
                provider,
                identity,
                suite: P256,
            };
            app.key_package()
        });
        tells.recv().unwrap();
        scene.unlock(SoftHsm::PIN, &[]).unwrap();
        signing.join().unwrap().unwrap();
    });
}

#[test]
fn who_locks_a_token_has_it_wait_for_a_person() {
    let stage = Stage::new(programs!());
    let softhsm = SoftHsm::new(&stage);
    softhsm.add_token("mlskeyd");
    let device = softhsm.device("hsm", "mlskeyd");
    let mut scene = Scene::with(stage, softhsm, device);
    let app = scene.app("app", "hsm");
    app.key_package().unwrap();
    let locked = scene.daemon.ctl(&["lock", "hsm"]).unwrap();
    assert_eq!(locked["state"], "locked");
    // The configured PIN is not used by itself.
    let (state, detail) = scene.state();
    assert_eq!(state, "locked");
    assert!(detail.contains("somebody locked it"), "{detail}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| app.key_package());
        scene.unlock(SoftHsm::PIN, &[]).unwrap();
        waiting.join().unwrap().unwrap();
    });
    // A daemon that starts again begins with what is configured.
    scene.daemon.ctl(&["lock", "hsm"]).unwrap();
    scene.daemon.stop();
    scene.daemon.restart(&scene.options);
    scene.await_state("ready");
}

/// Else who gives a wrong PIN takes it for the right one.
#[test]
fn whose_pin_was_not_tried_is_told() {
    let stage = Stage::new(programs!());
    let hsm = FaultyHsm::new(&stage);
    hsm.softhsm().add_token("mlskeyd");
    let device = without_pin(&hsm.device("hsm", "mlskeyd"));
    let scene = Scene::with(stage, hsm.softhsm().clone(), device);
    assert_eq!(scene.state().0, "locked");
    let unlock = |pin: &str| with_input(scene.daemon.ctl_command(&["unlock", "hsm"]), pin);
    let told = |output: &Output| -> serde_json::Value {
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&told["name"], &told["state"]),
            (&"hsm".into(), &"ready".into())
        );
        told["pin_tried"].clone()
    };
    let tried = unlock(SoftHsm::PIN);
    assert_eq!((tried.status.code(), told(&tried)), (Some(0), true.into()));
    let logins = hsm.control().calls(Function::Login);
    for pin in ["31337042", SoftHsm::PIN] {
        let idle = unlock(pin);
        assert_eq!((idle.status.code(), told(&idle)), (Some(5), false.into()));
    }
    let text = with_input(scene.daemon.ctl_for_people(&["unlock", "hsm"]), "31337042");
    assert_eq!(text.status.code(), Some(5));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("the PIN was NOT tried"), "{text}");
    assert_eq!(hsm.control().calls(Function::Login), logins);
}

#[test]
fn a_wrong_pin_of_a_person_reaches_the_token_once() {
    let stage = Stage::new(programs!());
    let hsm = FaultyHsm::new(&stage);
    hsm.softhsm().add_token("mlskeyd");
    let device = without_pin(&hsm.device("hsm", "mlskeyd"));
    let logins = || hsm.control().calls(Function::Login);
    let state = stage.path("daemon/state");
    let mut scene = Scene::with(stage, hsm.softhsm().clone(), device);
    assert_eq!((scene.state().0.as_str(), logins()), ("locked", 0));
    let refused = scene.unlock("31337042", &[]).unwrap_err();
    assert!(refused.contains("the PIN is wrong"), "{refused}");
    for _ in 0..2 {
        assert_eq!(logins(), 1);
        let refused = scene.unlock("31337042", &[]).unwrap_err();
        assert!(refused.contains("give another one"), "{refused}");
        scene.daemon.stop();
        scene.daemon.restart(&scene.options);
    }
    scene.unlock(SoftHsm::PIN, &[]).unwrap();
    assert_eq!(logins(), 2);
    scene.await_state("ready");
    scene.daemon.stop();
    let log = scene.daemon.log();
    for pin in ["31337042", SoftHsm::PIN] {
        assert!(!log.contains(pin));
        assert!(!is_anywhere(&state, pin.as_bytes()), "{pin}");
    }
}

/// Somebody else's program; answers what it says.
pub fn tool(softhsm: &SoftHsm, arguments: &[&str]) -> String {
    let output = Command::new("pkcs11-tool")
        .arg("--module")
        .arg(SoftHsm::module())
        .args(["--token-label", "mlskeyd", "--login", "--pin"])
        .arg(SoftHsm::PIN)
        .args(arguments)
        .envs(softhsm.environment())
        .output()
        .expect("pkcs11-tool (package opensc) starts");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn make_pair(softhsm: &SoftHsm, kind: &str, label: &str, more: &[&str]) {
    let pair = ["--keypairgen", "--key-type", kind, "--label", label];
    tool(softhsm, &[&pair, more].concat());
}

/// A private key that was made elsewhere.
fn import(softhsm: &SoftHsm, label: &str) {
    // ECPrivateKey (RFC 5915), without its public half; any number will do.
    let (head, curve) = ("30310201010420", "a00a06082a8648ce3d030107");
    let der = hex::decode([head, &"42".repeat(32), curve].concat()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key.der");
    std::fs::write(&file, der).unwrap();
    let file = file.to_str().unwrap();
    let key = ["--type", "privkey", "--id", "05", "--label", label];
    tool(
        softhsm,
        &[&["--write-object", file], key.as_slice()].concat(),
    );
}

/// `mlskeyctl identities adopt` for the apps of this user; or why not.
fn adopt(scene: &Scene, name: &str, label: &str, scheme: &str) -> Result<(), String> {
    let owner = format!("{}/default", rustix::process::geteuid().as_raw());
    let mut arguments = vec!["identities", "adopt", &owner, name, "--device", "hsm"];
    arguments.extend(["--label", label, "--scheme", scheme]);
    scene.daemon.ctl(&arguments).map(|_| ())
}

#[test]
fn keys_that_are_there_are_adopted_and_never_touched() {
    let mut scene = Scene::new(&["mlskeyd"], "");
    scene.await_state("ready");
    make_pair(&scene.softhsm, "EC:prime256v1", "work", &["--id", "01"]);
    make_pair(
        &scene.softhsm,
        "EC:edwards25519",
        "edwards",
        &["--id", "02"],
    );
    let foreign = scene.softhsm.files();
    adopt(&scene, "alice", "work", "p256").unwrap();
    adopt(&scene, "bob", "edwards", "ed25519").unwrap();
    let app = |scene: &Scene, name: &str, suite| {
        let provider = CustodyProvider::builder()
            .socket(scene.daemon.socket())
            .storage(name, MemoryStorage::default())
            .device("hsm")
            .build()
            .unwrap();
        let identity = provider.identity(name).unwrap();
        assert_eq!(identity.info().tier, Tier::Hardware);
        App {
            provider,
            identity,
            suite,
        }
    };
    for (name, suite) in [("alice", P256), ("bob", CURVE25519)] {
        app(&scene, name, suite).key_package().unwrap();
    }
    scene.daemon.stop();
    scene.daemon.restart(&scene.options);
    for (name, suite) in [("alice", P256), ("bob", CURVE25519)] {
        app(&scene, name, suite).key_package().unwrap();
    }
    // The old key ends here, and stays there.
    let owner = format!("{}/default", rustix::process::geteuid().as_raw());
    let rotate = ["identities", "rotate", &owner, "alice", "--grace", "0s"];
    scene.daemon.ctl(&rotate).unwrap();
    scene.daemon.ctl(&["keys", "sweep"]).unwrap();
    let keys = scene.daemon.ctl(&["keys"]).unwrap();
    let adopted = keys.as_array().unwrap().iter();
    let adopted: Vec<_> = adopted.filter(|key| key["adopted"] == true).collect();
    assert_eq!(adopted.len(), 1, "{keys}");
    assert_eq!(adopted[0]["identity"], "bob");
    let now = scene.softhsm.files();
    for file in &foreign {
        assert!(now.contains(file), "{:?} was changed", file.0);
    }
    app(&scene, "alice", P256).key_package().unwrap();
}

#[test]
fn an_adoption_that_a_crash_cut_off_is_whole_or_did_not_happen() {
    for (point, is_whole) in [
        ("store.begin_create.after_commit", false),
        ("custody.create.made", false),
        ("store.create_identity.before_commit", false),
        ("store.create_identity.after_commit", true),
    ] {
        let mut scene = Scene::new(&["mlskeyd"], "");
        scene.await_state("ready");
        make_pair(&scene.softhsm, "EC:prime256v1", "work", &["--id", "01"]);
        let foreign = scene.softhsm.files();
        scene.daemon.stop();
        let armed = Options {
            failpoint: Some(point.to_owned()),
            ..scene.options.clone()
        };
        scene.daemon.restart(&armed);
        scene.await_state("ready");
        adopt(&scene, "alice", "work", "p256").expect_err(point);
        scene.daemon.wait();
        scene.daemon.restart(&scene.options);
        scene.await_state("ready");
        let adopted = scene.daemon.ctl(&["identities"]).unwrap();
        assert_eq!(
            adopted.as_array().unwrap().len(),
            usize::from(is_whole),
            "{point}"
        );
        if !is_whole {
            assert_eq!(scene.daemon.ctl(&["keys"]).unwrap(), serde_json::json!([]));
            adopt(&scene, "bob", "work", "p256").unwrap();
        }
        adopt(&scene, "carol", "work", "p256").expect_err("it has an identity");
        for file in &foreign {
            let now = scene.softhsm.files();
            assert!(now.contains(file), "{point}: {:?} was changed", file.0);
        }
    }
}

#[test]
fn keys_that_are_not_suitable_are_not_adopted() {
    let scene = Scene::new(&["mlskeyd"], "");
    scene.await_state("ready");
    let softhsm = &scene.softhsm;
    make_pair(softhsm, "EC:prime256v1", "twice", &["--id", "01"]);
    make_pair(softhsm, "EC:prime256v1", "twice", &["--id", "02"]);
    make_pair(
        softhsm,
        "EC:prime256v1",
        "extractable",
        &["--id", "03", "--extractable"],
    );
    make_pair(softhsm, "EC:secp384r1", "other curve", &["--id", "04"]);
    make_pair(softhsm, "EC:prime256v1", "nameless", &[]);
    import(softhsm, "imported");
    for (label, why) in [
        ("nowhere", "no private key of this label"),
        ("twice", "several"),
        ("extractable", "can be taken from the token"),
        ("other curve", "of another curve"),
        ("nameless", "CKA_ID"),
        ("imported", "could once be read"),
    ] {
        let refused = adopt(&scene, "alice", label, "p256").expect_err(label);
        assert!(refused.contains(why), "{label}: {refused}");
    }
    assert_eq!(scene.daemon.ctl(&["keys"]).unwrap(), serde_json::json!([]));
    assert_eq!(scene.state().0, "ready");
}
