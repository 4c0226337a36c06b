//! What a token can do, as it is told to people and as keys are made by it.

use std::collections::HashMap;

use super::wire::{Abilities, Anchor, Keep, TokenSupport, Wrapping, Wraps};
use super::{ALGORITHMS, bounded, misfit};
use crate::devices::{Algorithm, DeviceError, Fact, SignatureScheme, Support, Tier, Way};

/// How keys are made on a token.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Of which token.
    pub(super) serial: String,
    pub(super) anchor: Anchor,
    making: HashMap<(Algorithm, Tier), Make>,
    pub(super) facts: Vec<Fact>,
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
    /// From what the token with this serial number showed. It takes at most `most`
    /// objects.
    pub(super) fn new(found: &Abilities, serial: &str, most: u32) -> Result<Self, DeviceError> {
        let mut plan = Self {
            serial: serial.to_owned(),
            anchor: found.anchor,
            making: HashMap::new(),
            facts: facts(found, serial),
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
        let algorithm = found.algorithm;
        let mut ways = Vec::new();
        let mut why_not = Vec::new();
        let wrapped = found.wrapped.as_ref().ok().copied();
        let keep = |wraps: Wraps| Make::InToken(Keep::Wrapped(wraps.by));
        let spare = spare(algorithm, most);
        let object = Make::InToken(Keep::Object { most, spare });
        let hardware = match wrapped {
            Some(wraps) if wraps.enforced => Some(keep(wraps)),
            _ => found.object.is_ok().then_some(object),
        };
        let sealed = match wrapped {
            Some(wraps) if !wraps.enforced => Some(keep(wraps)),
            _ => seals.is_ok().then_some(Make::Sealed),
        };
        for (tier, make) in [(Tier::Hardware, hardware), (Tier::Sealed, sealed)] {
            if let Some(make) = make {
                self.making.insert((algorithm, tier), make);
                let how = how(algorithm, make, wrapped);
                ways.push(Way { tier, how });
            }
        }
        if let Err(why) = &found.object
            && hardware.is_none()
        {
            why_not.push(format!("not hardware: {why}"));
        }
        if hardware == Some(object) && matches!(algorithm, Algorithm::Hpke(_)) {
            let most = most.saturating_sub(spare);
            let why = found.wrapped.as_ref().err();
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            why_not.push(format!("in hardware {most} at most{why}"));
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
            algorithm,
            ways,
            why_no_other: bounded(&why_not.join("; ")),
        });
    }

    /// How a key is made in a tier.
    pub(super) fn making(&self, algorithm: Algorithm, tier: Tier) -> Option<Make> {
        self.making.get(&(algorithm, tier)).copied()
    }
}

/// Objects that HPKE keys leave free: an app that makes very many of them must not
/// stop others from getting an identity, or a new key for one.
fn spare(algorithm: Algorithm, most: u32) -> u32 {
    const MOST: u32 = 64;
    match algorithm {
        Algorithm::Hpke(_) => most.div_ceil(10).min(MOST),
        Algorithm::Signature(_) => 0,
    }
}

/// What the token says of itself; not what it leaves open.
fn facts(found: &Abilities, serial: &str) -> Vec<Fact> {
    let is = &found.is;
    let anchor = match found.anchor {
        Anchor::WrappingKey => "an AES key that wraps, with CKA_UNWRAP_TEMPLATE",
        Anchor::PlainWrappingKey => "an AES key that wraps, without CKA_UNWRAP_TEMPLATE",
        Anchor::Data => "a data object: the token makes no AES keys that wrap",
    };
    let facts = [
        ("label", is.label.as_str()),
        ("manufacturer", &is.manufacturer),
        ("model", &is.model),
        ("serial", serial),
        ("firmware", &is.firmware),
        ("generations", anchor),
    ];
    let facts = facts.map(|(name, value)| Fact {
        name: name.to_owned(),
        value: bounded(value.trim()),
    });
    let told = facts.into_iter().filter(|fact| !fact.value.is_empty());
    told.collect()
}

