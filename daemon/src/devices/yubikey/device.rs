//! The device as others see it.

use std::sync::Arc;

use mlskeyd_protocol::v1::SecretBytes;
use sha2::{Digest, Sha256, Sha384};

use super::algorithm::Curve;
use super::error::CardError;
use super::piv::{self, PinPolicy, TouchPolicy};
use super::sealed::{self, Sealed};
use super::session::{Session, check_pin};
use super::{Whereabouts, YubiKeyDevice};
use crate::attest::yubikey::{Certificates, YubiKeyEvidence};
use crate::attest::{Claims, Evidence};
use crate::config::Slot;
use crate::devices::private_key::{self, PrivateKey};
use crate::devices::{
    Accept, Adopt, Adoption, Agree, Algorithm, Attest, Bell, Consent, Destroy, Device, DeviceError,
    DeviceInfo, DeviceState, Generate, GenerationId, KeyBlob, NewKey, Newcomer, PeerPublic,
    SharedSecret, Sign, SignatureScheme, StoredKey, Tier, Unlock, Unlocking, check_public,
};

/// Longest content of a signature with Ed25519, in bytes: the card hashes it itself, so
/// it has to take it whole, and has room for some 3 KiB.
const MAX_CONTENT: usize = 3000;

impl Device for YubiKeyDevice {
    fn info(&self) -> Arc<DeviceInfo> {
        Arc::clone(&self.info)
    }

    /// Cards that come and go are told of by pcscd; it itself is looked for.
    fn comes_back(&self) -> bool {
        self.is_doubtful || !self.is_watched()
    }

    fn probe(&mut self) {
        self.look_and_unlock();
    }

    fn hang_bell(&mut self, bell: Bell) {
        self.bell = Some(bell);
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

    fn consenter(&mut self) -> Option<&mut dyn Consent> {
        Some(self)
    }

    fn attester(&mut self) -> Option<&mut dyn Attest> {
        Some(self)
    }
}

impl Sign for YubiKeyDevice {
    fn sign(&mut self, key: &StoredKey, content: &[u8]) -> Result<Vec<u8>, DeviceError> {
        let Algorithm::Signature(scheme) = key.algorithm else {
            return Err(DeviceError::WrongKeyType {
                needed: "signatures",
                found: key.algorithm,
            });
        };
        let slot = match self.blobs.read(key)? {
            Whereabouts::Sealed(sealed) => {
                let private = self.unseal(key, &sealed)?;
                return private_key::sign(scheme, &private, content);
            }
            Whereabouts::Slot(slot) => self.own_slot(key, slot)?,
            Whereabouts::Adopted(slot) => slot,
        };
        self.sign_in_slot(slot, scheme, &key.public, content)
    }

    fn longest(&self, key: &StoredKey) -> Option<usize> {
        let is_sealed = matches!(self.blobs.read(key), Ok(Whereabouts::Sealed(_)));
        let is_whole = key.algorithm == Algorithm::Signature(SignatureScheme::Ed25519);
        (is_whole && !is_sealed).then_some(MAX_CONTENT)
    }
}

impl Agree for YubiKeyDevice {
    fn agree(&mut self, key: &StoredKey, peer: &PeerPublic) -> Result<SharedSecret, DeviceError> {
        peer.check_kem(key.algorithm)?;
        peer.check_order()?;
        let slot = match self.blobs.read(key)? {
            Whereabouts::Sealed(sealed) => {
                let private = self.unseal(key, &sealed)?;
                return private_key::agree(&private, peer);
            }
            Whereabouts::Slot(slot) => self.own_slot(key, slot)?,
            Whereabouts::Adopted(_) => return Err(DeviceError::BadBlob),
        };
        let curve = Curve::of(key.algorithm);
        let shared = self.at_card_again(|session| {
            // What is computed with another key does not show that.
            let there = piv::metadata(session.card, slot)?;
            if there.is_none_or(|there| there.public != key.public) {
                return Err(CardError::Other(missing(slot)));
            }
            session.with_pin(|card| piv::agree(card, slot, curve, &peer.to_bytes()))
        })?;
        SharedSecret::new(peer.kem(), shared.to_vec().into())
    }
}

impl Generate for YubiKeyDevice {
    fn create_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        self.generations.create(id)
    }

