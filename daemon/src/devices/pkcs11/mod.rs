//! PKCS#11 tokens (PKCS#11 3.1), each a device.
//!
//! A vendor's module runs in a helper process of its own ([`helper`], the
//! program `mlskeyd-pkcs11`), so that its faults are its own: here is the
//! daemon's half, which speaks to it over a socketpair (`wire`).
//!
//! A **generation** is an AES key of the token that wraps, and does nothing
//! else. Signature keys are objects of the token beside it. HPKE keys, of which
//! there are thousands, are made in the token, wrapped by their generation's
//! key and kept in the registry; for use they are unwrapped into the token's
//! session. Where the token does not wrap keys of a curve they are objects, too,
//! up to a number. All objects of a generation carry its label, and die with it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use mlskeyd_protocol::v1::SecretBytes;
use secrecy::SecretBox;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Agree, Algorithm, Destroy, Device, DeviceError, DeviceInfo, DeviceState, Generate,
    GenerationId, Kem, KeyBlob, NewKey, PeerPublic, SharedSecret, Sign, SignatureScheme, StoredKey,
    Support, Tier,
};
use crate::config::{Pkcs11Config, TokenChoice};
use crate::store_key::{StoreKey, Subkey};

pub mod helper;
mod module;
mod pin;
mod wire;

use self::module::Connection;
pub use self::module::{Module, ModuleConfig};
use self::pin::Pins;
use self::wire::{Keeping, Kept, Place, Reply, Request, TokenError, TokenName, TokenSupport};

/// A token of a module.
pub struct Pkcs11Device {
    info: Arc<DeviceInfo>,
    module: Arc<Module>,
    token: TokenName,
    pins: Pins,
    /// Authenticates what the registry keeps for this device.
    blob_key: Subkey,
    /// How long a call may take.
    patience: Duration,
    /// Most private keys on the token.
    max_objects: u32,
    connection: Option<Connection>,
}

/// What the registry keeps for a key: where it is, and a MAC over that and all
/// that it is for.
#[derive(Serialize, Deserialize)]
struct Blob {
    place: Place,
    mac: [u8; 32],
}

impl Pkcs11Device {
    /// Opens the device of this name. A token that is not there now makes it
    /// `absent`. What it notes of PINs is in `directory`.
    ///
    /// # Errors
    /// If no key can be derived from the store key.
    pub fn open(
        name: &str,
        config: &Pkcs11Config,
        directory: &Path,
        module: Arc<Module>,
        store_key: &StoreKey,
    ) -> Result<Self, DeviceError> {
        let subkey = |purpose: &str| {
            let label = format!("mlskeyd v1 pkcs11 {purpose} {name}");
            let subkey = store_key.subkey(&label);
            subkey.map_err(|error| DeviceError::Failed {
                reason: error.to_string(),
            })
        };
        let note = directory.join("pin-tried");
        let mut device = Self {
            info: Arc::new(DeviceInfo {
                name: name.to_owned(),
                kind: "pkcs11",
                state: DeviceState::Absent,
                reason: String::new(),
                support: Vec::new(),
            }),
            module,
            token: match &config.token {
                TokenChoice::Label(label) => TokenName::Label(label.clone()),
                TokenChoice::Serial(serial) => TokenName::Serial(serial.clone()),
            },
            pins: Pins::new(config.pin.clone(), note, subkey("pin")?),
            blob_key: subkey("blob")?,
            patience: config.call_timeout,
            max_objects: config.max_objects,
            connection: None,
        };
        // How it went is in its state.
        let _ = device.connect();
        Ok(device)
    }

    /// Connects to the token, if it is not connected.
    fn connect(&mut self) -> Result<(), DeviceError> {
        if self.connection.is_some() {
            return Ok(());
        }
        match self.log_in() {
            Ok((connection, support)) => {
                self.connection = Some(connection);
                self.now(DeviceState::Ready, String::new(), Some(support));
                Ok(())
            }
            Err(error) => {
                let state = match error {
                    DeviceError::Locked { .. } => DeviceState::Locked,
                    DeviceError::Absent { .. } | DeviceError::Io { .. } => DeviceState::Absent,
                    _ => DeviceState::Failed,
                };
                self.now(state, format!("{error}; {}", error.advice()), None);
                Err(error)
            }
        }
    }

