//! A TPM 2.0, with keys of its own and keys that it seals.
//!
//! P-256 keys are made in the TPM, under its storage key, and used there: tier
//! `hardware`. A TPM knows no Curve25519, so such keys are made here and sealed by
//! it, and unsealed for one operation: tier `sealed`. Either comes out of the TPM
//! as a blob that only this TPM loads again, and lives in the registry, so that
//! their number is not limited (`blob`).
//!
//! A key may also be bound to the machine's measurements (`policy`), or to others that
//! were approved (`approval`).
//!
//! A key is used with an authorisation value that follows from its generation's
//! secret, and from its PIN if it has one (`pins`); these secrets are what is
//! destroyed (`generations`). All commands are
//! authorised by one session, whose key only the storage key can open, and which
//! encrypts what is secret in them (`connection`).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mlskeyd_protocol::v1::SecretBytes;
use zeroize::Zeroizing;

use super::{
    Accept, Advice, Agree, Algorithm, Approve, Attest, Destroy, Device, DeviceError, DeviceInfo,
    DeviceState, Fact, Generate, GenerationId, KeyPins, Measurements, NewKey, Newcomer, PeerPublic,
    SharedSecret, Sign, Start, StoredKey, Unlocking,
};
use crate::attest::{Claims, DeviceChallenge, Evidence};
use crate::config::{Pcrs, Tpm2Config};
use crate::failpoint;
use crate::store_key::{StoreKey, Subkey};

mod advice;
mod algorithms;
mod approval;
mod attest;
mod blob;
mod connection;
mod endorsement;
mod failure;
mod files;
mod generations;
mod keys;
mod loaded;
mod nv;
mod operations;
mod parent;
mod pins;
mod policy;

use self::approval::{Approvals, RecoveryKey};
use self::blob::Kept;
use self::connection::{Condition, Connection};
use self::files::{Files, Pinned};
use self::generations::Generations;
use self::nv::Root;
use self::pins::Unlocked;

/// How long a TPM that is there and does not serve is left alone, at first and at
/// most. One that is not there is looked for each time.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(800), Duration::from_secs(30));

/// The device that a TPM is.
pub struct Tpm2Device {
    config: Tpm2Config,
    files: Files,
    index_auth: Subkey,
    index_place: Subkey,
    start: Start,
    open: Option<Open>,
    unlocked: Unlocked,
    info: Arc<DeviceInfo>,
    /// When one that does not serve is looked at again, and how long to wait then.
    back_off: (Instant, Duration),
}

/// What is behind a key.
#[cfg(any(test, feature = "conformance"))]
pub struct Revealed {
    /// The object as the TPM wrapped it: the buffer of its TPM2B_PRIVATE.
    pub private: Vec<u8>,
    /// Its TPMT_PUBLIC.
    pub public: Vec<u8>,
    /// The authorisation value.
    pub auth: Vec<u8>,
    /// The secret of its generation.
    pub generation: [u8; 32],
    /// What the TPM's index holds: a count (8 bytes), and the root's secret (32).
    pub root: Vec<u8>,
}

/// Indices, and the root that each of them holds if one was ever written there.
type OwnRoots = Vec<(u32, Option<Root>)>;

/// What a set-up may write over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// Nothing that a key may hang under.
    Nothing,
    /// Whatever is ours: somebody has ordered it.
    All,
}

/// A TPM that was connected, and the generations of its keys.
struct Open {
    connection: Connection,
    generations: Generations,
    approvals: Approvals,
}

/// What new keys are bound to: these registers, and this recovery key.
type Binding = (Pcrs, RecoveryKey);

