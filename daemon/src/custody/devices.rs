//! The configured devices, and which of them a new key goes to.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use mlskeyd_protocol::v1::{
    Algorithm, DeviceState, Failure, FailureCode, Interaction, KeyPin, Owner, Placement, Progress,
    PromptKind, Tier,
};

use tokio::sync::{Mutex, MutexGuard, Notify};

use super::prompts::Board;
use super::{Asker, Call, failure};
use crate::devices::queue::{DeviceHandle, Priority, RunError};
use crate::devices::{Count, Device, DeviceError, DeviceInfo};
use crate::store::KeyRecord;

/// How long a request waits in a device's queue before its caller is told that
/// the device is busy. An earlier notice would be noise.
const BUSY_NOTICE: Duration = Duration::from_millis(300);

/// How long the daemon itself waits for a device: less long than anybody waits for
/// a sweep. What is to be destroyed is asked for again.
const OWN_PATIENCE: Duration = Duration::from_secs(20);

/// How long a device may take over what an administrator wants of it: a PIN, a token or
/// TPM to be accepted, a key to be locked.
const ADMIN_PATIENCE: Duration = Duration::from_secs(60);

/// The daemon's own place in the devices' queues: no configured app has it.
const OWN_APP: &str = "mlskeyd";

/// The configured devices by name, and the default one.
pub struct Devices {
    by_name: BTreeMap<String, Slot>,
    default: String,
    /// Rung when one of them becomes ready.
    ready: Arc<Notify>,
    /// What waits for a person.
    pub(super) board: Board,
}

struct Slot {
    handle: DeviceHandle<Owner>,
    /// The tier of HPKE keys for which the app names none.
    hpke_tier: Option<Tier>,
    /// One request at a time makes a generation of this device.
    making_generation: Mutex<()>,
    /// The user through whose agent it was unlocked, and when: it is ready for that one
    /// alone, as long as it stays ready.
    only_for: std::sync::Mutex<Option<(u32, u64)>>,
}

impl Slot {
    /// For whom alone it is unlocked.
    fn user(&self) -> Option<u32> {
        let (uid, since) = (*self.only_for())?;
        let still = self.handle.info().state == DeviceState::Ready;
        (still && self.handle.awakenings() == since).then_some(uid)
    }

    fn only_for(&self) -> std::sync::MutexGuard<'_, Option<(u32, u64)>> {
        self.only_for.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device that runs, and what the configuration says about its use.
pub struct Configured {
    /// Its queue.
    pub handle: DeviceHandle<Owner>,
    /// The tier of HPKE keys for which an app names none; `None`: the best.
    pub hpke_tier: Option<Tier>,
}

/// A device, as administrators are shown it.
pub(super) struct Shown {
    pub(super) info: Arc<DeviceInfo>,
    pub(super) counts: Vec<Count>,
    pub(super) hpke_tier: Option<Tier>,
    pub(super) default: bool,
}

impl Devices {
    /// The devices by name, and the name of the one that new keys go to.
    #[must_use]
    pub fn new(devices: BTreeMap<String, Configured>, default: String) -> Self {
        let ready = Arc::new(Notify::new());
        let slot = |device: Configured| {
            device.handle.ring_when_ready(Arc::clone(&ready));
            Slot {
                handle: device.handle,
                hpke_tier: device.hpke_tier,
                making_generation: Mutex::new(()),
                only_for: std::sync::Mutex::default(),
            }
        };
        let by_name = devices
            .into_iter()
            .map(|(name, device)| (name, slot(device)));
        Self {
            by_name: by_name.collect(),
            default,
            ready,
            board: Board::new(),
        }
    }

    /// From now on the device, which was unlocked just now, is for this user alone;
    /// `None`: for all.
    pub(super) fn is_only_for(&self, name: &str, uid: Option<u32>) {
        if let Some(slot) = self.by_name.get(name) {
            *slot.only_for() = uid.map(|uid| (uid, slot.handle.awakenings()));
        }
    }

