//! What every device keeps, kept by a token.

use std::path::PathBuf;

use mlskeyd::config::Pkcs11Config;
use mlskeyd::devices::conformance;
use mlskeyd::devices::pkcs11::{HelperConfig, Pkcs11Device};
use mlskeyd::devices::{
    Algorithm, Device, DeviceError, GenerationId, Kem, KeyId, NewKey, PeerPublic, StoredKey, Tier,
};
use mlskeyd::store_key::StoreKey;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{SoftHsm, Stage};
use secrecy::SecretBox;

/// A token, and what the device needs for it.
struct Bench {
    softhsm: SoftHsm,
    token: Pkcs11Config,
    helper: HelperConfig,
    directory: PathBuf,
    _stage: Stage,
}

impl Bench {
    fn new() -> Self {
        let stage = Stage::new(programs!());
        let softhsm = SoftHsm::new(&stage);
        softhsm.add_token("conformance");
        Self {
            token: softhsm.device_config("conformance"),
            helper: HelperConfig {
                program: stage.programs().pkcs11.clone(),
                module: SoftHsm::module().to_owned(),
                environment: softhsm.environment(),
            },
            directory: stage.path("hsm"),
            softhsm,
            _stage: stage,
        }
    }

    /// The device, as after a restart of the daemon: with a helper of its own.
    fn open(&self) -> Box<dyn Device> {
        let store_key = StoreKey::new(SecretBox::new(Box::new([7; 32])));
        let helper = self.helper.clone();
        let device = Pkcs11Device::new("hsm", &self.token, helper, &self.directory, &store_key);
        let mut device = device.unwrap();
        device.probe();
        Box::new(device)
    }
}

#[test]
fn softhsm_conforms() {
    let bench = Bench::new();
    conformance::run(&|| bench.open());
}

fn agree(device: &mut dyn Device, key: &StoredKey) -> Result<(), DeviceError> {
    let peer = PeerPublic::parse(Kem::DhKemP256, &key.public).unwrap();
    device.agreement().unwrap().agree(key, &peer).map(|_| ())
}

#[test]
fn nothing_is_destroyed_on_a_token_that_is_not_there() {
    let bench = Bench::new();
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

    bench.softhsm.unplug();
    let refused = agree(&mut *device, &key).unwrap_err();
    assert!(
        !matches!(refused, DeviceError::GenerationGone(_)),
        "{refused}"
    );
    let destroyer = device.destroyer().unwrap();
    destroyer.destroy_generation(generation).unwrap_err();
    bench.softhsm.plug_in();
    device.probe();
    agree(&mut *device, &key).unwrap();

    let destroyer = device.destroyer().unwrap();
    destroyer.destroy_generation(generation).unwrap();
    let gone = agree(&mut *device, &key).unwrap_err();
    assert!(matches!(gone, DeviceError::GenerationGone(_)), "{gone}");
    assert_eq!(bench.softhsm.objects(), 0);
}
