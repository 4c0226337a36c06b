//! A TPM 2.0, with keys of its own and keys that it seals.
//!
//! P-256 keys are made in the TPM, under its storage key, and used there: tier
//! `hardware`; so are those of P-384 if it has the curve. A TPM knows no Curve25519,
//! so such keys are made here and sealed by it, and unsealed for one operation: tier
//! `sealed`. Either comes out of the TPM
//! as a blob that only this TPM loads again, and lives in the registry, so that
//! their number is not limited (`blob`).
//!
//! A key is used with an authorisation value that follows from its generation's
//! secret; these are what is destroyed (`generations`). All commands are
//! authorised by one session, whose key only the storage key can open, and which
//! encrypts what is secret in them (`connection`).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256, Sha384};
use tss_esapi::handles::ObjectHandle;
use zeroize::Zeroizing;

use super::{
    ALGORITHMS, Accept, Agree, Algorithm, Attest, Destroy, Device, DeviceError, DeviceInfo,
    DeviceState, Generate, GenerationId, Kem, KeyBlob, NewKey, Newcomer, PeerPublic, SharedSecret,
    Sign, SignatureScheme, Start, StoredKey, Support, Tier, Way, check_public, private_key,
};
use crate::attest::{Claims, DeviceChallenge, Evidence};
use crate::config::Tpm2Config;
use crate::failpoint;
use crate::store_key::{StoreKey, Subkey};

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
mod parent;

use self::blob::Kept;
use self::connection::{Condition, Connection};
use self::files::{Files, Pinned};
use self::generations::Generations;
use self::keys::{Curve, Use};
use self::nv::Root;

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
    info: Arc<DeviceInfo>,
    /// When one that does not serve is looked at again, and how long to wait then.
    back_off: (Instant, Duration),
}

/// An object and its authorisation value.
#[cfg(any(test, feature = "conformance"))]
pub type Revealed = ((Vec<u8>, Vec<u8>), Vec<u8>);

