//! Keys, devices and identities.

use serde::{Deserialize, Serialize};

use crate::handle::KeyId;
use crate::secret::Bytes;

/// How a key is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SignatureScheme {
    /// 0x0807. Public key 32 bytes, signature 64 bytes.
    Ed25519,
    /// 0x0403. Public key 65 bytes (SEC1, uncompressed), signature DER.
    EcdsaP256Sha256,
    /// 0x0503. Public key 97 bytes (SEC1, uncompressed), signature DER.
    EcdsaP384Sha384,
}

/// A KEM of HPKE (RFC 9180, 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kem {
    /// 0x0010, DHKEM(P-256, HKDF-SHA256). Public key 65 bytes (uncompressed).
    DhKemP256,
    /// 0x0020, DHKEM(X25519, HKDF-SHA256). Public key 32 bytes.
    DhKemX25519,
    /// 0x0011, DHKEM(P-384, HKDF-SHA384). Public key 97 bytes (uncompressed).
    DhKemP384,
}

/// An AEAD of HPKE (RFC 9180, 7.3). The KDF is that of the KEM: HKDF-SHA384 with
/// [`Kem::DhKemP384`], else HKDF-SHA256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Aead {
    /// 0x0001.
    Aes128Gcm,
    /// 0x0003.
    ChaCha20Poly1305,
    /// 0x0002.
    Aes256Gcm,
}

/// A private key's purpose, with what it is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    /// Purpose `signature`.
    Signature(SignatureScheme),
    /// Purpose `hpke`.
    Hpke(Kem),
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Software => "software",
            Self::Sealed => "sealed",
            Self::Hardware => "hardware",
        })
    }
}

impl std::fmt::Display for DeviceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Absent => "absent",
            Self::Locked => "locked",
            Self::Ready => "ready",
            Self::Failed => "failed",
        })
    }
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Signature(SignatureScheme::Ed25519) => "Ed25519",
            Self::Signature(SignatureScheme::EcdsaP256Sha256) => "ECDSA P-256",
            Self::Signature(SignatureScheme::EcdsaP384Sha384) => "ECDSA P-384",
            Self::Hpke(Kem::DhKemP256) => "DHKEM P-256",
            Self::Hpke(Kem::DhKemP384) => "DHKEM P-384",
            Self::Hpke(Kem::DhKemX25519) => "DHKEM X25519",
        })
    }
}

/// The content of an MLS credential (RFC 9420, 5.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Credential {
    /// A basic credential's `identity`: at most
    /// [`MAX_CREDENTIAL`](crate::limits::MAX_CREDENTIAL) bytes.
    Basic(Bytes),
    /// An X.509 chain, DER, the member's certificate first.
    X509(Vec<Bytes>),
}

/// Has a key a PIN of its own, and is it unlocked?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyPin {
    /// It has none.
    None,
    /// It has one, and waits for it.
    Locked,
    /// It has one, and somebody gave it since the daemon started.
    Unlocked,
}

impl std::fmt::Display for KeyPin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Locked => "locked",
            Self::Unlocked => "unlocked",
        })
    }
}

/// A named MLS member and its signature key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityInfo {
    /// The name, unique for the caller.
    pub name: String,
    /// The pinned credential.
    pub credential: Credential,
    /// The signature key.
    pub key: KeyId,
    /// Its scheme.
    pub scheme: SignatureScheme,
    /// Its public key, as MLS writes it (see [`SignatureScheme`]).
    pub public_key: Bytes,
    /// The device that holds it.
    pub device: String,
    /// How it is kept.
    pub tier: Tier,
    /// Has it a PIN of its own?
    pub pin: KeyPin,
    /// The keys before it that still sign, the oldest first: at most
    /// [`MAX_RETIRING`](crate::limits::MAX_RETIRING).
    pub retiring: Vec<KeyInfo>,
}

/// What a key is known to be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// Signs for an identity.
    Signature,
    /// An HPKE key that no signed structure has named yet.
    Hpke,
    /// The init key of a KeyPackage.
    Init,
    /// The encryption key of a leaf.
    Leaf,
}

/// Where a key is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyState {
    /// Usable.
    Active,
    /// Not needed by any record: destroyed when the grace is over.
    Idle,
    /// A signature key whose identity has a newer one: it still signs, and is
    /// destroyed at its end.
    Retiring,
    /// Known to the registry, not shown by its device.
    Missing,
    /// Gone for good.
    Destroyed,
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Signature => "signature",
            Self::Hpke => "hpke",
            Self::Init => "init",
            Self::Leaf => "leaf",
        })
    }
}

impl std::fmt::Display for KeyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Idle => "idle",
            Self::Retiring => "retiring",
            Self::Missing => "missing",
            Self::Destroyed => "destroyed",
        })
    }
}

/// A key in custody, without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Its name.
    pub id: KeyId,
    /// What it is made for.
    pub algorithm: Algorithm,
    /// What it is known to be for.
    pub purpose: Purpose,
    /// Where it is in its life.
    pub state: KeyState,
    /// Its public key.
    pub public_key: Bytes,
    /// The device that holds it.
    pub device: String,
    /// How it is kept.
    pub tier: Tier,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When a retiring key ends at the earliest, in seconds since 1970: time in
    /// which the daemon does not run does not count.
    pub ends: Option<u64>,
    /// Was it on its device before mlskeyd was? Then its end here leaves the
    /// device's own object alone.
    pub adopted: bool,
    /// Has it a PIN of its own?
    pub pin: KeyPin,
}
