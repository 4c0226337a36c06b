//! The registry: which keys there are, whose they are, what they are for, who
//! still needs them, and what the guard remembers.
//!
//! One SQLite file in the state directory, and beside it the tombstones of what
//! is destroyed. All changes go through one thread, many to a transaction, and
//! are durable when they are answered; keys and guard marks that are in use are
//! read from memory. Each row carries a MAC under a subkey of the store key,
//! which is checked whenever the row is used.
//!
//! Memory and speed do not depend on how many keys there are.

mod cache;
mod claims;
mod clock;
mod db;
mod error;
mod generations;
mod guard;
mod identities;
mod keys;
mod mac;
mod open;
mod reader;
mod reassign;
mod row;
mod scrub;
#[cfg(test)]
mod tests;
mod tombstones;
mod types;
mod writer;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mlskeyd_protocol::v1::{
    Bytes, Claim, Claimed, Housekeeping, KeyId, KeyInfo, Looked, Owner, ReassignKeys, Reassigned,
    Report, Settle, StorageInfo,
};
use tokio::sync::{mpsc, oneshot};

pub use clock::{SystemClock, TimeSource};
pub use error::{OpenError, StoreError};
pub use reassign::NotReassigned;
pub use scrub::{ScrubPosition, Scrubbed};
pub use types::{
    Binding, Cause, ConnectionId, Counts, CurrentGeneration, Generation, GenerationState, GuardId,
    GuardMark, IdentityRecord, KeyRecord, LifeState, MAX_COMMITS, MAX_GROUPS, MadeKey, NewKey,
    Pending, Rebind, Recredential, Rotation, Settings, Under,
};

use cache::Cache;
use clock::Clock;
use reader::Reading;
use writer::{Message, Task, Tx};

use crate::audit::Tip;
use crate::devices::GenerationId;
use crate::failpoint;

/// Most keys of one page.
const PAGE: u32 = 1000;

/// The registry. Clones share it; when the last one is dropped, what is queued
/// is finished and the file closed.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    /// `None` if the registry is read-only.
    writer: Option<mpsc::Sender<Message>>,
    reader: mpsc::Sender<reader::Message>,
    cache: Arc<Cache>,
    /// `None` if the registry is read-only: then no time is observed.
    clock: Option<Arc<Clock>>,
    read_only: Option<String>,
    /// As the writer's is.
    restores: AtomicU64,
    /// As it was at the start.
    audited: Option<Tip>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("read_only", &self.shared.read_only)
            .finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The threads end when nobody is left to ask them.
        self.writer = None;
        self.reader = mpsc::channel(1).0;
        let threads = self
            .threads
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Registry {
    /// Opens the registry in `dir` (made if need be, mode 0700) and holds it for
    /// this process alone. `mac_key` is a subkey of the store key for this
    /// purpose only.
    ///
    /// With another key than the one that the state was made with it opens
    /// read-only ([`Self::read_only_reason`]): all keys show as missing, nothing
    /// is changed, and all works again when the right key is back.
    ///
    /// # Errors
    /// [`OpenError`], each with what to do next.
    pub fn open(dir: &Path, mac_key: &[u8; 32], settings: Settings) -> Result<Self, OpenError> {
        open::open(dir, mac_key, settings, Arc::new(SystemClock))
    }

    /// As [`Self::open`], with other clocks.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_clock(
        dir: &Path,
        mac_key: &[u8; 32],
        settings: Settings,
        clock: Arc<dyn TimeSource>,
    ) -> Result<Self, OpenError> {
        open::open(dir, mac_key, settings, clock)
    }

    /// Why the registry takes no changes, if it does not.
    #[must_use]
    pub fn read_only_reason(&self) -> Option<&str> {
        self.shared.read_only.as_deref()
    }

    /// Finishes what is queued, writes all to the main file and closes it, even
    /// if there are other clones. Later calls answer [`StoreError::Closed`].
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self
            .shared
            .reader
            .send(reader::Message::Stop(done))
            .await
            .is_ok()
        {
            let _ = closed.await;
        }
        let (done, closed) = oneshot::channel();
        if let Some(writer) = &self.shared.writer
            && writer.send(Message::Stop(done)).await.is_ok()
        {
            let _ = closed.await;
        }
    }

    /// Runs in the writer's next transaction; durable when it answers.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let Some(writer) = &self.shared.writer else {
            return Err(StoreError::ReadOnly(
                self.shared.read_only.clone().unwrap_or_default(),
            ));
        };
        let (reply, answer) = oneshot::channel();
        let task = Task {
            work: Some(work),
            result: None,
            reply,
        };
        writer
            .send(Message::Operation(Box::new(task)))
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reading<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let work = Box::new(move |reading: &Reading<'_>| {
            // The caller may have gone.
            let _ = reply.send(work(reading));
        });
        let sent = self.shared.reader.send(reader::Message::Read(work)).await;
        sent.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// Keys.