    /// The devices that are unlocked for this user alone.
    pub(super) fn unlocked_for(&self, uid: u32) -> Vec<String> {
        let for_it = self
            .by_name
            .iter()
            .filter(|(_, slot)| slot.user() == Some(uid));
        for_it.map(|(name, _)| name.clone()).collect()
    }

    /// Waits until a device becomes ready that was not.
    pub(super) async fn one_is_ready(&self) {
        self.ready.notified().await;
    }

    /// Is it worth while to ask the device for something that can wait?
    pub(super) async fn is_there(&self, name: &str) -> bool {
        match self.get(name) {
            Ok(device) => check_usable(&*device.seen().await).is_ok(),
            Err(_) => false,
        }
    }

    /// The name of the device that new keys go to by default.
    pub(super) fn default_name(&self) -> &str {
        &self.default
    }

    /// Does the key's device say that what the key hangs under is not there?
    pub(super) fn lack(&self, key: &KeyRecord) -> bool {
        let slot = self.by_name.get(&key.device);
        slot.is_some_and(|slot| slot.handle.info().lacks(key.generation))
    }

    /// Every device as it was last seen.
    pub(super) fn all_shown(&self) -> impl Iterator<Item = Shown> {
        self.by_name
            .iter()
            .map(|(name, slot)| self.show(name, slot))
    }

    /// The device with this name, as it was last seen.
    pub(super) fn shown(&self, name: &str) -> Result<Shown, Failure> {
        self.slot(name).map(|slot| self.show(name, slot))
    }

    fn show(&self, name: &str, slot: &Slot) -> Shown {
        Shown {
            info: slot.handle.info(),
            counts: slot.handle.counts(),
            hpke_tier: slot.hpke_tier,
            default: *name == self.default,
        }
    }

    /// The device with this name.
    /// What kind of device it is: nothing if there is none of this name.
    pub(super) fn kind(&self, name: Option<&str>) -> &'static str {
        let handle = name.and_then(|name| self.get(name).ok());
        handle.map_or("", |handle| handle.info().kind)
    }

    pub(super) fn get(&self, name: &str) -> Result<&DeviceHandle<Owner>, Failure> {
        self.slot(name).map(|slot| &slot.handle)
    }

    /// The turn to make a generation of this device: of two requests at once
    /// only one does. A device that hangs holds up nobody but its own callers,
    /// and these until their deadline.
    pub(super) async fn generation_turn(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<MutexGuard<'_, ()>, Failure> {
        let slot = self.slot(name)?;
        let turn = slot.making_generation.lock();
        let turn = tokio::time::timeout_at(deadline.into(), turn).await;
        turn.map_err(|_| failure::of_run(RunError::Timeout { begun: false }, &slot.handle))
    }

    fn slot(&self, name: &str) -> Result<&Slot, Failure> {
        self.by_name.get(name).ok_or_else(|| {
            let known: Vec<_> = self.by_name.keys().map(String::as_str).collect();
            Failure::new(
                FailureCode::DeviceAbsent,
                format!("no device named {name} is configured"),
                format!("configured are: {}", known.join(", ")),
            )
            .at_device(name)
        })
    }

    /// Where a new key goes: the named device or the default one; in the named
    /// tier, else, an HPKE key, in the device's configured one, else in the best
    /// that it has. Never in a lower one than named or configured.
    pub(super) async fn place(
        &self,
        placement: &Placement,
        algorithm: Algorithm,
        call: &Call,
    ) -> Result<(String, Tier), Failure> {
        let name = placement.device.as_deref().unwrap_or(&self.default);
        let slot = self.slot(name)?;
        let mut info = slot.handle.seen().await;
        if info.support.is_empty() {
            // One that was locked from the start has not shown it yet.
            info = self.unlocked(slot, name, call).await?;
        }
        check_usable(&info)?;
        let wanted = match (placement.tier, algorithm) {
            (None, Algorithm::Hpke(_)) => slot.hpke_tier.map(Wanted::Configured),
            (named, _) => named.map(Wanted::Named),
        };
        let tiers = info.tiers(algorithm).into_iter();
        let tier = match wanted {
            Some(Wanted::Named(tier) | Wanted::Configured(tier)) => {
                tiers.filter(|has| *has == tier).max()
            }
            None => tiers.max(),
        };
        match tier {
            Some(tier) => Ok((name.to_owned(), tier)),
            None => Err(cannot_keep(&info, algorithm, wanted)),
        }
    }

