//! Whole-system tests of mlskeyd, and what they need: rigs that start real
//! processes in private directories, and a scan of a process's memory and files
//! for private keys.

pub mod books;
pub mod captures;
pub mod crypto;
pub mod failpoints;
pub mod forge;
pub mod member;
pub mod mls_run;
pub mod numbers;
pub mod planted_keys;
pub mod registry_keys;
pub mod rig;
pub mod scan;
pub mod stock;
pub mod suite;
pub mod vitals;
