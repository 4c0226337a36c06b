//! What policies know of a key.

use std::time::SystemTime;

use mlskeyd_policies::ResourceFacts;
use mlskeyd_protocol::v1::{GenerateHpke, Kem};

use super::*;
use crate::custody::facts::resource;
use crate::custody::subject::Subject;
use crate::store::KeyRecord;

const HPKE: Algorithm = Algorithm::Hpke(Kem::DhKemX25519);

/// Facts about a key that was changed.
fn about(key: &KeyRecord, kind: &str, change: impl FnOnce(&mut KeyRecord)) -> ResourceFacts {
    let mut key = key.clone();
    change(&mut key);
    let mut subject = Subject::new(Action::GenerateHpke);
    subject.about_key(Arc::new(key));
    resource(&subject, kind)
}

#[tokio::test]
async fn what_policies_know_of_a_key_is_what_the_registry_knows() {
    let bench = Bench::new();
    let request = GenerateHpke {
        kem: Kem::DhKemX25519,
        placement: Placement {
            device: Some("software".to_owned()),
            tier: None,
        },
    };
    let made = bench.serve(request).await.unwrap();
    let key = bench.custody.registry.key(made.key).await.unwrap().unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap().as_secs();
    let facts = about(&key, "a kind", |key| {
        key.created = now - 3 * 24 * 60 * 60 - 60;
        key.attested = true;
        key.tier = Tier::Sealed;
        key.device = "a device".to_owned();
        key.identity = Some("an identity".to_owned());
        key.algorithm = ED25519;
    });
    let expected = ResourceFacts {
        key: made.key.to_string(),
        purpose: "signature".to_owned(),
        algorithm: ED25519.to_string(),
        tier: "sealed".to_owned(),
        wrapped: true,
        age_days: 3,
        attested: true,
        suites: BTreeSet::from([1, 3]),
        device: "a device".to_owned(),
        device_kind: "a kind".to_owned(),
        identity: Some("an identity".to_owned()),
    };
    assert_eq!(facts, expected);
    let facts = about(&key, "software", |key| key.created = now);
    assert_eq!((facts.age_days, facts.attested), (0, false));
    assert_eq!((&*facts.purpose, &*facts.tier), ("hpke", "software"));

    // A blob that its device wrapped, or an object on it?
    let wrapped = [
        ("software", Tier::Software, HPKE, false),
        ("pkcs11", Tier::Sealed, HPKE, true),
        ("pkcs11", Tier::Hardware, HPKE, true),
        ("pkcs11", Tier::Hardware, ED25519, false),
        ("tpm2", Tier::Hardware, ED25519, true),
        ("tpm2", Tier::Sealed, ED25519, true),
        ("yubikey", Tier::Hardware, HPKE, false),
        ("yubikey", Tier::Sealed, HPKE, true),
    ];
    for (kind, tier, algorithm, expected) in wrapped {
        let facts = about(&key, kind, |key| {
            key.tier = tier;
            key.algorithm = algorithm;
            key.attested = !expected;
        });
        let told = (facts.wrapped, facts.attested);
        assert_eq!(told, (expected, !expected), "{kind} {tier} {algorithm}");
    }
}
