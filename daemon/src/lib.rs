//! The daemon `mlskeyd`: it keeps the private keys of MLS apps inside devices, and decides what they sign.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

pub mod devices;
pub mod failpoint;
pub mod hpke;
pub mod mls;
mod private_file;
pub mod store_key;
