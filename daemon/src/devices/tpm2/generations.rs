//! The generations of a TPM device: one secret each, from which the
//! authorisation values of its keys follow.
//!
//! The TPM loads a key's blob again as long as its storage key lives, so a key
//! dies with its authorisation value, and that with its generation's secret. All
//! secrets are in one file, encrypted under the *root*, which is in the TPM's
//! permanent memory and nowhere else. To destroy a generation the file is written
//! without it under a new root; then one write to the TPM puts that in the place
//! of the old one. No copy of an older file can be opened after that.

use std::collections::{BTreeMap, BTreeSet};

use hkdf::Hkdf;
use mlskeyd_protocol::v1::SecretBytes;
use secrecy::{ExposeSecret, ExposeSecretMut, SecretBox};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::connection::Connection;
use super::files::Files;
use super::nv::Root;
use crate::devices::private_key::fill_random;
use crate::devices::{DeviceError, GenerationId, KeyId};
use crate::failpoint;

const SECRET_LEN: usize = 32;

/// The secret of one generation, in a place of its own: the map moves its values,
/// and would leave copies behind.
pub(super) struct Secret(SecretBox<[u8; SECRET_LEN]>);

impl Secret {
    fn random() -> Result<Self, DeviceError> {
        let mut secret = SecretBox::new(Box::new([0; SECRET_LEN]));
        fill_random(secret.expose_secret_mut())?;
        Ok(Self(secret))
    }

    #[cfg(test)]
    pub(super) fn from_bytes(bytes: [u8; SECRET_LEN]) -> Self {
        Self::copy_of(&bytes)
    }

    fn copy_of(bytes: &[u8; SECRET_LEN]) -> Self {
        Self(SecretBox::init_with_mut(|secret: &mut [u8; SECRET_LEN]| {
            secret.copy_from_slice(bytes);
        }))
    }

    #[cfg(any(test, feature = "conformance"))]
    pub(super) fn expose(&self) -> &[u8; SECRET_LEN] {
        self.0.expose_secret()
    }

    /// The authorisation value of a key.
    pub(super) fn of_key(&self, id: KeyId) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
        let info: [&[u8]; 2] = [b"mlskeyd v1 tpm2 auth", id.as_bytes()];
        derive(self.0.expose_secret(), &info)
    }

    /// The authorisation value of a key that has this PIN.
    pub(super) fn of_key_with_pin(
        &self,
        id: KeyId,
        pin: &SecretBytes,
    ) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
        let info = [
            b"mlskeyd v1 tpm2 pin".as_slice(),
            id.as_bytes(),
            pin.expose(),
        ];
        derive(self.0.expose_secret(), &info)
    }

    /// What blobs are encrypted with.
    pub(super) fn of_blobs(&self) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
        derive(self.0.expose_secret(), &[b"mlskeyd v1 tpm2 blob"])
    }
}

fn derive(secret: &[u8; SECRET_LEN], info: &[&[u8]]) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
    let mut derived = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(None, secret)
        .expand_multi_info(info, derived.as_mut_slice())
        .map_err(|_| DeviceError::Failed {
            reason: "the key derivation failed".to_owned(),
        })?;
    Ok(derived)
}

/// All generations, and the root that their file is encrypted under.
pub(super) struct Generations {
    root: Root,
    secrets: BTreeMap<GenerationId, Secret>,
}

impl Generations {
    /// None yet: the file, under the first root.
    pub(super) fn begin(files: &Files, root: Root) -> Result<Self, DeviceError> {
        let generations = Self {
            root,
            secrets: BTreeMap::new(),
        };
        files.write_generations(&generations.root, &[])?;
        Ok(generations)
    }

    /// Those of the file that belongs to the root.
    pub(super) fn read(files: &Files, root: Root) -> Result<Self, DeviceError> {
        let written = files.generations(&root)?;
        let (entries, rest) = written.as_chunks::<ENTRY_LEN>();
        if !rest.is_empty() {
            return Err(DeviceError::Failed {
                reason: "the file of generations is of another version".to_owned(),
            });
        }
        let secrets = entries.iter().filter_map(|entry| {
            let (id, secret) = entry.split_first_chunk::<{ GenerationId::LEN }>()?;
            let secret = Secret::copy_of(secret.try_into().ok()?);
            Some((GenerationId::from_bytes(*id), secret))
        });
        let generations = Self {
            secrets: secrets.collect(),
            root,
        };
        files.remove_others(&generations.root)?;
        Ok(generations)
    }

    pub(super) const fn root(&self) -> &Root {
        &self.root
    }

