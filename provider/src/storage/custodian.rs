//! What the storage wrapper asks of the daemon.

use mlskeyd_protocol::v1::{
    Claim, Claimed, Failure, FailureCode, Housekeeping, Looked, Report, Settle,
};

/// Why a request of the storage wrapper had no effect. The custodian has
/// recorded the reason already, so it is not repeated here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The daemon was not reached, or cannot serve at present: the same request
    /// may succeed later. All that follows waits for it, so this must be nothing
    /// but what passes by itself.
    Later,
    /// The daemon will not do this: to ask again is useless. What the record
    /// holds is claimed anew when it is next read or written.
    Never,
}

impl From<FailureCode> for Trouble {
    fn from(code: FailureCode) -> Self {
        match code {
            // The daemon has no time, stops, or cannot write to its disk.
            FailureCode::Busy
            | FailureCode::Timeout
            | FailureCode::DeviceAbsent
            | FailureCode::ReadOnly
            | FailureCode::AuditUnavailable
            | FailureCode::Internal => Self::Later,
            // The same request fails again. Nothing of this needs a device or a
            // person, so to wait for one would be to wait for ever.
            FailureCode::Denied
            | FailureCode::BadRequest
            | FailureCode::NotFound
            | FailureCode::Destroyed
            | FailureCode::KeyMissing
            | FailureCode::Conflict
            | FailureCode::Withheld
            | FailureCode::DecryptionFailed
            | FailureCode::Unsupported
            | FailureCode::DeviceLocked
            | FailureCode::DeviceFailed
            | FailureCode::LimitReached
            | FailureCode::InteractionRequired => Self::Never,
        }
    }
}

/// The daemon, as the storage wrapper sees it.
///
/// Every method records the failure that it meets where the app can find it.
/// While the daemon is known to be away, a method answers [`Trouble::Later`] at
/// once: a merge makes several of these calls, and none of them may make it
/// wait.
pub(crate) trait Custodian: Send + Sync {
    /// Is this storage connected, as far as is known without asking? `false`
    /// before [`attach`](Self::attach), and again when the connection that
    /// attached it was lost.
    fn attached(&self, storage: &str) -> bool;

    /// Connects a storage, and keeps it connected as long as the connection
    /// lasts. One that `ends` is forgotten by the daemon when it is not
    /// connected any more.
    fn attach(&self, storage: &str, ends: bool) -> Result<Housekeeping, Trouble>;

    /// Announces which keys a record will hold.
    fn claim(&self, claim: Claim) -> Result<Claimed, Trouble>;

    /// Reports what became of records.
    fn settle(&self, settle: Settle) -> Result<Housekeeping, Trouble>;

    /// Reports events that decide which records live.
    fn report(&self, report: Report) -> Result<Housekeeping, Trouble>;

    /// Answers a last look.
    fn looked(&self, looked: Looked) -> Result<Housekeeping, Trouble>;

    /// Records a failure that the storage wrapper met by itself.
    fn record(&self, failure: Failure);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_by_itself_is_waited_for() {
        for code in [
            FailureCode::Busy,
            FailureCode::Timeout,
            FailureCode::ReadOnly,
            FailureCode::AuditUnavailable,
        ] {
            assert_eq!(Trouble::from(code), Trouble::Later, "{code:?}");
        }
        for code in [
            FailureCode::LimitReached,
            FailureCode::KeyMissing,
            FailureCode::Conflict,
            FailureCode::NotFound,
            FailureCode::DeviceLocked,
        ] {
            assert_eq!(Trouble::from(code), Trouble::Never, "{code:?}");
        }
    }
}
