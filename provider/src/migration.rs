//! Moving a member of a group into custody, from one key in custody to the next,
//! and out again.
//!
//! Each is a commit that changes the own leaf: its signature key and its
//! encryption key. The commit goes the app's usual way: send it, and merge it
//! when the delivery service has accepted it. What is to be done next is read
//! from the group itself, so after a crash the same call goes on where the app
//! was.

use mlskeyd_protocol::v1::{Bytes, LeaveCustody};
use openmls::credentials::CredentialWithKey;
use openmls::group::{CommitBuilderStageError, CommitMessageBundle, CreateCommitError, MlsGroup};
use openmls::prelude::{
    Ciphersuite, KeyPackage, KeyPackageBuilder, KeyPackageBundle, KeyPackageNewError,
    KeyPackageRef, LeafNode, NewSignerBundle,
};
use openmls_traits::OpenMlsProvider as _;
use openmls_traits::crypto::OpenMlsCrypto;
use openmls_traits::random::OpenMlsRand;
use openmls_traits::signatures::Signer;
use openmls_traits::storage::StorageProvider;

use crate::failure::ProviderError;
use crate::fresh::SoftwareKeys;
use crate::identity::CustodyIdentity;
use crate::provider::{CustodyProvider, StorageErrorOf};
use crate::status::{LeafCustody, look_up_leaves};

/// Where a move is.
#[derive(Debug)]
pub enum Migration {
    /// Send this commit, and merge it once it is accepted.
    Commit(Box<CommitMessageBundle>),
    /// The commit was made before, and neither merged nor cleared. Merge it if
    /// it was sent and accepted; clear it if not, and call again.
    Pending,
    /// The keys are where they should be.
    Done,
}

