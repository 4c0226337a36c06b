//! Keys of ours that somebody else destroys on the token.

use mlskeyd::devices::{
    Algorithm, Device, DeviceError, DeviceState, GenerationId, Kem, KeyId, NewKey, PeerPublic,
    StoredKey, Tier,
};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{SoftHsm, Stage};

use super::bench::Bench;
use super::people::tool;
use super::scene::Scene;

/// Destroys all AES keys: what generations begin with, and what seals.
fn destroy_aes_keys(softhsm: &SoftHsm) -> usize {
    let listed = tool(softhsm, &["--list-objects", "--type", "secrkey"]);
    let ids = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ID:"));
    let ids: Vec<_> = ids.map(str::trim).collect();
    for id in &ids {
        tool(
            softhsm,
            &["--delete-object", "--type", "secrkey", "--id", id],
        );
    }
    ids.len()
}

#[test]
fn new_keys_get_another_generation_when_theirs_was_destroyed_by_others() {
    let mut scene = Scene::new(&["mlskeyd"], "");
    let apps: Vec<_> = (0..6)
        .map(|n| scene.app(&format!("app {n}"), "hsm"))
        .collect();
    let keys = |scene: &Scene| {
        let listed = scene.daemon.ctl(&["keys"]).unwrap();
        listed.as_array().unwrap().clone()
    };
    // While the daemon knows the objects' handles, and after it has forgotten them.
    for lost in 1..=2 {
        for app in &apps {
            app.key_package().unwrap();
        }
        assert_eq!(scene.notes("GenerationLost").len(), lost - 1);
        let before = keys(&scene).len();
        assert!(destroy_aes_keys(&scene.softhsm) > 0);
        if lost == 2 {
            scene.daemon.stop();
            scene.daemon.restart(&scene.options);
        }
        // Each of them meets it, and one gives it up.
        std::thread::scope(|scope| {
            for app in &apps {
                scope.spawn(|| app.key_package().unwrap());
            }
        });
        let notes = scene.notes("GenerationLost");
        assert_eq!(notes.len(), lost, "{notes:?}");
        assert!(notes[lost - 1].contains("was not destroyed by this daemon"));
        assert!(scene.daemon.log().contains("is not on its device any more"));
        // Nothing is taken for destroyed.
        assert_eq!(keys(&scene).len(), before + 2 * apps.len());
        let swept = scene.daemon.ctl(&["keys", "sweep"]).unwrap();
        assert_eq!(
            (&swept["destroyed"], &swept["stuck"]),
            (&0.into(), &0.into())
        );
        assert_eq!(scene.state().0, "ready");
    }
}

const GENERATION: GenerationId = GenerationId::from_bytes([1; 16]);

fn generate(
    device: &mut dyn Device,
    algorithm: Algorithm,
    tier: Tier,
) -> Result<StoredKey, DeviceError> {
    let request = NewKey {
        id: KeyId::from_bytes([2; 16]),
        algorithm,
        tier,
        generation: GENERATION,
    };
    device.generator().unwrap().generate(request)
}

/// The token is well, and says that it is the generation that is not there: also
/// of objects whose handles are remembered.
#[test]
fn what_others_destroyed_is_gone_and_the_token_is_not() {
    for (kem, tier) in [
        (Kem::DhKemP256, Tier::Hardware),
        (Kem::DhKemX25519, Tier::Sealed),
    ] {
        let algorithm = Algorithm::Hpke(kem);
        let stage = Stage::new(programs!());
        let softhsm = SoftHsm::new(&stage);
        softhsm.add_token("mlskeyd");
        let bench = Bench::new(&stage, softhsm.library(), "mlskeyd");
        let mut device = bench.open();
        let generator = device.generator().unwrap();
        generator.create_generation(GENERATION).unwrap();
        let key = generate(&mut *device, algorithm, tier).unwrap();
        assert_eq!(key.tier, tier);
        destroy_aes_keys(&softhsm);
        let is_gone = |error: DeviceError| {
            assert!(matches!(error, DeviceError::GenerationGone(_)), "{error}");
        };
        is_gone(generate(&mut *device, algorithm, tier).unwrap_err());
        let peer = PeerPublic::parse(kem, &key.public).unwrap();
        is_gone(device.agreement().unwrap().agree(&key, &peer).unwrap_err());
        assert_eq!(device.info().state, DeviceState::Ready);
    }
}
