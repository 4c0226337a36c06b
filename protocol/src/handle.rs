//! The opaque bytes that stand where an app expects a private key.

use serde::{Deserialize, Serialize};

/// The first bytes of every handle. The first byte is no valid UTF-8 start, so
/// that no text can be taken for a handle.
const MAGIC: [u8; 8] = *b"\x9emlskeyd"; // 8 bytes

/// The version of the layout below.
const VERSION: u8 = 1;

/// The random name of a key in custody: 16 bytes, never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyId([u8; 16]);

impl KeyId {
    /// Length in bytes.
    pub const LEN: usize = 16;

    /// Wraps the 16 random bytes of a key's name.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes of the name.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Reads the hexadecimal form that [`std::fmt::Display`] writes.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16)
            .ok()
            .map(|n| Self(n.to_be_bytes()))
    }
}

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl std::fmt::Debug for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// The bytes that stand where OpenMLS expects an HPKE private key: magic (8),
/// version (1), [`KeyId`] (16).
///
/// Worthless without the daemon, and outside the caller that owns the key. Its
/// length is that of no private key of MLS, so neither can be taken for the
/// other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle(KeyId);

impl Handle {
    /// Length in bytes.
    pub const LEN: usize = 25;

    /// The handle of a key.
    #[must_use]
    pub const fn new(key: KeyId) -> Self {
        Self(key)
    }

    /// The key that the handle names.
    #[must_use]
    pub const fn key(self) -> KeyId {
        self.0
    }

    /// The handle's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let parts = MAGIC.iter().chain([&VERSION]).chain(self.0.as_bytes());
        for (to, from) in bytes.iter_mut().zip(parts) {
            *to = *from;
        }
        bytes
    }

    /// Reads a handle; `None` if the bytes are not exactly one of this version.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let id = bytes.strip_prefix(&MAGIC)?.strip_prefix(&[VERSION])?;
        id.try_into().ok().map(|id| Self(KeyId(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_reads_back_and_nothing_else_does() {
        let key = KeyId::from_bytes(*b"0123456789abcdef");
        let bytes = Handle::new(key).to_bytes();
        assert_eq!(Handle::from_bytes(&bytes), Some(Handle::new(key)));
        for cut in 0..bytes.len() {
            assert_eq!(Handle::from_bytes(&bytes[..cut]), None);
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(Handle::from_bytes(&longer), None);
        for i in 0..9 {
            let mut other = bytes;
            other[i] ^= 1;
            assert_eq!(Handle::from_bytes(&other), None, "byte {i}");
        }
    }

    #[test]
    fn a_key_id_reads_its_own_hex() {
        let key = KeyId::from_bytes([0xA5; 16]);
        assert_eq!(KeyId::from_hex(&key.to_string()), Some(key));
        assert_eq!(KeyId::from_hex("+0000000000000000000000000000001"), None);
    }
}
