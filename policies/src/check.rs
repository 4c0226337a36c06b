//! What policies have to be like.

use cedar_policy::{Policy, PolicyId, PolicySet, ValidationMode, Validator};

use crate::ids;
use crate::problem::{Place, Problem};
use crate::schema;
use crate::set::{Rule, refuses};
use crate::statement::Statement;

/// Annotations that there are.
const ANNOTATIONS: [&str; 5] = ["id", "reason", "advice", "mode", "consent"];

/// Longest id.
const MAX_ID: usize = 64;

/// Longest reason and advice, in bytes: they go into records, and to apps.
const MAX_TEXT: usize = 500;

/// One policy under its own id.
pub(crate) fn parse(statement: &Statement) -> Result<(String, Policy), Vec<Problem>> {
    let Statement { place, text } = statement;
    let policy = Policy::parse(None, text).map_err(|errors| {
        let diagnosed = |error: &dyn miette::Diagnostic| place.diagnosed(text, error);
        errors
            .iter()
            .map(|error| diagnosed(error))
            .collect::<Vec<_>>()
    })?;
    let mut problems = unknown_annotations(place, &policy);
    problems.extend(bad_texts(place, &policy));
    let id = match policy.annotation("id") {
        Some(id) if is_id(id) => Some(id.to_owned()),
        Some(id) => {
            problems.push(place.error(format!(
                "@id({id:?}) is none: it has 1 to {MAX_ID} lower-case letters, digits, \"-\", \".\" and \"/\", and does not begin with one of {:?}, which are mlskeyd's own",
                ids::OWN
            )));
            None
        }
        None => {
            problems.push(
                place.error("the policy has no @id(\"...\"): records and apps name it by that"),
            );
            None
        }
    };
    match id {
        Some(id) if problems.is_empty() => {
            let policy = policy.new_id(PolicyId::new(&id));
            Ok((id, policy))
        }
        _ => Err(problems),
    }
}

fn unknown_annotations(place: &Place, policy: &Policy) -> Vec<Problem> {
    let unknown = policy
        .annotations()
        .filter(|(name, _)| !ANNOTATIONS.contains(name));
    let unknown = unknown.map(|(name, _)| {
        let known = ANNOTATIONS.map(|name| format!("@{name}")).join(", ");
        place.error(format!("@{name} is not known; there are {known}"))
    });
    unknown.collect()
}

fn bad_texts(place: &Place, policy: &Policy) -> Vec<Problem> {
    let mut problems = Vec::new();
    if policy.annotation("reason").is_none_or(str::is_empty) {
        problems.push(place.error(
            "the policy has no @reason(\"...\"): a person who is refused, or audits, reads it",
        ));
    }
    for name in ["reason", "advice"] {
        let text = policy.annotation(name).unwrap_or_default();
        if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
            problems.push(place.error(format!(
                "@{name} is longer than {MAX_TEXT} bytes, or has other than plain characters"
            )));
        }
    }
    match policy.annotation("mode") {
        Some("report") if !refuses(policy) => problems.push(place.error(
            "@mode(\"report\") is for `forbid`, which it keeps from refusing: a `permit` would permit nothing, and be on record as a refusal; leave it out, or write the `forbid` whose refusals are to be reported",
        )),
        None | Some("report" | "enforce") => {}
        Some(mode) => problems.push(place.error(format!(
            "@mode({mode:?}) is none: `report` has what it would refuse put on record only, `enforce` is the default"
        ))),
    }
    match policy.annotation("consent") {
        Some(consent) if !consent.is_empty() => problems.push(
            place.error("@consent is written without a text: it says that a person may consent"),
        ),
        Some(_) if !refuses(policy) => {
            problems.push(place.error(
                "@consent is for `forbid`: the request is forbidden unless a person consents",
            ))
        }
        _ => {}
    }
    problems
}

fn is_id(id: &str) -> bool {
    let is_one =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-./".contains(&byte);
    (1..=MAX_ID).contains(&id.len())
        && id.bytes().all(is_one)
        && !ids::OWN.iter().any(|own| id.starts_with(own))
}

/// All that the schema says against the policies together. What Cedar only warns of is wrong
/// too: a policy that never applies says something else than was meant.
pub(crate) fn validate(rules: &[Rule]) -> Vec<Problem> {
    let whole = Place {
        file: "policies".to_owned(),
        line: 0,
    };
    let Some(schema) = schema::PARSED.clone() else {
        return vec![whole.error("mlskeyd's own schema is broken")];
    };
    let policies = rules.iter().map(|rule| rule.policy.clone());
    let policies = match PolicySet::from_policies(policies) {
        Ok(policies) => policies,
        Err(error) => return vec![whole.error(error.to_string())],
    };
    let result = Validator::new(schema).validate(&policies, ValidationMode::Strict);
    let located = |id: &PolicyId, said: &dyn miette::Diagnostic| {
        let rule = rules.iter().find(|rule| rule.policy.id() == id);
        rule.map_or_else(
            || whole.error(said.to_string()),
            |rule| rule.place.diagnosed(&rule.text, said),
        )
    };
    let errors = result
        .validation_errors()
        .map(|error| located(error.policy_id(), error));
    let warnings = result
        .validation_warnings()
        .map(|warning| located(warning.policy_id(), warning));
    errors.chain(warnings).collect()
}
