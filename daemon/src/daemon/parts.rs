//! What the daemon is put together from, made as the configuration says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlskeyd_protocol::v1::{DeviceState, Owner};
use rand_core::{OsRng, RngCore};
use secrecy::{ExposeSecretMut, SecretBox};

use super::StartError;
use crate::attest::Roots;
use crate::config::{Config, DeviceConfig, DeviceKind, StoreKeySource};
use crate::devices::pkcs11::{HelperConfig, Pkcs11Device};
use crate::devices::queue::{DeviceThreads, Limits};
use crate::devices::software::SoftwareDevice;
#[cfg(feature = "tpm2")]
use crate::devices::tpm2::Tpm2Device;
#[cfg(feature = "yubikey")]
use crate::devices::yubikey::YubiKeyDevice;
use crate::devices::{Device, DeviceError, DeviceInfo, Start};
use crate::store_key::{KEY_LEN, StoreKey, StoreKeyError};

/// The registry's file in the state directory.
const REGISTRY_FILE: &str = "registry.db";

/// What may be in a state directory that holds no state: the registry's lock,
/// and what a file system puts into its own root.
const NO_STATE: [&str; 2] = ["lock", "lost+found"];

/// The state directory, made if need be, and refused if others may enter it.
pub(super) fn prepare_state_dir(dir: &Path) -> Result<(), StartError> {
    let io = |source| StartError::StateDir {
        path: dir.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io)?;
    let metadata = fs::metadata(dir).map_err(io)?;
    let why = if metadata.uid() != rustix::process::geteuid().as_raw() {
        format!("it belongs to user {}", metadata.uid())
    } else if metadata.mode() & 0o077 != 0 {
        format!("its permissions are {:04o}", metadata.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(StartError::StateDirRefused {
        path: dir.to_owned(),
        why,
    })
}

/// The store key.
pub(super) enum Loaded {
    /// It is there.
    Found(StoreKey),
    /// There was neither a key nor state: it was made.
    Made(StoreKey),
    /// There is state, and its key is gone. This is another key, under which
    /// nothing can be read or changed, and nothing is deleted.
    Lost(StoreKey, StoreKeyError),
}

/// Loads the store key, or makes it at the first start.
pub(super) fn store_key(config: &Config) -> Result<Loaded, StartError> {
    let (found, create) = match &config.store_key {
        StoreKeySource::File { path, create } => {
            (StoreKey::load_file(path), create.then_some(path))
        }
        StoreKeySource::Credential { name } => {
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY");
            (
                StoreKey::load_credential(directory.as_deref().map(Path::new), name),
                None,
            )
        }
    };
    let absent = match found {
        Ok(key) => return Ok(Loaded::Found(key)),
        Err(error @ StoreKeyError::Absent(_)) => error,
        Err(error) => return Err(error.into()),
    };
    if has_state(&config.state_dir)? {
        // Any other key shows the registry's keys as missing. Without a registry
        // it would begin one that no later start could read.
        let registry = config.state_dir.join(REGISTRY_FILE).metadata();
        if registry.is_ok_and(|file| file.len() > 0) {
            return Ok(Loaded::Lost(random_key()?, absent));
        }
        return Err(absent.into());
    }
    let Some(path) = create else {
        return Err(absent.into());
    };
    match StoreKey::create_file(path) {
        Ok(key) => Ok(Loaded::Made(key)),
        // Another daemon made it meanwhile: which of the two may use the state
        // directory is its lock's to say.
        Err(StoreKeyError::Exists(_)) => Ok(Loaded::Found(StoreKey::load_file(path)?)),
        Err(error) => Err(error.into()),
    }
}

fn has_state(dir: &Path) -> Result<bool, StartError> {
    let io = |source| StartError::StateDir {
        path: dir.to_owned(),
        source,
    };
    for entry in fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        // A key that a crash left half made is no state either.
        let unfinished = Path::new(&name).extension().is_some_and(|end| end == "new");
        if !unfinished && !NO_STATE.iter().any(|none| name == *none) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn random_key() -> Result<StoreKey, StoreKeyError> {
    let mut key = SecretBox::new(Box::new([0; KEY_LEN]));
    OsRng
        .try_fill_bytes(key.expose_secret_mut())
        .map_err(|_| StoreKeyError::NoRandomness)?;
    Ok(StoreKey::new(key))
}

/// Longest file of issuers, in bytes.
const MAX_ISSUERS: u64 = 1024 * 1024;

/// The issuers of certificates in credentials, if the configuration names any.
pub(super) fn issuers(config: &Config) -> Result<Option<Roots>, StartError> {
    let Some(path) = &config.policy.certificate_issuers else {
        return Ok(None);
    };
    let failed = |why: String| StartError::Issuers {
        path: path.clone(),
        why,
    };
    let mut pem = Vec::new();
    let file = fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut bounded = file.take(MAX_ISSUERS);
    bounded
        .read_to_end(&mut pem)
        .map_err(|error| failed(error.to_string()))?;
    let roots = Roots::from_pem(&pem).map_err(|error| failed(error.to_string()))?;
    Ok(Some(roots))
}

/// Starts the thread of every device. One that does not open is there
/// nevertheless, says why, and keeps no other from its work.
///
/// Those in `fresh` may begin with nothing.
pub(super) fn devices(
    config: &Config,
    key: &StoreKey,
    fresh: &BTreeSet<String>,
) -> Result<BTreeMap<String, DeviceThreads<Owner>>, StartError> {
    let limits = Limits {
        per_owner: usize::try_from(config.limits.queue_per_owner).unwrap_or(usize::MAX),
        total: usize::try_from(config.limits.queue).unwrap_or(usize::MAX),
    };
    let spawn = |device: &DeviceConfig| {
        let start = if fresh.contains(&device.name) {
            Start::CreateIfAbsent
        } else {
            Start::MustExist
        };
        let opened = open_device(config, device, key, start);
        let opened = opened.unwrap_or_else(|error| {
            tracing::error!(device = device.name, %error, advice = error.advice(), "a device does not open");
            Box::new(Unopened::new(device, &error))
        });
        let thread = DeviceThreads::spawn(opened, limits).map_err(StartError::Thread)?;
        Ok((device.name.clone(), thread))
    };
    config.devices.iter().map(spawn).collect()
}

fn open_device(
    config: &Config,
    device: &DeviceConfig,
    key: &StoreKey,
    start: Start,
) -> Result<Box<dyn Device>, DeviceError> {
    let directory = config.state_dir.join("devices").join(&device.name);
    match &device.kind {
        DeviceKind::Software => {
            prepare_devices_dir(config, start)?;
            Ok(Box::new(SoftwareDevice::open(
                &device.name,
                &directory,
                key,
                start,
            )?))
        }
        DeviceKind::Pkcs11(token) => {
            let helper = HelperConfig {
                program: match &config.pkcs11_helper {
                    Some(path) => path.clone(),
                    None => beside_the_daemon()?,
                },
                module: token.module.clone(),
                environment: token.environment.clone().into_iter().collect(),
            };
            let device = Pkcs11Device::new(&device.name, token, helper, &directory, key, start)?;
            Ok(Box::new(device))
        }
        #[cfg(feature = "tpm2")]
        DeviceKind::Tpm2(tpm) => {
            let device = Tpm2Device::new(&device.name, tpm, &directory, key, start)?;
            Ok(Box::new(device))
        }
        #[cfg(not(feature = "tpm2"))]
        DeviceKind::Tpm2(_) => Err(DeviceError::CannotDo(
            "be used: this mlskeyd was built without the feature `tpm2`",
        )),
        #[cfg(feature = "yubikey")]
        DeviceKind::YubiKey(card) => {
            prepare_devices_dir(config, start)?;
            let device = YubiKeyDevice::new(&device.name, card, &directory, key, start)?;
            Ok(Box::new(device))
        }
        #[cfg(not(feature = "yubikey"))]
        DeviceKind::YubiKey(_) => Err(DeviceError::CannotDo(
            "be used: this mlskeyd was built without the feature `yubikey`",
        )),
    }
}

/// The directory that each device of this kind makes its own in, at its first start.
fn prepare_devices_dir(config: &Config, start: Start) -> Result<(), DeviceError> {
    if start == Start::MustExist {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    let made = builder
        .recursive(true)
        .mode(0o700)
        .create(config.state_dir.join("devices"));
    made.map_err(|source| DeviceError::Io {
        what: "making the directory of the devices",
        source,
    })
}

fn beside_the_daemon() -> Result<PathBuf, DeviceError> {
    let own = std::env::current_exe().map_err(|source| DeviceError::Io {
        what: "finding the program mlskeyd-pkcs11",
        source,
    })?;
    Ok(own.with_file_name("mlskeyd-pkcs11"))
}

/// A device that did not open: it can do nothing, and says why.
struct Unopened(Arc<DeviceInfo>);

impl Unopened {
    fn new(device: &DeviceConfig, error: &DeviceError) -> Self {
        Self(Arc::new(DeviceInfo {
            generations: None,
            name: device.name.clone(),
            kind: match &device.kind {
                DeviceKind::Software => "software",
                DeviceKind::Pkcs11(_) => "pkcs11",
                DeviceKind::Tpm2(_) => "tpm2",
                DeviceKind::YubiKey(_) => "yubikey",
            },
            state: DeviceState::Failed,
            reason: format!("{error}; {}", error.advice()),
            facts: Vec::new(),
            support: Vec::new(),
            unlocked: BTreeSet::new(),
        }))
    }
}

impl Device for Unopened {
    fn info(&self) -> Arc<DeviceInfo> {
        Arc::clone(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(dir: &Path) -> Config {
        let text = format!("state_dir = {:?}", dir.join("state").display().to_string());
        Config::parse(Path::new("test.toml"), &text).unwrap()
    }

    fn prepared() -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        prepare_state_dir(&config.state_dir).unwrap();
        (dir, config)
    }

    #[test]
    fn the_state_directory_is_the_daemons_alone() {
        let (_dir, config) = prepared();
        assert_eq!(
            fs::metadata(&config.state_dir).unwrap().mode() & 0o777,
            0o700
        );
        fs::set_permissions(&config.state_dir, fs::Permissions::from_mode(0o750)).unwrap();
        let error = prepare_state_dir(&config.state_dir)
            .unwrap_err()
            .to_string();
        assert!(error.contains("0750") && error.contains("0700"), "{error}");
    }

    #[test]
    fn a_store_key_is_made_once_and_then_found() {
        let (_dir, config) = prepared();
        fs::write(config.state_dir.join("lock"), "").unwrap();
        fs::write(config.state_dir.join("store.new"), "half").unwrap();
        assert!(matches!(store_key(&config).unwrap(), Loaded::Made(_)));
        assert!(matches!(store_key(&config).unwrap(), Loaded::Found(_)));
    }

    #[test]
    fn a_lost_store_key_is_not_replaced() {
        let (_dir, config) = prepared();
        // A registry that holds nothing is none: another key would begin one.
        fs::write(config.state_dir.join("registry.db"), "").unwrap();
        assert!(store_key(&config).is_err());
        fs::write(config.state_dir.join("registry.db"), "rows").unwrap();
        assert!(matches!(store_key(&config).unwrap(), Loaded::Lost(..)));
        assert!(!config.state_dir.join("store.key").exists());
    }

    #[test]
    fn no_store_key_is_made_that_was_not_asked_for() {
        let (_dir, mut config) = prepared();
        let path = config.state_dir.join("store.key");
        config.store_key = StoreKeySource::File {
            path: path.clone(),
            create: false,
        };
        let error = store_key(&config).err().unwrap();
        assert!(
            matches!(error, StartError::StoreKey(StoreKeyError::Absent(_))),
            "{error}"
        );
        assert!(!path.exists());
    }

    #[test]
    fn a_device_that_does_not_open_says_why() {
        let (_dir, config) = prepared();
        let Loaded::Made(key) = store_key(&config).unwrap() else {
            panic!("no key made")
        };
        let state = |fresh: &[&str]| {
            let fresh = fresh.iter().map(|name| (*name).to_owned()).collect();
            let devices = devices(&config, &key, &fresh).unwrap();
            let info = devices["software"].handle().info();
            devices.into_values().for_each(DeviceThreads::shut_down);
            (info.state, info.reason.clone())
        };
        let (absent, reason) = state(&[]);
        assert_eq!(absent, DeviceState::Failed);
        assert!(reason.contains("missing"), "{reason}");
        assert_eq!(state(&["software"]), (DeviceState::Ready, String::new()));
        assert_eq!(state(&[]).0, DeviceState::Ready);
    }
}
