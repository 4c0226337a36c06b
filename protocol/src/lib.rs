//! What crosses the wire between an MLS app and `mlskeyd`.
//!
//! This crate knows no OpenMLS. It holds the frozen wire versions ([`v1`]),
//! the handshake that chooses one ([`handshake`]), the framing ([`frame`]),
//! the bounds that both sides keep ([`limits`]), the bytes that stand where an
//! app expects a private key ([`handle`]), and the blocking client
//! ([`client`]).
//!
//! On a connection, each direction is a sequence of length-limited frames. The
//! first frames each way are the handshake; what follows are tarpc messages of
//! the agreed version and service, encoded with postcard.
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

pub mod app_content;
#[cfg(target_os = "linux")]
pub mod client;
#[doc(hidden)]
pub mod failpoint;
pub mod frame;
pub mod handle;
pub mod handshake;
pub mod limits;
pub mod secret;
#[cfg(feature = "server")]
pub mod server;
pub mod v1;
