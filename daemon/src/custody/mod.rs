//! The one path of a request, from a caller that is known to an answer that is
//! on record.
//!
//! [`Session::serve`] is that path, for every kind of request and for every
//! door. What differs between kinds is a [`Request`]: one file here each.
//!
//! What it takes to add one is in docs/architecture.md.

mod accept;
mod admin;
mod adopt;
mod approve;
mod attest;
mod authorize;
mod bindings;
mod certify;
mod consent;
mod devices;
mod events;
mod facts;
mod failure;
mod freeze;
mod generate;
mod guard;
mod identities;
mod key_pins;
mod leave;
mod lifecycle;
mod look;
mod open;
mod policies;
mod prompted;
mod prompts;
mod rates;
mod reassign;
mod recall;
mod references;
mod refusals;
mod request;
mod rotate;
mod scrub;
mod sign;
mod storages;
mod subject;
mod sweep;
#[cfg(test)]
mod tests;
mod unlock;

pub use admin::{
    AllDevices, AllIdentities, AllKeys, AllStorages, DaemonAtAGlance, ForgetStorage, Sweep,
};
pub use devices::{Configured, Devices};
pub(crate) use events::Event;
use events::Events;
pub use freeze::Frozen;
pub(crate) use freeze::{FILE as FROZEN_FILE, LABEL as FROZEN_LABEL};
pub use lifecycle::Repaired;
pub use look::{Identities, LookAtDevices, LookUp, OwnKey, OwnKeys, Prepare, Status};
pub use prompted::{Declined, LookForPrompts};
pub(crate) use recall::{RecallError, recall};
pub use request::{Asker, Call, PlainRequest, Request};
pub use storages::Attach;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use mlskeyd_policies::{Action, CallerFacts, Decision, Facts, Policy, Question};
use mlskeyd_protocol::v1::{Failure, FailureCode, KeyId, Owner};
use tokio::sync::{Notify, OnceCell, Semaphore};

use crate::attest::Roots;
use crate::audit::{AuditLog, AuditOutcome, Durability, Record};
use crate::caller::Caller;
use crate::config::Bus;
use crate::policy_files::PolicyStore;
use crate::polkit::Polkit;
use crate::store::{ConnectionId, Registry, StoreError};
use guard::{Guard, Seen};
use rates::{Counted, Rates};
use reassign::TakeOvers;
use references::References;
use refusals::Refusals;
use subject::Subject;

/// Most requests of one owner that are on their way at once, on all of its
/// connections: the registry and the making of generations know no owners.
const TURNS_PER_OWNER: usize = 64;

/// So long the names of a caller's user and groups are taken for what they are.
const NAMES_LAST: Duration = Duration::from_secs(300);

/// So long a request waits for them to be looked up again.
const NAMES_WAIT: Duration = Duration::from_secs(1);

/// All keys in custody, and what stands between them and a caller.
pub struct Custody {
    registry: Registry,
    devices: Devices,
    policy: Policy,
    policies: PolicyStore,
    /// One at a time looks at what is in force for what looks wrong.
    linting: Arc<tokio::sync::Mutex<()>>,
    /// One at a time reads the policies and puts them in force: else older ones could be
    /// in force last.
    loading: Mutex<()>,
    frozen: Frozen,
    guard: Guard,
    rates: Rates,
    references: References,
    refusals: Refusals,
    events: Events,
    take_overs: TakeOvers,
    audit: AuditLog,
    settings: Settings,
    /// Says who else administers than root and the daemon's user; `None`: nobody does.
    polkit: Option<Polkit>,
    /// One portion of a sweep at a time: a second one would meet keys that the
    /// first has just destroyed.
    sweeping: tokio::sync::Mutex<()>,
    /// Devices that failed to destroy something since the sweep began that goes on.
    silent: Mutex<BTreeSet<String>>,
    /// Rung when a key may have become due, so that one timer suffices.
    due: Notify,
    /// Rung when somebody connects.
    connected: Notify,
    connections: AtomicU32,
    /// How many connections the agents of each user have.
    agents: Mutex<HashMap<u32, usize>>,
    /// The turns of each owner that is connected.
    turns: Mutex<HashMap<Owner, Weak<Semaphore>>>,
    next_connection: AtomicU64,
    /// When the log was last told of certificates that end.
    warned: Mutex<Option<Instant>>,
    started: Instant,
}

