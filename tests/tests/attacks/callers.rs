//! Keys of other owners, of nobody, and of the past; and who administers.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use mlskeyd::audit::AuditOutcome;
use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::limits::*;
use mlskeyd_protocol::v1::*;
use serde_json::Value;

use crate::forge::*;
use crate::house::{App, House, failure};
use crate::suite::{SUITE_1, Suite, for_each_suite, sealed};

for_each_suite!(
    unknown_and_destroyed_keys_serve_nothing,
    another_identity_signs_nothing_in_this_ones_name,
);

/// Another user.
pub const STRANGER: u32 = 65_533;

/// Runs a test once more where there are several users: as root of a user
/// namespace, unless this is root. Answers whether it has run there.
pub fn ran_as_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--map-auto"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .status()
        .expect("unshare (util-linux) runs");
    assert!(
        status.success(),
        "the test failed in a user namespace, or there is none: it needs root, \
         or newuidmap (package uidmap) and a line for this user in /etc/subuid"
    );
    true
}

/// A program as the stranger runs it, copied to a directory where other users may run it.
fn strangers(directory: &Path, program: &str) -> Command {
    let copy = directory.join("theirs");
    std::fs::copy(program, &copy).unwrap();
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new(copy);
    command.current_dir("/").gid(STRANGER).uid(STRANGER);
    command
}

/// What became of each thing that the stranger tried at a socket.
pub fn stranger(directory: &Path, socket: &Path, arguments: &[&str]) -> Vec<Value> {
    let mut command = strangers(directory, env!("CARGO_BIN_EXE_stranger"));
    let output = command.arg(socket).args(arguments).output();
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_handle_is_worthless_to_another_user() {
    if ran_as_root("callers::a_handle_is_worthless_to_another_user") {
        return;
    }
    let mut house = House::new("[policy]\nallow_leave = true\n");
    let app = App::new(&house, SUITE_1, "alice");
    let (init, leaf) = (app.generate(), app.generate());
    app.key_package(&init, &leaf, ALWAYS, false);
    let text = message(SUITE_1, "g", 1, Sender::Member(0), &application("hello"));
    let record = Record::KeyPackage {
        reference: Bytes(vec![1; 32]),
    };
    let claim = Claim {
        storage: "laptop".to_owned(),
        record,
        keys: vec![init.key, leaf.key],
    };
    app.client.claim(claim, &Call::default()).unwrap();
    let before = house.keys();

    let ids = [app.me.key.to_string(), init.key.to_string()];
    let outcomes = stranger(
        house.path(),
        &house.socket(),
        &[&ids[0], &ids[1], &hex::encode(&text), "alice", "laptop"],
    );
    let of = |what: &str| {
        outcomes
            .iter()
            .find(|outcome| outcome["what"] == what)
            .unwrap()
    };
    assert!(
        of("status")["reply"].is_string(),
        "the daemon serves this user too"
    );
    for what in [
        "sign",
        "sign with an HPKE key",
        "open",
        "open by another KEM",
        "open with a signature key",
    ] {
        let outcome = of(what);
        assert_eq!(outcome["code"], "NotFound", "{outcome}");
        assert_eq!(outcome["failure"]["device"], Value::Null, "{outcome}");
    }
    assert_eq!(of("prepare")["code"], "NotFound");
    assert_eq!(of("leave")["code"], "NotFound");
    assert_eq!(of("identities")["reply"], "[]");
    // Its claims hold no key of another's, and its words about storages are
    // about storages of its own.
    for what in ["claim", "claim in the other's storage"] {
        let reply = of(what)["reply"].as_str().unwrap();
        assert!(
            reply.contains(&ids[0]) && reply.contains(&ids[1]),
            "both are lost: {reply}"
        );
    }
    assert!(
        of("administer")["error"]
            .as_str()
            .unwrap()
            .contains("only root"),
        "{}",
        of("administer")
    );
    let now: Vec<_> = house.keys();
    assert_eq!(now, before, "nothing of alice's is changed");

    // An id of another's is answered like one that is nobody's.
    let nobody = KeyId::from_bytes([3; 16]);
    let unknown = app.sign_with(nobody, &text).unwrap_err();
    let foreign: Failure = serde_json::from_value(of("sign")["failure"].clone()).unwrap();
    assert_eq!(foreign.about_key(nobody), unknown);

    app.sign(&text).unwrap();
    app.open(&init, &labelled("Welcome", b""), &app.suite.group_secrets())
        .unwrap();
    house.stop();
    let records = house.records();
    let on_record = |key: KeyId| {
        records.iter().any(|record| {
            let by = record.caller.as_ref().map(|caller| caller.owner.uid);
            record.key == Some(key)
                && by == Some(STRANGER)
                && matches!(&record.outcome, AuditOutcome::Denied { policy, .. } if policy == "rule/owner")
        })
    };
    assert!(on_record(app.me.key) && on_record(init.key));
    // All of that is refused before the device: it is not even there.
    house.restart_without_device();
    for outcome in stranger(
        house.path(),
        &house.socket(),
        &[&ids[0], &ids[1], &hex::encode(&text), "alice", "laptop"],
    ) {
        assert_ne!(outcome["code"], "DeviceFailed", "{outcome}");
    }
    let absent = app.sign(&text).unwrap_err();
    assert_eq!(absent.code, FailureCode::DeviceFailed, "{absent}");
    let served_stranger = records.iter().any(|record| {
        record
            .caller
            .as_ref()
            .is_some_and(|caller| caller.owner.uid == STRANGER)
            && matches!(record.outcome, AuditOutcome::Served { .. })
    });
    assert!(!served_stranger);
}

#[test]
fn a_stranger_does_not_administer() {
    if ran_as_root("callers::a_stranger_does_not_administer") {
        return;
    }
    let house = House::new("");
    let mut command = strangers(house.path(), env!("CARGO_BIN_EXE_test-ctl"));
    command.arg("--socket").arg(house.socket()).arg("keys");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    // As the help of mlskeyctl says.
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("only root"), "{text}");
}

