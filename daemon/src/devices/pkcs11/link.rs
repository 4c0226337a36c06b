//! The daemon's link to one token: its connections, each a session, and the
//! state that it is in. Shared by the device's hands.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mlskeyd_protocol::v1::SecretBytes;

use super::abilities::Plan;
use super::process::{Connection, HelperProcess};
use super::timed::{self, Timed};
use super::wire::{self, Answer, Reply, Request, TokenError, TokenName};
use super::{bounded, misfit, of_token};
use crate::config::{Pkcs11Config, TokenChoice};
use crate::devices::own_token::{MAX_SERIAL, OwnToken};
use crate::devices::pins::{Pins, Trial};
use crate::devices::{Count, DeviceError, DeviceInfo, DeviceState, Meter, Newcomer, Unlocking};

/// How long a token that failed is left alone, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(800), Duration::from_secs(2));

/// How long it is believed that a token gives no more sessions.
const NO_MORE_SESSIONS: Duration = Duration::from_secs(60);

/// The link to a token.
pub(super) struct Link {
    helper: HelperProcess,
    token: TokenName,
    own: OwnToken,
    pins: Pins,
    /// How long a call may take.
    patience: Duration,
    /// Most private keys on the token.
    max_objects: u32,
    /// How many there are, as the helper said last.
    objects: Mutex<Option<u32>>,
    /// Most sessions.
    sessions: u32,
    pool: Mutex<Pool>,
    /// Rung when a connection is free, or gone.
    freed: Condvar,
    /// Has somebody locked it, so that it waits for a person?
    is_locked: AtomicBool,
    /// Held by the one who logs in, or finds out what the token can do: of two at
    /// once both would try a PIN.
    logging_in: Mutex<()>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    /// The idle ones, and those in use.
    open: u32,
    /// Those of them that are logged in, and the most that were at once.
    logged_in: u32,
    peak: u32,
    /// As many as the token gives, until that is asked again.
    given: Option<(u32, Instant)>,
    /// None is kept any more.
    is_over: bool,
}

/// What was seen of the token.
struct Seen {
    info: Arc<DeviceInfo>,
    /// What it can do.
    plan: Option<Arc<Plan>>,
    /// The serial number of the one that was met last, to be looked at once more.
    met: Option<String>,
    /// When one that failed is looked at again, and how long to wait then.
    back_off: (Instant, Duration),
    /// What went wrong last with a request.
    last_fault: String,
}

/// The right to log in.
type Turn<'a> = MutexGuard<'a, ()>;

/// A place among the connections. Dropped, it is free, and its connection closed,
/// since something went wrong with that; unless it is given back.
struct InUse<'a> {
    link: &'a Link,
    connection: Option<Connection>,
    is_sound: bool,
}

impl Link {
    pub(super) fn new(
        name: &str,
        config: &Pkcs11Config,
        helper: HelperProcess,
        own: OwnToken,
        pins: Pins,
    ) -> Self {
        let info = DeviceInfo {
            generations: None,
            name: name.to_owned(),
            kind: "pkcs11",
            state: DeviceState::Absent,
            reason: "it has not been looked at yet".to_owned(),
            facts: Vec::new(),
            support: Vec::new(),
            unlocked: BTreeSet::new(),
        };
        Self {
            helper,
            token: match &config.token {
                TokenChoice::Label(label) => TokenName::Label(label.clone()),
                TokenChoice::Serial(serial) => TokenName::Serial(serial.clone()),
            },
            own,
            pins,
            patience: config.call_timeout,
            max_objects: config.max_objects,
            objects: Mutex::default(),
            sessions: config.sessions,
            pool: Mutex::default(),
            freed: Condvar::new(),
            is_locked: AtomicBool::new(false),
            logging_in: Mutex::default(),
            seen: Mutex::new(Seen {
                info: Arc::new(info),
                plan: None,
                met: None,
                back_off: (Instant::now(), BACK_OFF.0),
                last_fault: String::new(),
            }),
        }
    }

    pub(super) const fn sessions(&self) -> u32 {
        self.sessions
    }

    pub(super) fn info(&self) -> Arc<DeviceInfo> {
        Arc::clone(&lock(&self.seen).info)
    }

