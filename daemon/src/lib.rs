//! The daemon `mlskeyd`: it keeps the private keys of MLS apps inside devices,
//! and decides what they sign.
//!
//! One room per module; the way of one request goes through them in this order:
//! `ipc` (doors), [`caller`] (who asks), [`mls`] (what is to be signed or
//! opened), [`custody`] (the one path, key life cycle, guard), [`devices`] and
//! [`hpke`] (where keys work), [`store`] (the registry), [`audit`] (what goes on
//! record).
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

pub mod audit;
pub mod caller;
pub mod config;
pub mod devices;
pub mod failpoint;
pub mod hpke;
pub mod mls;
mod private_file;
pub mod store_key;
