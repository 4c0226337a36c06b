//! What waits for the person, as the daemon says it.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mlskeyd_protocol::client::{AgentClient, Call, CallError};
use mlskeyd_protocol::v1::Prompt;

use super::notices::Notices;
use super::pinentry::Ender;

/// The longest that one look waits for something to happen.
const LOOK: Duration = Duration::from_secs(60);

/// The pauses while the daemon is away, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Looks at what waits, on a thread of its own.
pub(super) struct Watch {
    state: Mutex<State>,
    changed: Condvar,
    notices: Notices,
}

#[derive(Default)]
struct State {
    prompts: Vec<Prompt>,
    /// Those that the person has seen already.
    done: HashSet<u64>,
    /// The question that the person is asked, and how it is taken back.
    asked: Option<(u64, Ender)>,
}

/// A question that the person is asked, until this is dropped.
pub(super) struct Asking<'a>(&'a Watch);

impl Watch {
    /// Begins to look.
    pub(super) fn begin(client: AgentClient, notices: Notices) -> std::io::Result<Arc<Self>> {
        let watch = Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            notices,
        });
        let looks = Arc::clone(&watch);
        let thread = std::thread::Builder::new().name("prompts".to_owned());
        thread.spawn(move || looks.look(&client))?;
        Ok(watch)
    }

    fn look(&self, client: &AgentClient) {
        let call = Call {
            deadline: LOOK,
            ..Call::default()
        };
        let (mut known, mut pause) = (0, PAUSES.0);
        loop {
            match client.prompts(known, &call) {
                Ok(now) => {
                    (known, pause) = (now.known, PAUSES.0);
                    self.show(now.prompts);
                }
                Err(error) => {
                    // Another daemon counts anew.
                    known = 0;
                    self.show(Vec::new());
                    if matches!(
                        error,
                        CallError::Refused(_) | CallError::Incompatible { .. }
                    ) {
                        super::say(&error.to_string());
                    }
                    std::thread::sleep(pause);
                    pause = pause.saturating_mul(2).min(PAUSES.1);
                }
            }
        }
    }

    fn show(&self, prompts: Vec<Prompt>) {
        let mut state = self.state();
        state.prompts = prompts;
        let waits = |id: u64, prompts: &[Prompt]| prompts.iter().any(|prompt| prompt.id == id);
        let State {
            prompts,
            done,
            asked,
        } = &mut *state;
        for id in done.iter().filter(|id| !waits(**id, prompts)) {
            self.notices.clear(*id);
        }
        done.retain(|id| waits(*id, prompts));
        if let Some((_, ender)) = asked.take_if(|(id, _)| !waits(*id, prompts)) {
            ender.end();
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(super) const fn notices(&self) -> &Notices {
        &self.notices
    }

    /// Waits for the next prompt that the person has not seen.
    pub(super) fn next(&self) -> Prompt {
        let mut state = self.state();
        loop {
            let State { prompts, done, .. } = &*state;
            let new = prompts.iter().find(|prompt| !done.contains(&prompt.id));
            if let Some(prompt) = new {
                return prompt.clone();
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Does it still wait?
    pub(super) fn waits(&self, id: u64) -> bool {
        self.state().prompts.iter().any(|prompt| prompt.id == id)
    }

    /// The person has seen it.
    pub(super) fn done_with(&self, id: u64) {
        self.state().done.insert(id);
    }

    /// The person is asked now; `None`: it does not wait any more.
    pub(super) fn asking(&self, id: u64, ender: Ender) -> Option<Asking<'_>> {
        let mut state = self.state();
        if !state.prompts.iter().any(|prompt| prompt.id == id) {
            return None;
        }
        state.asked = Some((id, ender));
        Some(Asking(self))
    }

    /// What it guards is whole even if some thread died.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.state().asked = None;
    }
}