/// A TPM that was connected, and the generations of its keys.
struct Open {
    connection: Connection,
    generations: Generations,
}

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
            name: name.to_owned(),
            kind: "tpm2",
            state: DeviceState::Absent,
            reason: "it has not been looked at yet".to_owned(),
            facts: Vec::new(),
            // What it has beyond this shows when it is there.
            support: offered(false),
        };
        Ok(Self {
            config: config.clone(),
            files: Files::new(directory.to_owned(), subkey("files")?),
            index_auth: subkey("index")?,
            index_place: subkey("index place")?,
            start,
            open: None,
            info: Arc::new(info),
            back_off: (Instant::now(), BACK_OFF.0),
        })
    }

    /// A key's object as the TPM wrapped it (the private and the public area), and
    /// its authorisation value. For tests that use them beside the daemon.
    ///
    /// # Errors
    /// As [`Sign::sign`].
    #[cfg(any(test, feature = "conformance"))]
    pub fn reveal(&mut self, key: &StoredKey) -> Result<Revealed, DeviceError> {
        self.ask(true, |open, _| {
            let secret = open.generations.secret(key.generation)?;
            let (Kept::InTpm(object) | Kept::Sealed(object)) = blob::read(secret, key)?;
            let auth = secret.of_key(key.id)?;
            Ok(((object.private, object.public), auth.to_vec()))
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
        match self.ask_once(&work) {
            Err((_, Condition::Stale)) => {}
            Err((_, Condition::Lost)) if harmless => {}
            done => return done.map_err(|(error, _)| error),
        }
        self.ask_once(&work).map_err(|(error, _)| error)
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
        // What is on disk may be more than what is known here.
        let is_unsure = matches!(done, Err(DeviceError::Io { .. }));
        if condition != Condition::Sound || is_unsure {
            self.open = None;
        }
        done.map_err(|error| {
            if condition != Condition::Sound {
                self.note(DeviceState::Absent, error.to_string());
            } else if is_unsure {
                self.note(DeviceState::Failed, error.to_string());
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
                    DeviceError::Locked { .. } => DeviceState::Locked,
                    _ => DeviceState::Failed,
                };
                self.note(state, format!("{error}; {}", error.advice()));
                Err(error)
            }
        }
    }

    /// From now on with this one.
    fn serve(&mut self, mut open: Open) {
        self.info = Arc::new(DeviceInfo {
            facts: open.connection.facts(),
            support: offered(open.connection.has_p384()),
            ..DeviceInfo::clone(&self.info)
        });
        self.open = Some(open);
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
                    let device = &self.info.name;
                    tracing::warn!(device, %error, "a TPM device without keys is set up anew");
                    self.set_up(self.any()?)
                }
                found => found,
            },
            None if is_fresh => self.set_up(self.any()?),
            None => Err(DeviceError::Missing {
                what: "the directory of the device, or its file `device`,".to_owned(),
            }),
        }
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
            connection,
        })
    }

    /// For the first time with this TPM. What a crash leaves in the middle of it is
    /// used, or written over, by the next one. Until the TPM is pinned the files of
    /// another one, which it takes the place of, stay as they are.
    fn set_up(&self, mut connection: Connection) -> Result<Open, DeviceError> {
        let index = self.set_up_index(&mut connection)?;
        failpoint::hit("tpm2.index-made");
        let count = connection.read_root()?.map_or(0, |root| root.count());
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
        })
    }

    /// Finds the index that is ours, or makes it. Never one of somebody else's.
    fn set_up_index(&self, connection: &mut Connection) -> Result<u32, DeviceError> {
        let candidates = nv::candidates(self.config.nv_index, &self.index_place);
        for &index in &candidates {
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

impl Open {
    /// A key, loaded.
    fn loaded(&mut self, key: &StoredKey) -> Result<(Kept, ObjectHandle), DeviceError> {
        let secret = self.generations.secret(key.generation)?;
        let kept = blob::read(secret, key)?;
        let auth = secret.of_key(key.id)?;
        let (Kept::InTpm(object) | Kept::Sealed(object)) = &kept;
        let name = (key.generation, key.id);
        let loaded = self.connection.load(name, object, &auth);
        let handle = loaded.map_err(|error| self.connection.describe(error))?;
        Ok((kept, handle))
    }

    fn sign(
        &mut self,
        key: &StoredKey,
        scheme: SignatureScheme,
        content: &[u8],
    ) -> Result<Vec<u8>, DeviceError> {
        let (kept, handle) = self.loaded(key)?;
        match (kept, scheme) {
            (Kept::InTpm(_), SignatureScheme::EcdsaP256Sha256) => {
                let signed = self.ecdsa(Curve::P256, handle, &Sha256::digest(content))?;
                let signature = p256::ecdsa::Signature::from_slice(&signed);
                let signature = signature.map_err(|_| misfit())?;
                Ok(signature.to_der().as_bytes().to_vec())
            }
            (Kept::InTpm(_), SignatureScheme::EcdsaP384Sha384) => {
                let signed = self.ecdsa(Curve::P384, handle, &Sha384::digest(content))?;
                let signature = p384::ecdsa::Signature::from_slice(&signed);
                let signature = signature.map_err(|_| misfit())?;
                Ok(signature.to_der().as_bytes().to_vec())
            }
            (Kept::InTpm(_), SignatureScheme::Ed25519) => Err(DeviceError::BadBlob),
            (Kept::Sealed(_), _) => {
                let unsealed = self.connection.unseal(handle);
                let private = unsealed.map_err(|error| self.connection.describe(error))?;
                private_key::sign(scheme, &private, content)
            }
        }
    }

    /// r and s.
    fn ecdsa(
        &mut self,
        curve: Curve,
        key: ObjectHandle,
        digest: &[u8],
    ) -> Result<Vec<u8>, DeviceError> {
        let signed = self.connection.sign(curve, key, digest);
        signed.map_err(|error| self.connection.describe(error))
    }

    fn agree(&mut self, key: &StoredKey, peer: &PeerPublic) -> Result<SharedSecret, DeviceError> {
        let (kept, handle) = self.loaded(key)?;
        match kept {
            Kept::InTpm(_) => {
                let curve = match peer {
                    PeerPublic::P256(_) => Curve::P256,
                    PeerPublic::P384(_) => Curve::P384,
                    PeerPublic::X25519(_) => return Err(DeviceError::BadBlob),
                };
                let shared = self.connection.agree(curve, handle, &peer.to_bytes());
                let shared = shared.map_err(|error| self.connection.describe(error))?;
                SharedSecret::new(peer.kem(), shared)
            }
            Kept::Sealed(_) => {
                let unsealed = self.connection.unseal(handle);
                let private = unsealed.map_err(|error| self.connection.describe(error))?;
                private_key::agree(&private, peer)
            }
        }
    }

    fn attest(&mut self, key: &StoredKey, claims: &Claims) -> Result<Evidence, DeviceError> {
        let secret = self.generations.secret(key.generation)?;
        let Kept::InTpm(object) = blob::read(secret, key)? else {
            return Err(DeviceError::NotAttested {
                reason: "the TPM seals it, and does not use it itself".to_owned(),
            });
        };
        let auth = secret.of_key(key.id)?;
        let name = (key.generation, key.id);
        self.connection.attest(name, object, &auth, claims)
    }

    fn generate(&mut self, request: &NewKey, making: Making) -> Result<StoredKey, DeviceError> {
        let secret = self.generations.secret(request.generation)?;
        let auth = secret.of_key(request.id)?;
        let (public, kept) = match making {
            Making::InTpm(curve, usage) => {
                let made = self.connection.create(curve, usage, &auth);
                let (object, public) = made.map_err(|error| self.connection.describe(error))?;
                check_public(request.algorithm, &public)?;
                (public, Kept::InTpm(object))
            }
            Making::Sealed => {
                let (private, public) = private_key::generate(request.algorithm)?;
                let sealed = self.connection.seal(&private, &auth);
                let object = sealed.map_err(|error| self.connection.describe(error))?;
                (public, Kept::Sealed(object))
            }
        };
        let mut key = StoredKey {
            id: request.id,
            algorithm: request.algorithm,
            tier: request.tier,
            generation: request.generation,
            public,
            blob: KeyBlob::new(Vec::new()),
        };
        key.blob = blob::write(secret, &key, &kept)?;
        Ok(key)
    }
}

/// How a key is made.
#[derive(Clone, Copy)]
enum Making {
    InTpm(Curve, Use),
    Sealed,
}

impl Making {
    const fn tier(self) -> Tier {
        match self {
            Self::InTpm(..) => Tier::Hardware,
            Self::Sealed => Tier::Sealed,
        }
    }
}

/// The one way in which a TPM keeps keys of an algorithm.
const fn making(algorithm: Algorithm, has_p384: bool) -> Making {
    match algorithm {
        Algorithm::Signature(SignatureScheme::EcdsaP256Sha256) => {
            Making::InTpm(Curve::P256, Use::Sign)
        }
        Algorithm::Hpke(Kem::DhKemP256) => Making::InTpm(Curve::P256, Use::Agree),
        Algorithm::Signature(SignatureScheme::EcdsaP384Sha384) if has_p384 => {
            Making::InTpm(Curve::P384, Use::Sign)
        }
        Algorithm::Hpke(Kem::DhKemP384) if has_p384 => Making::InTpm(Curve::P384, Use::Agree),
        Algorithm::Signature(SignatureScheme::Ed25519 | SignatureScheme::EcdsaP384Sha384)
        | Algorithm::Hpke(Kem::DhKemX25519 | Kem::DhKemP384) => Making::Sealed,
    }
}

/// What a TPM with or without P-384 does.
fn offered(has_p384: bool) -> Vec<Support> {
    let support = |algorithm| {
        let making = making(algorithm, has_p384);
        let (how, why_no_other) = match (making, algorithm) {
            (Making::InTpm(..), _) => (
                "made in the TPM, kept as blobs that only it loads",
                "not sealed: the TPM keeps such keys itself",
            ),
            (
                Making::Sealed,
                Algorithm::Signature(SignatureScheme::EcdsaP384Sha384)
                | Algorithm::Hpke(Kem::DhKemP384),
            ) => (
                "sealed by the TPM",
                "not hardware: this TPM does not have P-384",
            ),
            (Making::Sealed, _) => (
                "sealed by the TPM",
                "not hardware: a TPM 2.0 does not know Curve25519",
            ),
        };
        Support {
            algorithm,
            ways: vec![Way {
                tier: making.tier(),
                how: how.to_owned(),
            }],
            why_no_other: why_no_other.to_owned(),
        }
    };
    ALGORITHMS.into_iter().map(support).collect()
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

    fn attester(&mut self) -> Option<&mut dyn Attest> {
        Some(self)
    }

    fn accepter(&mut self) -> Option<&mut dyn Accept> {
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
        self.ask(true, |open, _| open.sign(key, scheme, content))
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
        self.ask(false, |open, files| open.generations.create(files, id))
    }

    fn generate(&mut self, request: NewKey) -> Result<StoredKey, DeviceError> {
        self.ask(false, |open, _| {
            let making = making(request.algorithm, open.connection.has_p384());
            if request.tier != making.tier() {
                return Err(DeviceError::Unsupported {
                    algorithm: request.algorithm,
                    tier: request.tier,
                    possible: vec![making.tier()],
                });
            }
            open.generate(&request, making)
        })
    }
}

impl Attest for Tpm2Device {
    fn attest(&mut self, key: &StoredKey, claims: &Claims) -> Result<Evidence, DeviceError> {
        self.ask(true, |open, _| open.attest(key, claims))
    }

    fn open(&mut self, challenge: &DeviceChallenge) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
        let DeviceChallenge::Tpm2(challenge) = challenge;
        self.ask(true, |open, _| open.connection.activate(challenge))
    }
}

impl Destroy for Tpm2Device {
    fn destroy_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        // By its name, so that it hits nothing else if it is repeated.
        self.ask(true, |open, files| {
            open.connection.unload(|(generation, _)| generation == id);
            open.generations.destroy(files, &mut open.connection, id)
        })
    }

    fn destroy_key(&mut self, key: &StoredKey) -> Result<(), DeviceError> {
        // It takes nothing on the TPM but a place among those that are loaded.
        if let Some(open) = &mut self.open {
            open.connection
                .unload(|name| name == (key.generation, key.id));
        }
        Ok(())
    }
}

impl Accept for Tpm2Device {
    fn look(&mut self) -> Result<Newcomer, DeviceError> {
        let own = self.files.pinned()?;
        let serial = match &self.open {
            Some(open) => open.connection.serial(),
            None => self.any()?.serial(),
        };
        Ok(Newcomer {
            serial,
            own: own.map(|pinned| connection::serial(&pinned.parent)),
        })
    }

    fn accept(&mut self, serial: &str) -> Result<(), DeviceError> {
        self.open = None;
        let connection = self.any()?;
        if connection.serial() != serial {
            return Err(DeviceError::Absent {
                reason: format!("it is the TPM {} that is there", connection.serial()),
            });
        }
        let open = self.set_up(connection)?;
        self.serve(open);
        Ok(())
    }
}
