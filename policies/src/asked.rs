//! What of the context policies ask for: what none does need not be made for a request, and
//! making it costs more than deciding.

use std::collections::BTreeSet;

use cedar_policy::Policy;
use serde_json::Value;

use crate::Unfit;

/// The attributes of the context that some policies ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// All: the context itself is used as a value, or it is to be checked as a whole.
    All,
    /// These, and those within them.
    Only(BTreeSet<String>),
}

impl Asked {
    /// By these policies.
    pub(crate) fn by<'p>(policies: impl IntoIterator<Item = &'p Policy>) -> Result<Self, Unfit> {
        let mut asked = Self::Only(BTreeSet::new());
        for policy in policies {
            // As Cedar itself writes it: there are no escapes in names any more.
            asked.look(&policy.to_json().map_err(|_| Unfit)?);
        }
        Ok(asked)
    }

    /// Does a policy ask for this one?
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }

    fn look(&mut self, json: &Value) {
        match json {
            Value::Object(fields) => {
                if fields.get("Var").is_some_and(|var| var == "context") {
                    *self = Self::All;
                }
                for (name, value) in fields {
                    if !matches!(name.as_str(), "." | "has") {
                        self.look(value);
                        continue;
                    }
                    // Of what it is an attribute does not matter: `time` is one of `now`.
                    self.add(value.get("attr").unwrap_or(&Value::Null));
                    let of = value.get("left").unwrap_or(&Value::Null);
                    if of.get("Var").is_none_or(|var| var != "context") {
                        self.look(of);
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| self.look(value)),
            _ => {}
        }
    }

    /// One name, or, with `has`, also one within another.
    fn add(&mut self, attribute: &Value) {
        let Self::Only(names) = self else { return };
        match attribute {
            Value::String(name) => drop(names.insert(name.clone())),
            Value::Array(path) => path.iter().for_each(|name| self.add(name)),
            // Written in a way that is not known here.
            _ => *self = Self::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(condition: &str) -> Asked {
        let text = format!("forbid(principal, action, resource) when {{ {condition} }};");
        let policy = Policy::parse(None, text).unwrap();
        Asked::by([&policy]).unwrap()
    }

    fn only(names: &[&str]) -> Asked {
        Asked::Only(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn what_policies_name_is_asked_for() {
        assert_eq!(asked("1 == 2"), only(&[]));
        assert_eq!(
            asked("context.guard.commits > 1 || context.epoch == 3"),
            only(&["guard", "commits", "epoch"])
        );
        assert_eq!(
            asked("context has lifetime_days && [context.source].contains(\"update\")"),
            only(&["lifetime_days", "source"])
        );
        assert_eq!(
            asked("context[\"ep\\u{6f}ch\"] == 1 && principal.user.uid == 2"),
            only(&["epoch", "user", "uid"])
        );
        assert_eq!(
            asked("context has now.time && principal has user.uid && \"context\" == \"Var\""),
            only(&["now", "time", "user", "uid"])
        );
    }

    #[test]
    fn the_context_as_a_value_is_all_of_it() {
        assert_eq!(asked("context == {\"epoch\": 1}"), Asked::All);
        assert_eq!(asked("[context].contains({})"), Asked::All);
        assert_eq!(
            asked("(if true then context else context).epoch == 1"),
            Asked::All
        );
        assert!(Asked::All.has("anything"));
    }
}
