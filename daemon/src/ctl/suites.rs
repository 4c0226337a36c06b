//! What a device's offers mean for MLS: which cipher suites (RFC 9420, 17.1) it
//! serves, and at which tier.

use mlskeyd_protocol::v1::{Algorithm, DeviceInfo, DeviceState, Kem, SignatureScheme, Tier};

/// The cipher suites of custody, with the algorithms of their keys.
const SUITES: [(u16, SignatureScheme, Kem); 4] = [
    (0x0001, SignatureScheme::Ed25519, Kem::DhKemX25519),
    (0x0002, SignatureScheme::EcdsaP256Sha256, Kem::DhKemP256),
    (0x0003, SignatureScheme::Ed25519, Kem::DhKemX25519),
    (0x0007, SignatureScheme::EcdsaP384Sha384, Kem::DhKemP384),
];

/// A cipher suite on a device.
pub(super) struct Suite {
    pub(super) number: u16,
    /// The lower of the tiers of its two kinds of keys, where an app names none;
    /// `None`: not possible.
    pub(super) tier: Option<Tier>,
    /// Why not better, as the device says.
    pub(super) why: Vec<String>,
}

/// All suites on a device; none while nobody knows what it can do.
pub(super) fn of(device: &DeviceInfo) -> Vec<Suite> {
    if device.offers.is_empty() && device.state != DeviceState::Ready {
        return Vec::new();
    }
    let tiers = |algorithm: Algorithm| {
        let offers = device.offers.iter();
        let of_it = offers.filter(move |offer| offer.algorithm == algorithm);
        of_it.map(|offer| offer.tier)
    };
    let suite = |(number, scheme, kem)| {
        let [signature, hpke] = [Algorithm::Signature(scheme), Algorithm::Hpke(kem)];
        let best = tiers(hpke).max();
        // As the daemon chooses where an app names none.
        let chosen = match device.hpke_tier {
            Some(set) => tiers(hpke).find(|tier| *tier == set),
            None => best,
        };
        let mut why = Vec::new();
        if let Some(set) = device.hpke_tier
            && chosen < best
        {
            let unless = if chosen.is_none() {
                ": an app has to name another"
            } else {
                ""
            };
            why.push(format!("{hpke}: `hpke_tier` is {set}{unless}"));
        }
        let remark = |of: Algorithm| {
            let mut remarks = device.remarks.iter();
            let found = remarks.find(|(algorithm, _)| *algorithm == of);
            found.map(|(_, remark)| remark.as_str())
        };
        match (remark(signature), remark(hpke)) {
            (Some(one), Some(other)) if one == other => {
                why.push(format!("{signature}, {hpke}: {one}"));
            }
            (one, other) => {
                why.extend(one.map(|remark| format!("{signature}: {remark}")));
                why.extend(other.map(|remark| format!("{hpke}: {remark}")));
            }
        }
        Suite {
            number,
            tier: tiers(signature)
                .max()
                .zip(chosen)
                .map(|(one, other)| one.min(other)),
            why,
        }
    };
    SUITES.into_iter().map(suite).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::devices::sample;

    fn told(device: &DeviceInfo, number: u16) -> (Option<Tier>, String) {
        let mut suites = of(device).into_iter();
        let suite = suites.find(|suite| suite.number == number).unwrap();
        (suite.tier, suite.why.join("; "))
    }

    #[test]
    fn a_suite_is_no_better_than_the_worse_of_its_keys() {
        let mut device = sample();
        assert_eq!(told(&device, 1).0, Some(Tier::Hardware));
        let ed25519 = Algorithm::Signature(SignatureScheme::Ed25519);
        let hardware = |offer: &mlskeyd_protocol::v1::Offer| offer.tier == Tier::Hardware;
        device
            .offers
            .retain(|offer| offer.algorithm != ed25519 || !hardware(offer));
        device.remarks = vec![(ed25519, "no such curve".to_owned())];
        let (tier, why) = told(&device, 1);
        assert_eq!(tier, Some(Tier::Sealed));
        assert_eq!(why, "Ed25519: no such curve");
        assert_eq!(told(&device, 2), (Some(Tier::Hardware), String::new()));
        device.offers.retain(|offer| offer.algorithm != ed25519);
        assert_eq!(told(&device, 3).0, None);
        // The same reason for both is told once.
        let x25519 = Algorithm::Hpke(Kem::DhKemX25519);
        device.remarks.push((x25519, "no such curve".to_owned()));
        let (_, why) = told(&device, 3);
        assert_eq!(why, "Ed25519, DHKEM X25519: no such curve");
    }

    #[test]
    fn a_suite_is_as_the_configured_tier_of_its_hpke_keys_lets_it_be() {
        let mut device = sample();
        device.remarks.clear();
        device.hpke_tier = Some(Tier::Hardware);
        assert_eq!(told(&device, 2), (Some(Tier::Hardware), String::new()));
        device.hpke_tier = Some(Tier::Sealed);
        let (tier, why) = told(&device, 2);
        assert_eq!(tier, Some(Tier::Sealed));
        assert_eq!(why, "DHKEM P-256: `hpke_tier` is sealed");
        device.offers.retain(|offer| offer.tier == Tier::Hardware);
        let (tier, why) = told(&device, 2);
        assert_eq!(tier, None);
        assert!(why.contains("an app has to name another"), "{why}");
    }

    #[test]
    fn of_a_device_that_was_never_seen_nothing_is_said() {
        let mut device = sample();
        device.offers.clear();
        device.state = DeviceState::Locked;
        assert!(of(&device).is_empty());
    }
}
