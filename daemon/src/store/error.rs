//! Why the registry does not open, or does not do what it was asked.

use std::path::PathBuf;

use mlskeyd_protocol::v1::KeyId;

/// Why the registry did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is in use.
    #[error(
        "another mlskeyd (pid {pid}) uses the state directory {}; stop it first, or give this one a directory of its own",
        dir.display()
    )]
    InUse {
        /// The state directory.
        dir: PathBuf,
        /// What the holder of the lock wrote into it.
        pid: String,
    },
    /// A later version wrote the state.
    #[error(
        "the state in {} was written by a newer mlskeyd (schema {found}, this one knows {known}): upgrade, or put back the copy that the upgrade kept",
        dir.display()
    )]
    Newer {
        /// The state directory.
        dir: PathBuf,
        /// The schema of the state.
        found: u32,
        /// The newest schema that this version knows.
        known: u32,
    },
    /// Others may enter the directory.
    #[error("others than its owner may enter the state directory {}: chmod 0700 it", .0.display())]
    Permissions(PathBuf),
    /// A file cannot be read or written.
    #[error("cannot use {}: {source}; check the file system, then start again", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// SQLite cannot use the file.
    #[error("the registry in {} cannot be opened: {source}; if it is damaged, put a backup back", dir.display())]
    Database {
        /// The state directory.
        dir: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// What is in the registry contradicts itself.
    #[error("the registry in {} cannot be used: {source}", dir.display())]
    Contents {
        /// The state directory.
        dir: PathBuf,
        /// What is wrong.
        source: StoreError,
    },
}

/// Why the registry did not do what it was asked. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The registry takes no changes.
    #[error("the registry is read-only: {0}")]
    ReadOnly(String),
    /// No such thing, or not of this owner.
    #[error("no such {0} in the registry")]
    NotFound(&'static str),
    /// The key was destroyed, or is being destroyed.
    #[error("the key {0} was destroyed")]
    Destroyed(KeyId),
    /// The key is still needed, or its time has not come: it must not be
    /// destroyed as due.
    #[error("the key {0} is not due for destruction")]
    NotDue(KeyId),
    /// There is something else already under this name.
    #[error("{0} is there already, and differs; read it again")]
    Conflict(&'static str),
    /// Something else changed since this was decided on.
    #[error("{0} changed meanwhile; ask again")]
    Outrun(&'static str),
    /// The generation takes no keys any more, or still has some.
    #[error("the generation is not in the state that this needs; ask for the current one again")]
    WrongGeneration,
    /// A bound is reached.
    #[error("too many {0}")]
    Limit(&'static str),
    /// A row is not as the daemon wrote it. It is neither used nor deleted.
    #[error("the row {id} of table {table} was changed outside of mlskeyd; put a backup back")]
    Tampered {
        /// The table.
        table: &'static str,
        /// The row's id, in hexadecimal.
        id: String,
    },
    /// What stands beside a row's body was changed, so that it is found where it
    /// does not belong, or not where it does. It is put right.
    #[error(
        "the row {id} of table {table} was hidden or moved outside of mlskeyd; it was put right: see who can write the state directory"
    )]
    Misplaced {
        /// The table.
        table: &'static str,
        /// The row's id, in hexadecimal.
        id: String,
    },
    /// The disk is full or failed. The same call works when that is mended.
    #[error("the registry cannot write: {0}; free some space or check the disk, then try again")]
    Unavailable(String),
    /// SQLite refused; a defect of the daemon or a damaged file.
    #[error("the registry failed: {0}")]
    Database(String),
    /// The registry was closed.
    #[error("the registry is closed; the daemon is stopping")]
    Closed,
}

impl StoreError {
    /// Does it end the whole transaction, not only one operation?
    pub(super) const fn ends_transaction(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match error.sqlite_error_code() {
            Some(
                ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::OutOfMemory
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::ReadOnly,
            ) => Self::Unavailable(error.to_string()),
            _ => Self::Database(error.to_string()),
        }
    }
}