/// What the configuration says about the life of keys, and about consent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The device whose consent key a person touches.
    pub consent_device: Option<String>,
    /// The names that users may have in credentials, in which `{user}` stands for their
    /// own; `None`: any.
    pub credentials: Option<Vec<String>>,
    /// The names of those users who may have other ones.
    pub users: BTreeMap<String, Vec<String>>,
    /// The issuers of certificates in credentials; `None`: there are no such credentials.
    pub issuers: Option<Roots>,
    /// The types of proposals for private use that apps may have signed.
    pub private_proposals: BTreeSet<u16>,
    /// The app that takes over, once, what its users' unnamed apps made.
    pub takes_over: Option<String>,
    /// How long new HPKE keys go under one generation, in seconds.
    pub generation_age: u64,
    /// How long a signature key goes on when its identity got another one, in
    /// seconds.
    pub rotation_grace: u64,
    /// The bus on which polkit is asked.
    pub bus: Option<Bus>,
}

/// One connection's view of custody. Dropping it closes the connection: keys
/// that it made and nobody claimed begin to wait for their end.
#[derive(Clone)]
pub struct Session(Arc<Connection>);

struct Connection {
    custody: Arc<Custody>,
    caller: Caller,
    /// What policies may know of the caller, and since when that is known.
    facts: Mutex<(Instant, Arc<CallerFacts>)>,
    id: ConnectionId,
    /// The turns of all the owner's connections together.
    turns: Arc<Semaphore>,
    /// Is it known that the caller has what it is to take over?
    has_all: OnceCell<()>,
}

impl Custody {
    /// Puts the rooms together.
    #[must_use]
    pub fn new(
        registry: Registry,
        devices: Devices,
        policy: Policy,
        policies: PolicyStore,
        frozen: Frozen,
        audit: AuditLog,
        settings: Settings,
    ) -> Arc<Self> {
        Arc::new(Self {
            guard: Guard::new(registry.clone()),
            rates: Rates::default(),
            references: References::default(),
            refusals: Refusals::default(),
            events: Events::default(),
            take_overs: TakeOvers::default(),
            registry,
            devices,
            policy,
            policies,
            linting: Arc::default(),
            loading: Mutex::default(),
            frozen,
            audit,
            polkit: Polkit::of(settings.bus.as_ref()),
            settings,
            sweeping: tokio::sync::Mutex::new(()),
            silent: Mutex::default(),
            due: Notify::new(),
            connected: Notify::new(),
            connections: AtomicU32::new(0),
            agents: Mutex::default(),
            turns: Mutex::default(),
            next_connection: AtomicU64::new(1),
            warned: Mutex::default(),
            started: Instant::now(),
        })
    }