    fn generate(&mut self, request: NewKey) -> Result<StoredKey, DeviceError> {
        self.find()?;
        let possible = self.info.tiers(request.algorithm);
        if !possible.contains(&request.tier) {
            return Err(DeviceError::Unsupported {
                algorithm: request.algorithm,
                tier: request.tier,
                possible,
            });
        }
        self.generations.key(request.generation)?;
        let mut key = StoredKey {
            id: request.id,
            algorithm: request.algorithm,
            tier: request.tier,
            generation: request.generation,
            pin: false,
            public: Vec::new(),
            blob: KeyBlob::new(Vec::new()),
        };
        let place = if request.tier == Tier::Hardware {
            let (slot, public) = self.make_in_slot(&request)?;
            check_public(request.algorithm, &public)?;
            key.public = public;
            Whereabouts::Slot(slot)
        } else {
            let (private, public) = private_key::generate(request.algorithm)?;
            key.public = public;
            Whereabouts::Sealed(self.seal(&key, &private)?)
        };
        key.blob = self.blobs.write(&key, &place)?;
        Ok(key)
    }
}

impl Destroy for YubiKeyDevice {
    fn destroy_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        self.destroy_in_slots(id)?;
        self.generations.destroy(id)
    }

    fn destroy_key(&mut self, key: &StoredKey) -> Result<(), DeviceError> {
        match self.blobs.read(key)? {
            Whereabouts::Slot(slot) => self.destroy_in_slot(slot, key.id),
            // Somebody else's; and one that ends with its generation.
            Whereabouts::Adopted(_) | Whereabouts::Sealed(_) => Ok(()),
        }
    }
}

impl Unlock for YubiKeyDevice {
    fn unlock(&mut self, pin: &SecretBytes, last_try: bool) -> Result<Unlocking, DeviceError> {
        check_pin(pin)?;
        self.find()?;
        if self.pin.is_some() {
            return Ok(Unlocking::WasUnlocked);
        }
        self.unlock_with(last_try, |pins, serial| pins.try_this(serial, pin))?;
        self.is_locked = false;
        Ok(Unlocking::ByThePin)
    }

    fn lock(&mut self) -> Result<(), DeviceError> {
        self.pin = None;
        self.is_locked = true;
        if self.find().is_err() {
            // What is away has forgotten its PIN.
            return Ok(());
        }
        let waits = "somebody locked it: `mlskeyctl unlock` unlocks it again";
        let reason = waits.to_owned();
        self.note(
            DeviceState::Locked,
            DeviceError::Locked { reason }.to_string(),
        );
        // The card forgets it, too.
        self.at_card(|session| piv::select(session.card))
    }
}

