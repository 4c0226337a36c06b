//! Keys get another owner: since an administrator says so, or since the app that they were
//! made for has a name by now.
//!
//! What is to be done goes on record first: rather on record and not done, than done and not
//! on record. What of it there is, and that it goes all or not at all, is the registry's.
//!
//! What is frozen goes nowhere, since it would be thawed by that. What an owner was permitted
//! lately is still counted as that owner's.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use mlskeyd_policies::{Action, ContextFacts};
use mlskeyd_protocol::v1::{Credential, Failure, FailureCode, Owner, ReassignKeys, Reassigned};

use tokio::sync::OnceCell;

use super::certify::user_of;
use super::facts::CredentialSays;
use super::generate::check_name;
use super::request::encoded;
use super::subject::Subject;
use super::{Call, Custody, Event, Request, Session, failure};
use crate::audit::{AuditOutcome, Durability, Record};
use crate::caller::DEFAULT_APP;
use crate::store::{IdentityRecord, NotReassigned, StoreError};

/// Most identities, and most storages, that one request names: more than an owner has.
const MAX_NAMED: usize = 256;

/// Longest list of names on record, in bytes.
const MAX_SHOWN: usize = 4096;

/// The identities that were judged, each with its credential.
type Judged = BTreeMap<String, Credential>;

/// What was read from a [`ReassignKeys`] request.
pub struct Reassigning {
    judged: Judged,
    planned: Reassigned,
}

impl Request for ReassignKeys {
    type Reply = Reassigned;
    type Read = Reassigning;
    const ACTION: Action = Action::ReassignKeys;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<Reassigning, Failure> {
        check(self)?;
        subject.owner = Some(self.from.clone());
        let custody = session.custody();
        let planned = custody.registry.plan_reassignment(self.clone()).await;
        let planned = planned.map_err(failure::of_store)?.map_err(of_refusal)?;
        let identities = custody.registry.identities(Some(&self.from)).await;
        let mut judged = Judged::new();
        let (from, to) = (user_of(&self.from).await, user_of(&self.to).await);
        let mut forbidden = false;
        for identity in identities.map_err(failure::of_store)? {
            if planned.identities.contains(&identity.name) {
                let says = CredentialSays::of(&identity.credential);
                custody.settings.describe(says, &to, &mut subject.context);
                forbidden |= subject.context.credential_forbidden;
                judged.insert(identity.name, identity.credential);
            }
        }
        subject.context = ContextFacts {
            credential_forbidden: forbidden,
            from_user: from.user.clone(),
            from_app: self.from.app.clone(),
            to_user: to.user.clone(),
            to_app: self.to.app.clone(),
            identities: judged.keys().cloned().collect(),
            ..ContextFacts::default()
        };
        Ok(Reassigning { judged, planned })
    }

    fn consents_to(&self, _: &Reassigning) -> Result<Option<Vec<u8>>, Failure> {
        encoded(self)
    }

    async fn perform(
        self,
        read: Reassigning,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<Reassigned, Failure> {
        let custody = session.custody();
        if let Some(frozen) = custody.frozen.holds(&self.from, &read.planned.identities) {
            return Err(subject.refuse("rule/frozen", of_refusal(NotReassigned::Frozen(frozen))));
        }
        let mut record = noted("KeysReassigned", &self, &described(&self, &read.planned));
        record.caller = Some(session.caller().for_audit());
        let appended = custody.audit.append(record, Durability::Now).await;
        appended.map_err(failure::of_audit)?;
        let reassigned = custody.reassign(self, false, Some(read.judged)).await;
        reassigned.map_err(failure::of_store)?.map_err(of_refusal)
    }
}

/// The taking over of each user who came by the app that does so.
#[derive(Debug, Default)]
pub(super) struct TakeOvers {
    /// Over and done with, or under way: the user's other connections wait for that, and
    /// nobody else does.
    done: Mutex<HashMap<u32, Arc<OnceCell<()>>>>,
    /// For whom it was told that it is not yet.
    told: Mutex<HashSet<u32>>,
}

impl TakeOvers {
    fn of(&self, uid: u32) -> Arc<OnceCell<()>> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(done.entry(uid).or_default())
    }

    /// Is it told for the first time?
    fn tell(&self, uid: u32) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(uid)
    }
}

