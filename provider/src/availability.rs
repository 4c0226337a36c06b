//! Is there custody to be had?

use mlskeyd_protocol::v1::DeviceState;

/// Whether keys can be in custody just now, learnt without waiting for a
/// person or for a daemon that starts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Availability {
    /// There is no daemon's socket.
    NotInstalled,
    /// There is no mlskeyd for this platform.
    Unsupported,
    /// App and daemon have no wire version in common: says which side is to be
    /// updated.
    Incompatible(String),
    /// The daemon is there and does not serve this process, or not now: the
    /// reason, and what to do.
    Unreachable(String),
    /// The device that new keys go to waits to be unlocked.
    Locked {
        /// Its name.
        device: String,
    },
    /// The device that new keys go to is absent, or failed.
    DeviceUnusable {
        /// Its name.
        device: String,
        /// Why.
        state: DeviceState,
    },
    /// Keys can be made and used.
    Ready,
}

impl Availability {
    pub(crate) fn of_device(device: String, state: DeviceState) -> Self {
        match state {
            DeviceState::Ready => Self::Ready,
            DeviceState::Locked => Self::Locked { device },
            DeviceState::Absent | DeviceState::Failed => Self::DeviceUnusable { device, state },
        }
    }
}

impl From<crate::ProviderError> for Availability {
    fn from(error: crate::ProviderError) -> Self {
        use crate::ProviderError as Error;
        match error {
            Error::NotInstalled { .. } => Self::NotInstalled,
            Error::Unsupported => Self::Unsupported,
            Error::Incompatible(which) => Self::Incompatible(which),
            other => Self::Unreachable(other.to_string()),
        }
    }
}
