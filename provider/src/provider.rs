//! The provider and its builder.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mlskeyd_protocol::limits::MAX_NAME;
use mlskeyd_protocol::v1::{IdentityInfo, Interaction, Placement, Priority, Progress, Tier};
use openmls::prelude::{Credential, MlsGroup};
use openmls_rust_crypto::{MemoryStorage, RustCrypto};
use openmls_traits::OpenMlsProvider;
use openmls_traits::crypto::OpenMlsCrypto;
use openmls_traits::random::OpenMlsRand;
use openmls_traits::storage::StorageProvider;
use openmls_traits::types::SignatureScheme;

use crate::availability::Availability;
use crate::crypto::CustodyCrypto;
use crate::failure::{CustodyFailure, OnProgress, OnRefusal, ProviderError, Watch};
use crate::identity::{CustodyIdentity, custody_credential};
use crate::link::{Link, NamedDoors, Terms};
use crate::rand::CustodyRand;
use crate::status::{self, CustodyStatus};
use crate::storage::{CustodyStorage, Transaction};
use crate::suites;

/// What a [`CustodyStorage`] over `S` fails with.
pub type StorageErrorOf<S> = <CustodyStorage<S> as StorageProvider<1>>::Error;

/// An OpenMLS provider whose init and leaf private keys are in custody.
///
/// It wraps any storage `S` and any cryptography `C`; see the
/// [crate's documentation](crate).
#[derive(Debug)]
pub struct CustodyProvider<S: StorageProvider<1> = MemoryStorage, C = RustCrypto> {
    crypto: CustodyCrypto<C>,
    rand: CustodyRand<C>,
    storage: CustodyStorage<S>,
    link: Arc<Link>,
}

impl<S, C> OpenMlsProvider for CustodyProvider<S, C>
where
    S: StorageProvider<1>,
    C: OpenMlsCrypto + OpenMlsRand,
{
    type CryptoProvider = CustodyCrypto<C>;
    type RandProvider = CustodyRand<C>;
    type StorageProvider = CustodyStorage<S>;

    fn storage(&self) -> &Self::StorageProvider {
        &self.storage
    }

    fn crypto(&self) -> &Self::CryptoProvider {
        &self.crypto
    }

    fn rand(&self) -> &Self::RandProvider {
        &self.rand
    }
}

impl CustodyProvider {
    /// A provider with OpenMLS's Rust cryptography and a storage in memory,
    /// until the builder is told otherwise.
    #[must_use]
    pub fn builder() -> CustodyProviderBuilder<MemoryStorage, RustCrypto> {
        CustodyProviderBuilder {
            doors: NamedDoors::default(),
            name: None,
            storage: MemoryStorage::default(),
            crypto: RustCrypto::default(),
            placement: Placement::default(),
            require_custody: false,
            terms: Terms {
                deadline: Duration::from_secs(60),
                interaction: Interaction::UpTo(30_000),
                priority: Priority::Interactive,
            },
            on_progress: None,
            on_refusal: None,
        }
    }
}

impl<S: StorageProvider<1>, C> CustodyProvider<S, C> {
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Can keys be in custody just now? Answers at once.
    #[must_use]
    pub fn availability(&self) -> Availability {
        self.link.availability()
    }

    /// Makes an identity with a new signature key in custody, or answers the
    /// one that is there if it was made with the same credential and scheme, with the key
    /// and the credential that it has now.
    ///
    /// `name` is the app's own for it: unique for this app and user, 1 to 255
    /// bytes of UTF-8. `credential` is basic or X.509 and is pinned: the daemon
    /// signs no leaf with another one. `scheme` is that of the cipher suites
    /// it will use.
    ///
    /// # Errors
    /// Custody does not know the credential or the scheme, or the daemon did
    /// not do it.
    pub fn create_identity(
        &self,
        name: &str,
        credential: &Credential,
        scheme: SignatureScheme,
    ) -> Result<CustodyIdentity, ProviderError> {
        let credential = custody_credential(credential)?;
        let scheme = suites::scheme(scheme).ok_or(ProviderError::SchemeUnsupported(scheme))?;
        let info = self.link.create_identity(name, credential, scheme)?;
        Ok(CustodyIdentity::new(info, Arc::clone(&self.link)))
    }

    /// The identity with this name.
    ///
    /// # Errors
    /// [`ProviderError::NoIdentity`] if there is none; or the daemon did not
    /// answer.
    pub fn identity(&self, name: &str) -> Result<CustodyIdentity, ProviderError> {
        let info = self.link.identity(name)?;
        Ok(CustodyIdentity::new(info, Arc::clone(&self.link)))
    }

    /// All identities of this app and user.
    ///
    /// # Errors
    /// The daemon did not answer.
    pub fn identities(&self) -> Result<Vec<IdentityInfo>, ProviderError> {
        self.link.identities()
    }

    /// Says whether the identity could be used now, so that no surprise comes in
    /// the middle of an OpenMLS operation. It waits for nobody: no device of this
    /// version asks a person for anything.
    ///
    /// # Errors
    /// The identity's device is not ready, or there is no such identity.
    pub fn prepare(&self, identity: &str) -> Result<(), ProviderError> {
        self.link.prepare(identity)
    }

