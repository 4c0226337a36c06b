//! A small chat over MLS whose private keys are in custody.
//!
//! Every participant is a process of its own with its own SQLite database; a
//! hub passes messages on. Commands are read line by line from the standard
//! input, and each is answered by one line `ok ...` or `error ...`:
//!
//! ```text
//! chat --serve-hub /tmp/hub.sock
//! chat --name alice --dir /tmp/alice --hub /tmp/hub.sock
//! ```
//!
//! What a messenger with its keys in software would have to change to keep
//! them in custody is in `keys.rs`: the provider and the signer.

#[cfg(not(feature = "virtual-clients-draft"))]
mod commands;
#[cfg(not(feature = "virtual-clients-draft"))]
mod hub;
#[cfg(not(feature = "virtual-clients-draft"))]
mod keys;
#[cfg(not(feature = "virtual-clients-draft"))]
mod participant;
#[cfg(not(feature = "virtual-clients-draft"))]
mod store;

/// OpenMLS's interface for messages is another one with virtual clients.
#[cfg(feature = "virtual-clients-draft")]
fn main() {
    println!("this example is for OpenMLS without virtual clients");
}

#[cfg(not(feature = "virtual-clients-draft"))]
fn main() -> std::process::ExitCode {
    match commands::run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chat: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
