use std::cell::RefCell;

use super::*;
use crate::DEFAULT;

const PERMIT: &str = "@id(\"all\") @reason(\"x\") permit(principal, action, resource) unless { context has label && context.label != \"login\" };\n";

/// Policies with ids of their own, each on a line of its own.
fn set(policies: &[&str]) -> Set {
    let numbered = policies.iter().enumerate();
    let text = numbered.map(|(n, policy)| format!("@id(\"p{n}\") @reason(\"x\") {policy}\n"));
    let text: String = text.collect();
    Set::new([("all.cedar", PERMIT), ("test.cedar", text.as_str())]).unwrap()
}

fn lints(set: &Set, names: Names<'_>) -> Vec<String> {
    set.lint(names).iter().map(ToString::to_string).collect()
}

fn nothing_known(_: &str, _: &str) -> Option<bool> {
    None
}

#[test]
fn the_default_policies_look_right() {
    assert_eq!(Set::new(DEFAULT).unwrap().lint(&nothing_known), []);
}

#[test]
fn names_that_nobody_has_are_told() {
    let set = set(&[
        "forbid(principal in Group::\"tradres\", action, resource);",
        "forbid(principal in Group::\"traders\", action, resource) unless { principal.app == App::\"wier\" };",
        "forbid(principal in User::\"mallory\", action in Action::\"Sign\", resource in Device::\"tokn\");",
        "forbid(principal, action == Action::\"SignCommit\", resource in Identity::\"alcie\");",
        "forbid(principal in Group::\"tradres\", action == Action::\"Look\", resource);",
    ]);
    let asked = RefCell::new(Vec::new());
    let told = lints(&set, &|kind, id| {
        asked.borrow_mut().push(id.to_owned());
        let known = ["User", "Group", "App", "Device", "Identity"].contains(&kind);
        known.then_some(["traders", "mallory"].contains(&id))
    });
    let wanted = [
        "test.cedar:1: lint: there is no Group \"tradres\" on this machine",
        "test.cedar:2: lint: there is no App \"wier\" on this machine",
        "test.cedar:3: lint: there is no Device \"tokn\" on this machine",
        "test.cedar:4: lint: there is no Identity \"alcie\" on this machine",
        "test.cedar:5: lint: there is no Group \"tradres\" on this machine",
    ];
    assert_eq!(told, wanted);
    let times = asked.borrow().iter().filter(|id| *id == "tradres").count();
    assert_eq!(times, 1);
    assert_eq!(lints(&set, &nothing_known), [""; 0]);
}

#[test]
fn what_is_no_mls_is_permitted_by_its_label() {
    let told = |policy| lints(&set(&[policy]), &nothing_known);
    for broad in [
        "permit(principal, action, resource);",
        "permit(principal, action in Action::\"Sign\", resource);",
        "permit(principal, action == Action::\"SignApp\", resource);",
    ] {
        assert!(told(broad)[0].contains("SignApp"), "{broad}");
    }
    for meant in [
        "permit(principal, action == Action::\"SignApp\", resource) when { context.label == \"login\" };",
        "permit(principal, action in Action::\"SignMessage\", resource);",
        "forbid(principal, action == Action::\"SignApp\", resource);",
    ] {
        assert_eq!(told(meant), [""; 0], "{meant}");
    }
}

#[test]
fn an_identity_may_be_one_that_is_to_be_made() {
    let set = set(&[
        "forbid(principal, action == Action::\"CreateIdentity\", resource == Identity::\"root\");",
        "forbid(principal, action in Action::\"Make\", resource in Identity::\"root\");",
    ]);
    let none = |kind: &str, _: &str| (kind == "Identity").then_some(false);
    assert_eq!(lints(&set, &none), [""; 0]);
}

/// The lines of policies that a commit by reference gets around.
fn blind(policies: &[&str]) -> Vec<usize> {
    let problems = set(policies).lint(&nothing_known);
    let lines = problems.iter().map(|problem| {
        assert!(
            problem
                .message
                .starts_with("a commit may name proposals by reference"),
            "{problem}"
        );
        assert!(
            problem
                .message
                .contains("when { context.unresolved_references > 0 }"),
            "{problem}"
        );
        problem.line
    });
    lines.collect()
}

const NONE_UNSEEN: &str = "forbid(principal, action == Action::\"SignCommit\", resource) when { context.unresolved_references > 0 };";

#[test]
fn who_restricts_proposals_is_told_of_references() {
    for policy in [
        "forbid(principal, action == Action::\"SignProposalRemove\", resource);",
        "forbid(principal, action in [Action::\"SignProposalUpdate\", Action::\"SignProposalAdd\"], resource);",
        "forbid(principal in Group::\"staff\", action in Action::\"SignProposal\", resource);",
        "@consent forbid(principal, action == Action::\"SignProposalAdd\", resource);",
        "@mode(\"report\") forbid(principal, action == Action::\"SignProposalReInit\", resource);",
        "forbid(principal, action == Action::\"SignCommit\", resource) when { context.members_added > 5 };",
        "forbid(principal, action == Action::\"SignCommit\", resource) when { context.removed_leaves.contains(3) };",
        "forbid(principal, action == Action::\"SignCommit\", resource) when { context.private_proposals.contains(61441) };",
        "forbid(principal, action in Action::\"SignMessage\", resource) when { context.in_commit };",
        "forbid(principal, action == Action::\"SignCommit\", resource) when { context.proposals.contains(\"SignProposalAdd\") };",
        "permit(principal, action == Action::\"SignCommit\", resource) when { context.members_removed == 0 };",
        "forbid(principal, action == Action::\"SignProposalAdd\", resource) when { context.unresolved_references > 0 };",
        "forbid(principal, action == Action::\"SignCommit\", resource) // unresolved_references\n when { context.uses_psk };",
    ] {
        assert_eq!(blind(&[policy]), [1], "{policy}");
        assert_eq!(blind(&[policy, NONE_UNSEEN]), [0; 0], "{policy}");
    }
}

