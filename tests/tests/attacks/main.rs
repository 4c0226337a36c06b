//! Attacks from inside of the app: on the real daemon, over its socket, with
//! MLS structures made by hand.

#![allow(clippy::panic, clippy::unwrap_used)]

mod bad_input;
mod beside_a_chat;
mod bounds;
mod callers;
mod certificates;
mod examples;
mod facts;
mod house;
mod leave;
mod open;
mod p256_only;
mod policies;
mod proposals;
mod races;
mod rates;
mod restored;
mod scene;
mod sign;
mod signed_policies;
mod suite;

use mlskeyd_tests::forge;
