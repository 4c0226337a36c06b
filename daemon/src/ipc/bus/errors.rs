//! Named errors: for programs by name, for people with the reason and what can be done.

use mlskeyd_protocol::v1::{Failure, FailureCode};
use zbus::Message;
use zbus::message::Header;

/// Why a call is not served.
#[derive(Debug)]
pub(super) enum NotDone {
    /// The request was refused, or failed.
    Failure(Failure),
    /// It is no call that could be served: an error of the bus's own.
    Call(Wrong, String),
    /// The answer cannot be sent.
    Bus(zbus::Error),
}

/// What is wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    Object,
    Interface,
    Method,
    Property,
    ReadOnly,
    Arguments,
    Limits,
    Gone,
}

impl From<Failure> for NotDone {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<zbus::Error> for NotDone {
    fn from(error: zbus::Error) -> Self {
        Self::Bus(error)
    }
}

impl NotDone {
    pub(super) fn call(what: Wrong, text: impl Into<String>) -> Self {
        Self::Call(what, text.into())
    }

    /// Too much is asked for at once.
    pub(super) fn busy() -> Self {
        let text = "too many calls of this client or user wait already; call again when some have been answered";
        Self::call(Wrong::Limits, text)
    }

    /// The message that says so: the whole text; and for a failure the reason, the advice, and
    /// the policy that refused it or nothing.
    pub(super) fn to_message(&self, call: &Header<'_>) -> zbus::Result<Message> {
        match self {
            Self::Failure(failure) => {
                let policy = failure.policy.as_deref().unwrap_or_default();
                let body = (
                    failure.to_string(),
                    failure.message.as_str(),
                    failure.advice.as_str(),
                    policy,
                );
                Message::error(call, name(failure.code)).build(&body)
            }
            Self::Call(what, text) => Message::error(call, what.name()).build(text),
            Self::Bus(error) => {
                let text = format!("the answer cannot be sent: {error}");
                Message::error(call, "org.freedesktop.DBus.Error.Failed").build(&text)
            }
        }
    }
}

impl Wrong {
    const fn name(self) -> &'static str {
        match self {
            Self::Object => "org.freedesktop.DBus.Error.UnknownObject",
            Self::Interface => "org.freedesktop.DBus.Error.UnknownInterface",
            Self::Method => "org.freedesktop.DBus.Error.UnknownMethod",
            Self::Property => "org.freedesktop.DBus.Error.UnknownProperty",
            Self::ReadOnly => "org.freedesktop.DBus.Error.PropertyReadOnly",
            Self::Arguments => "org.freedesktop.DBus.Error.InvalidArgs",
            Self::Limits => "org.freedesktop.DBus.Error.LimitsExceeded",
            Self::Gone => "org.mlskeyd.Error.NotServed",
        }
    }
}

const fn name(code: FailureCode) -> &'static str {
    match code {
        FailureCode::Denied => "org.mlskeyd.Error.Denied",
        FailureCode::BadRequest => "org.mlskeyd.Error.BadRequest",
        FailureCode::NotFound => "org.mlskeyd.Error.NotFound",
        FailureCode::Destroyed => "org.mlskeyd.Error.Destroyed",
        FailureCode::KeyMissing => "org.mlskeyd.Error.KeyMissing",
        FailureCode::Conflict => "org.mlskeyd.Error.Conflict",
        FailureCode::Withheld => "org.mlskeyd.Error.Withheld",
        FailureCode::DecryptionFailed => "org.mlskeyd.Error.DecryptionFailed",
        FailureCode::Unsupported => "org.mlskeyd.Error.Unsupported",
        FailureCode::DeviceLocked => "org.mlskeyd.Error.DeviceLocked",
        FailureCode::DeviceAbsent => "org.mlskeyd.Error.DeviceAbsent",
        FailureCode::DeviceFailed => "org.mlskeyd.Error.DeviceFailed",
        FailureCode::Busy => "org.mlskeyd.Error.Busy",
        FailureCode::LimitReached => "org.mlskeyd.Error.LimitReached",
        FailureCode::Timeout => "org.mlskeyd.Error.Timeout",
        FailureCode::InteractionRequired => "org.mlskeyd.Error.InteractionRequired",
        FailureCode::ReadOnly => "org.mlskeyd.Error.ReadOnly",
        FailureCode::AuditUnavailable => "org.mlskeyd.Error.AuditUnavailable",
        FailureCode::Internal => "org.mlskeyd.Error.Internal",
    }
}
