//! Named errors: for programs by name, for people with the reason and what can be done.

use mlskeyd_protocol::v1::{Failure, FailureCode};
use zbus::Message;
use zbus::message::Header;

/// What who is not served can do.
const NEXT: &str = "call again; if that does not help, see mlskeyd's log";

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
            // One of mlskeyd's own, which all say as much.
            Self::Call(what @ Wrong::Gone, text) => {
                let body = (text.as_str(), text.as_str(), NEXT, "");
                Message::error(call, what.name()).build(&body)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn said(error: &NotDone) -> (String, (String, String, String, String)) {
        let call = Message::method_call("/org/mlskeyd/Custody1", "Freeze");
        let call = call.sender(":1.1").build(&()).unwrap();
        let message = error.to_message(&call.header()).unwrap();
        let name = message.header().error_name().unwrap().to_string();
        (name, message.body().deserialize().unwrap())
    }

    #[test]
    fn errors_of_ours_have_reason_advice_and_policy() {
        let failure = Failure {
            policy: Some("company".to_owned()),
            ..Failure::new(FailureCode::Denied, "no", "ask")
        };
        let whole = failure.to_string();
        let words = ["no", "ask", "company"].map(str::to_owned);
        let [reason, advice, policy] = words;
        assert_eq!(
            said(&failure.into()),
            (
                "org.mlskeyd.Error.Denied".to_owned(),
                (whole, reason, advice, policy)
            )
        );
        let locked = Failure::new(FailureCode::DeviceLocked, "locked", "unlock it");
        let (name, (_, reason, advice, policy)) = said(&locked.into());
        assert_eq!(name, "org.mlskeyd.Error.DeviceLocked");
        assert_eq!([reason, advice, policy], ["locked", "unlock it", ""]);
        let (name, (text, reason, advice, _)) = said(&NotDone::call(Wrong::Gone, "you left"));
        assert_eq!(name, "org.mlskeyd.Error.NotServed");
        assert_eq!([text, reason, advice], ["you left", "you left", NEXT]);
    }
}
