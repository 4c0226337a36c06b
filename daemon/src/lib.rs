//! The daemon `mlskeyd`: it keeps the private keys of MLS apps inside devices, and decides what they sign.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

pub mod ctl;
