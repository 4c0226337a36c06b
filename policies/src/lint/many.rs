//! Policies by the dozen that one request is held against.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{EntityUid, Policy, PrincipalConstraint, ResourceConstraint};

use super::is_about;
use crate::Action;
use crate::problem::{Place, Problem};
use crate::schema;
use crate::set::Rule;

/// More policies than this that one request is held against are slow.
const MOST: usize = 50;

/// Whom a policy's scope names: a principal, and a resource.
type Scope = (Option<EntityUid>, Option<EntityUid>);

/// Kinds of requests of which one is held against too many policies.
pub(super) fn at_once(rules: &[Rule]) -> Vec<Problem> {
    let whole = Place {
        file: "policies".to_owned(),
        line: 0,
    };
    let actions = Action::ALL.iter().copied();
    let actions = actions.filter(|action| schema::is_known(*action));
    let most = actions.map(|action| (action, most(rules, action)));
    let too_many = most.filter(|(_, (count, _))| *count > MOST);
    let told = too_many.map(|(action, (count, scope))| {
        let named = [&scope.0, &scope.1].into_iter().flatten();
        let named: Vec<String> = named.map(ToString::to_string).collect();
        let said = if named.is_empty() {
            ", whoever asks, which is slow: name a principal or a resource in their scope"
                .to_owned()
        } else {
            format!(
                " of {}, which is slow: put some of them together, or name fewer in their scope",
                named.join(" and ")
            )
        };
        whole.lint(format!("{count} policies apply to each {action}{said}"))
    });
    told.collect()
}

/// How many policies one request of this kind is held against, and of whom it is: those that
/// name nobody, with the most that name the same principal, the same resource, or the same of
/// both. It may be more: who is in several groups has the policies of all of them.
fn most(rules: &[Rule], action: Action) -> (usize, Scope) {
    let mut counts: BTreeMap<Scope, usize> = BTreeMap::new();
    for rule in rules.iter().filter(|rule| is_about(&rule.policy, action)) {
        let count = counts.entry(scope(&rule.policy)).or_default();
        *count = count.saturating_add(1);
    }
    let largest = |is_one: fn(&Scope) -> bool| {
        let ones = counts.iter().filter(|(scope, _)| is_one(scope));
        ones.max_by_key(|(_, count)| **count)
            .map(|(scope, _)| scope.clone())
            .unwrap_or_default()
    };
    let (principal, _) = largest(|(_, resource)| resource.is_none());
    let (_, resource) = largest(|(principal, _)| principal.is_none());
    let scopes = counts.keys().cloned().chain([(principal, resource)]);
    let all = scopes.map(|scope| (together(&counts, &scope), scope));
    all.max_by_key(|(count, _)| *count).unwrap_or_default()
}

/// How many apply to a request of this principal with this resource.
fn together(counts: &BTreeMap<Scope, usize>, (principal, resource): &Scope) -> usize {
    let scopes = BTreeSet::from([
        (None, None),
        (principal.clone(), None),
        (None, resource.clone()),
        (principal.clone(), resource.clone()),
    ]);
    scopes.iter().filter_map(|scope| counts.get(scope)).sum()
}

fn scope(policy: &Policy) -> Scope {
    use {PrincipalConstraint as P, ResourceConstraint as R};
    let principal = match policy.principal_constraint() {
        P::Any | P::Is(_) => None,
        P::In(uid) | P::Eq(uid) | P::IsIn(_, uid) => Some(uid),
    };
    let resource = match policy.resource_constraint() {
        R::Any | R::Is(_) => None,
        R::In(uid) | R::Eq(uid) | R::IsIn(_, uid) => Some(uid),
    };
    (principal, resource)
}
