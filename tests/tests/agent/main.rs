//! The agent of a login session: a real one, with a pinentry that follows a script, and
//! a YubiKey that waits for its PIN.

mod notices;
mod people;
mod scene;
mod users;
