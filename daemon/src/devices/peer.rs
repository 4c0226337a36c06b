//! The other side of a key agreement, checked in software: devices differ in
//! what they let through.

use std::fmt;

use secrecy::{ExposeSecret, SecretSlice};
use subtle::ConstantTimeEq;

use super::{Algorithm, DeviceError, Kem};

/// A peer's public key that is safe to give to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerPublic {
    /// A point of P-256 that is not the identity (the curve has no other
    /// subgroup).
    P256(p256::PublicKey),
    /// The same of P-384.
    P384(p384::PublicKey),
    /// The u-coordinate of RFC 7748, 32 bytes, little endian. That it is of low
    /// order shows in the result only, see [`SharedSecret::new`].
    X25519([u8; 32]),
}

impl PeerPublic {
    /// Parses a public key as RFC 9180, 7.1.1 writes it (also the `enc` of its
    /// DHKEMs): SEC1 uncompressed, 65 bytes for P-256 and 97 for P-384; 32 bytes
    /// for X25519.
    ///
    /// # Errors
    /// [`DeviceError::BadPeerKey`] for everything else: another length or
    /// encoding, a point that is not on the curve, the identity.
    pub fn parse(kem: Kem, bytes: &[u8]) -> Result<Self, DeviceError> {
        match kem {
            Kem::DhKemP256 => {
                if bytes.len() != 65 || bytes.first() != Some(&0x04) {
                    return Err(DeviceError::BadPeerKey {
                        why: "it is no uncompressed point of 65 bytes",
                    });
                }
                let point = p256::PublicKey::from_sec1_bytes(bytes);
                point.map(Self::P256).map_err(|_| not_on_the_curve())
            }
            Kem::DhKemP384 => {
                if bytes.len() != 97 || bytes.first() != Some(&0x04) {
                    return Err(DeviceError::BadPeerKey {
                        why: "it is no uncompressed point of 97 bytes",
                    });
                }
                let point = p384::PublicKey::from_sec1_bytes(bytes);
                point.map(Self::P384).map_err(|_| not_on_the_curve())
            }
            Kem::DhKemX25519 => {
                bytes
                    .try_into()
                    .map(Self::X25519)
                    .map_err(|_| DeviceError::BadPeerKey {
                        why: "it is not 32 bytes long",
                    })
            }
        }
    }

    /// Refuses a peer of low order before a device sees it. Some devices answer
    /// it with an error that says nothing.
    ///
    /// # Errors
    /// [`DeviceError::BadPeerKey`].
    pub fn check_order(&self) -> Result<(), DeviceError> {
        let Self::X25519(coordinate) = self else {
            return Ok(());
        };
        // Every scalar of X25519 is a multiple of the cofactor.
        let result = x25519_dalek::x25519([8; 32], *coordinate);
        if result == [0; 32] {
            return Err(low_order());
        }
        Ok(())
    }

    /// Refuses a key that is not of this peer's KEM.
    ///
    /// # Errors
    /// [`DeviceError::WrongKeyType`].
    pub fn check_kem(&self, found: Algorithm) -> Result<(), DeviceError> {
        if found == Algorithm::Hpke(self.kem()) {
            return Ok(());
        }
        Err(DeviceError::WrongKeyType {
            needed: match self.kem() {
                Kem::DhKemP256 => "DHKEM P-256",
                Kem::DhKemP384 => "DHKEM P-384",
                Kem::DhKemX25519 => "DHKEM X25519",
            },
            found,
        })
    }

    /// The public key as it was parsed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::P256(point) => p256::EncodedPoint::from(point).as_bytes().to_vec(),
            Self::P384(point) => p384::EncodedPoint::from(point).as_bytes().to_vec(),
            Self::X25519(coordinate) => coordinate.to_vec(),
        }
    }

    /// The KEM that it belongs to.
    #[must_use]
    pub const fn kem(&self) -> Kem {
        match self {
            Self::P256(_) => Kem::DhKemP256,
            Self::P384(_) => Kem::DhKemP384,
            Self::X25519(_) => Kem::DhKemX25519,
        }
    }
}

const fn not_on_the_curve() -> DeviceError {
    DeviceError::BadPeerKey {
        why: "it is not on the curve",
    }
}

const fn low_order() -> DeviceError {
    DeviceError::BadPeerKey {
        why: "it is of low order",
    }
}

/// A raw DH result, with the KEM that it belongs to: 48 bytes for P-384, else 32. It
/// never leaves the daemon.
pub struct SharedSecret {
    kem: Kem,
    bytes: SecretSlice<u8>,
}

impl SharedSecret {
    /// Takes a DH result from a device.
    ///
    /// # Errors
    /// [`DeviceError::BadPeerKey`] if an X25519 result is all zero: the peer is
    /// of low order, and anybody would know the result (RFC 9180, 7.1.4).
    /// [`DeviceError::Failed`] if it is not as long as the KEM's are.
    pub fn new(kem: Kem, bytes: SecretSlice<u8>) -> Result<Self, DeviceError> {
        let length = Self::len(kem);
        if bytes.expose_secret().len() != length {
            return Err(DeviceError::Failed {
                reason: format!("it gave no shared secret of {length} bytes"),
            });
        }
        let zero = bool::from(bytes.expose_secret().ct_eq([0; 32].as_slice()));
        if kem == Kem::DhKemX25519 && zero {
            return Err(low_order());
        }
        Ok(Self { kem, bytes })
    }

    /// Length of a DH result of this KEM, in bytes.
    #[must_use]
    pub const fn len(kem: Kem) -> usize {
        match kem {
            Kem::DhKemP256 | Kem::DhKemX25519 => 32,
            Kem::DhKemP384 => 48,
        }
    }

    /// The KEM that it belongs to.
    #[must_use]
    pub const fn kem(&self) -> Kem {
        self.kem
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.bytes.expose_secret()
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedSecret({:?}, ..)", self.kem)
    }
}
