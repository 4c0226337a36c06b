//! What a TPM does with which algorithm.

use super::keys::{Curve, Use};
use crate::devices::{
    ALGORITHMS, Algorithm, DeviceError, Kem, SignatureScheme, Support, Tier, Way,
};

/// How a key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Making {
    /// By the TPM.
    InTpm(Curve, Use),
    /// Here, and sealed by the TPM.
    Sealed,
}

impl Making {
    const fn tier(self) -> Tier {
        match self {
            Self::InTpm(..) => Tier::Hardware,
            Self::Sealed => Tier::Sealed,
        }
    }

    /// In the tier that was asked for, if that is possible.
    pub(super) fn of(
        algorithm: Algorithm,
        tier: Tier,
        has_p384: bool,
    ) -> Result<Self, DeviceError> {
        let making = making(algorithm, has_p384);
        if making.tier() == tier {
            return Ok(making);
        }
        Err(DeviceError::Unsupported {
            algorithm,
            tier,
            possible: vec![making.tier()],
        })
    }
}

/// The one way in which a TPM, with or without the curve P-384, keeps keys of an
/// algorithm.
const fn making(algorithm: Algorithm, has_p384: bool) -> Making {
    match algorithm {
        Algorithm::Signature(SignatureScheme::EcdsaP256Sha256) => {
            Making::InTpm(Curve::P256, Use::Sign)
        }
        Algorithm::Hpke(Kem::DhKemP256) => Making::InTpm(Curve::P256, Use::Agree),
        Algorithm::Signature(SignatureScheme::EcdsaP384Sha384) if has_p384 => {
            Making::InTpm(Curve::P384, Use::Sign)
        }
        Algorithm::Hpke(Kem::DhKemP384) if has_p384 => Making::InTpm(Curve::P384, Use::Agree),
        Algorithm::Signature(SignatureScheme::Ed25519 | SignatureScheme::EcdsaP384Sha384)
        | Algorithm::Hpke(Kem::DhKemX25519 | Kem::DhKemP384) => Making::Sealed,
    }
}

/// What is said of it.
pub(super) fn offered(has_p384: bool) -> Vec<Support> {
    let support = |algorithm| {
        let making = making(algorithm, has_p384);
        let (how, why_no_other) = match (making, algorithm) {
            (Making::InTpm(..), _) => (
                "made in the TPM, kept as blobs that only it loads",
                "not sealed: the TPM keeps such keys itself",
            ),
            (
                Making::Sealed,
                Algorithm::Signature(SignatureScheme::EcdsaP384Sha384)
                | Algorithm::Hpke(Kem::DhKemP384),
            ) => (
                "sealed by the TPM",
                "not hardware: this TPM does not have P-384",
            ),
            (Making::Sealed, _) => (
                "sealed by the TPM",
                "not hardware: a TPM 2.0 does not know Curve25519",
            ),
        };
        Support {
            algorithm,
            ways: vec![Way {
                tier: making.tier(),
                how: how.to_owned(),
            }],
            why_no_other: why_no_other.to_owned(),
        }
    };
    ALGORITHMS.into_iter().map(support).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p384_is_sealed_where_the_tpm_does_not_have_it() {
        let signature = Algorithm::Signature(SignatureScheme::EcdsaP384Sha384);
        for (has_p384, tier) in [(true, Tier::Hardware), (false, Tier::Sealed)] {
            for algorithm in [signature, Algorithm::Hpke(Kem::DhKemP384)] {
                let offered = offered(has_p384);
                let mut offered = offered.iter();
                let found = offered.find(|support| support.algorithm == algorithm);
                assert_eq!(found.unwrap().tiers(), [tier]);
                Making::of(algorithm, tier, has_p384).unwrap();
                Making::of(algorithm, tier, !has_p384).unwrap_err();
            }
        }
    }
}
