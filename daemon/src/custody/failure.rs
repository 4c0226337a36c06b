//! What the rooms' errors are to a caller: a code, what happened, what to do
//! next. The cause in full goes to the daemon's log where it is the daemon's.

use mlskeyd_protocol::v1::{Failure, FailureCode, Owner};

use crate::audit::AuditError;
use crate::devices::DeviceError;
use crate::devices::queue::{DeviceHandle, RunError};
use crate::store::StoreError;

/// A fault of the daemon.
pub(super) fn internal() -> Failure {
    Failure::new(
        FailureCode::Internal,
        "the daemon failed inside",
        "repeat the request; if it fails again, see the daemon's log",
    )
}

/// Too many requests of this owner are on their way.
pub(super) fn too_busy() -> Failure {
    Failure::new(
        FailureCode::Busy,
        "too many requests of this app wait already",
        "repeat the request when some of them are answered",
    )
}

/// No such thing of this caller. The same text whether it is another's or not
/// there at all: an id is no oracle.
pub(super) fn not_found(what: &str) -> Failure {
    Failure::new(
        FailureCode::NotFound,
        format!("this caller has no such {what}"),
        "use one that this app made as this user; `mlskeyctl keys` shows an administrator all",
    )
}

pub(super) fn bad_request(message: impl Into<String>, advice: &str) -> Failure {
    Failure::new(FailureCode::BadRequest, message, advice)
}

/// The caller sent more than is allowed.
pub(super) fn too_much(what: &str, limit: usize) -> Failure {
    bad_request(
        format!("{what} is empty or beyond {limit}"),
        "send less at once, or a shorter one",
    )
}

pub(super) fn of_audit(error: AuditError) -> Failure {
    tracing::error!(%error, "a request was refused because it cannot go on record");
    Failure::new(
        FailureCode::AuditUnavailable,
        "the request cannot go on record, so it is refused",
        "have the administrator see the daemon's log and the space on its disk, then repeat it",
    )
}

pub(super) fn of_store(error: StoreError) -> Failure {
    match error {
        StoreError::NotFound(what) => not_found(what),
        StoreError::Conflict(what) => Failure::new(
            FailureCode::Conflict,
            format!("{what} is there already, and differs"),
            "another request came first: look again, then repeat it or choose another name",
        ),
        StoreError::Destroyed(key) => Failure::new(
            FailureCode::Destroyed,
            "the key was destroyed",
            "it cannot come back; make a new one",
        )
        .about_key(key),
        StoreError::Limit(what) => Failure::new(
            FailureCode::LimitReached,
            format!("too many {what}"),
            match what {
                "storages of one app" => {
                    "have the administrator see `mlskeyctl storage list`, and forget those that are gone"
                }
                "identities of one app" => {
                    "use those that are there: `mlskeyctl identities` shows them to an administrator"
                }
                "keys of one identity that retire" => {
                    "rotate again when one of them has ended: `mlskeyctl identities` shows when"
                }
                _ => "have the app delete what it no longer needs",
            },
        ),
        StoreError::ReadOnly(reason) => Failure::new(
            FailureCode::ReadOnly,
            format!("the registry takes no changes: {reason}"),
            "have the administrator put the cause right; nothing was deleted",
        ),
        StoreError::Tampered { .. } => {
            tracing::error!(%error, "a row of the registry is not as the daemon wrote it");
            Failure::new(
                FailureCode::KeyMissing,
                "the registry's entry is damaged, so it is not used",
                "have the administrator restore the registry from a copy; nothing was deleted",
            )
        }
        error => {
            tracing::error!(%error, "the registry failed");
            Failure::new(
                FailureCode::Internal,
                "the registry could not do it",
                "repeat the request; if it fails again, see the daemon's log and the space on its disk",
            )
        }
    }
}

pub(super) fn of_run(error: RunError, device: &DeviceHandle<Owner>) -> Failure {
    let name = &device.info().name;
    let message = format!("device {name}: {error}");
    let (code, advice) = match &error {
        RunError::Busy => (FailureCode::Busy, "repeat the request later"),
        RunError::Timeout { .. } => (
            FailureCode::Timeout,
            "repeat the request, with a later deadline if the device is slow",
        ),
        RunError::ShuttingDown => (
            FailureCode::DeviceAbsent,
            "repeat the request when the daemon is back",
        ),
        RunError::Device(error) => (code_of(error), device.advice(error)),
    };
    Failure::new(code, message, advice).at_device(name)
}

const fn code_of(error: &DeviceError) -> FailureCode {
    match error {
        DeviceError::Absent { .. } => FailureCode::DeviceAbsent,
        DeviceError::Locked { .. }
        | DeviceError::KeyLocked { .. }
        | DeviceError::LockedOut { .. } => FailureCode::DeviceLocked,
        DeviceError::Full { .. } => FailureCode::LimitReached,
        // Nothing is asked of a device about keys that the registry knows to be
        // destroyed.
        DeviceError::Missing { .. } | DeviceError::BadBlob | DeviceError::GenerationGone(_) => {
            FailureCode::KeyMissing
        }
        DeviceError::WrongKeyType { .. }
        | DeviceError::BadPeerKey { .. }
        | DeviceError::NotAdopted { .. }
        | DeviceError::NotApproved { .. }
        | DeviceError::ForeignChallenge
        | DeviceError::NoChallenges => FailureCode::BadRequest,
        DeviceError::NotTouched => FailureCode::Denied,
        DeviceError::NoConsentKey { .. }
        | DeviceError::TooLong { .. }
        | DeviceError::Unsupported { .. }
        | DeviceError::CannotDo(_)
        | DeviceError::NotAttested { .. } => FailureCode::Unsupported,
        DeviceError::Failed { .. }
        | DeviceError::OtherMeasurements { .. }
        | DeviceError::OtherToken { .. }
        | DeviceError::OwnTokenUnknown { .. }
        | DeviceError::Lost { .. }
        | DeviceError::GenerationExists(_)
        | DeviceError::Io { .. } => FailureCode::DeviceFailed,
    }
}
