//! Where there is no daemon: every request fails in the same way.

use std::sync::Arc;

use mlskeyd_protocol::v1::{
    Bytes, Claim, Claimed, CreateIdentity, GenerateHpke, GeneratedHpke, Housekeeping, IdentityInfo,
    KeyInfo, LeaveCustody, Looked, Open, Report, SecretBytes, ServiceStatus, Settle, Sign,
};

use super::{NamedDoors, Terms, requests};
use crate::failure::{ProviderError, Watch};

/// A door that nobody answers.
pub(super) struct Door;

macro_rules! refuse {
    ($($name:ident($($argument:ident: $type:ty)?) -> $reply:ty;)*) => {$(
        pub(super) fn $name(&self, _: Terms $(, _: $type)?) -> Result<$reply, ProviderError> {
            Err(ProviderError::Unsupported)
        }
    )*};
}

impl Door {
    pub(super) fn new(_: NamedDoors, _: Arc<Watch>) -> Self {
        Self
    }

    pub(super) fn cancel(&self) {}

    pub(super) fn attached(&self) -> bool {
        false
    }

    pub(super) fn attach(&self, _: Terms, _: &str, _: bool) -> Result<Housekeeping, ProviderError> {
        Err(ProviderError::Unsupported)
    }

    requests!(refuse);
}
