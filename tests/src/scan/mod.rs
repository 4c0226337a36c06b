//! Are there private keys in a process's memory or in its files?
//!
//! Two searches over one [`Snapshot`]: [`encodings`] knows the private keys and
//! looks for them in every encoding; [`windows`] knows only the public keys and
//! multiplies out whatever could be their private key.

pub mod encodings;
mod snapshot;
pub mod windows;

pub use snapshot::{Kind, Part, Snapshot, Stopped};

/// A place where a private key was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The key, as the test calls it.
    pub key: String,
    /// What of it stands there, such as the clamped scalar.
    pub form: &'static str,
    /// How that is written there, such as in base64.
    pub writing: &'static str,
    /// The memory region or file, and the offset in it.
    pub place: String,
    /// In memory, not in a file?
    pub in_memory: bool,
}
