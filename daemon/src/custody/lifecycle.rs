//! Making and destroying keys, step by step so that no step is lost: journal,
//! device, registry. And the one task that destroys what is due.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mlskeyd_protocol::v1::{
    Algorithm, Bytes, Failure, FailureCode, KeyId, Owner, SignatureScheme, Swept,
};
use rand_core::{OsRng, RngCore};

use super::generate::Place;
use super::subject::Subject;
use super::{Call, Custody, Session, failure};
use crate::audit::{AuditOutcome, Durability, Record};
use crate::devices::{self, DeviceError, GenerationId};
use crate::store::{
    Cause, CurrentGeneration, Generation, IdentityRecord, KeyRecord, LifeState, MadeKey, NewKey,
    StoreError, Under,
};

/// Most keys that are destroyed between two looks at the clock.
const SWEEP_BATCH: usize = 64;

/// How often a new key asks for a generation, when the one that it got is
/// destroyed before it is in there.
const GENERATION_TRIES: u32 = 3;

/// How long generations wait whose device failed to destroy them.
const STUCK_PERIOD: Duration = Duration::from_secs(60);

/// What repair at start found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Keys that were being made: undone.
    pub undone: u64,
    /// Keys that were being destroyed: destroyed in the registry.
    pub destroyed: u64,
}

/// How many generations were not destroyed, for the fault of their device.
type Stuck = u64;

/// A key that is to be made or adopted, and for whom.
pub(super) struct Order<'a> {
    pub(super) owner: &'a Owner,
    pub(super) algorithm: Algorithm,
    pub(super) place: &'a Place,
    /// Of a signature key.
    pub(super) identity: Option<&'a str>,
}

/// What came of an order for a key.
enum Tried {
    Made(MadeKey),
    /// The device does not have the generation any more that new keys go under.
    Lost(GenerationId),
}

impl Session {
    /// The caller's key with this id, which the request is then about.
    ///
    /// Another caller's is answered like one that is not there, whatever state
    /// it is in: an id is no oracle. The record says what it was.
    pub(super) async fn key(
        &self,
        id: KeyId,
        subject: &mut Subject,
    ) -> Result<Arc<KeyRecord>, Failure> {
        let key = self.custody().registry.key(id).await;
        let key = key.map_err(failure::of_store)?;
        let key = key.ok_or_else(|| failure::not_found("key").about_key(id))?;
        subject.about_key(Arc::clone(&key));
        if key.owner != self.caller().owner {
            subject.denied = Some(("rule/owner".into(), "the key is another caller's".into()));
            return Err(failure::not_found("key").about_key(id));
        }
        usable(key)
    }

    /// The caller's identity with this name, and its key.
    pub(super) async fn identity(
        &self,
        name: &str,
    ) -> Result<Option<(IdentityRecord, Arc<KeyRecord>)>, Failure> {
        let custody = self.custody();
        let record = custody.registry.identity(&self.caller().owner, name).await;
        match record.map_err(failure::of_store)? {
            Some(record) => {
                let key = custody.key(record.key).await?;
                Ok(Some((record, key)))
            }
            None => Ok(None),
        }
    }

    /// Makes a key and puts it on disk before anybody hears of it.
    pub(super) async fn create_key(
        &self,
        algorithm: Algorithm,
        place: &Place,
        call: &Call,
    ) -> Result<Arc<KeyRecord>, Failure> {
        let order = Order {
            owner: &self.caller().owner,
            algorithm,
            place,
            identity: None,
        };
        let made = self.make_key(&order, call).await?;
        let custody = self.custody();
        let id = made.id;
        let key = match custody.registry.finish_create(made).await {
            Ok(key) => key,
            Err(error) => {
                custody.undo_creation(id).await;
                return Err(failure::of_store(error));
            }
        };
        custody.due.notify_one();
        Ok(key)
    }

