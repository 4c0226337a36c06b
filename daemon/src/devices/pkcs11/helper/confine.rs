//! What the helper gives up before it loads a vendor's code.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use crate::daemon;

/// Most open files: a connection to the daemon for each session, and what the
/// module opens.
const MAX_FILES: u64 = 512;

/// Takes from this process what a module does not need: capabilities, ways to
/// get any, open files without end.
///
/// # Errors
/// What the system says.
pub(super) fn confine() -> io::Result<()> {
    set_no_new_privs(true)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    let files = getrlimit(Resource::Nofile)
        .maximum
        .map_or(MAX_FILES, |most| most.min(MAX_FILES));
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(files),
            maximum: Some(files),
        },
    )?;
    // The PIN is in it, and what the module makes of that.
    if let Err(error) = daemon::lock_memory() {
        // Not all sandboxes allow it.
        eprintln!("mlskeyd-pkcs11: memory could not be locked: {error}");
    }
    // Last: what comes before may have needed one.
    Ok(set_capabilities(None, none)?)
}
