//! Keeps the private keys of an MLS app with mlskeyd: an `OpenMlsProvider` and
//! a `Signer` for OpenMLS.
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

mod availability;
mod failure;
mod fresh;
mod identity;
mod link;
mod rand;
mod status;
mod suites;

pub use availability::Availability;
pub use failure::{CustodyFailure, Operation, ProviderError};
pub use identity::{CustodyIdentity, CustodySigner};
pub use mlskeyd_protocol::v1::{
    DeviceState, Failure, FailureCode, IdentityInfo, Interaction, KeyId, KeyInfo, KeyState,
    Priority, Progress, Role, Tier,
};
pub use rand::CustodyRand;
pub use status::{CustodyStatus, KeyCustody, LeafCustody, NotInCustody};
pub use suites::CUSTODY_CIPHERSUITES;