    pub(super) fn ids(&self) -> BTreeSet<GenerationId> {
        self.secrets.keys().copied().collect()
    }

    pub(super) fn secret(&self, id: GenerationId) -> Result<&Secret, DeviceError> {
        self.secrets.get(&id).ok_or(DeviceError::GenerationGone(id))
    }

    /// Makes a generation, durably. Not under a root that the TPM does not have any
    /// more: its keys would be dead from the next start on.
    pub(super) fn create(
        &mut self,
        files: &Files,
        connection: &mut Connection,
        id: GenerationId,
    ) -> Result<(), DeviceError> {
        if self.secrets.contains_key(&id) {
            return Err(DeviceError::GenerationExists(id));
        }
        connection.check_root(&self.root)?;
        self.secrets.insert(id, Secret::random()?);
        let written = files.write_generations(&self.root, &self.encode_without(None));
        if written.is_err() {
            self.secrets.remove(&id);
        }
        written
    }

    /// Destroys a generation, durably and in every copy of the file. Also one that
    /// is not in it: somebody may have put an older file of the same root back, and
    /// will put the newer one back.
    pub(super) fn destroy(
        &mut self,
        files: &Files,
        connection: &mut Connection,
        id: GenerationId,
    ) -> Result<(), DeviceError> {
        let next = self.root.next()?;
        files.write_generations(&next, &self.encode_without(Some(id)))?;
        failpoint::hit("tpm2.generations-moved");
        connection.write_root(&next)?;
        failpoint::hit("tpm2.root-replaced");
        self.root = next;
        self.secrets.remove(&id);
        if let Err(error) = files.remove_others(&self.root) {
            // Nothing opens them, and the next start tries again.
            tracing::warn!(%error, "old files of a TPM device stay for now");
        }
        failpoint::hit("tpm2.generation-destroyed");
        Ok(())
    }

    /// Takes back a generation that nobody was told a key of, durably. Under the same
    /// root, so that a copy of the file may still have it: anybody can have such ones
    /// made, as many as he likes, and the TPM's memory wears out by writing.
    pub(super) fn undo(&mut self, files: &Files, id: GenerationId) -> Result<(), DeviceError> {
        if !self.secrets.contains_key(&id) {
            return Ok(());
        }
        files.write_generations(&self.root, &self.encode_without(Some(id)))?;
        self.secrets.remove(&id);
        Ok(())
    }

    /// As the file has them: id and secret of each, in order.
    fn encode_without(&self, id: Option<GenerationId>) -> Zeroizing<Vec<u8>> {
        let length = self.secrets.len().saturating_mul(ENTRY_LEN);
        // It must not grow, or it would leave a copy behind.
        let mut written = Zeroizing::new(Vec::with_capacity(length));
        for (other, secret) in &self.secrets {
            if Some(*other) != id {
                written.extend_from_slice(other.as_bytes());
                written.extend_from_slice(secret.0.expose_secret());
            }
        }
        written
    }
}

const ENTRY_LEN: usize = GenerationId::LEN + SECRET_LEN;

#[cfg(test)]
mod tests {
    use super::*;

    /// What keys are used with. A change here makes the keys of all users unusable.
    #[test]
    fn authorisation_values_stay_as_they_are() {
        let (secret, id) = (Secret::from_bytes([1; 32]), KeyId::from_bytes([2; 16]));
        let pin = |pin: &[u8]| SecretBytes::new(pin.to_vec());
        let auth = secret.of_key(id).unwrap();
        let with_pin = secret.of_key_with_pin(id, &pin(b"1234")).unwrap();
        assert_eq!(hex::encode(*auth), AUTH);
        assert_eq!(hex::encode(*with_pin), WITH_PIN);
        // Of another PIN, key and generation another one.
        let other = secret.of_key_with_pin(id, &pin(b"1235")).unwrap();
        assert_ne!(other, with_pin);
        let other = KeyId::from_bytes([3; 16]);
        let other = secret.of_key_with_pin(other, &pin(b"1234")).unwrap();
        assert_ne!(other, with_pin);
        let other = Secret::from_bytes([2; 32]);
        let other = other.of_key_with_pin(id, &pin(b"1234")).unwrap();
        assert_ne!(other, with_pin);
    }

    const AUTH: &str = "abba2da5f67168410f19bf065991124ceaf7fc7fd7184b2535fe30be30ff485e";
    const WITH_PIN: &str = "2f0036936e8a7b98569f7dc568ddf108f9f9e14c54543399263232cfffe080af";
}
