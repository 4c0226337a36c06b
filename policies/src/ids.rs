//! What ids begin with that are the daemon's own: no policy has one of these.

/// Rules of the daemon that are decided beside the policies.
pub const RULE: &str = "rule/";

/// Rules that are asked before the policies.
pub const BUILTIN: &str = "builtin/";

/// Policies that are asked, and not in force yet.
pub const CANDIDATE: &str = "candidate/";

/// All of them.
pub const OWN: [&str; 3] = [RULE, BUILTIN, CANDIDATE];

/// What refuses a request that no policy permits.
pub const NOT_PERMITTED: &str = "rule/not-permitted";

/// What refuses a request for which a policy has an error.
pub const UNDECIDABLE: &str = "rule/undecidable";

/// Is it a rule that no policy can lift? The two by which a set itself refuses are none.
#[must_use]
pub fn is_rule(id: &str) -> bool {
    let is_of_the_set = [NOT_PERMITTED, UNDECIDABLE].contains(&id);
    !is_of_the_set && [RULE, BUILTIN].iter().any(|own| id.starts_with(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_told_from_policies() {
        for id in ["rule/frozen", "builtin/owner"] {
            assert!(is_rule(id), "{id}");
        }
        for id in [
            NOT_PERMITTED,
            UNDECIDABLE,
            "candidate/x",
            "no-rollback",
            "company/rule/x",
        ] {
            assert!(!is_rule(id), "{id}");
        }
    }
}