fn unknown_and_destroyed_keys_serve_nothing(suite: Suite) {
    let house = House::new("[lifetimes]\norphan_grace = \"0s\"\ngrace = \"0s\"\n");
    let app = App::new(&house, suite, "alice");
    let text = message(suite, "g", 1, Sender::Member(0), &application("hello"));
    let nobody = KeyId::from_bytes([3; 16]);
    for refused in [
        app.sign_with(nobody, &text),
        app.open_with(Open {
            key: nobody,
            ..sealed(
                suite,
                &app.generate(),
                &labelled("Welcome", b""),
                &app.suite.group_secrets(),
            )
        }),
    ] {
        let failure = refused.unwrap_err();
        assert_eq!(failure.code, FailureCode::NotFound, "{failure:?}");
        assert_eq!(failure.key, Some(nobody));
        assert!(!failure.advice.is_empty());
    }

    // Never named by a record, and its connection ends.
    let dying = {
        let short = App::new(&house, suite, "alice");
        let (init, leaf) = (short.generate(), short.generate());
        short.key_package(&init, &leaf, ALWAYS, false);
        init
    };
    let state = || {
        let keys = house.keys();
        keys.into_iter()
            .find(|key| key.key.id == dying.key)
            .unwrap()
            .key
            .state
    };
    while state() != KeyState::Destroyed {
        house.admin().sweep(&Call::default()).unwrap();
        std::thread::yield_now();
    }
    let failure = app
        .open(
            &dying,
            &labelled("Welcome", b""),
            &app.suite.group_secrets(),
        )
        .unwrap_err();
    assert_eq!(failure.code, FailureCode::Destroyed, "{failure:?}");
    assert_eq!(failure.key, Some(dying.key));
    assert_eq!(failure.device.as_deref(), Some("software"));
    let leaf = app.leaf(&dying, Source::Commit);
    let failure = app.sign(&leaf.tbs("g", 0)).unwrap_err();
    assert!(failure.message.contains("no longer alive"), "{failure:?}");
    assert!(house.records().iter().any(|record| {
        record.key == Some(dying.key)
            && matches!(
                record.outcome,
                AuditOutcome::Failed {
                    code: FailureCode::Destroyed
                }
            )
    }));
    app.sign(&text).unwrap();
}

