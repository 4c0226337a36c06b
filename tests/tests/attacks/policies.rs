//! What the company's policies refuse, by name, before a device is asked; and the ways out.

use std::path::PathBuf;

use mlskeyd::audit::AuditOutcome;
use mlskeyd_protocol::client::{Call, CallError};
use mlskeyd_protocol::v1::*;

use crate::forge::*;
use crate::house::{App, House};
use crate::suite::SUITE_1 as SUITE;

fn text(epoch: u64) -> Vec<u8> {
    message(
        SUITE,
        "talk",
        epoch,
        Sender::Member(0),
        &application("hello"),
    )
}

fn new_commit(app: &App, epoch: u64) -> Vec<u8> {
    let leaf = app.signed_leaf(&app.generate(), Source::Commit, "talk", 0);
    message(SUITE, "talk", epoch, Sender::Member(0), &commit(&leaf))
}

/// The policy that refuses it.
pub fn refused_by(app: &App, content: &[u8]) -> String {
    let failure = app.sign(content).unwrap_err();
    assert_eq!(failure.code, FailureCode::Denied, "{failure:?}");
    assert!(!failure.advice.is_empty(), "{failure:?}");
    failure.policy.unwrap()
}

/// A house whose company has one file of policies.
pub fn company(policies: &str) -> (House, PathBuf) {
    let mut house = House::new("");
    house.stop();
    let local = house.path().join("policies.d");
    std::fs::create_dir(&local).unwrap();
    let file = local.join("90-company.cedar");
    std::fs::write(&file, policies).unwrap();
    house.start(&configuration(&house));
    (house, file)
}

fn configuration(house: &House) -> String {
    format!(
        "[policy]\nlocal_dir = {:?}",
        house.path().join("policies.d")
    )
}

#[test]
fn what_the_guard_finds_is_refused_before_the_device() {
    let mut house = House::new("");
    let mallory = App::new(&house, SUITE, "mallory");
    let honest = App::new(&house, SUITE, "alice");
    mallory.sign(&text(5)).unwrap();
    let commits: Vec<_> = (0..9).map(|_| new_commit(&mallory, 5)).collect();
    for commit in &commits[..8] {
        mallory.sign(commit).unwrap();
    }
    // What was signed may be signed again.
    mallory.sign(&commits[0]).unwrap();
    let attacks = [
        ("no-rollback", text(4)),
        ("no-rollback", text(0)),
        ("no-rollback", new_commit(&mallory, 4)),
        ("no-epoch-jump", text(5 + 1_000_001)),
        ("no-epoch-jump", text(u64::MAX)),
        ("commits-per-epoch", commits[8].clone()),
    ];
    let assert_refused = || {
        for (policy, content) in &attacks {
            assert_eq!(refused_by(&mallory, content), *policy);
        }
    };
    assert_refused();
    house.restart_without_device();
    assert_refused();
    house.restart_with_device();
    // None of this is anything to others, nor to what is honest.
    honest.sign(&text(1)).unwrap();
    mallory.sign(&text(6)).unwrap();
    mallory.sign(&commits[8]).unwrap_err();
    mallory.sign(&new_commit(&mallory, 6)).unwrap();
    for (policy, _) in attacks {
        let by = |record: &mlskeyd::audit::Record| matches!(&record.outcome, AuditOutcome::Denied { policy: by, .. } if by == policy);
        assert!(house.records().iter().any(by), "{policy}");
    }
}

/// The storage of an app was restored from a copy: it is told the two ways out, and both
/// are.
#[test]
fn who_is_behind_gets_out_by_entering_again_or_by_a_reset() {
    let house = House::new("");
    let app = App::new(&house, SUITE, "mallory");
    app.sign(&text(20)).unwrap();
    let failure = app.sign(&text(11)).unwrap_err();
    assert!(failure.advice.contains("external commit"), "{failure:?}");
    assert!(
        failure.advice.contains("mlskeyctl guard reset"),
        "{failure:?}"
    );
    let leaf = app.signed_leaf(&app.generate(), Source::Commit, "talk", 0);
    let join = external_commit(b"encapsulated", &leaf);
    app.sign(&message(SUITE, "talk", 21, Sender::NewMemberCommit, &join))
        .unwrap();
    app.sign(&text(22)).unwrap();
    assert_eq!(refused_by(&app, &text(11)), "no-rollback");

    let reset = |identity: &str| {
        let request = ResetGuard {
            owner: house.keys()[0].owner.clone(),
            identity: identity.to_owned(),
            group: Bytes::from(b"talk".as_slice()),
        };
        house.admin().reset_guard(request, &Call::default())
    };
    let CallError::Failure(unknown) = reset("alice").unwrap_err() else {
        panic!("not from the daemon")
    };
    assert_eq!(unknown.code, FailureCode::NotFound);
    assert_eq!(reset("mallory").unwrap().epoch, 22);
    app.sign(&text(11)).unwrap();
    assert_eq!(refused_by(&app, &text(10)), "no-rollback");
}

