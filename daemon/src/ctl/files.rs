//! The files that commands are given, and write.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use super::CtlError;
use crate::config::{Config, ConfigError};

/// The daemon's configuration, where nobody names another one.
pub(super) const CONFIG: &str = "/etc/mlskeyd/mlskeyd.toml";

/// Reads a file. Of one that is longer than the limit there is one byte more: who
/// judges the content says then that it is too long.
pub(super) fn read(path: &Path, limit: usize) -> Result<Vec<u8>, CtlError> {
    let file = File::open(path).map_err(|error| at(path, error))?;
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    let read = file.take(most.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| at(path, error))?;
    Ok(bytes)
}

/// Makes a file that must not be there.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// The same, and nobody else may read it.
#[cfg(feature = "yubikey")]
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// Makes the name of a file durable that was just made.
#[cfg(feature = "yubikey")]
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    crate::private_file::sync_directory(directory)
}

/// What went wrong with a file.
pub(super) fn at(path: &Path, why: impl ToString) -> CtlError {
    CtlError::File {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

/// The daemon's configuration: this one, or the usual one if it can be read.
pub(super) fn config(named: Option<&Path>) -> Result<Option<Config>, CtlError> {
    let path = named.unwrap_or(Path::new(CONFIG));
    match Config::load(path) {
        Ok(config) => Ok(Some(config)),
        // Whoever writes policies need not be who may read it.
        Err(ConfigError::Io { .. }) if named.is_none() => Ok(None),
        Err(ConfigError::Io { source, .. }) => Err(at(path, source)),
        Err(ConfigError::Invalid {
            line,
            column,
            message,
            ..
        }) => Err(at(path, format!("{line}:{column}: {message}"))),
    }
}
