//! PKCS#11 tokens (PKCS#11 3.1), each a device.
//!
//! A vendor's module runs in a helper process of its own ([`helper`], the
//! program `mlskeyd-pkcs11`), one for each token, so that its faults are its own:
//! here is the daemon's half, which speaks to it over a socketpair (`wire`).
//!
//! A **generation** begins with an AES key of the token that wraps, and does
//! nothing else (its *anchor*; a data object where the token makes no AES keys).
//! Signature keys are objects of the token beside it. HPKE keys, of which there
//! are thousands, are made in the token, wrapped by their generation's key and
//! kept in the registry; for use they are unwrapped into the token's session.
//! Where the token does not wrap keys of a curve they are objects, too, up to a
//! number. Keys in tier `sealed` are made here, and encrypted by another AES key
//! of their generation. All objects of a generation carry its label, and die
//! with it.

use std::path::Path;
use std::sync::Arc;

use mlskeyd_protocol::v1::SecretBytes;
use sha2::{Digest, Sha256, Sha384};

use super::blob::Blobs;
use super::own_token::OwnToken;
use super::pins::Pins;
use super::{
    ALGORITHMS, Accept, Adopt, Adoption, Agree, Algorithm, Destroy, Device, DeviceError,
    DeviceInfo, Generate, GenerationId, KeyBlob, Meter, NewKey, Newcomer, PeerPublic, SharedSecret,
    Sign, SignatureScheme, Start, Stopper, StoredKey, Tier, Unlock, Unlocking, check_public,
    private_key,
};
use crate::config::Pkcs11Config;
use crate::store_key::StoreKey;

mod abilities;
pub mod helper;
mod link;
mod process;
mod timed;
mod whereabouts;
mod wire;

use self::abilities::{Make, Plan};
use self::link::Link;
pub use self::process::HelperConfig;
use self::process::HelperProcess;
use self::whereabouts::Whereabouts;
use self::wire::{Kept, Reply, Request, TokenError};

/// One hand of the device that a token is: as many of them work at once as it
/// has sessions.
#[derive(Clone)]
pub struct Pkcs11Device {
    link: Arc<Link>,
    blobs: Arc<Blobs<Whereabouts>>,
}

impl Pkcs11Device {
    /// The device of this name, which is `absent` until it is
    /// [probed](Device::probe). What it notes of PINs, and of which token it is, is
    /// in `directory`.
    ///
    /// # Errors
    /// If no key can be derived from the store key.
    pub fn new(
        name: &str,
        config: &Pkcs11Config,
        helper: HelperConfig,
        directory: &Path,
        store_key: &StoreKey,
        start: Start,
    ) -> Result<Self, DeviceError> {
        let subkey = |purpose: &str| {
            let label = format!("mlskeyd v1 pkcs11 {purpose} {name}");
            let subkey = store_key.subkey(&label);
            subkey.map_err(|error| DeviceError::Failed {
                reason: error.to_string(),
            })
        };
        let pin_keys = (subkey("pin")?, subkey("given pin")?);
        let link = Link::new(
            name,
            config,
            HelperProcess::new(helper, directory.join("helper")),
            OwnToken::new(name, directory, subkey("token")?, start),
            Pins::new(config.pin.clone(), directory, pin_keys),
        );
        Ok(Self {
            link: Arc::new(link),
            blobs: Arc::new(Blobs::new("pkcs11", subkey("blob")?)),
        })
    }

    /// What the token computes with a key: exactly so many bytes.
    fn ask_for_bytes(
        &self,
        length: usize,
        request: &Request,
        generation: GenerationId,
    ) -> Result<SecretBytes, DeviceError> {
        match self.link.ask(request)? {
            Reply::Bytes(bytes) if bytes.expose().len() == length => Ok(bytes),
            Reply::Failed(TokenError::NotFound) => Err(DeviceError::GenerationGone(generation)),
            Reply::Failed(TokenError::Refused(_)) => Err(DeviceError::BadBlob),
            Reply::Failed(error) => Err(of_token(error)),
            _ => Err(misfit()),
        }
    }

