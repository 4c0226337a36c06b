//! Which process, and which app, is at the other end of a connection: tried by real
//! processes that pose as others.

#![allow(clippy::panic, clippy::unwrap_used)]

mod apps;
mod handshake;
mod namespaces;
mod scene;
