//! What policies know of a request, as it is on record with it: all that it says, nothing that
//! it does not say, and each in its place.

use std::collections::BTreeMap;

use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::*;
use mlskeyd_tests::captures;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::forge::*;
use crate::house::{App, House};
use crate::suite::SUITE_2 as SUITE;

/// For which proposals of a type for private use are agreed, and whose credentials are known.
const CONFIGURATION: &str = "[policy]\nprivate_proposals = [0xf00d]\n\
    credentials = [\"mallory\", \"another\"]";

/// The facts of the last request of this action that is on record.
fn last(house: &House, action: &str) -> Value {
    let records = house.records();
    let is_one = |record: &&mlskeyd::audit::Record| record.action == action;
    let last = records.iter().rev().find(is_one).unwrap();
    serde_json::from_str(last.facts.as_ref().unwrap()).unwrap()
}

/// What a request says: neither the time, nor what the daemon knows by itself.
fn said(mut facts: Value) -> Value {
    let context = facts["context"].as_object_mut().unwrap();
    for by_itself in ["now", "rates", "guard"] {
        context.remove(by_itself);
    }
    facts["context"].take()
}

/// What policies are to know of it.
type Told = (&'static str, Vec<u8>, Value);

fn told_of_messages(app: &App, other: &App) -> Vec<Told> {
    let talk = hex::encode("talk");
    let hello = application("hello");
    let required = required_capabilities([&[0x0a0a, 2], &[0x1a1a], &[1, 0x2a2a]]);
    let context = group_context_with(SUITE, "talk", 7, &required);
    let leaf = app.signed_leaf(&app.generate(), Source::Commit, "talk", 4);
    let joining = app.signed_leaf(&app.generate(), Source::Commit, "talk", 5);
    let update_leaf = app.signed_leaf(&app.generate(), Source::Update, "talk", 4);
    let from = |epoch, body: &[u8]| message(SUITE, "talk", epoch, Sender::Member(4), body);
    let newcomer = |name: &str| {
        let mut leaf = other.leaf(&other.own_hpke(1), ALWAYS);
        leaf.credential = credential(name);
        let package = key_package(SUITE, &[1; 65], &leaf.signed(&[7; 64]), false);
        add(&package, &[7; 64])
    };
    // As it stands within a commit.
    let within = |body: &[u8]| body[1..].to_vec();
    let (ann, ben) = (within(&newcomer("ann")), within(&newcomer("ben")));
    let (agreed, psk) = (private_use(0xf00d, b"as we said"), pre_shared_key(b"psk"));
    let all = [&*ann, &ben, &remove(9), &agreed, &psk];
    let (package, signature) = app.key_package(&app.generate(), &app.generate(), ALWAYS, false);
    vec![
        (
            "SignApplicationMessage",
            from(7, &hello),
            json!({"group": talk, "epoch": 7, "sender_leaf": 4, "encrypted": true,
                "cipher_suite": 2}),
        ),
        (
            "SignApplicationMessage",
            message_under(&context, "talk", 7, Sender::Member(4), &hello),
            json!({"group": talk, "epoch": 7, "sender_leaf": 4, "encrypted": true,
                "cipher_suite": 2, "required_capabilities": {"extensions": [2, 0x0a0a],
                "proposals": [0x1a1a], "credentials": [1, 0x2a2a]}}),
        ),
        (
            "SignCommit",
            from(7, &commit_of(&all, &[&[3; 32], &[4; 32], &[5; 32]], &leaf)),
            json!({"group": talk, "epoch": 7, "sender_leaf": 4, "cipher_suite": 2,
                "in_commit": true, "proposals": ["SignProposalAdd", "SignProposalPreSharedKey",
                "SignProposalPrivateUse", "SignProposalRemove"], "private_proposals": [0xf00d],
                "unresolved_references": 3, "members_added": 2, "added_names": ["ann", "ben"],
                "members_removed": 1, "removed_leaves": [9], "uses_psk": true}),
        ),
        (
            "SignCommit",
            from(
                8,
                &commit_of(&[&remove(1), &remove(2), &remove(3)], &[], &leaf),
            ),
            json!({"group": talk, "epoch": 8, "sender_leaf": 4, "cipher_suite": 2,
                "in_commit": true, "proposals": ["SignProposalRemove"],
                "members_removed": 3, "removed_leaves": [1, 2, 3]}),
        ),
        (
            "SignCommit",
            from(9, &commit(&leaf)),
            json!({"group": talk, "epoch": 9, "sender_leaf": 4, "cipher_suite": 2}),
        ),
        (
            "SignCommit",
            message(
                SUITE,
                "talk",
                10,
                Sender::NewMemberCommit,
                &external_commit(&[1; 65], &joining),
            ),
            json!({"group": talk, "epoch": 10, "sender": "new_member_commit", "cipher_suite": 2,
                "in_commit": true, "proposals": ["SignProposalExternalInit"]}),
        ),
        // One alone is not in a commit.
        (
            "SignProposalAdd",
            from(11, &newcomer("ann")),
            json!({"group": talk, "epoch": 11, "sender_leaf": 4, "cipher_suite": 2,
                "members_added": 1, "added_names": ["ann"]}),
        ),
        (
            "SignProposalRemove",
            from(11, &proposal(&remove(6))),
            json!({"group": talk, "epoch": 11, "sender_leaf": 4, "cipher_suite": 2,
                "members_removed": 1, "removed_leaves": [6]}),
        ),
        (
            "SignProposalPreSharedKey",
            from(11, &proposal(&psk)),
            json!({"group": talk, "epoch": 11, "sender_leaf": 4, "cipher_suite": 2,
                "uses_psk": true}),
        ),
        (
            "SignProposalPrivateUse",
            from(11, &proposal(&agreed)),
            json!({"group": talk, "epoch": 11, "sender_leaf": 4, "cipher_suite": 2,
                "private_proposals": [0xf00d]}),
        ),
        (
            "SignProposalUpdate",
            from(11, &update(&update_leaf)),
            json!({"group": talk, "epoch": 11, "sender_leaf": 4, "cipher_suite": 2}),
        ),
        (
            "SignProposalAdd",
            message(
                SUITE,
                "talk",
                12,
                Sender::NewMemberProposal,
                &add(&package, &signature),
            ),
            json!({"group": talk, "epoch": 12, "sender": "new_member_proposal",
                "cipher_suite": 2, "members_added": 1, "added_names": ["mallory"]}),
        ),
        (
            "SignProposalRemove",
            message(
                SUITE,
                "talk",
                12,
                Sender::External(3),
                &proposal(&remove(6)),
            ),
            json!({"group": talk, "epoch": 12, "sender": "external", "members_removed": 1,
                "removed_leaves": [6]}),
        ),
        (
            "SignTargetedMessage",
            targeted_message("talk", 13, 4, 6),
            json!({"group": talk, "epoch": 13, "recipient_leaf": 6}),
        ),
        (
            "SignGroupInfo",
            group_info_tbs(
                &context,
                &[extension(1, &[9]), extension(4, &opaque(&[1; 65]))].concat(),
                4,
            ),
            json!({"group": talk, "epoch": 7, "cipher_suite": 2, "lets_join": true,
                "required_capabilities": {"extensions": [2, 0x0a0a], "proposals": [0x1a1a],
                "credentials": [1, 0x2a2a]}}),
        ),
        (
            "SignGroupInfo",
            group_info_tbs(&group_context(SUITE, "talk", 14), &[], 4),
            json!({"group": talk, "epoch": 14, "cipher_suite": 2}),
        ),
    ]
}

fn told_of_leaves(app: &App) -> Vec<Told> {
    let talk = hex::encode("talk");
    let leaf = |source| app.leaf(&app.generate(), source);
    let mut stranger = leaf(Source::Update);
    stranger.credential = credential("chairman");
    let mut certified = leaf(Source::Update);
    certified.credential = certificates([&[1, 2, 3][..]].into_iter());
    // In 40 days less an hour: begun days count.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let lasts = Source::KeyPackage(0, now + 40 * 86_400 - 3600);
    let package = |source, last_resort| {
        let (init, leaf) = (app.generate(), app.generate());
        let leaf = app.signed_leaf(&leaf, source, "", 0);
        key_package_tbs(&key_package(SUITE, &init.public_key, &leaf, last_resort))
    };
    vec![
        (
            "SignLeafNode",
            leaf(Source::Update).tbs("talk", 4),
            json!({"group": talk, "source": "update", "credential_type": "basic",
                "credential": "mallory"}),
        ),
        (
            "SignLeafNode",
            leaf(Source::Commit).tbs("talk", 4),
            json!({"group": talk, "source": "commit", "credential_type": "basic",
                "credential": "mallory"}),
        ),
        (
            "SignLeafNode",
            leaf(lasts).tbs("", 0),
            json!({"source": "key_package", "lifetime_days": 40, "credential_type": "basic",
                "credential": "mallory"}),
        ),
        (
            "SignLeafNode",
            stranger.tbs("talk", 4),
            json!({"group": talk, "source": "update", "credential_type": "basic",
                "credential": "chairman", "credential_matches": false}),
        ),
        (
            "SignLeafNode",
            certified.tbs("talk", 4),
            json!({"group": talk, "source": "update", "credential_type": "x509",
                "credential_matches": false}),
        ),
        (
            "SignKeyPackage",
            package(lasts, false),
            json!({"cipher_suite": 2, "lifetime_days": 40, "credential_type": "basic",
                "credential": "mallory"}),
        ),
        (
            "SignKeyPackage",
            package(ALWAYS, true),
            json!({"cipher_suite": 2, "lifetime_days": 30, "last_resort": true,
                "credential_type": "basic", "credential": "mallory"}),
        ),
    ]
}

#[test]
fn what_is_to_be_signed_is_told_as_it_says() {
    let house = House::new(CONFIGURATION);
    let app = App::new(&house, SUITE, "mallory");
    let other = App::new(&house, SUITE, "another");
    let signer = json!({"key": app.me.key.to_string(), "purpose": "signature",
        "algorithm": "ECDSA P-256", "tier": "software", "suites": [2],
        "device": "software", "device_kind": "software", "identity": "mallory"});
    for (action, content, expected) in told_of_leaves(&app)
        .into_iter()
        .chain(told_of_messages(&app, &other))
    {
        // Refused or not: it is on record with what was known of it.
        let _ = app.sign(&content);
        let facts = last(&house, action);
        // Equal refusals in a row would be one record.
        app.generate();
        assert_eq!(facts["resource"], signer, "{action}");
        assert_eq!(said(facts), expected, "{action}");
    }
    let facts = last(&house, "SignGroupInfo");
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid());
    let me = me.unwrap().unwrap();
    assert_eq!(facts["caller"]["uid"], me.uid.as_raw());
    assert_eq!(facts["caller"]["user"], me.name);
    assert_eq!(facts["caller"]["app"], "default");
}