impl Tpm2Device {
    /// The device of this name, which is `absent` until it is
    /// [probed](Device::probe). Its files are in `directory`.
    ///
    /// # Errors
    /// If no key can be derived from the store key.
    pub fn new(
        name: &str,
        config: &Tpm2Config,
        directory: &Path,
        store_key: &StoreKey,
        start: Start,
    ) -> Result<Self, DeviceError> {
        let subkey = |purpose: &str| {
            let label = format!("mlskeyd v1 tpm2 {purpose} {name}");
            let subkey = store_key.subkey(&label);
            subkey.map_err(|error| DeviceError::Failed {
                reason: error.to_string(),
            })
        };
        let info = DeviceInfo {
            generations: None,
            name: name.to_owned(),
            kind: "tpm2",
            state: DeviceState::Absent,
            reason: "it has not been looked at yet".to_owned(),
            facts: Vec::new(),
            // What it has beyond this shows when it is there.
            support: algorithms::offered(false),
            unlocked: BTreeSet::new(),
        };
        Ok(Self {
            config: config.clone(),
            files: Files::new(directory.to_owned(), subkey("files")?, subkey("pins")?),
            index_auth: subkey("index")?,
            index_place: subkey("index place")?,
            start,
            open: None,
            unlocked: Unlocked::default(),
            info: Arc::new(info),
            back_off: (Instant::now(), BACK_OFF.0),
        })
    }

    /// What is behind a key. For tests that use it beside the daemon.
    ///
    /// # Errors
    /// As [`Sign::sign`].
    #[cfg(any(test, feature = "conformance"))]
    pub fn reveal(&mut self, key: &StoredKey) -> Result<Revealed, DeviceError> {
        let auth = self.unlocked.auth_of(key)?;
        self.ask(true, |open, _| {
            let secret = open.generations.secret(key.generation)?;
            let (generation, root) = (*secret.expose(), open.generations.root().to_bytes());
            let behind = open.behind(key, auth.as_ref())?;
            let (Kept::InTpm(object) | Kept::Sealed(object)) = behind.kept;
            Ok(Revealed {
                private: object.private,
                public: object.public,
                auth: behind.auth.to_vec(),
                generation,
                root: root.to_vec(),
            })
        })
    }

    /// The storage key as the device makes it where it finds none.
    ///
    /// # Errors
    /// What the TPM says.
    #[cfg(any(test, feature = "conformance"))]
    pub fn standard_parent(
        context: &mut tss_esapi::Context,
    ) -> Result<tss_esapi::handles::KeyHandle, DeviceError> {
        parent::primary(context)
    }

    /// Does something with the TPM, which is connected for that if need be. If it
    /// turns out that the connection is broken, it is made anew, and the work done
    /// again if the TPM has not begun it, or if repeating it is `harmless`.
    fn ask<T>(
        &mut self,
        harmless: bool,
        work: impl Fn(&mut Open, &Files) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let done = match self.ask_once(&work) {
            Err((_, Condition::Stale)) => self.ask_once(&work),
            Err((_, Condition::Lost)) if harmless => self.ask_once(&work),
            done => done,
        };
        let done = done.map_err(|(error, _)| error);
        let may_be_locked_out = matches!(
            done,
            Err(DeviceError::LockedOut { .. } | DeviceError::KeyLocked { .. })
        );
        if may_be_locked_out || pins::shows_lockout(&self.info.facts) {
            self.show_facts();
        }
        done
    }

    /// Shows what the TPM says of itself, and whether it is locked out, as it is now.
    fn show_facts(&mut self) {
        if let Some(open) = &mut self.open {
            let mut facts = open.connection.facts();
            facts.extend(self.config.measured.as_ref().map(|measured| Fact {
                name: "pcrs".to_owned(),
                value: format!("new keys are bound to {}", measured.pcrs),
            }));
            self.info = Arc::new(DeviceInfo {
                facts,
                support: algorithms::offered(open.connection.has_p384()),
                ..DeviceInfo::clone(&self.info)
            });
        }
    }

    /// Shows which keys are unlocked.
    fn show_unlocked(&mut self) {
        self.info = Arc::new(DeviceInfo {
            unlocked: self.unlocked.keys(),
            ..DeviceInfo::clone(&self.info)
        });
    }

    /// Locks the keys that this is true of, and takes them out of the TPM.
    fn lock_keys(&mut self, is_one: impl Fn(loaded::Name) -> bool) {
        if let Some(open) = &mut self.open {
            open.connection.unload(&is_one);
        }
        self.unlocked.remove(is_one);
        self.show_unlocked();
    }