    /// Asks for something that makes an object; no room for one is no fault.
    fn ask_to_make(
        &self,
        plan: &Plan,
        request: &Request,
        generation: GenerationId,
    ) -> Result<Reply, DeviceError> {
        match self.link.make(plan, request)? {
            Reply::Failed(TokenError::NotFound) => Err(DeviceError::GenerationGone(generation)),
            Reply::Failed(TokenError::GenerationExists) => {
                Err(DeviceError::GenerationExists(generation))
            }
            Reply::Failed(error @ TokenError::Memory(_)) => Err(DeviceError::Full {
                reason: bounded(&error.to_string()),
            }),
            Reply::Failed(error) => Err(of_token(error)),
            reply => Ok(reply),
        }
    }

    /// A sealed key, for one operation.
    fn unseal(&self, key: &StoredKey, sealed: wire::Sealed) -> Result<SecretBytes, DeviceError> {
        let request = Request::Unseal {
            generation: *key.generation.as_bytes(),
            sealed,
        };
        self.ask_for_bytes(private_key::len(key.algorithm), &request, key.generation)
    }

    /// Makes a key here and has the token encrypt it.
    fn make_sealed(
        &self,
        plan: &Plan,
        request: &NewKey,
    ) -> Result<(Vec<u8>, Whereabouts), DeviceError> {
        let (private, public) = private_key::generate(request.algorithm)?;
        let asked = Request::Seal {
            generation: *request.generation.as_bytes(),
            secret: SecretBytes::new(private.to_vec()),
        };
        match self.ask_to_make(plan, &asked, request.generation)? {
            Reply::Sealed(sealed) => Ok((public, Whereabouts::Sealed(sealed))),
            _ => Err(misfit()),
        }
    }

    /// Has the token make a key.
    fn make_in_token(
        &self,
        plan: &Plan,
        request: &NewKey,
        keep: wire::Keep,
    ) -> Result<(Vec<u8>, Whereabouts), DeviceError> {
        let asked = Request::Generate {
            key: *request.id.as_bytes(),
            generation: *request.generation.as_bytes(),
            algorithm: request.algorithm,
            keep,
        };
        match self.ask_to_make(plan, &asked, request.generation)? {
            Reply::Made { public, place } => {
                check_public(request.algorithm, &public)?;
                Ok((public, Whereabouts::InToken(place)))
            }
            _ => Err(misfit()),
        }
    }

    fn sign_in_token(
        &self,
        scheme: SignatureScheme,
        key: Kept,
        content: &[u8],
    ) -> Result<Vec<u8>, DeviceError> {
        let generation = GenerationId::from_bytes(key.generation);
        let content = match scheme {
            SignatureScheme::EcdsaP256Sha256 => Sha256::digest(content).to_vec(),
            SignatureScheme::EcdsaP384Sha384 => Sha384::digest(content).to_vec(),
            SignatureScheme::Ed25519 => content.to_vec(),
        };
        let request = Request::Sign {
            key,
            content: SecretBytes::new(content),
        };
        let length = match scheme {
            SignatureScheme::Ed25519 | SignatureScheme::EcdsaP256Sha256 => 64,
            SignatureScheme::EcdsaP384Sha384 => 96,
        };
        let signature = self.ask_for_bytes(length, &request, generation)?;
        match scheme {
            SignatureScheme::Ed25519 => Ok(signature.expose().to_vec()),
            SignatureScheme::EcdsaP256Sha256 => {
                let signature =
                    p256::ecdsa::Signature::from_slice(signature.expose()).map_err(|_| misfit())?;
                Ok(signature.to_der().as_bytes().to_vec())
            }
            SignatureScheme::EcdsaP384Sha384 => {
                let signature =
                    p384::ecdsa::Signature::from_slice(signature.expose()).map_err(|_| misfit())?;
                Ok(signature.to_der().as_bytes().to_vec())
            }
        }
    }
}

