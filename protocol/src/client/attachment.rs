//! A storage's connection to the daemon.

use super::connection::Connection;

/// A storage that is connected to the daemon for as long as this lives.
///
/// When it is no longer [alive](Self::is_alive), as after a restart of the
/// daemon, the storage is to be attached again.
#[derive(Debug)]
pub struct Attachment {
    connection: Connection,
}

impl Attachment {
    pub(super) const fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Does the daemon still know of it? Asks the kernel only, and never
    /// blocks.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.connection.is_alive()
    }
}