    fn ask_once<T>(
        &mut self,
        work: impl Fn(&mut Open, &Files) -> Result<T, DeviceError>,
    ) -> Result<T, (DeviceError, Condition)> {
        self.connect().map_err(|error| (error, Condition::Sound))?;
        let Some(open) = self.open.as_mut() else {
            return Err((misfit(), Condition::Sound));
        };
        let done = work(open, &self.files);
        let condition = open.connection.condition();
        // What is on disk may be more than what is known here, too.
        let is_unsure =
            condition == Condition::Unsure || matches!(done, Err(DeviceError::Io { .. }));
        if condition != Condition::Sound || is_unsure {
            self.open = None;
        }
        done.map_err(|error| {
            if is_unsure {
                self.note(DeviceState::Failed, error.to_string());
            } else if condition != Condition::Sound {
                self.note(DeviceState::Absent, error.to_string());
            }
            (error, condition)
        })
    }

    /// Connects to the TPM, unless it is connected.
    fn connect(&mut self) -> Result<(), DeviceError> {
        if self.open.is_some() {
            return Ok(());
        }
        match self.opened() {
            Ok(open) => {
                self.serve(open);
                Ok(())
            }
            Err(error) => {
                let state = match error {
                    DeviceError::Absent { .. } | DeviceError::Lost { .. } => DeviceState::Absent,
                    DeviceError::LockedOut { .. } => DeviceState::Locked,
                    _ => DeviceState::Failed,
                };
                let is_missing = matches!(error, DeviceError::Missing { .. });
                self.has(is_missing.then(BTreeSet::new));
                self.note(state, format!("{error}; {}", advice::of(&error)));
                Err(error)
            }
        }
    }

    /// From now on with this one.
    fn serve(&mut self, open: Open) {
        self.has(Some(open.generations.ids()));
        self.open = Some(open);
        self.show_facts();
        // What is missing is not made anew any more.
        self.start = Start::MustExist;
        self.note(DeviceState::Ready, String::new());
    }

    fn opened(&self) -> Result<Open, DeviceError> {
        let is_fresh = self.start == Start::CreateIfAbsent;
        match self.files.pinned()? {
            Some(pinned) => match self.found(&pinned) {
                // No key is on it, so nothing is lost with what is missing.
                Err(error @ DeviceError::Missing { .. }) if is_fresh => {
                    let open = self.set_up(self.present()?, Over::Nothing)?;
                    let device = &self.info.name;
                    tracing::warn!(device, %error, "a TPM device without keys was set up anew");
                    Ok(open)
                }
                found => found,
            },
            None if is_fresh => self.set_up(self.any()?, Over::Nothing),
            None => Err(DeviceError::Missing {
                what: "the directory of the device, or its file `device`,".to_owned(),
            }),
        }
    }

    /// The TPM that is there: as the device's own if it is that. Its storage key is
    /// then the one that it was set up with, whatever other ones it has by now.
    fn present(&self) -> Result<Connection, DeviceError> {
        if let Some(pinned) = self.files.pinned()? {
            match Connection::open(&self.config.tcti, Some(&pinned.parent)) {
                Err(DeviceError::Missing { .. }) => {}
                opened => return opened,
            }
        }
        self.any()
    }

    /// The TPM that is there, whichever it is.
    fn any(&self) -> Result<Connection, DeviceError> {
        Connection::open(&self.config.tcti, None)
    }

    /// As it was set up.
    fn found(&self, pinned: &Pinned) -> Result<Open, DeviceError> {
        let mut connection = Connection::open(&self.config.tcti, Some(&pinned.parent))?;
        let index = pinned.index;
        let root = if connection.find_index(index, &self.index_auth)? {
            connection.read_root()?
        } else {
            None
        };
        let root = root.ok_or_else(|| DeviceError::Missing {
            what: format!("mlskeyd's NV index {index:#010x}, without which no key can be used,"),
        })?;
        Ok(Open {
            generations: Generations::read(&self.files, root)?,
            approvals: Approvals::read(&self.files),
            connection,
        })
    }

