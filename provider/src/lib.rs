//! Placeholder.
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

mod memory;
pub mod storage;
