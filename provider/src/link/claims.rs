//! What the storage wrapper asks.

use mlskeyd_protocol::v1::{Claim, Claimed, Failure, Housekeeping, Looked, Report, Settle};

use super::{Door, Link, Terms};
use crate::failure::{Operation, ProviderError};
use crate::storage::custodian::{Custodian, Trouble};

impl Link {
    fn claimed<T>(
        &self,
        ask: impl FnOnce(&Door) -> Result<T, ProviderError>,
    ) -> Result<T, Trouble> {
        if self.away.is_recent() {
            return Err(Trouble::Later);
        }
        self.told(Operation::Claim, None, ask(&self.door))
            .map_err(trouble)
    }
}

fn trouble(error: ProviderError) -> Trouble {
    match error {
        ProviderError::Failure(failure) => failure.code.into(),
        // Nobody is there who could have refused it.
        ProviderError::NotInstalled { .. }
        | ProviderError::Unreachable { .. }
        | ProviderError::Incompatible(_)
        | ProviderError::NotServed(_)
        | ProviderError::Timeout
        | ProviderError::Cancelled => Trouble::Later,
        // The request itself does not fit, or there will never be a daemon.
        ProviderError::Protocol(_)
        | ProviderError::Unsupported
        | ProviderError::SchemeUnsupported(_)
        | ProviderError::HpkeUnsupported(_)
        | ProviderError::MadeInSoftware(_)
        | ProviderError::OperationUnsupported(_)
        | ProviderError::CredentialUnsupported
        | ProviderError::NoLabel(_)
        | ProviderError::NoIdentity(_)
        | ProviderError::NoKeyOfLeaf(_) => Trouble::Never,
    }
}

/// No person is needed for any of this, and no merge may wait for a daemon that
/// is away: what cannot be said now is said later.
impl Custodian for Link {
    fn attached(&self, _: &str) -> bool {
        self.door.attached()
    }

    fn attach(&self, storage: &str, ends: bool) -> Result<Housekeeping, Trouble> {
        self.claimed(|door| door.attach(Terms::UNATTENDED, storage, ends))
    }

    fn claim(&self, claim: Claim) -> Result<Claimed, Trouble> {
        self.claimed(|door| door.claim(Terms::UNATTENDED, claim))
    }

    fn settle(&self, settle: Settle) -> Result<Housekeeping, Trouble> {
        self.claimed(|door| door.settle(Terms::UNATTENDED, settle))
    }

    fn report(&self, report: Report) -> Result<Housekeeping, Trouble> {
        self.claimed(|door| door.report(Terms::UNATTENDED, report))
    }

    fn looked(&self, looked: Looked) -> Result<Housekeeping, Trouble> {
        self.claimed(|door| door.looked(Terms::UNATTENDED, looked))
    }

    fn record(&self, failure: Failure) {
        self.watch
            .failed(Operation::Claim, failure.key, failure.into());
    }
}