impl Adopt for YubiKeyDevice {
    fn adopt(&mut self, request: &Adoption) -> Result<StoredKey, DeviceError> {
        let refused = |reason: String| DeviceError::NotAdopted {
            label: request.label.clone(),
            reason,
        };
        let slot: Slot = match request.label.parse() {
            Ok(slot) => slot,
            Err(error) => return Err(refused(format!("a key is named by its slot: {error}"))),
        };
        if slot == self.config.agreement_slot {
            return Err(refused("keys are sealed under it".to_owned()));
        }
        if Some(slot) == self.config.consent_slot {
            return Err(refused("it is the consent key".to_owned()));
        }
        if self
            .ledger
            .entries()?
            .iter()
            .any(|entry| entry.slot == slot)
        {
            return Err(refused("the daemon made it itself".to_owned()));
        }
        let algorithm = Algorithm::Signature(request.scheme);
        let metadata = self.at_card_again(|session| piv::metadata(session.card, slot))?;
        let metadata = metadata.ok_or_else(|| refused("the slot is empty".to_owned()))?;
        let why = if metadata.curve != Some(Curve::of(algorithm)) {
            Some("it is of another algorithm")
        } else if !metadata.generated {
            Some("it was not made in the card, so it may be elsewhere, too")
        } else if metadata.pin != PinPolicy::Once {
            Some("it does not want the PIN once: its PIN policy has to be `once`")
        } else if metadata.touch != TouchPolicy::Never {
            Some("it wants to be touched for each message: its touch policy has to be `never`")
        } else {
            None
        };
        if let Some(why) = why {
            return Err(refused(why.to_owned()));
        }
        check_public(algorithm, &metadata.public)?;
        let mut key = StoredKey {
            id: request.id,
            algorithm,
            tier: Tier::Hardware,
            generation: request.generation,
            pin: false,
            public: metadata.public,
            blob: KeyBlob::new(Vec::new()),
        };
        // Not of any MLS structure: no such label begins with this.
        let content = [b"mlskeyd adopts ".as_slice(), key.id.as_bytes()].concat();
        self.sign_in_slot(slot, request.scheme, &key.public, &content)?;
        key.blob = self.blobs.write(&key, &Whereabouts::Adopted(slot))?;
        Ok(key)
    }
}

impl Attest for YubiKeyDevice {
    fn attest(&mut self, key: &StoredKey, claims: &Claims) -> Result<Evidence, DeviceError> {
        let refused = |reason: &str| DeviceError::NotAttested {
            reason: reason.to_owned(),
        };
        let Algorithm::Signature(scheme) = key.algorithm else {
            return Err(refused("the key signs nothing"));
        };
        let slot = match self.blobs.read(key)? {
            Whereabouts::Slot(slot) => self.own_slot(key, slot)?,
            Whereabouts::Adopted(slot) => slot,
            Whereabouts::Sealed(_) => return Err(refused("the key is sealed")),
        };
        let (attestation, issuer) = self.at_card_again(|session| {
            let attestation = piv::attest(session.card, slot)?;
            Ok((attestation, piv::attestation_certificate(session.card)?))
        })?;
        let issuer = issuer.ok_or_else(|| {
            refused("the certificate of its attestation key (slot f9) is not there")
        })?;
        let certificates = Certificates {
            slot: attestation.to_vec(),
            f9: issuer.to_vec(),
            chain: Vec::new(),
        };
        // Not of any MLS structure: the verifier shows that it is none.
        let statement = certificates.statement(claims);
        let signature = self.sign_in_slot(slot, scheme, &key.public, &statement)?;
        Ok(Evidence::YubiKey(YubiKeyEvidence {
            certificates,
            signature,
        }))
    }
}

impl Accept for YubiKeyDevice {
    fn look(&mut self) -> Result<Newcomer, DeviceError> {
        let serial = self.newcomer()?;
        let own = match self.own.serial() {
            Err(DeviceError::OwnTokenUnknown { .. }) => None,
            own => own?,
        };
        let found = self.found.as_ref();
        Ok(Newcomer {
            noun: "YubiKey",
            fate: "what is only there is missing",
            is_own: own.as_ref() == Some(&serial) && found.is_some_and(|it| it.agreement.is_ok()),
            serial,
            own,
        })
    }

    fn accept(&mut self, serial: &str) -> Result<(), DeviceError> {
        let found = self.newcomer()?;
        if found != serial {
            return Err(DeviceError::Failed {
                reason: format!("meanwhile there is another YubiKey, {found}"),
            });
        }
        self.agreement.forget()?;
        self.consent.forget()?;
        self.own.set(serial)?;
        self.found = None;
        self.pin = None;
        self.look_and_unlock();
        Ok(())
    }
}

