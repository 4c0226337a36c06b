//! Who restricts proposals that a commit spells out does not restrict those that it names by
//! reference, if the daemon has not seen them.

use cedar_policy::{PrincipalConstraint, ResourceConstraint};

use super::{asks, is_about};
use crate::Action;
use crate::problem::Problem;
use crate::set::{Rule, refuses};

/// How many proposals a commit names of which nothing is known.
const UNSEEN: &str = "unresolved_references";

/// What of a commit is known of those only that were seen.
const OF_PROPOSALS: [&str; 9] = [
    "in_commit",
    "proposals",
    "private_proposals",
    "members_added",
    "added_names",
    "members_removed",
    "removed_leaves",
    "uses_psk",
    "required_capabilities",
];

/// What is done to the group by whoever commits it. The others are not to be got around by
/// a reference: an Update and a SelfRemove are of nobody but who proposes them, and an
/// ExternalInit is always spelt out (RFC 9420, 12.4.3.2).
const PROPOSALS: [Action; 6] = [
    Action::SignProposalAdd,
    Action::SignProposalRemove,
    Action::SignProposalPreSharedKey,
    Action::SignProposalReInit,
    Action::SignProposalGroupContextExtensions,
    Action::SignProposalPrivateUse,
];

/// Policies that a commit by reference gets around, in a set that lets it.
pub(super) fn blind(rules: &[Rule]) -> Vec<Problem> {
    let guards = rules
        .iter()
        .filter(|rule| refuses(&rule.policy) && sees(rule));
    let guards: Vec<&Rule> = guards.collect();
    let blind = rules.iter().filter(|rule| {
        restricts(rule) && !sees(rule) && !guards.iter().any(|guard| covers(guard, rule))
    });
    let told = blind.map(|rule| {
        rule.place.lint(
            "a commit may name proposals by reference, of which nothing is known, so that it gets around this: for the same principals, or for all, add forbid(principal, action == Action::\"SignCommit\", resource) when { context.unresolved_references > 0 }",
        )
    });
    told.collect()
}

/// Does it say what commits may do, by their proposals?
fn restricts(rule: &Rule) -> bool {
    if is_about(&rule.policy, Action::SignCommit) {
        return asks(rule, &OF_PROPOSALS);
    }
    let is_about = |action| is_about(&rule.policy, action);
    refuses(&rule.policy) && PROPOSALS.into_iter().any(is_about)
}

/// Does it look at what a commit names by reference?
fn sees(rule: &Rule) -> bool {
    is_about(&rule.policy, Action::SignCommit) && asks(rule, &[UNSEEN])
}

/// Does the scope of a policy have all that another one's has, with no less coming of it?
fn covers(guard: &Rule, rule: &Rule) -> bool {
    let (principal, resource) = (
        guard.policy.principal_constraint(),
        guard.policy.resource_constraint(),
    );
    let is_for_all = matches!(
        principal,
        PrincipalConstraint::Any | PrincipalConstraint::Is(_)
    );
    let is_with_all = matches!(
        resource,
        ResourceConstraint::Any | ResourceConstraint::Is(_)
    );
    guard.mode >= rule.mode
        && (is_for_all || principal == rule.policy.principal_constraint())
        && (is_with_all || resource == rule.policy.resource_constraint())
}