/// Why a move cannot go on. The group is as before.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError<E: std::error::Error> {
    /// The daemon did not do its part.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// Another commit is pending.
    #[error("another commit is pending: merge or clear it, then call again")]
    OtherCommitPending,
    /// The app is no member of the group any more.
    #[error("the group has no own leaf: there is nothing to move")]
    NoLeaf,
    /// The commit could not be made. If the daemon refused a signature,
    /// [`CustodyProvider::last_failure`] has the reason.
    #[error("the commit could not be made: {0}")]
    Create(#[from] CreateCommitError),
    /// The commit could not be stored.
    #[error("the commit could not be stored: {0}")]
    Stage(#[from] CommitBuilderStageError<E>),
}

/// Moves the own member of `group` into custody: makes a commit that replaces
/// the signature key by `identity`'s and the leaf's key by a new one in
/// custody. It commits the pending proposals, too.
///
/// `old_signer` is the signer that the member has had so far. When all groups
/// and KeyPackages are moved, delete it: until then it can speak as the member.
///
/// The commit goes the app's usual way. What is to be done next is read from
/// the group itself, so after a crash the same call goes on where the app was:
///
/// ```no_run
/// use mlskeyd_provider::{CustodyProvider, CustodyIdentity, Migration, migrate, replace_key_packages};
/// use openmls::prelude::*;
/// # use openmls_basic_credential::SignatureKeyPair;
/// # type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
/// # fn send(_: &MlsMessageOut) -> Result<()> { Ok(()) }
/// # fn publish(_: &[KeyPackage]) -> Result<()> { Ok(()) }
///
/// /// Moves one group of an app that had its keys in software so far.
/// fn into_custody(
///     provider: &CustodyProvider,
///     group: &mut MlsGroup,
///     software: &SignatureKeyPair,
///     published: &[KeyPackageRef],
/// ) -> Result<CustodyIdentity> {
///     let credential = group.credential()?.clone();
///     let scheme = group.ciphersuite().signature_algorithm();
///     let identity = provider.create_identity("alice@example.com", &credential, scheme)?;
///     match migrate(provider, group, software, &identity)? {
///         Migration::Commit(bundle) => {
///             send(bundle.commit())?;
///             group.merge_pending_commit(provider)?;
///         }
///         // The commit was made before a crash. If it was not sent:
///         // `group.clear_pending_commit(provider.storage())`, and once more.
///         Migration::Pending => group.merge_pending_commit(provider)?,
///         Migration::Done => {}
///     }
///     // KeyPackages that others may still use to invite us:
///     let suite = group.ciphersuite();
///     replace_key_packages(provider, &identity, suite, KeyPackage::builder, published, publish)?;
///     Ok(identity)
/// }
/// ```
///
/// # Errors
/// See [`MigrationError`].
pub fn migrate<S, C>(
    provider: &CustodyProvider<S, C>,
    group: &mut MlsGroup,
    old_signer: &impl Signer,
    identity: &CustodyIdentity,
) -> Result<Migration, MigrationError<StorageErrorOf<S>>>
where
    S: StorageProvider<1>,
    C: OpenMlsCrypto + OpenMlsRand,
{
    let new = identity.credential_with_key()?;
    let in_custody = |leaf: &LeafCustody| leaf.encryption.is_in_custody();
    match next_step(provider, group, &new, in_custody)? {
        Step::Rotate => rotate(provider, group, old_signer, &identity.signer(), new),
        Step::Refresh => refresh(provider, group, &identity.signer()),
        Step::Wait => Ok(Migration::Pending),
        Step::Nothing => Ok(Migration::Done),
    }
}

/// Moves the own member of `group` to the present key and credential of `identity`, if
/// an administrator has given it other ones since: makes a commit that replaces them,
/// signed with the old key, and the leaf's key by a new one. It commits the pending
/// proposals, too. With a new credential no other commit with a path is signed any more.
///
/// [`CustodyIdentity::refresh`] tells that there are new ones. Do this for every
/// group before the old one [ends](mlskeyd_protocol::v1::KeyInfo::ends), and until
/// then use [`CustodyIdentity::signer_for`]. KeyPackages with the old key are of no
/// use once it has ended: replace them by [`replace_key_packages`].
///
/// ```no_run
/// use mlskeyd_provider::{CustodyIdentity, CustodyProvider, Migration, follow_rotation};
/// use openmls::prelude::*;
/// # type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
/// # fn send(_: &MlsMessageOut) -> Result<()> { Ok(()) }
///
/// fn to_the_new_key(
///     provider: &CustodyProvider,
///     group: &mut MlsGroup,
///     identity: &mut CustodyIdentity,
/// ) -> Result<()> {
///     identity.refresh()?;
///     if let Migration::Commit(bundle) = follow_rotation(provider, group, identity)? {
///         send(bundle.commit())?;
///         group.merge_pending_commit(provider)?;
///     }
///     Ok(())
/// }
/// ```
///
/// # Errors
/// See [`MigrationError`]. With [`ProviderError::NoKeyOfLeaf`] the old key has
/// ended: the group has to be joined anew.
pub fn follow_rotation<S, C>(
    provider: &CustodyProvider<S, C>,
    group: &mut MlsGroup,
    identity: &CustodyIdentity,
) -> Result<Migration, MigrationError<StorageErrorOf<S>>>
where
    S: StorageProvider<1>,
    C: OpenMlsCrypto + OpenMlsRand,
{
    let signer = identity.signer_for(group)?;
    migrate(provider, group, &signer, identity)
}

/// Takes the own member of `group` out of custody, if the policy permits:
/// makes a commit that replaces the signature key by that of `new_signer` and
/// the leaf's key by one in software. It commits the pending proposals, too.
/// KeyPackages stay in custody: delete them, and publish new ones of the app's
/// own, as soon as the app uses another provider.
///
/// Once it is merged, use the group with a provider of the app's own over the
/// same inner storage: this one makes its keys in custody.
///
/// ```no_run
/// use mlskeyd_provider::{CustodyIdentity, CustodyProvider, Migration, leave};
/// use openmls::prelude::*;
/// use openmls_basic_credential::SignatureKeyPair;
/// # type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
/// # fn send(_: &MlsMessageOut) -> Result<()> { Ok(()) }
///
/// fn out_of_custody(
///     provider: &CustodyProvider,
///     group: &mut MlsGroup,
///     identity: &CustodyIdentity,
///     software: &SignatureKeyPair,
/// ) -> Result<()> {
///     let credential = CredentialWithKey {
///         credential: group.credential()?.clone(),
///         signature_key: software.to_public_vec().into(),
///     };
///     if let Migration::Commit(bundle) = leave(provider, group, identity, software, credential)? {
///         send(bundle.commit())?;
///         group.merge_pending_commit(provider)?;
///     }
///     Ok(())
/// }
/// ```
///
/// # Errors
/// See [`MigrationError`]. With
/// [`FailureCode::Denied`](mlskeyd_protocol::v1::FailureCode::Denied) the
/// policy does not let the app leave.
pub fn leave<S, C>(
    provider: &CustodyProvider<S, C>,
    group: &mut MlsGroup,
    identity: &CustodyIdentity,
    new_signer: &impl Signer,
    new: CredentialWithKey,
) -> Result<Migration, MigrationError<StorageErrorOf<S>>>
where
    S: StorageProvider<1>,
    C: OpenMlsCrypto + OpenMlsRand,
{
    let in_software = |leaf: &LeafCustody| !leaf.encryption.is_in_custody();
    match next_step(provider, group, &new, in_software)? {
        Step::Rotate => {
            let old_signer = identity.signer_for(group)?;
            provider.link().leave_custody(LeaveCustody {
                identity: identity.name().to_owned(),
                group: Bytes::from(group.group_id().as_slice()),
                signature_key: Bytes::from(new.signature_key.as_slice()),
            })?;
            let _software = SoftwareKeys::begin();
            rotate(provider, group, &old_signer, new_signer, new)
        }
        Step::Refresh => {
            let _software = SoftwareKeys::begin();
            refresh(provider, group, new_signer)
        }
        Step::Wait => Ok(Migration::Pending),
        Step::Nothing => Ok(Migration::Done),
    }
}

/// What a move needs next.
enum Step {
    /// A commit with a new signature key or credential, and a new leaf key.
    Rotate,
    /// A commit with a new leaf key: signature key and credential are the new ones already.
    Refresh,
    /// The commit's fate.
    Wait,
    Nothing,
}

/// Reads from the group what a move to the signature key and credential of `new` needs next;
/// `arrived` tells whether a leaf's encryption key is where it should be.
fn next_step<S, C>(
    provider: &CustodyProvider<S, C>,
    group: &MlsGroup,
    new: &CredentialWithKey,
    arrived: impl FnOnce(&LeafCustody) -> bool,
) -> Result<Step, MigrationError<StorageErrorOf<S>>>
where
    S: StorageProvider<1>,
{
    let is_new = |leaf: &LeafNode| {
        *leaf.signature_key() == new.signature_key && *leaf.credential() == new.credential
    };
    if let Some(commit) = group.pending_commit() {
        return if commit.update_path_leaf_node().is_some_and(is_new) {
            Ok(Step::Wait)
        } else {
            Err(MigrationError::OtherCommitPending)
        };
    }
    let own = group.own_leaf_node().ok_or(MigrationError::NoLeaf)?;
    if !is_new(own) {
        return Ok(Step::Rotate);
    }
    let custody = look_up_leaves(provider.link(), &[own])?;
    let done = custody.first().is_some_and(arrived);
    Ok(if done { Step::Nothing } else { Step::Refresh })
}

/// Makes the commit that brings a new signature key or credential, and a new leaf key.
fn rotate<S, C>(
    provider: &CustodyProvider<S, C>,
    group: &mut MlsGroup,
    old_signer: &impl Signer,
    new_signer: &impl Signer,
    credential_with_key: CredentialWithKey,
) -> Result<Migration, MigrationError<StorageErrorOf<S>>>
where
    S: StorageProvider<1>,
    C: OpenMlsCrypto + OpenMlsRand,
{
    let bundle = group
        .commit_builder()
        .load_psks(provider.storage())?
        .build_with_new_signer(
            provider.rand(),
            provider.crypto(),
            old_signer,
            NewSignerBundle {
                signer: new_signer,
                credential_with_key,
            },
            |_| true,
        )?
        .stage_commit(provider)?;
    Ok(Migration::Commit(Box::new(bundle)))
}

/// Makes the commit that brings a new leaf key.
fn refresh<S, C>(
    provider: &CustodyProvider<S, C>,
    group: &mut MlsGroup,
    signer: &impl Signer,
) -> Result<Migration, MigrationError<StorageErrorOf<S>>>
where
    S: StorageProvider<1>,
    C: OpenMlsCrypto + OpenMlsRand,
{
    let bundle = group
        .commit_builder()
        .force_self_update(true)
        .load_psks(provider.storage())?
        .build(provider.rand(), provider.crypto(), signer, |_| true)?
        .stage_commit(provider)?;
    Ok(Migration::Commit(Box::new(bundle)))
}

/// Why KeyPackages were not replaced. Call again: those that are still there
/// will be.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError<E: std::error::Error, P> {
    /// The daemon did not do its part.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// A new KeyPackage could not be made. If the daemon refused,
    /// [`CustodyProvider::last_failure`] has the reason.
    #[error("a KeyPackage could not be made: {0}")]
    Create(#[from] KeyPackageNewError),
    /// The storage failed.
    #[error("the storage failed: {0}")]
    Storage(E),
    /// The app could not publish the new ones.
    #[error("the new KeyPackages were not published")]
    Publish(P),
}

/// Replaces KeyPackages by as many new ones of `identity`, with init and leaf
/// keys in custody. OpenMLS keeps no list of them, so the app names the `old`
/// ones; those that the storage does not have any more are passed over.
///
/// The new ones are made with `builder`, and `publish` has to put them where
/// others look, in place of the old ones. Only then are the old ones deleted:
/// a Welcome that somebody made from one of them meanwhile cannot be opened
/// any more.
///
/// # Errors
/// See [`ReplaceError`].
pub fn replace_key_packages<S, C, P>(
    provider: &CustodyProvider<S, C>,
    identity: &CustodyIdentity,
    ciphersuite: Ciphersuite,
    builder: impl Fn() -> KeyPackageBuilder,
    old: &[KeyPackageRef],
    publish: impl FnOnce(&[KeyPackage]) -> Result<(), P>,
) -> Result<(), ReplaceError<StorageErrorOf<S>, P>>
where
    S: StorageProvider<1>,
    C: OpenMlsCrypto + OpenMlsRand,
{
    let storage = provider.storage();
    let mut replaced = Vec::new();
    for reference in old {
        let bundle: Option<KeyPackageBundle> = storage
            .key_package(reference)
            .map_err(ReplaceError::Storage)?;
        if bundle.is_some() {
            replaced.push(reference);
        }
    }
    let mut fresh = Vec::new();
    for _ in &replaced {
        let bundle = builder().build(
            ciphersuite,
            provider,
            &identity.signer(),
            identity.credential_with_key()?,
        )?;
        fresh.push(bundle.into_key_package());
    }
    publish(&fresh).map_err(ReplaceError::Publish)?;
    for reference in replaced {
        storage
            .delete_key_package(reference)
            .map_err(ReplaceError::Storage)?;
    }
    Ok(())
}
