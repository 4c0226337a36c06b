//! Why a request was refused or failed.

use serde::{Deserialize, Serialize};

use crate::handle::KeyId;

/// What every request answers.
pub type Outcome<T> = Result<T, Failure>;

/// Why a request was refused or failed, and what to do next. Carries no
/// secrets, and is safe to show to a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}; {advice}", self.about())]
pub struct Failure {
    /// For programs.
    pub code: FailureCode,
    /// What happened.
    pub message: String,
    /// What can be done next.
    pub advice: String,
    /// The key, where one was asked for.
    pub key: Option<KeyId>,
    /// The device, where one was asked.
    pub device: Option<String>,
    /// The id of the policy that refused, for [`FailureCode::Denied`].
    pub policy: Option<String>,
}

/// Why, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureCode {
    /// The policy, or a rule that no policy can lift, does not permit it.
    Denied,
    /// The request is malformed or contradicts itself.
    BadRequest,
    /// No such key, identity or storage of this caller.
    NotFound,
    /// The key was destroyed.
    Destroyed,
    /// The registry knows the key, its device does not show it.
    KeyMissing,
    /// A name or key that is there already, and differs.
    Conflict,
    /// What was opened is not what such a key may open, so it is withheld.
    Withheld,
    /// The ciphertext does not open under this key.
    DecryptionFailed,
    /// The device does not do this, at this tier.
    Unsupported,
    /// The device waits to be unlocked, or the key does, which has a PIN of its own.
    DeviceLocked,
    /// The device is not there.
    DeviceAbsent,
    /// The device failed.
    DeviceFailed,
    /// Too many requests wait already.
    Busy,
    /// A bound of the configuration is reached.
    LimitReached,
    /// The deadline passed.
    Timeout,
    /// A person is needed, and the call said [`super::Interaction::Never`].
    InteractionRequired,
    /// The registry is read-only (a lost store key, a full disk).
    ReadOnly,
    /// The audit log cannot be written.
    AuditUnavailable,
    /// A fault of the daemon: its log says more.
    Internal,
}

impl Failure {
    /// A failure without key, device and policy.
    #[must_use]
    pub fn new(code: FailureCode, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            advice: advice.into(),
            key: None,
            device: None,
            policy: None,
        }
    }

    /// The key and where it is, for the text.
    fn about(&self) -> String {
        match (&self.key, &self.device) {
            (Some(key), Some(device)) => format!(" (key {key} at device {device})"),
            (Some(key), None) => format!(" (key {key})"),
            // A message about a device alone names it.
            (None, _) => String::new(),
        }
    }

    /// The same, about this key.
    #[must_use]
    pub fn about_key(mut self, key: KeyId) -> Self {
        self.key = Some(key);
        self
    }

    /// The same, at this device.
    #[must_use]
    pub fn at_device(mut self, device: impl Into<String>) -> Self {
        self.device = Some(device.into());
        self
    }

    /// The same, by the policy with this id.
    #[must_use]
    pub fn by_policy(mut self, policy: impl Into<String>) -> Self {
        self.policy = Some(policy.into());
        self
    }
}
