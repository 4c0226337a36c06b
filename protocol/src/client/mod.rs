//! The blocking client.
//!
//! It looks for the daemon at its socket and, with the feature `bus`, on a message
//! bus: see [`Doors`]. Over the bus only a channel is asked for, which lives
//! without the bus from then on, and on which all goes as on the socket.
//!
//! It is safe to call inside and outside of an asynchronous runtime: it needs none.
//! While it asks a bus, a thread of its own has one. After `fork` a child must make
//! a client of its own: a connection cannot be shared between processes.
//!
//! ```no_run
//! use mlskeyd_protocol::client::{Call, Client, ClientConfig, Doors};
//!
//! let doors = Doors::named(None, None);
//! let client = Client::new(ClientConfig::through(doors, "my-app/1.0"));
//! for identity in client.identities(&Call::default())? {
//!     println!("{} ({})", identity.name, identity.tier);
//! }
//! # Ok::<(), mlskeyd_protocol::client::CallError>(())
//! ```

mod attachment;
#[cfg(feature = "bus")]
mod bus;
mod cancel;
mod connection;
mod doors;
mod error;
mod pool;
mod probe;
mod services;
mod socket;

pub use attachment::Attachment;
pub use cancel::CancelToken;
pub use doors::{Bus, Doors, default_socket};
pub use error::CallError;
pub use probe::{Probe, probe};
pub use services::{AdminClient, AgentClient, Client};

use std::path::PathBuf;
use std::time::Duration;

use crate::v1::{Interaction, Priority, Progress};

/// How to reach the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Where it is looked for.
    pub doors: Doors,
    /// The app's software and version, for the daemon's log: at most 64
    /// characters.
    pub software: String,
    /// Time for connecting, handshake included.
    pub connect_timeout: Duration,
    /// How long a call waits, within its deadline, for a daemon that is being
    /// restarted.
    pub reconnect_for: Duration,
}

impl ClientConfig {
    /// By this socket only; two seconds to connect, five to wait for a restart.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, software: impl Into<String>) -> Self {
        Self::through(Doors::socket(socket), software)
    }

    /// The same, through these doors.
    #[must_use]
    pub fn through(doors: Doors, software: impl Into<String>) -> Self {
        Self {
            doors,
            software: software.into(),
            connect_timeout: Duration::from_secs(2),
            reconnect_for: Duration::from_secs(5),
        }
    }
}

/// How one call is made.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// For the whole call, connecting included. The daemon cuts it to
    /// [`MAX_DEADLINE`](crate::limits::MAX_DEADLINE).
    pub deadline: Duration,
    /// May it wait for a person? With [`Interaction::Never`] it does not wait
    /// for a daemon that is being restarted, either.
    pub interaction: Interaction,
    /// Who goes first at the device.
    pub priority: Priority,
    /// Is told what the call waits for, on the calling thread.
    pub on_progress: Option<&'a dyn Fn(&Progress)>,
    /// Ends the call early, from another thread.
    pub cancel: Option<&'a CancelToken>,
}

impl Default for Call<'_> {
    /// A minute, half of it for a person; interactive; nobody is told, nobody
    /// cancels.
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(60),
            interaction: Interaction::UpTo(30_000),
            priority: Priority::Interactive,
            on_progress: None,
            cancel: None,
        }
    }
}

impl std::fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("deadline", &self.deadline)
            .field("interaction", &self.interaction)
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}
