//! What a token can do, as it is told to people and as keys are made by it.

use std::collections::HashMap;

use super::wire::{Abilities, Anchor, Keep, TokenSupport};
use super::{ALGORITHMS, bounded, misfit};
use crate::devices::{Algorithm, DeviceError, Support, Tier};

/// How keys are made on a token.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) anchor: Anchor,
    making: HashMap<(Algorithm, Tier), Make>,
    pub(super) support: Vec<Support>,
}

/// How a key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Make {
    /// By the token.
    InToken(Keep),
    /// By the daemon, and encrypted by the token.
    Sealed,
}

impl Plan {
    /// From what the token showed. It takes at most `most` objects.
    pub(super) fn new(found: &Abilities, most: u32) -> Result<Self, DeviceError> {
        let mut plan = Self {
            anchor: found.anchor,
            making: HashMap::new(),
            support: Vec::new(),
        };
        for algorithm in ALGORITHMS {
            let mut of_it = found
                .algorithms
                .iter()
                .filter(|found| found.algorithm == algorithm);
            let (Some(one), None) = (of_it.next(), of_it.next()) else {
                return Err(misfit());
            };
            plan.add(one, &found.seals, most);
        }
        Ok(plan)
    }

    fn add(&mut self, found: &TokenSupport, seals: &Result<(), String>, most: u32) {
        let mut tiers = Vec::new();
        let mut why_not = Vec::new();
        let wrapped = found.wrapped.as_ref().ok();
        let keep = |wraps: super::wire::Wraps| Make::InToken(Keep::Wrapped(wraps.by));
        let hardware = match wrapped {
            Some(wraps) if wraps.enforced => Some(keep(*wraps)),
            _ => (found.object.is_ok()).then_some(Make::InToken(Keep::Object { most })),
        };
        let sealed = match wrapped {
            Some(wraps) if !wraps.enforced => Some(keep(*wraps)),
            _ => seals.is_ok().then_some(Make::Sealed),
        };
        for (tier, make) in [(Tier::Hardware, hardware), (Tier::Sealed, sealed)] {
            if let Some(make) = make {
                self.making.insert((found.algorithm, tier), make);
                tiers.push(tier);
            }
        }
        if let Err(why) = &found.object
            && hardware.is_none()
        {
            why_not.push(format!("not hardware: {why}"));
        }
        if matches!(hardware, Some(Make::InToken(Keep::Object { .. })))
            && let (Err(why), Algorithm::Hpke(_)) = (&found.wrapped, found.algorithm)
        {
            why_not.push(format!("in hardware {most} at most: {why}"));
        }
        if wrapped.is_some_and(|wraps| !wraps.enforced) {
            why_not.push(
                "wrapped-unenforced: the token would unwrap keys so that they can be read"
                    .to_owned(),
            );
        }
        if let (None, Err(why)) = (sealed, seals) {
            why_not.push(format!("not sealed: {why}"));
        }
        self.support.push(Support {
            algorithm: found.algorithm,
            tiers,
            why_no_other: bounded(&why_not.join("; ")),
        });
    }

    /// How a key is made in a tier.
    pub(super) fn making(&self, algorithm: Algorithm, tier: Tier) -> Option<Make> {
        self.making.get(&(algorithm, tier)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::pkcs11::wire::{Wrapping, Wraps};
    use crate::devices::{Kem, SignatureScheme};

    const P256: Algorithm = Algorithm::Hpke(Kem::DhKemP256);
    const ED25519: Algorithm = Algorithm::Signature(SignatureScheme::Ed25519);

    fn no<T>() -> Result<T, String> {
        Err("it cannot".to_owned())
    }

    /// A token that does the same with every algorithm.
    fn token(
        object: &Result<(), String>,
        wrapped: &Result<Wraps, String>,
        seals: Result<(), String>,
    ) -> Abilities {
        let support = |algorithm| TokenSupport {
            algorithm,
            object: object.clone(),
            wrapped: wrapped.clone(),
        };
        Abilities {
            anchor: Anchor::WrappingKey,
            seals,
            algorithms: ALGORITHMS.into_iter().map(support).collect(),
        }
    }

    fn wraps(enforced: bool) -> Result<Wraps, String> {
        let by = Wrapping::KeyWrapPad;
        Ok(Wraps { by, enforced })
    }

    fn tiers(plan: &Plan, algorithm: Algorithm) -> (Vec<Tier>, String) {
        let found = plan.support.iter().find(|it| it.algorithm == algorithm);
        let found = found.unwrap();
        (found.tiers.clone(), found.why_no_other.clone())
    }

    const WRAPPED: Make = Make::InToken(Keep::Wrapped(Wrapping::KeyWrapPad));
    const OBJECT: Make = Make::InToken(Keep::Object { most: 9 });

    #[test]
    fn what_the_token_refuses_to_give_away_is_hardware() {
        let plan = Plan::new(&token(&Ok(()), &wraps(true), Ok(())), 9).unwrap();
        assert_eq!(plan.making(P256, Tier::Hardware), Some(WRAPPED));
        assert_eq!(plan.making(P256, Tier::Sealed), Some(Make::Sealed));
        assert_eq!(plan.making(P256, Tier::Software), None);
        let all = vec![Tier::Hardware, Tier::Sealed];
        assert_eq!(tiers(&plan, P256), (all, String::new()));
    }

    #[test]
    fn what_it_would_give_away_is_sealed_and_hardware_are_objects_alone() {
        let plan = Plan::new(&token(&Ok(()), &wraps(false), Ok(())), 9).unwrap();
        assert_eq!(plan.making(P256, Tier::Hardware), Some(OBJECT));
        assert_eq!(plan.making(P256, Tier::Sealed), Some(WRAPPED));
        let (_, why) = tiers(&plan, P256);
        assert!(why.contains("wrapped-unenforced"), "{why}");

        let plan = Plan::new(&token(&no(), &wraps(false), Ok(())), 9).unwrap();
        assert_eq!(plan.making(P256, Tier::Hardware), None);
    }

    #[test]
    fn what_it_does_not_wrap_are_objects_and_said_to_be_few() {
        let plan = Plan::new(&token(&Ok(()), &no(), no()), 9).unwrap();
        assert_eq!(plan.making(P256, Tier::Hardware), Some(OBJECT));
        assert_eq!(plan.making(P256, Tier::Sealed), None);
        let (found, why) = tiers(&plan, P256);
        assert_eq!(found, [Tier::Hardware]);
        assert!(why.contains("9 at most"), "{why}");
        let (_, why) = tiers(&plan, ED25519);
        assert!(
            !why.contains("at most") && why.contains("not sealed"),
            "{why}"
        );
    }

    #[test]
    fn what_it_does_not_know_it_can_still_seal() {
        let plan = Plan::new(&token(&no(), &no(), Ok(())), 9).unwrap();
        assert_eq!(plan.making(ED25519, Tier::Sealed), Some(Make::Sealed));
        let (found, why) = tiers(&plan, ED25519);
        assert_eq!(found, [Tier::Sealed]);
        assert!(why.contains("not hardware: it cannot"), "{why}");
    }

    #[test]
    fn each_algorithm_has_to_be_told_once() {
        let whole = token(&Ok(()), &no(), no());
        let (mut short, mut twice) = (whole.clone(), whole);
        short.algorithms.pop();
        Plan::new(&short, 9).unwrap_err();
        twice.algorithms.push(twice.algorithms[0].clone());
        Plan::new(&twice, 9).unwrap_err();
    }
}
