//! The MAC over the bodies of rows.

use hmac::{Hmac, Mac};
use serde::Serialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::error::StoreError;
use super::row::Row;

/// Length of a row's MAC, in bytes.
const MAC_LEN: usize = 16;

/// Version of all bodies; part of what is authenticated.
const BODY_VERSION: u8 = 1;

/// A row as it is written.
pub(super) struct Sealed {
    pub(super) body: Vec<u8>,
    pub(super) mac: [u8; MAC_LEN],
}

/// Authenticates rows: HMAC-SHA256, the first 16 bytes, over version, table,
/// id and body.
pub(super) struct RowMac(Hmac<Sha256>);

impl RowMac {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        // HMAC pads a key to one block by itself; done here, nothing can fail.
        let mut block = Zeroizing::new([0; 64]);
        for (to, from) in block.iter_mut().zip(key) {
            *to = *from;
        }
        Self(Hmac::new((&*block).into()))
    }

    pub(super) fn seal<R: Row>(&self, id: &[u8], row: &R) -> Result<Sealed, StoreError> {
        let body = postcard::to_stdvec(row).map_err(|e| {
            StoreError::Database(format!("cannot encode a row of {}: {e}", R::TABLE))
        })?;
        let tag = self.over(R::TABLE, id, &body).finalize().into_bytes();
        let mut mac = [0; MAC_LEN];
        for (to, from) in mac.iter_mut().zip(tag) {
            *to = from;
        }
        Ok(Sealed { body, mac })
    }

    pub(super) fn open<R: Row>(&self, id: &[u8], body: &[u8], mac: &[u8]) -> Result<R, StoreError> {
        let tampered = || StoreError::Tampered {
            table: R::TABLE,
            id: hex::encode(id),
        };
        let mac: &[u8; MAC_LEN] = mac.try_into().map_err(|_| tampered())?;
        self.over(R::TABLE, id, body)
            .verify_truncated_left(mac)
            .map_err(|_| tampered())?;
        decode(body).ok_or_else(tampered)
    }

    /// A MAC over bytes that lie outside of the database.
    pub(super) fn tag(&self, domain: &'static str, bytes: &[u8]) -> [u8; MAC_LEN] {
        let tag = self.over(domain, &[], bytes).finalize().into_bytes();
        let mut mac = [0; MAC_LEN];
        for (to, from) in mac.iter_mut().zip(tag) {
            *to = from;
        }
        mac
    }

    fn over(&self, table: &str, id: &[u8], body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        for part in [&[BODY_VERSION], table.as_bytes(), id, body] {
            mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

/// Decodes a body to the last byte, without looking at its MAC.
pub(super) fn decode<R: Row>(body: &[u8]) -> Option<R> {
    match postcard::take_from_bytes(body) {
        Ok((row, [])) => Some(row),
        _ => None,
    }
}

/// The id of a row that is found by its name: SHA-256 over the name's encoding,
/// so that names of any length make ids of 32 bytes.
pub(super) fn name_id(name: &impl Serialize) -> Result<[u8; 32], StoreError> {
    let bytes = postcard::to_stdvec(name)
        .map_err(|e| StoreError::Database(format!("cannot encode a name: {e}")))?;
    Ok(Sha256::digest(bytes).into())
}
