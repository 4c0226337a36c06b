//! Keeps the private keys of an MLS app with `mlskeyd`: a provider and a signer
//! for OpenMLS 0.9.
//!
//! An app changes two lines, the provider and the signer. No signature, init or
//! leaf private key is in its memory then, or in its database.
//!
#![cfg_attr(feature = "testing", doc = "```")]
#![cfg_attr(not(feature = "testing"), doc = "```no_run")]
//! use mlskeyd_provider::CustodyProvider;
//! use openmls::prelude::*;
//!
//! # #[cfg(feature = "testing")]
//! # let daemon = mlskeyd_provider::testing::TestDaemon::start()?;
//! # #[cfg(feature = "testing")]
//! # let socket = daemon.socket();
//! # #[cfg(not(feature = "testing"))]
//! # let socket = "/run/mlskeyd/socket";
//! let suite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
//! let credential = BasicCredential::new(b"alice@example.com".to_vec()).into();
//!
//! // Was: `OpenMlsRustCrypto::default()`.
//! let provider = CustodyProvider::builder().socket(socket).build()?;
//!
//! // Was: `SignatureKeyPair::new(suite.signature_algorithm())?`.
//! let identity = provider.create_identity("alice", &credential, suite.signature_algorithm())?;
//! let signer = identity.signer();
//!
//! // From here on, all is as it was.
//! let mut group = MlsGroup::builder()
//!     .ciphersuite(suite)
//!     .build(&provider, &signer, identity.credential_with_key()?)?;
//! let message = group.commit_builder()
//!     .force_self_update(true)
//!     .load_psks(provider.storage())?
//!     .build(provider.rand(), provider.crypto(), &signer, |_| true)?
//!     .stage_commit(&provider)?;
//! group.merge_pending_commit(&provider)?;
//!
//! // What the app may show: where its keys are.
//! let status = provider.custody_status(&group)?.expect("a member");
//! status.require()?;
//! println!("{}", status.leaf.signature);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What an app should know
//! - **Doors.** The daemon is found at its socket or, where that is out of reach, as
//!   from a sandbox, on a message bus, as `org.mlskeyd.Custody1`; a Flatpak has
//!   `--system-talk-name=org.mlskeyd.Custody1` for that. Which doors are tried, the
//!   app says ([`socket`](CustodyProviderBuilder::socket) and `bus`), or
//!   `MLSKEYD_SOCKET` (a path) and `MLSKEYD_BUS` (`system`, `session`, `none` or an
//!   address) in its environment. An app that is never in a sandbox may turn the
//!   feature `bus` off, and saves the dependency on zbus.
//! - **Storage.** Any OpenMLS storage is wrapped, so that the daemon knows which
//!   keys it still needs. Give a storage that lasts its own stable name, see
//!   [`CustodyProviderBuilder::storage`]; an app with transactions says when
//!   they commit, see [`CustodyProvider::transaction`].
//! - **Refusals.** The daemon reads what it is asked to sign and may refuse.
//!   OpenMLS answers a `LibraryError` then:
//!   [`last_failure`](CustodyProvider::last_failure) and
//!   [`on_refusal`](CustodyProviderBuilder::on_refusal) have the reason. The
//!   group is as before, and the same call works once the cause is gone; to
//!   process a message again, load the group from the storage first, since
//!   OpenMLS has used up the message's key in memory.
//! - **Waiting.** A device may wait for a person:
//!   [`on_progress`](CustodyProviderBuilder::on_progress) tells,
//!   [`prepare`](CustodyProvider::prepare) gets it over with beforehand,
//!   [`cancel`](CustodyProvider::cancel) ends it. All calls block, as OpenMLS's
//!   do; they may be made inside and outside of an asynchronous runtime, but
//!   not with a provider from before a `fork`.
//! - **No silent fallback.** Where there is no daemon,
//!   [`availability`](CustodyProvider::availability) says so and requests fail;
//!   software keys are never made instead. Cipher suites that custody does not
//!   know (all but [`CUSTODY_CIPHERSUITES`]) work with software keys, as the
//!   inner cryptography makes them, unless custody is
//!   [required](CustodyProviderBuilder::require_custody). Keys of virtual
//!   clients (a draft) are derived from shared secrets and are software, too.
//! - **Moving.** [`migrate`] takes a group of an existing app into custody,
//!   [`leave`] takes it out again.
//! - **Rotation.** An administrator may give an identity a new signature key.
//!   [`CustodyIdentity::refresh`] tells, [`follow_rotation`] brings it into a
//!   group, and until then [`CustodyIdentity::signer_for`] signs with the key that
//!   the group knows.
//! - **Tests.** With the feature `testing`, a daemon runs inside the test
//!   process.
//!
//! # What is not in custody
//! Group secrets: MLS derives epoch secrets, path secrets, parent nodes' keys
//! and message keys from each other, in the app.
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))]

mod availability;
mod crypto;
mod failure;
mod fresh;
mod identity;
mod link;
mod memory;
mod migration;
mod provider;
mod rand;
mod status;
pub mod storage;
mod suites;
#[cfg(feature = "testing")]
pub mod testing;

pub use availability::Availability;
pub use crypto::CustodyCrypto;
pub use failure::{CustodyFailure, Operation, ProviderError};
pub use identity::{CustodyIdentity, CustodySigner};
pub use migration::{
    Migration, MigrationError, ReplaceError, follow_rotation, leave, migrate, replace_key_packages,
};
pub use mlskeyd_protocol::v1::{
    DeviceState, Failure, FailureCode, Handle, IdentityInfo, Interaction, KeyId, KeyInfo, KeyState,
    Priority, Progress, Purpose, Tier,
};
pub use provider::{BuildError, CustodyProvider, CustodyProviderBuilder, StorageErrorOf};
pub use rand::CustodyRand;
pub use status::{CustodyStatus, KeyCustody, LeafCustody, NotInCustody};
pub use storage::{CustodyStorage, StorageError, Transaction};
pub use suites::CUSTODY_CIPHERSUITES;