    /// Runs a job on a device for a caller, and tells it what it waits for.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        name: &str,
        owner: &Owner,
        call: &Call,
        job: impl FnOnce(&mut dyn Device) -> Result<T, DeviceError> + Send + 'static,
    ) -> Result<T, Failure> {
        let slot = self.slot(name)?;
        let device = &slot.handle;
        let info = self.unlocked(slot, name, call).await?;
        check_usable(&info).map_err(|failure| match of_keys_missing(&info) {
            true => Failure {
                code: FailureCode::KeyMissing,
                ..failure
            },
            false => failure,
        })?;
        let deadline = call.deadline;
        let running = device.run(owner.clone(), call.priority(), deadline, job);
        tokio::pin!(running);
        let result = match tokio::time::timeout(BUSY_NOTICE, &mut running).await {
            Ok(result) => result,
            Err(_) => {
                call.progress.send(Progress::Busy {
                    device: name.to_owned(),
                });
                running.await
            }
        };
        result.map_err(|error| failure::of_run(error, device))
    }

    /// Runs a job that uses a key, once that is unlocked if it has a PIN of its own.
    pub(super) async fn run_with_key<T: Send + 'static>(
        &self,
        key: &KeyRecord,
        owner: &Owner,
        call: &Call,
        job: impl FnOnce(&mut dyn Device) -> Result<T, DeviceError> + Send + 'static,
    ) -> Result<T, Failure> {
        self.wait_for_key(key, call).await?;
        self.run(&key.device, owner, call, job).await
    }

    /// Waits until somebody has unlocked the key, as long as the call may.
    pub(super) async fn wait_for_key(&self, key: &KeyRecord, call: &Call) -> Result<(), Failure> {
        if !key.pin {
            return Ok(());
        }
        let device = self.get(&key.device)?;
        let info = device.seen().await;
        check_usable(&info)?;
        if info.unlocked.contains(&key.id) {
            return Ok(());
        }
        let until = until_a_person_came(call).ok_or_else(|| {
            let message = format!(
                "{}, and the request must not wait for a person",
                locked_text(key)
            );
            let advice = format!(
                "have the administrator unlock it (`{}`), or let the request wait for that",
                unlock_command(key)
            );
            Failure::new(FailureCode::InteractionRequired, message, advice).at_device(&key.device)
        })?;
        call.progress.send(Progress::Locked {
            device: key.device.clone(),
        });
        let unlocked = tokio::time::timeout_at(until.into(), device.key_unlocked(key.id)).await;
        unlocked.map_err(|_| key_is_locked(key))
    }

    /// Whether a key has a PIN of its own, and is unlocked.
    pub(super) fn pin_of(&self, key: &KeyRecord) -> KeyPin {
        let is_unlocked = || {
            let device = self.get(&key.device);
            device.is_ok_and(|device| device.info().unlocked.contains(&key.id))
        };
        match key.pin {
            false => KeyPin::None,
            true if is_unlocked() => KeyPin::Unlocked,
            true => KeyPin::Locked,
        }
    }

    /// Has a device do what an administrator wants of it, in whatever state it seems
    /// to be: that is what the others wait for.
    pub(super) async fn attend<T: Send + 'static>(
        &self,
        name: &str,
        deadline: Instant,
        job: impl FnOnce(&mut dyn Device) -> Result<T, DeviceError> + Send + 'static,
    ) -> Result<T, Failure> {
        let device = self.get(name)?;
        let deadline = deadline.min(after(ADMIN_PATIENCE));
        let running = device.run(own_place(), Priority::Interactive, deadline, job);
        running
            .await
            .map_err(|error| failure::of_run(error, device))
    }

    /// The device, when nobody has to unlock it any more; as long as the call may wait
    /// for that. The person's agent is told.
    async fn unlocked(
        &self,
        slot: &Slot,
        name: &str,
        call: &Call,
    ) -> Result<Arc<DeviceInfo>, Failure> {
        let device = &slot.handle;
        let info = device.seen().await;
        let asker = &call.asker;
        if slot.user().is_some_and(|uid| uid != asker.owner.uid) {
            return Err(unlocked_for_another(name));
        }
        if info.state != DeviceState::Locked {
            return Ok(info);
        }
        let until = wait_for_a_person(name, call)?;
        let waits = self
            .board
            .wait(asker.owner.uid, PromptKind::Pin, &info, |serial| {
                pin_text(asker, name, serial, &info.reason)
            });
        let waits = waits.ok_or_else(|| declined(name))?;
        call.progress.send(Progress::Locked {
            device: name.to_owned(),
        });
        let unlocked = async {
            tokio::select! {
                () = device.unlocked() => Ok(()),
                () = waits.declined() => Err(declined(name)),
            }
        };
        let unlocked = tokio::time::timeout_at(until.into(), unlocked).await;
        unlocked.map_err(|_| still_locked(&device.info()))??;
        if slot.user().is_some_and(|uid| uid != asker.owner.uid) {
            return Err(unlocked_for_another(name));
        }
        Ok(device.info())
    }

    /// Runs a job on a device for the daemon itself: nobody waits for it.
    pub(super) async fn run_own<T: Send + 'static>(
        &self,
        name: &str,
        job: impl FnOnce(&mut dyn Device) -> Result<T, DeviceError> + Send + 'static,
    ) -> Result<T, Failure> {
        let device = self.get(name)?;
        let deadline = after(OWN_PATIENCE);
        let running = device.run(own_place(), Priority::Background, deadline, job);
        running
            .await
            .map_err(|error| failure::of_run(error, device))
    }
}

