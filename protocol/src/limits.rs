//! The bounds that both sides keep. What is larger is refused before it is
//! allocated.

use std::time::Duration;

/// Longest frame, in bytes, without its length prefix. A GroupInfo that
/// carries the ratchet tree of a group of some thousand members fits.
pub const MAX_FRAME: usize = 4 * 1024 * 1024;

/// Longest frame of the handshake, in bytes.
pub const MAX_HANDSHAKE_FRAME: usize = 1024;

/// Longest content to be signed, and longest ciphertext or `info` of an open,
/// in bytes.
pub const MAX_CONTENT: usize = 3 * 1024 * 1024;

/// Longest name of an identity, a storage or a device, in bytes of UTF-8.
pub const MAX_NAME: usize = 255;

/// Longest credential content, in bytes (a chain of X.509 certificates fits).
pub const MAX_CREDENTIAL: usize = 16 * 1024;

/// Longest public key, in bytes (P-521, uncompressed).
pub const MAX_PUBLIC_KEY: usize = 133;

/// Most keys of one identity that retire at a time.
pub const MAX_RETIRING: usize = 8;

/// Longest grace of a key that retires, in seconds: ten years.
pub const MAX_GRACE: u64 = 10 * 365 * 24 * 60 * 60;

/// Longest PIN, in bytes.
pub const MAX_PIN: usize = 256;

/// Shortest nonce of a verifier, in bytes: nobody guesses it.
pub const MIN_NONCE: usize = 16;

/// Longest nonce of a verifier, in bytes.
pub const MAX_NONCE: usize = 64;

/// Longest signature that is verified, in bytes: ECDSA on P-256 in DER.
pub const MAX_SIGNATURE: usize = 72;

/// Longest challenge of a verifier, in bytes.
pub const MAX_CHALLENGE: usize = 16 * 1024;

/// Longest MLS group id, in bytes.
pub const MAX_GROUP_ID: usize = 1024;

/// Longest reference of a KeyPackage, in bytes (a hash).
pub const MAX_REFERENCE: usize = 64;

/// Most keys that one claim may name. A group state names the key pairs of one
/// pending commit, an epoch record those of one path: both logarithmic in the
/// group's size; OpenMLS puts at most one handle into them.
pub const MAX_CLAIM_KEYS: usize = 64;

/// Most records that one request may settle, or one look may answer.
pub const MAX_RECORDS: usize = 256;

/// Most public keys that one look-up may ask for.
pub const MAX_LOOKUP: usize = 256;

/// The longest deadline that the daemon honours. A longer one is cut to this
/// before tarpc sees it: tarpc 0.38 panics on deadlines years ahead.
pub const MAX_DEADLINE: Duration = Duration::from_secs(600);

/// Most requests in flight on one connection.
pub const MAX_IN_FLIGHT: usize = 32;

/// Time in which a new connection must have said its handshake.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Longest frame of a request that carries no content (all but
/// [`Sign`](crate::v1::Sign) and [`Open`](crate::v1::Open)), in bytes. Lists of
/// small items grow many times over when they are decoded.
pub const MAX_SHORT_FRAME: usize = 512 * 1024;

/// Memory that the requests of one user may hold at a time, in bytes: what is
/// being received, and what is being served.
pub const MAX_MEMORY_PER_USER: usize = 64 * 1024 * 1024;

/// Time in which a frame that has begun must arrive whole, and in which the
/// replies that wait must be taken.
pub const FRAME_TIME: Duration = Duration::from_secs(30);
