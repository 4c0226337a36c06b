//! The decision on a request: what the policy is asked, and what it answers.
//!
//! A request becomes one question per [`Action`] that it contains (a commit
//! asks for itself and for each of its inline proposals), and is served only if
//! every answer permits it. What is not permitted is denied.
//!
//! First the rules that are built in are asked ([`Rules`]), then the company's policies
//! ([`Set`]), in the language Cedar, of which `schema.cedarschema` has the words.
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

mod action;
mod asked;
mod builtin;
pub mod cases;
mod check;
mod default;
mod facts;
pub mod ids;
mod lint;
mod policy;
mod problem;
mod question;
#[cfg(test)]
mod reference;
pub mod replay;
mod schema;
mod set;
mod statement;
#[cfg(test)]
mod tests;

pub use action::Action;
pub use builtin::{Rules, Settings};
pub use default::DEFAULT;
pub use facts::{
    CallerFacts, ContextFacts, GuardFacts, Identified, Moment, Rates, RequiredCapabilities,
    ResourceFacts, SenderKind,
};
pub use ids::NOT_PERMITTED;
pub use lint::Names;
pub use policy::{Decided, Policy};
pub use problem::Problem;
pub use question::{Decision, KeyFacts, Question};
pub use schema::SCHEMA;
pub use set::{Answer, Facts, Said, Set};

/// Facts that the schema has no place for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policies could not be asked")]
pub(crate) struct Unfit;
