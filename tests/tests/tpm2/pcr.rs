//! A daemon whose keys are bound to what the machine has measured, and those who
//! look after it.

use std::path::{Path, PathBuf};

use mlskeyd::audit::{AuditOutcome, Entries, FILE_NAME, Record};
use mlskeyd_protocol::client::{Call, CallError, Client};
use mlskeyd_protocol::v1::{FailureCode, SecretBytes, Sign};
use mlskeyd_tests::member::{Member, Seat, client};
use mlskeyd_tests::mls_run::{Plan, Remains, Run, seed};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, Recovery, Stage, Swtpm};
use openmls::prelude::Ciphersuite;

/// A machine, and the holder of its recovery key.
struct Machine {
    daemon: Daemon,
    options: Options,
    tpm: Swtpm,
    recovery: Recovery,
    stage: Stage,
}

impl Machine {
    fn new() -> Self {
        let stage = Stage::new(programs!());
        let tpm = Swtpm::new(&stage);
        let recovery = Recovery::new(&stage, "recovery");
        let options = Options {
            extra: tpm.device("tpm") + &recovery.device(&[7]),
            ..Options::default()
        };
        Self {
            daemon: Daemon::start(&stage, &options),
            options,
            tpm,
            recovery,
            stage,
        }
    }

    fn client(&self) -> Client {
        client(&self.daemon.socket())
    }

    /// The daemon, after a start of the machine with this firmware.
    fn start_with(&mut self, firmware: u8) {
        self.daemon.stop();
        assert_eq!(self.tpm.loaded(), [""; 0], "nothing of ours is left");
        self.tpm.kill();
        self.tpm.start();
        self.tpm.measure(7, firmware);
        self.daemon.restart(&self.options);
    }

    /// `mlskeyctl devices measurements`, with what is to be signed in a file of this
    /// name.
    fn request(&self, name: &str) -> PathBuf {
        let path = self.stage.path(name);
        let arguments = ["devices", "measurements", "tpm", "--out"];
        let json = self.daemon.ctl(&[&arguments[..], &[text(&path)]].concat());
        let json = json.unwrap();
        let written = std::fs::read(&path).unwrap();
        assert_eq!(json["to_sign"], hex::encode(&written));
        assert_eq!(written.len(), 64);
        path
    }

    fn approve(&self, signature: &Path) -> Result<serde_json::Value, String> {
        let arguments = ["devices", "approve", "tpm", "--signature", text(signature)];
        self.daemon.ctl(&arguments)
    }