impl Registry {
    /// Journals a key, before a device makes it. It stays invisible until
    /// [`Self::finish_create`] or [`Self::create_identity`].
    ///
    /// # Errors
    /// [`StoreError::WrongGeneration`] if the shared generation was destroyed
    /// meanwhile.
    pub async fn begin_create(&self, new: NewKey) -> Result<(), StoreError> {
        self.write(move |tx| keys::begin_create(tx, new)).await?;
        failpoint::hit("store.begin_create.after_commit");
        Ok(())
    }

    /// Makes a journalled key visible, durably, with what the device made.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if it is finished already or its public key is
    /// in custody for this owner.
    pub async fn finish_create(&self, made: MadeKey) -> Result<Arc<KeyRecord>, StoreError> {
        let key = self.write(move |tx| keys::finish_create(tx, made)).await?;
        failpoint::hit("store.finish_create.after_commit");
        Ok(key)
    }

    /// Drops a journalled key that the device did not make, or has destroyed
    /// again. Answers its generation, if it was the last key there: that is to be
    /// destroyed after it.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the key is finished.
    pub async fn abandon_create(&self, id: KeyId) -> Result<Option<Generation>, StoreError> {
        self.write(move |tx| keys::abandon_create(tx, &id)).await
    }

    /// Journals that a key is to be destroyed. From here on it cannot be used
    /// or claimed, and an older copy of the database does not bring it back.
    /// May be repeated.
    ///
    /// # Errors
    /// [`StoreError::NotDue`], [`StoreError::Destroyed`] if that is finished
    /// already, [`StoreError::NotFound`].
    pub async fn begin_destroy(&self, id: KeyId, cause: Cause) -> Result<KeyRecord, StoreError> {
        let key = self
            .write(move |tx| keys::begin_destroy(tx, &id, cause))
            .await?;
        failpoint::hit("store.begin_destroy.after_commit");
        Ok(key)
    }

    /// The device is done: deletes the blob. May be repeated.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if that was not begun.
    pub async fn finish_destroy(&self, id: KeyId) -> Result<(), StoreError> {
        self.write(move |tx| keys::finish_destroy(tx, &id)).await?;
        failpoint::hit("store.finish_destroy.after_commit");
        Ok(())
    }

    /// What was begun and not finished before this run, or in it.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`] if nothing may be repaired.
    pub async fn pending(&self) -> Result<Pending, StoreError> {
        self.write(|tx| {
            let mut pending = Pending::default();
            for key in row::select::<KeyRecord>(tx, "state IN (0, 2)", [])? {
                match key.state {
                    LifeState::Creating => pending.creating.push(key),
                    LifeState::Destroying => pending.destroying.push(key),
                    _ => {}
                }
            }
            for generation in row::select::<Generation>(tx, "state IN (0, 3, 5)", [])? {
                match generation.state {
                    GenerationState::Creating => pending.generations_creating.push(generation),
                    state if state.is_ending() => pending.generations_destroying.push(generation),
                    _ => {}
                }
            }
            Ok(pending)
        })
        .await
    }

    /// The key, unless it is still being made. Look at its state: it may be
    /// destroyed, or missing.
    ///
    /// # Errors
    /// [`StoreError::Tampered`].
    pub async fn key(&self, id: KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        match self.shared.cache.key(&id) {
            Some(key) => Ok(visible(key)),
            None => self.key_on_disk(id).await,
        }
    }

    /// The same as it was committed, which what is in memory is behind for a moment.
    ///
    /// # Errors
    /// [`StoreError::Tampered`].
    pub async fn key_on_disk(&self, id: KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.read(move |reading| reading.key(&id))
            .await
            .map(|key| key.and_then(visible))
    }

