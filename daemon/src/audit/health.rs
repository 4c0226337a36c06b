//! What others may see of the writer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::AuditError;

/// The state of the writer, which it tells itself.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Number of the last record in the log.
    sequence: u64,
    /// The last failure, until a write succeeds.
    failure: Option<AuditError>,
    /// Since when the writer has been at work; `None`: it waits for some.
    busy_since: Option<Instant>,
}

impl Health {
    pub(super) fn written(&self, sequence: u64) {
        self.state().sequence = sequence;
    }

    pub(super) fn failed(&self, failure: AuditError) {
        self.state().failure = Some(failure);
    }

    pub(super) fn recovered(&self) {
        self.state().failure = None;
    }

    pub(super) fn busy(&self) {
        self.state().busy_since = Some(Instant::now());
    }

    pub(super) fn idle(&self) {
        self.state().busy_since = None;
    }

    pub(super) fn sequence(&self) -> u64 {
        self.state().sequence
    }

    /// Could a record be written now? Not if the last one could not, nor if the
    /// writer is at work on one for longer than this.
    pub(super) fn check(&self, longest: Duration) -> Result<(), AuditError> {
        let state = self.state();
        match (&state.failure, state.busy_since) {
            (Some(failure), _) => Err(failure.clone()),
            (None, Some(since)) if since.elapsed() > longest => Err(AuditError::Timeout),
            _ => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single assignment: nothing can be half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
