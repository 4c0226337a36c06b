//! What becomes of a call: forwarded, refused, delayed or worse.

use std::sync::atomic::Ordering;
use std::sync::{PoisonError, RwLock};

use cryptoki_sys::{CK_RV, CK_SESSION_HANDLE, CKR_DEVICE_REMOVED, CKR_OK, CKR_TOKEN_NOT_PRESENT};

use crate::fault::{Fault, Function};
use crate::sessions::Sessions;
use crate::shared::Shared;

/// A call, before it is made.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    /// `None`: nothing is injected here, or it only asks for a length.
    pub(crate) function: Option<Function>,
    pub(crate) about: About,
}

/// What a call needs.
#[derive(Clone, Copy)]
pub(crate) enum About {
    Session,
    Token,
    /// The module alone, whether a token is in or out.
    Module,
}

/// The state of the module in this process.
pub(crate) struct Forwarder {
    pub(crate) shared: &'static Shared,
    pub(crate) sessions: Sessions,
    /// Held for reading over each forwarded call, so that no session is closed or
    /// logged out under it.
    seen: RwLock<Seen>,
}

/// For which the sessions are.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    presence: u64,
    logouts: u64,
}

impl Seen {
    fn now(shared: &Shared) -> Self {
        Self {
            presence: shared.presence(),
            logouts: shared.logouts(),
        }
    }
}

/// What ends sessions, or their login.
pub(crate) struct Ending<C, L> {
    /// Closes all sessions of the real module.
    pub(crate) close_all: C,
    /// Logs out the tokens of these sessions.
    pub(crate) log_out: L,
}

impl Forwarder {
    pub(crate) fn new(shared: &'static Shared) -> Self {
        Self {
            shared,
            sessions: Sessions::default(),
            seen: RwLock::new(Seen::now(shared)),
        }
    }

    /// Makes the call by `real`, unless something is wrong. `crash` ends the
    /// process.
    pub(crate) fn call(
        &self,
        call: Call,
        ending: Ending<impl FnOnce(), impl FnOnce(&[CK_SESSION_HANDLE])>,
        crash: impl FnOnce(),
        real: impl FnOnce() -> CK_RV,
    ) -> CK_RV {
        if let Some(function) = call.function {
            self.shared.count(function);
        }
        let out = self.look(ending);
        match call.about {
            About::Session if out => return CKR_DEVICE_REMOVED,
            About::Token if out => return CKR_TOKEN_NOT_PRESENT,
            _ => {}
        }
        let fault = call.function.and_then(|it| self.shared.take_fault(it));
        match fault {
            Some(Fault::Error(error)) => return error,
            Some(Fault::Removed(error)) => {
                self.shared.set_out(true);
                return error;
            }
            Some(Fault::Hang) => loop {
                std::thread::park();
            },
            Some(Fault::Crash) => crash(),
            Some(Fault::ErrorAfter(_)) | None => {}
        }
        if matches!(call.function, Some(Function::Sign | Function::DeriveKey)) {
            std::thread::sleep(self.shared.delay());
        }
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let result = real();
        drop(seen);
        match fault {
            Some(Fault::ErrorAfter(error)) if result == CKR_OK => error,
            _ => result,
        }
    }

    /// Is the token out? If it went or came since the last call, its sessions
    /// are no more; if it was logged out, they are.
    fn look(&self, ending: Ending<impl FnOnce(), impl FnOnce(&[CK_SESSION_HANDLE])>) -> bool {
        let now = Seen::now(self.shared);
        let seen = *self.seen.read().unwrap_or_else(PoisonError::into_inner);
        if seen == now {
            return Shared::is_out(now.presence);
        }
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let now = Seen::now(self.shared);
        let out = Shared::is_out(now.presence);
        if seen.presence != now.presence {
            if !out {
                (ending.close_all)();
            }
            self.sessions.clear(self.shared);
        } else if seen.logouts != now.logouts && !out {
            (ending.log_out)(&self.sessions.one_of_each_slot());
        }
        *seen = now;
        out
    }

    pub(crate) fn is_out(&self) -> bool {
        Shared::is_out(self.shared.presence())
    }

    /// So many objects were made, or destroyed.
    pub(crate) fn made(&self, objects: i64) {
        self.shared.objects.fetch_add(objects, Ordering::SeqCst);
    }
}
