//! The daemon `mlskeyd`: it keeps the private keys of MLS apps inside devices,
//! and decides what they sign.
//!
//! One room per module. The way of one request goes through them: [`ipc`] (the
//! doors), [`caller`] (who asks), [`mls`] (what is to be signed or opened),
//! [`custody`] (the one path, the life of keys, the guard), [`devices`] and
//! [`hpke`] (where keys work), [`store`] (the registry), [`audit`] (what goes
//! on record). Beside them, [`attest`] is what others believe of it, and [`policy_files`]
//! where the company's policies come from, [`signers`] who may sign them.
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

pub mod arguments;
pub mod attest;
pub mod audit;
pub mod caller;
mod certificates;
pub mod config;
pub mod ctl;
pub mod custody;
pub mod daemon;
pub mod devices;
mod freeze_target;
pub mod hpke;
pub mod ipc;
mod mac_file;
mod machine_bus;
pub mod mls;
pub mod policy_files;
mod policy_watch;
pub mod polkit;
mod private_file;
pub mod signers;
pub mod store;
pub mod store_key;

use mlskeyd_protocol::failpoint;