    /// The same, if it has all that its keys need.
    fn if_whole(&self, pinned: &Pinned) -> Result<Option<Open>, DeviceError> {
        match self.found(pinned) {
            Ok(open) => Ok(Some(open)),
            Err(DeviceError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// For the first time with this TPM. What a crash leaves in the middle of it is
    /// used, or written over, by the next one. Until the TPM is pinned the files of
    /// another one, which it takes the place of, stay as they are.
    fn set_up(&self, mut connection: Connection, over: Over) -> Result<Open, DeviceError> {
        let own = self.own_roots(&mut connection)?;
        if over == Over::Nothing {
            for (index, root) in &own {
                self.check_unused(*index, root.as_ref())?;
            }
        }
        let counts = own.iter().flat_map(|(_, root)| root).map(Root::count);
        let count = counts.max().unwrap_or_default();
        let index = self.set_up_index(&mut connection, own.into_iter().map(|(index, _)| index))?;
        failpoint::hit("tpm2.index-made");
        let root = Root::after(count.max(self.files.highest_count()?))?;
        let generations = Generations::begin(&self.files, root)?;
        connection.write_root(generations.root())?;
        failpoint::hit("tpm2.root-made");
        self.files.pin(&Pinned {
            parent: connection.parent_name().to_vec(),
            index,
        })?;
        self.files.remove_others(generations.root())?;
        let (device, index) = (&self.info.name, format!("{index:#010x}"));
        tracing::info!(device, index, "the TPM is set up");
        Ok(Open {
            connection,
            generations,
            approvals: Approvals::read(&self.files),
        })
    }

    /// The indices that are ours, wherever they were put, and their roots: an old
    /// root that stays opens an old file.
    fn own_roots(&self, connection: &mut Connection) -> Result<OwnRoots, DeviceError> {
        let before = self.files.pinned()?.map(|pinned| pinned.index);
        let mut places = nv::candidates(self.config.nv_index, &self.index_place);
        places.extend(before.filter(|before| !places.contains(before)));
        let mut own = Vec::new();
        for index in places {
            if connection.find_index(index, &self.index_auth)? {
                own.push((index, connection.read_root()?));
            }
        }
        Ok(own)
    }

    /// A root that keys may hang under is not written over unasked. Its file is in
    /// another directory then; in this one a set-up that died has left it.
    fn check_unused(&self, index: u32, root: Option<&Root>) -> Result<(), DeviceError> {
        let Some(root) = root else {
            return Ok(());
        };
        match self.files.generations(root) {
            Ok(_) => Ok(()),
            Err(error @ DeviceError::Io { .. }) => Err(error),
            Err(_) => Err(DeviceError::Missing {
                what: format!(
                    "the file that the root in the TPM's NV index {index:#010x} belongs to (is the \
                     state directory mounted, and no other daemon's? where it is lost, `mlskeyctl \
                     devices accept {}` writes over that root, and no key under it can be used again)",
                    self.info.name
                ),
            }),
        }
    }

    /// The one index that is ours from now on: one of those that are, or a new one.
    /// The others go, and never one of somebody else's.
    fn set_up_index(
        &self,
        connection: &mut Connection,
        own: impl Iterator<Item = u32>,
    ) -> Result<u32, DeviceError> {
        let candidates = nv::candidates(self.config.nv_index, &self.index_place);
        let (kept, others): (Vec<u32>, Vec<u32>) =
            own.partition(|index| candidates.contains(index));
        for &index in kept.iter().skip(1).chain(&others) {
            if connection.find_index(index, &self.index_auth)? {
                connection.undefine_index()?;
            }
        }
        for &index in kept.first().into_iter().chain(&candidates) {
            if connection.find_index(index, &self.index_auth)?
                || connection.define_index(index, &self.index_auth)?
            {
                return Ok(index);
            }
        }
        Err(DeviceError::Failed {
            reason: format!(
                "the NV index {:#010x} is somebody else's; name a free one in `nv_index`",
                candidates.last().copied().unwrap_or_default()
            ),
        })
    }

    /// What it has from now on, as far as that is known.
    fn has(&mut self, generations: Option<BTreeSet<GenerationId>>) {
        if self.info.generations.as_deref() != generations.as_ref() {
            self.info = Arc::new(DeviceInfo {
                generations: generations.map(Arc::new),
                ..DeviceInfo::clone(&self.info)
            });
        }
    }

    /// The same, after one more or less.
    fn has_changed(&mut self) {
        if let Some(open) = &self.open {
            self.has(Some(open.generations.ids()));
        }
    }

    /// What new keys are bound to, if to anything. Without the recovery key none is
    /// made.
    fn binding(&self) -> Result<Option<Binding>, DeviceError> {
        let Some(config) = &self.config.measured else {
            return Ok(None);
        };
        Ok(Some((config.pcrs, RecoveryKey::read(config)?)))
    }

    /// The same, for approvals.
    fn bound(&self) -> Result<Binding, DeviceError> {
        self.binding()?.ok_or_else(|| DeviceError::NotApproved {
            reason: "the configuration has no `pcrs` and `recovery_key` for the device; add them"
                .to_owned(),
        })
    }

    fn note(&mut self, state: DeviceState, reason: String) {
        if self.info.state != state || self.info.reason != reason {
            let device = &self.info.name;
            if state == DeviceState::Ready {
                tracing::info!(device, "the TPM is ready");
            } else {
                tracing::warn!(device, %state, reason, "the TPM is not ready");
            }
            self.info = Arc::new(DeviceInfo {
                state,
                reason,
                ..DeviceInfo::clone(&self.info)
            });
        }
        let now = Instant::now();
        self.back_off = match state {
            DeviceState::Failed | DeviceState::Locked => {
                let (_, wait) = self.back_off;
                let longer = wait.saturating_mul(2).min(BACK_OFF.1);
                (now.checked_add(wait).unwrap_or(now), longer)
            }
            _ => (now, BACK_OFF.0),
        };
    }
}

fn misfit() -> DeviceError {
    DeviceError::Failed {
        reason: "the TPM gave an answer that is none".to_owned(),
    }
}

impl Device for Tpm2Device {
    fn info(&self) -> Arc<DeviceInfo> {
        Arc::clone(&self.info)
    }

    fn advice(&self) -> Advice {
        advice::of
    }

    fn comes_back(&self) -> bool {
        true
    }

    fn probe(&mut self) {
        if self.open.is_none() && self.back_off.0 <= Instant::now() {
            // What came of it is in the info.
            let _ = self.connect();
        }
    }

    fn signer(&mut self) -> Option<&mut dyn Sign> {
        Some(self)
    }

    fn agreement(&mut self) -> Option<&mut dyn Agree> {
        Some(self)
    }

    fn generator(&mut self) -> Option<&mut dyn Generate> {
        Some(self)
    }

    fn destroyer(&mut self) -> Option<&mut dyn Destroy> {
        Some(self)
    }

    fn key_pins(&mut self) -> Option<&mut dyn KeyPins> {
        Some(self)
    }

    fn attester(&mut self) -> Option<&mut dyn Attest> {
        Some(self)
    }

    fn accepter(&mut self) -> Option<&mut dyn Accept> {
        Some(self)
    }

    fn approver(&mut self) -> Option<&mut dyn Approve> {
        Some(self)
    }
}

impl Sign for Tpm2Device {
    fn sign(&mut self, key: &StoredKey, content: &[u8]) -> Result<Vec<u8>, DeviceError> {
        let Algorithm::Signature(scheme) = key.algorithm else {
            return Err(DeviceError::WrongKeyType {
                needed: "signatures",
                found: key.algorithm,
            });
        };
        let of_pin = self.unlocked.auth_of(key)?;
        self.ask(true, |open, _| {
            open.sign((key, of_pin.as_ref()), scheme, content)
        })
    }
}

impl Agree for Tpm2Device {
    fn agree(&mut self, key: &StoredKey, peer: &PeerPublic) -> Result<SharedSecret, DeviceError> {
        peer.check_kem(key.algorithm)?;
        peer.check_order()?;
        self.ask(true, |open, _| open.agree(key, peer))
    }
}

impl Generate for Tpm2Device {
    fn create_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        self.ask(false, |open, files| {
            open.generations.create(files, &mut open.connection, id)
        })?;
        self.has_changed();
        Ok(())
    }

    fn generate(&mut self, request: NewKey) -> Result<StoredKey, DeviceError> {
        let binding = self.binding()?;
        self.ask(false, |open, _| open.generate(&request, None, binding))
    }
}

impl KeyPins for Tpm2Device {
    fn generate_with_pin(
        &mut self,
        request: NewKey,
        pin: &SecretBytes,
    ) -> Result<StoredKey, DeviceError> {
        if !matches!(request.algorithm, Algorithm::Signature(_)) {
            return Err(DeviceError::WrongKeyType {
                needed: "signatures",
                found: request.algorithm,
            });
        }
        let binding = self.binding()?;
        self.ask(false, |open, _| open.generate(&request, Some(pin), binding))
    }

    fn unlock_key(
        &mut self,
        key: &StoredKey,
        pin: &SecretBytes,
        last_try: bool,
    ) -> Result<Unlocking, DeviceError> {
        if !key.pin {
            return Err(DeviceError::CannotDo("unlock a key that has no PIN"));
        }
        let name = (key.generation, key.id);
        if self.unlocked.contains(name) {
            return Ok(Unlocking::WasUnlocked);
        }
        let tried = self.ask(false, |open, files| open.try_pin(files, key, pin, last_try));
        self.unlocked.insert(name, tried?);
        self.show_unlocked();
        Ok(Unlocking::ByThePin)
    }

    fn lock_key(&mut self, key: &StoredKey) {
        self.lock_keys(|name| name == (key.generation, key.id));
    }
}

impl Attest for Tpm2Device {
    fn attest(&mut self, key: &StoredKey, claims: &Claims) -> Result<Evidence, DeviceError> {
        let of_pin = self.unlocked.auth_of(key)?;
        self.ask(true, |open, _| open.attest((key, of_pin.as_ref()), claims))
    }

    fn open(&mut self, challenge: &DeviceChallenge) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
        let DeviceChallenge::Tpm2(challenge) = challenge;
        self.ask(true, |open, _| open.connection.activate(challenge))
    }
}

impl Approve for Tpm2Device {
    fn measurements(&mut self) -> Result<Measurements, DeviceError> {
        let binding = self.bound()?;
        self.ask(true, |open, _| open.measurements(binding))
    }

