//! Sets of policies: what is refused, and what they answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;

const PERMIT: &str = "@id(\"all\") @reason(\"x\") permit(principal, action, resource);\n";

fn set(texts: &[&str]) -> Set {
    let text = texts.concat();
    Set::new([("test.cedar", text.as_str())]).unwrap()
}

/// What is wrong with a file.
fn problems(text: &str) -> Vec<String> {
    let problems = Set::new([("a.cedar", PERMIT), ("b.cedar", text)]).unwrap_err();
    problems.iter().map(ToString::to_string).collect()
}

fn message(
    caller: CallerFacts,
    context: ContextFacts,
) -> (Arc<CallerFacts>, ResourceFacts, ContextFacts) {
    let resource = ResourceFacts {
        key: "00".to_owned(),
        device: "token".to_owned(),
        identity: Some("alice".to_owned()),
        ..ResourceFacts::default()
    };
    let context = ContextFacts {
        group: Some("00".to_owned()),
        ..context
    };
    (Arc::new(caller), resource, context)
}

fn decide(set: &Set, caller: CallerFacts) -> Answer {
    let (caller, resource, context) = message(caller, ContextFacts::default());
    set.decide(&Facts {
        action: Action::SignApplicationMessage,
        caller: &caller,
        resource: &resource,
        context: &context,
    })
}

#[test]
fn what_is_wrong_is_told_with_file_and_line() {
    for (text, wanted) in [
        (
            "\npermit(principal, action, resource);",
            "b.cedar:2: error: the policy has no @id",
        ),
        (
            "@id(\"b\")\npermit(principal, action, resource);",
            "b.cedar:1: error: the policy has no @reason",
        ),
        (
            PERMIT,
            "b.cedar:1: error: the policy at a.cedar:1 has the same @id(\"all\")",
        ),
        (
            "@id(\"rule/x\") @reason(\"x\") permit(principal, action, resource);",
            "@id(\"rule/x\") is none",
        ),
        (
            "@id(\"candidate/x\") @reason(\"x\") permit(principal, action, resource);",
            "@id(\"candidate/x\") is none",
        ),
        (
            "// x\n@id(\"b\") @reason(\"x\") @mode(\"report\")\npermit(principal, action, resource);",
            "b.cedar:2: error: @mode(\"report\") is for `forbid`",
        ),
        (
            "@id(\"B\") @reason(\"x\") permit(principal, action, resource);",
            "@id(\"B\") is none",
        ),
        (
            "// x\n@id(\"b\") @reason(\"x\")\npermit(principal, action, resource)\nwhen { context.epok > 1 };",
            "b.cedar:4: error",
        ),
        (
            "@id(\"b\") @reason(\"x\") forbid(principal, action == Action::\"SignComit\", resource);",
            "SignComit",
        ),
        (
            "@id(\"b\") @reason(\"x\") permit(principal, action, resource",
            "b.cedar:1: error",
        ),
        (
            "@id(\"b\") @reason(\"x\") permit(principal, action, resource) when { 1 == 2 };",
            "b.cedar:1: error",
        ),
        (
            "@id(\"b\") @reason(\"x\") @mode(\"off\") permit(principal, action, resource);",
            "@mode(\"off\") is none",
        ),
        (
            "@id(\"b\") @reason(\"x\") @consent permit(principal, action, resource);",
            "@consent is for `forbid`",
        ),
        (
            "@id(\"b\") @reason(\"x\") @owner(\"y\") permit(principal, action, resource);",
            "@owner is not known",
        ),
        (
            "@id(\"b\") @reason(\"x\") permit(principal == ?principal, action, resource);",
            "b.cedar:1: error",
        ),
    ] {
        let found = problems(text);
        assert!(
            found.iter().any(|found| found.contains(wanted)),
            "{text}: {found:#?}"
        );
    }
}

/// A misspelt attribute is told with the one that was meant.
#[test]
fn what_may_have_been_meant_is_suggested() {
    let found = problems(
        "@id(\"b\") @reason(\"x\") forbid(principal, action == Action::\"SignCommit\", resource) when { context.guard.commit > 1 };",
    );
    assert!(found[0].contains("commits"), "{found:?}");
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let text =
        "permit(principal, action, resource);\nforbid(;\npermit(principal, action, resource);";
    assert!(problems(text).len() >= 3);
}

#[test]
fn without_policies_nothing_is_permitted() {
    let none = Set::new([]).unwrap();
    let answer = decide(&none, CallerFacts::default());
    assert_eq!(
        (answer.is_permit, answer.by.policy.as_str()),
        (false, "rule/not-permitted")
    );
}

#[test]
fn a_refusal_is_by_the_first_policy_and_has_its_texts() {
    let set = set(&[
        PERMIT,
        "@id(\"z\") @reason(\"last\") forbid(principal, action, resource);",
        "@id(\"b\") @reason(\"first\") @advice(\"do this\") forbid(principal, action, resource);",
    ]);
    let answer = decide(&set, CallerFacts::default());
    let said = Said {
        policy: "b".to_owned(),
        reason: "first".to_owned(),
        advice: Some("do this".to_owned()),
    };
    assert_eq!((answer.is_permit, answer.by), (false, said));
}

#[test]
fn what_is_reported_is_not_refused() {
    let set = set(&[
        PERMIT,
        "@id(\"b\") @reason(\"x\") @mode(\"report\") forbid(principal in App::\"default\", action, resource);",
    ]);
    let answer = decide(&set, CallerFacts::default());
    assert!(answer.is_permit);
    assert_eq!(answer.would_deny, ["b"]);
    let other = CallerFacts {
        app: "other".to_owned(),
        ..CallerFacts::default()
    };
    assert_eq!(decide(&set, other).would_deny, [""; 0]);
}

