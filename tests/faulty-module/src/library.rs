//! Where the shared library is.

use std::io;
use std::path::{Path, PathBuf};

/// The shared library that cargo built with this test: beside its program, or
/// in `deps` below that.
///
/// # Errors
/// If there is none.
pub fn library() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let directory = program.parent().unwrap_or(Path::new("."));
    let beside = [directory.to_owned(), directory.join("deps")];
    let found = beside
        .iter()
        .map(|directory| directory.join("libmlskeyd_faulty_module.so"))
        .find(|path| path.exists());
    found.ok_or_else(|| {
        let reason = format!("no libmlskeyd_faulty_module.so in {beside:?}");
        io::Error::new(io::ErrorKind::NotFound, reason)
    })
}
