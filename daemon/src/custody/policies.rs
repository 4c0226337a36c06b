//! What administrators do to policies and to the guard.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mlskeyd_policies::Action;
use mlskeyd_protocol::limits::MAX_GROUP_ID;
use mlskeyd_protocol::v1::{
    Failure, FailureCode, GuardReset, PoliciesInForce, RegistryRestored, ReloadPolicies, ResetGuard,
};
use tokio::sync::oneshot;

use super::generate::check_name;
use super::subject::Subject;
use super::{Call, Custody, Event, PlainRequest, Request, Session, failure, recall};
use crate::audit::{AuditOutcome, Durability, Record};
use crate::policy_files::{InForce, PolicyError};
use crate::polkit::Right;
use crate::store::{GuardId, GuardMark};

impl Custody {
    /// Puts the policies of the directories in force, if they are good; goes on record.
    ///
    /// # Errors
    /// What is wrong with them; those of before stay in force.
    pub(crate) async fn reload_policies(
        self: &Arc<Self>,
        by: &str,
    ) -> Result<InForce, PolicyError> {
        let custody = Arc::clone(self);
        let loaded = tokio::task::spawn_blocking(move || {
            let turn = custody.loading.lock();
            let _turn = turn.unwrap_or_else(PoisonError::into_inner);
            let loaded = custody.policies.load()?;
            custody.policy.exchange(loaded.set);
            custody.compare_candidate();
            Ok(())
        });
        let loaded = loaded
            .await
            .unwrap_or_else(|_| Err(PolicyError::Refused(Vec::new())));
        let loaded = match loaded {
            Ok(()) => Ok(self.lint_policies().await),
            Err(error) => Err(error),
        };
        if let Ok(now) = &loaded {
            let count = u32::try_from(now.count()).unwrap_or(u32::MAX);
            self.events.tell(Event::PoliciesReloaded(count));
        }
        let note = match &loaded {
            Ok(now) => format!("by {by}: {}", now.note()),
            Err(error) => format!("refused, by {by}: {error}"),
        };
        self.note_policies(&note).await;
        loaded
    }

    /// Looks at what is in force from the start, and puts it on record if that does not go
    /// without saying.
    pub(crate) async fn tell_of_policies(self: &Arc<Self>) {
        let now = self.lint_policies().await;
        if self.policies.is_to_be_told() {
            self.note_policies(&format!("at the start: {}", now.note()))
                .await;
        }
    }

    /// What is in force, and what looks wrong with it.
    async fn lint_policies(self: &Arc<Self>) -> InForce {
        let identities = self.registry.identities(None).await.ok();
        let names = identities.map(|all| all.into_iter().map(|identity| identity.name).collect());
        let looked = async {
            let turn = Arc::clone(&self.linting).lock_owned().await;
            let (done, is_done) = oneshot::channel();
            let custody = Arc::clone(self);
            // Names are looked up, maybe in a directory of the company: one that does not answer
            // holds this thread, and nothing else.
            let look = std::thread::Builder::new().name("lint".to_owned());
            let looking = look.spawn(move || {
                custody.lint(names);
                // Whoever goes on then may end the daemon, and start another one.
                drop((turn, custody));
                let _ = done.send(());
            });
            if looking.is_ok() {
                let _ = is_done.await;
            }
        };
        // Should it take longer, the log tells of them later.
        let _ = tokio::time::timeout(LINTS_WAIT, looked).await;
        self.policies.about_now()
    }

    fn lint(&self, identities: Option<BTreeSet<String>>) {
        loop {
            let set = self.policy.set();
            let lints = self.policies.lint(&set, identities.clone());
            // Others may have come in force meanwhile.
            if Arc::ptr_eq(&set, &self.policy.set()) {
                return self.policies.found(lints);
            }
        }
    }

    async fn note_policies(&self, note: &str) {
        let note: String = note.chars().take(MAX_NOTE).collect();
        self.note("PoliciesLoaded", note).await;
    }
}

impl Custody {
    /// Has the candidate, if there is one, be asked from now on; a bad one is not.
    pub(crate) fn compare_candidate(&self) {
        let candidate = self.policies.candidate().unwrap_or_else(|error| {
            tracing::error!(%error, "the candidate for policies is not asked");
            None
        });
        self.policy.compare(candidate);
    }

