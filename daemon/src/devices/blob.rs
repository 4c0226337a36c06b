//! What the registry keeps for a key that its device finds again: where it is, and a
//! MAC over that and all that it is for.
//!
//! ```text
//! version 1 (1 byte) | MAC (32) | where it is, in the device's own words (postcard)
//! ```
//!
//! It is on disks for years, so it never changes: see the tests of each kind.

use std::marker::PhantomData;

use hmac::{Hmac, Mac};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;

use super::{DeviceError, KeyBlob, StoredKey};
use crate::store_key::Subkey;

const VERSION: u8 = 1;
const MAC_LEN: usize = 32;

/// Writes and reads what the registry keeps for keys of one device.
pub(super) struct Blobs<Place> {
    /// The device's kind.
    kind: &'static str,
    key: Subkey,
    place: PhantomData<fn() -> Place>,
}

impl<Place: Serialize + DeserializeOwned> Blobs<Place> {
    pub(super) const fn new(kind: &'static str, key: Subkey) -> Self {
        Self {
            kind,
            key,
            place: PhantomData,
        }
    }

    /// The blob of a key, of which all else is known.
    pub(super) fn write(&self, key: &StoredKey, place: &Place) -> Result<KeyBlob, DeviceError> {
        let written = postcard::to_stdvec(place).map_err(|_| unwritten())?;
        let mac = self.mac(key, &written)?.finalize().into_bytes();
        Ok(KeyBlob::new(
            [&[VERSION], mac.as_slice(), &written].concat(),
        ))
    }

    /// Where a key is, if its blob is as it was written for it.
    pub(super) fn read(&self, key: &StoredKey) -> Result<Place, DeviceError> {
        let blob = key.blob.as_bytes();
        let rest = blob.strip_prefix(&[VERSION]).ok_or(DeviceError::BadBlob)?;
        let (mac, written) = rest
            .split_first_chunk::<MAC_LEN>()
            .ok_or(DeviceError::BadBlob)?;
        self.mac(key, written)?
            .verify_slice(mac)
            .map_err(|_| DeviceError::BadBlob)?;
        postcard::from_bytes(written).map_err(|_| DeviceError::BadBlob)
    }

    fn mac(&self, key: &StoredKey, written: &[u8]) -> Result<Hmac<Sha256>, DeviceError> {
        let mac = Hmac::<Sha256>::new_from_slice(self.key.expose());
        let mut mac = mac.map_err(|_| unwritten())?;
        let binding = key.binding(self.kind);
        // The lengths of both are in there, so none can be taken for the other.
        mac.update(&[VERSION]);
        mac.update(
            &u64::try_from(binding.len())
                .unwrap_or(u64::MAX)
                .to_be_bytes(),
        );
        mac.update(&binding);
        mac.update(written);
        Ok(mac)
    }
}

fn unwritten() -> DeviceError {
    DeviceError::Failed {
        reason: "a key could not be encoded".to_owned(),
    }
}