    /// The owner's key with this public key, as [`Self::key`].
    ///
    /// # Errors
    /// [`StoreError::Tampered`].
    pub async fn key_by_public(
        &self,
        owner: &Owner,
        public_key: &Bytes,
    ) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        if public_key.is_empty() {
            return Ok(None);
        }
        let name = (owner.clone(), public_key.clone());
        if let Some(key) = self.shared.cache.key_by_public(&name) {
            return Ok(visible(key));
        }
        self.read(move |reading| reading.key_by_public(&name))
            .await
            .map(|key| key.and_then(visible))
    }

    /// Changes what keys of `owner` are for, all or none. A change that is done
    /// already is no error.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if a binding is not what the change was decided
    /// on, [`StoreError::Destroyed`], [`StoreError::NotFound`].
    pub async fn bind(
        &self,
        owner: &Owner,
        changes: Vec<Rebind>,
    ) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
        let owner = owner.clone();
        let bound = self
            .write(move |tx| keys::bind(tx, &owner, changes))
            .await?;
        failpoint::hit("store.bind.after_commit");
        Ok(bound)
    }
}

fn visible(key: Arc<KeyRecord>) -> Option<Arc<KeyRecord>> {
    Some(key).filter(|key| key.state != LifeState::Creating)
}

/// Generations.
impl Registry {
    /// The generation that takes the device's new HPKE keys; a new one is
    /// journalled if the current one is `max_age` old (observed time).
    ///
    /// # Errors
    /// As any change.
    pub async fn current_generation(
        &self,
        device: &str,
        max_age: Duration,
    ) -> Result<CurrentGeneration, StoreError> {
        let device = device.to_owned();
        self.write(move |tx| generations::current(tx, &device, seconds(max_age)))
            .await
    }

    /// The device has made it: it becomes the current one, and the one before
    /// is retired.
    ///
    /// # Errors
    /// [`StoreError::WrongGeneration`] if it was not journalled.
    pub async fn finish_generation(&self, id: GenerationId) -> Result<(), StoreError> {
        self.write(move |tx| generations::finish(tx, &id)).await?;
        failpoint::hit("store.finish_generation.after_commit");
        Ok(())
    }

    /// Whether it takes its device's new HPKE keys.
    ///
    /// # Errors
    /// As any reading.
    pub async fn is_current_generation(&self, id: GenerationId) -> Result<bool, StoreError> {
        self.read(move |reading| generations::is_current(reading.conn, reading.mac, &id))
            .await
    }

    /// It takes no new keys any more, as after its age; nothing of it is destroyed.
    ///
    /// # Errors
    /// As any change.
    pub async fn retire_generation(&self, id: GenerationId) -> Result<(), StoreError> {
        self.write(move |tx| generations::retire(tx, &id)).await?;
        failpoint::hit("store.retire_generation.after_commit");
        Ok(())
    }

    /// Those whose keys have all died, and those whose destruction has begun.
    ///
    /// # Errors
    /// As any reading.
    pub async fn generations_to_destroy(&self) -> Result<Vec<Generation>, StoreError> {
        self.read(|reading| generations::to_destroy(reading.conn, reading.mac))
            .await
    }

    /// The same for one of them, however many there are: one, or none.
    ///
    /// # Errors
    /// As any reading.
    pub async fn generation_to_destroy(
        &self,
        id: GenerationId,
    ) -> Result<Vec<Generation>, StoreError> {
        self.read(move |reading| generations::to_destroy_of(reading.conn, reading.mac, &id))
            .await
    }

    /// Whether the registry knows of anything alive on the device: then the
    /// device must not begin anew.
    ///
    /// # Errors
    /// As any reading.
    pub async fn knows_device(&self, device: &str) -> Result<bool, StoreError> {
        let device = device.to_owned();
        self.read(move |reading| generations::any_of(reading.conn, &device))
            .await
    }

    /// Journals that a generation is to be destroyed. It takes no keys from
    /// here on. May be repeated. Answers the state that it is in then.
    ///
    /// # Errors
    /// [`StoreError::WrongGeneration`] if it holds living keys.
    pub async fn begin_destroy_generation(
        &self,
        id: GenerationId,
    ) -> Result<GenerationState, StoreError> {
        let state = self
            .write(move |tx| generations::begin_destroy(tx, &id))
            .await?;
        failpoint::hit("store.begin_destroy_generation.after_commit");
        Ok(state)
    }

