//! Is there a daemon that this app can talk to?

use std::time::{Duration, Instant};

use super::connection::{ConnectError, Connection, Patience};
use super::{CallError, Doors};
use crate::handshake::Service;

/// What a [`probe`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It is behind none of the doors.
    NotInstalled,
    /// There is a door, and nobody answers behind it: the error says why.
    Unreachable(CallError),
    /// The daemon and this app have no wire version in common.
    Incompatible(CallError),
    /// The daemon does not serve this caller.
    Refused(CallError),
    /// The daemon answers.
    Answers,
}

/// Greets the daemon once, on a connection of its own, and waits for its answer
/// at most for `within` (50 ms are plenty for a daemon that is well).
#[must_use]
pub fn probe(doors: &Doors, within: Duration) -> Probe {
    let software = concat!("probe/", env!("CARGO_PKG_VERSION"));
    let now = Instant::now();
    let patience = Patience {
        until: now.checked_add(within).unwrap_or(now),
        cancel: None,
    };
    match Connection::open(doors, software, Service::Custody, patience) {
        Ok(_) => Probe::Answers,
        Err(ConnectError::Absent(_)) => Probe::NotInstalled,
        Err(ConnectError::Away(reason) | ConnectError::Silent(reason)) => {
            Probe::Unreachable(CallError::Unreachable { reason })
        }
        Err(ConnectError::Final(error @ CallError::Incompatible { .. })) => {
            Probe::Incompatible(error)
        }
        Err(ConnectError::Final(error @ CallError::Refused(_))) => Probe::Refused(error),
        Err(ConnectError::Final(error)) => Probe::Unreachable(error),
    }
}
