//! What looks wrong, and may be meant.

use std::collections::BTreeMap;

use cedar_policy::{ActionConstraint, PrincipalConstraint, ResourceConstraint};

use crate::problem::{Place, Problem};
use crate::schema;
use crate::set::{Rule, Set, refuses};

/// More policies than this that each request of a kind has to be held against are slow.
const MAX_UNSCOPED: usize = 50;

/// Says whether there is something of this type and id: an `App`, `User`, `Group`, `Device` or
/// `Identity`. `None`: that is not known here.
pub type Names<'n> = &'n dyn Fn(&str, &str) -> Option<bool>;

impl Set {
    /// What looks wrong.
    #[must_use]
    pub fn lint(&self, names: Names<'_>) -> Vec<Problem> {
        let mut problems = Vec::new();
        for rule in self.rules() {
            problems.extend(unknown_names(rule, names));
            problems.extend(blind_to_references(rule));
        }
        problems.extend(unscoped(self.rules()));
        problems.sort();
        problems
    }
}

/// A name that is misspelt makes a policy that never applies.
fn unknown_names(rule: &Rule, names: Names<'_>) -> Vec<Problem> {
    let literals = rule.policy.entity_literals();
    let unknown = literals.iter().filter_map(|uid| {
        let kind = uid.type_name().to_string();
        let id = uid.id().unescaped();
        let is_unknown = names(&kind, id) == Some(false);
        is_unknown.then(|| {
            rule.place
                .lint(format!("there is no {kind} {id:?} on this machine"))
        })
    });
    unknown.collect()
}

/// Who restricts some proposals by what a commit spells out does not restrict those that it
/// names by reference, which the daemon has not seen.
fn blind_to_references(rule: &Rule) -> Option<Problem> {
    let speaks_of = |name: &str| rule.text.contains(name);
    let restricts = [
        "members_added",
        "members_removed",
        "added_names",
        "uses_psk",
    ];
    let is_blind = refuses(&rule.policy)
        && restricts.into_iter().any(speaks_of)
        && !speaks_of("unresolved_references");
    is_blind.then(|| {
        rule.place.lint(
            "a commit may name proposals by reference, of which nothing is known: say what is to be with context.unresolved_references",
        )
    })
}

/// Kinds of requests to which too many policies apply whoever asks.
fn unscoped(rules: &[Rule]) -> Vec<Problem> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for rule in rules {
        let is_scoped = !matches!(
            rule.policy.principal_constraint(),
            PrincipalConstraint::Any | PrincipalConstraint::Is(_)
        ) || !matches!(
            rule.policy.resource_constraint(),
            ResourceConstraint::Any | ResourceConstraint::Is(_)
        );
        if is_scoped {
            continue;
        }
        for (action, groups) in schema::ACTIONS.iter() {
            let is_one =
                |uid: &cedar_policy::EntityUid| groups.iter().any(|group| group.uid() == *uid);
            let applies = match rule.policy.action_constraint() {
                ActionConstraint::Any => true,
                ActionConstraint::In(uids) => uids.iter().any(is_one),
                ActionConstraint::Eq(uid) => uid.id().unescaped() == action,
            };
            if applies {
                let count = counts.entry(action).or_default();
                *count = count.saturating_add(1);
            }
        }
    }
    let whole = Place {
        file: "policies".to_owned(),
        line: 0,
    };
    let many = counts
        .into_iter()
        .filter(|(_, count)| *count > MAX_UNSCOPED);
    let many = many.map(|(action, count)| {
        whole.lint(format!(
            "{count} policies apply to each {action}, whoever asks, which is slow: name a principal or a resource in their scope"
        ))
    });
    many.collect()
}