    /// The device has destroyed it. May be repeated.
    ///
    /// # Errors
    /// [`StoreError::WrongGeneration`] if that was not begun.
    pub async fn finish_destroy_generation(&self, id: GenerationId) -> Result<(), StoreError> {
        self.write(move |tx| generations::finish_destroy(tx, &id))
            .await?;
        failpoint::hit("store.finish_destroy_generation.after_commit");
        Ok(())
    }
}

/// Identities, permits to leave, guard marks.
impl Registry {
    /// Has the owner room for one more identity? To be asked before a device makes
    /// a key in vain; [`Self::create_identity`] asks again.
    ///
    /// # Errors
    /// [`StoreError::Limit`] if not.
    pub async fn check_takes_identity(&self, owner: &Owner) -> Result<(), StoreError> {
        let owner = owner.clone();
        self.read(move |reading| identities::check_takes_one_more(reading.conn, &owner))
            .await
    }

    /// Makes a journalled signature key visible, together with its identity; if that was
    /// decided on by how many `others` the owner has, only if it still has so many.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if there is an identity of this name,
    /// [`StoreError::Outrun`] if the owner has another number of others by now,
    /// [`StoreError::Limit`] if there are too many: the key stays journalled, and is
    /// to be destroyed and abandoned.
    pub async fn create_identity(
        &self,
        identity: IdentityRecord,
        made: MadeKey,
        others: Option<u64>,
    ) -> Result<Arc<KeyRecord>, StoreError> {
        let key = self
            .write(move |tx| identities::create(tx, identity, made, others))
            .await?;
        failpoint::hit("store.create_identity.after_commit");
        Ok(key)
    }

    /// Makes a journalled signature key an identity's current one, and gives the
    /// one before its end.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the identity has another key by now,
    /// [`StoreError::Limit`] if too many of its keys retire already: the new key
    /// stays journalled, and is to be destroyed and abandoned.
    pub async fn rotate_identity(
        &self,
        rotation: Rotation,
    ) -> Result<(IdentityRecord, Arc<KeyRecord>), StoreError> {
        let rotated = self
            .write(move |tx| identities::rotate(tx, rotation))
            .await?;
        failpoint::hit("store.rotate_identity.after_commit");
        Ok(rotated)
    }

    /// Makes a journalled signature key the one that an identity has once its certificate
    /// is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]: the new key stays journalled, and is to be destroyed and
    /// abandoned.
    pub async fn prepare_key(
        &self,
        owner: Owner,
        name: String,
        made: MadeKey,
    ) -> Result<Arc<KeyRecord>, StoreError> {
        self.write(move |tx| identities::prepare(tx, &owner, &name, made))
            .await
    }

    /// Pins another credential to an identity.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if it has another credential, or no such key, by now;
    /// [`StoreError::Limit`] if too many of its keys retire already.
    pub async fn recredential(
        &self,
        update: Recredential,
    ) -> Result<(IdentityRecord, Arc<KeyRecord>), StoreError> {
        let pinned = self
            .write(move |tx| identities::recredential(tx, update))
            .await?;
        failpoint::hit("store.recredential.after_commit");
        Ok(pinned)
    }

    /// The owner's identity of this name.
    ///
    /// # Errors
    /// [`StoreError::Tampered`].
    pub async fn identity(
        &self,
        owner: &Owner,
        name: &str,
    ) -> Result<Option<IdentityRecord>, StoreError> {
        let (owner, name) = (owner.clone(), name.to_owned());
        self.read(move |reading| {
            reading.if_verifiable(|conn, mac| identities::get(conn, mac, &owner, &name))
        })
        .await
    }

    /// All identities, or an owner's, by owner and name.
    ///
    /// # Errors
    /// As any reading.
    pub async fn identities(
        &self,
        owner: Option<&Owner>,
    ) -> Result<Vec<IdentityRecord>, StoreError> {
        let owner = owner.cloned();
        self.read(move |reading| {
            reading.if_verifiable(|conn, mac| identities::list(conn, mac, owner.as_ref()))
        })
        .await
    }

    /// Permits an identity to leave custody in one group, to this signature
    /// key.
    ///
    /// # Errors
    /// As any change.
    pub async fn permit_leave(&self, of: GuardId, signature_key: Bytes) -> Result<(), StoreError> {
        self.write(move |tx| identities::permit_leave(tx, of, signature_key))
            .await
    }