    /// Why the last operation on this thread failed; answered once.
    ///
    /// OpenMLS hides the reason of a refused signature in a `LibraryError`.
    /// Ask for it on the thread, and right after the call, that failed.
    #[must_use]
    pub fn last_failure(&self) -> Option<CustodyFailure> {
        self.link.watch().take_last()
    }

    /// Cancels the requests that run now, on whatever thread: they fail with
    /// [`ProviderError::Cancelled`]. Later ones run.
    pub fn cancel(&self) {
        self.link.cancel();
    }

    /// Where the private keys of the group's own leaf are, present and
    /// pending. `None` if the group has no own leaf.
    ///
    /// OpenMLS has no hook by which a provider could check a whole group, so an
    /// app that requires custody calls this after it has loaded, created or
    /// joined a group: `provider.custody_status(&group)?` and then
    /// [`require`](CustodyStatus::require).
    ///
    /// # Errors
    /// The daemon did not answer.
    pub fn custody_status(&self, group: &MlsGroup) -> Result<Option<CustodyStatus>, ProviderError> {
        status::custody_status(&self.link, group)
    }

    /// Says that the app has begun a transaction of its database. Say
    /// [`committed`](Transaction::committed) after that has committed: only
    /// then does the daemon learn which keys are not needed any more. Dropped
    /// without, it counts as rolled back, whether the database has done that
    /// already or does it next.
    ///
    /// ```no_run
    /// # use mlskeyd_provider::CustodyProvider;
    /// # use openmls::prelude::*;
    /// # use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
    /// # use rusqlite::Connection;
    /// # use openmls_traits::signatures::Signer;
    /// # type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
    /// fn update<C: Codec>(
    ///     connection: &Connection,
    ///     provider: &CustodyProvider<SqliteStorageProvider<C, &Connection>>,
    ///     group: &mut MlsGroup,
    ///     signer: &impl Signer,
    /// ) -> Result<CommitMessageBundle> {
    ///     let custody = provider.transaction();
    ///     let database = connection.unchecked_transaction()?;
    ///     let bundle = group
    ///         .commit_builder()
    ///         .force_self_update(true)
    ///         .load_psks(provider.storage())?
    ///         .build(provider.rand(), provider.crypto(), signer, |_| true)?
    ///         .stage_commit(provider)?;
    ///     database.commit()?;
    ///     custody.committed();
    ///     Ok(bundle)
    /// }
    /// ```
    pub fn transaction(&self) -> Transaction<'_, S> {
        self.storage.begin()
    }

    /// A provider over another connection to the same database, for another
    /// thread: it has this one's name, terms and callbacks.
    pub fn beside<T: StorageProvider<1>>(&self, storage: T) -> CustodyProvider<T, C> {
        CustodyProvider {
            crypto: self.crypto.clone(),
            rand: self.rand.clone(),
            storage: self.storage.beside(storage),
            link: Arc::clone(&self.link),
        }
    }
}

/// Makes a [`CustodyProvider`]. Nothing here asks the daemon.
pub struct CustodyProviderBuilder<S, C> {
    doors: NamedDoors,
    /// `None`: in memory only.
    name: Option<String>,
    storage: S,
    crypto: C,
    placement: Placement,
    require_custody: bool,
    terms: Terms,
    on_progress: Option<OnProgress>,
    on_refusal: Option<OnRefusal>,
}

impl<S, C> std::fmt::Debug for CustodyProviderBuilder<S, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CustodyProviderBuilder")
            .field("doors", &self.doors)
            .field("name", &self.name)
            .field("placement", &self.placement)
            .field("require_custody", &self.require_custody)
            .finish_non_exhaustive()
    }
}

/// Why a provider cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The storage's name is empty or too long.
    #[error("a storage's name has 1 to {MAX_NAME} bytes")]
    StorageName,
    /// The cryptography has no randomness for the name of a storage in memory.
    #[error("no randomness: is the system's random source available?")]
    Randomness,
}