    /// Journals a key and has the device make it. It is nothing until the
    /// registry has finished it.
    ///
    /// A generation that the device has lost is given up, and the key made under a
    /// new one: once, since a device that loses that, too, does not keep keys.
    pub(super) async fn make_key(
        &self,
        order: &Order<'_>,
        call: &Call,
    ) -> Result<MadeKey, Failure> {
        match self.try_make_key(order, call).await? {
            Tried::Made(key) => return Ok(key),
            Tried::Lost(generation) => {
                let custody = self.custody();
                custody
                    .give_up_generation(generation, &order.place.device, call)
                    .await?;
            }
        }
        match self.try_make_key(order, call).await? {
            Tried::Made(key) => Ok(key),
            Tried::Lost(generation) => {
                let lost = DeviceError::GenerationGone(generation);
                Err(failure::of_run(lost.into(), &order.place.device))
            }
        }
    }

    async fn try_make_key(&self, order: &Order<'_>, call: &Call) -> Result<Tried, Failure> {
        let id = KeyId::from_bytes(random_id());
        let under = self.generation_for(order, call, id).await?;
        let (algorithm, tier) = (order.algorithm, order.place.tier);
        let made = self.have_made(id, order.place, call, move |device| {
            let generator = device
                .generator()
                .ok_or(DeviceError::CannotDo("make keys"))?;
            let (Under::Own(generation) | Under::Shared(generation)) = under;
            if matches!(under, Under::Own(_)) {
                generator.create_generation(generation)?;
            }
            let made = generator.generate(devices::NewKey {
                id,
                algorithm,
                tier,
                generation,
            });
            match (made, under) {
                (Err(DeviceError::GenerationGone(_)), Under::Shared(_)) => Ok(None),
                (made, _) => made.map(Some),
            }
        });
        match (made.await?, under) {
            (Some(key), _) => Ok(Tried::Made(made_key(key))),
            (None, Under::Own(generation) | Under::Shared(generation)) => {
                self.custody().undo_creation(id).await;
                Ok(Tried::Lost(generation))
            }
        }
    }

    /// Journals a signature key that is on the device already, and has the device
    /// find it. As [`Self::make_key`]; no generation is made, since nothing is to
    /// be destroyed.
    pub(super) async fn adopt_key(
        &self,
        order: &Order<'_>,
        scheme: SignatureScheme,
        label: String,
        call: &Call,
    ) -> Result<MadeKey, Failure> {
        let id = KeyId::from_bytes(random_id());
        let generation = GenerationId::from_bytes(random_id());
        let journalled = self.journal(id, order, Under::Own(generation), true).await;
        journalled.map_err(failure::of_store)?;
        let adoption = devices::Adoption {
            id,
            label,
            scheme,
            generation,
        };
        self.have_made(id, order.place, call, move |device| {
            let adopter = device
                .adopter()
                .ok_or(DeviceError::CannotDo("adopt keys"))?;
            adopter.adopt(&adoption)
        })
        .await
        .map(made_key)
    }

    /// Has the device do what makes a journalled key; what fails is undone.
    async fn have_made<T: Send + 'static>(
        &self,
        id: KeyId,
        place: &Place,
        call: &Call,
        job: impl FnOnce(&mut dyn devices::Device) -> Result<T, DeviceError> + Send + 'static,
    ) -> Result<T, Failure> {
        let custody = self.custody();
        let caller = &self.caller().owner;
        let made = custody.devices.run(&place.device, caller, call, job).await;
        crate::failpoint::hit("custody.create.made");
        if made.is_err() {
            custody.undo_creation(id).await;
        }
        made
    }

    /// Journals a key under the generation that it is to have.
    async fn generation_for(
        &self,
        order: &Order<'_>,
        call: &Call,
        id: KeyId,
    ) -> Result<Under, Failure> {
        let device = &order.place.device;
        for _ in 0..GENERATION_TRIES {
            let generation = match order.algorithm {
                // Its destruction has to be real, and it lives alone for years.
                Algorithm::Signature(_) => Under::Own(GenerationId::from_bytes(random_id())),
                Algorithm::Hpke(_) => Under::Shared(
                    self.custody()
                        .current_generation(device, &self.caller().owner, call)
                        .await?,
                ),
            };
            match self.journal(id, order, generation, false).await {
                Ok(()) => return Ok(generation),
                // Its last key has died meanwhile, and it with that key.
                Err(StoreError::WrongGeneration) => {}
                Err(error) => return Err(failure::of_store(error)),
            }
        }
        Err(Failure::new(
            FailureCode::Busy,
            "keys are being destroyed as fast as this one could be made",
            "repeat the request",
        )
        .at_device(device))
    }

    async fn journal(
        &self,
        id: KeyId,
        order: &Order<'_>,
        generation: Under,
        adopted: bool,
    ) -> Result<(), StoreError> {
        let new = NewKey {
            id,
            owner: order.owner.clone(),
            algorithm: order.algorithm,
            device: order.place.device.clone(),
            tier: order.place.tier,
            generation,
            identity: order.identity.map(str::to_owned),
            adopted,
            connection: Some(self.connection()),
            created: unix_now(),
        };
        self.custody().registry.begin_create(new).await
    }
}