    fn approve(&mut self, signature: &[u8]) -> Result<Measurements, DeviceError> {
        let binding = self.bound()?;
        self.ask(true, |open, files| open.approve(files, binding, signature))
    }
}

impl Destroy for Tpm2Device {
    fn destroy_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        self.lock_keys(|(generation, _)| generation == id);
        // By its name, so that it hits nothing else if it is repeated.
        self.ask(true, |open, files| {
            files.forget_pin(id)?;
            open.generations.destroy(files, &mut open.connection, id)
        })?;
        self.has_changed();
        Ok(())
    }

    fn undo_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        self.lock_keys(|(generation, _)| generation == id);
        self.ask(true, |open, files| {
            files.forget_pin(id)?;
            open.generations.undo(files, id)
        })?;
        self.has_changed();
        Ok(())
    }

    fn destroy_key(&mut self, key: &StoredKey) -> Result<(), DeviceError> {
        // It takes nothing on the TPM but a place among those that are loaded.
        self.lock_keys(|name| name == (key.generation, key.id));
        Ok(())
    }
}

impl Accept for Tpm2Device {
    fn look(&mut self) -> Result<Newcomer, DeviceError> {
        let own = self.files.pinned()?;
        let whole = match (&self.open, &own) {
            (Some(open), _) => Some(open.connection.serial()),
            (None, Some(pinned)) => self.if_whole(pinned)?.map(|open| open.connection.serial()),
            (None, None) => None,
        };
        Ok(Newcomer {
            noun: "TPM",
            fate: "what is only there is lost, even if that one is accepted again",
            is_own: whole.is_some(),
            serial: match whole {
                Some(serial) => serial,
                None => self.present()?.serial(),
            },
            own: own.map(|pinned| connection::serial(&pinned.parent)),
        })
    }

    fn accept(&mut self, serial: &str) -> Result<(), DeviceError> {
        self.open = None;
        let whole = match self.files.pinned()? {
            Some(pinned) => self.if_whole(&pinned)?,
            None => None,
        };
        let is_there = |found: &str| match found == serial {
            true => Ok(()),
            false => Err(DeviceError::Absent {
                reason: format!("it is the TPM {found} that is there"),
            }),
        };
        let open = match whole {
            // Its keys live.
            Some(open) => is_there(&open.connection.serial()).map(|()| open)?,
            None => {
                let connection = self.present()?;
                is_there(&connection.serial())?;
                let open = self.set_up(connection, Over::All)?;
                // They are of the one before.
                self.lock_keys(|_| true);
                open
            }
        };
        self.serve(open);
        Ok(())
    }
}
