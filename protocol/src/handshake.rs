//! The first frames each way: which wire version, which service, and who speaks.

use serde::{Deserialize, Serialize};

/// The first bytes of a client's first frame.
pub const MAGIC: [u8; 8] = *b"mlskeyd\0";

/// The oldest and the newest wire version that this crate speaks.
pub const VERSIONS: (u16, u16) = (1, 1);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Service {
    /// [`crate::v1::Custody`]: what apps ask.
    Custody,
    /// [`crate::v1::Admin`]: what administrators ask; root or the daemon's own
    /// user only.
    Admin,
    /// [`crate::v1::Agent`]: what the agent of a login session asks.
    Agent,
}

/// The client's first frame. Its layout never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// The oldest wire version that the client speaks.
    pub oldest: u16,
    /// The newest wire version that the client speaks.
    pub newest: u16,
    /// What the connection is for.
    pub service: Service,
    /// The client's software and version, for the log: at most 64 bytes.
    pub software: String,
}

/// What the daemon says to that. Variants are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// The connection speaks this version from here.
    Agreed {
        /// The wire version.
        version: u16,
        /// The daemon's version, for the log.
        daemon: String,
        /// The user id that the daemon sees as the caller's.
        uid: u32,
    },
    /// No version in common.
    Incompatible {
        /// The oldest wire version that the daemon speaks.
        oldest: u16,
        /// The newest wire version that the daemon speaks.
        newest: u16,
        /// The daemon's version.
        daemon: String,
    },
    /// The daemon will not serve this connection: the reason and what to do.
    Refused(String),
    /// The client is to send an [`Echo`] of it; then comes another of these, and no second
    /// challenge. So the daemon sees which process answers, after it has seen which one
    /// connected.
    Challenge {
        /// Random, of this connection.
        nonce: Nonce,
    },
}

/// What a client is to repeat.
pub type Nonce = [u8; 32];

/// The client's answer to a [`Welcome::Challenge`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// The challenge's.
    pub nonce: Nonce,
}

impl Hello {
    /// A client's greeting for `service`.
    #[must_use]
    pub fn new(service: Service, software: &str) -> Self {
        Self {
            magic: MAGIC,
            oldest: VERSIONS.0,
            newest: VERSIONS.1,
            service,
            software: software.chars().take(64).collect(),
        }
    }

    /// The newest version that both sides speak.
    #[must_use]
    pub fn agree(&self) -> Option<u16> {
        let newest = self.newest.min(VERSIONS.1);
        (newest >= self.oldest.max(VERSIONS.0)).then_some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_agreed() {
        let hello = |oldest, newest| Hello {
            oldest,
            newest,
            ..Hello::new(Service::Custody, "t")
        };
        assert_eq!(hello(1, 1).agree(), Some(1));
        assert_eq!(hello(1, 7).agree(), Some(1));
        assert_eq!(hello(2, 7).agree(), None);
        assert_eq!(hello(0, 0).agree(), None);
        assert_eq!(hello(3, 1).agree(), None);
    }
}