impl Custody {
    /// A key that is there and usable, whoever owns it.
    pub(super) async fn key(&self, id: KeyId) -> Result<Arc<KeyRecord>, Failure> {
        let key = self.registry.key(id).await.map_err(failure::of_store)?;
        usable(key.ok_or_else(|| failure::not_found("key").about_key(id))?)
    }

    /// The generation that new HPKE keys of a device go under, made if need be.
    async fn current_generation(
        &self,
        device: &str,
        owner: &Owner,
        call: &Call,
    ) -> Result<GenerationId, Failure> {
        let _turn = self.devices.generation_turn(device, call.deadline).await?;
        let max_age = Duration::from_secs(self.settings.generation_age);
        let current = self.registry.current_generation(device, max_age).await;
        match current.map_err(failure::of_store)? {
            CurrentGeneration::Existing(id) => Ok(id),
            CurrentGeneration::CreateNew(id) => {
                let made = self
                    .devices
                    .run(device, owner, call, move |device| {
                        let generator = device
                            .generator()
                            .ok_or(DeviceError::CannotDo("make keys"))?;
                        match generator.create_generation(id) {
                            Err(DeviceError::GenerationExists(_)) => Ok(()),
                            result => result,
                        }
                    })
                    .await;
                if let Err(failure) = made {
                    self.undo_generation(id).await;
                    return Err(failure);
                }
                crate::failpoint::hit("custody.generation.made");
                self.registry
                    .finish_generation(id)
                    .await
                    .map_err(failure::of_store)?;
                self.due.notify_one();
                Ok(id)
            }
        }
    }

    /// Puts no more keys under a generation that its device does not have any more:
    /// somebody else has destroyed it there. Its keys stay as they are, and are
    /// missing: what is gone may come back, from a copy of the device.
    async fn give_up_generation(
        &self,
        id: GenerationId,
        device: &str,
        call: &Call,
    ) -> Result<(), Failure> {
        let _turn = self.devices.generation_turn(device, call.deadline).await?;
        let current = self.registry.is_current_generation(id).await;
        if !current.map_err(failure::of_store)? {
            // Another request has met it, too.
            return Ok(());
        }
        tracing::error!(generation = %id, device,
            "the generation of new keys is not on its device any more, and was not destroyed by this daemon: its keys are missing, and new ones get another generation");
        let note = format!(
            "generation {id} is not on the device any more, and was not destroyed by this \
             daemon: its keys are missing, and new ones get another generation"
        );
        let mut record = Record::new("GenerationLost", AuditOutcome::Noted { note: note.into() });
        record.device = Some(device.to_owned());
        self.audit
            .append(record, Durability::Now)
            .await
            .map_err(failure::of_audit)?;
        let retired = self.registry.retire_generation(id).await;
        retired.map_err(failure::of_store)?;
        self.due.notify_one();
        Ok(())
    }