/// A key as the helper finds it.
fn kept(key: &StoredKey, place: wire::Place) -> Kept {
    Kept {
        key: *key.id.as_bytes(),
        generation: *key.generation.as_bytes(),
        algorithm: key.algorithm,
        place,
    }
}

fn of_token(error: TokenError) -> DeviceError {
    let reason = bounded(&error.to_string());
    match error {
        TokenError::Absent(_) | TokenError::Gone(_) => DeviceError::Absent { reason },
        TokenError::Locked
        | TokenError::WrongPin
        | TokenError::LastTry
        | TokenError::PinPad
        | TokenError::PinLocked => DeviceError::Locked { reason },
        TokenError::Full { .. } => DeviceError::Full { reason },
        _ => DeviceError::Failed { reason },
    }
}

fn misfit() -> DeviceError {
    DeviceError::Failed {
        reason: TokenError::Protocol.to_string(),
    }
}

/// A text of the helper, fit for people and tables.
fn bounded(text: &str) -> String {
    const MOST: usize = 200;
    text.chars()
        .filter(|c| !c.is_control())
        .take(MOST)
        .collect()
}

impl Device for Pkcs11Device {
    fn info(&self) -> Arc<DeviceInfo> {
        self.link.info()
    }

    fn meter(&self) -> Option<Arc<dyn Meter>> {
        Some(Arc::clone(&self.link) as Arc<dyn Meter>)
    }

    fn comes_back(&self) -> bool {
        self.link.comes_back()
    }

    fn probe(&mut self) {
        self.link.probe();
    }

    fn more_hands(&self) -> Vec<Box<dyn Device>> {
        let more = 1..self.link.sessions();
        more.map(|_| Box::new(self.clone()) as Box<dyn Device>)
            .collect()
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

    fn unlocker(&mut self) -> Option<&mut dyn Unlock> {
        Some(self)
    }

    fn adopter(&mut self) -> Option<&mut dyn Adopt> {
        Some(self)
    }

    fn accepter(&mut self) -> Option<&mut dyn Accept> {
        Some(self)
    }

    fn stopper(&self) -> Option<Stopper> {
        let link = Arc::downgrade(&self.link);
        Some(Box::new(move || {
            if let Some(link) = link.upgrade() {
                link.stop();
            }
        }))
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
        match self.blobs.read(key)? {
            Whereabouts::InToken(place) => self.sign_in_token(scheme, kept(key, place), content),
            Whereabouts::Sealed(sealed) => {
                let private = self.unseal(key, sealed)?;
                private_key::sign(scheme, private.expose(), content)
            }
        }
    }
}

impl Agree for Pkcs11Device {
    fn agree(&mut self, key: &StoredKey, peer: &PeerPublic) -> Result<SharedSecret, DeviceError> {
        peer.check_kem(key.algorithm)?;
        peer.check_order()?;
        let place = match self.blobs.read(key)? {
            Whereabouts::InToken(place) => place,
            Whereabouts::Sealed(sealed) => {
                let private = self.unseal(key, sealed)?;
                return private_key::agree(private.expose(), peer);
            }
        };
        let request = Request::Agree {
            key: kept(key, place),
            peer: peer.to_bytes(),
        };
        let length = SharedSecret::len(peer.kem());
        let secret = self.ask_for_bytes(length, &request, key.generation)?;
        SharedSecret::new(peer.kem(), secret.expose().to_vec().into())
    }
}

impl Generate for Pkcs11Device {
    fn create_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        let plan = self.link.plan()?;
        let request = Request::CreateGeneration {
            generation: *id.as_bytes(),
            anchor: plan.anchor,
        };
        self.ask_to_make(&plan, &request, id).map(|_| ())
    }

