//! The tests' half: what goes wrong, and what was called.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fault::{Fault, Function};
use crate::raw;
use crate::shared::Shared;

/// Tells a module what to do, and what was done to it. All of it is in a file,
/// and outlives the processes that load the module.
#[derive(Clone)]
pub struct Control {
    shared: &'static Shared,
    path: PathBuf,
}

impl Control {
    /// Makes the file; the module is well.
    ///
    /// # Errors
    /// If there is such a file already, and what the system says.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(path)?;
        let size = u64::try_from(size_of::<Shared>()).map_err(io::Error::other)?;
        file.set_len(size)?;
        Self::of(&file, path)
    }

    /// A file that [`create`](Self::create) made.
    ///
    /// # Errors
    /// If it is none, and what the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Self::of(&file, path)
    }

    fn of(file: &File, path: &Path) -> io::Result<Self> {
        Ok(Self {
            shared: raw::map(file)?,
            path: path.to_owned(),
        })
    }

    pub(crate) const fn shared(&self) -> &'static Shared {
        self.shared
    }

    /// The file, for `FAULTY_CONTROL`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next call but `after` of this function fails, and so do those after
    /// it: `times` in all. It replaces what the function was armed with.
    pub fn arm(&self, function: Function, fault: Fault, after: u32, times: u32) {
        self.shared.arm(function, fault, after, times);
    }

    /// The function does not fail any more.
    pub fn disarm(&self, function: Function) {
        self.shared.disarm(function);
    }

    /// Takes the token out, and all of its sessions with it.
    pub fn take_out(&self) {
        self.shared.set_out(true);
    }

    /// Puts the token back. It is logged out, and sessions from before are
    /// invalid.
    pub fn put_back(&self) {
        self.shared.set_out(false);
    }

    /// Is the token out?
    #[must_use]
    pub fn is_out(&self) -> bool {
        Shared::is_out(self.shared.presence())
    }

    /// Logs the token out, as another program can on some: all sessions with it are
    /// public from the next call on, and its private objects hidden.
    pub fn log_out(&self) {
        self.shared.log_out();
    }

    /// The token says that one more wrong PIN would lock it.
    pub fn set_pin_final_try(&self, final_try: bool) {
        set(&self.shared.pin_final_try, final_try);
    }

    /// The token says that its PIN is locked.
    pub fn set_pin_locked(&self, locked: bool) {
        set(&self.shared.pin_locked, locked);
    }

    /// How often the function was called, by all processes so far; a call that
    /// only asks for a length is none.
    #[must_use]
    pub fn calls(&self, function: Function) -> u64 {
        self.shared.calls(function)
    }

    /// How many faults were injected so far.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.shared.hits()
    }

    /// How many of them in this function.
    #[must_use]
    pub fn hits_in(&self, function: Function) -> u64 {
        self.shared.hits_in(function)
    }

    /// Sessions that are open, of the process that loaded the module last.
    #[must_use]
    pub fn sessions_open(&self) -> u64 {
        self.shared.sessions_open.load(Ordering::SeqCst)
    }

    /// The most sessions that were ever open at once.
    #[must_use]
    pub fn sessions_peak(&self) -> u64 {
        self.shared.sessions_peak.load(Ordering::SeqCst)
    }

    /// Searches that were begun and not finished, in sessions that are open.
    #[must_use]
    pub fn finds_unfinished(&self) -> u64 {
        self.shared.finds.load(Ordering::SeqCst)
    }

    /// Objects made, less those destroyed by `C_DestroyObject`, by all processes
    /// so far. Session objects that end with their session still count.
    #[must_use]
    pub fn objects(&self) -> i64 {
        self.shared.objects.load(Ordering::SeqCst)
    }

    /// Beyond so many open sessions `C_OpenSession` gives `CKR_SESSION_COUNT`;
    /// 0 is no limit.
    pub fn set_max_sessions(&self, sessions: u32) {
        let max = &self.shared.max_sessions;
        max.store(sessions.into(), Ordering::SeqCst);
    }

    /// The token makes no keys of Curve25519.
    pub fn set_without_curve25519(&self, without: bool) {
        set(&self.shared.without_curve25519, without);
    }

    /// The token knows no `CKA_UNWRAP_TEMPLATE`.
    pub fn set_without_unwrap_template(&self, without: bool) {
        set(&self.shared.without_unwrap_template, without);
    }

    /// The token makes no AES keys.
    pub fn set_without_aes(&self, without: bool) {
        set(&self.shared.without_aes, without);
    }

    /// Each `C_Sign` and `C_DeriveKey` takes so much longer, as with an HSM in
    /// the network.
    pub fn set_delay(&self, delay: Duration) {
        let microseconds = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        let slot = &self.shared.delay_microseconds;
        slot.store(microseconds, Ordering::SeqCst);
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("path", &self.path)
            .field("hits", &self.hits())
            .field("is_out", &self.is_out())
            .finish_non_exhaustive()
    }
}

fn set(switch: &AtomicU64, on: bool) {
    switch.store(on.into(), Ordering::SeqCst);
}
