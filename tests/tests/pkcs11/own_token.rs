//! A device works with its own token, and with no other of that name.

use std::path::PathBuf;

use mlskeyd_faulty_module::Function;
use mlskeyd_tests::rig::{Daemon, FaultyHsm, Options, SoftHsm, Stage};
use mlskeyd_tests::{failpoints, programs};

use super::scene::{App, Scene};

/// A token that somebody resets, and on which something waits to be destroyed.
struct House {
    scene: Scene,
    hsm: FaultyHsm,
    /// With its signature key on the token.
    app: App,
    /// The serial numbers of the token, and of the one in its place.
    serials: [String; 2],
}

const LIFETIMES: &str = "[lifetimes]\ngrace = \"0s\"\norphan_grace = \"0s\"\n";

impl House {
    fn new(pin_of_newcomer: &str) -> Self {
        let stage = Stage::new(programs!());
        let hsm = FaultyHsm::new(&stage);
        let softhsm = hsm.softhsm().clone();
        softhsm.add_token("mlskeyd");
        let own = serial(&softhsm);
        let extra = hsm.device("hsm", "mlskeyd") + LIFETIMES;
        let scene = Scene::with(stage, softhsm.clone(), extra);
        let app = scene.app("app", "hsm");
        scene.app("doomed", "hsm").key_package().unwrap();
        softhsm.unplug();
        softhsm.add_token_with_pin("mlskeyd", pin_of_newcomer);
        let serials = [own, serial(&softhsm)];
        assert_ne!(serials[0], serials[1]);
        // While it is away, or another one is there.
        let owner = format!("{}/default", rustix::process::geteuid().as_raw());
        let forget = ["storage", "forget", &owner, "doomed", "--yes"];
        scene.daemon.ctl(&forget).unwrap();
        let house = Self {
            scene,
            hsm,
            app,
            serials,
        };
        while house.keys("hsm") > 2 {
            house.sweep();
        }
        house
    }

    /// Destroys what is due; answers for how many generations the token is needed.
    fn sweep(&self) -> u64 {
        let swept = self.scene.daemon.ctl(&["keys", "sweep"]).unwrap();
        swept["stuck"].as_u64().unwrap()
    }

    /// Keys on a device that are not destroyed.
    fn keys(&self, device: &str) -> usize {
        let keys = self.scene.daemon.ctl(&["keys"]).unwrap();
        let keys = keys.as_array().unwrap().iter();
        keys.filter(|key| key["device"] == device).count()
    }

    fn logins(&self) -> u64 {
        self.hsm.control().calls(Function::Login)
    }

    fn restart(&mut self) {
        self.scene.daemon.stop();
        self.scene.daemon.restart(&self.scene.options);
    }

    fn assert_refused(&self) {
        self.scene.await_state("failed");
        let (_, detail) = self.scene.state();
        for part in [
            &format!("{:?}", self.serials[0]),
            &format!("{:?}", self.serials[1]),
            "`mlskeyctl devices accept hsm`",
        ] {
            assert!(detail.contains(part), "no {part} in {detail}");
        }
    }
}

fn serial(softhsm: &SoftHsm) -> String {
    let serials = softhsm.serials();
    let [serial] = serials.as_slice() else {
        panic!("{serials:?}")
    };
    serial.clone()
}

/// `mlskeyctl devices accept`; or why not.
fn accept(daemon: &Daemon) -> Result<serde_json::Value, String> {
    daemon.ctl(&["devices", "accept", "hsm", "--yes"])
}

fn note(daemon: &Daemon) -> PathBuf {
    daemon.state().join("devices/hsm/token")
}

#[test]
fn a_token_that_was_reset_is_not_tried_and_nothing_is_gone_with_the_old_one() {
    let mut house = House::new(SoftHsm::PIN);
    let logins = house.logins();
    let other = house.scene.app("other", "software");
    // Nothing is told of it before somebody asks.
    while house.scene.state().0 != "failed" {
        house.app.key_package().unwrap_err();
    }
    for _ in 0..2 {
        house.assert_refused();
        let refused = house.app.key_package().unwrap_err();
        assert!(refused.contains("device hsm"), "{refused}");
        let refused = house.scene.unlock(SoftHsm::PIN, &[]).unwrap_err();
        assert!(
            refused.contains("mlskeyctl devices accept hsm"),
            "{refused}"
        );
        assert_eq!(house.sweep(), 1, "what waited for the old token");
        assert_eq!(house.keys("hsm"), 2);
        other.key_package().unwrap();
        house.scene.daemon.ctl(&["status"]).unwrap();
        house.restart();
    }
    assert_eq!(house.logins(), logins, "no PIN was tried on it");

    let softhsm = house.hsm.softhsm();
    softhsm.exchange();
    house.scene.await_state("ready");
    house.app.key_package().unwrap();
    while house.sweep() > 0 {}
}