    fn generate(&mut self, request: NewKey) -> Result<StoredKey, DeviceError> {
        let plan = self.link.plan()?;
        let (public, whereabouts) = match plan.making(request.algorithm, request.tier) {
            Some(Make::InToken(keep)) => self.make_in_token(&plan, &request, keep)?,
            Some(Make::Sealed) => self.make_sealed(&plan, &request)?,
            None => {
                return Err(DeviceError::Unsupported {
                    algorithm: request.algorithm,
                    tier: request.tier,
                    possible: self.link.info().tiers(request.algorithm),
                });
            }
        };
        let mut key = StoredKey {
            id: request.id,
            algorithm: request.algorithm,
            tier: request.tier,
            generation: request.generation,
            pin: false,
            public,
            blob: KeyBlob::new(Vec::new()),
        };
        key.blob = self.blobs.write(&key, &whereabouts)?;
        Ok(key)
    }
}

impl Destroy for Pkcs11Device {
    fn destroy_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        let generation = *id.as_bytes();
        match self.link.ask(&Request::DestroyGeneration { generation })? {
            Reply::Failed(error) => Err(of_token(error)),
            _ => Ok(()),
        }
    }

    fn destroy_key(&mut self, key: &StoredKey) -> Result<(), DeviceError> {
        let place = match self.blobs.read(key)? {
            // Somebody else's.
            Whereabouts::InToken(wire::Place::Adopted { .. }) | Whereabouts::Sealed(_) => {
                return Ok(());
            }
            Whereabouts::InToken(place) => place,
        };
        let key = kept(key, place);
        match self.link.ask(&Request::DestroyKey { key })? {
            Reply::Failed(error) => Err(of_token(error)),
            _ => Ok(()),
        }
    }
}

impl Unlock for Pkcs11Device {
    fn unlock(&mut self, pin: &SecretBytes, last_try: bool) -> Result<Unlocking, DeviceError> {
        self.link.unlock(pin, last_try)
    }

    fn lock(&mut self) -> Result<(), DeviceError> {
        self.link.lock();
        Ok(())
    }
}

impl Accept for Pkcs11Device {
    fn look(&mut self) -> Result<Newcomer, DeviceError> {
        self.link.look()
    }

    fn accept(&mut self, serial: &str) -> Result<(), DeviceError> {
        self.link.accept(serial)
    }
}

impl Adopt for Pkcs11Device {
    fn adopt(&mut self, request: &Adoption) -> Result<StoredKey, DeviceError> {
        let refused = |reason: String| DeviceError::NotAdopted {
            label: request.label.clone(),
            reason,
        };
        let algorithm = Algorithm::Signature(request.scheme);
        let asked = Request::Find {
            label: request.label.clone(),
            algorithm,
        };
        let (public, place) = match self.link.ask(&asked)? {
            Reply::Made { public, place } => (public, place),
            Reply::Failed(TokenError::Unsuitable(why)) => return Err(refused(why)),
            Reply::Failed(error) => return Err(of_token(error)),
            _ => return Err(misfit()),
        };
        check_public(algorithm, &public)?;
        let mut key = StoredKey {
            id: request.id,
            algorithm,
            tier: Tier::Hardware,
            generation: request.generation,
            pin: false,
            public,
            blob: KeyBlob::new(Vec::new()),
        };
        // Not of any MLS structure: no such label begins with this.
        let content = [b"mlskeyd adopts ".as_slice(), key.id.as_bytes()].concat();
        let signature = self.sign_in_token(request.scheme, kept(&key, place.clone()), &content)?;
        if !crate::mls::verify(request.scheme, &key.public, &content, &signature) {
            return Err(refused("its public key is not its own".to_owned()));
        }
        key.blob = self.blobs.write(&key, &Whereabouts::InToken(place))?;
        Ok(key)
    }
}
