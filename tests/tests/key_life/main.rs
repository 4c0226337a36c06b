//! The life of a key, from end to end: real OpenMLS over SQLite, the provider
//! and the daemon. Each rule has its test by name. Time passes at the daemon
//! when a test says so, and never within an operation.

mod bench;
mod device;
mod groups;
mod storages;
mod transactions;
mod welcomes;
