//! A daemon with a TPM: what apps and the administrator meet.

use std::time::Duration;

use mlskeyd_protocol::client::{Call, CallError, Client};
use mlskeyd_protocol::v1::{
    CreateIdentity, Credential, FailureCode, Placement, SecretBytes, Sign, SignatureScheme,
};
use mlskeyd_tests::member::{Member, Seat, client};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, Stage, Swtpm, Tap};
use serde_json::Value;

/// A daemon with the software device and a TPM, on the way to which somebody counts.
struct Scene {
    daemon: Daemon,
    options: Options,
    client: Client,
    tap: Tap,
    tpm: Swtpm,
    stage: Stage,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new(programs!());
        let tpm = Swtpm::new(&stage);
        let tap = Tap::before(&tpm);
        let options = Options {
            extra: Swtpm::device_at("tpm", &tap.tcti()),
            ..Options::default()
        };
        let daemon = Daemon::start(&stage, &options);
        Self {
            client: client(&daemon.socket()),
            daemon,
            options,
            tap,
            tpm,
            stage,
        }
    }

    /// The TPM as `mlskeyctl devices` shows it.
    fn shown(&self) -> Value {
        let devices = self.daemon.ctl(&["devices"]).unwrap();
        let mut devices = devices.as_array().unwrap().iter();
        let tpm = devices.find(|device| device["name"] == "tpm");
        tpm.unwrap().clone()
    }

    /// How many secrets of generations the device has on disk.
    fn generations(&self) -> usize {
        super::life::generations(&self.stage)
    }
}

/// What no TPM that is stopped answers in.
fn soon() -> Call<'static> {
    Call {
        deadline: Duration::from_millis(300),
        ..Call::default()
    }
}

fn create(name: &str) -> CreateIdentity {
    CreateIdentity {
        name: name.to_owned(),
        credential: Credential::Basic(name.as_bytes().into()),
        scheme: SignatureScheme::EcdsaP256Sha256,
        placement: Placement {
            device: Some("tpm".to_owned()),
            tier: None,
        },
    }
}

/// Signs what was signed before.
fn sign(client: &Client, member: &Member, seat: &Seat, call: &Call<'_>) -> Result<(), CallError> {
    let request = Sign {
        key: member.identity.key,
        content: SecretBytes::new(seat.message().to_vec()),
    };
    client.sign(request, call).map(drop)
}

fn is_timeout(error: &CallError) -> bool {
    match error {
        CallError::Timeout => true,
        CallError::Failure(failure) => failure.code == FailureCode::Timeout,
        _ => false,
    }
}

/// Whoever may use the daemon can have keys made, and go away in the middle of it.
#[test]
fn what_is_given_up_while_it_is_made_does_not_wear_out_the_tpm() {
    let scene = Scene::new();
    let member = Member::new(&scene.client, "alice", "tpm");
    let seat = Seat::take(&member, &scene.client);
    let (writes, generations) = (scene.tap.writes(), scene.generations());
    for number in 0..4 {
        scene.tpm.pause();
        let refused = scene
            .client
            .create_identity(create(&number.to_string()), &soon());
        scene.tpm.resume();
        assert!(is_timeout(&refused.unwrap_err()));
        sign(&scene.client, &member, &seat, &Call::default()).unwrap();
    }
    // What was begun is taken back by now, or it is with this.
    scene.daemon.ctl(&["keys", "sweep"]).unwrap();
    assert_eq!(scene.generations(), generations);
    assert_eq!(scene.tap.writes(), writes);
    let listed = scene.daemon.ctl(&["identities"]).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
}

/// No call of TSS has a time limit.
#[test]
fn a_tpm_that_hangs_holds_its_own_callers_and_nothing_else() {
    let mut scene = Scene::new();
    let member = Member::new(&scene.client, "alice", "tpm");
    let seat = Seat::take(&member, &scene.client);
    let other = Member::new(&scene.client, "bob", "software");
    let other_seat = Seat::take(&other, &scene.client);
    scene.tpm.pause();
    for _ in 0..2 {
        let late = sign(&scene.client, &member, &seat, &soon()).unwrap_err();
        assert!(is_timeout(&late), "{late}");
        other_seat.speak(&scene.client);
        let late = scene.client.create_identity(create("carol"), &soon());
        assert!(is_timeout(&late.unwrap_err()));
    }
    // Nobody knows that it hangs: it may be slow.
    assert_eq!(scene.shown()["state"], "ready");
    scene.daemon.stop();
    assert!(scene.daemon.log().contains("left behind"));

    scene.tpm.resume();
    scene.daemon.restart(&scene.options);
    let client = client(&scene.daemon.socket());
    sign(&client, &member, &seat, &Call::default()).unwrap();
}
