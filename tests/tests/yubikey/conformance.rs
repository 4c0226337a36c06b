//! What every device keeps, kept by YubiKeys of both kinds.

use mlskeyd::devices::{Algorithm, Device as _, Kem, SignatureScheme, Start, Tier, conformance};

use super::bench::{Bench, NEW, OLD, inside, open};

/// The suite, on a card whose slots the daemon fills.
fn conforms(name: &str, version: [u8; 3]) {
    let settings = |bench: &Bench| bench.with_pin("management_key = \"on-card\"");
    if let Some(stage) = inside() {
        let settings = std::fs::read_to_string(stage.join("settings")).unwrap();
        let info = open(&stage, &settings, Start::CreateIfAbsent).info();
        let hardware = |algorithm| info.tiers(algorithm).contains(&Tier::Hardware);
        let p256 = Algorithm::Signature(SignatureScheme::EcdsaP256Sha256);
        let ed25519 = Algorithm::Signature(SignatureScheme::Ed25519);
        let x25519 = Algorithm::Hpke(Kem::DhKemX25519);
        assert!(hardware(p256));
        assert_eq!(hardware(ed25519), version == NEW);
        assert_eq!(hardware(x25519), version == NEW);
        assert!(info.tiers(x25519).contains(&Tier::Sealed));
        conformance::run(&|| Box::new(open(&stage, &settings, Start::MustExist)));
        return;
    }
    let mut bench = Bench::new(version, &[]);
    std::fs::write(bench.stage.path("settings"), settings(&bench)).unwrap();
    let before = bench.cards.snapshot(bench.card);
    bench.play_inside(name);
    // All that is left are fillers, where a card deletes nothing.
    let after = bench.cards.snapshot(bench.card);
    let is_left = |entry: &&(String, String)| after.contains(entry);
    assert_eq!(before.iter().filter(is_left).count(), before.len());
    if version == NEW {
        assert_eq!(after, before);
    }
}

#[test]
fn firmware_5_4_conforms() {
    conforms("conformance::firmware_5_4_conforms", OLD);
}

#[test]
fn firmware_5_7_conforms() {
    conforms("conformance::firmware_5_7_conforms", NEW);
}