    /// A session for a caller that has connected.
    #[must_use]
    pub fn connect(self: &Arc<Self>, caller: Caller) -> Session {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.connected.notify_one();
        self.warn_once_a_day();
        let id = ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed));
        Session(Arc::new(Connection {
            custody: Arc::clone(self),
            turns: self.turns_of(&caller.owner),
            facts: Mutex::new((Instant::now(), Arc::clone(&caller.facts))),
            caller,
            id,
            has_all: OnceCell::new(),
        }))
    }

    /// The turns of an owner, shared by all of its connections.
    fn turns_of(&self, owner: &Owner) -> Arc<Semaphore> {
        let mut known = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = known.get(owner).and_then(Weak::upgrade) {
            return turns;
        }
        known.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(TURNS_PER_OWNER));
        known.insert(owner.clone(), Arc::downgrade(&turns));
        turns
    }

    /// The policy's answer to everything that the subject does: the first
    /// action that is refused decides. What the guard knew is needed to reserve.
    async fn permit(&self, session: &Session, subject: &mut Subject) -> Result<Seen, Failure> {
        let (caller, caller_facts) = (session.caller(), session.facts().await);
        self.frozen.check(caller, subject)?;
        let (guard, seen) = self.guard.find(subject).await?;
        let resource = facts::resource(subject, self.devices.kind(subject.device.as_deref()));
        let mut context = std::mem::take(&mut subject.context);
        context.now = facts::moment();
        context.rates = self.rates.of(&caller.owner, Instant::now());
        context.guard = guard;
        let mut refused = None;
        for action in subject.actions() {
            context.in_commit = subject.action == Action::SignCommit && action != subject.action;
            let question = Question {
                caller: &caller.owner,
                action,
                owner: subject.owner.as_ref(),
                administers_by: subject.authorized_by,
            };
            let facts = Facts {
                action,
                caller: &caller_facts,
                resource: &resource,
                context: &context,
            };
            let decided = self.policy.decide(&question, &facts);
            subject.would_deny.extend(decided.would_deny);
            match decided.decision {
                Decision::Permit { policy, consent } => {
                    subject.permitted_by.get_or_insert(policy);
                    subject.consent = subject.consent.take().or(consent);
                }
                Decision::Deny {
                    policy,
                    reason,
                    advice,
                } => {
                    self.tell_of_refusal(caller, action, &policy, &reason);
                    let failure = Failure::new(FailureCode::Denied, reason.clone(), advice)
                        .by_policy(policy.clone());
                    subject.denied = Some((policy, reason));
                    refused = Some(failure);
                    break;
                }
            }
        }
        if subject.durability.is_some() || refused.is_some() {
            subject.facts = facts::on_record(&caller_facts, &resource, &context);
        }
        // It is asked for again if the guard moved on meanwhile.
        subject.context = context;
        refused.map_or(Ok(seen), Err)
    }

    /// Puts something on record that no caller asked for.
    pub(crate) async fn note(&self, action: &'static str, note: impl Into<String>) {
        let note = note.into();
        let outcome = AuditOutcome::Noted {
            note: note.clone().into(),
        };
        let record = Record::new(action, outcome);
        if let Err(error) = self.audit.append(record, Durability::Now).await {
            tracing::error!(%error, action, note, "this is not on record");
        }
    }

    /// Puts on record that a caller asked to administer who may not: that is
    /// refused at the door, before there is a request.
    pub(crate) async fn turned_away(&self, caller: &Caller) {
        let outcome = AuditOutcome::Denied {
            policy: "builtin/administrators".into(),
            reason: "only root and the daemon's own user administer mlskeyd".into(),
        };
        let mut record = Record::new(Action::Administer.name(), outcome);
        record.caller = Some(caller.for_audit());
        if let Err(error) = self.audit.append(record, Durability::Now).await {
            tracing::error!(%error, "a refusal at the door is not on record");
        }
    }

    /// Nothing is done that could not be put on record.
    fn can_record(&self) -> Result<(), Failure> {
        self.audit.check().map_err(failure::of_audit)
    }
}

impl Session {
    /// The way of one request: polkit if it takes that, parse, policy, guard, device, audit,
    /// reply.
    ///
    /// # Errors
    /// Why it was refused or failed; that is on record too.
    pub async fn serve<R: Request>(&self, call: Call, request: R) -> Result<R::Reply, Failure> {
        // Taken before anything runs on by itself: else a caller that asks and
        // cancels could line up any number of requests before everybody else's.
        let asked = request.key();
        let turns = Arc::clone(&self.0.turns);
        let turn = tokio::time::timeout_at(call.deadline.into(), turns.acquire_owned());
        let Ok(Ok(turn)) = turn.await else {
            return Err(self.named(failure::too_busy(), asked).await);
        };
        const {
            assert!(
                R::RIGHT.is_some() == R::ACTION.is_for_administrators(),
                "the request of an administrator says what it takes of polkit, and no other does"
            );
        }
        let mut subject = Subject::new(R::ACTION);
        // That may wait for a person, and is given up with the call.
        let authorized = self.authorize(R::RIGHT, &call, &mut subject).await;
        let session = self.clone();
        let way = async move {
            let _turn = turn;
            // Before the first request: none meets half of it.
            session.take_over().await?;
            let result = match authorized {
                Ok(()) => session.way(&call, request, &mut subject).await,
                Err(failure) => Err(failure),
            };
            let result = result.map_err(|failure| subject.named_in(failure, session.caller()));
            match session.record(&subject, result).await {
                Ok(reply) => Ok(reply),
                Err(failure) => Err(session.named(failure, asked).await),
            }
        };
        if R::LEAVES_TRACES {
            // What is made or destroyed goes on record even if the caller has
            // gone: a dropped call must not cut the way in the middle.
            tokio::spawn(way)
                .await
                .unwrap_or_else(|_| Err(failure::internal()))
        } else {
            way.await
        }
    }

    async fn take_over(&self) -> Result<(), Failure> {
        let Connection {
            custody,
            caller,
            has_all,
            ..
        } = &*self.0;
        let taken = has_all.get_or_try_init(|| custody.take_over(&caller.owner));
        taken.await.copied()
    }