    /// Loads the policies whenever their files change.
    pub(crate) async fn run_policy_watch(self: Arc<Self>) {
        let mut watch = match self.policies.watch() {
            Ok(watch) => watch,
            Err(error) => {
                tracing::warn!(%error, "policies are not loaded by themselves when their files change: SIGHUP, or `mlskeyctl policy reload`");
                return;
            }
        };
        loop {
            watch.changed().await;
            let custody = Arc::clone(&self);
            let changed = tokio::task::spawn_blocking(move || custody.policies.has_changed());
            if !changed.await.unwrap_or(true) {
                continue;
            }
            match self.reload_policies("a change of their files").await {
                Ok(now) => tracing::info!(count = now.count(), "the policies are loaded"),
                Err(error) => tracing::error!(%error, "the policies of before stay in force"),
            }
        }
    }
}

/// So long the daemon's start, and who loads policies, waits for what looks wrong with them.
const LINTS_WAIT: Duration = Duration::from_secs(3);

/// Longest note of what is wrong with policies, in characters: the whole is in the log.
const MAX_NOTE: usize = 1000;

impl Request for ReloadPolicies {
    type Reply = PoliciesInForce;
    type Read = ();
    const ACTION: Action = Action::Administer;
    const RIGHT: Option<Right> = Some(Right::Policies);
    const LEAVES_TRACES: bool = true;

    async fn read(&self, _: &Session, _: &Call, _: &mut Subject) -> Result<(), Failure> {
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<PoliciesInForce, Failure> {
        session.custody().look_at_freeze_files().await;
        let loaded = session.custody().reload_policies("an administrator").await;
        let now = loaded.map_err(|error| {
            Failure::new(
                FailureCode::BadRequest,
                error.to_string(),
                "correct the files, look with `mlskeyctl policy check`, and load them again: until then those of before are in force",
            )
        })?;
        Ok(now.as_loaded())
    }
}

impl PlainRequest for RegistryRestored {
    type Reply = ();
    const ACTION: Action = Action::ResetGuard;
    const RECORDED: bool = true;

    async fn run(self, session: &Session) -> Result<(), Failure> {
        let custody = session.custody();
        let marked = custody.registry.mark_restored().await;
        marked.map_err(failure::of_store)?;
        custody
            .note("RegistryRestored", "an administrator says so")
            .await;
        Ok(())
    }
}

impl Request for ResetGuard {
    type Reply = GuardReset;
    type Read = GuardId;
    const ACTION: Action = Action::ResetGuard;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<GuardId, Failure> {
        check_name("an identity's name", &self.identity)?;
        check_name("an app's name", &self.owner.app)?;
        if self.group.len() > MAX_GROUP_ID {
            return Err(failure::too_much("the group id", MAX_GROUP_ID));
        }
        subject.owner = Some(self.owner.clone());
        subject.identity = Some(self.identity.clone());
        subject.group = Some(self.group.clone());
        let id = GuardId {
            owner: self.owner.clone(),
            identity: self.identity.clone(),
            group: self.group.clone(),
        };
        let known = session.custody().registry.guard_mark(&id).await;
        let known = known.map_err(failure::of_store)?;
        subject.epoch = known.as_ref().map(|mark| mark.epoch);
        if known.is_none() {
            return Err(Failure::new(
                FailureCode::NotFound,
                "the guard knows nothing of this identity in this group",
                "the records have the owner, the identity and the group of each refusal",
            ));
        }
        Ok(id)
    }

    async fn perform(
        self,
        id: GuardId,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<GuardReset, Failure> {
        let custody = session.custody();
        // Before it is forgotten: else a power cut in between would make it look as if an older
        // registry had been put back.
        let note = AuditOutcome::Noted {
            note: Cow::Borrowed("the guard is to forget this group"),
        };
        let record = Record {
            action: Cow::Borrowed(recall::RESET),
            outcome: note,
            ..subject.to_record(session.caller(), None)
        };
        let appended = custody.audit.append(record, Durability::Now).await;
        appended.map_err(failure::of_audit)?;
        let registry = &custody.registry;
        let restores = registry.restores();
        let forget = move |_: Option<&GuardMark>| {
            Ok::<_, Infallible>(GuardMark {
                restores,
                ..GuardMark::default()
            })
        };
        let Ok(_) = registry
            .update_guard(id, forget)
            .await
            .map_err(failure::of_store)?;
        Ok(GuardReset {
            epoch: subject.epoch.unwrap_or_default(),
        })
    }
}
