//! What the agent of a login session asks: it shows its person what waits for that
//! person, and brings the answers.
//!
//! What it unlocks is unlocked for its user alone, and as long as it is there: when a
//! user's last agent goes, as at the end of the login session, that is locked.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::{AnswerPrompt, Failure, FailureCode, Prompt, Prompts};
use tokio::sync::watch;

use super::key_pins::check_pin;
use super::subject::Subject;
use super::{Call, Custody, Event, Request, Session};
use crate::caller::Caller;
use crate::devices::{Device, DeviceError};

/// Looks for what waits, as soon as that is not what is known.
#[derive(Clone, Copy, Debug)]
pub struct LookForPrompts(pub u64);

/// The person does not want to.
#[derive(Clone, Copy, Debug)]
pub struct Declined(pub u64);

/// How long a refusal is shown.
const SHOWN: Duration = Duration::from_secs(10);

/// How long before its deadline a look is answered, though nothing happened.
const IN_TIME: Duration = Duration::from_secs(1);

impl Request for LookForPrompts {
    type Reply = Prompts;
    type Read = ();
    const ACTION: Action = Action::AnswerPrompt;
    const LEAVES_TRACES: bool = false;

    async fn read(&self, _: &Session, _: &Call, subject: &mut Subject) -> Result<(), Failure> {
        subject.durability = None;
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        call: &Call,
        _: &mut Subject,
    ) -> Result<Prompts, Failure> {
        let uid = session.caller().owner.uid;
        let board = &session.custody().devices.board;
        let until = call.deadline.checked_sub(IN_TIME).unwrap_or(call.deadline);
        let changed = tokio::time::timeout_at(until.into(), board.shown(uid, self.0));
        match changed.await {
            Ok(prompts) => Ok(prompts),
            // As it is.
            Err(_) => Ok(board.shown(uid, 0).await),
        }
    }
}

impl Request for AnswerPrompt {
    type Reply = ();
    type Read = Prompt;
    const ACTION: Action = Action::AnswerPrompt;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<Prompt, Failure> {
        check_pin(&self.pin)?;
        let prompt = session.prompt(self.prompt)?;
        subject.device = Some(prompt.device.clone());
        Ok(prompt)
    }

    async fn perform(
        self,
        prompt: Prompt,
        session: &Session,
        call: &Call,
        _: &mut Subject,
    ) -> Result<(), Failure> {
        let custody = session.custody();
        let Prompt { device, serial, .. } = prompt;
        let pin = self.pin;
        let unlock = move |device: &mut dyn Device| {
            let info = device.info();
            let now = info.facts.iter().find(|fact| fact.name == "serial");
            if now.map(|fact| &fact.value) != serial.as_ref() {
                return Err(DeviceError::Absent {
                    reason: "another one is there than the PIN is for".to_owned(),
                });
            }
            let unlocker = device.unlocker();
            let unlocker = unlocker.ok_or(DeviceError::CannotDo("be unlocked"))?;
            unlocker.unlock(&pin, false)
        };
        let how = custody.devices.attend(&device, call.deadline, unlock);
        if how.await? == crate::devices::Unlocking::ByThePin {
            let uid = session.caller().owner.uid;
            custody.devices.is_only_for(&device, Some(uid));
            // It may have gone meanwhile.
            if !custody.has_agent(uid) {
                custody.lock_what_was_unlocked_for(uid).await;
            }
        }
        Ok(())
    }
}

impl Request for Declined {
    type Reply = ();
    type Read = Prompt;
    const ACTION: Action = Action::AnswerPrompt;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<Prompt, Failure> {
        let prompt = session.prompt(self.0)?;
        subject.device = Some(prompt.device.clone());
        Ok(prompt)
    }

    async fn perform(
        self,
        prompt: Prompt,
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<(), Failure> {
        let devices = &session.custody().devices;
        let info = devices.get(&prompt.device)?.info();
        devices
            .board
            .decline(session.caller().owner.uid, self.0, info);
        Ok(())
    }
}

impl Session {
    /// A prompt of the caller's user.
    fn prompt(&self, id: u64) -> Result<Prompt, Failure> {
        let uid = self.caller().owner.uid;
        self.custody().devices.board.get(uid, id).ok_or_else(|| {
            Failure::new(
                FailureCode::NotFound,
                "nothing waits for this answer any more",
                "ask again what waits",
            )
        })
    }
}

/// An agent's connection, as long as it lasts.
pub(crate) struct AgentThere {
    custody: Arc<Custody>,
    uid: u32,
}

impl Custody {
    /// An agent of this user has connected.
    pub(crate) fn agent_arrives(self: &Arc<Self>, uid: u32) -> AgentThere {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let count = agents.entry(uid).or_default();
        *count = count.saturating_add(1);
        AgentThere {
            custody: Arc::clone(self),
            uid,
        }
    }

    fn has_agent(&self, uid: u32) -> bool {
        let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.contains_key(&uid)
    }

    /// What waits for the persons is another whenever this number is.
    pub(crate) fn prompt_changes(&self) -> watch::Receiver<u64> {
        self.devices.board.changes()
    }

    /// What waits for the person of this user now.
    pub(crate) fn prompts_of(&self, uid: u32) -> Vec<Prompt> {
        self.devices.board.now(uid)
    }

    /// Answers the agents that look for what waits, though nothing happened: the daemon
    /// stops.
    pub(crate) fn dismiss_agents(&self) {
        self.devices.board.changed();
    }

    /// Tells whoever listens that the policy refused something, and the person, if there is
    /// an agent to do so.
    pub(super) fn tell_of_refusal(
        &self,
        caller: &Caller,
        action: Action,
        policy: &str,
        reason: &str,
    ) {
        let owner = &caller.owner;
        self.events.tell(Event::Refused {
            owner: owner.clone(),
            action,
            policy: policy.to_owned(),
            reason: reason.to_owned(),
        });
        if !self.has_agent(owner.uid) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let text = format!("mlskeyd refused the app {} {action}: {reason}", owner.app);
        let Some(shown) = self.devices.board.refused(owner.uid, &text) else {
            return;
        };
        runtime.spawn(async move {
            tokio::time::sleep(SHOWN).await;
            drop(shown);
        });
    }

    /// Locks what the user's agent had unlocked.
    async fn lock_what_was_unlocked_for(&self, uid: u32) {
        for device in self.devices.unlocked_for(uid) {
            let lock = |device: &mut dyn Device| match device.unlocker() {
                Some(unlocker) => unlocker.lock(),
                None => Ok(()),
            };
            match self.devices.run_own(&device, lock).await {
                Ok(()) => {
                    let note = format!("{device}: the agent of user {uid} has gone");
                    self.note("DeviceLocked", note).await;
                }
                Err(error) => tracing::error!(device, %error, "a device is not locked"),
            }
        }
    }
}

impl Drop for AgentThere {
    fn drop(&mut self) {
        {
            let mut agents = self
                .custody
                .agents
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match agents.get_mut(&self.uid) {
                Some(count) if *count > 1 => {
                    *count = count.saturating_sub(1);
                    return;
                }
                _ => drop(agents.remove(&self.uid)),
            }
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (custody, uid) = (Arc::clone(&self.custody), self.uid);
            runtime.spawn(async move { custody.lock_what_was_unlocked_for(uid).await });
        }
    }
}
