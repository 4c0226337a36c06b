//! Is there custody to be had?

use mlskeyd_protocol::v1::{DeviceState, ServiceStatus};

/// Whether keys can be in custody just now, learnt without waiting for a
/// person or for a daemon that starts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Availability {
    /// The daemon is behind none of the doors: there is no socket, and it is on
    /// no message bus. To an app in a sandbox that was not allowed to talk to
    /// `org.mlskeyd.Custody1` it looks the same.
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
    pub(crate) fn of_status(status: ServiceStatus) -> Self {
        if let Some(reason) = status.read_only {
            return Self::Unreachable(format!("mlskeyd takes no changes: {reason}"));
        }
        let (device, state) = status.default_device;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: DeviceState, read_only: Option<&str>) -> ServiceStatus {
        ServiceStatus {
            daemon: String::new(),
            default_device: ("d".to_owned(), state),
            read_only: read_only.map(str::to_owned),
        }
    }

    #[test]
    fn a_daemon_that_cannot_make_or_use_keys_is_not_ready() {
        let of = |state, read_only| Availability::of_status(status(state, read_only));
        assert_eq!(of(DeviceState::Ready, None), Availability::Ready);
        let device = "d".to_owned();
        assert_eq!(
            of(DeviceState::Locked, None),
            Availability::Locked { device }
        );
        let lost = of(DeviceState::Ready, Some("the store key is lost"));
        assert!(
            matches!(&lost, Availability::Unreachable(why) if why.contains("store key")),
            "{lost:?}"
        );
    }
}
