//! The daemon's doors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlskeyd_protocol::client::{
    Attachment, Call, CallError, CancelToken, Client, ClientConfig, Doors,
};
use mlskeyd_protocol::v1::{
    Bytes, Claim, Claimed, CreateIdentity, GenerateHpke, GeneratedHpke, Housekeeping, IdentityInfo,
    KeyInfo, LeaveCustody, Looked, Open, Report, SecretBytes, ServiceStatus, Settle, Sign,
};

use super::{NamedDoors, Terms, requests};
use crate::failure::{ProviderError, Watch};

/// The blocking client, with what one provider keeps beside it.
pub(super) struct Door {
    client: Client,
    watch: Arc<Watch>,
    /// Held as long as the storage is connected.
    attachment: Mutex<Option<Attachment>>,
    /// Cancels the calls that run now; each token serves once.
    cancel: Mutex<Option<CancelToken>>,
}

macro_rules! forward {
    ($($name:ident($($argument:ident: $type:ty)?) -> $reply:ty;)*) => {$(
        pub(super) fn $name(
            &self,
            terms: Terms
            $(, $argument: $type)?
        ) -> Result<$reply, ProviderError> {
            self.call(terms, |client, call| client.$name($($argument,)? call))
        }
    )*};
}

impl Door {
    pub(super) fn new(named: NamedDoors, watch: Arc<Watch>) -> Self {
        let config = ClientConfig::through(
            Doors::named(named.socket, named.bus.as_deref()),
            concat!("mlskeyd-provider ", env!("CARGO_PKG_VERSION")),
        );
        Self {
            client: Client::new(config),
            watch,
            attachment: Mutex::default(),
            cancel: Mutex::default(),
        }
    }

    /// Cancels the calls that run now, on whatever thread.
    pub(super) fn cancel(&self) {
        let running = self
            .cancel
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(running) = running {
            running.cancel();
        }
    }

    /// What cancels the calls that begin now. `None` if the process has no file
    /// descriptors left: such a call fails by itself.
    fn token(&self) -> Option<CancelToken> {
        let mut token = self.cancel.lock().unwrap_or_else(PoisonError::into_inner);
        if token.is_none() {
            *token = CancelToken::new().ok();
        }
        token.clone()
    }

    requests!(forward);

    /// Is the storage connected, as far as is known without asking?
    pub(super) fn attached(&self) -> bool {
        self.attachment().as_ref().is_some_and(Attachment::is_alive)
    }

    /// Connects the storage, for as long as the connection lasts.
    pub(super) fn attach(
        &self,
        terms: Terms,
        storage: &str,
        ends: bool,
    ) -> Result<Housekeeping, ProviderError> {
        let mut attachment = self.attachment();
        // Another thread may have come first.
        if attachment.as_ref().is_some_and(Attachment::is_alive) {
            return Ok(Housekeeping::default());
        }
        // A dead one goes first: the daemon counts connections.
        *attachment = None;
        let (fresh, housekeeping) =
            self.call(terms, |client, call| client.attach(storage, ends, call))?;
        *attachment = Some(fresh);
        Ok(housekeeping)
    }

    fn attachment(&self) -> MutexGuard<'_, Option<Attachment>> {
        self.attachment
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(
        &self,
        terms: Terms,
        ask: impl FnOnce(&Client, &Call<'_>) -> Result<T, CallError>,
    ) -> Result<T, ProviderError> {
        let cancel = self.token();
        let on_progress = |progress: &_| self.watch.progress(progress);
        let call = Call {
            deadline: terms.deadline,
            interaction: terms.interaction,
            priority: terms.priority,
            on_progress: Some(&on_progress),
            cancel: cancel.as_ref(),
        };
        ask(&self.client, &call).map_err(ProviderError::from)
    }
}