/// Why an app has not taken over what it is to.
enum Undone {
    /// It is tried again with the next connection.
    Yet,
    /// The app is not served before it can be.
    Failed(Failure),
}

impl From<Failure> for Undone {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Custody {
    /// Gives it the new owner, unless it is frozen; of the identities only if they are those
    /// that were judged, where any were.
    pub(super) async fn reassign(
        self: &Arc<Self>,
        order: ReassignKeys,
        once: bool,
        judged: Option<Judged>,
    ) -> Result<Result<Reassigned, NotReassigned>, StoreError> {
        let (custody, from) = (Arc::clone(self), order.from.clone());
        // In the registry's own turn: what was frozen before that stays where it is.
        let permit = move |identities: &[IdentityRecord]| {
            let names: Vec<_> = identities.iter().map(|it| it.name.clone()).collect();
            if let Some(frozen) = custody.frozen.holds(&from, &names) {
                return Err(NotReassigned::Frozen(frozen));
            }
            let now = identities
                .iter()
                .map(|it| (it.name.clone(), it.credential.clone()));
            match judged {
                Some(judged) if judged != now.collect() => Err(NotReassigned::Outrun(from)),
                _ => Ok(()),
            }
        };
        let (from, to) = (order.from.clone(), order.to.clone());
        let reassigned = self.registry.reassign(order, once, permit).await?;
        if reassigned.is_ok() {
            self.references.know_of(&to, &from);
            self.events.tell(Event::Reassigned(from, to));
            self.due.notify_one();
        }
        Ok(reassigned)
    }

    /// Before an app is served that is to take over what its users' unnamed apps made: does
    /// that, once for each user. If it cannot be, the app is served all the same.
    pub(super) async fn take_over(self: &Arc<Self>, to: &Owner) -> Result<(), Failure> {
        let is_it = self.settings.takes_over.as_ref() == Some(&to.app);
        if !is_it || self.registry.read_only_reason().is_some() {
            return Ok(());
        }
        let (custody, owner, done) = (Arc::clone(self), to.clone(), self.take_overs.of(to.uid));
        // It is not cut in the middle when its caller goes.
        let way = async move {
            let now = done.get_or_try_init(|| custody.take_over_now(&owner));
            now.await.copied()
        };
        match tokio::spawn(way).await {
            Ok(Ok(()) | Err(Undone::Yet)) => Ok(()),
            Ok(Err(Undone::Failed(failure))) => Err(failure),
            Err(_) => Err(failure::internal()),
        }
    }

    async fn take_over_now(self: &Arc<Self>, to: &Owner) -> Result<(), Undone> {
        let registry = &self.registry;
        if registry
            .has_taken_over(to)
            .await
            .map_err(failure::of_store)?
        {
            return Ok(());
        }
        let order = ReassignKeys {
            from: Owner {
                app: DEFAULT_APP.to_owned(),
                ..to.clone()
            },
            to: to.clone(),
            identities: Vec::new(),
            storages: Vec::new(),
        };
        // Before anything is looked for: who comes again and again costs nobody much.
        let identities = registry.identities(Some(&order.from)).await;
        let identities = identities.map_err(failure::of_store)?;
        let names: Vec<_> = identities.into_iter().map(|it| it.name).collect();
        let taken = match self.frozen.holds(&order.from, &names) {
            Some(frozen) => Err(NotReassigned::Frozen(frozen)),
            None => self.record_and_take_over(&order).await?,
        };
        let (from, to) = (&order.from, &order.to);
        match taken {
            Ok(_) => return Ok(()),
            Err(NotReassigned::Nothing(_)) => {}
            Err(why @ NotReassigned::Frozen(_)) => {
                if self.take_overs.tell(to.uid) {
                    tracing::warn!(%from, %to, %why, "an app does not yet take over what was made before it had a name");
                    let note = format!("nothing of {from} is {to}'s yet: {why}");
                    self.note_take_over(&order, &note).await?;
                }
                return Err(Undone::Yet);
            }
            Err(why) => {
                tracing::warn!(%from, %to, %why, "an app does not take over what was made before it had a name: `mlskeyctl keys reassign` does when that is seen to");
                let note = format!("nothing of {from} is {to}'s: {why}");
                self.note_take_over(&order, &note).await?;
            }
        }
        let marked = registry.mark_taken_over(to.clone()).await;
        Ok(marked.map_err(failure::of_store)?)
    }