    /// A connection whose session is logged in, and what the token can do.
    fn log_in(&self) -> Result<(Connection, Vec<Support>), DeviceError> {
        let mut connection = self.module.connect().map_err(|source| DeviceError::Io {
            what: "starting the module's helper",
            source,
        })?;
        let open = |pin| Request::Open {
            token: self.token.clone(),
            pin,
            max_objects: self.max_objects,
        };
        // First without: the helper may be logged in, and the token may not be
        // there at all.
        match self.converse(&mut connection, &open(None))? {
            Reply::Opened => {}
            Reply::Failed(TokenError::Locked) => self.log_in_with_pin(&mut connection, open)?,
            Reply::Failed(error) => {
                if matches!(error, TokenError::Absent(_)) {
                    self.module.end_if_alone(&connection);
                }
                return Err(of_token(error));
            }
            _ => return Err(misfit()),
        }
        match self.converse(&mut connection, &Request::TryOut)? {
            Reply::Support(found) => Ok((connection, support(found)?)),
            Reply::Failed(error) => Err(of_token(error)),
            _ => Err(misfit()),
        }
    }

    fn log_in_with_pin(
        &self,
        connection: &mut Connection,
        open: impl Fn(Option<SecretBytes>) -> Request,
    ) -> Result<(), DeviceError> {
        let Some(trial) = self.pins.try_one()? else {
            return Err(of_token(TokenError::Locked));
        };
        let pin = SecretBytes::new(trial.pin.expose().to_vec());
        match self.converse(connection, &open(Some(pin)))? {
            Reply::Opened => trial.was_right(),
            Reply::Failed(error) => {
                match error {
                    TokenError::WrongPin => trial.was_wrong()?,
                    // The token has not seen it.
                    TokenError::LastTry | TokenError::PinLocked | TokenError::Absent(_) => {
                        trial.was_not_used()?;
                    }
                    _ => {}
                }
                Err(of_token(error))
            }
            _ => Err(misfit()),
        }
    }

    fn now(&mut self, state: DeviceState, reason: String, support: Option<Vec<Support>>) {
        let support = support.unwrap_or_else(|| self.info.support.clone());
        self.info = Arc::new(DeviceInfo {
            name: self.info.name.clone(),
            kind: "pkcs11",
            state,
            reason,
            support,
        });
    }

    /// Asks the token. A connection that turns out to be dead is replaced; the
    /// request is repeated only if that is `harmless`.
    fn ask(&mut self, request: &Request, harmless: bool) -> Result<Reply, DeviceError> {
        let first = self.ask_once(request);
        let lost = matches!(
            first,
            Err(DeviceError::Absent { .. } | DeviceError::Io { .. })
        );
        if lost && harmless {
            return self.ask_once(request);
        }
        first
    }

    fn ask_once(&mut self, request: &Request) -> Result<Reply, DeviceError> {
        self.connect()?;
        // The session may be poisoned by what goes wrong: then it is gone.
        let Some(mut connection) = self.connection.take() else {
            return Err(misfit());
        };
        match self.converse(&mut connection, request)? {
            Reply::Failed(error) if !is_about_the_request(&error) => {
                if matches!(error, TokenError::Gone(_)) {
                    // Some modules see what is back only when they are loaded anew.
                    self.module.end_if_alone(&connection);
                }
                Err(of_token(error))
            }
            reply => {
                self.connection = Some(connection);
                Ok(reply)
            }
        }
    }

    /// One request and its reply. A helper that does not answer in time is
    /// ended.
    fn converse(
        &self,
        connection: &mut Connection,
        request: &Request,
    ) -> Result<Reply, DeviceError> {
        let talk = |stream: &UnixStream| {
            let mut stream = Timed::new(stream, self.patience);
            wire::send(&mut stream, request)?;
            wire::receive(&mut stream)
        };
        talk(&connection.stream).map_err(|source| {
            let hangs = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
            if hangs.contains(&source.kind()) {
                self.module.end(connection);
            }
            DeviceError::Io {
                what: "asking the module's helper",
                source,
            }
        })
    }

    /// What the token computes with a key: exactly `N` bytes.
    fn ask_for_bytes<const N: usize>(
        &mut self,
        request: &Request,
        generation: GenerationId,
    ) -> Result<SecretBytes, DeviceError> {
        match self.ask(request, true)? {
            Reply::Bytes(bytes) if bytes.expose().len() == N => Ok(bytes),
            Reply::Failed(TokenError::NotFound) => Err(DeviceError::GenerationGone(generation)),
            Reply::Failed(TokenError::Refused(_)) => Err(DeviceError::BadBlob),
            Reply::Failed(error) => Err(of_token(error)),
            _ => Err(self.out_of_step()),
        }
    }

    /// A reply of the wrong kind: all that follow would be of the request before.
    fn out_of_step(&mut self) -> DeviceError {
        self.connection = None;
        misfit()
    }

