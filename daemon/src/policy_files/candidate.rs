//! What may be the company's policies one day. Nobody has to have signed it: it decides
//! nothing.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mlskeyd_policies::Set;

use super::{PolicyDirs, PolicyError, PolicyFiles};

/// A directory, together with the vendor's.
pub(super) struct Candidate {
    dirs: PolicyDirs,
    /// What was read the last time, good or bad.
    read: Mutex<Option<PolicyFiles>>,
}

impl Candidate {
    pub(super) const fn new(vendor: PathBuf, local: PathBuf) -> Self {
        Self {
            dirs: PolicyDirs {
                vendor,
                local,
                candidate: None,
            },
            read: Mutex::new(None),
        }
    }

    /// The set that it is now.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn load(&self) -> Result<Set, PolicyError> {
        let files = PolicyFiles::read(&self.dirs)?;
        self.read().replace(files.clone());
        files.set()
    }

    /// Is it another one than was read the last time?
    pub(super) fn has_changed(&self) -> bool {
        // What cannot be read is told when it is loaded.
        let now = PolicyFiles::read(&self.dirs).ok();
        now.is_none() || *self.read() != now
    }

    fn read(&self) -> MutexGuard<'_, Option<PolicyFiles>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
