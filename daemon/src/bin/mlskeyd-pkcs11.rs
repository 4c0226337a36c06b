//! The helper `mlskeyd-pkcs11`: runs one PKCS#11 module for the daemon, which
//! starts it. It is of no use by itself.

use std::alloc::System;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mlskeyd::daemon;
use mlskeyd::devices::pkcs11::helper;

/// Wipes all memory that is freed: on its way through libraries a PIN or a shared
/// secret is copied to places that nobody here can reach.
#[global_allocator]
static WIPING: helper::WipingAlloc<System> = helper::WipingAlloc(System);

/// Runs one PKCS#11 module for mlskeyd, which starts this program and speaks to
/// it over standard input.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The module: a shared library.
    module: PathBuf,
    /// It has nothing open any more that is not its own.
    #[arg(long, hide = true)]
    alone: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !arguments.alone {
        let error = helper::shed("--alone".as_ref(), &arguments.module);
        eprintln!("mlskeyd-pkcs11: it could not start alone: {error}");
        return ExitCode::FAILURE;
    }
    if let Err(error) = daemon::harden() {
        eprintln!("mlskeyd-pkcs11: core dumps could not be turned off: {error}");
    }
    match helper::serve(&arguments.module) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mlskeyd-pkcs11: {error}");
            ExitCode::FAILURE
        }
    }
}
