//! What a card offers, and what it says of itself.

use super::algorithm::Curve;
use super::look::Found;
use crate::config::{Slot, YubiKeyConfig};
use crate::devices::{ALGORITHMS, Algorithm, Fact, SignatureScheme, Support, Tier, Way};

/// What the card keeps, and how; with the management key also in slots.
pub(super) fn support(found: &Found, is_managed: bool) -> Vec<Support> {
    let support = |algorithm| {
        let is_known = Curve::of(algorithm).is_known_to(found.version);
        let is_signature = matches!(algorithm, Algorithm::Signature(_));
        let mut ways = Vec::new();
        if is_known && is_managed {
            ways.push(Way {
                tier: Tier::Hardware,
                how: "in a slot of its own".to_owned(),
            });
        }
        // A signature key lives for years: where the card has its kind, it is in the
        // card. But with Ed25519 that signs no long content.
        let may_be_sealed = !is_known
            || !is_signature
            || algorithm == Algorithm::Signature(SignatureScheme::Ed25519);
        if may_be_sealed && found.agreement.is_ok() {
            ways.push(Way {
                tier: Tier::Sealed,
                how: "encrypted under the card's key agreement key".to_owned(),
            });
        }
        Support {
            algorithm,
            ways,
            why_no_other: why_no_other(found, algorithm, is_known, is_managed),
        }
    };
    ALGORITHMS.into_iter().map(support).collect()
}

fn why_no_other(found: &Found, algorithm: Algorithm, is_known: bool, is_managed: bool) -> String {
    let is_signature = matches!(algorithm, Algorithm::Signature(_));
    let mut why = Vec::new();
    if !is_known {
        why.push(format!(
            "firmware {} has no {algorithm}, 5.7 is the first that has",
            found.version
        ));
    } else if !is_managed && is_signature {
        why.push("a key in a provisioned slot is adopted: `mlskeyctl identities adopt`".to_owned());
    } else if !is_managed {
        why.push("without the management key none is made in the card".to_owned());
    }
    if let (Err(reason), false) = (&found.agreement, is_known && is_signature) {
        why.push(format!("none is sealed: {reason}"));
    }
    why.join("; ")
}

/// What the card says of itself.
pub(super) fn facts(found: &Found, config: &YubiKeyConfig) -> Vec<Fact> {
    let fact = |name: &str, value: String| Fact {
        name: name.to_owned(),
        value,
    };
    let key = |slot: Slot, key: &Result<p256::PublicKey, String>| match key {
        Ok(_) => format!("P-256 in slot {slot}"),
        Err(why) => why.chars().take(200).collect(),
    };
    let (most, left) = found.tries;
    let mut facts = vec![
        fact("serial", found.serial.to_string()),
        fact("firmware", found.version.to_string()),
        fact("pin", format!("{left} of {most} tries left")),
        fact("agreement", key(config.agreement_slot, &found.agreement)),
    ];
    if let (Some(slot), Some(consent)) = (config.consent_slot, &found.consent) {
        facts.push(fact("consent", key(slot, consent)));
    }
    facts
}
