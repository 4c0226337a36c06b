//! Tokens that do less than SoftHSM.

use mlskeyd::devices::{
    Algorithm, Device, DeviceError, DeviceState, GenerationId, Kem, KeyId, NewKey, SignatureScheme,
    Tier, conformance,
};
use mlskeyd_faulty_module::Control;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{FaultyHsm, Stage};

use super::bench::Bench;

const ED25519: Algorithm = Algorithm::Signature(SignatureScheme::Ed25519);
const P256_SIGNS: Algorithm = Algorithm::Signature(SignatureScheme::EcdsaP256Sha256);
const P256: Algorithm = Algorithm::Hpke(Kem::DhKemP256);
const X25519: Algorithm = Algorithm::Hpke(Kem::DhKemX25519);

const BOTH: &[Tier] = &[Tier::Hardware, Tier::Sealed];
const HARDWARE: &[Tier] = &[Tier::Hardware];
const SEALED: &[Tier] = &[Tier::Sealed];

/// A token that is less than SoftHSM; the suite of all devices has passed on it.
struct Scene {
    hsm: FaultyHsm,
    bench: Bench,
    _stage: Stage,
}

impl Scene {
    fn new(less: impl FnOnce(&Control)) -> Self {
        let stage = Stage::new(programs!());
        let hsm = FaultyHsm::new(&stage);
        hsm.softhsm().add_token("mlskeyd");
        less(hsm.control());
        let bench = Bench::new(&stage, hsm.library(), "mlskeyd");
        Self {
            hsm,
            bench,
            _stage: stage,
        }
    }

    /// In which tiers it keeps keys, and why in no others.
    fn tells(&self, algorithm: Algorithm) -> (Vec<Tier>, String) {
        let info = self.bench.open().info();
        assert_eq!(info.state, DeviceState::Ready, "{}", info.reason);
        let mut support = info.support.iter();
        let found = support.find(|found| found.algorithm == algorithm);
        let found = found.unwrap();
        (found.tiers(), found.why_no_other.clone())
    }

    fn conforms(&self) {
        conformance::run(&|| self.bench.open());
        assert_eq!(self.hsm.control().finds_unfinished(), 0);
    }
}

fn generate(
    device: &mut dyn Device,
    n: u8,
    algorithm: Algorithm,
    tier: Tier,
) -> Result<(), DeviceError> {
    let request = NewKey {
        id: KeyId::from_bytes([n; 16]),
        algorithm,
        tier,
        generation: GenerationId::from_bytes([1; 16]),
    };
    device.generator().unwrap().generate(request).map(|_| ())
}

#[test]
fn a_curve_that_a_token_does_not_know_is_sealed() {
    let scene = Scene::new(|control| control.set_without_curve25519(true));
    for algorithm in [ED25519, X25519] {
        let (tiers, why) = scene.tells(algorithm);
        assert_eq!(tiers, SEALED, "{algorithm}");
        assert!(why.contains("not hardware"), "{why}");
    }
    for algorithm in [P256_SIGNS, P256] {
        assert_eq!(scene.tells(algorithm).0, BOTH, "{algorithm}");
    }
    scene.conforms();
}

#[test]
fn sealed_keys_take_no_room_and_die_with_their_generation() {
    let scene = Scene::new(|control| control.set_without_curve25519(true));
    let mut device = scene.bench.open();
    let generation = GenerationId::from_bytes([1; 16]);
    device
        .generator()
        .unwrap()
        .create_generation(generation)
        .unwrap();
    assert_eq!(scene.hsm.softhsm().objects(), 1);
    for n in 0..50 {
        generate(&mut *device, n, X25519, Tier::Sealed).unwrap();
        assert_eq!(
            scene.hsm.softhsm().objects(),
            2,
            "what wraps and what seals"
        );
    }
    device
        .destroyer()
        .unwrap()
        .destroy_generation(generation)
        .unwrap();
    assert_eq!(scene.hsm.softhsm().objects(), 0);
    let gone = generate(&mut *device, 99, X25519, Tier::Sealed).unwrap_err();
    assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
}

/// Without CKA_UNWRAP_TEMPLATE whoever has the PIN could unwrap a key readable.
#[test]
fn what_a_token_would_give_away_is_not_hardware() {
    let mut scene = Scene::new(|control| control.set_without_unwrap_template(true));
    let (tiers, why) = scene.tells(P256);
    assert_eq!(tiers, BOTH);
    assert!(why.contains("wrapped-unenforced"), "{why}");
    scene.conforms();

    // Only what never leaves the token is: an object each.
    scene.bench.token.max_objects = 3;
    let mut device = scene.bench.open();
    let generation = GenerationId::from_bytes([1; 16]);
    device
        .generator()
        .unwrap()
        .create_generation(generation)
        .unwrap();
    let before = scene.hsm.softhsm().objects();
    for n in 0..5 {
        generate(&mut *device, n, P256, Tier::Sealed).unwrap();
    }
    assert_eq!(scene.hsm.softhsm().objects(), before);
    let in_token = (10..20).map_while(|n| generate(&mut *device, n, P256, Tier::Hardware).ok());
    assert!(in_token.count() <= 3);
    generate(&mut *device, 9, P256, Tier::Hardware).unwrap_err();
}

#[test]
fn a_token_without_aes_keeps_objects_alone() {
    let scene = Scene::new(|control| control.set_without_aes(true));
    for algorithm in [ED25519, P256_SIGNS, P256, X25519] {
        let (tiers, why) = scene.tells(algorithm);
        assert_eq!(tiers, HARDWARE, "{algorithm}");
        assert!(why.contains("not sealed"), "{why}");
    }
    scene.conforms();

    let mut device = scene.bench.open();
    let generation = GenerationId::from_bytes([1; 16]);
    let before = scene.hsm.softhsm().objects();
    device
        .generator()
        .unwrap()
        .create_generation(generation)
        .unwrap();
    generate(&mut *device, 1, P256, Tier::Hardware).unwrap();
    assert_eq!(scene.hsm.softhsm().objects(), before + 2);
    device
        .destroyer()
        .unwrap()
        .destroy_generation(generation)
        .unwrap();
    assert_eq!(scene.hsm.softhsm().objects(), before);
}

#[test]
fn one_session_is_enough() {
    let scene = Scene::new(|control| control.set_max_sessions(1));
    scene.conforms();
    assert_eq!(scene.hsm.control().sessions_peak(), 1);
}