    async fn record_and_take_over(
        self: &Arc<Self>,
        order: &ReassignKeys,
    ) -> Result<Result<Reassigned, NotReassigned>, Failure> {
        let planned = self.registry.plan_reassignment(order.clone()).await;
        let planned = match planned.map_err(failure::of_store)? {
            Ok(planned) => planned,
            Err(why) => return Ok(Err(why)),
        };
        self.note_take_over(order, &described(order, &planned))
            .await?;
        let taken = self.reassign(order.clone(), true, None).await;
        taken.map_err(failure::of_store)
    }

    async fn note_take_over(&self, order: &ReassignKeys, note: &str) -> Result<(), Failure> {
        let note = format!("takes_over of the app {}: {note}", order.to.app);
        let record = noted("KeysTakenOver", order, &note);
        let appended = self.audit.append(record, Durability::Now).await;
        appended.map_err(failure::of_audit)
    }
}

/// Is it within its bounds, and can it be done at all?
fn check(request: &ReassignKeys) -> Result<(), Failure> {
    check_name("an app's name", &request.from.app)?;
    check_name("an app's name", &request.to.app)?;
    for (what, names) in [
        ("an identity's name", &request.identities),
        ("a storage's name", &request.storages),
    ] {
        if names.len() > MAX_NAMED {
            return Err(failure::too_much("the list of names", MAX_NAMED));
        }
        names.iter().try_for_each(|name| check_name(what, name))?;
    }
    if request.from == request.to {
        return Err(failure::bad_request(
            format!("{} has its own keys already", request.from),
            "name another owner",
        ));
    }
    Ok(())
}

fn noted(action: &'static str, order: &ReassignKeys, note: &str) -> Record {
    let outcome = AuditOutcome::Noted {
        note: note.to_owned().into(),
    };
    Record {
        owner: Some(order.from.clone()),
        ..Record::new(action, outcome)
    }
}

/// What has another owner, on record.
fn described(order: &ReassignKeys, what: &Reassigned) -> String {
    format!(
        "{} -> {}: identities {}; storages {}; {} signature keys and {} HPKE keys",
        order.from,
        order.to,
        listed(&what.identities),
        listed(&what.storages),
        what.signature_keys,
        what.hpke_keys
    )
}

/// Names, as far as a record has room for them.
fn listed(names: &[String]) -> String {
    let mut text = String::new();
    for (before, name) in names.iter().enumerate() {
        let shown = format!("{name:?}");
        if text.len().saturating_add(shown.len()) > MAX_SHOWN {
            return format!("{text} and {} more", names.len().saturating_sub(before));
        }
        if before > 0 {
            text.push_str(", ");
        }
        text.push_str(&shown);
    }
    if text.is_empty() {
        text.push_str("none");
    }
    text
}

fn of_refusal(why: NotReassigned) -> Failure {
    let (code, advice) = match &why {
        NotReassigned::Nothing(_) | NotReassigned::Unknown { .. } => (
            FailureCode::NotFound,
            "`mlskeyctl identities`, `keys` and `storage list` show who owns what",
        ),
        NotReassigned::Taken { .. } | NotReassigned::Twin { .. } => (
            FailureCode::Conflict,
            "nothing was changed; give only what the new owner does not have (--identity, --storage), or choose another owner",
        ),
        NotReassigned::Shared { .. } => (
            FailureCode::Conflict,
            "nothing was changed; name both storages, or give all",
        ),
        NotReassigned::Full { .. } => (
            FailureCode::LimitReached,
            "nothing was changed; give a part of it, or have the new owner's app delete what it no longer needs",
        ),
        NotReassigned::Outrun(_) => (
            FailureCode::Conflict,
            "nothing was changed; see `mlskeyctl identities`, and repeat it if it is still wanted",
        ),
        NotReassigned::Frozen(_) => (
            FailureCode::Denied,
            "nothing was changed; `mlskeyctl frozen` shows what is frozen, and `mlskeyctl thaw` thaws it",
        ),
    };
    Failure::new(code, why.to_string(), advice)
}
