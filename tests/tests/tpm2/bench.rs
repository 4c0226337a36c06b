//! A TPM as a device, without a daemon.

use std::path::{Path, PathBuf};

use mlskeyd::config::Tpm2Config;
use mlskeyd::devices::tpm2::Tpm2Device;
use mlskeyd::devices::{
    Algorithm, Device, DeviceError, DeviceState, GenerationId, Kem, KeyId, NewKey, PeerPublic,
    SignatureScheme, Start, StoredKey, Tier,
};
use mlskeyd::store_key::StoreKey;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Stage, Swtpm};
use secrecy::SecretBox;

/// What a TPM keeps, and how.
pub const KINDS: [(Algorithm, Tier); 6] = [
    (
        Algorithm::Signature(SignatureScheme::EcdsaP256Sha256),
        Tier::Hardware,
    ),
    (Algorithm::Hpke(Kem::DhKemP256), Tier::Hardware),
    (Algorithm::Signature(SignatureScheme::Ed25519), Tier::Sealed),
    (Algorithm::Hpke(Kem::DhKemX25519), Tier::Sealed),
    (
        Algorithm::Signature(SignatureScheme::EcdsaP384Sha384),
        Tier::Hardware,
    ),
    (Algorithm::Hpke(Kem::DhKemP384), Tier::Hardware),
];

/// A TPM, and what the device needs for it.
pub struct Bench {
    pub tpm: Swtpm,
    pub config: Tpm2Config,
    pub directory: PathBuf,
    pub stage: Stage,
}

impl Bench {
    pub fn new() -> Self {
        let stage = Stage::new(programs!());
        let tpm = Swtpm::new(&stage);
        Self {
            config: tpm.config(),
            tpm,
            directory: stage.path("devices/tpm"),
            stage,
        }
    }

    /// The device, as after a restart of the daemon, and looked at for the first
    /// time.
    pub fn open(&self, start: Start) -> Tpm2Device {
        open(&self.config, &self.directory, start)
    }

    /// The same, with the keys of a registry.
    pub fn reopen(&self) -> Tpm2Device {
        self.open(Start::MustExist)
    }

    /// The device for the first time.
    pub fn first(&self) -> Tpm2Device {
        let device = self.open(Start::CreateIfAbsent);
        assert_eq!(
            device.info().state,
            DeviceState::Ready,
            "{}",
            device.info().reason
        );
        device
    }
}

pub fn open(config: &Tpm2Config, directory: &Path, start: Start) -> Tpm2Device {
    let store_key = StoreKey::new(SecretBox::new(Box::new([7; 32])));
    let device = Tpm2Device::new("tpm", config, directory, &store_key, start);
    let mut device = device.unwrap();
    device.probe();
    device
}

/// The state, and why.
pub fn state(device: &Tpm2Device) -> (DeviceState, String) {
    let info = device.info();
    (info.state, info.reason.clone())
}

pub fn generation(number: u8) -> GenerationId {
    GenerationId::from_bytes([number; 16])
}

/// A key of this number in the generation of this number.
pub fn make(
    device: &mut Tpm2Device,
    number: u8,
    (algorithm, tier): (Algorithm, Tier),
) -> Result<StoredKey, DeviceError> {
    let generator = device.generator().unwrap();
    match generator.create_generation(generation(number)) {
        Err(DeviceError::GenerationExists(_)) => {}
        made => made?,
    }
    generator.generate(NewKey {
        id: KeyId::from_bytes([number; 16]),
        algorithm,
        tier,
        generation: generation(number),
    })
}

pub fn destroy(device: &mut Tpm2Device, number: u8) -> Result<(), DeviceError> {
    let destroyer = device.destroyer().unwrap();
    destroyer.destroy_generation(generation(number))
}

/// Does what the key is for, and checks it as far as anybody can.
pub fn use_key(device: &mut Tpm2Device, key: &StoredKey) -> Result<(), DeviceError> {
    match key.algorithm {
        Algorithm::Signature(scheme) => {
            let signature = device.signer().unwrap().sign(key, b"content")?;
            verify(scheme, key, &signature);
        }
        Algorithm::Hpke(kem) => {
            let peer = PeerPublic::parse(kem, &key.public).unwrap();
            device.agreement().unwrap().agree(key, &peer)?;
        }
    }
    Ok(())
}

fn verify(scheme: SignatureScheme, key: &StoredKey, signature: &[u8]) {
    assert!(mlskeyd::mls::verify(
        scheme,
        &key.public,
        b"content",
        signature
    ));
}

/// The one file of generations in the directory of a device.
pub fn generations_file(directory: &Path) -> PathBuf {
    let entries = std::fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut files: Vec<_> = paths
        .filter(|path| name(path).starts_with("generations-"))
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

/// How many generations are in that file.
pub fn generations(directory: &Path) -> usize {
    // A version, a nonce and a tag; for each its name and its secret.
    const SEALING: usize = 1 + 24 + 16;
    const ENTRY: usize = 16 + 32;
    let length = generations_file(directory).metadata().unwrap().len();
    let entries = usize::try_from(length).unwrap() - SEALING;
    assert_eq!(entries % ENTRY, 0);
    entries / ENTRY
}

/// The attributes of a storage key that the device uses.
pub const STORAGE_KEY: &str =
    "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";

/// Leaves a storage key where systems put it.
pub fn persist(bench: &Bench, more: &[&str]) {
    let create = ["createprimary", "-C", "o", "-G", "rsa2048", "-c", "srk.ctx"];
    bench.tpm.tool(&[&create, more].concat());
    bench
        .tpm
        .tool(&["evictcontrol", "-C", "o", "-c", "srk.ctx", "0x81000001"]);
    bench.tpm.tool(&["flushcontext", "-t"]);
}