    /// Can it be ready again without somebody?
    pub(super) fn comes_back(&self) -> bool {
        self.pins.has_source() || self.info().state != DeviceState::Locked
    }

    /// What the token can do; it is connected for that if need be.
    pub(super) fn plan(&self) -> Result<Arc<Plan>, DeviceError> {
        let known = |seen: &Seen| seen.plan.clone();
        if let Some(plan) = known(&lock(&self.seen)) {
            return Ok(plan);
        }
        self.take()?.give_back();
        known(&lock(&self.seen)).ok_or_else(misfit)
    }

    /// Looks whether a token that is not ready is back.
    pub(super) fn probe(&self) {
        let (state, not_before, met) = {
            let seen = lock(&self.seen);
            (seen.info.state, seen.back_off.0, seen.met.clone())
        };
        let worth_while = match state {
            DeviceState::Ready => false,
            DeviceState::Absent => true,
            // Without another PIN the token is left in peace.
            DeviceState::Locked => {
                let may_log_in = !self.is_locked.load(Ordering::Acquire);
                may_log_in && met.is_some_and(|token| self.pins.has_another(&token))
            }
            DeviceState::Failed => not_before <= Instant::now(),
        };
        if worth_while && let Ok(connection) = self.take() {
            connection.give_back();
            // It may have been an idle one.
            lock(&self.seen).note(DeviceState::Ready, String::new());
        }
    }

    /// Unlocks the token with a PIN that a person gave.
    pub(super) fn unlock(
        &self,
        pin: &SecretBytes,
        last_try: bool,
    ) -> Result<Unlocking, DeviceError> {
        let mut in_use = self.reserve(&mut lock(&self.pool));
        let (connection, how) = {
            let turn = lock(&self.logging_in);
            let connected = self.connect(&turn, Some((pin, last_try)));
            self.noted(&turn, connected.map_err(DeviceError::from))?
        };
        in_use.holds(connection);
        in_use.give_back();
        Ok(how)
    }

    /// Locks the token: all sessions end, and with the last one its login. What is being
    /// done in one of them is lost.
    pub(super) fn lock(&self) {
        let turn = lock(&self.logging_in);
        self.is_locked.store(true, Ordering::Release);
        self.close_idle();
        self.helper.end_any();
        let locked = of_token(TokenError::Locked);
        let reason = format!("{locked}; somebody locked it");
        lock(&self.seen).note(DeviceState::Locked, reason);
        drop(turn);
    }

    /// Ends the sessions that are not in use and lets the helper end, in order; by
    /// force what has not ended some seconds later.
    pub(super) fn stop(&self) {
        lock(&self.pool).is_over = true;
        self.close_idle();
        if !self.helper.stop() {
            let device = &lock(&self.seen).info.name;
            tracing::warn!(
                device,
                "the module did not end in time, and its helper was killed: the token may keep its sessions until they time out there"
            );
        }
    }

    /// Which token is there, whether or not it is the device's own.
    pub(super) fn look(&self) -> Result<Newcomer, DeviceError> {
        let turn = lock(&self.logging_in);
        let serial = self.seen_on(&turn, &mut self.new_connection()?)?;
        let own = match self.own.serial() {
            Err(DeviceError::OwnTokenUnknown { .. }) => None,
            own => own?,
        };
        Ok(Newcomer {
            noun: "token",
            fate: "what is only there is missing",
            is_own: own.as_ref() == Some(&serial),
            serial,
            own,
        })
    }

    /// Makes the token that is there the device's own, if it still is this one.
    pub(super) fn accept(&self, serial: &str) -> Result<(), DeviceError> {
        let turn = lock(&self.logging_in);
        let found = self.seen_on(&turn, &mut self.new_connection()?)?;
        if found != serial {
            return Err(DeviceError::Failed {
                reason: format!("meanwhile there is another token, {found:?}"),
            });
        }
        self.own.set(serial)?;
        // What the one before can do says nothing of this one.
        lock(&self.seen).plan = None;
        drop(turn);
        self.close_idle();
        // What comes of this is told by the state.
        if let Ok(connection) = self.take() {
            connection.give_back();
        }
        Ok(())
    }

