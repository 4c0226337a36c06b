//! Being told of cards that come and go.

use std::convert::Infallible;
use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use pcsc::{Context, ReaderState, Scope, State};

use super::error::CardError;
use crate::devices::Bell;

/// How long the end may take, in all: then the thread is left behind.
const ENDING: (Duration, u32) = (Duration::from_millis(20), 100);

/// A thread that waits for pcscd's events, and rings.
pub(super) struct Watch {
    context: Context,
    state: Arc<Shared>,
    /// Closed when the thread has ended.
    ended: mpsc::Receiver<Infallible>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    has_ended: AtomicBool,
}

impl Watch {
    /// Rings `bell` from now on when a card comes or goes, or pcscd does.
    pub(super) fn begin(bell: Bell) -> Result<Self, CardError> {
        let context = Context::establish(Scope::System).map_err(CardError::NoService)?;
        let state = Arc::new(Shared::default());
        let (runs, ended) = mpsc::channel();
        let (its_context, its_state) = (context.clone(), Arc::clone(&state));
        let watch = move || {
            watch(&its_context, &its_state, &bell);
            its_state.has_ended.store(true, Ordering::Release);
            if !its_state.is_over.load(Ordering::Acquire) {
                bell();
            }
            drop(runs);
        };
        let thread = std::thread::Builder::new().name("pcsc-watch".to_owned());
        thread.spawn(watch).map_err(|source| {
            CardError::Other(crate::devices::DeviceError::Io {
                what: "starting a thread",
                source,
            })
        })?;
        Ok(Self {
            context,
            state,
            ended,
        })
    }

    /// Does it still?
    pub(super) fn goes_on(&self) -> bool {
        !self.state.has_ended.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Release);
        let (wait, times) = ENDING;
        // It may be just about to wait: then nobody hears the first cancel.
        for _ in 0..times {
            let _ = self.context.cancel();
            if self.ended.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }
}

/// Until pcscd ends, or the watch.
fn watch(context: &Context, shared: &Shared, bell: &Bell) {
    // What was there, each with what was known of it then.
    let mut known: Vec<(CString, State, u32)> = Vec::new();
    let mut arrivals = ReaderState::new(pcsc::PNP_NOTIFICATION(), State::UNAWARE);
    while !shared.is_over.load(Ordering::Acquire) {
        let readers = match context.list_readers_owned() {
            Ok(readers) => readers,
            Err(pcsc::Error::NoReadersAvailable) => Vec::new(),
            Err(_) => return,
        };
        let states = readers
            .into_iter()
            .map(|reader| ReaderState::new(reader, State::UNAWARE));
        let mut states: Vec<_> = std::iter::once(arrivals).chain(states).collect();
        // What is there now, also of what happened since the last time.
        match context.get_status_change(Duration::ZERO, &mut states) {
            Ok(()) | Err(pcsc::Error::Timeout) => {}
            Err(_) => return,
        }
        let seen = summary(&states);
        if seen != known {
            known = seen;
            bell();
        }
        states.iter_mut().for_each(ReaderState::sync_current_state);
        match context.get_status_change(None, &mut states) {
            Ok(()) | Err(pcsc::Error::Timeout) => {}
            Err(_) => return,
        }
        states.truncate(1);
        let Some(first) = states.pop() else { return };
        arrivals = first;
        arrivals.sync_current_state();
    }
}

/// What matters of readers: that there is a card in one, and how often that changed.
/// That somebody uses it does not.
fn summary(states: &[ReaderState]) -> Vec<(CString, State, u32)> {
    let readers = states.iter().skip(1);
    let summary = readers.map(|state| {
        let there = state.event_state() & (State::PRESENT | State::EMPTY | State::UNAVAILABLE);
        (state.name().to_owned(), there, state.event_count())
    });
    summary.collect()
}
