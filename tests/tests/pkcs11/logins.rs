//! Logins: where a PIN comes from, and that none is tried where a try may cost the
//! token.

use std::collections::HashSet;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mlskeyd::devices::{Algorithm, GenerationId, KeyId, NewKey, PeerPublic, Tier};
use mlskeyd_faulty_module::{CKR_PIN_LOCKED, CKR_USER_NOT_LOGGED_IN, Control, Fault, Function};
use mlskeyd_protocol::client::{Call, CallError, Client};
use mlskeyd_protocol::v1::{
    CreateIdentity, Credential, FailureCode, GenerateHpke, Interaction, Placement,
};
use mlskeyd_tests::member::{Member, Seat, client};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{FaultyHsm, SoftHsm, Stage};
use mlskeyd_tests::suite::SUITE_2;

use super::bench::Bench;
use super::scene::{Scene, without_pin};

const WRONG: &str = "31337042";

/// A token whose module does what the test says.
struct Faulty {
    scene: Scene,
    hsm: FaultyHsm,
}

impl Faulty {
    /// The daemon starts after `before`; with more devices.
    fn new(before: impl FnOnce(&Control), more: impl FnOnce(&SoftHsm) -> String) -> Self {
        let stage = Stage::new(programs!());
        let hsm = FaultyHsm::new(&stage);
        hsm.softhsm().add_token("mlskeyd");
        before(hsm.control());
        let devices = hsm.device("hsm", "mlskeyd") + &more(hsm.softhsm());
        Self {
            scene: Scene::with(stage, hsm.softhsm().clone(), devices),
            hsm,
        }
    }

    fn logins(&self) -> u64 {
        self.hsm.control().calls(Function::Login)
    }
}