#[test]
fn commits_at_once_are_counted_one_by_one() {
    let house = House::new("");
    let app = App::new(&house, SUITE, "mallory");
    let commits: Vec<_> = (0..16).map(|_| new_commit(&app, 5)).collect();
    let signed = std::thread::scope(|scope| {
        let signing = commits
            .iter()
            .map(|commit| scope.spawn(|| app.sign(commit).is_ok()));
        let signing: Vec<_> = signing.collect();
        let signed = signing.into_iter().map(|it| it.join().unwrap());
        signed.filter(|signed| *signed).count()
    });
    assert_eq!(signed, 8);
}

#[test]
fn what_lasts_for_years_is_not_signed() {
    let house = House::new("");
    let app = App::new(&house, SUITE, "mallory");
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let days = |days: u64| Source::KeyPackage(0, now + days * 24 * 60 * 60 - 60);
    for source in [Source::KeyPackage(0, u64::MAX), days(91)] {
        let leaf = app.leaf(&app.generate(), source);
        assert_eq!(refused_by(&app, &leaf.tbs("", 0)), "leaf-lifetime");
        // Nor if the leaf had been signed at another time, or by another key.
        let leaf = app.self_signed(&leaf, "", 0);
        let package = key_package(SUITE, &app.generate().public_key, &leaf, false);
        let refused = refused_by(&app, &key_package_tbs(&package));
        assert_eq!(refused, "key-package-lifetime");
    }
    app.key_package(&app.generate(), &app.generate(), days(90), false);
}

#[test]
fn a_user_has_the_credentials_that_the_configuration_says() {
    let house = House::new("[policy]\ncredentials = [\"{user}@bank.example\", \"the-desk\"]");
    let create = |name: &str| {
        let request = CreateIdentity {
            name: name.to_owned(),
            credential: Credential::Basic(Bytes::from(name.as_bytes())),
            scheme: SUITE.scheme,
            placement: Placement::default(),
        };
        house.client().create_identity(request, &Call::default())
    };
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    let user = user.unwrap().unwrap().name;
    create(&format!("{user}@bank.example")).unwrap();
    create("the-desk").unwrap();
    for name in ["chairman@bank.example", &user, "{user}@bank.example"] {
        let Err(CallError::Failure(failure)) = create(name) else {
            panic!("{name} was made")
        };
        assert_eq!(failure.policy.as_deref(), Some("own-credential"), "{name}");
    }
}

#[test]
fn who_asks_for_too_much_waits() {
    let (house, file) = company("");
    let rates = file.with_file_name("40-rates.cedar");
    let few = r#"@id("signature-rate") @reason("too many") @advice("wait a while")
        forbid(principal, action in Action::"Sign", resource)
        when { context.rates.signatures_minute >= 5 };"#;
    std::fs::write(rates, few).unwrap();
    let app = App::new(&house, SUITE, "mallory");
    for epoch in 0..10 {
        app.sign(&text(epoch)).unwrap();
    }
    house.reload();
    assert_eq!(refused_by(&app, &text(10)), "signature-rate");
}

#[test]
fn policies_are_exchanged_as_a_whole_or_not_at_all() {
    let no_messages = r#"@id("company/no-messages")
        @reason("this is a library, please be quiet") @advice("go outside")
        forbid(principal, action == Action::"SignApplicationMessage", resource);"#;
    let (mut house, file) = company("");
    let app = App::new(&house, SUITE, "mallory");
    let reload = |house: &House| {
        let reloaded = house
            .admin()
            .reload_policies(ReloadPolicies {}, &Call::default());
        reloaded.map(|now| now.count)
    };
    app.sign(&text(1)).unwrap();
    std::fs::write(&file, no_messages).unwrap();
    app.sign(&text(1)).unwrap();
    let count = reload(&house).unwrap();
    let failure = app.sign(&text(1)).unwrap_err();
    assert_eq!(failure.policy.as_deref(), Some("company/no-messages"));
    assert_eq!(failure.message, "this is a library, please be quiet");
    assert_eq!(failure.advice, "go outside");

    std::fs::write(
        &file,
        "\n\nforbid(principal, action == Action::\"SignMesage\", resource);",
    )
    .unwrap();
    let Err(CallError::Failure(failure)) = reload(&house) else {
        panic!("such policies were taken")
    };
    assert!(
        failure.message.contains("90-company.cedar:3"),
        "{failure:?}"
    );
    assert_eq!(refused_by(&app, &text(1)), "company/no-messages");
    // Also by a daemon that starts with them.
    house.stop();
    house.start(&configuration(&house));
    assert_eq!(refused_by(&app, &text(1)), "company/no-messages");

    let reported = no_messages.replace("@advice", "@mode(\"report\") @advice");
    std::fs::write(&file, reported).unwrap();
    assert_eq!(reload(&house).unwrap(), count);
    app.sign(&text(1)).unwrap();
    let records = house.records();
    let last = records
        .iter()
        .rev()
        .find(|it| it.action == "SignApplicationMessage")
        .unwrap();
    assert_eq!(last.would_deny, ["company/no-messages"]);
    assert!(records.iter().any(|it| it.action == "PoliciesLoaded"));
}