#[test]
fn what_a_reference_does_not_get_around_looks_right() {
    for policy in [
        "forbid(principal, action in Action::\"Sign\", resource) when { context.rates.signatures_hour > 5 };",
        "forbid(principal, action == Action::\"SignCommit\", resource) when { context.external_join };",
        "forbid(principal, action == Action::\"SignProposalUpdate\", resource);",
        "forbid(principal, action == Action::\"SignProposalExternalInit\", resource);",
        "forbid(principal, action == Action::\"SignApplicationMessage\", resource);",
        "forbid(principal, action == Action::\"SignCommit\", resource) when { context.members_added > 5 || context.unresolved_references > 0 };",
        "permit(principal, action == Action::\"SignCommit\", resource) when { context.members_added == 0 && context.unresolved_references == 0 };",
        "permit(principal, action == Action::\"SignProposalAdd\", resource);",
    ] {
        assert_eq!(blind(&[policy]), [0; 0], "{policy}");
    }
}

#[test]
fn references_are_forbidden_to_the_same_principals_or_to_more() {
    let unseen = |mode: &str, scope: &str| {
        let (principal, resource) = scope.split_once('|').unwrap();
        format!(
            "{mode} forbid({principal}, action in [Action::\"SignCommit\"], {resource}) when {{ context.unresolved_references > 0 }};"
        )
    };
    let removal = |mode: &str, principal: &str| {
        format!("{mode} forbid({principal}, action == Action::\"SignProposalRemove\", resource);")
    };
    let (staff, report) = ("principal in Group::\"staff\"", "@mode(\"report\")");
    for (guard, policy, is_blind) in [
        (unseen("", "principal|resource"), removal("", staff), false),
        (
            unseen("", "principal is Caller|resource is Key"),
            removal("", staff),
            false,
        ),
        (
            unseen("", &format!("{staff}|resource")),
            removal("", staff),
            false,
        ),
        (
            unseen("", &format!("{staff}|resource")),
            removal("", "principal"),
            true,
        ),
        (
            unseen("", "principal in Group::\"others\"|resource"),
            removal("", staff),
            true,
        ),
        (
            unseen("", "principal|resource in Device::\"token\""),
            removal("", staff),
            true,
        ),
        (
            unseen(report, "principal|resource"),
            removal("", staff),
            true,
        ),
        (
            unseen("@consent", "principal|resource"),
            removal("", staff),
            true,
        ),
        (
            unseen("@consent", "principal|resource"),
            removal("@consent", staff),
            false,
        ),
        (
            unseen(report, "principal|resource"),
            removal(report, staff),
            false,
        ),
    ] {
        let lines = blind(&[&guard, &policy]);
        let wanted: &[usize] = if is_blind { &[2] } else { &[] };
        assert_eq!(lines, wanted, "{guard} {policy}");
    }
}

/// What is told of a set with so many policies of each scope.
fn many(scopes: &[(usize, &str)]) -> Vec<String> {
    let policies = scopes.iter().flat_map(|(count, scope)| {
        let (principal, resource) = scope.split_once('|').unwrap();
        let one = move |n| {
            format!(
                "forbid({principal}, action == Action::\"SignCommit\", {resource}) when {{ context.epoch == {n} }};"
            )
        };
        (0..*count).map(one)
    });
    let policies: Vec<String> = policies.collect();
    let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
    lints(&set(&policies), &nothing_known)
}

const ALL: &str = "principal|resource";
const STAFF: &str = "principal in Group::\"staff\"|resource";
const OTHERS: &str = "principal in Group::\"others\"|resource";
const TOKEN: &str = "principal|resource in Device::\"token\"";
const BOTH: &str = "principal in Group::\"staff\"|resource in Device::\"token\"";

/// Beside them there is one that permits all.
#[test]
fn more_than_fifty_policies_for_one_request_are_told() {
    for scopes in [
        &[(49, ALL)][..],
        &[(49, STAFF)],
        &[(40, STAFF), (40, OTHERS)],
        &[(9, ALL), (20, STAFF), (30, OTHERS), (5, TOKEN), (5, BOTH)],
    ] {
        assert_eq!(many(scopes), [""; 0], "{scopes:?}");
    }
    for (scopes, said) in [
        (
            &[(50, ALL)][..],
            "51 policies apply to each SignCommit, whoever asks, which is slow",
        ),
        (
            &[(60, STAFF)],
            "61 policies apply to each SignCommit of Group::\"staff\", which is slow",
        ),
        (
            &[(60, TOKEN)],
            "61 policies apply to each SignCommit of Device::\"token\", which is slow",
        ),
        (
            &[(10, ALL), (25, STAFF), (20, OTHERS), (20, TOKEN)],
            "56 policies apply to each SignCommit of Group::\"staff\" and Device::\"token\", which",
        ),
        (
            &[(10, ALL), (5, STAFF), (20, OTHERS), (5, TOKEN), (30, BOTH)],
            "51 policies apply to each SignCommit of Group::\"staff\" and Device::\"token\", which",
        ),
    ] {
        let told = many(scopes);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains(said), "{told:?}");
    }
}