fn own_place() -> Owner {
    Owner {
        uid: rustix::process::geteuid().as_raw(),
        app: OWN_APP.to_owned(),
    }
}

fn after(patience: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(patience).unwrap_or(now)
}

/// What the person is asked, in the daemon's words.
fn pin_text(asker: &Asker, device: &str, serial: Option<&str>, reason: &str) -> String {
    let serial = serial.map_or_else(String::new, |serial| format!(" (serial number {serial})"));
    format!(
        "The app {} asks mlskeyd for {}, which takes device {device}{serial}: {reason}",
        asker.owner.app, asker.action
    )
}

fn unlocked_for_another(device: &str) -> Failure {
    Failure::new(
        FailureCode::DeviceLocked,
        format!("device {device} is locked for this user: another one has unlocked it"),
        "repeat the request when that one has logged out",
    )
    .at_device(device)
}

fn declined(device: &str) -> Failure {
    Failure::new(
        FailureCode::DeviceLocked,
        format!("device {device} is locked, and the person at it did not want to unlock it"),
        format!("unlock it (`mlskeyctl unlock {device}`), then repeat the request"),
    )
    .at_device(device)
}

fn still_locked(info: &DeviceInfo) -> Failure {
    let name = &info.name;
    Failure::new(
        FailureCode::DeviceLocked,
        format!("device {name} is locked: {}", info.reason),
        format!("have the administrator run `mlskeyctl unlock {name}`, then repeat the request"),
    )
    .at_device(name)
}

