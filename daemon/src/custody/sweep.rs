//! Destroying what is due, in portions: keys may be many, and devices slow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{join_all, try_join_all};
use mlskeyd_protocol::v1::{Failure, KeyId, Swept};

use super::{Custody, Event, failure};
use crate::audit::{AuditOutcome, Durability, Record};
use crate::devices::{self, DeviceError, GenerationId};
use crate::store::{Cause, Generation, GenerationState, KeyRecord, StoreError};

/// Keys that are destroyed together, at first and at most: each of their steps
/// becomes durable once for all of them. The first ones show how fast that goes.
const BATCH: (usize, usize) = (8, 64);

/// After this a portion begins nothing more, so that no caller waits for long and
/// everybody gets a turn.
pub(super) const PORTION: Duration = Duration::from_secs(1);

/// How long generations wait whose device failed to destroy them.
const STUCK_PERIOD: Duration = Duration::from_secs(60);

/// What became of generations that are to be destroyed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LetGo {
    /// Not destroyed, for the fault of their device.
    stuck: u64,
    /// Not all of them had their turn.
    more: bool,
}

impl Custody {
    /// Destroys what is due now: a first batch in any case, and further ones until
    /// the portion is over.
    ///
    /// # Errors
    /// If the registry or the audit log cannot be written, or a key is not
    /// destroyed: the others are.
    pub(super) async fn sweep(&self, portion: Duration) -> Result<Swept, Failure> {
        // Two at once would be in each other's way, and count each other's keys.
        let _turn = self.sweeping.lock().await;
        let swept = self.sweep_until(after(portion)).await;
        self.portion_ends(swept.as_ref().is_ok_and(|swept| swept.more));
        swept
    }

    async fn sweep_until(&self, until: Instant) -> Result<Swept, Failure> {
        let mut swept = Swept::default();
        let (mut at_once, most) = BATCH;
        loop {
            let due = self.due_keys(at_once).await?;
            at_once = at_once.saturating_mul(2).min(most);
            let batch = self.destroy_keys(due).await;
            let destroyed = u64::try_from(batch.destroyed.len()).unwrap_or(u64::MAX);
            swept.destroyed = swept.destroyed.saturating_add(destroyed);
            self.clear_up(batch.destroyed, until).await?;
            match (batch.failed, destroyed) {
                // None is due, or the same would be due for ever.
                (None, 0) => break,
                (Some(failure), 0) => return Err(failure),
                _ if Instant::now() < until => {}
                _ => {
                    swept.more = true;
                    return Ok(swept);
                }
            }
        }
        let let_go = self.destroy_all_idle(Some(until)).await?;
        swept.stuck = let_go.stuck;
        swept.more = let_go.more;
        swept.waiting = self.registry.waiting().await.map_err(failure::of_store)?;
        Ok(swept)
    }

    /// Keys that are to be destroyed now. What stopped half-way, at a full disk
    /// perhaps, goes on first.
    async fn due_keys(&self, most: usize) -> Result<Vec<KeyId>, Failure> {
        let pending = self.registry.pending().await.map_err(failure::of_store)?;
        let begun = pending.destroying.into_iter().map(|key| key.id);
        let mut due: Vec<KeyId> = begun.take(most).collect();
        if due.len() < most {
            let more = self.registry.destroyable(most.saturating_sub(due.len()));
            due.extend(more.await.map_err(failure::of_store)?);
        }
        Ok(due)
    }

    /// Destroys keys in the registry, all at once.
    async fn destroy_keys(&self, due: Vec<KeyId>) -> Batch {
        let each = due.into_iter().map(async |id| {
            let destroyed = self.destroy_key(id).await;
            destroyed.inspect_err(
                |error| tracing::warn!(key = %id, %error, "a key that is due is not destroyed"),
            )
        });
        let mut batch = Batch::default();
        for result in join_all(each).await {
            match result {
                Ok(key) => batch.destroyed.extend(key),
                Err(error) => batch.failed = Some(error),
            }
        }
        batch
    }

    /// Destroys a key in the registry, durably: tombstone, record, registry.
    /// `None`: it is needed again.
    async fn destroy_key(&self, id: KeyId) -> Result<Option<KeyRecord>, Failure> {
        self.can_record()?;
        match self.registry.begin_destroy(id, Cause::Due).await {
            Ok(key) => {
                self.finish_destroying(&key).await?;
                Ok(Some(key))
            }
            // A claim came first.
            Err(StoreError::NotDue(_) | StoreError::Destroyed(_)) => Ok(None),
            Err(error) => Err(failure::of_store(error)),
        }
    }

