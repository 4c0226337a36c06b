//! What a device's offers mean for MLS: which cipher suites (RFC 9420, 17.1) it
//! serves, and at which tier.

use mlskeyd_protocol::v1::{Algorithm, DeviceInfo, DeviceState, Kem, SignatureScheme, Tier};

/// The cipher suites of custody, with the algorithms of their keys.
const SUITES: [(u16, SignatureScheme, Kem); 3] = [
    (0x0001, SignatureScheme::Ed25519, Kem::DhKemX25519),
    (0x0002, SignatureScheme::EcdsaP256Sha256, Kem::DhKemP256),
    (0x0003, SignatureScheme::Ed25519, Kem::DhKemX25519),
];

/// A cipher suite on a device.
pub(super) struct Suite {
    pub(super) number: u16,
    /// The lower of the tiers of its two kinds of keys; `None`: not possible.
    pub(super) tier: Option<Tier>,
    /// Why not better, as the device says.
    pub(super) why: Vec<String>,
}

/// All suites on a device; none while nobody knows what it can do.
pub(super) fn of(device: &DeviceInfo) -> Vec<Suite> {
    if device.offers.is_empty() && device.state != DeviceState::Ready {
        return Vec::new();
    }
    let best = |algorithm: Algorithm| {
        let offers = device
            .offers
            .iter()
            .filter(|(offer, _)| *offer == algorithm);
        offers.map(|(_, tier)| *tier).max()
    };
    let suite = |(number, scheme, kem)| {
        let algorithms = [Algorithm::Signature(scheme), Algorithm::Hpke(kem)];
        let [signature, hpke] = algorithms.map(best);
        let remarks = device.remarks.iter();
        let why = remarks
            .filter(|(algorithm, _)| algorithms.contains(algorithm))
            .map(|(algorithm, remark)| format!("{algorithm}: {remark}"));
        Suite {
            number,
            tier: signature.zip(hpke).map(|(one, other)| one.min(other)),
            why: why.collect(),
        }
    };
    SUITES.into_iter().map(suite).collect()
}