    /// Takes back a generation that the device did not make, or made without an
    /// answer.
    async fn undo_generation(&self, id: GenerationId) {
        let undo = async {
            let begun = self.registry.begin_destroy_generation(id).await;
            begun.map_err(failure::of_store)?;
            let idle = self.registry.generations_to_destroy().await;
            let mut idle = idle.map_err(failure::of_store)?;
            idle.retain(|generation| generation.id == id);
            self.destroy_generations(idle).await
        };
        if let Err(error) = undo.await {
            tracing::warn!(generation = %id, %error, "a generation that could not be made is undone at the next start");
        }
    }

    /// Takes back a creation that failed: what the device may have made of it
    /// is destroyed.
    pub(super) async fn undo_creation(&self, id: KeyId) {
        if let Err(error) = self.try_undo_creation(id).await {
            tracing::warn!(key = %id, %error, "a key that could not be made is undone at the next start");
        }
    }

    async fn try_undo_creation(&self, id: KeyId) -> Result<(), Failure> {
        let own = self.registry.abandon_create(id).await;
        let own = own.map_err(failure::of_store)?;
        self.destroy_generations(own.into_iter().collect()).await?;
        Ok(())
    }

    /// Destroys a key that is due, durably: tombstone, record, registry,
    /// device. `false`: it is needed again.
    async fn destroy_key(&self, id: KeyId) -> Result<bool, Failure> {
        self.can_record()?;
        match self.registry.begin_destroy(id, Cause::Due).await {
            Ok(key) => {
                self.finish_destroying(&key).await?;
                let idle = self.registry.generation_to_destroy(key.generation).await;
                let idle = idle.map_err(failure::of_store)?;
                if idle.is_empty() {
                    self.give_back_room(&key).await;
                } else {
                    self.destroy_generations(idle).await?;
                }
                Ok(true)
            }
            // A claim, or another sweep, came first.
            Err(StoreError::NotDue(_) | StoreError::Destroyed(_)) => Ok(false),
            Err(error) => Err(failure::of_store(error)),
        }
    }

    async fn finish_destroying(&self, key: &KeyRecord) -> Result<(), Failure> {
        // Before the journal forgets it: rather twice on record than never.
        let mut record = Record::new(
            "Destroy",
            AuditOutcome::Noted {
                note: why_destroyed(key).into(),
            },
        );
        record.key = Some(key.id);
        record.identity.clone_from(&key.identity);
        record.device = Some(key.device.clone());
        self.audit
            .append(record, Durability::Now)
            .await
            .map_err(failure::of_audit)?;
        self.registry
            .finish_destroy(key.id)
            .await
            .map_err(failure::of_store)
    }

    /// Gives back what a destroyed key takes on its device, whose generation lives
    /// on. If the device does not answer, that is given back with the generation.
    async fn give_back_room(&self, key: &KeyRecord) {
        if !self.devices.is_there(&key.device).await {
            return;
        }
        let stored = key.stored();
        let destroy = move |device: &mut dyn devices::Device| match device.destroyer() {
            Some(destroyer) => destroyer.destroy_key(&stored),
            None => Ok(()),
        };
        if let Err(error) = self.devices.run_own(&key.device, destroy).await {
            tracing::warn!(key = %key.id, device = key.device, %error,
                "what a destroyed key takes on its device is given back with its generation");
        }
    }

    /// Destroys the generations whose last key has gone, and those whose device did
    /// not answer: only then nothing of their keys is left, whatever copies of the
    /// registry there are.
    async fn destroy_all_idle(&self) -> Result<Stuck, Failure> {
        let idle = self.registry.generations_to_destroy().await;
        self.destroy_generations(idle.map_err(failure::of_store)?)
            .await
    }

    /// Each device by itself: one that does not answer keeps its own generations,
    /// and no other's.
    async fn destroy_generations(&self, idle: Vec<Generation>) -> Result<Stuck, Failure> {
        let mut by_device: BTreeMap<String, Vec<Generation>> = BTreeMap::new();
        for generation in idle {
            let of_device = by_device.entry(generation.device.clone()).or_default();
            of_device.push(generation);
        }
        let devices = by_device.into_iter();
        let each = devices.map(|(name, idle)| self.destroy_generations_of(name, idle));
        let stuck = futures::future::try_join_all(each).await?;
        Ok(stuck.into_iter().sum())
    }

