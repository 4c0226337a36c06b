//! What of the context policies ask for: what none does need not be made for a request, and
//! making it costs more than deciding.

use std::collections::BTreeSet;

use cedar_policy::Policy;
use serde_json::Value;

use crate::Unfit;

/// What of the context some policies ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// All: the context itself is used as a value, or it is to be checked as a whole.
    All,
    /// These attributes.
    Only(Attributes),
}

/// Attributes by their names, of whatever they are one: `time` is one of `now`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    named: BTreeSet<String>,
    /// Those of them that are used as a value, so that a record among them is to have all
    /// of its own.
    values: BTreeSet<String>,
}

impl Asked {
    /// By these policies.
    pub(crate) fn by<'p>(policies: impl IntoIterator<Item = &'p Policy>) -> Result<Self, Unfit> {
        let mut asked = Self::Only(Attributes::default());
        for policy in policies {
            // As Cedar itself writes it: there are no escapes in names any more.
            asked.look(&policy.to_json().map_err(|_| Unfit)?, false);
        }
        Ok(asked)
    }

    /// Does a policy ask for this one?
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(attributes) => attributes.named.contains(name),
        }
    }

    /// What is asked for within a record of this name.
    pub(crate) fn within(&self, name: &str) -> &Self {
        match self {
            Self::Only(attributes) if !attributes.values.contains(name) => self,
            _ => &Self::All,
        }
    }

    /// `is_accessed`: only an attribute is taken of what this is.
    fn look(&mut self, json: &Value, is_accessed: bool) {
        match json {
            Value::Object(fields) => {
                if fields.get("Var").is_some_and(|var| var == "context") && !is_accessed {
                    *self = Self::All;
                }
                for (name, value) in fields {
                    if !matches!(name.as_str(), "." | "has") {
                        self.look(value, false);
                        continue;
                    }
                    let attribute = value.get("attr").unwrap_or(&Value::Null);
                    self.add(attribute, name == "." && !is_accessed);
                    self.look(value.get("left").unwrap_or(&Value::Null), true);
                }
            }
            Value::Array(values) => values.iter().for_each(|value| self.look(value, false)),
            _ => {}
        }
    }

    /// One name, or, with `has`, also one within another.
    fn add(&mut self, attribute: &Value, is_value: bool) {
        let Self::Only(attributes) = self else { return };
        match attribute {
            Value::String(name) => {
                attributes.named.insert(name.clone());
                if is_value {
                    attributes.values.insert(name.clone());
                }
            }
            Value::Array(path) => path.iter().for_each(|name| self.add(name, is_value)),
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

    /// Whether these, and no others, are named.
    fn assert_named(condition: &str, names: &[&str]) {
        let Asked::Only(attributes) = asked(condition) else {
            panic!("all is asked for by {condition}")
        };
        let names = names.iter().map(|name| (*name).to_owned());
        assert_eq!(attributes.named, names.collect(), "{condition}");
    }

    #[test]
    fn what_policies_name_is_asked_for() {
        for (condition, names) in [
            ("1 == 2", &[][..]),
            (
                "context.guard.commits > 1 || context.epoch == 3",
                &["guard", "commits", "epoch"],
            ),
            (
                "context has lifetime_days && [context.source].contains(\"update\")",
                &["lifetime_days", "source"],
            ),
            (
                "context[\"ep\\u{6f}ch\"] == 1 && principal.user.uid == 2",
                &["epoch", "user", "uid"],
            ),
            (
                "context has now.time && principal has user.uid && \"context\" == \"Var\"",
                &["now", "time", "user", "uid"],
            ),
        ] {
            assert_named(condition, names);
        }
    }

    #[test]
    fn a_record_that_is_used_as_a_value_has_all_of_its_attributes() {
        for condition in [
            "context.guard == {\"known\": true}",
            "[{\"known\": true}].contains(context.guard)",
            "(if true then context.guard else context.guard).known",
            "context.guard.known && context.guard == {\"known\": true}",
        ] {
            let asked = asked(condition);
            assert_eq!(asked.within("guard"), &Asked::All, "{condition}");
        }
        let asked = asked("context.guard.known && context.now has time && context has rates");
        for record in ["guard", "now", "rates"] {
            assert_eq!(asked.within(record), &asked);
        }
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