    /// One request and its reply, on a connection that is logged in. If it turns
    /// out to be dead, the request is repeated: one that is harmless to repeat.
    pub(super) fn ask(&self, request: &Request) -> Result<Reply, DeviceError> {
        let first = self.ask_once(request, None);
        let lost = matches!(
            first,
            Err(DeviceError::Absent { .. } | DeviceError::Lost { .. })
        );
        if lost {
            return self.ask_once(request, None);
        }
        first
    }

    /// A request that makes something as this plan says, and is never repeated.
    pub(super) fn make(&self, plan: &Plan, request: &Request) -> Result<Reply, DeviceError> {
        self.ask_once(request, Some(plan))
    }

    fn ask_once(&self, request: &Request, plan: Option<&Plan>) -> Result<Reply, DeviceError> {
        let mut in_use = self.take()?;
        let connection = in_use.connection.as_mut().ok_or_else(misfit)?;
        if plan.is_some_and(|plan| plan.serial != connection.token) {
            in_use.give_back();
            return Err(DeviceError::Failed {
                reason: "another token has just taken its place".to_owned(),
            });
        }
        match self.converse(connection, request, None) {
            Ok(Reply::Failed(error)) if is_about_the_request(&error) => {
                in_use.give_back();
                Ok(Reply::Failed(error))
            }
            Ok(Reply::Failed(error)) => {
                drop(in_use);
                if matches!(error, TokenError::Gone(_)) {
                    self.close_idle();
                }
                let error = of_token(error);
                self.log_fault(&error);
                Err(error)
            }
            Ok(reply) => {
                if fits(request, &reply) {
                    in_use.give_back();
                    return Ok(reply);
                }
                // All that follow would be of the request before.
                Err(misfit())
            }
            Err(error) => {
                drop(in_use);
                self.close_idle();
                self.log_fault(&error);
                Err(error)
            }
        }
    }

    /// Says what goes wrong with a token that is there, once as long as it stays
    /// the same.
    fn log_fault(&self, error: &DeviceError) {
        let fault = error.to_string();
        let mut seen = lock(&self.seen);
        if seen.last_fault != fault {
            let device = &seen.info.name;
            tracing::warn!(device, fault, "the token did not do what it was asked for");
            seen.last_fault = fault;
        }
    }