    /// The signature key to which the identity may leave in this group.
    ///
    /// # Errors
    /// [`StoreError::Tampered`].
    pub async fn leave_permit(&self, of: &GuardId) -> Result<Option<Bytes>, StoreError> {
        let of = of.clone();
        self.read(move |reading| {
            reading.if_verifiable(|conn, mac| identities::leave_permit(conn, mac, &of))
        })
        .await
    }

    /// Uses such a permit up; `false` if there was none for this signature key.
    ///
    /// # Errors
    /// [`StoreError::Tampered`].
    pub async fn use_leave_permit(
        &self,
        of: GuardId,
        signature_key: Bytes,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| identities::use_leave_permit(tx, &of, &signature_key))
            .await
    }

    /// How often an older copy of the registry was found to have been put back. A guard
    /// mark with a smaller number may be older than what was signed.
    #[must_use]
    pub fn restores(&self) -> u64 {
        self.shared.restores.load(Ordering::Acquire)
    }

    /// Where the audit log ended that the marks were last compared with
    /// ([`set_audited`](Self::set_audited)), before this start.
    #[must_use]
    pub fn audited(&self) -> Option<Tip> {
        self.shared.audited
    }

    /// The guard's marks are as new as the audit log up to there.
    ///
    /// # Errors
    /// As any change.
    pub async fn set_audited(&self, end: Tip) -> Result<(), StoreError> {
        self.write(move |tx| {
            tx.live.meta.audited = Some(end);
            tx.live.meta.write(tx.conn, tx.mac)
        })
        .await
    }

    /// An older copy of the registry was put back, so that none of the guard's marks of before is
    /// known to be the newest.
    ///
    /// # Errors
    /// As any change.
    pub async fn mark_restored(&self) -> Result<(), StoreError> {
        let restores = self
            .write(move |tx| {
                let meta = &mut tx.live.meta;
                meta.restores = meta.restores.saturating_add(1);
                tx.live.meta.write(tx.conn, tx.mac)?;
                Ok(tx.live.meta.restores)
            })
            .await?;
        self.shared.restores.store(restores, Ordering::Release);
        Ok(())
    }

    /// Evidence was made that the key is in hardware.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn attested(&self, id: KeyId) -> Result<(), StoreError> {
        self.write(move |tx| keys::attested(tx, &id)).await
    }

    /// The guard mark, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Tampered`].
    pub async fn guard_mark(&self, of: &GuardId) -> Result<Option<Arc<GuardMark>>, StoreError> {
        if let Some(mark) = self.shared.cache.guard(of) {
            return Ok(Some(mark));
        }
        let of = of.clone();
        self.read(move |reading| reading.guard(of)).await
    }

    /// Changes a guard mark to what `decide` says of the present one, durably
    /// and without another change in between. Nothing is written if it says the
    /// same, or refuses.
    ///
    /// # Errors
    /// [`StoreError::Limit`] above [`MAX_COMMITS`], [`StoreError::Tampered`].
    pub async fn update_guard<E: Send + 'static>(
        &self,
        of: GuardId,
        decide: impl FnOnce(Option<&GuardMark>) -> Result<GuardMark, E> + Send + 'static,
    ) -> Result<Result<Arc<GuardMark>, E>, StoreError> {
        self.change_guard(move |tx| guard::update(tx, of, decide))
            .await
    }

    /// The same for a signature that is to be made: only while the identity is its owner's.
    ///
    /// # Errors
    /// As [`Self::update_guard`]; [`StoreError::NotFound`] if it is not any more.
    pub async fn reserve_guard<E: Send + 'static>(
        &self,
        of: GuardId,
        decide: impl FnOnce(Option<&GuardMark>) -> Result<GuardMark, E> + Send + 'static,
    ) -> Result<Result<Arc<GuardMark>, E>, StoreError> {
        let update = move |tx: &mut Tx<'_>| {
            let identity = identities::get(tx.conn, tx.mac, &of.owner, &of.identity)?;
            identity.ok_or(StoreError::NotFound("identity"))?;
            guard::update(tx, of, decide)
        };
        self.change_guard(update).await
    }

    async fn change_guard<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let outcome = self.write(work).await?;
        failpoint::hit("store.guard.after_commit");
        Ok(outcome)
    }
}

