//! What the devices are and can do, for a person to read.

use mlskeyd_protocol::v1::{Count, DeviceInfo, Offer};

use super::suites;
use super::table::{self, printable, wrapped};

const MARGIN: &str = "  ";

/// A line for each device.
pub(super) fn table(devices: &[DeviceInfo]) -> String {
    let rows = devices.iter().map(|device| {
        // Algorithms of the same tiers together: a terminal is not wide.
        let mut offers: Vec<(Vec<String>, Vec<String>)> = Vec::new();
        let same = |one: &Offer, other: &Offer| one.algorithm == other.algorithm;
        for of_it in device.offers.chunk_by(same) {
            let tiers: Vec<_> = of_it.iter().map(|offer| offer.tier.to_string()).collect();
            let algorithm = of_it.first().map(|offer| offer.algorithm.to_string());
            match offers.iter_mut().find(|(_, known)| *known == tiers) {
                Some((algorithms, _)) => algorithms.extend(algorithm),
                None => offers.push((algorithm.into_iter().collect(), tiers)),
            }
        }
        let offers: Vec<_> = offers
            .iter()
            .map(|(algorithms, tiers)| format!("{}: {}", tiers.join(", "), algorithms.join(", ")))
            .collect();
        [
            marked(device),
            device.kind.clone(),
            device.state.to_string(),
            offers.join("; "),
            device.detail.clone().unwrap_or_default(),
        ]
    });
    table::table(["DEVICE", "KIND", "STATE", "OFFERS", "DETAIL"], rows)
}

/// All about each device: what it is, what it keeps and how, and what that means
/// for MLS. Nothing is cut.
pub(super) fn text(devices: &[DeviceInfo], room: Option<usize>) -> String {
    let texts: Vec<_> = devices.iter().map(|device| of_one(device, room)).collect();
    texts.join("\n")
}

fn of_one(device: &DeviceInfo, room: Option<usize>) -> String {
    let name = marked(device);
    let mut text = format!(
        "{}  {}  {}\n",
        printable(&name),
        printable(&device.kind),
        device.state
    );
    text.push_str(&wrapped(MARGIN, about(device), room));
    let offers = device.offers.iter().map(|offer| {
        [
            offer.algorithm.to_string(),
            offer.tier.to_string(),
            offer.how.clone(),
        ]
    });
    let suites = suites::of(device).into_iter().map(|suite| {
        [
            format!("{:#06x}", suite.number),
            suite
                .tier
                .map_or_else(|| "not possible".to_owned(), |tier| tier.to_string()),
            suite.why.join("; "),
        ]
    });
    for (titles, rows) in [
        (
            ["ALGORITHM", "TIER", "HOW KEYS ARE KEPT"],
            offers.collect::<Vec<_>>(),
        ),
        (["SUITE", "TIER", "WHY NO BETTER"], suites.collect()),
    ] {
        if !rows.is_empty() {
            let titles = titles.map(str::to_owned);
            text.push('\n');
            text.push_str(&wrapped(MARGIN, std::iter::once(titles).chain(rows), room));
        }
    }
    text
}

/// The default one with a mark.
fn marked(device: &DeviceInfo) -> String {
    let mark = if device.default { " *" } else { "" };
    format!("{}{mark}", device.name)
}

/// What it is, and how much it has.
fn about(device: &DeviceInfo) -> Vec<[String; 2]> {
    let row = |name: &str, value: String| [name.to_owned(), value];
    let mut rows = Vec::new();
    if let Some(detail) = &device.detail {
        rows.push(row("detail", detail.clone()));
    }
    let facts = device.facts.iter();
    rows.extend(facts.map(|fact| row(&fact.name, fact.value.clone())));
    let counts = device.counts.iter();
    rows.extend(counts.map(|count| row(&count.name, count_text(count))));
    if let Some(tier) = device.hpke_tier {
        let text = format!("{tier}, where an app names no tier for its HPKE keys");
        rows.push(row("hpke_tier", text));
    }
    rows
}

fn count_text(count: &Count) -> String {
    let mut text = match count.used {
        Some(used) => format!("{used} of {} in use", count.most),
        None => format!("{} at most", count.most),
    };
    if let Some(peak) = count.peak {
        text.push_str(&format!(", {peak} at once so far"));
    }
    text
}

