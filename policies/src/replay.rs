//! What policies would have decided on requests that are on record.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Action, Answer, CallerFacts, ContextFacts, Facts, ResourceFacts, Set, schema};

/// A request, as it is on record.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Recorded {
    caller: Arc<CallerFacts>,
    resource: ResourceFacts,
    context: ContextFacts,
}

/// The facts of a request as they go on record, as JSON: without the action, of which there
/// may be more than one.
#[must_use]
pub fn to_record(caller: &CallerFacts, resource: &ResourceFacts, context: &ContextFacts) -> String {
    #[derive(Serialize)]
    struct Written<'a> {
        caller: &'a CallerFacts,
        resource: &'a ResourceFacts,
        context: &'a ContextFacts,
    }
    let written = Written {
        caller,
        resource,
        context,
    };
    serde_json::to_string(&written).unwrap_or_default()
}

/// What a set answers to a request on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// It would be permitted.
    Permitted,
    /// It would be refused, by the policy with this id.
    Refused(String),
}

/// What a set has to say of a request on record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    /// The policies that refuse it; none: it is permitted, or nothing permits it.
    pub refused_by: Vec<String>,
    /// The policy that permits it, or would without those that refuse it.
    pub permitted_by: Option<String>,
}

impl Recorded {
    /// Reads what [`to_record`] wrote, also if an earlier version did.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// What a set decides on a request by this action. `None`: policies do not decide on it.
    #[must_use]
    pub fn replay(&self, action: &str, set: &Set) -> Option<Replayed> {
        let (answer, _) = self.decide(action, set)?;
        Some(if answer.is_permit {
            Replayed::Permitted
        } else {
            Replayed::Refused(answer.by.policy)
        })
    }

    /// The same, with all policies that decide it, and what would be without them.
    #[must_use]
    pub fn explain(&self, action: &str, set: &Set) -> Option<Explained> {
        let (answer, else_permitted_by) = self.decide(action, set)?;
        Some(if answer.is_permit {
            Explained {
                refused_by: Vec::new(),
                permitted_by: Some(answer.by.policy),
            }
        } else {
            Explained {
                refused_by: answer.all,
                permitted_by: else_permitted_by,
            }
        })
    }

    /// What the set answers to the first of the actions that it refuses, and what would
    /// permit that; else to the request's own.
    fn decide(&self, action: &str, set: &Set) -> Option<(Answer, Option<String>)> {
        let known = |name: &str| Action::from_name(name).filter(|it| schema::is_known(*it));
        let action = known(action)?;
        let mut context = self.context.clone();
        // A commit takes the permits of its proposals, too.
        let inner = self.context.proposals.iter().filter_map(|it| known(it));
        let mut permitted = None;
        for one in std::iter::once(action).chain(inner) {
            context.in_commit = action == Action::SignCommit && one != action;
            let facts = Facts {
                action: one,
                caller: &self.caller,
                resource: &self.resource,
                context: &context,
            };
            let answer = set.decide(&facts);
            if !answer.is_permit {
                let else_permitted_by = set.else_permitted_by(&facts);
                return Some((answer, else_permitted_by));
            }
            permitted.get_or_insert(answer);
        }
        Some((permitted?, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuardFacts, Moment};

    fn set(text: &str) -> Set {
        Set::new([("x.cedar", text)]).unwrap()
    }

    #[test]
    fn what_is_on_record_is_asked_again() {
        let context = ContextFacts {
            group: Some("00".to_owned()),
            epoch: 7,
            proposals: ["SignProposalRemove".to_owned()].into(),
            guard: GuardFacts {
                commits: 3,
                ..GuardFacts::default()
            },
            now: Moment {
                hour: 3,
                ..Moment::default()
            },
            ..ContextFacts::default()
        };
        let resource = ResourceFacts {
            key: "01".to_owned(),
            device: "token".to_owned(),
            ..ResourceFacts::default()
        };
        let text = to_record(&CallerFacts::default(), &resource, &context);
        assert!(!text.contains("unresolved_references"), "{text}");
        let recorded = Recorded::read(&text).unwrap();
        assert_eq!(recorded.context, context);
        assert_eq!(recorded.resource, resource);

        let all = "@id(\"all\") @reason(\"x\") permit(principal, action, resource);\n";
        let with = |more: &str| set(&format!("{all}@id(\"no\") @reason(\"x\") {more}"));
        let refused = Some(Replayed::Refused("no".to_owned()));
        let night = with(
            "forbid(principal, action == Action::\"SignCommit\", resource) when { context.now.hour < 6 };",
        );
        let removals = with(
            "forbid(principal, action == Action::\"SignProposalRemove\", resource) when { context.in_commit };",
        );
        assert_eq!(
            recorded.replay("SignCommit", &set(all)),
            Some(Replayed::Permitted)
        );
        assert_eq!(recorded.replay("SignCommit", &night), refused);
        assert_eq!(recorded.replay("SignCommit", &removals), refused);
        assert_eq!(recorded.replay("Administer", &night), None);
        assert_eq!(Recorded::read("{}"), None);
    }
}
