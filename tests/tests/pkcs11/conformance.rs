//! What every device keeps, kept by a token.

use mlskeyd::devices::conformance;
use mlskeyd::devices::{
    Algorithm, Device, DeviceError, GenerationId, Kem, KeyId, NewKey, PeerPublic, StoredKey, Tier,
};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{SoftHsm, Stage};

use super::bench::Bench;

fn scene() -> (Bench, SoftHsm, Stage) {
    let stage = Stage::new(programs!());
    let softhsm = SoftHsm::new(&stage);
    softhsm.add_token("conformance");
    let bench = Bench::new(&stage, softhsm.library(), "conformance");
    (bench, softhsm, stage)
}

#[test]
fn softhsm_conforms() {
    let (bench, _softhsm, _stage) = scene();
    let info = bench.open().info();
    for support in &info.support {
        let both = [Tier::Hardware, Tier::Sealed];
        assert_eq!(support.tiers(), both, "{}", support.algorithm);
    }
    conformance::run(&|| bench.open());
}

fn agree(device: &mut dyn Device, key: &StoredKey) -> Result<(), DeviceError> {
    let peer = PeerPublic::parse(Kem::DhKemP256, &key.public).unwrap();
    device.agreement().unwrap().agree(key, &peer).map(|_| ())
}

#[test]
fn nothing_is_destroyed_on_a_token_that_is_not_there() {
    let (bench, softhsm, _stage) = scene();
    let mut device = bench.open();
    let generation = GenerationId::from_bytes([1; 16]);
    let generator = device.generator().unwrap();
    generator.create_generation(generation).unwrap();
    let request = NewKey {
        id: KeyId::from_bytes([2; 16]),
        algorithm: Algorithm::Hpke(Kem::DhKemP256),
        tier: Tier::Hardware,
        generation,
    };
    let key = generator.generate(request).unwrap();

    softhsm.unplug();
    let refused = agree(&mut *device, &key).unwrap_err();
    assert!(
        !matches!(refused, DeviceError::GenerationGone(_)),
        "{refused}"
    );
    let destroyer = device.destroyer().unwrap();
    destroyer.destroy_generation(generation).unwrap_err();
    softhsm.plug_in();
    device.probe();
    agree(&mut *device, &key).unwrap();

    let destroyer = device.destroyer().unwrap();
    destroyer.destroy_generation(generation).unwrap();
    let gone = agree(&mut *device, &key).unwrap_err();
    assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
    assert_eq!(softhsm.objects(), 0);
}