fn set_mode(file: &Path, mode: u32) {
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_pin_comes_from_a_credential_of_the_service_manager() {
    let stage = Stage::new(programs!());
    let softhsm = SoftHsm::new(&stage);
    softhsm.add_token("mlskeyd");
    let credentials = stage.path("credentials");
    std::fs::create_dir(&credentials).unwrap();
    let file = credentials.join("hsm-pin");
    let device = without_pin(&softhsm.device("hsm", "mlskeyd"));
    let device = device + "pin_credential = \"hsm-pin\"\n";
    let mut scene = Scene::with(stage, softhsm, device);
    let restart = |scene: &mut Scene, credentials: Option<PathBuf>| {
        scene.options.credentials = credentials;
        scene.daemon.stop();
        scene.daemon.restart(&scene.options);
        scene.state()
    };
    let (state, detail) = scene.state();
    assert_eq!(state, "locked");
    assert!(detail.contains("start the daemon by its unit"), "{detail}");
    let (state, detail) = restart(&mut scene, Some(credentials.clone()));
    assert_eq!(state, "locked");
    assert!(detail.contains("does not exist"), "{detail}");

    // As systemd passes it: the group's bits are the mask of an access control list.
    std::fs::write(&file, SoftHsm::PIN).unwrap();
    set_mode(&file, 0o440);
    scene.await_state("ready");
    scene.app("app", "hsm").key_package().unwrap();
    let environment = format!("/proc/{}/environ", scene.helper().as_raw_nonzero());
    let environment = std::fs::read(environment).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(environment.contains("SOFTHSM2_CONF"), "{environment}");
    assert!(!environment.contains("CREDENTIALS"), "{environment}");
    let (state, detail) = restart(&mut scene, Some(credentials.clone()));
    assert_eq!(state, "ready", "{detail}");

    set_mode(&file, 0o444);
    let (state, detail) = restart(&mut scene, Some(credentials.clone()));
    assert_eq!(state, "locked");
    assert!(detail.contains("its permissions are 0444"), "{detail}");
    set_mode(&file, 0o600);
    scene.await_state("ready");
    std::fs::write(&file, WRONG).unwrap();
    for why in ["the PIN is wrong", "give another one"] {
        let (state, detail) = restart(&mut scene, Some(credentials.clone()));
        assert_eq!(state, "locked");
        assert!(detail.contains(why), "{detail}");
    }
}

#[test]
fn a_tokens_last_try_is_left_to_a_person_who_insists() {
    let mut hsm = Faulty::new(|control| control.set_pin_final_try(true), |_| String::new());
    for _ in 0..2 {
        let (state, detail) = hsm.scene.state();
        assert_eq!(state, "locked");
        assert!(detail.contains("mlskeyctl unlock --last-try"), "{detail}");
        let refused = hsm.scene.unlock(SoftHsm::PIN, &[]).unwrap_err();
        assert!(refused.contains("--last-try"), "{refused}");
        let refused = create_identity(&client(&hsm.scene.daemon.socket()));
        assert_eq!(refused, Err(FailureCode::InteractionRequired));
        hsm.scene.daemon.stop();
        hsm.scene.daemon.restart(&hsm.scene.options);
    }
    assert_eq!(hsm.logins(), 0);
    hsm.scene.unlock(SoftHsm::PIN, &["--last-try"]).unwrap();
    assert_eq!(hsm.logins(), 1);
    // It is no matter of a token that is logged in.
    let app = hsm.scene.app("app", "hsm");
    app.key_package().unwrap();
    hsm.hsm.control().set_pin_final_try(false);
    app.key_package().unwrap();
    assert_eq!(hsm.logins(), 1);
}

/// Asks for an identity on the token, and does not wait for a person.
fn create_identity(client: &Client) -> Result<(), FailureCode> {
    let request = CreateIdentity {
        name: "app".to_owned(),
        credential: Credential::Basic(b"app".as_slice().into()),
        scheme: SUITE_2.scheme,
        placement: on_the_token(),
    };
    let call = Call {
        interaction: Interaction::Never,
        ..Call::default()
    };
    code(client.create_identity(request, &call)).map(|_| ())
}

fn on_the_token() -> Placement {
    Placement {
        device: Some("hsm".to_owned()),
        tier: None,
    }
}

fn code<T>(result: Result<T, CallError>) -> Result<T, FailureCode> {
    result.map_err(|error| match error {
        CallError::Failure(failure) => failure.code,
        other => panic!("{other}"),
    })
}

#[test]
fn a_token_whose_pin_is_locked_is_left_alone_until_it_is_reset() {
    let mut hsm = Faulty::new(|control| control.set_pin_locked(true), |_| String::new());
    for _ in 0..2 {
        let (state, detail) = hsm.scene.state();
        assert_eq!(state, "locked");
        assert!(detail.contains("has locked its PIN"), "{detail}");
        for insists in [&[][..], &["--last-try"]] {
            let refused = hsm.scene.unlock(SoftHsm::PIN, insists).unwrap_err();
            assert!(refused.contains("has locked its PIN"), "{refused}");
        }
        hsm.scene.daemon.stop();
        hsm.scene.daemon.restart(&hsm.scene.options);
    }
    assert_eq!(hsm.logins(), 0);
    // The vendor's tool.
    hsm.hsm.control().set_pin_locked(false);
    hsm.scene.await_state("ready");
    assert_eq!(hsm.logins(), 1);
    hsm.scene.app("app", "hsm").key_package().unwrap();
}

#[test]
fn a_token_that_tells_of_its_locked_pin_at_login_only_is_asked_once() {
    let locked = Fault::Error(CKR_PIN_LOCKED);
    let arm = |control: &Control| control.arm(Function::Login, locked, 0, u32::MAX);
    let mut hsm = Faulty::new(arm, |_| String::new());
    for why in [
        "has locked its PIN",
        "without an answer",
        "without an answer",
    ] {
        let (state, detail) = hsm.scene.state();
        assert_eq!(state, "locked");
        assert!(detail.contains(why), "{detail}");
        assert!(detail.contains("mlskeyctl unlock"), "{detail}");
        hsm.scene.daemon.stop();
        hsm.scene.daemon.restart(&hsm.scene.options);
    }
    assert_eq!(hsm.logins(), 1);
    hsm.hsm.control().disarm(Function::Login);
    hsm.scene.unlock(SoftHsm::PIN, &[]).unwrap();
    hsm.scene.app("app", "hsm").key_package().unwrap();
}

/// With a second token, by a helper of its own.
fn beside_another() -> Faulty {
    let hsm = Faulty::new(
        |_| {},
        |softhsm| {
            softhsm.add_token("second");
            softhsm.device("second", "second")
        },
    );
    hsm.scene.await_state("ready");
    hsm
}

#[test]
fn a_token_that_somebody_else_logged_out_is_logged_in_again_and_no_other_is_touched() {
    let hsm = beside_another();
    let other = hsm.scene.app("other", "second");
    let helpers: HashSet<_> = hsm.scene.daemon.children().into_iter().collect();
    let client = client(&hsm.scene.daemon.socket());
    let member = Member::new(&client, "alice", "hsm");
    let seat = Seat::take(&member, &client);
    let control = hsm.hsm.control();
    let not_logged_in = Fault::Error(CKR_USER_NOT_LOGGED_IN);
    for (function, said) in [
        (Function::SignInit, None),
        (Function::SignInit, Some(not_logged_in)),
        (Function::DeriveKey, None),
        (Function::DeriveKey, Some(not_logged_in)),
        (Function::GenerateKeyPair, None),
        (Function::GenerateKeyPair, Some(not_logged_in)),
    ] {
        let before = hsm.logins();
        control.log_out();
        if let Some(fault) = said {
            control.arm(function, fault, 0, 1);
        }
        other.key_package().unwrap();
        match function {
            Function::SignInit => drop(seat.speak(&client)),
            Function::DeriveKey => seat.open(&client),
            _ => {
                // Making is not repeated.
                let request = GenerateHpke {
                    kem: SUITE_2.kem,
                    placement: on_the_token(),
                };
                let first = code(client.generate_hpke(request, &Call::default()));
                assert_eq!(first, Err(FailureCode::DeviceAbsent));
                member.generate(&client);
            }
        }
        assert_eq!(hsm.logins(), before + 1, "{function:?}, {said:?}");
        seat.speak(&client);
        seat.open(&client);
        member.key_package(&client);
        other.key_package().unwrap();
        assert_eq!(hsm.logins(), before + 1, "{function:?}, {said:?}");
    }
    let now: HashSet<_> = hsm.scene.daemon.children().into_iter().collect();
    assert_eq!(now, helpers, "no helper was started again");
}

/// It could be another key's by then.
#[test]
fn no_handle_of_before_a_login_is_used_after_it() {
    let stage = Stage::new(programs!());
    let hsm = FaultyHsm::new(&stage);
    hsm.softhsm().add_token("mlskeyd");
    let mut bench = Bench::new(&stage, hsm.library(), "mlskeyd");
    bench.token.call_timeout = Duration::from_secs(2);
    let mut hand = bench.open();
    let mut other = hand.more_hands().remove(0);
    let generation = GenerationId::from_bytes([1; 16]);
    let generator = hand.generator().unwrap();
    generator.create_generation(generation).unwrap();
    let mut make = |n: u8, algorithm| {
        let request = NewKey {
            id: KeyId::from_bytes([n; 16]),
            algorithm,
            tier: Tier::Hardware,
            generation,
        };
        generator.generate(request).unwrap()
    };
    let signs = make(1, Algorithm::Signature(SUITE_2.scheme));
    let [opens, peer] = [2, 3].map(|n| make(n, Algorithm::Hpke(SUITE_2.kem)));
    let peer = PeerPublic::parse(SUITE_2.kem, &peer.public).unwrap();
    hand.agreement().unwrap().agree(&opens, &peer).unwrap();

    // One session lives on, and with it what the helper remembers.
    let control = hsm.control();
    control.arm(Function::Sign, Fault::Hang, 0, 1);
    let hanging = std::thread::spawn(move || hand.signer().unwrap().sign(&signs, b"text"));
    while control.hits_in(Function::Sign) == 0 {
        std::thread::yield_now();
    }
    control.log_out();
    let before = [Function::Login, Function::DeriveKey].map(|it| control.calls(it));
    other.agreement().unwrap().agree(&opens, &peer).unwrap();
    let after = [Function::Login, Function::DeriveKey].map(|it| control.calls(it));
    assert_eq!(after, before.map(|calls| calls + 1));
    hanging.join().unwrap().unwrap();
}

#[test]
fn a_token_that_was_logged_out_sees_a_wrong_pin_once() {
    let hsm = beside_another();
    let apps: Vec<_> = (0..4)
        .map(|n| hsm.scene.app(&format!("app {n}"), "hsm"))
        .collect();
    let other = hsm.scene.app("other", "second");
    for app in apps.iter().chain([&other]) {
        app.key_package().unwrap();
    }
    let pin = hsm.scene.softhsm.pin_file();
    // The other token has it already.
    std::fs::write(pin, WRONG).unwrap();
    let before = hsm.logins();
    hsm.hsm.control().log_out();
    std::thread::scope(|scope| {
        for app in &apps {
            scope.spawn(|| {
                for _ in 0..3 {
                    let refused = app.key_package().unwrap_err();
                    assert!(!refused.contains("cannot come back"), "{refused}");
                }
            });
        }
        other.key_package().unwrap();
    });
    let (state, detail) = hsm.scene.state();
    assert_eq!(state, "locked");
    assert!(detail.contains("PIN"), "{detail}");
    let refused = hsm.scene.unlock(WRONG, &[]).unwrap_err();
    assert!(refused.contains("give another one"), "{refused}");
    assert_eq!(hsm.logins(), before + 1);
    std::fs::write(pin, SoftHsm::PIN).unwrap();
    hsm.scene.await_state("ready");
    for app in &apps {
        app.key_package().unwrap();
    }
    assert_eq!(hsm.logins(), before + 2);
    other.key_package().unwrap();
}

#[test]
fn a_pin_file_that_is_not_private_is_refused_until_that_is_put_right() {
    let mut scene = Scene::new(&["mlskeyd"], "");
    scene.await_state("ready");
    let app = scene.app("app", "hsm");
    let pin = scene.softhsm.pin_file().to_owned();
    let us = rustix::process::geteuid();
    // Only root gives files away.
    let nobody = us.is_root().then_some(65_534);
    let modes = [0o644, 0o640, 0o620].map(|mode| (mode, None));
    for (mode, owner) in modes
        .into_iter()
        .chain(nobody.map(|uid| (0o600, Some(uid))))
    {
        scene.daemon.stop();
        set_mode(&pin, mode);
        if let Some(owner) = owner {
            chown(&pin, Some(owner), None).unwrap();
        }
        scene.daemon.restart(&scene.options);
        let (state, detail) = scene.state();
        assert_eq!(state, "locked", "{mode:o}");
        let what = match owner {
            Some(uid) => format!("belongs to user {uid}"),
            None => format!("permissions are {mode:04o}"),
        };
        assert!(detail.contains(&what), "{detail}");
        assert!(detail.contains("mode 0600"), "{detail}");
        let refused = app.key_package().unwrap_err();
        assert!(refused.contains("device hsm is locked"), "{refused}");
        set_mode(&pin, 0o600);
        chown(&pin, Some(us.as_raw()), None).unwrap();
        // Without a restart.
        scene.await_state("ready");
        app.key_package().unwrap();
    }
}
