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
