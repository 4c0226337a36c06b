//! A daemon with a TPM: what apps and the administrator meet.

use std::collections::BTreeSet;
use std::time::Duration;

use mlskeyd::audit::{AuditOutcome, Entries, FILE_NAME};
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
    _stage: Stage,
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
            _stage: stage,
        }
    }

    /// The TPM as `mlskeyctl devices` shows it.
    fn shown(&self) -> Value {
        let devices = self.daemon.ctl(&["devices"]).unwrap();
        let mut devices = devices.as_array().unwrap().iter();
        let tpm = devices.find(|device| device["name"] == "tpm");
        tpm.unwrap().clone()
    }

    /// The states of the keys on a device, as `mlskeyctl keys` shows them.
    fn states(&self, device: &str) -> BTreeSet<String> {
        let keys = self.daemon.ctl(&["keys"]).unwrap();
        let keys = keys.as_array().unwrap().iter();
        let of_it = keys.filter(|key| key["device"] == device);
        of_it
            .map(|key| key["state"].as_str().unwrap().to_owned())
            .collect()
    }

    /// What is noted in the last record of an action.
    fn note(&self, action: &str) -> String {
        let entries = Entries::open(&self.daemon.state().join(FILE_NAME)).unwrap();
        let records = entries.map(|entry| entry.unwrap().record);
        let last = records.filter(|record| record.action == action).last();
        match last.unwrap().outcome {
            AuditOutcome::Noted { note } => note.into_owned(),
            other => panic!("{other:?}"),
        }
    }

    /// How many secrets of generations the device has on disk.
    fn generations(&self) -> usize {
        super::bench::generations(&self.daemon.state().join("devices/tpm"))
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

fn code(result: Result<(), CallError>) -> (FailureCode, String) {
    match result.unwrap_err() {
        CallError::Failure(failure) => (failure.code, failure.to_string()),
        other => panic!("{other}"),
    }
}

/// What clearing costs is shown, and no more than that.
#[test]
fn keys_of_a_cleared_tpm_are_missing_and_their_identities_go_on_elsewhere() {
    let mut scene = Scene::new();
    let member = Member::new(&scene.client, "alice", "tpm");
    let seat = Seat::take(&member, &scene.client);
    let other = Member::new(&scene.client, "bob", "software");
    let other_seat = Seat::take(&other, &scene.client);
    let before = scene.states("tpm");
    assert!(!before.contains("missing"), "{before:?}");
    scene.daemon.stop();
    scene.tpm.tool(&["clear"]);
    scene.daemon.restart(&scene.options);

    let client = client(&scene.daemon.socket());
    let (missing, text) = code(sign(&client, &member, &seat, &Call::default()));
    assert_eq!(missing, FailureCode::KeyMissing, "{text}");
    assert!(text.contains("the TPM was cleared"), "{text}");
    let making = client.create_identity(create("carol"), &Call::default());
    assert_eq!(code(making.map(drop)).0, FailureCode::DeviceFailed);
    other_seat.speak(&client);
    let missing = BTreeSet::from(["missing".to_owned()]);
    assert_eq!(scene.states("tpm"), missing);
    assert!(scene.states("software").is_disjoint(&missing));
    let shown = scene.shown();
    assert_eq!(shown["state"], "failed");
    let detail = shown["detail"].as_str().unwrap();
    for words in ["the TPM was cleared", "devices accept", "identities rotate"] {
        assert!(detail.contains(words), "{detail}");
    }

    let owner = format!("{}/default", rustix::process::geteuid().as_raw());
    let rotate = |name, device| ["identities", "rotate", &owner, name, "--device", device];
    let lower = ["--tier", "software"];
    let rotated = [&rotate("alice", "software")[..], &lower].concat();
    let rotated = scene.daemon.ctl(&rotated).unwrap();
    assert_eq!(rotated["device"], "software", "{rotated}");

    let accept = ["devices", "accept", "tpm", "--yes"];
    let accepted = scene.daemon.ctl(&accept).unwrap();
    assert_ne!(accepted["before"], accepted["serial"]);
    assert_eq!(accepted["device"]["state"], "ready");
    let note = scene.note("ReplaceToken");
    assert!(
        note.contains("the TPM with serial") && note.contains("lost, even if"),
        "{note}"
    );
    let again = scene.daemon.ctl(&accept).unwrap_err();
    assert!(again.contains("is the device's own"), "{again}");
    // What was under the other root does not come back.
    assert_eq!(scene.states("tpm"), missing);
    let (gone, text) = code(sign(&client, &member, &seat, &Call::default()));
    assert_eq!(gone, FailureCode::KeyMissing, "{text}");
    assert!(text.contains("before another TPM was accepted"), "{text}");
    scene.daemon.ctl(&rotate("bob", "tpm")).unwrap();
    assert!(scene.states("tpm").contains("active"));
}
