//! Cases: what policies are expected to answer, in a file that people can read.
//!
//! ```toml
//! [[case]]
//! name = "an old epoch"
//! action = "SignCommit"
//! context = { guard = { epochs_behind = 1 } }
//! expect = "deny"
//! policy = "no-rollback"
//! ```
//!
//! What a case does not say is as an honest app has it; what need not be there is `"none"`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::facts::{CallerFacts, ContextFacts, ResourceFacts};
use crate::set::{Facts, Set};
use crate::{Action, schema};

/// The cases of the default policies.
pub const DEFAULT: &str = include_str!("../default/cases.toml");

/// One case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    action: String,
    #[serde(default)]
    caller: Table,
    #[serde(default)]
    resource: Table,
    #[serde(default)]
    context: Table,
    expect: Expected,
    policy: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    case: Vec<Written>,
}

/// What is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Permit,
    Deny,
    /// Permitted, once a person consents.
    Consent,
    /// Permitted, and a policy that is only reported would refuse it.
    Report,
}

/// A case that was read.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is about.
    pub name: String,
    action: Action,
    caller: Arc<CallerFacts>,
    resource: ResourceFacts,
    context: ContextFacts,
    expect: Expected,
    policy: Option<String>,
}

/// Reads a file of cases.
///
/// # Errors
/// What is wrong with it, and where.
pub fn read(file: &str, text: &str) -> Result<Vec<Case>, String> {
    let written: File = toml::from_str(text).map_err(|error| format!("{file}: {error}"))?;
    let read = |case: Written| {
        let name = case.name.clone();
        Case::of(case).map_err(|why| format!("{file}: the case {name:?}: {why}"))
    };
    written.case.into_iter().map(read).collect()
}

impl Case {
    fn of(written: Written) -> Result<Self, String> {
        let action = Action::from_name(&written.action).filter(|it| schema::is_known(*it));
        let action = action
            .ok_or_else(|| format!("{:?} is no action that policies decide on", written.action))?;
        let (resource, context) = honest(action);
        Ok(Self {
            name: written.name,
            action,
            caller: Arc::new(changed(&CallerFacts::default(), written.caller)?),
            resource: changed(&resource, written.resource)?,
            context: changed(&context, written.context)?,
            expect: written.expect,
            policy: written.policy,
        })
    }

    /// Asks a set.
    ///
    /// # Errors
    /// What it answered, if something else was expected.
    pub fn check(&self, set: &Set) -> Result<(), String> {
        let answer = set.decide(&Facts {
            action: self.action,
            caller: &self.caller,
            resource: &self.resource,
            context: &self.context,
        });
        let (got, by) = match (&answer.consent, answer.would_deny.first()) {
            _ if !answer.is_permit => (Expected::Deny, answer.by.policy),
            (Some(consent), _) => (Expected::Consent, consent.policy.clone()),
            (None, Some(policy)) => (Expected::Report, policy.clone()),
            (None, None) => (Expected::Permit, answer.by.policy),
        };
        let is_it = self.policy.as_ref().is_none_or(|policy| *policy == by);
        if got == self.expect && is_it {
            return Ok(());
        }
        let wanted = self.policy.as_deref().unwrap_or("any policy");
        Err(format!(
            "{}: expected {:?} by {wanted}, got {got:?} by {by}",
            self.name, self.expect
        ))
    }
}

/// What an honest app asks for.
fn honest(action: Action) -> (ResourceFacts, ContextFacts) {
    let resource = ResourceFacts {
        key: "00112233445566778899aabbccddeeff".to_owned(),
        purpose: "signature".to_owned(),
        algorithm: "Ed25519".to_owned(),
        tier: "hardware".to_owned(),
        device: "token".to_owned(),
        device_kind: "pkcs11".to_owned(),
        identity: Some("alice".to_owned()),
        ..ResourceFacts::default()
    };
    let context = ContextFacts {
        group: Some("67726f7570".to_owned()),
        epoch: 7,
        encrypted: true,
        cipher_suite: Some(1),
        source: if action == Action::SignLeafNode {
            "key_package".to_owned()
        } else {
            String::new()
        },
        lifetime_days: Some(84),
        algorithm: "Ed25519".to_owned(),
        tier: "hardware".to_owned(),
        credential_type: "basic".to_owned(),
        credential: Some("alice@bank.example".to_owned()),
        ..ContextFacts::default()
    };
    (resource, context)
}