    /// The failure with the key that was asked for, and its device if that is the
    /// caller's to know.
    pub(crate) async fn named(&self, mut failure: Failure, asked: Option<KeyId>) -> Failure {
        failure.key = failure.key.or(asked);
        if let (None, Some(id)) = (&failure.device, failure.key)
            && let Ok(Some(key)) = self.custody().registry.key(id).await
            && key.owner == self.caller().owner
        {
            failure.device = Some(key.device.clone());
        }
        failure
    }

    async fn way<R: Request>(
        &self,
        call: &Call,
        request: R,
        subject: &mut Subject,
    ) -> Result<R::Reply, Failure> {
        let custody = self.custody();
        custody.can_record()?;
        let mut read = request.read(self, call, subject).await?;
        let mut seen = custody.permit(self, subject).await?;
        request.check(&mut read, subject)?;
        request.ready(self, call, subject).await?;
        let content = request.consents_to(&read)?;
        self.consent(content, call, subject).await?;
        let mut consented = subject.consent.is_some();
        while !custody.guard.reserve(subject, &seen).await? {
            seen = custody.permit(self, subject).await?;
            // What the guard knows now may take a consent that it did not take before.
            if subject.consent.is_some() && !consented {
                let content = request.consents_to(&read)?;
                self.consent(content, call, subject).await?;
                consented = true;
            }
        }
        // An identity that is there already is not made.
        if let Some(counted) = Counted::of(subject.action).filter(|_| !subject.context.exists) {
            let owner = &self.caller().owner;
            custody.rates.count(owner, counted, Instant::now());
        }
        // A person, or a device, may have been waited for: what was frozen meanwhile is, and
        // keys may have another owner.
        custody.frozen.check(self.caller(), subject)?;
        custody.still_owned(subject).await?;
        let reply = request.perform(read, self, call, subject).await?;
        if !R::LEAVES_TRACES {
            custody.frozen.check(self.caller(), subject)?;
            custody.still_owned(subject).await?;
        }
        Ok(reply)
    }

    /// Puts a request on record, as durably as it needs, before it is answered.
    async fn record<T>(&self, subject: &Subject, result: Result<T, Failure>) -> Result<T, Failure> {
        let durability = match &result {
            // Who else administers than root is on record, whatever it is.
            Ok(_) => subject
                .durability
                .or(subject.authorized_by.and(Some(Durability::Now))),
            Err(_) => Some(Durability::Now),
        };
        if let Some(durability) = durability {
            let record = subject.to_record(self.caller(), result.as_ref().err());
            let custody = self.custody();
            if matches!(record.outcome, AuditOutcome::Denied { .. }) {
                custody.refusals.remember(record.clone());
            }
            custody
                .audit
                .append(record, durability)
                .await
                .map_err(failure::of_audit)?;
        }
        result
    }

    /// The owner, on record, if it is not the caller itself.
    fn another(&self, owner: Option<&Owner>) -> Option<Owner> {
        owner.filter(|it| **it != self.caller().owner).cloned()
    }

    fn custody(&self) -> &Arc<Custody> {
        &self.0.custody
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.0.caller
    }

    /// What policies may know of the caller: who joins or leaves a group of the system is
    /// noticed also on a connection that lasts.
    async fn facts(&self) -> Arc<CallerFacts> {
        let known = || self.0.facts.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut known = known();
            if known.0.elapsed() <= NAMES_LAST {
                return Arc::clone(&known.1);
            }
            known.0 = Instant::now();
        }
        let connection = Arc::clone(&self.0);
        let look = tokio::task::spawn_blocking(move || {
            let now = connection.caller.clone().looked_up().facts;
            let known = connection.facts.lock();
            known.unwrap_or_else(PoisonError::into_inner).1 = now;
        });
        // Should the company's directory not answer, they are for now what they were.
        let _ = tokio::time::timeout(NAMES_WAIT, look).await;
        Arc::clone(&known().1)
    }

    fn connection(&self) -> ConnectionId {
        self.0.id
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.custody.connections.fetch_sub(1, Ordering::Relaxed);
        let (custody, id) = (Arc::clone(&self.custody), self.id);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // While the daemon stops, or its registry is read-only, the next
                // start counts the connection as closed.
                match custody.registry.connection_closed(id).await {
                    Ok(()) | Err(StoreError::Closed | StoreError::ReadOnly(_)) => {}
                    Err(error) => {
                        tracing::warn!(%error, "a closed connection's keys wait for the next start");
                    }
                }
                custody.due.notify_one();
            });
        }
    }
}
