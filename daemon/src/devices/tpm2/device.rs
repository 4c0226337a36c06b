//! What the device does, by the traits of devices.

use std::sync::Arc;
use std::time::Instant;

use mlskeyd_protocol::v1::SecretBytes;
use zeroize::Zeroizing;

use super::setup::Over;
use super::{Tpm2Device, advice, connection};
use crate::attest::{Claims, DeviceChallenge, Evidence};
use crate::devices::{
    Accept, Advice, Agree, Algorithm, Approve, Attest, Destroy, Device, DeviceError, DeviceInfo,
    Generate, GenerationId, KeyPins, Measurements, NewKey, Newcomer, PeerPublic, SharedSecret,
    Sign, StoredKey, Unlocking,
};

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

    fn activate(
        &mut self,
        challenge: &DeviceChallenge,
    ) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
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
