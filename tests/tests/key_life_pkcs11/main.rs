//! The life of a key, as `key_life` has it, on a token: the same tests, and at
//! the end of each the token's objects are counted.

#[path = "../key_life/bench.rs"]
mod bench;
mod device;
#[path = "../key_life/groups.rs"]
mod groups;
#[path = "../key_life/storages.rs"]
mod storages;
#[path = "../key_life/transactions.rs"]
mod transactions;
#[path = "../key_life/welcomes.rs"]
mod welcomes;