    fn records(&self, action: &str) -> Vec<Record> {
        let log = self.daemon.state().join(FILE_NAME);
        let records = Entries::open(&log).unwrap().map(|it| it.unwrap().record);
        records.filter(|record| record.action == action).collect()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_update_of_the_firmware_is_approved_and_work_goes_on() {
    let mut machine = Machine::new();
    let alice = Member::new(&machine.client(), "alice", "tpm");
    let carol = Member::new(&machine.client(), "carol", "software");
    let seat = Seat::take(&alice, &machine.client());
    let of_carol = Seat::take(&carol, &machine.client());
    let speak = |machine: &Machine| {
        seat.speak(&machine.client());
        seat.open(&machine.client());
    };
    speak(&machine);
    // What was measured before is a state of its own, to which it may not go back.
    machine.start_with(1);
    let request = Sign {
        key: alice.identity.key,
        content: SecretBytes::new(seat.message().to_vec()),
    };
    let refused = machine
        .client()
        .sign(request, &Call::default())
        .unwrap_err();
    let CallError::Failure(failure) = refused else {
        panic!("{refused}")
    };
    assert_eq!(failure.code, FailureCode::DeviceFailed);
    let told = failure.to_string();
    for words in [
        "device tpm",
        "the machine's measurements (PCR 7) are not those that the keys were made with",
        "mlskeyctl devices measurements",
        "mlskeyctl devices approve",
    ] {
        assert!(told.contains(words), "{told}");
    }
    let devices = machine.daemon.ctl(&["devices"]).unwrap();
    assert_eq!(devices[1]["name"], "tpm");
    assert_eq!(devices[1]["state"], "ready", "{devices}");
    let bound = &devices[1]["facts"]["pcrs"];
    assert_eq!(bound, "new keys are bound to PCR 7");
    // Keys of now work, and other devices.
    of_carol.speak(&machine.client());
    let bob = Member::new(&machine.client(), "bob", "tpm");
    Seat::take(&bob, &machine.client()).speak(&machine.client());

    let request = machine.request("request");
    let stranger = Recovery::new(&machine.stage, "stranger");
    let wrong = machine.approve(&stranger.sign(&request)).unwrap_err();
    assert!(
        wrong.contains("the recovery key of the configuration did not sign"),
        "{wrong}"
    );
    let long = machine.stage.path("long");
    std::fs::write(&long, [0x30; 100]).unwrap();
    machine.approve(&long).unwrap_err();
    let shown = machine.approve(&machine.recovery.sign(&request)).unwrap();
    assert_eq!(
        (&shown["device"], &shown["approved"]),
        (&"tpm".into(), &true.into())
    );
    assert_eq!(shown["registers"][0]["pcr"], 7);
    speak(&machine);

    // It is on record, before it was done and as it was done.
    let offered = machine.records("OfferApproval");
    assert_eq!(offered.len(), 2);
    let value = shown["registers"][0]["sha256"].as_str().unwrap();
    for record in &offered {
        let AuditOutcome::Noted { note } = &record.outcome else {
            panic!("{record:?}")
        };
        assert!(note.contains(&format!("PCR 7 {value}")), "{note}");
    }
    let orders = machine.records("ApproveMeasurements");
    let served = |record: &&Record| matches!(record.outcome, AuditOutcome::Served { .. });
    let served: Vec<_> = orders.iter().filter(served).collect();
    assert_eq!((orders.len(), served.len()), (3, 1));
    assert_eq!(served[0].content, offered[1].content);
    assert_eq!(served[0].device.as_deref(), Some("tpm"));

    // For ever; but not for the next one.
    machine.start_with(1);
    speak(&machine);
    machine.start_with(2);
    let told = machine
        .daemon
        .ctl(&["devices", "measurements", "tpm"])
        .unwrap();
    assert_eq!(told["approved"], false);
    let old = machine
        .approve(&machine.stage.path("request.signature"))
        .unwrap_err();
    assert!(old.contains("for the measurements of now"), "{old}");
    let request = machine.request("again");
    machine.approve(&machine.recovery.sign(&request)).unwrap();
    speak(&machine);
    machine.daemon.stop();
    assert_eq!(machine.tpm.loaded(), [""; 0], "nothing of ours is left");
}

#[test]
fn what_is_read_and_written_by_people_is_plain() {
    let machine = Machine::new();
    let people = |arguments: &[&str]| {
        let output = machine.daemon.ctl_for_people(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap(),
            String::from_utf8(text).unwrap(),
        )
    };
    let path = machine.stage.path("request");
    let ask = ["devices", "measurements", "tpm", "--out", text(&path)];
    let zeros = "00".repeat(32);
    let (code, shown) = people(&ask);
    assert_eq!(code, 0);
    assert_eq!(
        shown,
        format!(
            "PCR 7   {zeros}\nnot approved: on device tpm only keys work that were made with them, or are bound to none\n"
        )
    );
    // A file that is there is not written over.
    let (code, refused) = people(&ask);
    assert_eq!(code, 1, "{refused}");
    let signature = machine.recovery.sign(&path);
    let approve = ["devices", "approve", "tpm", "--signature", text(&signature)];
    let (code, shown) = people(&approve);
    assert_eq!(code, 0, "{shown}");
    assert!(shown.ends_with("work with them\n"), "{shown}");
    let (_, refused) = people(&["devices", "measurements", "software"]);
    assert!(
        refused.contains("cannot bind keys to the machine's measurements"),
        "{refused}"
    );
    let (code, _) = people(&["devices", "measurements", "nowhere"]);
    assert_eq!(code, 1);
}

#[test]
fn an_approval_that_was_cut_short_is_there_or_is_not() {
    for failpoint in ["private-file-written", "private-file-named"] {
        let mut machine = Machine::new();
        let alice = Member::new(&machine.client(), "alice", "tpm");
        let seat = Seat::take(&alice, &machine.client());
        machine.start_with(1);
        let signature = machine.recovery.sign(&machine.request("request"));
        machine.daemon.stop();
        let options = Options {
            failpoint: Some(failpoint.to_owned()),
            ..machine.options.clone()
        };
        machine.daemon.restart(&options);
        machine.approve(&signature).unwrap_err();
        machine.daemon.wait();
        machine.daemon.restart(&machine.options);
        let told = machine
            .daemon
            .ctl(&["devices", "measurements", "tpm"])
            .unwrap();
        assert_eq!(
            told["approved"],
            failpoint == "private-file-named",
            "{failpoint}"
        );
        machine.approve(&signature).unwrap();
        seat.speak(&machine.client());
    }
}

fn play(suite: Ciphersuite) {
    let stage = Stage::new(programs!());
    let tpm = Swtpm::new(&stage);
    let recovery = Recovery::new(&stage, "recovery");
    let plan = Plan {
        suite,
        operations: 40,
        options: Options {
            extra: tpm.device("tpm") + &recovery.device(&[7]),
            ..Options::default()
        },
        device: "tpm".to_owned(),
        bus: None,
    };
    let remains = Run::play(&stage, &plan, seed());
    assert_eq!(remains, Remains::of_identities(remains.participants));
    assert_eq!(tpm.loaded(), [""; 0], "nothing of ours is left");
}

/// In the TPM.
#[test]
fn a_group_lives_with_bound_keys_of_suite_0x0002() {
    play(Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256);
}

/// Sealed by the TPM.
#[test]
fn a_group_lives_with_bound_keys_of_suite_0x0001() {
    play(Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519);
}
