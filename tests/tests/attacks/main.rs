//! Attacks from inside of the app: on the real daemon, over its socket, with
//! MLS structures made by hand.

#![allow(clippy::panic, clippy::unwrap_used)]

mod bad_input;
mod bounds;
mod callers;
mod house;
mod leave;
mod open;
mod p256_only;
mod policies;
mod races;
mod scene;
mod sign;
mod signed_policies;
mod suite;

use mlskeyd_tests::forge;