    async fn destroy_generations_of(
        &self,
        device: String,
        idle: Vec<Generation>,
    ) -> Result<Stuck, Failure> {
        let mut stuck: Stuck = 0;
        let mut answers = self.devices.is_there(&device).await;
        for generation in idle {
            let begun = self.registry.begin_destroy_generation(generation.id).await;
            match begun {
                Ok(()) => {}
                // It got a key meanwhile.
                Err(StoreError::WrongGeneration) => continue,
                Err(error) => return Err(failure::of_store(error)),
            }
            if !answers {
                // It is on record that it is to be destroyed, when the device is
                // ready again or with the next sweep.
                stuck = stuck.saturating_add(1);
                continue;
            }
            if let Err(error) = self.let_go(&generation).await {
                tracing::warn!(generation = %generation.id, device, %error,
                    "destroyed keys can be brought back from an old copy of the registry until their device lets go of them");
                answers = false;
                stuck = stuck.saturating_add(1);
                continue;
            }
            crate::failpoint::hit("custody.generation.destroyed");
            self.registry
                .finish_destroy_generation(generation.id)
                .await
                .map_err(failure::of_store)?;
        }
        Ok(stuck)
    }

    async fn let_go(&self, generation: &Generation) -> Result<(), Failure> {
        let id = generation.id;
        let destroy = move |device: &mut dyn devices::Device| {
            let destroyer = device
                .destroyer()
                .ok_or(DeviceError::CannotDo("destroy keys"))?;
            destroyer.destroy_generation(id)
        };
        self.devices.run_own(&generation.device, destroy).await
    }

    /// Finishes what a dead predecessor began. What might be in use is never
    /// deleted: only keys that nobody can have heard of, and keys that are dead
    /// by the journal. No device is asked: what they have to destroy waits until
    /// they are ready.
    ///
    /// # Errors
    /// The first step of the registry or the audit log that failed; the journal
    /// still names the rest.
    pub async fn repair(&self) -> Result<Repaired, Failure> {
        if self.registry.read_only_reason().is_some() {
            return Ok(Repaired::default());
        }
        let pending = self.registry.pending().await.map_err(failure::of_store)?;
        let mut repaired = Repaired::default();
        for key in pending.creating {
            self.registry
                .abandon_create(key.id)
                .await
                .map_err(failure::of_store)?;
            repaired.undone = repaired.undone.saturating_add(1);
        }
        for key in pending.destroying {
            // Again: its tombstone may be what is missing.
            let begun = self.registry.begin_destroy(key.id, Cause::Due).await;
            let key = begun.map_err(failure::of_store)?;
            self.finish_destroying(&key).await?;
            repaired.destroyed = repaired.destroyed.saturating_add(1);
        }
        for generation in pending.generations_creating {
            // Nobody knows whether it was made: it is destroyed as if it was.
            let begun = self.registry.begin_destroy_generation(generation.id).await;
            begun.map_err(failure::of_store)?;
        }
        Ok(repaired)
    }