#[test]
fn what_is_made_and_opened_is_told_as_it_is() {
    let house = House::new(CONFIGURATION);
    let app = App::new(&house, SUITE, "mallory");
    assert_eq!(
        said(last(&house, "CreateIdentity")),
        json!({"algorithm": "ECDSA P-256", "tier": "software",
            "credential_type": "basic", "credential": "mallory"})
    );
    // To ask for it again makes nothing, and leaves no record.
    let before = house.records().len();
    App::new(&house, SUITE, "mallory");
    assert_eq!(house.records().len(), before);
    App::new(&house, SUITE, "another");
    assert_eq!(said(last(&house, "CreateIdentity"))["others"], 1);
    let request = CreateIdentity {
        name: "third".to_owned(),
        credential: Credential::Basic(Bytes::from(b"chairman".as_slice())),
        scheme: SignatureScheme::Ed25519,
        placement: Placement::default(),
    };
    let refused = app.client.create_identity(request, &Call::default());
    refused.unwrap_err();
    let facts = last(&house, "CreateIdentity");
    assert_eq!(
        facts["resource"],
        json!({"device": "software", "device_kind": "software", "identity": "third"})
    );
    assert_eq!(
        said(facts),
        json!({"algorithm": "Ed25519", "tier": "software", "others": 2,
            "credential_type": "basic", "credential": "chairman", "credential_permitted": false})
    );

    let (init, leaf) = (app.generate(), app.generate_of(SUITE.kem));
    let facts = last(&house, "GenerateHpke");
    assert_eq!(
        facts["resource"],
        json!({"device": "software", "device_kind": "software"})
    );
    assert_eq!(
        said(facts),
        json!({"algorithm": "DHKEM P-256", "tier": "software"})
    );
    app.key_package(&init, &leaf, ALWAYS, false);
    let welcome = labelled("Welcome", b"the sealed GroupInfo");
    app.open(&init, &welcome, &SUITE.group_secrets()).unwrap();
    let path = labelled("UpdatePathNode", &group_context(SUITE, "talk", 7));
    app.open(&leaf, &path, &SUITE.path_secret()).unwrap();
    let talk = hex::encode("talk");
    for (action, key, purpose, expected) in [
        ("OpenWelcome", &init, "init", json!({})),
        (
            "OpenPathSecret",
            &leaf,
            "leaf",
            json!({"group": talk, "epoch": 7, "cipher_suite": 2}),
        ),
    ] {
        let facts = last(&house, action);
        assert_eq!(
            facts["resource"],
            json!({"key": key.key.to_string(), "purpose": purpose, "algorithm": "DHKEM P-256",
                "tier": "software", "suites": [2], "device": "software", "device_kind": "software"})
        );
        assert_eq!(said(facts), expected, "{action}");
    }
}