    /// A connection that is logged in: an idle one, or a new one if there may be
    /// more, else the next that is free.
    fn take(&self) -> Result<InUse<'_>, DeviceError> {
        let mut pool = lock(&self.pool);
        loop {
            if pool.is_over {
                return Err(DeviceError::Absent {
                    reason: "the daemon is stopping".to_owned(),
                });
            }
            if let Some(connection) = pool.idle.pop() {
                return Ok(InUse {
                    link: self,
                    connection: Some(connection),
                    is_sound: false,
                });
            }
            if pool.open < self.most(&pool) {
                let mut in_use = self.reserve(&mut pool);
                drop(pool);
                match self.log_in() {
                    Ok(connection) => {
                        in_use.holds(connection);
                        return Ok(in_use);
                    }
                    Err(Refusal::NoSession(error)) => {
                        drop(in_use);
                        self.log_fault(&error);
                        pool = lock(&self.pool);
                        if pool.open == 0 {
                            return Err(error);
                        }
                        // Those that there are have to do.
                        let until = Instant::now().checked_add(NO_MORE_SESSIONS);
                        pool.given = until.map(|until| (pool.open, until));
                    }
                    Err(Refusal::Other(error)) => return Err(error),
                }
            } else {
                // As long as a call may take, with its repetition.
                let patience = self.patience.saturating_mul(2);
                let (guard, waited) = self
                    .freed
                    .wait_timeout(pool, patience)
                    .unwrap_or_else(PoisonError::into_inner);
                pool = guard;
                if waited.timed_out() && pool.idle.is_empty() {
                    return Err(DeviceError::Failed {
                        reason: "all of its sessions are in use".to_owned(),
                    });
                }
            }
        }
    }

    /// How many connections there may be.
    fn most(&self, pool: &Pool) -> u32 {
        match pool.given {
            Some((given, until)) if Instant::now() < until => given,
            _ => self.sessions,
        }
    }

    /// A place for one more connection.
    fn reserve(&self, pool: &mut Pool) -> InUse<'_> {
        pool.open = pool.open.saturating_add(1);
        InUse {
            link: self,
            connection: None,
            is_sound: false,
        }
    }

    /// A new connection, logged in.
    fn log_in(&self) -> Result<Connection, Refusal> {
        let turn = lock(&self.logging_in);
        match self.connect(&turn, None) {
            Err(Refusal::NoSession(error)) => {
                let noted: Result<Connection, _> = self.noted(&turn, Err(error));
                noted.map_err(Refusal::NoSession)
            }
            Err(Refusal::Other(error)) => self.noted(&turn, Err(error)).map_err(Refusal::Other),
            Ok((connection, _)) => self.noted(&turn, Ok(connection)).map_err(Refusal::Other),
        }
    }

    /// Connects, logs in with the PIN that is given or configured, and finds out
    /// what the token can do, if that is not known.
    fn connect(
        &self,
        turn: &Turn<'_>,
        given: Option<(&SecretBytes, bool)>,
    ) -> Result<(Connection, Unlocking), Refusal> {
        if given.is_none() && self.is_locked.load(Ordering::Acquire) {
            return Err(of_token(TokenError::Locked).into());
        }
        let known = self.own.serial()?;
        let mut connection = self.new_connection()?;
        let own = match &known {
            Some(serial) => serial.clone(),
            None => self.seen_on(turn, &mut connection)?,
        };
        lock(&self.seen).met = Some(own.clone());
        // First without: the helper may be logged in, and the token may not be
        // there at all, or be another one.
        let mut how = Unlocking::WasUnlocked;
        match self.open(turn, &mut connection, &own, None, false)? {
            Ok(()) => {}
            Err(error @ (TokenError::Locked | TokenError::LastTry)) => {
                let (pin, last_try) = given.map_or((None, false), |(pin, last)| (Some(pin), last));
                if matches!(error, TokenError::LastTry) && !last_try {
                    return Err(of_token(error).into());
                }
                let trial = match pin {
                    Some(pin) => Some(self.pins.try_this(&own, pin)?),
                    None => self.pins.try_one(&own)?,
                };
                let trial = trial.ok_or_else(|| of_token(TokenError::Locked))?;
                how = Unlocking::ByThePin;
                self.open_with(turn, &mut connection, &own, &trial, last_try)?;
            }
            Err(error @ TokenError::NoSession(_)) => {
                return Err(Refusal::NoSession(of_token(error)));
            }
            Err(error) => return Err(self.refused(&own, error).into()),
        }
        if known.is_none() {
            // Before anything is made on it.
            self.own.set(&own)?;
        }
        let is_known = |seen: &Seen| seen.plan.as_ref().is_some_and(|plan| plan.serial == own);
        if !is_known(&lock(&self.seen)) {
            let plan = match self.converse(&mut connection, &Request::TryOut, Some(turn))? {
                Reply::Abilities(found) => Plan::new(&found, &own, self.max_objects)?,
                Reply::Failed(error) => return Err(of_token(error).into()),
                _ => return Err(misfit().into()),
            };
            lock(&self.seen).plan = Some(Arc::new(plan));
        }
        connection.token = own;
        self.is_locked.store(false, Ordering::Release);
        Ok((connection, how))
    }

    /// A connection that has no session yet.
    fn new_connection(&self) -> Result<Connection, DeviceError> {
        let connected = self.helper.connect().and_then(|connection| {
            timed::limit(&connection.stream, self.patience)?;
            Ok(connection)
        });
        connected.map_err(|source| DeviceError::Io {
            what: "starting the module's helper",
            source,
        })
    }

    /// The serial number of the token that is there.
    fn seen_on(&self, turn: &Turn<'_>, connection: &mut Connection) -> Result<String, DeviceError> {
        let request = Request::Look {
            token: self.token.clone(),
        };
        match self.converse(connection, &request, Some(turn))? {
            Reply::Seen { serial } if serial.len() <= MAX_SERIAL => Ok(serial),
            Reply::Failed(error) => Err(of_token(error)),
            _ => Err(misfit()),
        }
    }

    /// Why a token was not opened.
    fn refused(&self, own: &str, error: TokenError) -> DeviceError {
        match error {
            TokenError::Other(found) => self.own.other(own, bounded(&found)),
            error => of_token(error),
        }
    }

    fn open_with(
        &self,
        turn: &Turn<'_>,
        connection: &mut Connection,
        own: &str,
        trial: &Trial<'_>,
        last_try: bool,
    ) -> Result<(), DeviceError> {
        match self.open(turn, connection, own, Some(&trial.pin), last_try)? {
            Ok(()) => trial.was_right(),
            Err(error) => {
                match error {
                    TokenError::WrongPin => trial.was_wrong()?,
                    // Nobody knows whether that was its last try, or it was not
                    // looked at: so it is not tried again and again.
                    TokenError::LoginFailed(_) | TokenError::PinLocked => {}
                    // The token has not looked at it.
                    _ => trial.was_not_used()?,
                }
                Err(self.refused(own, error))
            }
        }
    }

    fn open(
        &self,
        turn: &Turn<'_>,
        connection: &mut Connection,
        own: &str,
        pin: Option<&SecretBytes>,
        last_try: bool,
    ) -> Result<Result<(), TokenError>, DeviceError> {
        let request = Request::Open {
            token: self.token.clone(),
            own: own.to_owned(),
            pin: pin.map(|pin| SecretBytes::new(pin.expose().to_vec())),
            last_try,
        };
        match self.converse(connection, &request, Some(turn))? {
            Reply::Opened { serial } if serial == own => Ok(Ok(())),
            Reply::Failed(error) => Ok(Err(error)),
            _ => Err(misfit()),
        }
    }

    /// One request and its reply. A helper that does not answer in time is
    /// ended: after the login of another session, if there is one just now, for
    /// else nobody would know whether its PIN was counted.
    fn converse(
        &self,
        connection: &mut Connection,
        request: &Request,
        turn: Option<&Turn<'_>>,
    ) -> Result<Reply, DeviceError> {
        let talk = |connection: &Connection| -> io::Result<Reply> {
            let mut stream = Timed::new(&connection.stream, self.patience);
            wire::send(&mut stream, request)?;
            let Answer { objects, reply } = wire::receive(&mut stream)?;
            if objects.is_some() {
                *lock(&self.objects) = objects;
            }
            Ok(reply)
        };
        talk(connection).map_err(|source| {
            let hangs = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
            let source = if hangs.contains(&source.kind()) {
                let _turn = turn.is_none().then(|| lock(&self.logging_in));
                self.helper.end(connection);
                let patience = self.patience;
                io::Error::new(
                    source.kind(),
                    format!("it did not answer within {patience:?}, and was ended"),
                )
            } else {
                match self.helper.how_it_ended(connection) {
                    Some(how) => io::Error::new(source.kind(), how),
                    None => source,
                }
            };
            DeviceError::Lost {
                reason: format!("asking the module's helper: {source}"),
            }
        })
    }

    /// Connections that are not in use are no better than one that was just lost.
    fn close_idle(&self) {
        let mut pool = lock(&self.pool);
        let lost = std::mem::take(&mut pool.idle);
        let count = u32::try_from(lost.len()).unwrap_or(u32::MAX);
        pool.open = pool.open.saturating_sub(count);
        pool.logged_in = pool.logged_in.saturating_sub(count);
        drop(pool);
        self.freed.notify_all();
    }

    /// Notes what became of an attempt to connect. As long as there are other
    /// connections, one that fails says nothing of the token. The turn is still
    /// held: else the helper could be ended under the one who has the next.
    fn noted<T>(&self, _turn: &Turn<'_>, result: Result<T, DeviceError>) -> Result<T, DeviceError> {
        if result.is_err() && lock(&self.pool).open > 1 {
            return result;
        }
        let (state, reason) = match &result {
            Ok(_) => (DeviceState::Ready, String::new()),
            Err(error) => {
                let state = match error {
                    DeviceError::Locked { .. } => DeviceState::Locked,
                    DeviceError::Absent { .. } => DeviceState::Absent,
                    _ => DeviceState::Failed,
                };
                (state, format!("{error}; {}", error.advice()))
            }
        };
        if matches!(state, DeviceState::Absent | DeviceState::Failed) {
            // Some modules see what is back only when they are loaded anew.
            self.helper.end_any();
        }
        lock(&self.seen).note(state, reason);
        result
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Seen {
    fn note(&mut self, state: DeviceState, reason: String) {
        if self.info.state != state || self.info.reason != reason {
            let device = &self.info.name;
            if state == DeviceState::Ready {
                tracing::info!(device, "the token is ready");
            } else {
                tracing::warn!(device, %state, reason, "the token is not ready");
            }
        }
        let now = Instant::now();
        self.back_off = match state {
            DeviceState::Failed => {
                let (_, wait) = self.back_off;
                let longer = wait.saturating_mul(2).min(BACK_OFF.1);
                (now.checked_add(wait).unwrap_or(now), longer)
            }
            _ => (now, BACK_OFF.0),
        };
        let plan = self.plan.as_ref();
        self.info = Arc::new(DeviceInfo {
            generations: None,
            name: self.info.name.clone(),
            kind: self.info.kind,
            state,
            reason,
            facts: plan.map_or_else(Vec::new, |plan| plan.facts.clone()),
            support: plan.map_or_else(Vec::new, |plan| plan.support.clone()),
            unlocked: BTreeSet::new(),
        });
    }
}

/// Why there is no new connection.
enum Refusal {
    /// The token gives no more sessions.
    NoSession(DeviceError),
    /// Anything else.
    Other(DeviceError),
}

impl From<DeviceError> for Refusal {
    fn from(error: DeviceError) -> Self {
        Self::Other(error)
    }
}

impl From<Refusal> for DeviceError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoSession(error) | Refusal::Other(error) => error,
        }
    }
}

