//! The decision on a request: what the policy is asked, and what it answers.
//!
//! A request becomes one [`Question`] per [`Action`] that it contains (a commit
//! asks for itself and for each of its inline proposals), and is served only if
//! every answer is [`Decision::Permit`]. What is not permitted is denied.
//!
//! The rules are built in: see [`Policy::builtin`].
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

mod action;
mod builtin;
mod question;

pub use action::Action;
pub use builtin::{Policy, Settings};
pub use question::{Decision, KeyFacts, Question};