/// Fails if the device is not there at all, and says why.
fn check_usable(info: &DeviceInfo) -> Result<(), Failure> {
    let code = match info.state {
        DeviceState::Absent => FailureCode::DeviceAbsent,
        DeviceState::Failed => FailureCode::DeviceFailed,
        DeviceState::Locked | DeviceState::Ready => return Ok(()),
    };
    let message = format!("device {} is {}: {}", info.name, info.state, info.reason);
    let advice = "have the administrator see `mlskeyctl devices`, then repeat the request";
    Err(Failure::new(code, message, advice).at_device(&info.name))
}

/// Does the device say that nothing is there that keys hang under?
fn of_keys_missing(info: &DeviceInfo) -> bool {
    let generations = info.generations.as_ref();
    generations.is_some_and(|generations| generations.is_empty())
}

/// Until when a request may wait for somebody who unlocks the device.
fn wait_for_a_person(device: &str, call: &Call) -> Result<Instant, Failure> {
    until_a_person_came(call).ok_or_else(|| {
        Failure::new(
            FailureCode::InteractionRequired,
            format!("device {device} is locked, and the request must not wait for a person"),
            format!("unlock it (`mlskeyctl unlock {device}`), or let the request wait for that"),
        )
        .at_device(device)
    })
}

/// Until when a request may wait for a person; `None`: it must not.
pub(super) fn until_a_person_came(call: &Call) -> Option<Instant> {
    match call.options.interaction {
        Interaction::Never => None,
        Interaction::UpTo(milliseconds) => {
            let longest = Duration::from_millis(milliseconds.into());
            let until = Instant::now().checked_add(longest);
            Some(until.map_or(call.deadline, |until| until.min(call.deadline)))
        }
    }
}

/// Of a key that waits for its PIN.
pub(super) fn key_is_locked(key: &KeyRecord) -> Failure {
    let advice = format!(
        "have the administrator run `{}`, then repeat the request",
        unlock_command(key)
    );
    Failure::new(FailureCode::DeviceLocked, locked_text(key), advice).at_device(&key.device)
}

fn locked_text(key: &KeyRecord) -> String {
    let identity = key.identity.as_deref().unwrap_or_default();
    format!("the key of identity {identity:?} waits for its PIN")
}

fn unlock_command(key: &KeyRecord) -> String {
    let identity = key.identity.as_deref().unwrap_or_default();
    let which = if key.is_retiring() {
        format!(" --key {}", key.id)
    } else {
        String::new()
    };
    format!(
        "mlskeyctl identities unlock {} {identity:?}{which}",
        key.owner
    )
}

/// A tier that was chosen, and by whom.
#[derive(Clone, Copy)]
enum Wanted {
    /// The caller named it.
    Named(Tier),
    /// The configuration, since the caller named none.
    Configured(Tier),
}

