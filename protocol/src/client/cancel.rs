//! Cancelling a call from another thread.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Cancels the calls that were given it, from any thread, for good.
#[derive(Clone, Debug)]
pub struct CancelToken {
    ends: Arc<(UnixStream, UnixStream)>,
}

impl CancelToken {
    /// A token that has cancelled nothing yet.
    ///
    /// # Errors
    /// The process has no file descriptors left.
    pub fn new() -> io::Result<Self> {
        let ends = UnixStream::pair()?;
        ends.0.set_nonblocking(true)?;
        Ok(Self {
            ends: Arc::new(ends),
        })
    }

    /// Wakes the calls that have this token; they return
    /// [`CallError::Cancelled`](super::CallError::Cancelled), as do later ones.
    pub fn cancel(&self) {
        // Fails only when many earlier bytes lie there: it is cancelled then.
        let _ = (&self.ends.0).write(&[1]);
    }

    /// Readable once it is cancelled, since nobody reads the byte.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.ends.1.as_fd()
    }
}
