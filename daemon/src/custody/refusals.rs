//! The last refusals by policies, for whoever has to explain them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use mlskeyd_policies::{Action, CallerFacts, ContextFacts, Facts, ResourceFacts, Set};
use mlskeyd_protocol::v1::{Failure, ReadRefusals, Refusal, Refusals as Listed};

use super::subject::Subject;
use super::{Call, Request, Session};

/// So many are remembered, of all callers together.
const MAX: usize = 32;

/// Who adds more than so many at once is remembered without their names.
const MAX_NAMES: usize = 100;

/// The last ones, the newest first. They are forgotten when the daemon ends: the records
/// have them all, without the facts.
#[derive(Default)]
pub(super) struct Refusals(Mutex<VecDeque<Refused>>);

#[derive(Clone)]
struct Refused {
    time: u64,
    action: Action,
    caller: Arc<CallerFacts>,
    resource: ResourceFacts,
    context: ContextFacts,
    policy: String,
    reason: String,
}

impl Refusals {
    /// Remembers what was refused, and why.
    pub(super) fn remember(&self, facts: &Facts<'_>, policy: &str, reason: &str) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut context = facts.context.clone();
        if context.added_names.len() > MAX_NAMES {
            context.added_names.clear();
        }
        let refused = Refused {
            time: time.map_or(0, |time| time.as_secs()),
            action: facts.action,
            caller: Arc::clone(facts.caller),
            resource: facts.resource.clone(),
            context,
            policy: policy.to_owned(),
            reason: reason.to_owned(),
        };
        let mut all = self.all();
        all.truncate(MAX.saturating_sub(1));
        all.push_front(refused);
    }

    fn all(&self) -> MutexGuard<'_, VecDeque<Refused>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refused {
    /// What the policies say of it that are in force now.
    fn explained(self, set: &Set) -> Refusal {
        let facts = Facts {
            action: self.action,
            caller: &self.caller,
            resource: &self.resource,
            context: &self.context,
        };
        let answer = set.decide(&facts);
        let policies = if answer.is_permit {
            Vec::new()
        } else {
            answer.all
        };
        Refusal {
            time: self.time,
            action: self.action.name().to_owned(),
            policies,
            permitted_by: if answer.is_permit {
                Some(answer.by.policy)
            } else {
                set.else_permitted_by(&facts)
            },
            facts: serde_json::to_string(&facts).unwrap_or_default(),
            policy: self.policy,
            reason: self.reason,
        }
    }
}

impl Request for ReadRefusals {
    type Reply = Listed;
    type Read = ();
    const ACTION: Action = Action::Administer;
    const LEAVES_TRACES: bool = false;

    async fn read(&self, _: &Session, _: &Call, subject: &mut Subject) -> Result<(), Failure> {
        // To look leaves no record, a refusal does.
        subject.durability = None;
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<Listed, Failure> {
        let custody = session.custody();
        let all: Vec<Refused> = custody.refusals.all().iter().cloned().collect();
        let set = custody.policy.set();
        let refusals = all.into_iter().map(|refused| refused.explained(&set));
        Ok(Listed {
            refusals: refusals.collect(),
        })
    }
}
