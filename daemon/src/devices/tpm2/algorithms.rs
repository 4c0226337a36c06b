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

/// What is said of it. `has_p384`: `None` as long as no TPM has told.
pub(super) fn offered(has_p384: Option<bool>) -> Vec<Support> {
    let support = |algorithm| {
        if has_p384.is_none() && is_p384(algorithm) {
            return Support {
                algorithm,
                ways: Vec::new(),
                why_no_other: "not known until the TPM is there".to_owned(),
            };
        }
        let making = making(algorithm, has_p384.unwrap_or_default());
        let (how, why_no_other) = match making {
            Making::InTpm(..) => (
                "made in the TPM, kept as blobs that only it loads",
                "not sealed: the TPM keeps such keys itself",
            ),
            Making::Sealed if is_p384(algorithm) => (
                "sealed by the TPM",
                "not hardware: this TPM does not have P-384",
            ),
            Making::Sealed => (
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

const fn is_p384(algorithm: Algorithm) -> bool {
    matches!(
        algorithm,
        Algorithm::Signature(SignatureScheme::EcdsaP384Sha384) | Algorithm::Hpke(Kem::DhKemP384)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_of_p384_before_a_tpm_was_there() {
        for support in offered(None) {
            let has_one = if is_p384(support.algorithm) { 0 } else { 1 };
            assert_eq!(support.ways.len(), has_one, "{}", support.algorithm);
            let is_unknown = support.why_no_other.contains("until the TPM is there");
            assert_eq!(is_unknown, has_one == 0, "{}", support.algorithm);
        }
    }

    #[test]
    fn p384_is_sealed_where_the_tpm_does_not_have_it() {
        let signature = Algorithm::Signature(SignatureScheme::EcdsaP384Sha384);
        for (has_p384, tier) in [(true, Tier::Hardware), (false, Tier::Sealed)] {
            for algorithm in [signature, Algorithm::Hpke(Kem::DhKemP384)] {
                let offered = offered(Some(has_p384));
                let mut offered = offered.iter();
                let found = offered.find(|support| support.algorithm == algorithm);
                assert_eq!(found.unwrap().tiers(), [tier]);
                Making::of(algorithm, tier, has_p384).unwrap();
                Making::of(algorithm, tier, !has_p384).unwrap_err();
            }
        }
    }
}
