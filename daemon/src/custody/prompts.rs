//! What waits for a person: shown to the agents of the user whose requests wait.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlskeyd_protocol::v1::{Prompt, PromptKind, Prompts};
use tokio::sync::watch;

use crate::devices::DeviceInfo;

/// Most prompts of one user. Who has more waits unseen.
const MAX_OF_ONE_USER: usize = 16;

/// Most refusals that one user is shown at a time, so that they crowd out nothing that
/// waits.
const MAX_REFUSALS: usize = 4;

/// Everything that waits for a person now. Cheap to clone.
#[derive(Clone)]
pub(super) struct Board(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
}

struct State {
    last_id: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// Whoever was asked and did not want to, and what the device was then: it is asked
    /// again when that is something else.
    declined: HashMap<(u32, String), Arc<DeviceInfo>>,
}

struct Waiting {
    uid: u32,
    prompt: Prompt,
    /// How many requests wait for this.
    requests: usize,
    /// Told when the person does not want to.
    declined: watch::Sender<bool>,
}

/// A request that waits. Dropped, it does not any more.
pub(super) struct Wait {
    board: Board,
    /// `None`: nobody is shown it.
    id: Option<u64>,
    declined: Option<watch::Receiver<bool>>,
}

impl Board {
    pub(super) fn new() -> Self {
        // An agent must not take this daemon's prompts for those of the one before, whose
        // counts it may still know. Should there be no randomness, it asks late.
        let start = (getrandom::u64().unwrap_or_default() >> 1).max(1);
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                last_id: start,
                waiting: BTreeMap::new(),
                declined: HashMap::new(),
            }),
            changes: watch::Sender::new(start),
        }))
    }

    /// Shows the agents of a user that a request waits for a device. Requests that wait
    /// for the same share one prompt, that of the first. `None`: the person was asked
    /// already, and does not want to.
    pub(super) fn wait(
        &self,
        uid: u32,
        kind: PromptKind,
        device: &Arc<DeviceInfo>,
        text: impl FnOnce(Option<&str>) -> String,
    ) -> Option<Wait> {
        {
            let mut state = self.state();
            let key = (uid, device.name.clone());
            if let Some(then) = state.declined.get(&key) {
                if Arc::ptr_eq(then, device) {
                    return None;
                }
                state.declined.remove(&key);
            }
        }
        let serial = device.facts.iter().find(|fact| fact.name == "serial");
        let serial = serial.map(|fact| fact.value.clone());
        let text = || text(serial.as_deref());
        let is_same = |prompt: &Prompt| prompt.device == device.name;
        Some(self.show(uid, kind, &device.name, serial.clone(), is_same, text))
    }

    /// Shows the agents of a user that something was refused, until the result is
    /// dropped. `None`: the same is shown already, or too much is.
    pub(super) fn refused(&self, uid: u32, text: &str) -> Option<Wait> {
        let kind = PromptKind::Refusal;
        {
            let state = self.state();
            let own = state.waiting.values().filter(|waiting| waiting.uid == uid);
            let shown = own.filter(|waiting| waiting.prompt.kind == kind);
            let texts: Vec<&str> = shown.map(|waiting| waiting.prompt.text.as_str()).collect();
            if texts.len() >= MAX_REFUSALS || texts.contains(&text) {
                return None;
            }
        }
        let is_same = |prompt: &Prompt| prompt.text == text;
        Some(self.show(uid, kind, "", None, is_same, || text.to_owned()))
    }

    fn show(
        &self,
        uid: u32,
        kind: PromptKind,
        device: &str,
        serial: Option<String>,
        is_same: impl Fn(&Prompt) -> bool,
        text: impl FnOnce() -> String,
    ) -> Wait {
        let mut state = self.state();
        let own = |waiting: &&mut Waiting| waiting.uid == uid;
        let same = |waiting: &&mut Waiting| waiting.prompt.kind == kind && is_same(&waiting.prompt);
        if let Some(waiting) = state.waiting.values_mut().filter(own).find(same) {
            waiting.requests = waiting.requests.saturating_add(1);
            return Wait {
                board: self.clone(),
                id: Some(waiting.prompt.id),
                declined: Some(waiting.declined.subscribe()),
            };
        }
        if state.waiting.values_mut().filter(own).count() >= MAX_OF_ONE_USER {
            return Wait {
                board: self.clone(),
                id: None,
                declined: None,
            };
        }
        state.last_id = state.last_id.saturating_add(1);
        let id = state.last_id;
        let (declined, is_declined) = watch::channel(false);
        let prompt = Prompt {
            id,
            kind,
            device: device.to_owned(),
            text: text(),
            serial,
        };
        let waiting = Waiting {
            uid,
            prompt,
            requests: 1,
            declined,
        };
        state.waiting.insert(id, waiting);
        drop(state);
        self.changed();
        Wait {
            board: self.clone(),
            id: Some(id),
            declined: Some(is_declined),
        }
    }

    /// What waits for this user, once that may be something else than what is known.
    pub(super) async fn shown(&self, uid: u32, known: u64) -> Prompts {
        let mut changes = self.0.changes.subscribe();
        // The sender lives as long as this.
        let _ = changes.wait_for(|now| *now != known).await;
        let known = *changes.borrow();
        Prompts {
            known,
            prompts: self.now(uid),
        }
    }

    /// What waits for this user now.
    pub(super) fn now(&self, uid: u32) -> Vec<Prompt> {
        let state = self.state();
        let own = state.waiting.values().filter(|waiting| waiting.uid == uid);
        own.map(|waiting| waiting.prompt.clone()).collect()
    }

    /// Counts the changes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// A prompt of this user's that still waits.
    pub(super) fn get(&self, uid: u32, id: u64) -> Option<Prompt> {
        let state = self.state();
        let waiting = state.waiting.get(&id).filter(|waiting| waiting.uid == uid);
        waiting.map(|waiting| waiting.prompt.clone())
    }

    /// The person does not want to. `device`: what it is now.
    pub(super) fn decline(&self, uid: u32, id: u64, device: Arc<DeviceInfo>) {
        let mut state = self.state();
        let Some(waiting) = state.waiting.get(&id).filter(|waiting| waiting.uid == uid) else {
            return;
        };
        waiting.declined.send_replace(true);
        state.declined.insert((uid, device.name.clone()), device);
    }

    /// Has those look again who wait for a change.
    pub(super) fn changed(&self) {
        self.0
            .changes
            .send_modify(|count| *count = count.wrapping_add(1).max(1));
    }

    /// What it guards is whole even if some thread died.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wait {
    /// Until the person says that he does not want to.
    pub(super) async fn declined(&self) {
        match &self.declined {
            Some(declined) => {
                let mut declined = declined.clone();
                let _ = declined.wait_for(|declined| *declined).await;
            }
            None => std::future::pending().await,
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut state = self.board.state();
        let Some(waiting) = state.waiting.get_mut(&id) else {
            return;
        };
        waiting.requests = waiting.requests.saturating_sub(1);
        if waiting.requests == 0 {
            state.waiting.remove(&id);
            drop(state);
            self.board.changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mlskeyd_protocol::v1::DeviceState;

    use super::*;

    fn device(name: &str) -> Arc<DeviceInfo> {
        Arc::new(DeviceInfo {
            name: name.to_owned(),
            kind: "yubikey",
            state: DeviceState::Locked,
            reason: String::new(),
            facts: Vec::new(),
            support: Vec::new(),
            unlocked: BTreeSet::new(),
            generations: None,
        })
    }

    fn wait(board: &Board, uid: u32, device: &Arc<DeviceInfo>) -> Option<Wait> {
        board.wait(uid, PromptKind::Pin, device, |_| "text".to_owned())
    }

    #[tokio::test]
    async fn requests_that_wait_for_the_same_share_a_prompt_of_their_user() {
        let (board, card) = (Board::new(), device("card"));
        let (one, two) = (wait(&board, 1, &card), wait(&board, 1, &card));
        let other = wait(&board, 2, &card);
        let shown = board.shown(1, 0).await;
        assert_eq!(shown.prompts.len(), 1);
        let id = shown.prompts[0].id;
        assert_eq!(board.get(2, id), None, "it is another user's");
        drop(one);
        assert!(board.get(1, id).is_some());
        drop(two);
        let shown = board.shown(1, shown.known).await;
        assert_eq!(shown.prompts, []);
        drop(other);
    }

    #[tokio::test]
    async fn who_does_not_want_to_is_asked_again_when_something_happened() {
        let (board, card) = (Board::new(), device("card"));
        let waits = wait(&board, 1, &card).unwrap();
        let id = board.shown(1, 0).await.prompts[0].id;
        board.decline(2, id, Arc::clone(&card));
        board.decline(1, id, Arc::clone(&card));
        waits.declined().await;
        drop(waits);
        assert!(wait(&board, 1, &card).is_none());
        assert!(wait(&board, 2, &card).is_some(), "that is another person");
        assert!(wait(&board, 1, &device("card")).is_some());
    }

    #[tokio::test]
    async fn a_refusal_is_shown_once_and_for_a_while() {
        let board = Board::new();
        let shown = board.refused(1, "refused").unwrap();
        assert!(board.refused(1, "refused").is_none());
        assert!(board.refused(2, "refused").is_some());
        let now = board.shown(1, 0).await.prompts;
        assert_eq!((now.len(), now[0].kind), (1, PromptKind::Refusal));
        drop(shown);
        assert_eq!(board.shown(1, 0).await.prompts, []);
        let many: Vec<_> = (0..100).map(|n| board.refused(1, &n.to_string())).collect();
        assert_eq!(many.iter().flatten().count(), MAX_REFUSALS);
    }

    #[tokio::test]
    async fn one_user_fills_no_board() {
        let board = Board::new();
        let names = (0..100).map(|number| device(&number.to_string()));
        let waits: Vec<_> = names.map(|device| wait(&board, 1, &device)).collect();
        assert_eq!(board.shown(1, 0).await.prompts.len(), MAX_OF_ONE_USER);
        assert_eq!(waits.len(), 100);
        drop(waits);
        assert_eq!(board.shown(1, 0).await.prompts, []);
    }
}