/// How keys are kept, in the words of PKCS#11.
fn how(algorithm: Algorithm, make: Make, wrapped: Option<Wraps>) -> String {
    let used_by = match algorithm {
        Algorithm::Signature(SignatureScheme::Ed25519) => "CKM_EDDSA",
        Algorithm::Signature(
            SignatureScheme::EcdsaP256Sha256 | SignatureScheme::EcdsaP384Sha384,
        ) => "CKM_ECDSA",
        Algorithm::Hpke(_) => "CKM_ECDH1_DERIVE",
    };
    match make {
        Make::InToken(Keep::Object { .. }) => format!("an object of the token; {used_by}"),
        Make::InToken(Keep::Wrapped(by)) => {
            let enforced = wrapped.is_some_and(|wraps| wraps.enforced);
            let enforced = if enforced { "enforced" } else { "not enforced" };
            format!("wrapped by {by}, {enforced}; {used_by}")
        }
        Make::Sealed => format!("made by the daemon, encrypted by {}", Wrapping::CbcPad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Kem;
    use crate::devices::pkcs11::wire::Identity;

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
            is: identity(),
            anchor: Anchor::WrappingKey,
            seals,
            algorithms: ALGORITHMS.into_iter().map(support).collect(),
        }
    }

    fn identity() -> Identity {
        Identity {
            label: "mlskeyd".to_owned(),
            manufacturer: "somebody".to_owned(),
            model: "one".to_owned(),
            firmware: "2.6".to_owned(),
        }
    }

    fn planned(abilities: &Abilities, most: u32) -> Plan {
        Plan::new(abilities, "4711", most).unwrap()
    }

    fn wraps(enforced: bool) -> Result<Wraps, String> {
        let by = Wrapping::KeyWrapPad;
        Ok(Wraps { by, enforced })
    }

    fn tiers(plan: &Plan, algorithm: Algorithm) -> (Vec<Tier>, String) {
        let found = plan.support.iter().find(|it| it.algorithm == algorithm);
        let found = found.unwrap();
        (found.tiers(), found.why_no_other.clone())
    }

    const WRAPPED: Make = Make::InToken(Keep::Wrapped(Wrapping::KeyWrapPad));
    /// Of an HPKE key, for which not all nine are.
    const OBJECT: Make = Make::InToken(Keep::Object { most: 9, spare: 1 });

    #[test]
    fn what_the_token_refuses_to_give_away_is_hardware() {
        let plan = planned(&token(&Ok(()), &wraps(true), Ok(())), 9);
        assert_eq!(plan.making(P256, Tier::Hardware), Some(WRAPPED));
        assert_eq!(plan.making(P256, Tier::Sealed), Some(Make::Sealed));
        assert_eq!(plan.making(P256, Tier::Software), None);
        let all = vec![Tier::Hardware, Tier::Sealed];
        assert_eq!(tiers(&plan, P256), (all, String::new()));
    }

    #[test]
    fn what_it_would_give_away_is_sealed_and_hardware_are_objects_alone() {
        let plan = planned(&token(&Ok(()), &wraps(false), Ok(())), 9);
        assert_eq!(plan.making(P256, Tier::Hardware), Some(OBJECT));
        assert_eq!(plan.making(P256, Tier::Sealed), Some(WRAPPED));
        let (_, why) = tiers(&plan, P256);
        assert!(why.contains("wrapped-unenforced"), "{why}");
        assert!(why.contains("in hardware 8 at most;"), "{why}");

        let plan = planned(&token(&no(), &wraps(false), Ok(())), 9);
        assert_eq!(plan.making(P256, Tier::Hardware), None);
    }

    #[test]
    fn what_it_does_not_wrap_are_objects_and_said_to_be_few() {
        let plan = planned(&token(&Ok(()), &no(), no()), 9);
        assert_eq!(plan.making(P256, Tier::Hardware), Some(OBJECT));
        assert_eq!(plan.making(P256, Tier::Sealed), None);
        let (found, why) = tiers(&plan, P256);
        assert_eq!(found, [Tier::Hardware]);
        assert!(why.contains("8 at most"), "{why}");
        let (_, why) = tiers(&plan, ED25519);
        assert!(
            !why.contains("at most") && why.contains("not sealed"),
            "{why}"
        );
    }

    #[test]
    fn hpke_keys_that_are_objects_leave_room_for_signature_keys() {
        for (most, left) in [(1, 1), (10, 1), (100, 10), (1000, 64), (u32::MAX, 64)] {
            let plan = planned(&token(&Ok(()), &no(), no()), most);
            let object = |spare| Some(Make::InToken(Keep::Object { most, spare }));
            assert_eq!(plan.making(P256, Tier::Hardware), object(left), "{most}");
            assert_eq!(plan.making(ED25519, Tier::Hardware), object(0), "{most}");
        }
    }

    #[test]
    fn how_keys_are_kept_is_told_in_the_words_of_the_standard() {
        let how = |wrapped, algorithm| {
            let plan = planned(&token(&Ok(()), &wrapped, Ok(())), 9);
            let mut support = plan.support.iter();
            let found = support.find(|it| it.algorithm == algorithm).unwrap();
            found
                .ways
                .iter()
                .map(|way| way.how.clone())
                .collect::<Vec<_>>()
        };
        let sealed = "made by the daemon, encrypted by CKM_AES_CBC_PAD";
        let object = "an object of the token; CKM_ECDH1_DERIVE";
        assert_eq!(how(no(), P256), [object, sealed]);
        let by = "wrapped by CKM_AES_KEY_WRAP_PAD";
        let enforced = format!("{by}, enforced; CKM_ECDH1_DERIVE");
        assert_eq!(how(wraps(true), P256), [&enforced, sealed]);
        let not = format!("{by}, not enforced; CKM_ECDH1_DERIVE");
        assert_eq!(how(wraps(false), P256), [object, &not]);
        let signs = "an object of the token; CKM_EDDSA";
        assert_eq!(how(no(), ED25519), [signs, sealed]);
    }

    #[test]
    fn a_token_speaks_to_no_terminal_and_not_for_long() {
        let mut hostile = token(&Ok(()), &no(), no());
        hostile.is.model = "\u{1b}[31mred\0\n".to_owned();
        hostile.is.manufacturer = " \0 ".to_owned();
        hostile.is.label = "long".repeat(100_000);
        let plan = Plan::new(&hostile, "4711 ", 9).unwrap();
        let fact = |name: &str| {
            let mut facts = plan.facts.iter();
            facts
                .find(|fact| fact.name == name)
                .map(|fact| fact.value.as_str())
        };
        assert_eq!(fact("model"), Some("[31mred"));
        assert_eq!(fact("manufacturer"), None);
        assert_eq!(fact("serial"), Some("4711"));
        assert_eq!(fact("firmware"), Some("2.6"));
        assert_eq!(fact("label").unwrap().len(), 200);
        assert!(fact("generations").unwrap().contains("CKA_UNWRAP_TEMPLATE"));
    }

    #[test]
    fn what_it_does_not_know_it_can_still_seal() {
        let plan = planned(&token(&no(), &no(), Ok(())), 9);
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
        Plan::new(&short, "4711", 9).unwrap_err();
        twice.algorithms.push(twice.algorithms[0].clone());
        Plan::new(&twice, "4711", 9).unwrap_err();
    }
}