    fn kept(&self, key: &StoredKey) -> Result<Kept, DeviceError> {
        let bytes = key.blob.as_bytes();
        let blob: Blob = postcard::from_bytes(bytes).map_err(|_| DeviceError::BadBlob)?;
        // Postcard writes in one way, and reads in several.
        if postcard::to_stdvec(&blob).is_ok_and(|written| written != bytes) {
            return Err(DeviceError::BadBlob);
        }
        self.mac(key, &blob.place)?
            .verify_slice(&blob.mac)
            .map_err(|_| DeviceError::BadBlob)?;
        Ok(Kept {
            key: *key.id.as_bytes(),
            generation: *key.generation.as_bytes(),
            algorithm: key.algorithm,
            place: blob.place,
        })
    }

    /// Over everything that a blob is for, so that it serves nothing else.
    fn mac(&self, key: &StoredKey, place: &Place) -> Result<Hmac<Sha256>, DeviceError> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.blob_key.expose()).map_err(|_| misfit())?;
        let about = (
            key.id,
            key.generation,
            key.algorithm,
            key.tier,
            &key.public,
            place,
        );
        mac.update(&postcard::to_stdvec(&about).map_err(|_| misfit())?);
        Ok(mac)
    }
}

/// Errors that say nothing about the session.
const fn is_about_the_request(error: &TokenError) -> bool {
    matches!(
        error,
        TokenError::GenerationExists
            | TokenError::NotFound
            | TokenError::Unsupported(_)
            | TokenError::Refused(_)
            | TokenError::Full(_)
    )
}

fn of_token(error: TokenError) -> DeviceError {
    let reason = bounded(&error.to_string());
    match error {
        TokenError::Absent(_) | TokenError::Gone(_) => DeviceError::Absent { reason },
        TokenError::Locked | TokenError::WrongPin | TokenError::LastTry => {
            DeviceError::Locked { reason }
        }
        TokenError::Full(_) => DeviceError::Full { reason },
        _ => DeviceError::Failed { reason },
    }
}

fn misfit() -> DeviceError {
    DeviceError::Failed {
        reason: TokenError::Protocol.to_string(),
    }
}

/// What the token says of each algorithm that the daemon knows, once.
fn support(found: Vec<TokenSupport>) -> Result<Vec<Support>, DeviceError> {
    let mut support = Vec::new();
    for algorithm in ALGORITHMS {
        let mut of_it = found.iter().filter(|found| found.algorithm == algorithm);
        let (Some(one), None) = (of_it.next(), of_it.next()) else {
            return Err(misfit());
        };
        let tier = one.keeping.map(|keeping| match keeping {
            Keeping::Objects | Keeping::Wrapped => Tier::Hardware,
            Keeping::WrappedUnenforced => Tier::Sealed,
        });
        support.push(Support {
            algorithm,
            tiers: tier.into_iter().collect(),
            why_no_other: match one.keeping {
                Some(Keeping::WrappedUnenforced) => {
                    "the token would unwrap keys so that they can be read".to_owned()
                }
                _ => bounded(&one.why),
            },
        });
    }
    Ok(support)
}

const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::Signature(SignatureScheme::Ed25519),
    Algorithm::Signature(SignatureScheme::EcdsaP256Sha256),
    Algorithm::Hpke(Kem::DhKemP256),
    Algorithm::Hpke(Kem::DhKemX25519),
];

/// A text of the helper, fit for people and tables.
fn bounded(text: &str) -> String {
    const MOST: usize = 200;
    text.chars()
        .filter(|c| !c.is_control())
        .take(MOST)
        .collect()
}

/// A public key that a token made goes out to others, who must not meet one that
/// is none.
fn check_public(algorithm: Algorithm, public: &[u8]) -> Result<(), DeviceError> {
    let is_one = match algorithm {
        Algorithm::Signature(SignatureScheme::Ed25519) => public
            .try_into()
            .is_ok_and(|bytes| ed25519_dalek::VerifyingKey::from_bytes(bytes).is_ok()),
        Algorithm::Signature(SignatureScheme::EcdsaP256Sha256)
        | Algorithm::Hpke(Kem::DhKemP256) => PeerPublic::parse(Kem::DhKemP256, public).is_ok(),
        Algorithm::Hpke(Kem::DhKemX25519) => {
            let peer = PeerPublic::parse(Kem::DhKemX25519, public);
            peer.is_ok_and(|peer| peer.check_order().is_ok())
        }
    };
    if is_one {
        return Ok(());
    }
    Err(DeviceError::Failed {
        reason: "it made a public key that is none".to_owned(),
    })
}