impl<S, C> CustodyProviderBuilder<S, C> {
    /// The daemon's socket. If neither this nor a bus is said, the daemon is
    /// looked for where `MLSKEYD_SOCKET` and `MLSKEYD_BUS` say; else at the
    /// system's or the user's socket and, if that is not there or may not be
    /// opened, as from a sandbox, on the system's and the session's bus.
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.doors.socket = Some(path.into());
        self
    }

    /// The message bus on which the daemon is: `system`, `session`, or an
    /// address, as in `unix:path=/run/dbus/system_bus_socket`. It is the only door
    /// then, or, if a socket is said as well, the second one.
    #[cfg(feature = "bus")]
    #[must_use]
    pub fn bus(mut self, bus: impl Into<String>) -> Self {
        self.doors.bus = Some(bus.into());
        self
    }

    /// A storage that lasts, with its stable name: 1 to 255 bytes, unique for
    /// this app and user, such as `alice@bank/laptop`. The daemon keeps the
    /// keys that the records under this name need, so a database must have the
    /// same name for all its life, and no two may share one.
    #[must_use]
    pub fn storage<T>(self, name: impl Into<String>, storage: T) -> CustodyProviderBuilder<T, C> {
        self.with_storage(Some(name.into()), storage)
    }

    /// A storage in memory: its keys die soon after the provider.
    #[must_use]
    pub fn memory_storage<T>(self, storage: T) -> CustodyProviderBuilder<T, C> {
        self.with_storage(None, storage)
    }

    fn with_storage<T>(self, name: Option<String>, storage: T) -> CustodyProviderBuilder<T, C> {
        CustodyProviderBuilder {
            doors: self.doors,
            name,
            storage,
            crypto: self.crypto,
            placement: self.placement,
            require_custody: self.require_custody,
            terms: self.terms,
            on_progress: self.on_progress,
            on_refusal: self.on_refusal,
        }
    }

    /// The cryptography for all that needs no private key in custody. Suites
    /// that it has beyond [`CUSTODY_CIPHERSUITES`](crate::CUSTODY_CIPHERSUITES),
    /// as the post-quantum drafts, work with software keys, each of which is
    /// told as [`ProviderError::MadeInSoftware`], unless custody is
    /// [required](Self::require_custody).
    #[must_use]
    pub fn crypto<D>(self, crypto: D) -> CustodyProviderBuilder<S, D> {
        CustodyProviderBuilder {
            doors: self.doors,
            name: self.name,
            storage: self.storage,
            crypto,
            placement: self.placement,
            require_custody: self.require_custody,
            terms: self.terms,
            on_progress: self.on_progress,
            on_refusal: self.on_refusal,
        }
    }

    /// The device that new keys go to. Else the one of the daemon's
    /// configuration.
    #[must_use]
    pub fn device(mut self, name: impl Into<String>) -> Self {
        self.placement.device = Some(name.into());
        self
    }

    /// The tier for new keys, exactly: where the device does not keep keys of
    /// the algorithm in it, none is made. Else the daemon's configuration may say
    /// one for HPKE keys; all other keys go to the highest that the device has.
    #[must_use]
    pub const fn tier(mut self, tier: Tier) -> Self {
        self.placement.tier = Some(tier);
        self
    }

    /// Refuses to go on where a key that should be in custody is not: cipher
    /// suites without custody are not supported, and a KeyPackage with a
    /// private key in software is not stored. For groups that exist already
    /// see [`CustodyProvider::custody_status`]. Off unless it is said: then an
    /// init or leaf key of such a suite is made in software, and the app is told
    /// of each by [`on_refusal`](Self::on_refusal) and
    /// [`last_failure`](CustodyProvider::last_failure).
    #[must_use]
    pub const fn require_custody(mut self, required: bool) -> Self {
        self.require_custody = required;
        self
    }

    /// Is told what a request waits for, on the thread that makes it.
    #[must_use]
    pub fn on_progress(mut self, tell: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(Box::new(tell));
        self
    }

    /// Is told of every refusal and failure, on the thread that met it.
    #[must_use]
    pub fn on_refusal(mut self, tell: impl Fn(&CustodyFailure) + Send + Sync + 'static) -> Self {
        self.on_refusal = Some(Box::new(tell));
        self
    }

    /// The longest time for one request: a minute unless it is said.
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.terms.deadline = deadline;
        self
    }

    /// May a request wait for a person? Half a minute unless it is said.
    #[must_use]
    pub const fn interaction(mut self, interaction: Interaction) -> Self {
        self.terms.interaction = interaction;
        self
    }

    /// Who goes first where a device is busy: interactive unless it is said.
    #[must_use]
    pub const fn priority(mut self, priority: Priority) -> Self {
        self.terms.priority = priority;
        self
    }
}

impl<S, C> CustodyProviderBuilder<S, C>
where
    S: StorageProvider<1>,
    C: OpenMlsCrypto + OpenMlsRand,
{
    /// The provider. It connects with its first request.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(self) -> Result<CustodyProvider<S, C>, BuildError> {
        let ends = self.name.is_none();
        let name = match self.name {
            Some(name) => name,
            None => random_name(&self.crypto)?,
        };
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(BuildError::StorageName);
        }
        let watch = Watch::new(self.on_progress, self.on_refusal);
        let link = Arc::new(Link::new(self.doors, self.terms, self.placement, watch));
        let inner = Arc::new(self.crypto);
        Ok(CustodyProvider {
            crypto: CustodyCrypto::new(Arc::clone(&inner), Arc::clone(&link), self.require_custody),
            rand: CustodyRand::new(inner),
            storage: CustodyStorage::new(
                self.storage,
                name,
                ends,
                self.require_custody,
                Arc::clone(&link) as _,
            ),
            link,
        })
    }
}

/// A name that no other storage has.
fn random_name(rand: &impl OpenMlsRand) -> Result<String, BuildError> {
    let random: [u8; 16] = rand.random_array().map_err(|_| BuildError::Randomness)?;
    Ok(format!("memory/{:032x}", u128::from_be_bytes(random)))
}