    pub(super) async fn finish_destroying(&self, key: &KeyRecord) -> Result<(), Failure> {
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
        let destroyed = self.registry.finish_destroy(key.id).await;
        destroyed.map_err(failure::of_store)?;
        let gone = Event::KeyRemoved(key.owner.clone(), key.id);
        self.events.tell(gone);
        Ok(())
    }

    /// Has the devices let go of what destroyed keys leave there, each device by
    /// itself.
    async fn clear_up(&self, destroyed: Vec<KeyRecord>, until: Instant) -> Result<(), Failure> {
        let mut by_device: BTreeMap<String, Vec<KeyRecord>> = BTreeMap::new();
        for key in destroyed {
            by_device.entry(key.device.clone()).or_default().push(key);
        }
        let each = by_device.into_iter();
        try_join_all(each.map(|(device, keys)| self.clear_up_at(device, keys, until))).await?;
        Ok(())
    }

    async fn clear_up_at(
        &self,
        device: String,
        keys: Vec<KeyRecord>,
        until: Instant,
    ) -> Result<(), Failure> {
        let mut by_generation: BTreeMap<GenerationId, Vec<KeyRecord>> = BTreeMap::new();
        for key in keys {
            by_generation.entry(key.generation).or_default().push(key);
        }
        let mut idle = Vec::new();
        let mut answers = self.can_wait_for(&device).await;
        for (generation, keys) in by_generation {
            let to_destroy = self.registry.generation_to_destroy(generation).await;
            let to_destroy = to_destroy.map_err(failure::of_store)?;
            if to_destroy.is_empty() {
                for key in &keys {
                    if answers && !self.give_back_room(key).await {
                        answers = false;
                        self.falls_silent(&device);
                    }
                }
            }
            idle.extend(to_destroy);
        }
        // What is left of them is counted at the end of the sweep.
        self.destroy_generations_of(device, idle, answers, Some(until))
            .await?;
        Ok(())
    }

    /// Gives back what a destroyed key takes on its device, whose generation lives
    /// on; answers whether the device did. If it does not, that is given back with the
    /// generation.
    async fn give_back_room(&self, key: &KeyRecord) -> bool {
        let stored = key.stored();
        let destroy = move |device: &mut dyn devices::Device| match device.destroyer() {
            Some(destroyer) => destroyer.destroy_key(&stored),
            None => Ok(()),
        };
        let given_back = self.devices.run_own(&key.device, destroy).await;
        if let Err(error) = &given_back {
            tracing::warn!(key = %key.id, device = key.device, %error,
                "what a destroyed key takes on its device is given back with its generation");
        }
        given_back.is_ok()
    }

    /// Destroys the generations whose last key has gone, and those whose device did
    /// not answer: only then nothing of their keys is left, whatever copies of the
    /// registry there are.
    async fn destroy_all_idle(&self, until: Option<Instant>) -> Result<LetGo, Failure> {
        let idle = self.registry.generations_to_destroy().await;
        self.destroy_generations(idle.map_err(failure::of_store)?, until)
            .await
    }

    /// Each device by itself: one that does not answer keeps its own generations,
    /// and no other's.
    pub(super) async fn destroy_generations(
        &self,
        idle: Vec<Generation>,
        until: Option<Instant>,
    ) -> Result<LetGo, Failure> {
        let mut by_device: BTreeMap<String, Vec<Generation>> = BTreeMap::new();
        for generation in idle {
            let of_device = by_device.entry(generation.device.clone()).or_default();
            of_device.push(generation);
        }
        let devices = by_device.into_iter();
        let each = devices.map(async |(name, idle)| {
            let answers = match until {
                Some(_) => self.can_wait_for(&name).await,
                None => self.devices.is_there(&name).await,
            };
            self.destroy_generations_of(name, idle, answers, until)
                .await
        });
        let each = try_join_all(each).await?;
        Ok(each.into_iter().fold(LetGo::default(), |all, one| LetGo {
            stuck: all.stuck.saturating_add(one.stuck),
            more: all.more || one.more,
        }))
    }