/// Owners.
impl Registry {
    /// What [`Self::reassign`] would give to another owner. Changes nothing.
    ///
    /// # Errors
    /// As any change.
    pub async fn plan_reassignment(
        &self,
        order: ReassignKeys,
    ) -> Result<Result<Reassigned, NotReassigned>, StoreError> {
        self.write(move |tx| reassign::plan(tx, &order)).await
    }

    /// Gives what an owner has to another one, all that was ordered or nothing; `permit` is
    /// asked last, about the identities. With `once` the new owner has taken that over, as it
    /// does once only.
    ///
    /// # Errors
    /// As any change.
    pub async fn reassign(
        &self,
        order: ReassignKeys,
        once: bool,
        permit: impl FnOnce(&[IdentityRecord]) -> Result<(), NotReassigned> + Send + 'static,
    ) -> Result<Result<Reassigned, NotReassigned>, StoreError> {
        let work = move |tx: &mut Tx<'_>| reassign::reassign(tx, &order, once, permit);
        let reassigned = self.write(work).await?;
        failpoint::hit("store.reassign.after_commit");
        Ok(reassigned)
    }

    /// Has the owner taken over what was another's, or is not to do so any more?
    ///
    /// # Errors
    /// [`StoreError::Tampered`].
    pub async fn has_taken_over(&self, owner: &Owner) -> Result<bool, StoreError> {
        let owner = owner.clone();
        self.read(move |reading| {
            reading.if_verifiable(|conn, mac| reassign::has_taken_over(conn, mac, &owner))
        })
        .await
    }

    /// The owner takes nothing over any more.
    ///
    /// # Errors
    /// As any change.
    pub async fn mark_taken_over(&self, owner: Owner) -> Result<(), StoreError> {
        self.write(move |tx| reassign::mark_taken_over(tx, &owner))
            .await
    }
}

/// Claims.
impl Registry {
    /// Connects a storage to a connection. One storage may have several.
    ///
    /// # Errors
    /// As any change.
    pub async fn attach(
        &self,
        owner: &Owner,
        storage: String,
        ends: bool,
        connection: ConnectionId,
    ) -> Result<Housekeeping, StoreError> {
        let owner = owner.clone();
        self.write(move |tx| claims::attach(tx, &owner, &storage, ends, connection))
            .await
    }

    /// The connection is gone: detaches its storages, and makes orphans of its
    /// keys that were never claimed.
    ///
    /// # Errors
    /// As any change.
    pub async fn connection_closed(&self, connection: ConnectionId) -> Result<(), StoreError> {
        self.write(move |tx| claims::connection_closed(tx, connection))
            .await
    }

    /// Holds what a record holds and will hold, until that is settled.
    ///
    /// # Errors
    /// As any change; a key that cannot be claimed is no error but `lost`.
    pub async fn claim(&self, owner: &Owner, claim: Claim) -> Result<Claimed, StoreError> {
        let owner = owner.clone();
        let claimed = self
            .write(move |tx| claims::claim(tx, &owner, &claim))
            .await?;
        failpoint::hit("store.claim.after_commit");
        Ok(claimed)
    }

    /// Drops what a storage no longer holds.
    ///
    /// # Errors
    /// As any change; what is unknown or outdated is ignored.
    pub async fn settle(&self, owner: &Owner, settle: Settle) -> Result<Housekeeping, StoreError> {
        let owner = owner.clone();
        let housekeeping = self
            .write(move |tx| claims::settle(tx, &owner, &settle))
            .await?;
        failpoint::hit("store.settle.after_commit");
        Ok(housekeeping)
    }

    /// Takes in events that decide which records live.
    ///
    /// # Errors
    /// As any change.
    pub async fn report(&self, owner: &Owner, report: Report) -> Result<Housekeeping, StoreError> {
        let owner = owner.clone();
        let housekeeping = self
            .write(move |tx| claims::report(tx, &owner, &report))
            .await?;
        failpoint::hit("store.report.after_commit");
        Ok(housekeeping)
    }

    /// Takes in the answer to a last look.
    ///
    /// # Errors
    /// As any change; answers that nobody waits for are ignored.
    pub async fn looked(&self, owner: &Owner, looked: Looked) -> Result<Housekeeping, StoreError> {
        let owner = owner.clone();
        let housekeeping = self
            .write(move |tx| claims::looked(tx, &owner, &looked))
            .await?;
        failpoint::hit("store.looked.after_commit");
        Ok(housekeeping)
    }

