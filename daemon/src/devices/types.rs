//! What a key is made for and how it is kept.

use std::fmt;

/// How a key is kept. Ordered: a higher tier keeps it better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Encrypted at rest under the store key: process isolation, no more.
    Software,
    /// Wrapped by a non-extractable key of the device; in locked memory of the
    /// daemon only while it is used.
    Sealed,
    /// Generated in the device, not extractable, used only there.
    Hardware,
}

/// What a device can do just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceState {
    /// Not there.
    Absent,
    /// There, and waits to be unlocked.
    Locked,
    /// Serves requests.
    Ready,
    /// There, and broken.
    Failed,
}

/// A signature scheme of MLS (RFC 9420, 17.1; values of the TLS registry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureScheme {
    /// 0x0807. Public key 32 bytes, signature 64 bytes.
    Ed25519,
    /// 0x0403. Public key 65 bytes (SEC1, uncompressed), signature DER.
    EcdsaP256Sha256,
}

/// A KEM of HPKE (RFC 9180, 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kem {
    /// 0x0010, DHKEM(P-256, HKDF-SHA256). Public key 65 bytes (uncompressed).
    DhKemP256,
    /// 0x0020, DHKEM(X25519, HKDF-SHA256). Public key 32 bytes.
    DhKemX25519,
}

/// An AEAD of HPKE (RFC 9180, 7.3). The KDF is HKDF-SHA256 with all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Aead {
    /// 0x0001.
    Aes128Gcm,
    /// 0x0003.
    ChaCha20Poly1305,
}

/// A private key's purpose, with what it is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Purpose `signature`.
    Signature(SignatureScheme),
    /// Purpose `hpke`.
    Hpke(Kem),
}

/// The random name of a key in custody: 16 bytes, never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({:032x})", u128::from_be_bytes(self.0))
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Software => "software",
            Self::Sealed => "sealed",
            Self::Hardware => "hardware",
        })
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Signature(SignatureScheme::Ed25519) => "Ed25519",
            Self::Signature(SignatureScheme::EcdsaP256Sha256) => "ECDSA P-256",
            Self::Hpke(Kem::DhKemP256) => "DHKEM P-256",
            Self::Hpke(Kem::DhKemX25519) => "DHKEM X25519",
        })
    }
}