    /// Those of one device. If it does not answer, or no more, they are journalled
    /// without it.
    async fn destroy_generations_of(
        &self,
        device: String,
        idle: Vec<Generation>,
        mut answers: bool,
        until: Option<Instant>,
    ) -> Result<LetGo, Failure> {
        let mut let_go = LetGo::default();
        let mut had_a_turn = false;
        for generation in idle {
            if !answers && generation.state.is_ending() {
                let_go.stuck = let_go.stuck.saturating_add(1);
                continue;
            }
            // Not of a device that failed, however long that took: the next portion
            // would begin with the same generation, and come no further.
            if answers && had_a_turn && until.is_some_and(|until| until <= Instant::now()) {
                let_go.more = true;
                break;
            }
            had_a_turn = true;
            let begun = self.registry.begin_destroy_generation(generation.id).await;
            let state = match begun {
                Ok(state) => state,
                // It got a key meanwhile.
                Err(StoreError::WrongGeneration) => continue,
                Err(error) => return Err(failure::of_store(error)),
            };
            if !answers {
                // It is on record that it is to be destroyed, when the device is
                // ready again or with the next sweep.
                let_go.stuck = let_go.stuck.saturating_add(1);
                continue;
            }
            if let Err(error) = self.let_go(&generation, state).await {
                tracing::warn!(generation = %generation.id, device, %error,
                    "destroyed keys can be brought back from an old copy of the registry until their device lets go of them");
                answers = false;
                if until.is_some() {
                    self.falls_silent(&device);
                }
                let_go.stuck = let_go.stuck.saturating_add(1);
                continue;
            }
            crate::failpoint::hit("custody.generation.destroyed");
            self.registry
                .finish_destroy_generation(generation.id)
                .await
                .map_err(failure::of_store)?;
        }
        Ok(let_go)
    }

    /// May the sweep ask the device for something? It is there, and has not failed
    /// since this sweep began: all others would wait for it, portion after portion.
    async fn can_wait_for(&self, device: &str) -> bool {
        let is_silent = self.silent.lock().is_ok_and(|it| it.contains(device));
        !is_silent && self.devices.is_there(device).await
    }

    fn falls_silent(&self, device: &str) {
        if let Ok(mut silent) = self.silent.lock() {
            silent.insert(device.to_owned());
        }
    }

    /// With the last portion the sweep ends, and every device is asked again.
    fn portion_ends(&self, more: bool) {
        if !more && let Ok(mut silent) = self.silent.lock() {
            silent.clear();
        }
    }

    async fn let_go(&self, generation: &Generation, state: GenerationState) -> Result<(), Failure> {
        let id = generation.id;
        let destroy = move |device: &mut dyn devices::Device| {
            let destroyer = device
                .destroyer()
                .ok_or(DeviceError::CannotDo("destroy keys"))?;
            match state {
                GenerationState::Undoing => destroyer.undo_generation(id),
                _ => destroyer.destroy_generation(id),
            }
        };
        self.devices.run_own(&generation.device, destroy).await
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
                    match self.sweep_all().await {
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

    /// In portions, between which an administrator's sweep gets its turn.
    async fn sweep_all(&self) -> Result<Swept, Failure> {
        loop {
            let swept = self.sweep(PORTION).await?;
            if !swept.more {
                return Ok(swept);
            }
        }
    }

    /// Destroys on the devices what they could not be asked for earlier. Counts
    /// what is stuck still.
    async fn destroy_what_waited(&self) -> u64 {
        if self.registry.read_only_reason().is_some() {
            return 0;
        }
        loop {
            let _turn = self.sweeping.lock().await;
            let let_go = self.destroy_all_idle(Some(after(PORTION))).await;
            self.portion_ends(let_go.as_ref().is_ok_and(|let_go| let_go.more));
            match let_go {
                Ok(let_go) if let_go.more => {}
                Ok(let_go) => return let_go.stuck,
                Err(error) => {
                    tracing::warn!(%error, "destroyed keys wait for the next sweep to be destroyed on their device");
                    return 0;
                }
            }
        }
    }
}

/// What became of some keys that were due.
#[derive(Default)]
struct Batch {
    destroyed: Vec<KeyRecord>,
    /// Why one of them was not.
    failed: Option<Failure>,
}

fn after(portion: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(portion).unwrap_or(now)
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
