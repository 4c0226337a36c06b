//! Rules and policies together.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError, RwLock};

use crate::ids::CANDIDATE;
use crate::schema;
use crate::{Decision, Facts, Question, Rules, Set};

/// What decides on requests: the rules that are built in, and the company's policies, which
/// can be exchanged while requests are decided on.
#[derive(Debug)]
pub struct Policy {
    rules: Rules,
    set: RwLock<Arc<Set>>,
    /// What may come in force one day: it is asked, and decides nothing.
    candidate: RwLock<Option<Arc<Set>>>,
}

/// What was decided, and what would have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The decision.
    pub decision: Decision,
    /// Policies that are only reported, and would refuse it.
    pub would_deny: Vec<String>,
}

impl Policy {
    /// Rules and policies.
    #[must_use]
    pub fn new(rules: Rules, set: Set) -> Self {
        Self {
            rules,
            set: RwLock::new(Arc::new(set)),
            candidate: RwLock::default(),
        }
    }

    /// Decides. What policies cannot speak of is decided by the rules alone.
    #[must_use]
    pub fn decide(&self, question: &Question<'_>, facts: &Facts<'_>) -> Decided {
        let by_rule = |decision| Decided {
            decision,
            would_deny: Vec::new(),
        };
        let takes_consent = match self.rules.decide(question) {
            Decision::Permit { consent, .. } if schema::is_known(question.action) => consent,
            decision => return by_rule(decision),
        };
        let mut answer = self.set().decide(facts);
        if answer.is_permit
            && let Some(candidate) = self.candidate()
        {
            let other = candidate.decide(facts);
            if !other.is_permit {
                let policy = other.by.policy;
                answer.would_deny.push(format!("{CANDIDATE}{policy}"));
            }
        }
        let decision = if answer.is_permit {
            Decision::Permit {
                policy: Cow::Owned(answer.by.policy),
                consent: answer.consent.or(takes_consent),
            }
        } else {
            Decision::Deny {
                policy: Cow::Owned(answer.by.policy),
                reason: Cow::Owned(answer.by.reason),
                advice: answer.by.advice.map_or(
                    Cow::Borrowed("ask the administrator, who can look at the policy of this name"),
                    Cow::Owned,
                ),
            }
        };
        Decided {
            decision,
            would_deny: answer.would_deny,
        }
    }

    /// Does this user administer, whatever is asked for?
    #[must_use]
    pub const fn administers(&self, uid: u32) -> bool {
        self.rules.administers(uid)
    }

    /// The policies that are in force.
    #[must_use]
    pub fn set(&self) -> Arc<Set> {
        Arc::clone(&self.set.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The policies that are only asked, and decide nothing.
    fn candidate(&self) -> Option<Arc<Set>> {
        let candidate = self.candidate.read();
        candidate.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has other policies be asked beside those in force: what they would refuse is reported,
    /// by their ids after `candidate/`.
    pub fn compare(&self, candidate: Option<Set>) {
        let mut now = self
            .candidate
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *now = candidate.map(Arc::new);
    }

    /// Puts other policies in force. Requests that are decided on just now still are by
    /// those of before.
    pub fn exchange(&self, set: Set) {
        *self.set.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
    }
}
