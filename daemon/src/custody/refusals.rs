//! Why a request was refused, for whoever has to explain it: of the last refusals, and of any
//! request that is on record.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlskeyd_policies::replay::Recorded;
use mlskeyd_policies::{Action, Set, ids};
use mlskeyd_protocol::v1::{
    Explained, Failure, FailureCode, ReadRefusals, Refusals as Listed, Refused as Reason,
};

use super::request::PlainRequest;
use super::{Session, failure};
use crate::audit::{AuditOutcome, Record};
use crate::polkit::Right;

/// So many are remembered, of all callers together.
const MAX: usize = 32;

/// The last ones, the newest first, as they went on record. They are forgotten when the daemon
/// ends: the records have them all.
#[derive(Default)]
pub(super) struct Refusals(Mutex<VecDeque<Record>>);

impl Refusals {
    /// Remembers what was refused.
    pub(super) fn remember(&self, record: Record) {
        let mut all = self.all();
        all.truncate(MAX.saturating_sub(1));
        all.push_front(record);
    }

    fn all(&self) -> MutexGuard<'_, VecDeque<Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What policies say of a request on record. `None`: it is none.
fn explained(record: Record, set: &Set) -> Option<Explained> {
    let refused = match record.outcome {
        AuditOutcome::Denied { policy, reason } => Some(Reason {
            policy: policy.into_owned(),
            reason: reason.into_owned(),
        }),
        AuditOutcome::Served { .. } | AuditOutcome::Failed { .. } => None,
        AuditOutcome::Noted { .. } => return None,
    };
    let by_rule = refused.as_ref().is_some_and(|it| ids::is_rule(&it.policy));
    let recorded = record.facts.as_deref().filter(|_| !by_rule);
    let recorded = recorded.and_then(Recorded::read);
    let now = recorded.and_then(|recorded| recorded.explain(&record.action, set));
    let now = now.unwrap_or_default();
    Some(Explained {
        time: record.time.checked_div(1_000_000).unwrap_or(0),
        action: record.action.into_owned(),
        refused,
        by_rule,
        policies: now.refused_by,
        permitted_by: now.permitted_by,
        facts: record.facts.unwrap_or_default(),
    })
}

impl PlainRequest for ReadRefusals {
    type Reply = Listed;
    const ACTION: Action = Action::Administer;
    const RIGHT: Option<Right> = Some(Right::ReadRecords);

    async fn run(self, session: &Session) -> Result<Listed, Failure> {
        let custody = session.custody();
        let records = match self.record {
            None => custody.refusals.all().iter().cloned().collect(),
            Some(number) => vec![on_record(session, number).await?],
        };
        let set = custody.policy.set();
        let explained = records.into_iter().filter_map(|it| explained(it, &set));
        let explained: Vec<_> = explained.collect();
        if explained.is_empty() && self.record.is_some() {
            return Err(no_request());
        }
        Ok(Listed { explained })
    }
}

/// The record of this number.
async fn on_record(session: &Session, number: u64) -> Result<Record, Failure> {
    let custody = Arc::clone(session.custody());
    let found = tokio::task::spawn_blocking(move || custody.audit.read(number)).await;
    let found = found.map_err(|_| failure::internal())?;
    let found = found.map_err(|error| {
        Failure::new(
            FailureCode::AuditUnavailable,
            format!("the audit log cannot be read: {error}"),
            "see what `mlskeyctl audit verify` says of it",
        )
    })?;
    found.ok_or_else(no_request)
}

fn no_request() -> Failure {
    Failure::new(
        FailureCode::NotFound,
        "there is no record of this number that is about a request",
        "see the numbers in the audit log",
    )
}