fn cannot_keep(info: &DeviceInfo, algorithm: Algorithm, wanted: Option<Wanted>) -> Failure {
    let offers = info.support.iter().flat_map(|support| {
        let tiers = support.tiers().into_iter();
        tiers.map(|tier| format!("{} ({tier})", support.algorithm))
    });
    let offers: Vec<_> = offers.collect();
    let wanted = match wanted {
        None => String::new(),
        Some(Wanted::Named(tier)) => format!(" in tier {tier}"),
        Some(Wanted::Configured(tier)) => {
            format!(" in tier {tier}, which its `hpke_tier` sets")
        }
    };
    Failure::new(
        FailureCode::Unsupported,
        format!("device {} keeps no {algorithm} key{wanted}", info.name),
        format!(
            "it offers: {}; choose one of these, or another device",
            offers.join(", ")
        ),
    )
    .at_device(&info.name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::mpsc;

    use mlskeyd_protocol::server::Reporter;
    use mlskeyd_protocol::v1::{
        CallOptions, Kem, Priority as CallPriority, SecretBytes, SignatureScheme,
    };

    use super::*;
    use crate::devices::queue::{DeviceThreads, Limits};
    use crate::devices::{Support, Unlock, Unlocking, Way};

    const P256: Algorithm = Algorithm::Signature(SignatureScheme::EcdsaP256Sha256);
    const ED25519: Algorithm = Algorithm::Signature(SignatureScheme::Ed25519);
    const P256_OPENS: Algorithm = Algorithm::Hpke(Kem::DhKemP256);
    const X25519: Algorithm = Algorithm::Hpke(Kem::DhKemX25519);

    /// What unlocks a device that is locked.
    const PIN: &[u8] = b"1234";

    /// A device in a state that no software can be brought into.
    struct Stub(Arc<DeviceInfo>);

    impl Device for Stub {
        fn info(&self) -> Arc<DeviceInfo> {
            Arc::clone(&self.0)
        }

        fn unlocker(&mut self) -> Option<&mut dyn Unlock> {
            (self.0.state == DeviceState::Locked).then_some(self)
        }
    }

    impl Stub {
        fn show(&mut self, state: DeviceState) {
            self.0 = Arc::new(DeviceInfo {
                state,
                ..DeviceInfo::clone(&self.0)
            });
        }
    }

    impl Unlock for Stub {
        fn unlock(&mut self, pin: &SecretBytes, _: bool) -> Result<Unlocking, DeviceError> {
            if pin.expose() != PIN {
                let reason = "a wrong PIN".to_owned();
                return Err(DeviceError::Locked { reason });
            }
            self.show(DeviceState::Ready);
            Ok(Unlocking::ByThePin)
        }

        fn lock(&mut self) -> Result<(), DeviceError> {
            self.show(DeviceState::Locked);
            Ok(())
        }
    }

    fn support(algorithm: Algorithm, tiers: &[Tier]) -> Support {
        Support {
            algorithm,
            ways: tiers
                .iter()
                .map(|&tier| Way {
                    tier,
                    how: "in a stub".to_owned(),
                })
                .collect(),
            why_no_other: String::new(),
        }
    }

    /// The devices `chip`, the default, and `gone`; and the threads that they
    /// live in.
    fn devices(chip: DeviceState) -> (Devices, Vec<DeviceThreads<Owner>>) {
        devices_with(chip, None)
    }

    /// The same, with this tier configured for their HPKE keys.
    fn devices_with(
        chip: DeviceState,
        hpke_tier: Option<Tier>,
    ) -> (Devices, Vec<DeviceThreads<Owner>>) {
        let limits = Limits {
            per_owner: 8,
            total: 8,
        };
        let mut threads = Vec::new();
        let mut handles = BTreeMap::new();
        for (name, state) in [("chip", chip), ("gone", DeviceState::Absent)] {
            let info = DeviceInfo {
                generations: None,
                name: name.to_owned(),
                kind: "stub",
                state,
                reason: format!("because it is {state}"),
                facts: Vec::new(),
                support: vec![
                    support(P256, &[Tier::Hardware, Tier::Sealed]),
                    support(ED25519, &[Tier::Sealed]),
                    support(P256_OPENS, &[Tier::Hardware, Tier::Sealed]),
                    support(X25519, &[]),
                ],
                unlocked: BTreeSet::new(),
            };
            let thread = DeviceThreads::spawn(Box::new(Stub(Arc::new(info))), limits).unwrap();
            let configured = Configured {
                handle: thread.handle(),
                hpke_tier,
            };
            handles.insert(name.to_owned(), configured);
            threads.push(thread);
        }
        (Devices::new(handles, "chip".to_owned()), threads)
    }

    fn placement(device: Option<&str>, tier: Option<Tier>) -> Placement {
        Placement {
            device: device.map(str::to_owned),
            tier,
        }
    }

    fn owner() -> Owner {
        Owner {
            uid: 1000,
            app: "app".to_owned(),
        }
    }

    fn call(reporter: &Reporter, interaction: Interaction, deadline: Duration) -> Call {
        Call {
            options: CallOptions {
                interaction,
                priority: CallPriority::Interactive,
                token: 7,
            },
            deadline: Instant::now() + deadline,
            progress: reporter.for_call(7),
            asker: Asker {
                owner: own_place(),
                action: mlskeyd_policies::Action::Look,
            },
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_key_goes_to_the_named_tier_or_the_best_and_never_to_a_lower_one() {
        let (devices, _threads) = devices(DeviceState::Ready);
        let (reporter, _) = Reporter::channel();
        let call = call(&reporter, Interaction::Never, LONG);
        let place = async |tier, algorithm| {
            let placement = placement(None, tier);
            devices.place(&placement, algorithm, &call).await
        };
        let chip = |tier| ("chip".to_owned(), tier);
        assert_eq!(place(None, P256).await.unwrap(), chip(Tier::Hardware));
        assert_eq!(
            place(Some(Tier::Sealed), P256).await.unwrap(),
            chip(Tier::Sealed)
        );
        assert_eq!(place(None, ED25519).await.unwrap(), chip(Tier::Sealed));
        for (tier, algorithm) in [
            (Some(Tier::Hardware), ED25519),
            (Some(Tier::Software), P256),
            (None, X25519),
        ] {
            let refused = place(tier, algorithm).await.unwrap_err();
            assert_eq!(refused.code, FailureCode::Unsupported);
            assert_eq!(refused.device.as_deref(), Some("chip"));
            let text = refused.to_string();
            assert!(text.contains("ECDSA P-256 (hardware)"), "{text}");
        }
    }

    #[tokio::test]
    async fn hpke_keys_go_to_the_configured_tier_unless_the_caller_names_one() {
        let (reporter, _) = Reporter::channel();
        let call = call(&reporter, Interaction::Never, LONG);
        let place = async |set, tier, algorithm| {
            let (devices, _threads) = devices_with(DeviceState::Ready, Some(set));
            let placement = placement(None, tier);
            let placed = devices.place(&placement, algorithm, &call).await;
            placed.map(|(_, tier)| tier)
        };
        let (hardware, sealed) = (Tier::Hardware, Tier::Sealed);
        assert_eq!(place(sealed, None, P256_OPENS).await.unwrap(), sealed);
        assert_eq!(place(hardware, None, P256_OPENS).await.unwrap(), hardware);
        let named = place(sealed, Some(hardware), P256_OPENS).await;
        assert_eq!(named.unwrap(), hardware);
        // Signature keys have nothing to do with it.
        assert_eq!(place(sealed, None, P256).await.unwrap(), hardware);
        let refused = place(hardware, None, X25519).await.unwrap_err();
        assert_eq!(refused.code, FailureCode::Unsupported);
        let text = refused.to_string();
        assert!(
            text.contains("in tier hardware, which its `hpke_tier` sets"),
            "{text}"
        );
        let refused = place(Tier::Software, None, P256_OPENS).await.unwrap_err();
        assert_eq!(refused.code, FailureCode::Unsupported);
    }

    #[tokio::test]
    async fn an_unknown_or_absent_device_is_named_and_no_other_is_taken() {
        let (devices, _threads) = devices(DeviceState::Ready);
        let (reporter, _) = Reporter::channel();
        let call = call(&reporter, Interaction::Never, LONG);
        let place = async |name| {
            let placement = placement(Some(name), None);
            devices.place(&placement, P256, &call).await
        };
        let absent = place("gone").await.unwrap_err();
        assert_eq!(absent.code, FailureCode::DeviceAbsent);
        assert!(absent.message.contains("because it is absent"), "{absent}");
        let unknown = place("nowhere").await.unwrap_err();
        assert!(unknown.to_string().contains("nowhere"), "{unknown}");
    }

    #[tokio::test]
    async fn a_locked_device_waits_for_a_person_only_if_the_call_may() {
        let (devices, _threads) = devices(DeviceState::Locked);
        let (reporter, mut reports) = Reporter::channel();
        let run = |call: Call| {
            let devices = &devices;
            async move { devices.run("chip", &owner(), &call, |_| Ok(5)).await }
        };
        let never = run(call(&reporter, Interaction::Never, LONG)).await;
        let never = never.unwrap_err();
        assert_eq!(never.code, FailureCode::InteractionRequired);
        assert_eq!(never.device.as_deref(), Some("chip"));
        assert!(reports.try_recv().is_err());

        let upto = run(call(&reporter, Interaction::UpTo(20), LONG)).await;
        let upto = upto.unwrap_err();
        assert_eq!(upto.code, FailureCode::DeviceLocked);
        assert!(upto.advice.contains("mlskeyctl unlock chip"), "{upto}");
        let device = "chip".to_owned();
        let told = (7, Progress::Locked { device });
        assert_eq!(reports.try_recv().unwrap(), told);
    }

    #[tokio::test]
    async fn what_waits_for_a_locked_device_goes_on_when_it_is_unlocked() {
        let (devices, _threads) = devices(DeviceState::Locked);
        let (reporter, mut reports) = Reporter::channel();
        let call = call(&reporter, Interaction::UpTo(60_000), LONG);
        let owner = owner();
        let unlock = |pin: &'static [u8]| {
            let pin = SecretBytes::new(pin.to_vec());
            let deadline = Instant::now() + LONG;
            devices.attend("chip", deadline, move |device| {
                device.unlocker().unwrap().unlock(&pin, false)
            })
        };
        let waiting = devices.run("chip", &owner, &call, |device| Ok(device.info().state));
        let (served, ()) = tokio::join!(waiting, async {
            assert!(reports.recv().await.is_some());
            let wrong = unlock(b"0000").await.unwrap_err();
            assert_eq!(wrong.code, FailureCode::DeviceLocked);
            assert_eq!(
                devices.get("chip").unwrap().info().state,
                DeviceState::Locked
            );
            assert_eq!(unlock(PIN).await.unwrap(), Unlocking::ByThePin);
            assert_eq!(
                devices.shown("chip").unwrap().info.state,
                DeviceState::Ready
            );
        });
        assert_eq!(served.unwrap(), DeviceState::Ready);
    }

    #[tokio::test]
    async fn a_device_that_takes_no_pin_says_so() {
        let (devices, _threads) = devices(DeviceState::Ready);
        let unlock = |device: &mut dyn Device| match device.unlocker() {
            Some(unlocker) => unlocker.unlock(&SecretBytes::new(PIN.to_vec()), false),
            None => Err(DeviceError::CannotDo("be unlocked")),
        };
        let deadline = Instant::now() + LONG;
        let gone = devices.attend("gone", deadline, unlock).await.unwrap_err();
        assert_eq!(gone.code, FailureCode::Unsupported);
        let nowhere = devices.attend("nowhere", deadline, unlock).await;
        assert_eq!(nowhere.unwrap_err().code, FailureCode::DeviceAbsent);
    }

    #[tokio::test]
    async fn who_waits_for_a_busy_device_is_told_and_ends_at_the_deadline() {
        let (devices, _threads) = devices(DeviceState::Ready);
        let (reporter, mut reports) = Reporter::channel();
        let (release, held) = mpsc::channel::<()>();
        let slow = devices.get("chip").unwrap().run(
            owner(),
            Priority::Interactive,
            Instant::now() + LONG,
            move |_| Ok(held.recv().is_ok()),
        );
        let call = call(&reporter, Interaction::Never, Duration::from_secs(2));
        let owner = owner();
        let waiting = devices.run("chip", &owner, &call, |_| Ok(()));
        let (slow, ()) = tokio::join!(slow, async {
            let timeout = waiting.await.unwrap_err();
            assert_eq!(timeout.code, FailureCode::Timeout);
            let device = "chip".to_owned();
            assert_eq!(
                reports.recv().await.unwrap(),
                (7, Progress::Busy { device })
            );
            release.send(()).unwrap();
        });
        assert!(slow.unwrap());
    }
}
