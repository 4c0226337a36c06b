//! What the registry keeps for a key of a token: where it is, and a MAC over
//! that and all that it is for.

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::misfit;
use super::wire::{Place, Sealed};
use crate::devices::{DeviceError, KeyBlob, StoredKey};
use crate::store_key::Subkey;

/// Where a private key is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Whereabouts {
    /// In the token, or wrapped by it.
    InToken(Place),
    /// Here, encrypted by the token.
    Sealed(Sealed),
}

#[derive(Serialize, Deserialize)]
struct Blob {
    whereabouts: Whereabouts,
    mac: [u8; 32],
}

/// Writes and reads what the registry keeps.
pub(super) struct Blobs {
    key: Subkey,
}

impl Blobs {
    pub(super) const fn new(key: Subkey) -> Self {
        Self { key }
    }

    /// The blob of a key, of which all else is known.
    pub(super) fn write(
        &self,
        key: &StoredKey,
        whereabouts: Whereabouts,
    ) -> Result<KeyBlob, DeviceError> {
        let mac = self.mac(key, &whereabouts)?.finalize().into_bytes().into();
        let blob = postcard::to_stdvec(&Blob { whereabouts, mac }).map_err(|_| misfit())?;
        Ok(KeyBlob::new(blob))
    }

    /// Where a key is, if its blob is as it was written for it.
    pub(super) fn read(&self, key: &StoredKey) -> Result<Whereabouts, DeviceError> {
        let bytes = key.blob.as_bytes();
        let blob: Blob = postcard::from_bytes(bytes).map_err(|_| DeviceError::BadBlob)?;
        // Postcard writes in one way, and reads in several.
        if postcard::to_stdvec(&blob).is_ok_and(|written| written != bytes) {
            return Err(DeviceError::BadBlob);
        }
        self.mac(key, &blob.whereabouts)?
            .verify_slice(&blob.mac)
            .map_err(|_| DeviceError::BadBlob)?;
        Ok(blob.whereabouts)
    }

    /// Over everything that a blob is for, so that it serves nothing else.
    fn mac(&self, key: &StoredKey, whereabouts: &Whereabouts) -> Result<Hmac<Sha256>, DeviceError> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.expose()).map_err(|_| misfit())?;
        let about = (
            key.id,
            key.generation,
            key.algorithm,
            key.tier,
            &key.public,
            whereabouts,
        );
        mac.update(&postcard::to_stdvec(&about).map_err(|_| misfit())?);
        Ok(mac)
    }
}
