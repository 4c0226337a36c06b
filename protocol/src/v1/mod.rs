//! Wire version 1.
//!
//! Frozen once released: postcard writes enum variants and fields by position,
//! so nothing here is reordered, removed or retyped. What changes goes into a
//! version 2 beside it.

mod admin;
mod agent;
mod custody;
mod failure;
mod keys;
mod storage;

pub use admin::*;
pub use agent::*;
pub use custody::*;
pub use failure::*;
pub use keys::*;
pub use storage::*;

pub use crate::handle::{Handle, KeyId};
pub use crate::secret::{Bytes, SecretBytes};

use serde::{Deserialize, Serialize};

/// What every call carries beside its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallOptions {
    /// May the call wait for a person?
    pub interaction: Interaction,
    /// Who goes first in a device's queue.
    pub priority: Priority,
    /// Chosen by the client, unique on its connection: names the call in
    /// [`Progress`] reports.
    pub token: u64,
}

/// May a call wait for a person (a touch, a PIN)?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Interaction {
    /// Fail at once with [`FailureCode::InteractionRequired`].
    Never,
    /// Wait for so many milliseconds.
    UpTo(u32),
}

/// Who goes first in a device's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Priority {
    /// A person waits for it.
    Interactive,
    /// Nobody does, such as a batch of KeyPackages.
    Background,
}

/// What a call waits for; sent while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// Somebody has to touch the device.
    WaitingForTouch {
        /// The device's name.
        device: String,
    },
    /// Somebody has to unlock the device, or the key there that is asked for.
    Locked {
        /// The device's name.
        device: String,
    },
    /// The device is busy with others' requests.
    Busy {
        /// The device's name.
        device: String,
    },
}

/// What the daemon sends: the answer to a call, or news of a running one.
#[derive(Debug, Serialize, Deserialize)]
pub enum ServerFrame<T> {
    /// The answer.
    Reply(tarpc::Response<T>),
    /// News of the call with this [`CallOptions::token`].
    Progress(u64, Progress),
}