#[test]
fn another_token_takes_the_place_of_the_old_one_when_somebody_says_so() {
    let mut house = House::new(SoftHsm::PIN);
    house.restart();
    house.assert_refused();
    let logins = house.logins();
    let refused = house.scene.daemon.ctl(&["devices", "accept", "hsm"]);
    assert!(refused.unwrap_err().contains("--yes"));
    assert_eq!(house.scene.notes("AcceptDevice"), Vec::<String>::new());

    let accepted = accept(&house.scene.daemon).unwrap();
    assert_eq!(accepted["device"]["state"], "ready", "{accepted}");
    assert_eq!(accepted["before"], house.serials[0]);
    assert_eq!(accepted["serial"], house.serials[1]);
    assert!(house.logins() > logins);
    let replaced = house.scene.notes("ReplaceToken");
    let [note] = replaced.as_slice() else {
        panic!("{replaced:?}")
    };
    for part in [&house.serials[0], &house.serials[1], "counts as destroyed"] {
        assert!(note.contains(part), "no {part} in {note}");
    }
    assert_eq!(house.scene.notes("AcceptDevice").len(), 1);

    // What waited counts as destroyed, and what lives is missing.
    while house.sweep() > 0 {}
    assert_eq!(house.keys("hsm"), 2);
    let missing = house.app.key_package().unwrap_err();
    assert!(missing.contains("does not exist"), "{missing}");
    house.scene.app("new", "hsm").key_package().unwrap();
    let again = accept(&house.scene.daemon).unwrap_err();
    assert!(again.contains("is the device's own"), "{again}");

    // From now on the old one is the foreign one.
    house.restart();
    house.scene.await_state("ready");
    house.hsm.softhsm().exchange();
    house.restart();
    house.assert_refused();
}

#[test]
fn what_the_old_token_said_of_a_pin_is_nothing_to_the_new_one() {
    let mut house = House::new("161803");
    house.hsm.softhsm().exchange();
    house.scene.daemon.stop();
    std::fs::write(house.scene.softhsm.pin_file(), "161803").unwrap();
    house.scene.daemon.restart(&house.scene.options);
    house.scene.await_state("locked");
    house.hsm.softhsm().exchange();
    house.restart();
    house.assert_refused();
    let accepted = accept(&house.scene.daemon).unwrap();
    assert_eq!(accepted["device"]["state"], "ready", "{accepted}");
}

/// A token with a key on it.
fn token_with_a_key() -> (Scene, FaultyHsm, App) {
    let stage = Stage::new(programs!());
    let hsm = FaultyHsm::new(&stage);
    hsm.softhsm().add_token("mlskeyd");
    let extra = hsm.device("hsm", "mlskeyd");
    let scene = Scene::with(stage, hsm.softhsm().clone(), extra);
    let app = scene.app("app", "hsm");
    (scene, hsm, app)
}

#[test]
fn without_the_note_of_its_own_token_a_device_with_keys_takes_none() {
    let (mut scene, hsm, app) = token_with_a_key();
    let note = note(&scene.daemon);
    let kept = note.with_extension("kept");
    let forged = |good: &[u8]| [&good[..good.len() - 1], b"?"].concat();
    for (lost, why) in [(false, "was changed"), (true, "does not exist")] {
        scene.daemon.stop();
        std::fs::rename(&note, &kept).unwrap();
        if !lost {
            std::fs::copy(&kept, &note).unwrap();
            std::fs::write(&note, forged(&std::fs::read(&kept).unwrap())).unwrap();
        }
        let logins = hsm.control().calls(Function::Login);
        scene.daemon.restart(&scene.options);
        scene.await_state("failed");
        let (_, detail) = scene.state();
        for part in [why, "devices/hsm/token", "`mlskeyctl devices accept`"] {
            assert!(detail.contains(part), "no {part} in {detail}");
        }
        app.key_package().unwrap_err();
        scene.unlock(SoftHsm::PIN, &[]).unwrap_err();
        assert_eq!(hsm.control().calls(Function::Login), logins);
        // It is seen when it is back.
        std::fs::rename(&kept, &note).unwrap();
        scene.await_state("ready");
        app.key_package().unwrap();
    }

    scene.daemon.stop();
    std::fs::remove_file(&note).unwrap();
    scene.daemon.restart(&scene.options);
    let accepted = accept(&scene.daemon).unwrap();
    assert_eq!(accepted["before"], serde_json::Value::Null);
    assert_eq!(accepted["device"]["state"], "ready");
    app.key_package().unwrap();
}