/// The facts, but for what is said otherwise.
fn changed<T: Serialize + for<'de> Deserialize<'de>>(
    facts: &T,
    changes: Table,
) -> Result<T, String> {
    let mut table = Table::try_from(facts).map_err(|error| error.to_string())?;
    merge(&mut table, changes);
    table
        .try_into()
        .map_err(|error: toml::de::Error| error.message().to_owned())
}

fn merge(table: &mut Table, changes: Table) {
    for (name, change) in changes {
        match (table.get_mut(&name), change) {
            (Some(Value::Table(inner)), Value::Table(change)) => merge(inner, change),
            // What need not be there is taken away so.
            (_, Value::String(text)) if text == "none" => drop(table.remove(&name)),
            (_, change) => drop(table.insert(name, change)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn of_default() -> Vec<Case> {
        read("cases.toml", DEFAULT).unwrap()
    }

    fn failures(set: &Set, cases: &[Case]) -> Vec<String> {
        let checked = cases.iter().map(|case| case.check(set));
        checked.filter_map(Result::err).collect()
    }

    #[test]
    fn the_default_policies_do_what_their_cases_say() {
        assert_eq!(
            failures(&Set::new(crate::DEFAULT).unwrap(), &of_default()),
            Vec::<String>::new()
        );
    }

    /// Without any one policy some case fails: none of them is for nothing.
    #[test]
    fn every_default_policy_decides_some_case() {
        let (set, cases) = (Set::new(crate::DEFAULT).unwrap(), of_default());
        for policy in set.ids() {
            assert_ne!(
                failures(&set.without(policy), &cases),
                Vec::<String>::new(),
                "{policy}"
            );
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (text, why) in [
            ("[[case]]\nname = \"x\"\nexpect = \"deny\"", "missing field"),
            (
                "[[case]]\nname = \"x\"\naction = \"Administer\"\nexpect = \"deny\"",
                "no action",
            ),
            (
                "[[case]]\nname = \"x\"\naction = \"Look\"\nexpect = \"deny\"\ncontext = { epok = 1 }",
                "unknown field",
            ),
        ] {
            let error = read("f", text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    /// Each example is whole, goes with the default policies, and has its own cases, each
    /// policy at least one that it decides; and nothing looks wrong with it.
    #[test]
    fn the_examples_do_what_their_cases_say() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let mut names = Vec::new();
        for file in std::fs::read_dir(directory).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|end| end != "cedar") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let example = ("example.cedar", text.as_str());
            let set = Set::new(crate::DEFAULT.into_iter().chain([example])).unwrap();
            let cases = std::fs::read_to_string(path.with_extension("toml")).unwrap();
            let cases = read("cases", &cases).unwrap();
            assert_eq!(failures(&set, &cases), Vec::<String>::new(), "{path:?}");
            let own = Set::new([example]).unwrap();
            for policy in own.ids() {
                let without = failures(&set.without(policy), &cases);
                assert_ne!(without, Vec::<String>::new(), "{path:?}: {policy}");
            }
            assert_eq!(set.lint(&|_, _| None), [], "{path:?}");
            names.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
        }
        names.sort();
        assert_eq!(
            names,
            [
                "approved-suites",
                "break-glass",
                "consent-for-adding",
                "hardware-for-traders",
                "no-external-joins",
                "one-app-only",
                "one-commit-per-epoch",
                "read-only-group",
                "working-hours",
            ]
        );
    }
}
