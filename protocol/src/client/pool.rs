//! The connections of one client, and how a call gets and keeps one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connection::{ConnectError, Connection, Lost, Patience, pause};
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
    /// Was there ever a connection? Then a missing socket is a restart.
    met: bool,
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
                        return Err(self.unreachable(reason));
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
        loop {
            let greeting = Patience {
                until: Instant::now()
                    .checked_add(self.config.connect_timeout)
                    .map_or(patience.until, |until| until.min(patience.until)),
                ..patience
            };
            let reason = match Connection::open(&self.config, self.service, greeting) {
                Ok(connection) => {
                    self.note_connection();
                    return Ok(connection);
                }
                Err(ConnectError::Final(CallError::Timeout)) if Instant::now() < patience.until => {
                    return Err(self.unreachable("it does not answer the greeting".to_owned()));
                }
                Err(ConnectError::Final(error)) => return Err(error),
                Err(ConnectError::Absent) if !self.state().met => {
                    return Err(CallError::NotInstalled {
                        socket: self.config.socket.clone(),
                    });
                }
                Err(ConnectError::Absent) => "its socket is gone".to_owned(),
                Err(ConnectError::Away(reason)) => reason,
            };
            let waited = start.elapsed();
            if call.interaction == Interaction::Never || waited >= self.config.reconnect_for {
                return Err(self.unreachable(reason));
            }
            pause(
                wait.min(self.config.reconnect_for.saturating_sub(waited)),
                patience,
            )?;
            wait = wait.saturating_mul(2).min(PAUSES.1);
        }
    }

    fn note_connection(&self) {
        let mut state = self.state();
        state.met = true;
        if std::mem::take(&mut state.lost) {
            self.incarnation.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn unreachable(&self, reason: String) -> CallError {
        CallError::Unreachable {
            socket: self.config.socket.clone(),
            reason,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here is left half done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