/// What MLS implementations really had signed. It is refused here, where its keys are not, but
/// what policies knew of it is on record, and in `captured/facts-*.txt`.
fn told_of_captured(implementation: &str) {
    let house = House::new("");
    let app = App::new(&house, SUITE, "mallory");
    let mut told = BTreeMap::new();
    for capture in captures::read(implementation) {
        if capture.suite != SUITE.number {
            continue;
        }
        for content in capture.signed {
            let _ = app.sign(&content);
            let records = house.records();
            let record = records
                .iter()
                .rev()
                .find(|it| it.action.starts_with("Sign"));
            let record = record.unwrap();
            let digest: [u8; 32] = Sha256::digest(&content).into();
            assert_eq!(record.content, Some(digest), "{record:?}");
            let facts = serde_json::from_str(record.facts.as_ref().unwrap()).unwrap();
            let mut said: BTreeMap<String, Value> = serde_json::from_value(said(facts)).unwrap();
            for random in ["group", "epoch", "lifetime_days"] {
                said.remove(random);
            }
            let line = format!("{} {}", record.action, json!(said));
            *told.entry(line).or_insert(0) += 1;
            app.generate();
        }
    }
    let lines = told.iter().map(|(line, times)| format!("{times} {line}\n"));
    let lines: String = lines.collect();
    let file = captures::directory(&format!("facts-{implementation}.txt"));
    assert_eq!(lines, std::fs::read_to_string(file).unwrap(), "\n{lines}");
}

#[test]
fn what_openmls_has_signed_is_told_as_it_says() {
    told_of_captured("openmls");
}

#[test]
fn what_mls_rs_has_signed_is_told_as_it_says() {
    told_of_captured("mls-rs");
}