#[test]
fn what_takes_consent_is_permitted_with_it() {
    let set = set(&[
        PERMIT,
        "@id(\"b\") @reason(\"touch it\") @consent forbid(principal in Group::\"staff\", action, resource);",
    ]);
    assert_eq!(decide(&set, CallerFacts::default()).consent, None);
    let staff = CallerFacts {
        groups: ["staff".to_owned()].into(),
        ..CallerFacts::default()
    };
    let consent = decide(&set, staff).consent.unwrap();
    assert_eq!(
        (consent.policy.as_str(), consent.reason.as_str()),
        ("b", "touch it")
    );
}

#[test]
fn every_part_of_a_scope_counts() {
    for (scope, wanted) in [
        ("principal, action, resource", true),
        (
            "principal == Caller::\"#1000/default\", action, resource",
            true,
        ),
        (
            "principal == Caller::\"#1001/default\", action, resource",
            false,
        ),
        ("principal in User::\"#1000\", action, resource", true),
        ("principal in User::\"#1001\", action, resource", false),
        (
            "principal is Caller in App::\"default\", action, resource",
            true,
        ),
        (
            "principal is Caller in App::\"other\", action, resource",
            false,
        ),
        ("principal, action in Action::\"Sign\", resource", true),
        ("principal, action in Action::\"Open\", resource", false),
        (
            "principal, action == Action::\"SignApplicationMessage\", resource",
            true,
        ),
        (
            "principal, action == Action::\"SignCommit\", resource",
            false,
        ),
        (
            "principal, action in Action::\"Sign\", resource in Device::\"token\"",
            true,
        ),
        (
            "principal, action in Action::\"Sign\", resource in Device::\"other\"",
            false,
        ),
        (
            "principal, action in Action::\"Sign\", resource in Identity::\"alice\"",
            true,
        ),
        (
            "principal, action in Action::\"Sign\", resource == Key::\"00\"",
            true,
        ),
        (
            "principal, action in Action::\"Sign\", resource == Key::\"01\"",
            false,
        ),
        (
            "principal, action in Action::\"Sign\", resource is Key",
            true,
        ),
        ("principal, action, resource is Service", false),
        (
            "principal, action in Action::\"Sign\", resource is Key in Device::\"token\"",
            true,
        ),
        (
            "principal, action in Action::\"Sign\", resource is Key in Device::\"other\"",
            false,
        ),
    ] {
        let set = set(&["@id(\"a\") @reason(\"x\") permit(", scope, ");"]);
        let answer = decide(&set, CallerFacts::default());
        assert_eq!(answer.is_permit, wanted, "{scope}");
    }
}

/// The daemon does not ask for a request that the schema has no place for.
#[test]
fn every_action_is_asked_as_the_schema_has_it() {
    let set = set(&[PERMIT]);
    let known = Action::ALL
        .iter()
        .copied()
        .filter(|it| schema::is_known(*it));
    for action in known.clone() {
        let (caller, resource, context) = message(
            CallerFacts::default(),
            ContextFacts {
                lifetime_days: Some(1),
                cipher_suite: Some(1),
                ..ContextFacts::default()
            },
        );
        let facts = Facts {
            action,
            caller: &caller,
            resource: &resource,
            context: &context,
        };
        assert!(set.decide(&facts).is_permit, "{action}");
    }
    // And the schema has no others, but for groups of them.
    let of_schema = schema::ACTIONS.keys().map(String::as_str);
    let of_schema = of_schema.filter(|name| Action::from_name(name).is_some());
    assert_eq!(
        of_schema.collect::<BTreeSet<_>>(),
        known.map(Action::name).collect()
    );
}

#[test]
fn an_evaluation_that_fails_refuses() {
    // Numbers of Cedar have 64 bits, and to go beyond them is an error.
    let overflow = "@id(\"b\") @reason(\"x\") forbid(principal, action == Action::\"SignApplicationMessage\", resource) when { context.epoch * 4 == 0 };";
    let enforced = set(&[PERMIT, overflow]);
    let reported = overflow.replace("@reason", "@mode(\"report\") @reason");
    let reported = set(&[PERMIT, &reported]);
    let (caller, resource, mut context) = message(CallerFacts::default(), ContextFacts::default());
    context.epoch = u64::MAX;
    let facts = Facts {
        action: Action::SignApplicationMessage,
        caller: &caller,
        resource: &resource,
        context: &context,
    };
    let answer = enforced.decide(&facts);
    assert_eq!(
        (answer.is_permit, answer.by.policy.as_str()),
        (false, "rule/undecidable")
    );
    let answer = reported.decide(&facts);
    assert!(answer.is_permit);
    assert_eq!(answer.would_deny, ["rule/undecidable"]);
}

/// A policy that compares a record as a whole is decided on all of it.
#[test]
fn records_as_values_are_whole() {
    let same = r#"@id("same") @reason("x") forbid(principal, action == Action::"SignCommit", resource) when {
        context.guard == {"known": true, "epochs_behind": 0, "epochs_ahead": 0, "commits": 2, "restored": false} };"#;
    let set = set(&[PERMIT, same]);
    let decide = |commits| {
        let guard = GuardFacts {
            known: true,
            commits,
            ..GuardFacts::default()
        };
        let context = ContextFacts {
            guard,
            ..ContextFacts::default()
        };
        let (caller, resource, context) = message(CallerFacts::default(), context);
        set.decide(&Facts {
            action: Action::SignCommit,
            caller: &caller,
            resource: &resource,
            context: &context,
        })
    };
    assert_eq!(decide(2).by.policy, "same");
    assert!(decide(1).is_permit);
}