    /// Keys whose time has come, at most `limit`; each is to be destroyed with
    /// [`Cause::Due`], which looks again. Call until it answers none.
    ///
    /// # Errors
    /// As any change.
    pub async fn destroyable(&self, limit: usize) -> Result<Vec<KeyId>, StoreError> {
        self.write(move |tx| claims::destroyable(tx, limit)).await
    }

    /// How long until [`Self::destroyable`] has something to do; `None` if
    /// nothing waits, so that no timer is needed.
    ///
    /// # Errors
    /// As any change.
    pub async fn next_due(&self) -> Result<Option<Duration>, StoreError> {
        self.write(|tx| claims::next_due(tx)).await
    }

    /// How many keys wait for the last look of a storage.
    ///
    /// # Errors
    /// As any change.
    pub async fn waiting(&self) -> Result<u64, StoreError> {
        self.write(|tx| claims::waiting(tx)).await
    }

    /// The storages, by owner and name.
    ///
    /// # Errors
    /// As any change.
    pub async fn storages(&self) -> Result<Vec<StorageInfo>, StoreError> {
        self.write(|tx| claims::list(tx)).await
    }

    /// Forgets a storage with all of its claims; answers how many records that
    /// were.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn forget_storage(&self, owner: &Owner, name: &str) -> Result<u32, StoreError> {
        let (owner, name) = (owner.clone(), name.to_owned());
        self.write(move |tx| claims::forget(tx, &owner, &name))
            .await
    }
}

/// Looking at it.
impl Registry {
    /// How much there is.
    ///
    /// # Errors
    /// As any reading.
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        self.read(|reading| reading.counts()).await
    }

    /// Is the key's end over, as its own authenticated row says? It may not be
    /// destroyed yet, and if somebody hid it from the sweep it never is. Judged by
    /// observed time, so that no date ends a key or keeps it.
    #[must_use]
    pub fn has_ended(&self, key: &KeyRecord) -> bool {
        let clock = self.shared.clock.as_ref();
        key.is_retiring() && clock.is_some_and(|clock| key.has_ended(clock.now().observed))
    }

    /// The key as apps and administrators see it. One with a PIN shows as locked: only
    /// its device knows better.
    #[must_use]
    pub fn info(&self, key: &KeyRecord) -> KeyInfo {
        key.info(self.shared.clock.as_ref().map(|clock| clock.now()))
    }

    /// At most 1000 keys with the number of records that claim each, by id,
    /// from after `after`; with those that are destroyed if asked. Keys that do
    /// not verify show as missing.
    ///
    /// # Errors
    /// As any reading.
    pub async fn keys_page(
        &self,
        after: Option<KeyId>,
        destroyed: bool,
    ) -> Result<Vec<(KeyRecord, u32)>, StoreError> {
        self.read(move |reading| keys::page(reading.conn, reading.mac, after, destroyed, PAGE))
            .await
    }

    /// At most 1000 keys of an owner that are not destroyed, by id, from after `after`. Keys
    /// that do not verify show as missing.
    ///
    /// # Errors
    /// As any reading.
    pub async fn keys_of(
        &self,
        owner: Owner,
        after: Option<KeyId>,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        self.read(move |reading| keys::of_owner(reading.conn, reading.mac, &owner, after, PAGE))
            .await
    }

    /// Verifies the next `batch` rows; for a background pass over all.
    ///
    /// # Errors
    /// As any reading. Rows that do not verify are no error but listed; so are those
    /// that are misplaced, which are then put right.
    pub async fn scrub(&self, from: ScrubPosition, batch: u32) -> Result<Scrubbed, StoreError> {
        let scrubbed = self.read(move |reading| scrub::scrub(reading, from, batch));
        let (scrubbed, disorder) = scrubbed.await?;
        if let Some(disorder) = disorder {
            self.write(move |tx| scrub::put_right(tx, &disorder))
                .await?;
        }
        Ok(scrubbed)
    }
}

/// SQLite's integers are signed: times and numbers never come near the end.
fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Whole seconds: what observed time is counted in.
const fn seconds(time: Duration) -> u64 {
    time.as_secs()
}
