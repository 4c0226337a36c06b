//! Why a call got no answer.

use super::Doors;
use crate::v1::Failure;

/// Why a call got no answer, or a refusal; each text says what can be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The daemon is behind none of the doors, and was not since this client was
    /// made.
    #[error("mlskeyd is not there; it was looked for {doors}: {}", doors.advice())]
    NotInstalled {
        /// Where it was looked for.
        doors: Doors,
    },
    /// The daemon could not be reached, or was lost during the call.
    #[error("mlskeyd cannot be reached {reason}; check that it runs, then call again")]
    Unreachable {
        /// Where, and what went wrong there.
        reason: String,
    },
    /// App and daemon have no wire version in common.
    #[error("{message}")]
    Incompatible {
        /// Both versions, and which side to update.
        message: String,
    },
    /// The daemon does not serve this connection: its reason and advice.
    #[error("mlskeyd refused the connection: {0}")]
    Refused(String),
    /// The daemon refused the request or failed in it.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The call's deadline passed.
    #[error(
        "mlskeyd did not answer in time; \
         a device may be busy or wait for a person: call again with a longer deadline"
    )]
    Timeout,
    /// The call's [`CancelToken`](super::CancelToken) was used.
    #[error("the call was cancelled; call again when it is wanted")]
    Cancelled,
    /// The daemon answered what does not belong here, or the request is larger
    /// than the protocol allows.
    #[error("{0}; if it happens again, report it with the daemon's log")]
    Protocol(String),
}
