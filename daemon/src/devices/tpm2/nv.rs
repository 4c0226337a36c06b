//! The root: 40 bytes in the TPM's permanent memory, which nothing but the
//! device's own authorisation value reads or writes.
//!
//! ```text
//! count (8 bytes, big endian) | secret (32)
//! ```

use hkdf::Hkdf;
use secrecy::{ExposeSecret, ExposeSecretMut, SecretBox};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tss_esapi::attributes::{NvIndexAttributes, NvIndexAttributesBuilder};
use tss_esapi::constants::NvIndexType;
use tss_esapi::handles::NvIndexTpmHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::structures::{NvPublic, NvPublicBuilder};
use zeroize::Zeroizing;

use super::failure;
use crate::config::NV_INDICES_OF_OWNER;
use crate::devices::DeviceError;
use crate::devices::private_key::fill_random;
use crate::store_key::Subkey;

/// Length of what the index holds.
pub(super) const LEN: u16 = 40;

/// So many indices are tried for one that is free.
const TRIES: u32 = 8;

/// The secret that the file of generations is encrypted under, and which one in
/// the order of time it is.
pub(super) struct Root {
    count: u64,
    /// In a place of its own: the value moves, and would leave copies behind.
    secret: SecretBox<[u8; 32]>,
}

impl PartialEq for Root {
    fn eq(&self, other: &Self) -> bool {
        let (own, other_secret) = (self.secret.expose_secret(), other.secret.expose_secret());
        self.count == other.count && own.ct_eq(other_secret).into()
    }
}

impl Root {
    /// The first one, or that after `count`.
    pub(super) fn after(count: u64) -> Result<Self, DeviceError> {
        let count = count.checked_add(1).ok_or_else(|| DeviceError::Failed {
            reason: "the count of its roots is at its end".to_owned(),
        })?;
        let mut secret = SecretBox::new(Box::new([0; 32]));
        fill_random(secret.expose_secret_mut())?;
        Ok(Self { count, secret })
    }

    /// A new one, to be put in the place of this one.
    pub(super) fn next(&self) -> Result<Self, DeviceError> {
        Self::after(self.count)
    }

    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// What the file of generations is encrypted with: of no use without the store
    /// key either.
    pub(super) fn of_generations(&self, key: &Subkey) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
        let mut derived = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(key.expose()), self.secret.expose_secret())
            .expand(b"mlskeyd v1 tpm2 generations", derived.as_mut_slice())
            .map_err(|_| DeviceError::Failed {
                reason: "the key derivation failed".to_owned(),
            })?;
        Ok(derived)
    }

    pub(super) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::from(LEN)));
        bytes.extend_from_slice(&self.count.to_be_bytes());
        bytes.extend_from_slice(self.secret.expose_secret());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (count, rest) = bytes.split_first_chunk::<8>()?;
        let mut secret = SecretBox::new(Box::new([0; 32]));
        if rest.len() != secret.expose_secret().len() {
            return None;
        }
        secret.expose_secret_mut().copy_from_slice(rest);
        Some(Self {
            count: u64::from_be_bytes(*count),
            secret,
        })
    }
}

/// Which indices may be the device's: the one of the configuration, or some that
/// follow from a secret, so that two daemons do not meet.
pub(super) fn candidates(configured: Option<u32>, place: &Subkey) -> Vec<u32> {
    if let Some(index) = configured {
        return vec![index];
    }
    let first = NV_INDICES_OF_OWNER.start();
    let size = NV_INDICES_OF_OWNER.end().saturating_sub(*first);
    let [a, b, c, d, ..] = *place.expose();
    let offset = u32::from_be_bytes([a, b, c, d]) & size;
    (0..TRIES)
        .map(|step| first | (offset.wrapping_add(step) & size))
        .collect()
}

/// An index as we make it: read and written with its own authorisation value
/// alone, as a whole, and never counted as a wrong password.
pub(super) fn public(address: u32, written: bool) -> Result<NvPublic, DeviceError> {
    let index = NvIndexTpmHandle::new(address).map_err(failure::describe)?;
    let attributes = attributes(written).map_err(failure::describe)?;
    NvPublicBuilder::new()
        .with_nv_index(index)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(attributes)
        .with_data_area_size(usize::from(LEN))
        .build()
        .map_err(failure::describe)
}

fn attributes(written: bool) -> tss_esapi::Result<NvIndexAttributes> {
    NvIndexAttributesBuilder::new()
        .with_nv_index_type(NvIndexType::Ordinary)
        .with_auth_read(true)
        .with_auth_write(true)
        .with_write_all(true)
        .with_no_da(true)
        .with_written(written)
        .build()
}

#[cfg(test)]
mod tests {
    use secrecy::SecretBox;

    use super::*;
    use crate::store_key::StoreKey;

    fn subkey(byte: u8) -> Subkey {
        let store_key = StoreKey::new(SecretBox::new(Box::new([byte; 32])));
        store_key.subkey("mlskeyd v1 test").unwrap()
    }

    #[test]
    fn a_root_is_written_and_read() {
        let root = Root::after(0x0102).unwrap();
        let bytes = root.to_bytes();
        assert_eq!(bytes[..8], [0, 0, 0, 0, 0, 0, 1, 3]);
        assert_eq!(bytes.len(), usize::from(LEN));
        assert_eq!(Root::from_bytes(&bytes).unwrap().to_bytes(), bytes);
        assert!(Root::from_bytes(&bytes).unwrap() == root && root.next().unwrap() != root);
        // Of the same count.
        assert!(Root::after(0x0102).unwrap() != root);
        assert_ne!(root.next().unwrap().to_bytes()[8..], bytes[8..]);
        for length in [0, 8, 39, 41] {
            let mut other = bytes.to_vec();
            other.resize(length, 0);
            assert!(Root::from_bytes(&other).is_none());
        }
        assert!(Root::after(u64::MAX).is_err());
    }

    #[test]
    fn indices_are_the_owners_and_each_daemons_own() {
        assert_eq!(candidates(Some(0x0180_0001), &subkey(1)), [0x0180_0001]);
        let ours = candidates(None, &subkey(1));
        assert_eq!(ours.len(), 8);
        assert!(ours.iter().all(|index| NV_INDICES_OF_OWNER.contains(index)));
        assert_eq!(ours, candidates(None, &subkey(1)));
        assert_ne!(ours, candidates(None, &subkey(2)));
    }
}
