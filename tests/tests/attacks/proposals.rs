//! Proposals in commits: spelt out, by reference, and of types for private use.

use mlskeyd_protocol::app_content::app_content;
use mlskeyd_protocol::v1::FailureCode;

use crate::forge::*;
use crate::house::App;
use crate::policies::{company, refused_by};
use crate::suite::SUITE_1 as SUITE;

const NO_STRANGERS: &str = r#"
@id("company/no-strangers") @reason("nothing is known of what is committed") @advice("spell it out")
forbid(principal, action == Action::"SignCommit", resource)
when { context.unresolved_references > 0 };
"#;

const NO_REMOVALS: &str = r#"
@id("company/no-removals") @reason("only administrators remove members") @advice("ask one")
forbid(principal, action == Action::"SignProposalRemove", resource);
@id("company/not-the-chair") @reason("the chair stays") @advice("ask him")
forbid(principal, action == Action::"SignCommit", resource)
when { context.removed_leaves.contains(3) };
"#;

fn from_member(epoch: u64, body: &[u8]) -> Vec<u8> {
    message(SUITE, "talk", epoch, Sender::Member(0), body)
}

/// A commit with a path of its own.
fn commits(app: &App, epoch: u64, proposals: &[&[u8]], references: &[&[u8]]) -> Vec<u8> {
    let leaf = app.signed_leaf(&app.generate(), Source::Commit, "talk", 0);
    from_member(epoch, &commit_of(proposals, references, &leaf))
}

fn reference_of(content: &[u8], epoch: u64, signature: &[u8]) -> Vec<u8> {
    proposal_reference(content, &group_context(SUITE, "talk", epoch), signature)
}

#[test]
fn a_forbidden_proposal_is_refused_inline_and_by_reference() {
    let (house, file) = company("");
    let app = App::new(&house, SUITE, "mallory");
    let removal = from_member(5, &proposal(&remove(3)));
    let removed = reference_of(&removal, 5, &app.sign(&removal).unwrap());
    // It is permitted, and known for what it is.
    app.sign(&commits(&app, 5, &[], &[&removed])).unwrap();

    std::fs::write(file, [NO_REMOVALS, NO_STRANGERS].concat()).unwrap();
    house.reload();
    assert_eq!(refused_by(&app, &removal), "company/no-removals");
    let spelt_out = commits(&app, 5, &[&remove(2)], &[]);
    assert_eq!(refused_by(&app, &spelt_out), "company/no-removals");
    // What was signed before is known by its reference.
    let by_reference = commits(&app, 5, &[], &[&removed]);
    assert_eq!(refused_by(&app, &by_reference), "company/not-the-chair");
    // In another epoch, or of somebody else, nothing is known of it.
    let later = commits(&app, 6, &[], &[&removed]);
    assert_eq!(refused_by(&app, &later), "company/no-strangers");
    let strange = commits(&app, 5, &[], &[&[7; 32]]);
    assert_eq!(refused_by(&app, &strange), "company/no-strangers");
    let other = App::new(&house, SUITE, "alice");
    other.sign(&commits(&other, 5, &[], &[])).unwrap();
}

/// The action of a proposal that is named by reference is asked for, too.
#[test]
fn a_reference_takes_the_permit_of_its_proposal() {
    let (house, file) = company("");
    let app = App::new(&house, SUITE, "mallory");
    let removal = from_member(5, &proposal(&remove(2)));
    let removed = reference_of(&removal, 5, &app.sign(&removal).unwrap());
    std::fs::write(file, [NO_REMOVALS, NO_STRANGERS].concat()).unwrap();
    house.reload();
    let by_reference = commits(&app, 5, &[], &[&removed]);
    assert_eq!(refused_by(&app, &by_reference), "company/no-removals");
}

