//! The sessions that are open in this process, and their gauges.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cryptoki_sys::{CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CKR_OK, CKR_SESSION_COUNT};

use crate::shared::Shared;

/// Open sessions.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<CK_SESSION_HANDLE, Session>>);

struct Session {
    slot: CK_SLOT_ID,
    /// Is a search unfinished?
    finds: bool,
}

impl Sessions {
    /// Opens a session by `open`, if there may be one more.
    pub(crate) fn open(
        &self,
        shared: &Shared,
        slot: CK_SLOT_ID,
        open: impl FnOnce() -> Result<CK_SESSION_HANDLE, CK_RV>,
    ) -> CK_RV {
        let mut all = self.all();
        let max = shared.max_sessions.load(Ordering::SeqCst);
        if max != 0 && count(all.len()) >= max {
            return CKR_SESSION_COUNT;
        }
        match open() {
            Ok(handle) => {
                all.insert(handle, Session { slot, finds: false });
                show(&all, shared);
                CKR_OK
            }
            Err(error) => error,
        }
    }

    pub(crate) fn close(&self, shared: &Shared, session: CK_SESSION_HANDLE) {
        let mut all = self.all();
        all.remove(&session);
        show(&all, shared);
    }

    pub(crate) fn close_all(&self, shared: &Shared, slot: CK_SLOT_ID) {
        let mut all = self.all();
        all.retain(|_, session| session.slot != slot);
        show(&all, shared);
    }

    pub(crate) fn clear(&self, shared: &Shared) {
        let mut all = self.all();
        all.clear();
        show(&all, shared);
    }

    /// One session with each token.
    pub(crate) fn one_of_each_slot(&self) -> Vec<CK_SESSION_HANDLE> {
        let all = self.all();
        let by_slot: HashMap<_, _> = all
            .iter()
            .map(|(it, session)| (session.slot, *it))
            .collect();
        by_slot.into_values().collect()
    }

    /// A search was begun, or finished.
    pub(crate) fn finds(&self, shared: &Shared, session: CK_SESSION_HANDLE, finds: bool) {
        let mut all = self.all();
        if let Some(session) = all.get_mut(&session) {
            session.finds = finds;
        }
        show(&all, shared);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<CK_SESSION_HANDLE, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn show(all: &HashMap<CK_SESSION_HANDLE, Session>, shared: &Shared) {
    let open = count(all.len());
    let finds = all.values().filter(|session| session.finds).count();
    shared.sessions_open.store(open, Ordering::SeqCst);
    shared.sessions_peak.fetch_max(open, Ordering::SeqCst);
    shared.finds.store(count(finds), Ordering::SeqCst);
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
