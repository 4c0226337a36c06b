//! The devices, as the configuration names them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use mlskeyd_protocol::v1::Tier;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::{Mistake, count, name, optional_path, positive_duration};

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Its name: 1 to 64 letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// The tier of HPKE keys for which an app names none; `None`: the best.
    pub hpke_tier: Option<Tier>,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The built-in software store.
    Software,
    /// A token of a PKCS#11 module.
    Pkcs11(Box<Pkcs11Config>),
}

/// A token of a PKCS#11 module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pkcs11Config {
    /// The vendor's shared library.
    pub module: PathBuf,
    /// Which token.
    pub token: TokenChoice,
    /// Where its user PIN comes from.
    pub pin: PinSource,
    /// What the module reads from its environment.
    pub environment: BTreeMap<String, String>,
    /// How long one call of the module may take; then its helper is ended.
    pub call_timeout: Duration,
    /// Most private keys that may be objects of the token.
    pub max_objects: u32,
    /// Most sessions with the token, so many requests at once: 1 to 64.
    pub sessions: u32,
}

/// Which token of a module; never a slot, whose number changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenChoice {
    /// The one with this label.
    Label(String),
    /// The one with this serial number.
    Serial(String),
}

/// Where a PIN comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinSource {
    /// The token needs none.
    None,
    /// A file of mode 0600.
    File(PathBuf),
    /// A systemd credential.
    Credential(String),
}

/// A device, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceTable {
    #[serde(deserialize_with = "name")]
    pub(super) name: String,
    kind: Kind,
    #[serde(default, deserialize_with = "optional_tier")]
    hpke_tier: Option<Tier>,
    #[serde(default, deserialize_with = "optional_path")]
    module: Option<PathBuf>,
    token: Option<String>,
    serial: Option<String>,
    #[serde(default, deserialize_with = "optional_path")]
    pin_file: Option<PathBuf>,
    pin_credential: Option<String>,
    environment: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "optional_timeout")]
    call_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "optional_count")]
    max_objects: Option<u32>,
    #[serde(default, deserialize_with = "optional_count")]
    sessions: Option<u32>,
}

fn optional_count<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    count(from).map(Some)
}

/// A tier by its name, as in `mlskeyctl`.
fn optional_tier<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Tier>, D::Error> {
    let name = String::deserialize(from)?;
    let mut tiers = [Tier::Hardware, Tier::Sealed, Tier::Software].into_iter();
    let named = tiers.find(|tier| tier.to_string() == name);
    let named = named.ok_or_else(|| {
        let message =
            format!("there is no tier {name:?}: a tier is `hardware`, `sealed` or `software`");
        D::Error::custom(message)
    });
    named.map(Some)
}

fn optional_timeout<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    positive_duration(from).map(Some)
}

/// A token slows down with its objects, and has room for some thousand at best.
const MAX_OBJECTS: u32 = 1000;

/// A token is shared; one on a network answers several requests at once.
const SESSIONS: u32 = 4;

/// Each session is a thread here and one in the helper.
const MAX_SESSIONS: u32 = 64;

/// Tokens on a card make a key in some seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Software,
    Pkcs11,
}

impl DeviceTable {
    fn check(self) -> Result<DeviceConfig, &'static str> {
        match (self.kind, self.hpke_tier) {
            (Kind::Software, Some(_)) => {
                return Err(
                    "a device of kind \"software\" keeps keys in tier software alone: leave `hpke_tier` out",
                );
            }
            (Kind::Pkcs11, Some(Tier::Software)) => {
                return Err(
                    "a token keeps no keys in tier software: `hpke_tier` is \"hardware\" or \"sealed\"",
                );
            }
            _ => {}
        }
        let kind = match self.kind {
            Kind::Software => {
                let of_tokens = self.module.is_some()
                    || self.token.is_some()
                    || self.serial.is_some()
                    || self.pin_file.is_some()
                    || self.pin_credential.is_some()
                    || self.environment.is_some()
                    || self.call_timeout.is_some()
                    || self.max_objects.is_some()
                    || self.sessions.is_some();
                if of_tokens {
                    return Err("a device of kind \"software\" has a name and nothing else");
                }
                DeviceKind::Software
            }
            Kind::Pkcs11 => DeviceKind::Pkcs11(Box::new(Pkcs11Config {
                module: self
                    .module
                    .ok_or("a device of kind \"pkcs11\" needs `module`, the vendor's library")?,
                token: match (self.token, self.serial) {
                    (Some(label), None) => TokenChoice::Label(label),
                    (None, Some(serial)) => TokenChoice::Serial(serial),
                    _ => {
                        return Err(
                            "a token is chosen by `token`, its label, or by `serial`: give one of them",
                        );
                    }
                },
                pin: match (self.pin_file, self.pin_credential) {
                    (None, None) => PinSource::None,
                    (Some(file), None) => PinSource::File(file),
                    (None, Some(name)) => PinSource::Credential(name),
                    (Some(_), Some(_)) => {
                        return Err(
                            "the PIN comes from a file or from a credential: leave one of them out",
                        );
                    }
                },
                environment: self.environment.unwrap_or_default(),
                call_timeout: self.call_timeout.unwrap_or(CALL_TIMEOUT),
                max_objects: self.max_objects.unwrap_or(MAX_OBJECTS),
                sessions: match self.sessions.unwrap_or(SESSIONS) {
                    sessions @ 1..=MAX_SESSIONS => sessions,
                    _ => return Err("`sessions` is a number from 1 to 64"),
                },
            })),
        };
        Ok(DeviceConfig {
            name: self.name,
            kind,
            hpke_tier: self.hpke_tier,
        })
    }
}

/// The devices, each with a name of its own; the software device if there is
/// none.
pub(super) fn check(listed: Vec<Spanned<DeviceTable>>) -> Result<Vec<DeviceConfig>, Mistake> {
    let mut devices: Vec<DeviceConfig> = Vec::with_capacity(listed.len().max(1));
    for table in listed {
        let span = table.span();
        let device = table.into_inner().check();
        let device = device.map_err(|message| Mistake::new(span.clone(), message))?;
        if devices.iter().any(|earlier| earlier.name == device.name) {
            let message = format!(
                "there are two devices {:?}: give each a name of its own",
                device.name
            );
            return Err(Mistake::new(span, message));
        }
        if let Some(same) = devices
            .iter()
            .find(|earlier| is_same_token(earlier, &device))
        {
            // They would count each other's keys, and try a wrong PIN twice.
            let message = format!(
                "devices {:?} and {:?} are the same token: leave one of them out",
                same.name, device.name
            );
            return Err(Mistake::new(span, message));
        }
        devices.push(device);
    }
    if devices.is_empty() {
        devices.push(DeviceConfig {
            name: "software".into(),
            kind: DeviceKind::Software,
            hpke_tier: None,
        });
    }
    Ok(devices)
}

fn is_same_token(one: &DeviceConfig, other: &DeviceConfig) -> bool {
    let (DeviceKind::Pkcs11(one), DeviceKind::Pkcs11(other)) = (&one.kind, &other.kind) else {
        return false;
    };
    (&one.module, &one.token, &one.environment) == (&other.module, &other.token, &other.environment)
}
