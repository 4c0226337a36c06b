//! A TPM 2.0, with keys of its own and keys that it seals.
//!
//! Keys of P-256, and of P-384 if the TPM has it, are made in the TPM, under its
//! storage key, and used there: tier `hardware`. What it does not know is made here
//! and sealed by it, and unsealed for one operation: tier `sealed` (`algorithms`).
//! Either comes out of the TPM as a blob that only this TPM loads again, and lives in
//! the registry, so that their number is not limited (`blob`).
//!
//! A key is used with an authorisation value that follows from its generation's
//! secret, and from its PIN if it has one (`pins`); these secrets are what is
//! destroyed (`generations`, `index`). A key may also be bound to the machine's
//! measurements (`policy`), or to others that were approved (`approval`). All commands
//! are authorised by one session, whose key only the storage key can open, and which
//! encrypts what is secret in them (`connection`).
//!
//! | what | where |
//! |---|---|
//! | the device as others see it | `device` |
//! | finding the TPM, setting one up | `setup`, `parent`, `capabilities` |
//! | what is done with keys | `operations`, which calls `keys` |
//! | evidence for others | `attest`, `endorsement` |
//! | what is said of errors | `failure`, `advice` |

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{DeviceError, DeviceInfo, DeviceState, Fact, GenerationId, Start};
use crate::config::{Pcrs, Tpm2Config};
use crate::store_key::{StoreKey, Subkey};

mod advice;
mod algorithms;
mod approval;
mod attest;
mod blob;
mod capabilities;
mod connection;
mod device;
mod endorsement;
mod failure;
mod files;
mod generations;
mod index;
mod keys;
mod loaded;
mod nv;
mod operations;
mod parent;
mod pins;
mod policy;
mod setup;

use self::approval::{Approvals, RecoveryKey};
#[cfg(any(test, feature = "conformance"))]
use self::blob::Kept;
use self::connection::{Condition, Connection};
use self::files::Files;
use self::generations::Generations;
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
    /// Of a key that is bound to measurements: the registers, and the digests of the
    /// ways that its policy has, in the order in which `PolicyOR` has them.
    pub policy: Option<(Vec<u8>, [[u8; 32]; 3])>,
    /// The secret of its generation.
    pub generation: [u8; 32],
    /// What the TPM's index holds: a count (8 bytes), and the root's secret (32).
    pub root: Vec<u8>,
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
    /// [probed](super::Device::probe). Its files are in `directory`.
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
            support: algorithms::offered(None),
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
    /// As [`Sign::sign`](super::Sign::sign).
    #[cfg(any(test, feature = "conformance"))]
    pub fn reveal(&mut self, key: &super::StoredKey) -> Result<Revealed, DeviceError> {
        let auth = self.unlocked.auth_of(key)?;
        self.ask(true, |open, _| {
            let secret = open.generations.secret(key.generation)?;
            let (generation, root) = (*secret.expose(), open.generations.root().to_bytes());
            let behind = open.behind(key, auth.as_ref())?;
            let reference = open.connection.reference();
            let policy = behind.policy.map(|policy| {
                let registers = policy.measured.pcrs.numbers().collect();
                (registers, policy.branches(&reference))
            });
            let (Kept::InTpm(object) | Kept::Sealed(object)) = behind.kept;
            Ok(Revealed {
                private: object.private,
                public: object.public,
                auth: behind.auth.to_vec(),
                policy,
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
                support: algorithms::offered(Some(open.connection.has_p384())),
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
            return Err((failure::no_answer(), Condition::Sound));
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
        self.binding()?.ok_or_else(approval::not_set_up)
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
            DeviceState::Failed => {
                let (_, wait) = self.back_off;
                let longer = wait.saturating_mul(2).min(BACK_OFF.1);
                (now.checked_add(wait).unwrap_or(now), longer)
            }
            _ => (now, BACK_OFF.0),
        };
    }
}