#[test]
fn a_device_without_keys_begins_with_whichever_token_is_there() {
    let mut scene = Scene::new(&["mlskeyd"], "");
    scene.await_state("ready");
    scene.daemon.stop();
    std::fs::remove_file(note(&scene.daemon)).unwrap();
    scene.softhsm.unplug();
    scene.softhsm.add_token("mlskeyd");
    scene.daemon.restart(&scene.options);
    scene.await_state("ready");
    scene.app("app", "hsm").key_package().unwrap();
}

#[test]
fn of_two_tokens_of_one_label_the_devices_own_is_taken() {
    let (mut scene, _hsm, app) = token_with_a_key();
    scene.softhsm.add_token("mlskeyd");
    scene.daemon.stop();
    scene.daemon.restart(&scene.options);
    scene.await_state("ready");
    app.key_package().unwrap();
}

#[test]
fn the_configuration_alone_does_not_change_a_devices_token() {
    let stage = Stage::new(programs!());
    let hsm = FaultyHsm::new(&stage);
    let softhsm = hsm.softhsm().clone();
    softhsm.add_token("first");
    softhsm.add_token("second");
    let serials = softhsm.serials();
    let device = |serial: &str| {
        let device = hsm.device("hsm", "first");
        device.replace("token = \"first\"", &format!("serial = {serial:?}"))
    };
    let mut scene = Scene::with(stage, softhsm, device(&serials[0]));
    let app = scene.app("app", "hsm");
    let logins = hsm.control().calls(Function::Login);
    scene.daemon.stop();
    scene.options.extra = device(&serials[1]);
    scene.daemon.restart(&scene.options);
    scene.await_state("failed");
    let (_, detail) = scene.state();
    assert!(
        detail.contains("`mlskeyctl devices accept hsm`"),
        "{detail}"
    );
    app.key_package().unwrap_err();
    assert_eq!(hsm.control().calls(Function::Login), logins);

    scene.daemon.stop();
    scene.options.extra = device(&serials[0]);
    scene.daemon.restart(&scene.options);
    scene.await_state("ready");
    app.key_package().unwrap();
    scene.daemon.stop();
    scene.options.extra = device(&serials[1]);
    scene.daemon.restart(&scene.options);
    let accepted = accept(&scene.daemon).unwrap();
    assert_eq!(accepted["device"]["state"], "ready", "{accepted}");
}

/// Waits for the daemon's death, or until its token is ready.
fn dies(scene: &mut Scene) -> bool {
    let is_ready = |devices: &serde_json::Value| {
        let mut devices = devices.as_array().unwrap().iter();
        devices.any(|device| device["name"] == "hsm" && device["state"] == "ready")
    };
    loop {
        match scene.daemon.ctl(&["devices"]) {
            Err(_) => {
                scene.daemon.wait();
                return true;
            }
            Ok(devices) if is_ready(&devices) => return false,
            Ok(_) => std::thread::yield_now(),
        }
    }
}

#[test]
fn a_crash_while_the_own_token_is_noted_leaves_it_noted_or_not() {
    for point in failpoints::OF_TOKENS {
        let mut deaths = 0;
        loop {
            let mut scene = Scene::new(&["mlskeyd"], "");
            // As at the first start.
            scene.daemon.kill();
            std::fs::remove_dir_all(scene.daemon.state()).unwrap();
            let armed = Options {
                failpoint: Some(format!("{point}:{}", deaths + 1)),
                ..scene.options.clone()
            };
            // It may die before it serves.
            if scene.daemon.try_restart(&armed).is_ok() && !dies(&mut scene) {
                break;
            }
            deaths += 1;
            scene.daemon.restart(&scene.options);
            if scene.state().0 == "locked" {
                // In the middle of the first login with that PIN.
                scene.unlock(SoftHsm::PIN, &[]).unwrap();
            }
            scene.await_state("ready");
            scene.app("app", "hsm").key_package().unwrap();
        }
        // The policies, that a PIN is tried, that it was right, and the token.
        assert_eq!(deaths, 4, "{point}");

        let mut house = House::new(SoftHsm::PIN);
        house.scene.daemon.stop();
        let armed = Options {
            failpoint: Some((*point).to_owned()),
            ..house.scene.options.clone()
        };
        house.scene.daemon.restart(&armed);
        house.assert_refused();
        accept(&house.scene.daemon).unwrap_err();
        house.scene.daemon.wait();
        house.scene.daemon.restart(&house.scene.options);
        // The old one or the new one, and nothing else.
        if house.scene.state().0 == "failed" {
            house.assert_refused();
            accept(&house.scene.daemon).unwrap();
        }
        house.scene.await_state("ready");
    }
}
