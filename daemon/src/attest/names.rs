//! The names of algorithms and tiers in documents and hashes. They never change.

use mlskeyd_protocol::v1::{Algorithm, Kem, SignatureScheme, Tier};
use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::Serializer;

/// Something that a document calls by a name.
pub(super) trait Named: Copy + 'static {
    const ALL: &'static [Self];

    fn name(self) -> &'static str;
}

impl Named for Algorithm {
    const ALL: &'static [Self] = &[
        Self::Signature(SignatureScheme::Ed25519),
        Self::Signature(SignatureScheme::EcdsaP256Sha256),
        Self::Hpke(Kem::DhKemP256),
        Self::Hpke(Kem::DhKemX25519),
        Self::Signature(SignatureScheme::EcdsaP384Sha384),
        Self::Hpke(Kem::DhKemP384),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Signature(SignatureScheme::Ed25519) => "ed25519",
            Self::Signature(SignatureScheme::EcdsaP256Sha256) => "ecdsa-p256-sha256",
            Self::Hpke(Kem::DhKemP256) => "dhkem-p256-sha256",
            Self::Hpke(Kem::DhKemX25519) => "dhkem-x25519-sha256",
            Self::Signature(SignatureScheme::EcdsaP384Sha384) => "ecdsa-p384-sha384",
            Self::Hpke(Kem::DhKemP384) => "dhkem-p384-sha384",
        }
    }
}

impl Named for Tier {
    const ALL: &'static [Self] = &[Self::Software, Self::Sealed, Self::Hardware];

    fn name(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::Sealed => "sealed",
            Self::Hardware => "hardware",
        }
    }
}

pub(super) fn serialize<T: Named, S: Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.name())
}

pub(super) fn deserialize<'de, T: Named, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let name = String::deserialize(deserializer)?;
    let found = T::ALL.iter().find(|known| known.name() == name);
    found.copied().ok_or_else(|| {
        let known: Vec<_> = T::ALL.iter().map(|known| known.name()).collect();
        D::Error::custom(format!("an unknown name; known are: {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_they_were_published() {
        let algorithms: Vec<_> = Algorithm::ALL.iter().map(|one| one.name()).collect();
        assert_eq!(
            algorithms,
            [
                "ed25519",
                "ecdsa-p256-sha256",
                "dhkem-p256-sha256",
                "dhkem-x25519-sha256",
                "ecdsa-p384-sha384",
                "dhkem-p384-sha384"
            ]
        );
        let tiers: Vec<_> = Tier::ALL.iter().map(|one| one.name()).collect();
        assert_eq!(tiers, ["software", "sealed", "hardware"]);
    }
}
