//! The software device: private keys encrypted at rest, used in the daemon.
//!
//! It is process isolation, as with ssh-agent, and no more: tier `software`.
//!
//! Private keys are encrypted under their generation's key and live in the
//! registry as [`KeyBlob`]s; generation keys are encrypted
//! under the store key and live in the device's own directory (`generation_files`).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::generation_files::Generations;
use super::private_key::PrivateKey;
use super::{
    ALGORITHMS, Agree, Algorithm, Destroy, Device, DeviceError, DeviceInfo, DeviceState, Generate,
    GenerationId, KeyBlob, NewKey, PeerPublic, SharedSecret, Sign, Start, StoredKey, Support, Tier,
    Way, private_key, sealing,
};
use crate::store_key::StoreKey;

#[cfg(test)]
mod tests;

/// The software device.
pub struct SoftwareDevice {
    info: Arc<DeviceInfo>,
    generations: Generations,
}

impl SoftwareDevice {
    /// Opens the device whose files are in `directory`.
    ///
    /// # Errors
    /// [`DeviceError::Missing`] if the directory, or what belongs in it, is not
    /// there; [`DeviceError::Failed`] if the store key is not the one that the
    /// directory was made with, or its files cannot be trusted. Nothing is
    /// deleted.
    pub fn open(
        name: &str,
        directory: &Path,
        store_key: &StoreKey,
        start: Start,
    ) -> Result<Self, DeviceError> {
        let generations = Generations::open("software", directory, store_key, start)?;
        let support = |algorithm| Support {
            algorithm,
            ways: vec![Way {
                tier: Tier::Software,
                how: "encrypted under the store key".to_owned(),
            }],
            why_no_other: "the software device has no hardware to keep or wrap keys".to_owned(),
        };
        let info = Arc::new(DeviceInfo {
            generations: None,
            name: name.to_owned(),
            kind: "software",
            state: DeviceState::Ready,
            reason: String::new(),
            facts: Vec::new(),
            support: ALGORITHMS.into_iter().map(support).collect(),
            unlocked: BTreeSet::new(),
        });
        Ok(Self { info, generations })
    }

    /// The bare private key: an Ed25519 seed or X25519 scalar as RFC 8032 and
    /// RFC 7748 write them, a scalar of P-256 or P-384 big endian. For tests that search
    /// an app's memory for it.
    ///
    /// # Errors
    /// As [`Sign::sign`].
    #[cfg(any(test, feature = "conformance"))]
    pub fn reveal(&mut self, key: &StoredKey) -> Result<PrivateKey, DeviceError> {
        self.unseal(key)
    }

    fn unseal(&mut self, key: &StoredKey) -> Result<PrivateKey, DeviceError> {
        let generation = self.generations.key(key.generation)?;
        sealing::open(generation, &key.binding("software"), key.blob.as_bytes())
            .map_err(|sealing::Unauthentic| DeviceError::BadBlob)
    }
}

impl Device for SoftwareDevice {
    fn info(&self) -> Arc<DeviceInfo> {
        Arc::clone(&self.info)
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

impl Sign for SoftwareDevice {
    fn sign(&mut self, key: &StoredKey, content: &[u8]) -> Result<Vec<u8>, DeviceError> {
        let Algorithm::Signature(scheme) = key.algorithm else {
            return Err(DeviceError::WrongKeyType {
                needed: "signatures",
                found: key.algorithm,
            });
        };
        private_key::sign(scheme, &self.unseal(key)?, content)
    }
}

impl Agree for SoftwareDevice {
    fn agree(&mut self, key: &StoredKey, peer: &PeerPublic) -> Result<SharedSecret, DeviceError> {
        peer.check_kem(key.algorithm)?;
        private_key::agree(&self.unseal(key)?, peer)
    }
}

impl Generate for SoftwareDevice {
    fn create_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        self.generations.create(id)
    }

    fn generate(&mut self, request: NewKey) -> Result<StoredKey, DeviceError> {
        let NewKey {
            id,
            algorithm,
            tier,
            generation,
        } = request;
        if tier != Tier::Software {
            let possible = self.info.tiers(algorithm);
            return Err(DeviceError::Unsupported {
                algorithm,
                tier,
                possible,
            });
        }
        let generation_key = self.generations.key(generation)?;
        let (private, public) = private_key::generate(algorithm)?;
        let unsealed = StoredKey {
            id,
            algorithm,
            tier,
            generation,
            pin: false,
            public,
            blob: KeyBlob::new(Vec::new()),
        };
        let blob = sealing::seal(generation_key, &unsealed.binding("software"), &private)?;
        Ok(StoredKey {
            blob: KeyBlob::new(blob),
            ..unsealed
        })
    }
}

impl Destroy for SoftwareDevice {
    fn destroy_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        self.generations.destroy(id)
    }
}
