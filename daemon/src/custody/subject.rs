//! What a request turned out to be about: for the policy, the guard and the
//! record.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use mlskeyd_policies::{Action, ContextFacts, Said};
use mlskeyd_protocol::v1::{Bytes, Failure, KeyId, Owner};

use super::guard::Mark;
use crate::audit::{AuditOutcome, Durability, Record};
use crate::caller::Caller;
use crate::store::KeyRecord;

/// What a request is about, as far as it was read.
pub struct Subject {
    /// What policies call it.
    pub(super) action: Action,
    /// What is inside of it: the inline proposals of a commit.
    pub(super) inner_actions: Vec<Action>,
    /// Who owns what it wants to use; `None`: it uses nothing that is there.
    pub(super) owner: Option<Owner>,
    /// The key that it wants to use.
    pub(super) key: Option<Arc<KeyRecord>>,
    /// The key that it made.
    pub(super) made: Option<KeyId>,
    /// The identity.
    pub(super) identity: Option<String>,
    /// The MLS group id.
    pub(super) group: Option<Bytes>,
    /// The MLS epoch.
    pub(super) epoch: Option<u64>,
    /// What a signature would add to the guard's memory.
    pub(super) mark: Option<Mark>,
    /// What else policies may know.
    pub(super) context: ContextFacts,
    /// The device.
    pub(super) device: Option<String>,
    /// SHA-256 of the content.
    pub(super) content: Option<[u8; 32]>,
    /// How durable its record has to be once it is served; `None`: only a
    /// refusal or failure goes on record.
    pub(super) durability: Option<Durability>,
    /// What wants a person to consent to it.
    pub(super) consent: Option<Said>,
    /// What lets a caller administer who is neither root nor the daemon's own user.
    pub(super) authorized_by: Option<&'static str>,
    /// The policy that permitted it.
    pub(super) permitted_by: Option<Cow<'static, str>>,
    /// The policy that refused it, and its reason.
    pub(super) denied: Option<(Cow<'static, str>, Cow<'static, str>)>,
    /// Policies that are only reported, and would have refused it.
    pub(super) would_deny: BTreeSet<String>,
    /// What policies knew of it.
    pub(super) facts: Option<String>,
    started: Instant,
    record: Record,
}

impl Subject {
    pub(super) fn new(action: Action) -> Self {
        Self {
            action,
            inner_actions: Vec::new(),
            owner: None,
            key: None,
            made: None,
            identity: None,
            group: None,
            epoch: None,
            mark: None,
            context: ContextFacts::default(),
            device: None,
            content: None,
            durability: Some(Durability::Now),
            consent: None,
            authorized_by: None,
            permitted_by: None,
            denied: None,
            would_deny: BTreeSet::new(),
            facts: None,
            started: Instant::now(),
            record: Record::new(
                action.name(),
                AuditOutcome::Noted {
                    note: Cow::Borrowed(""),
                },
            ),
        }
    }

    /// Takes a key that the request names. `Session::key` refuses another
    /// caller's by `rule/owner`, so that an id is no oracle.
    pub(super) fn about_key(&mut self, key: Arc<KeyRecord>) {
        self.owner = Some(key.owner.clone());
        self.identity.clone_from(&key.identity);
        self.device = Some(key.device.clone());
        self.key = Some(key);
    }

    /// Refuses by a rule that no policy can lift.
    pub(super) fn refuse(
        &mut self,
        rule: impl Into<Cow<'static, str>>,
        failure: Failure,
    ) -> Failure {
        let rule = rule.into();
        self.denied = Some((rule.clone(), Cow::Owned(failure.message.clone())));
        failure.by_policy(rule)
    }

    /// The failure with the key and the device that it is about, if they are
    /// the caller's to know.
    pub(super) fn named_in(&self, mut failure: Failure, caller: &Caller) -> Failure {
        let own = |owner: &Owner| *owner == caller.owner;
        if self.owner.as_ref().is_none_or(own) {
            failure.key = failure.key.or(self.key_id());
            failure.device = failure.device.or_else(|| self.device.clone());
        }
        failure
    }

    pub(super) fn actions(&self) -> Vec<Action> {
        std::iter::once(self.action)
            .chain(self.inner_actions.iter().copied())
            .collect()
    }

    /// The key that it made, else the one that it wants to use.
    pub(super) fn key_id(&self) -> Option<KeyId> {
        self.made.or_else(|| self.key.as_ref().map(|key| key.id))
    }

    pub(super) fn to_record(&self, caller: &Caller, failure: Option<&Failure>) -> Record {
        let outcome = match (failure, &self.denied) {
            (None, _) => AuditOutcome::Served {
                policy: match self.authorized_by {
                    Some(by) => Cow::Borrowed(by),
                    None => self.permitted_by.clone().unwrap_or_default(),
                },
            },
            (Some(_), Some((policy, reason))) => AuditOutcome::Denied {
                policy: policy.clone(),
                reason: reason.clone(),
            },
            (Some(failure), None) => AuditOutcome::Failed { code: failure.code },
        };
        Record {
            caller: Some(caller.for_audit()),
            owner: self.owner.clone().filter(|owner| *owner != caller.owner),
            action: Cow::Borrowed(self.action.name()),
            key: self.key_id(),
            identity: self.identity.clone(),
            group: self.group.clone(),
            epoch: self.epoch,
            raises: self.mark.is_some(),
            device: self.device.clone(),
            outcome,
            content: self.content,
            would_deny: self.would_deny.iter().cloned().collect(),
            facts: self.facts.clone(),
            duration: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            ..self.record.clone()
        }
    }
}