    /// Destroys what is due now.
    ///
    /// # Errors
    /// If the registry or the audit log cannot be written, or a key is not
    /// destroyed: the others are.
    pub(super) async fn sweep(&self) -> Result<Swept, Failure> {
        // Two at once would be in each other's way, and count each other's keys.
        let _turn = self.sweeping.lock().await;
        let mut swept = Swept::default();
        let mut failed = None;
        // What stopped half-way, at a full disk perhaps, goes on now.
        let pending = self.registry.pending().await.map_err(failure::of_store)?;
        for key in pending.destroying {
            let begun = self.registry.begin_destroy(key.id, Cause::Due).await;
            self.finish_destroying(&begun.map_err(failure::of_store)?)
                .await?;
            swept.destroyed = swept.destroyed.saturating_add(1);
        }
        loop {
            let due = self
                .registry
                .destroyable(SWEEP_BATCH)
                .await
                .map_err(failure::of_store)?;
            let before = swept.destroyed;
            for id in due {
                match self.destroy_key(id).await {
                    Ok(true) => swept.destroyed = swept.destroyed.saturating_add(1),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(key = %id, %error, "a key that is due is not destroyed");
                        failed = Some(error);
                    }
                }
            }
            // None is due, or the same would be due for ever.
            if swept.destroyed == before {
                break;
            }
        }
        swept.stuck = self.destroy_all_idle().await?;
        if let Some(failure) = failed {
            return Err(failure);
        }
        swept.waiting = self.registry.waiting().await.map_err(failure::of_store)?;
        Ok(swept)
    }

    /// The one task that destroys what is due. It sleeps until something is,
    /// and for ever while nothing can be.
    pub async fn run_lifecycle(self: Arc<Self>) {
        // What the devices' own threads have found out before.
        let mut stuck = self.destroy_what_waited().await;
        loop {
            let next = self.registry.next_due().await;
            let sleep = async {
                match next {
                    Ok(Some(wait)) => tokio::time::sleep(wait).await,
                    Ok(None) | Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {
                    match self.sweep().await {
                        Ok(swept) => stuck = swept.stuck,
                        Err(error) => {
                            tracing::warn!(%error, "the sweep of due keys stopped");
                            // What made it fail is told by a request or a restart.
                            self.due.notified().await;
                        }
                    }
                }
                () = self.devices.one_is_ready() => stuck = self.destroy_what_waited().await,
                // Of a device that is ready, and failed to do it.
                () = tokio::time::sleep(STUCK_PERIOD), if stuck > 0 => {
                    stuck = self.destroy_what_waited().await;
                }
                () = self.due.notified() => {}
            }
        }
    }

    /// Destroys on the devices what they could not be asked for earlier. Counts
    /// what is stuck still.
    async fn destroy_what_waited(&self) -> Stuck {
        if self.registry.read_only_reason().is_some() {
            return 0;
        }
        let _turn = self.sweeping.lock().await;
        match self.destroy_all_idle().await {
            Ok(stuck) => stuck,
            Err(error) => {
                tracing::warn!(%error, "destroyed keys wait for the next sweep to be destroyed on their device");
                0
            }
        }
    }
}

impl KeyRecord {
    /// The key as its device takes it.
    pub(super) fn stored(&self) -> devices::StoredKey {
        devices::StoredKey {
            id: self.id,
            algorithm: self.algorithm,
            tier: self.tier,
            generation: self.generation,
            public: self.public_key.0.clone(),
            blob: self.blob.clone(),
        }
    }
}

fn made_key(key: devices::StoredKey) -> MadeKey {
    MadeKey {
        id: key.id,
        public_key: Bytes(key.public),
        blob: key.blob,
        tier: key.tier,
    }
}

fn why_destroyed(key: &KeyRecord) -> &'static str {
    match (key.is_retiring(), key.adopted) {
        (true, false) => "its identity has another key, and its grace is over",
        (true, true) => {
            "its identity has another key, and its grace is over; it is forgotten here, and stays on its device"
        }
        (false, _) => "the key is no longer needed",
    }
}

fn usable(key: Arc<KeyRecord>) -> Result<Arc<KeyRecord>, Failure> {
    let failure = match key.state {
        LifeState::Active => return Ok(key),
        LifeState::Creating => failure::not_found("key"),
        LifeState::Destroying | LifeState::Destroyed => Failure::new(
            FailureCode::Destroyed,
            "the key was destroyed",
            "it cannot come back; make a new one",
        ),
        LifeState::Missing => Failure::new(
            FailureCode::KeyMissing,
            "the registry's entry of this key cannot be used",
            "have the administrator see `mlskeyctl keys`; nothing was deleted",
        ),
    };
    Err(failure.about_key(key.id))
}

fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    OsRng.fill_bytes(&mut id);
    id
}

fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
