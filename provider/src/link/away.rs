//! Whether the daemon was away a moment ago.
//!
//! A merge makes several bookkeeping calls. If the daemon hangs, each would wait
//! out its deadline, and nothing is lost if they are made later.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::failure::{Operation, ProviderError};

/// How long a daemon that did not answer is not asked again: longer than an
/// operation of OpenMLS takes, and too short for a person to notice.
const BACK_OFF: Duration = Duration::from_secs(1);

/// When the daemon did not answer last, if it has not answered since.
#[derive(Debug, Default)]
pub(super) struct Away(Mutex<Option<Instant>>);

impl Away {
    /// How a request of any kind ended.
    pub(super) fn note(&self, operation: Operation, error: Option<&ProviderError>) {
        let since = match error {
            Some(ProviderError::Unreachable { .. }) => Some(Instant::now()),
            // Others may wait for a person, or have a deadline of the app's.
            Some(ProviderError::Timeout) if operation == Operation::Claim => Some(Instant::now()),
            // It answered.
            None | Some(ProviderError::Failure(_)) => None,
            Some(_) => return,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Is it too soon to ask again for what can wait?
    pub(super) fn is_recent(&self) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < BACK_OFF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_did_not_answer_is_away_until_it_answers() {
        let away = Away::default();
        away.note(Operation::Sign, Some(&ProviderError::Timeout));
        assert!(!away.is_recent());
        away.note(Operation::Claim, Some(&ProviderError::Timeout));
        away.note(Operation::Claim, Some(&ProviderError::Cancelled));
        let passed = Instant::now().checked_sub(BACK_OFF).unwrap();
        let noted = away.0.lock().unwrap().unwrap();
        // A slow machine may have spent the second.
        assert!(away.is_recent() || noted.elapsed() >= BACK_OFF);
        *away.0.lock().unwrap() = Some(passed);
        assert!(!away.is_recent());
        away.note(Operation::Claim, Some(&ProviderError::Timeout));
        away.note(Operation::Sign, None);
        assert!(!away.is_recent());
    }
}
