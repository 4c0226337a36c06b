//! Making keys, step by step so that no step is lost: journal, device, registry;
//! and which keys may be used. How they are destroyed is told in `sweep`.

use std::sync::Arc;
use std::time::Duration;

use mlskeyd_protocol::v1::{
    Algorithm, Bytes, Failure, FailureCode, KeyId, Owner, SecretBytes, SignatureScheme,
};
use rand_core::{OsRng, RngCore};

use super::generate::Place;
use super::subject::Subject;
use super::{Call, Custody, Session, failure};
use crate::audit::{AuditOutcome, Durability, Record};
use crate::devices::{self, DeviceError, GenerationId};
use crate::store::{
    Cause, CurrentGeneration, IdentityRecord, KeyRecord, LifeState, MadeKey, NewKey, StoreError,
    Under,
};

/// How often a new key asks for a generation, when the one that it got is
/// destroyed before it is in there.
const GENERATION_TRIES: u32 = 3;

/// This kind of device knows no such thing.
pub(super) const NO_KEY_PINS: DeviceError =
    DeviceError::CannotDo("give a key a PIN of its own; a TPM can");

/// What repair at start found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Keys that were being made: undone.
    pub undone: u64,
    /// Keys that were being destroyed: destroyed in the registry.
    pub destroyed: u64,
}

/// A key that is to be made or adopted, and for whom.
pub(super) struct Order<'a> {
    pub(super) owner: &'a Owner,
    pub(super) algorithm: Algorithm,
    pub(super) place: &'a Place,
    /// Of a signature key.
    pub(super) identity: Option<&'a str>,
    /// Of a signature key that is to have one of its own.
    pub(super) pin: Option<&'a SecretBytes>,
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
        self.custody().usable(key)
    }

    /// The caller's identity with this name, and its key.
    pub(super) async fn identity(
        &self,
        name: &str,
    ) -> Result<Option<(IdentityRecord, Arc<KeyRecord>)>, Failure> {
        let custody = self.custody();
        let record = custody.registry.identity(&self.caller().owner, name).await;
        match record.map_err(failure::of_store)? {
            Some(record) => custody.with_key(record).await.map(Some),
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
            pin: None,
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
        custody.tell_of_new_key(&key);
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
                let device = self.custody().devices.get(&order.place.device)?;
                Err(failure::of_run(lost.into(), device))
            }
        }
    }

    async fn try_make_key(&self, order: &Order<'_>, call: &Call) -> Result<Tried, Failure> {
        let id = KeyId::from_bytes(random_id());
        let under = self.generation_for(order, call, id).await?;
        let (algorithm, tier) = (order.algorithm, order.place.tier);
        let pin = order.pin.cloned();
        let made = self.have_made(id, order.place, call, move |device| {
            if pin.is_some() && device.key_pins().is_none() {
                return Err(NO_KEY_PINS);
            }
            let generator = device
                .generator()
                .ok_or(DeviceError::CannotDo("make keys"))?;
            let (Under::Own(generation) | Under::Shared(generation)) = under;
            if matches!(under, Under::Own(_)) {
                generator.create_generation(generation)?;
            }
            let new = devices::NewKey {
                id,
                algorithm,
                tier,
                generation,
            };
            let made = match &pin {
                Some(pin) => device
                    .key_pins()
                    .ok_or(NO_KEY_PINS)?
                    .generate_with_pin(new, pin),
                None => generator.generate(new),
            };
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
            pin: order.pin.is_some(),
            connection: Some(self.connection()),
            created: unix_now(),
        };
        self.custody().registry.begin_create(new).await
    }
}

impl Custody {
    /// A key that is there and usable, whoever owns it.
    pub(super) async fn key(&self, id: KeyId) -> Result<Arc<KeyRecord>, Failure> {
        self.found(id, self.registry.key(id).await)
    }

    /// The same of what the registry has found.
    pub(super) fn found(
        &self,
        id: KeyId,
        key: Result<Option<Arc<KeyRecord>>, StoreError>,
    ) -> Result<Arc<KeyRecord>, Failure> {
        let key = key.map_err(failure::of_store)?;
        self.usable(key.ok_or_else(|| failure::not_found("key").about_key(id))?)
    }

    /// Has the key that a request is about the owner still that it had when it was read?
    pub(super) async fn still_owned(&self, subject: &Subject) -> Result<(), Failure> {
        let Some(key) = &subject.key else {
            return Ok(());
        };
        let now = self.registry.key(key.id).await.map_err(failure::of_store)?;
        if now.is_none_or(|now| now.owner == key.owner) {
            return Ok(());
        }
        Err(failure::not_found("key").about_key(key.id))
    }

    /// Does a signature key still sign?
    pub(super) fn signs(&self, key: &KeyRecord) -> bool {
        key.is_active() && !self.registry.has_ended(key)
    }

    /// The key, unless it is dead, or over. That it is over is judged on the key
    /// itself, not on what the sweep has found: whoever writes the registry's file
    /// could hide it from that.
    fn usable(&self, key: Arc<KeyRecord>) -> Result<Arc<KeyRecord>, Failure> {
        let failure = match key.state {
            LifeState::Active if self.registry.has_ended(&key) => has_ended(&key),
            LifeState::Active => return Ok(key),
            LifeState::Creating => failure::not_found("key"),
            LifeState::Destroying | LifeState::Destroyed if key.is_retiring() => has_ended(&key),
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
            self.destroy_generations(idle, None).await
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
        let idle = self.registry.abandon_create(id).await;
        let idle = idle.map_err(failure::of_store)?;
        let idle = idle.into_iter().collect();
        self.destroy_generations(idle, None).await?;
        Ok(())
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
            match self.registry.begin_destroy_generation(generation.id).await {
                Ok(_) => {}
                // The row of its key does not verify: both are left alone.
                Err(StoreError::WrongGeneration) => {
                    tracing::error!(generation = %generation.id, "a generation that was being made has a key that is not known");
                }
                Err(error) => return Err(failure::of_store(error)),
            }
        }
        Ok(repaired)
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
            pin: self.pin,
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

/// Of a signature key whose identity has another one.
fn has_ended(key: &KeyRecord) -> Failure {
    let identity = key.identity.as_deref().unwrap_or_default();
    Failure::new(
        FailureCode::Destroyed,
        format!(
            "identity {identity:?} got another signature key, and the grace of this one is over"
        ),
        "have the app ask for the identity again and sign with its present key; a group that knows \
         this one only has to be joined anew, by an external commit",
    )
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
