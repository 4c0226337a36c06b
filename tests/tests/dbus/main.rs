//! The door on a message bus: a real dbus-daemon, and real processes on it.

#![allow(clippy::panic, clippy::unwrap_used)]

mod chat;
mod corpus;
mod crowd;
mod hostile;
mod monitor;
mod objects;
mod people;
mod python;
mod scene;