/// A batch of KeyPackages, and a message in each of many groups, as fast as can be.
#[test]
fn a_client_that_starts_up_is_refused_nothing() {
    let house = House::new("");
    let app = App::new(&house, SUITE, "alice");
    for _ in 0..100 {
        app.key_package(&app.generate(), &app.generate(), ALWAYS, false);
    }
    for group in 0..50 {
        let group = format!("group {group}");
        let leaf = app.signed_leaf(&app.generate(), Source::Commit, &group, 0);
        let sender = || Sender::Member(0);
        let commit = message(SUITE, &group, 1, sender(), &commit(&leaf));
        app.sign(&commit).unwrap();
        let text = message(SUITE, &group, 2, sender(), &application("hello"));
        app.sign(&text).unwrap();
    }
    let records = house.records();
    let is_denied =
        |record: &&mlskeyd::audit::Record| matches!(record.outcome, AuditOutcome::Denied { .. });
    assert_eq!(records.iter().filter(is_denied).count(), 0);
}

#[test]
fn what_is_frozen_is_refused_at_once_and_after_a_restart() {
    let mut house = House::new("");
    let mallory = App::new(&house, SUITE, "mallory");
    let honest = App::new(&house, SUITE, "alice");
    let (init, leaf) = (mallory.generate(), mallory.generate());
    mallory.key_package(&init, &leaf, ALWAYS, false);
    let owner = house.keys()[0].owner.clone();
    let freeze = |house: &House, target: &FreezeTarget| {
        let request = Freeze {
            target: target.clone(),
            reason: "an incident".to_owned(),
        };
        let now = house.admin().freeze(request, &Call::default()).unwrap();
        assert_eq!(now.frozen.len(), 1);
    };
    let thaw = |house: &House, target: &FreezeTarget| {
        let request = Thaw {
            target: target.clone(),
        };
        house.admin().thaw(request, &Call::default())
    };
    let targets = [
        FreezeTarget::Identity {
            owner: owner.clone(),
            name: "mallory".to_owned(),
        },
        FreezeTarget::User(owner.uid),
        FreezeTarget::App(owner.app.clone()),
        FreezeTarget::Device("software".to_owned()),
        FreezeTarget::All,
    ];
    for target in targets {
        freeze(&house, &target);
        let failure = mallory.sign(&text(1)).unwrap_err();
        assert!(failure.message.contains("an incident"), "{failure:?}");
        assert_eq!(failure.policy.as_deref(), Some("rule/frozen"), "{target}");
        let is_one = matches!(target, FreezeTarget::Identity { .. });
        assert_eq!(honest.sign(&text(1)).is_ok(), is_one, "{target}");
        if !is_one {
            let opened = mallory.open(&init, &labelled("Welcome", b""), b"");
            assert_eq!(opened.unwrap_err().policy.as_deref(), Some("rule/frozen"));
        }
        // To look is no harm.
        mallory.client.identities(&Call::default()).unwrap();

        house.stop();
        house.start("");
        assert_eq!(refused_by(&mallory, &text(1)), "rule/frozen");
        assert_eq!(thaw(&house, &target).unwrap().frozen, []);
        let CallError::Failure(failure) = thaw(&house, &target).unwrap_err() else {
            panic!("not from the daemon")
        };
        assert_eq!(failure.code, FailureCode::NotFound);
        mallory.sign(&text(1)).unwrap();
    }
    let actions: Vec<_> = house
        .records()
        .iter()
        .map(|it| it.action.to_string())
        .collect();
    for action in ["Freeze", "Frozen", "Thaw", "Thawed"] {
        assert_eq!(
            actions.iter().filter(|it| *it == action).count(),
            if action == "Thaw" { 10 } else { 5 },
            "{action}"
        );
    }
}

/// Without a device to consent with nothing is served that takes a consent.
#[test]
fn what_takes_a_consent_is_not_served_without_one() {
    for action in ["SignApplicationMessage", "GenerateHpke", "OpenWelcome"] {
        let (house, file) = company("");
        let app = App::new(&house, SUITE, "mallory");
        let (init, leaf) = (app.generate(), app.generate());
        app.key_package(&init, &leaf, ALWAYS, false);
        let policy = format!(
            "@id(\"c\") @reason(\"x\") @consent forbid(principal, action == Action::\"{action}\", resource);"
        );
        std::fs::write(&file, policy).unwrap();
        let reload = house
            .admin()
            .reload_policies(ReloadPolicies {}, &Call::default());
        reload.unwrap();
        let hpke = GenerateHpke {
            kem: SUITE.kem,
            placement: Placement::default(),
        };
        let welcome = labelled("Welcome", b"");
        let served = match action {
            "SignApplicationMessage" => app.sign(&text(1)).is_ok(),
            "GenerateHpke" => app.client.generate_hpke(hpke, &Call::default()).is_ok(),
            _ => app.open(&init, &welcome, &SUITE.group_secrets()).is_ok(),
        };
        assert!(!served, "{action}");
    }
}