/// A stream on which everything together may take so long.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a UnixStream, patience: Duration) -> Self {
        let now = Instant::now();
        let until = now.checked_add(patience).unwrap_or(now);
        Self { stream, until }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Device for Pkcs11Device {
    fn info(&self) -> Arc<DeviceInfo> {
        Arc::clone(&self.info)
    }

    fn comes_back(&self) -> bool {
        true
    }

    fn probe(&mut self) {
        // Without another PIN the token is left in peace.
        if self.info.state == DeviceState::Locked && !self.pins.has_another() {
            return;
        }
        // How it went is in its state.
        let _ = self.connect();
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
}

impl Sign for Pkcs11Device {
    fn sign(&mut self, key: &StoredKey, content: &[u8]) -> Result<Vec<u8>, DeviceError> {
        let Algorithm::Signature(scheme) = key.algorithm else {
            return Err(DeviceError::WrongKeyType {
                needed: "signatures",
                found: key.algorithm,
            });
        };
        let content = match scheme {
            SignatureScheme::EcdsaP256Sha256 => Sha256::digest(content).to_vec(),
            SignatureScheme::Ed25519 => content.to_vec(),
        };
        let request = Request::Sign {
            key: self.kept(key)?,
            content: SecretBytes::new(content),
        };
        let signature = self.ask_for_bytes::<64>(&request, key.generation)?;
        match scheme {
            SignatureScheme::Ed25519 => Ok(signature.expose().to_vec()),
            SignatureScheme::EcdsaP256Sha256 => {
                let signature =
                    p256::ecdsa::Signature::from_slice(signature.expose()).map_err(|_| misfit())?;
                Ok(signature.to_der().as_bytes().to_vec())
            }
        }
    }
}

impl Agree for Pkcs11Device {
    fn agree(&mut self, key: &StoredKey, peer: &PeerPublic) -> Result<SharedSecret, DeviceError> {
        let kem = match key.algorithm {
            Algorithm::Hpke(kem) if kem == peer.kem() => kem,
            found => {
                return Err(DeviceError::WrongKeyType {
                    needed: match peer.kem() {
                        Kem::DhKemP256 => "DHKEM P-256",
                        Kem::DhKemX25519 => "DHKEM X25519",
                    },
                    found,
                });
            }
        };
        peer.check_order()?;
        let request = Request::Agree {
            key: self.kept(key)?,
            peer: peer.to_bytes(),
        };
        let secret = self.ask_for_bytes::<32>(&request, key.generation)?;
        let mut array = Box::new([0; 32]);
        array.copy_from_slice(secret.expose());
        SharedSecret::new(kem, SecretBox::new(array))
    }
}

impl Generate for Pkcs11Device {
    fn create_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        let generation = *id.as_bytes();
        match self.ask(&Request::CreateGeneration { generation }, false)? {
            Reply::Done => Ok(()),
            Reply::Failed(TokenError::GenerationExists) => Err(DeviceError::GenerationExists(id)),
            Reply::Failed(error) => Err(of_token(error)),
            _ => Err(self.out_of_step()),
        }
    }

    fn generate(&mut self, request: NewKey) -> Result<StoredKey, DeviceError> {
        self.connect()?;
        let possible = self.info.tiers(request.algorithm).to_vec();
        if !possible.contains(&request.tier) {
            return Err(DeviceError::Unsupported {
                algorithm: request.algorithm,
                tier: request.tier,
                possible,
            });
        }
        let asked = Request::Generate {
            key: *request.id.as_bytes(),
            generation: *request.generation.as_bytes(),
            algorithm: request.algorithm,
        };
        let (public, place) = match self.ask(&asked, false)? {
            Reply::Made { public, place } => (public, place),
            Reply::Failed(TokenError::NotFound) => {
                return Err(DeviceError::GenerationGone(request.generation));
            }
            Reply::Failed(error) => return Err(of_token(error)),
            _ => return Err(self.out_of_step()),
        };
        check_public(request.algorithm, &public)?;
        let mut key = StoredKey {
            id: request.id,
            algorithm: request.algorithm,
            tier: request.tier,
            generation: request.generation,
            public,
            blob: KeyBlob::new(Vec::new()),
        };
        let mac = self.mac(&key, &place)?.finalize().into_bytes().into();
        let blob = postcard::to_stdvec(&Blob { place, mac }).map_err(|_| misfit())?;
        key.blob = KeyBlob::new(blob);
        Ok(key)
    }
}

impl Destroy for Pkcs11Device {
    fn destroy_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        let generation = *id.as_bytes();
        match self.ask(&Request::DestroyGeneration { generation }, true)? {
            Reply::Done => Ok(()),
            Reply::Failed(error) => Err(of_token(error)),
            _ => Err(self.out_of_step()),
        }
    }
}
