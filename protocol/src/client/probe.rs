//! Is there a daemon that this app can talk to?

use std::path::Path;
use std::time::{Duration, Instant};

use super::connection::{ConnectError, Connection, Patience};
use super::{CallError, ClientConfig};
use crate::handshake::Service;

/// What a [`probe`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// There is no socket.
    NotInstalled,
    /// There is a socket, and nobody answers on it: the error says why.
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
pub fn probe(socket: &Path, within: Duration) -> Probe {
    let config = ClientConfig::new(socket, concat!("probe/", env!("CARGO_PKG_VERSION")));
    let now = Instant::now();
    let patience = Patience {
        until: now.checked_add(within).unwrap_or(now),
        cancel: None,
    };
    match Connection::open(&config, Service::Custody, patience) {
        Ok(_) => Probe::Answers,
        Err(ConnectError::Absent) => Probe::NotInstalled,
        Err(ConnectError::Away(reason)) => Probe::Unreachable(CallError::Unreachable {
            socket: config.socket,
            reason,
        }),
        Err(ConnectError::Final(error @ CallError::Incompatible { .. })) => {
            Probe::Incompatible(error)
        }
        Err(ConnectError::Final(error @ CallError::Refused(_))) => Probe::Refused(error),
        Err(ConnectError::Final(error)) => Probe::Unreachable(error),
    }
}
