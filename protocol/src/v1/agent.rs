//! What the agent of a login session asks, which finds the person.

use serde::{Deserialize, Serialize};

use super::{CallOptions, Outcome, SecretBytes};

/// Something that waits for a person: requests of the user's that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// Its number, which no other one has until the daemon ends.
    pub id: u64,
    /// What the person has to do.
    pub kind: PromptKind,
    /// The device's name.
    pub device: String,
    /// The serial number of what is there, if it has one: a PIN is for this one alone.
    pub serial: Option<String>,
    /// Who asks for what, for the person to read: as the daemon knows it, not as the app
    /// says it.
    pub text: String,
}

/// What a person has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PromptKind {
    /// Give the device's PIN.
    Pin,
    /// Touch the device.
    Touch,
    /// Nothing: it is to be told that something was refused. It goes away by itself.
    Refusal,
}

/// What waits for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompts {
    /// Names this state: to be given with the next question.
    pub known: u64,
    /// All of the user's.
    pub prompts: Vec<Prompt>,
}

/// A person's PIN. Never to be repeated: the device counts wrong ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerPrompt {
    /// Which prompt.
    pub prompt: u64,
    /// The PIN: 1 to [`MAX_PIN`](crate::limits::MAX_PIN) bytes.
    pub pin: SecretBytes,
}

/// What the agent of a user asks: for that user alone. When its last connection ends,
/// what was unlocked through it is locked.
#[tarpc::service]
pub trait Agent {
    /// What waits for the person, as soon as that is something else than what is known
    /// (0: nothing is), or when the deadline is near.
    async fn prompts(options: CallOptions, known: u64) -> Outcome<Prompts>;
    /// Gives a PIN.
    async fn answer_prompt(options: CallOptions, request: AnswerPrompt) -> Outcome<()>;
    /// Says that the person does not want to: the requests that wait fail, and it is not
    /// asked again until something happens to the device.
    async fn decline_prompt(options: CallOptions, prompt: u64) -> Outcome<()>;
}