impl YubiKeyDevice {
    /// The slot of a key that the daemon made there, if it still is its.
    fn own_slot(&mut self, key: &StoredKey, slot: Slot) -> Result<Slot, DeviceError> {
        self.generations.key(key.generation)?;
        if self.ledger.has(slot, key.id)? {
            return Ok(slot);
        }
        Err(missing(slot))
    }

    fn sign_in_slot(
        &mut self,
        slot: Slot,
        scheme: SignatureScheme,
        public: &[u8],
        content: &[u8],
    ) -> Result<Vec<u8>, DeviceError> {
        self.unlocked()?;
        let hash;
        let signed = match scheme {
            SignatureScheme::EcdsaP256Sha256 => {
                hash = Sha256::digest(content).to_vec();
                hash.as_slice()
            }
            SignatureScheme::EcdsaP384Sha384 => {
                hash = Sha384::digest(content).to_vec();
                hash.as_slice()
            }
            SignatureScheme::Ed25519 if content.len() > MAX_CONTENT => {
                return Err(DeviceError::TooLong {
                    length: content.len(),
                    most: MAX_CONTENT,
                });
            }
            SignatureScheme::Ed25519 => content,
        };
        let curve = Curve::of(Algorithm::Signature(scheme));
        let signature = self.at_card_again(|session| {
            session.with_pin(|card| piv::sign(card, slot, curve, signed))
        })?;
        // Somebody may have made another key there.
        if !crate::mls::verify(scheme, public, content, &signature) {
            return Err(missing(slot));
        }
        Ok(signature.to_vec())
    }

    /// Seals a private key, of which all else is known.
    fn seal(&mut self, key: &StoredKey, private: &[u8]) -> Result<Sealed, DeviceError> {
        let agreement = self.found.as_ref().map(|found| found.agreement.clone());
        let Some(Ok(agreement)) = agreement else {
            return Err(missing(self.config.agreement_slot));
        };
        let generation = self.generations.key(key.generation)?;
        sealed::seal(&agreement, generation, &key.binding("yubikey"), private)
    }

    /// A sealed private key, for one operation.
    fn unseal(&mut self, key: &StoredKey, sealed: &Sealed) -> Result<PrivateKey, DeviceError> {
        // What was destroyed does not trouble the card.
        self.generations.key(key.generation)?;
        self.unlocked()?;
        let slot = self.config.agreement_slot;
        let shared = self.at_card_again(|session: &Session<'_>| {
            let agreement = session.found.agreement.as_ref().ok();
            let is_it = agreement.is_some_and(|agreement| {
                use p256::elliptic_curve::sec1::ToEncodedPoint;
                agreement.to_encoded_point(false).as_bytes() == sealed.agreement_key
            });
            if !is_it {
                return Err(CardError::Other(missing(slot)));
            }
            session.with_pin(|card| piv::agree(card, slot, Curve::P256, &sealed.ephemeral))
        })?;
        let generation = self.generations.key(key.generation)?;
        sealed.open(&shared, generation, &key.binding("yubikey"))
    }

    /// Is the PIN known? A card that others have unlocked is not for ours.
    pub(super) fn unlocked(&mut self) -> Result<(), DeviceError> {
        self.find()?;
        if self.pin.is_some() {
            return Ok(());
        }
        Err(DeviceError::Locked {
            reason: self.info.reason.clone(),
        })
    }

    /// The serial number of the card that is there, whether or not it is the device's
    /// own. Tries no PIN.
    fn newcomer(&mut self) -> Result<String, DeviceError> {
        match self.find() {
            Ok(()) => {}
            Err(DeviceError::OtherToken { found, .. }) => return Ok(found),
            Err(error) => return Err(error),
        }
        let found = self.found.as_ref().map(|found| found.serial.to_string());
        found.ok_or_else(|| DeviceError::Absent {
            reason: "no YubiKey is there".to_owned(),
        })
    }
}

fn missing(slot: Slot) -> DeviceError {
    DeviceError::Missing {
        what: format!("the key in slot {slot}"),
    }
}
