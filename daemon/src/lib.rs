//! The daemon `mlskeyd`: keeps the private keys of MLS apps in devices.
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

pub mod failpoint;
pub mod store;
