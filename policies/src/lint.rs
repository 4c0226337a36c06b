//! What looks wrong, and may be meant.

mod many;
mod references;

use std::collections::BTreeMap;

use cedar_policy::{ActionConstraint, Policy};

use crate::Action;
use crate::asked::Asked;
use crate::problem::Problem;
use crate::schema;
use crate::set::{Rule, Set, refuses};

/// Says whether there is something of this type and id: an `App`, `User`, `Group`, `Device` or
/// `Identity`. `None`: that is not known here.
pub type Names<'n> = &'n dyn Fn(&str, &str) -> Option<bool>;

impl Set {
    /// What looks wrong.
    #[must_use]
    pub fn lint(&self, names: Names<'_>) -> Vec<Problem> {
        let mut problems = unknown_names(self.rules(), names);
        problems.extend(references::blind(self.rules()));
        problems.extend(any_label(self.rules()));
        problems.extend(many::at_once(self.rules()));
        problems.sort();
        problems
    }
}

/// Who permits every signature permits apps to have anything signed that they give a label.
fn any_label(rules: &[Rule]) -> impl Iterator<Item = Problem> {
    let permits = rules.iter().filter(|rule| {
        !refuses(&rule.policy) && is_about(&rule.policy, Action::SignApp) && !asks(rule, &["label"])
    });
    permits.map(|rule| {
        rule.place.lint(
            "this permits apps to have anything signed that is no MLS structure (SignApp), under any label: name the actions that are meant, or ask for context.label",
        )
    })
}

/// As the policy language has read it: what a comment says does not count.
fn asks(rule: &Rule, attributes: &[&str]) -> bool {
    Asked::by([&rule.policy]).is_ok_and(|asked| attributes.iter().any(|name| asked.has(name)))
}

/// A name that is misspelt makes a policy that never applies.
fn unknown_names(rules: &[Rule], names: Names<'_>) -> Vec<Problem> {
    // Whoever answers may have to ask a directory: once for each name.
    let mut known = BTreeMap::new();
    let mut problems = Vec::new();
    for rule in rules {
        for uid in rule.policy.entity_literals() {
            let kind = uid.type_name().to_string();
            if kind == "Identity" && is_about(&rule.policy, Action::CreateIdentity) {
                // It may be about one that is to be made.
                continue;
            }
            let id = uid.id().unescaped().to_owned();
            let name = (kind, id);
            let is_there = *known
                .entry(name.clone())
                .or_insert_with(|| names(&name.0, &name.1));
            if is_there == Some(false) {
                let (kind, id) = name;
                let message = format!("there is no {kind} {id:?} on this machine");
                problems.push(rule.place.lint(message));
            }
        }
    }
    problems
}

/// Does a policy speak of this action, by its scope?
fn is_about(policy: &Policy, action: Action) -> bool {
    let is_one = |uid| {
        let groups = schema::ACTIONS.get(action.name()).into_iter().flatten();
        groups.into_iter().any(|group| group.uid() == uid)
    };
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::In(uids) => uids.into_iter().any(is_one),
        ActionConstraint::Eq(uid) => uid.id().unescaped() == action.name(),
    }
}

#[cfg(test)]
mod tests;
