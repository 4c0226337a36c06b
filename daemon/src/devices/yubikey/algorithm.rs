//! The algorithms of a YubiKey's PIV application, by the numbers that it has for them
//! (NIST SP 800-78-4, table 6-2; Yubico's from firmware 5.7:
//! <https://docs.yubico.com/yesdk/users-manual/application-piv/apdu/gen-asym.html>).

use super::piv::Version;
use crate::devices::{Algorithm, Kem, SignatureScheme};

/// A kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
    Ed25519,
    X25519,
}

impl Curve {
    /// What keys of an algorithm are.
    pub(super) const fn of(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Signature(SignatureScheme::EcdsaP256Sha256)
            | Algorithm::Hpke(Kem::DhKemP256) => Self::P256,
            Algorithm::Signature(SignatureScheme::EcdsaP384Sha384)
            | Algorithm::Hpke(Kem::DhKemP384) => Self::P384,
            Algorithm::Signature(SignatureScheme::Ed25519) => Self::Ed25519,
            Algorithm::Hpke(Kem::DhKemX25519) => Self::X25519,
        }
    }

    /// The card's number for it.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::P256 => 0x11,
            Self::P384 => 0x14,
            Self::Ed25519 => 0xe0,
            Self::X25519 => 0xe1,
        }
    }

    pub(super) const fn by_number(number: u8) -> Option<Self> {
        match number {
            0x11 => Some(Self::P256),
            0x14 => Some(Self::P384),
            0xe0 => Some(Self::Ed25519),
            0xe1 => Some(Self::X25519),
            _ => None,
        }
    }

    /// Does a card of this version know it?
    pub(super) fn is_known_to(self, version: Version) -> bool {
        match self {
            Self::P256 | Self::P384 => true,
            Self::Ed25519 | Self::X25519 => version >= Version::CURVE25519,
        }
    }

    /// Length of its public keys, as the card writes them and MLS does: an uncompressed
    /// point (SEC1), or 32 bytes.
    pub(super) const fn public_len(self) -> usize {
        match self {
            Self::P256 => 65,
            Self::P384 => 97,
            Self::Ed25519 | Self::X25519 => 32,
        }
    }
}