fn another_identity_signs_nothing_in_this_ones_name(suite: Suite) {
    let house = House::new("");
    let (alice, bob) = (
        App::new(&house, suite, "alice"),
        App::new(&house, suite, "bob"),
    );
    let key = bob.generate();
    let before = house.keys();
    // One app, two identities: neither borrows the other's credential or leaf.
    let mut leaf = bob.leaf(&key, Source::Commit);
    leaf.credential = credential("alice");
    assert_eq!(
        bob.sign(&leaf.tbs("g", 0)).unwrap_err().code,
        FailureCode::Denied
    );
    let mut leaf = bob.leaf(&key, Source::Commit);
    leaf.signature_key = alice.me.public_key.0.clone();
    assert_eq!(
        bob.sign(&leaf.tbs("g", 0)).unwrap_err().code,
        FailureCode::Denied
    );
    assert_eq!(house.keys(), before);
    let signed = bob.signed_leaf(&key, Source::Commit, "g", 0);
    let content = message(suite, "g", 1, Sender::Member(0), &commit(&signed));
    let failure = alice.sign(&content).unwrap_err();
    assert_eq!(failure.code, FailureCode::Denied, "{failure:?}");
    assert_eq!(failure.key, Some(alice.me.key));
    bob.sign(&content).unwrap();

    let conflict = CreateIdentity {
        name: "alice".to_owned(),
        credential: Credential::Basic(Bytes::from(b"bob".as_slice())),
        scheme: suite.scheme,
        placement: Placement::default(),
    };
    let refused = alice.client.create_identity(conflict, &Call::default());
    assert_eq!(failure_of(refused).code, FailureCode::Conflict);
}

fn failure_of<T: std::fmt::Debug>(
    result: Result<T, mlskeyd_protocol::client::CallError>,
) -> Failure {
    failure(result.unwrap_err())
}

#[test]
fn names_and_lists_beyond_their_bounds_are_refused() {
    let house = House::new("");
    let app = App::new(&house, SUITE_1, "alice");
    let (client, call) = (&app.client, Call::default());
    let long = "n".repeat(MAX_NAME + 1);
    let before = house.keys();
    let create = |name: &str, credential| CreateIdentity {
        name: name.to_owned(),
        credential,
        scheme: SignatureScheme::Ed25519,
        placement: Placement::default(),
    };
    let basic = |length| Credential::Basic(Bytes(vec![1; length]));
    let group = |length| Record::GroupState {
        group: Bytes(vec![1; length]),
    };
    let claim = |storage: &str, record, keys| Claim {
        storage: storage.to_owned(),
        record,
        keys: vec![app.me.key; keys],
    };
    let settlement = Settlement::Deleted {
        record: group(1),
        generation: None,
    };
    let settle = |count| Settle {
        storage: "laptop".to_owned(),
        settlements: vec![settlement.clone(); count],
    };
    let leave = |group, key| LeaveCustody {
        identity: "alice".to_owned(),
        group: Bytes(vec![1; group]),
        signature_key: Bytes(vec![1; key]),
    };
    let hpke = GenerateHpke {
        kem: Kem::DhKemX25519,
        placement: Placement {
            device: Some(long.clone()),
            tier: None,
        },
    };
    let refused = [
        failure_of(client.create_identity(create(&long, basic(1)), &call)),
        failure_of(client.create_identity(create("", basic(1)), &call)),
        failure_of(client.create_identity(create("a\nb", basic(1)), &call)),
        failure_of(client.create_identity(create("c", basic(MAX_CREDENTIAL + 1)), &call)),
        failure_of(client.create_identity(create("c", basic(0)), &call)),
        failure_of(client.generate_hpke(hpke, &call)),
        failure_of(client.prepare(&long, &call)),
        failure_of(client.look_up(vec![Bytes(vec![1]); MAX_LOOKUP + 1], &call)),
        failure_of(client.look_up(vec![Bytes(vec![1; MAX_PUBLIC_KEY + 1])], &call)),
        failure_of(client.leave_custody(leave(MAX_GROUP_ID + 1, 32), &call)),
        failure_of(client.leave_custody(leave(1, MAX_PUBLIC_KEY + 1), &call)),
        failure_of(client.attach(long.as_str(), true, &call)),
        failure_of(client.claim(claim(&long, group(1), 1), &call)),
        failure_of(client.claim(claim("laptop", group(MAX_GROUP_ID + 1), 1), &call)),
        failure_of(client.claim(claim("laptop", group(1), MAX_CLAIM_KEYS + 1), &call)),
        failure_of(client.settle(settle(MAX_RECORDS + 1), &call)),
    ];
    for failure in refused {
        assert_eq!(failure.code, FailureCode::BadRequest, "{failure:?}");
        assert!(!failure.advice.is_empty());
        let said = failure.to_string();
        assert!(said.len() < 400 && !said.contains(&long), "{said}");
    }
    assert_eq!(house.keys(), before);
    client
        .create_identity(create("c", basic(1)), &call)
        .unwrap();
}