/// SoftHSM, for tests.
#[cfg(test)]
pub(super) fn sample() -> DeviceInfo {
    use mlskeyd_protocol::v1::{Algorithm, DeviceState, Fact, Kem, SignatureScheme, Tier};

    let offer = |algorithm: Algorithm, tier, how: &str| Offer {
        algorithm,
        tier,
        how: how.to_owned(),
    };
    let sealed = "made by the daemon, encrypted by CKM_AES_CBC_PAD";
    let ways = [
        (
            Algorithm::Signature(SignatureScheme::Ed25519),
            "an object of the token; CKM_EDDSA",
        ),
        (
            Algorithm::Signature(SignatureScheme::EcdsaP256Sha256),
            "an object of the token; CKM_ECDSA",
        ),
        (
            Algorithm::Signature(SignatureScheme::EcdsaP384Sha384),
            "an object of the token; CKM_ECDSA",
        ),
        (
            Algorithm::Hpke(Kem::DhKemP256),
            "wrapped by CKM_AES_KEY_WRAP_PAD, enforced; CKM_ECDH1_DERIVE",
        ),
        (
            Algorithm::Hpke(Kem::DhKemP384),
            "wrapped by CKM_AES_KEY_WRAP_PAD, enforced; CKM_ECDH1_DERIVE",
        ),
        (
            Algorithm::Hpke(Kem::DhKemX25519),
            "an object of the token; CKM_ECDH1_DERIVE",
        ),
    ];
    let offers = ways.into_iter().flat_map(|(algorithm, how)| {
        [
            offer(algorithm, Tier::Hardware, how),
            offer(algorithm, Tier::Sealed, sealed),
        ]
    });
    let facts = [
        ("label", "mlskeyd"),
        ("manufacturer", "SoftHSM project"),
        ("serial", "c0ffee5a1b2c3d4e"),
        (
            "generations",
            "an AES key that wraps, with CKA_UNWRAP_TEMPLATE",
        ),
    ];
    let facts = facts.map(|(name, value)| Fact {
        name: name.to_owned(),
        value: value.to_owned(),
    });
    let count = |name: &str, used, peak, most| Count {
        name: name.to_owned(),
        used,
        peak,
        most,
    };
    DeviceInfo {
        name: "hsm".to_owned(),
        kind: "pkcs11".to_owned(),
        state: DeviceState::Ready,
        detail: None,
        facts: facts.into(),
        counts: vec![
            count("sessions", Some(1), Some(3), 4),
            count("objects", None, None, 1000),
        ],
        offers: offers.collect(),
        remarks: vec![(
            Algorithm::Hpke(Kem::DhKemX25519),
            "in hardware 936 at most: keys are not wrapped (WrapKey: MechanismInvalid)".to_owned(),
        )],
        hpke_tier: None,
        default: true,
    }
}

#[cfg(test)]
mod tests {
    use mlskeyd_protocol::v1::{DeviceState, Tier};

    use super::*;

    #[test]
    fn a_device_reads_well_on_a_terminal() {
        let shown = "\
hsm *  pkcs11  ready
  label         mlskeyd
  manufacturer  SoftHSM project
  serial        c0ffee5a1b2c3d4e
  generations   an AES key that wraps, with CKA_UNWRAP_TEMPLATE
  sessions      1 of 4 in use, 3 at once so far
  objects       1000 at most

  ALGORITHM     TIER      HOW KEYS ARE KEPT
  Ed25519       hardware  an object of the token; CKM_EDDSA
  Ed25519       sealed    made by the daemon, encrypted by CKM_AES_CBC_PAD
  ECDSA P-256   hardware  an object of the token; CKM_ECDSA
  ECDSA P-256   sealed    made by the daemon, encrypted by CKM_AES_CBC_PAD
  ECDSA P-384   hardware  an object of the token; CKM_ECDSA
  ECDSA P-384   sealed    made by the daemon, encrypted by CKM_AES_CBC_PAD
  DHKEM P-256   hardware  wrapped by CKM_AES_KEY_WRAP_PAD, enforced;
                          CKM_ECDH1_DERIVE
  DHKEM P-256   sealed    made by the daemon, encrypted by CKM_AES_CBC_PAD
  DHKEM P-384   hardware  wrapped by CKM_AES_KEY_WRAP_PAD, enforced;
                          CKM_ECDH1_DERIVE
  DHKEM P-384   sealed    made by the daemon, encrypted by CKM_AES_CBC_PAD
  DHKEM X25519  hardware  an object of the token; CKM_ECDH1_DERIVE
  DHKEM X25519  sealed    made by the daemon, encrypted by CKM_AES_CBC_PAD

  SUITE   TIER      WHY NO BETTER
  0x0001  hardware  DHKEM X25519: in hardware 936 at most: keys are not wrapped
                    (WrapKey: MechanismInvalid)
  0x0002  hardware
  0x0003  hardware  DHKEM X25519: in hardware 936 at most: keys are not wrapped
                    (WrapKey: MechanismInvalid)
  0x0007  hardware
";
        assert_eq!(text(&[sample()], Some(80)), shown);
        for room in [40, 80, 200] {
            let text = text(&[sample(), sample()], Some(room));
            assert!(
                text.lines().all(|line| line.chars().count() <= room),
                "{text}"
            );
        }
    }

    #[test]
    fn of_a_device_that_was_never_seen_only_that_is_told() {
        let device = DeviceInfo {
            state: DeviceState::Locked,
            detail: Some("the token waits for its PIN".to_owned()),
            facts: Vec::new(),
            offers: Vec::new(),
            counts: Vec::new(),
            hpke_tier: Some(Tier::Sealed),
            default: false,
            ..sample()
        };
        let shown = "\
hsm  pkcs11  locked
  detail     the token waits for its PIN
  hpke_tier  sealed, where an app names no tier for its HPKE keys
";
        assert_eq!(text(&[device], None), shown);
    }
}
