//! What the daemon has open is not the module's.
//!
//! Libraries of the daemon's open things that programs which it starts inherit: TSS does
//! so with its connections to a TPM. A helper that is started at that moment would have
//! one, and with it the TPM in a vendor's hands, and the TPM would wait for it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Starts this very program again, in its place, with nothing but the standard
/// descriptors: it is told so by `mark`, before the module.
///
/// # Errors
/// Why it did not start; else it does not come back.
pub fn shed(mark: &OsStr, module: &Path) -> io::Error {
    close_fds::set_fds_cloexec(3, &[]);
    match std::env::current_exe() {
        Ok(program) => Command::new(program).arg(mark).arg(module).exec(),
        Err(error) => error,
    }
}
