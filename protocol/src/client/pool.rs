//! The connections of one client, and how a call gets and keeps one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connection::{ConnectError, Connection, Lost, Patience, pause};
use super::doors::{Door, Doors};
use super::{Call, CallError, ClientConfig};
use crate::handshake::Service;
use crate::limits::MAX_DEADLINE;
use crate::v1::{CallOptions, Interaction};

/// An idle connection older than this is closed when another comes back.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// The first and the longest pause between two attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// May a request whose reply was lost be made again?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Harmless,
    Never,
}

/// The connections of one client to one service.
#[derive(Debug)]
pub(super) struct Pool {
    config: ClientConfig,
    service: Service,
    next_id: AtomicU64,
    incarnation: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The most recently used last, so that a thread that calls again and again
    /// keeps to one, and the others age.
    idle: Vec<(Connection, Instant)>,
    /// The door through which there was ever a connection. Then one that is not
    /// there is a restart, and another one might lead to another daemon.
    met: Option<Door>,
    /// Was one lost since the last one was made?
    lost: bool,
}

/// A connection, and was it made for this call?
struct Lease {
    connection: Connection,
    fresh: bool,
}

impl Pool {
    pub(super) fn new(config: ClientConfig, service: Service) -> Self {
        Self {
            config,
            service,
            next_id: AtomicU64::new(1),
            incarnation: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// What goes with a call; its token is the request's id as well.
    pub(super) fn options(&self, call: &Call<'_>) -> CallOptions {
        CallOptions {
            interaction: call.interaction,
            priority: call.priority,
            token: self.next_id.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Makes a call on a connection of its own, which goes back to the pool.
    pub(super) fn call<Req: Serialize, Resp: DeserializeOwned>(
        &self,
        options: CallOptions,
        request: &Req,
        repeat: Repeat,
        call: &Call<'_>,
    ) -> Result<Resp, CallError> {
        let (connection, reply) = self.call_and_keep(options, request, repeat, call)?;
        self.put_back(connection);
        Ok(reply)
    }

    /// The same, but the connection is the caller's.
    pub(super) fn call_and_keep<Req: Serialize, Resp: DeserializeOwned>(
        &self,
        options: CallOptions,
        request: &Req,
        repeat: Repeat,
        call: &Call<'_>,
    ) -> Result<(Connection, Resp), CallError> {
        let now = Instant::now();
        let until = now
            .checked_add(call.deadline.min(MAX_DEADLINE))
            .unwrap_or(now);
        let patience = Patience {
            until,
            cancel: call.cancel,
        };
        let mut lease = match self.take_idle() {
            Some(connection) => Lease {
                connection,
                fresh: false,
            },
            None => Lease {
                connection: self.connect(call, patience)?,
                fresh: true,
            },
        };
        let mut repeated = false;
        loop {
            match lease
                .connection
                .call(options.token, request, patience, call)
            {
                Ok(reply) => return Ok((lease.connection, reply)),
                Err(Lost::Call(error)) => return Err(error),
                Err(Lost::Connection { sent, reason }) => {
                    self.note_loss();
                    let harmless = repeat == Repeat::Harmless || !sent;
                    // The first attempt on an idle connection may have met the
                    // grave of an older daemon, so it does not count against a
                    // request that was not sent.
                    if repeated || !harmless {
                        return Err(self.unreachable(&reason));
                    }
                    repeated = lease.fresh || sent;
                    lease = Lease {
                        connection: self.connect(call, patience)?,
                        fresh: true,
                    };
                }
            }
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        loop {
            let (connection, _) = self.state().idle.pop()?;
            if connection.is_alive() {
                return Some(connection);
            }
            self.note_loss();
        }
    }

    fn put_back(&self, connection: Connection) {
        let now = Instant::now();
        let mut state = self.state();
        state.idle.push((connection, now));
        // The oldest is the first. They are closed after the lock is given up.
        let old = |(_, since): &(Connection, Instant)| now.duration_since(*since) > IDLE_TIME;
        let keep = state.idle.iter().position(|idle| !old(idle)).unwrap_or(0);
        let closed: Vec<_> = state.idle.drain(..keep).collect();
        drop(state);
        drop(closed);
    }

    /// All idle connections lead to a daemon that is likely gone.
    fn note_loss(&self) {
        let mut state = self.state();
        state.lost = true;
        let gone = std::mem::take(&mut state.idle);
        drop(state);
        let alive: Vec<_> = gone.into_iter().filter(|(c, _)| c.is_alive()).collect();
        // Those that came back meanwhile were used more recently.
        let mut state = self.state();
        let newer = std::mem::replace(&mut state.idle, alive);
        state.idle.extend(newer);
    }

    fn connect(&self, call: &Call<'_>, patience: Patience<'_>) -> Result<Connection, CallError> {
        let start = Instant::now();
        let mut wait = PAUSES.0;
        // Was somebody there a moment ago?
        let mut seen = false;
        loop {
            let met = self.state().met.clone();
            let doors = met
                .clone()
                .map_or_else(|| self.config.doors.clone(), Doors::only);
            let greeting = Patience {
                until: Instant::now()
                    .checked_add(self.config.connect_timeout)
                    .map_or(patience.until, |until| until.min(patience.until)),
                ..patience
            };
            let opened = Connection::open(&doors, &self.config.software, self.service, greeting);
            let reason = match opened {
                Ok((connection, door)) => {
                    self.note_connection(door);
                    return Ok(connection);
                }
                Err(ConnectError::Silent(reason)) if Instant::now() < patience.until => {
                    return Err(CallError::Unreachable { reason });
                }
                Err(ConnectError::Silent(_)) => return Err(CallError::Timeout),
                Err(ConnectError::Final(error)) => return Err(error),
                Err(ConnectError::Absent(_)) if met.is_none() && !seen => {
                    return Err(CallError::NotInstalled { doors });
                }
                Err(ConnectError::Absent(reason) | ConnectError::Away(reason)) => {
                    seen = true;
                    reason
                }
            };
            let waited = start.elapsed();
            if call.interaction == Interaction::Never || waited >= self.config.reconnect_for {
                return Err(CallError::Unreachable { reason });
            }
            pause(
                wait.min(self.config.reconnect_for.saturating_sub(waited)),
                patience,
            )?;
            wait = wait.saturating_mul(2).min(PAUSES.1);
        }
    }

    fn note_connection(&self, door: Door) {
        let mut state = self.state();
        // Threads that came at once keep to what the first one found.
        state.met.get_or_insert(door);
        if std::mem::take(&mut state.lost) {
            self.incarnation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// A connection was lost, through whichever door it went.
    fn unreachable(&self, reason: &str) -> CallError {
        let reason = match &self.state().met {
            Some(door) => format!("{door}: {reason}"),
            None => reason.to_owned(),
        };
        CallError::Unreachable { reason }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here is left half done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