/// What is remembered of a proposal has a bound: a name of any length has not.
#[test]
fn a_proposal_with_an_endless_name_is_not_remembered() {
    let (house, _) = company(NO_STRANGERS);
    let app = App::new(&house, SUITE, "mallory");
    for (length, refused) in [(1024, false), (1025, true)] {
        let mut leaf = app.leaf(&app.own_hpke(1), ALWAYS);
        leaf.credential = credential(&"x".repeat(length));
        let package = key_package(SUITE, &[1; 32], &leaf.signed(&[7; 64]), false);
        let addition = from_member(5, &add(&package, &[7; 64]));
        let added = reference_of(&addition, 5, &app.sign(&addition).unwrap());
        let by_reference = commits(&app, 5, &[], &[&added]);
        if refused {
            assert_eq!(refused_by(&app, &by_reference), "company/no-strangers");
        } else {
            app.sign(&by_reference).unwrap();
        }
    }
}

#[test]
fn proposals_for_private_use_are_those_of_the_configuration() {
    let agreed = private_use(0xf001, b"as we said");
    let other = private_use(0xf002, b"what is this?");
    let (mut house, _) = company("");
    let app = App::new(&house, SUITE, "mallory");
    for unknown in [
        from_member(5, &proposal(&agreed)),
        commits(&app, 5, &[&agreed], &[]),
    ] {
        assert_eq!(refused_by(&app, &unknown), "builtin/unknown-structure");
    }
    house.stop();
    house.start("[policy]\nprivate_proposals = [0xf001]");
    app.sign(&from_member(5, &proposal(&agreed))).unwrap();
    app.sign(&commits(&app, 5, &[&agreed], &[])).unwrap();
    let both = commits(&app, 5, &[&agreed, &other], &[]);
    assert_eq!(refused_by(&app, &both), "builtin/unknown-structure");
    // Such a message goes on record as what it is.
    let is_one = |record: &mlskeyd::audit::Record| record.action == "SignProposalPrivateUse";
    assert!(house.records().iter().any(is_one));
}

/// What an app has signed under a label of its own is never an MLS structure, nor the other
/// way round.
#[test]
fn an_apps_own_content_is_permitted_by_its_label_alone() {
    const LOGIN: &str = r#"
@id("company/login") @reason("people log in by their keys")
permit(principal, action == Action::"SignApp", resource) when { context.label == "login" };
"#;
    let (house, _) = company(LOGIN);
    let app = App::new(&house, SUITE, "mallory");
    let signed = |label: &str| app_content(label, b"challenge").unwrap().expose().to_vec();
    app.sign(&signed("login")).unwrap();
    assert_eq!(refused_by(&app, &signed("login ")), "rule/not-permitted");
    let package = key_package_tbs(&key_package(SUITE, &[1; 32], b"", false));
    for unknown in [
        [signed("login"), vec![0]].concat(),
        signed("login").repeat(2),
        [&opaque(b"mlskeyd 1.0 "), &*opaque(b"challenge")].concat(),
        [&opaque(b"mlskeyd 1.0 log\nin"), &*opaque(b"challenge")].concat(),
        [&opaque(b"mlskeyd 1.1 login"), &*opaque(b"challenge")].concat(),
        package,
    ] {
        let refused = app.sign(&unknown).unwrap_err().policy.unwrap();
        let by = ["builtin/unknown-structure", "rule/binding-by-signing"];
        assert!(by.contains(&refused.as_str()), "{refused}");
    }
}

#[test]
fn nobody_sends_targeted_messages_by_default() {
    let (mut house, _) = company("");
    let app = App::new(&house, SUITE, "mallory");
    let text = targeted_message("talk", 5, 0, 1);
    assert_eq!(refused_by(&app, &text), "rule/not-permitted");
    let mut longer = text.clone();
    longer.push(0);
    assert_eq!(refused_by(&app, &longer), "builtin/unknown-structure");
    house.restart_without_device();
    let failure = app.sign(&text).unwrap_err();
    assert_eq!(failure.code, FailureCode::Denied);
}