impl Meter for Link {
    fn counts(&self) -> Vec<Count> {
        let pool = lock(&self.pool);
        let idle = u32::try_from(pool.idle.len()).unwrap_or(u32::MAX);
        let sessions = Count {
            name: "sessions".to_owned(),
            used: Some(pool.logged_in.saturating_sub(idle)),
            peak: Some(pool.peak),
            most: self.sessions,
        };
        drop(pool);
        let objects = Count {
            name: "objects".to_owned(),
            used: *lock(&self.objects),
            peak: None,
            most: self.max_objects,
        };
        vec![sessions, objects]
    }
}

impl InUse<'_> {
    /// It is a connection now.
    fn holds(&mut self, connection: Connection) {
        self.connection = Some(connection);
        let mut pool = lock(&self.link.pool);
        pool.logged_in = pool.logged_in.saturating_add(1);
        pool.peak = pool.peak.max(pool.logged_in);
    }

    /// Nothing went wrong with it.
    fn give_back(mut self) {
        self.is_sound = true;
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let connection = self.connection.take();
        let mut pool = lock(&self.link.pool);
        match connection {
            Some(connection) if self.is_sound && !pool.is_over => pool.idle.push(connection),
            held => {
                pool.open = pool.open.saturating_sub(1);
                let lost = u32::from(held.is_some());
                pool.logged_in = pool.logged_in.saturating_sub(lost);
            }
        }
        drop(pool);
        self.link.freed.notify_one();
    }
}

/// Errors that say nothing about the session.
const fn is_about_the_request(error: &TokenError) -> bool {
    matches!(
        error,
        TokenError::GenerationExists
            | TokenError::NotFound
            | TokenError::Unsupported(_)
            | TokenError::Refused(_)
            | TokenError::Unsuitable(_)
            | TokenError::Memory(_)
            | TokenError::Full { .. }
    )
}

/// Is the reply one to this request?
const fn fits(request: &Request, reply: &Reply) -> bool {
    matches!(
        (request, reply),
        (
            Request::Generate { .. } | Request::Find { .. },
            Reply::Made { .. }
        ) | (Request::Seal { .. }, Reply::Sealed(_))
            | (
                Request::Sign { .. } | Request::Agree { .. } | Request::Unseal { .. },
                Reply::Bytes(_)
            )
            | (
                Request::CreateGeneration { .. }
                    | Request::DestroyGeneration { .. }
                    | Request::DestroyKey { .. },
                Reply::Done
            )
    )
}

/// What these guard is whole even if some thread died.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
