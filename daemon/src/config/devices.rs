//! The devices, as the configuration names them.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use mlskeyd_protocol::v1::Tier;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::{Mistake, Pcrs, Slot, Tcti, count, name, optional_path, positive_duration};

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
    /// A TPM 2.0.
    Tpm2(Tpm2Config),
    /// A YubiKey.
    YubiKey(YubiKeyConfig),
}

/// A YubiKey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YubiKeyConfig {
    /// Its serial number; `None`: the first one that is met is the device's own.
    pub serial: Option<u32>,
    /// Where its PIN comes from; none: a person gives it.
    pub pin: SecretSource,
    /// Where the key agreement key is that sealed keys are sealed under.
    pub agreement_slot: Slot,
    /// Where its consent key is, if it has one.
    pub consent_slot: Option<Slot>,
    /// What the daemon may make in it; `None`: nothing.
    pub managed: Option<ManagedConfig>,
}

/// What the daemon may make in a YubiKey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedConfig {
    /// Its management key.
    pub key: ManagementKeyConfig,
    /// The slots that keys are made in, each when it is empty.
    pub slots: Vec<Slot>,
}

/// Where a YubiKey's management key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManagementKeyConfig {
    /// The YubiKey keeps it under its PIN.
    OnTheCard,
    /// The daemon has it: in hexadecimal.
    Kept(SecretSource),
}

/// A TPM 2.0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tpm2Config {
    /// How it is reached.
    pub tcti: Tcti,
    /// Where in its permanent memory the device keeps 40 bytes; `None`: at a place
    /// that follows from the store key and the device's name.
    pub nv_index: Option<u32>,
    /// What new keys are bound to beside the TPM; `None`: to nothing.
    pub measured: Option<MeasuredConfig>,
}

/// The measurements of the machine that new keys are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredConfig {
    /// The registers that must be as they were when a key was made.
    pub pcrs: Pcrs,
    /// The public key, in PEM, of whoever may approve other measurements.
    pub recovery_key: PathBuf,
}

/// What the TCG leaves to the owner (Registry of Reserved TPM 2.0 Handles, 2.2.3).
pub const NV_INDICES_OF_OWNER: RangeInclusive<u32> = 0x0180_0000..=0x01bf_ffff;

/// A token of a PKCS#11 module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pkcs11Config {
    /// The vendor's shared library.
    pub module: PathBuf,
    /// Which token.
    pub token: TokenChoice,
    /// Where its user PIN comes from.
    pub pin: SecretSource,
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

/// Where a PIN comes from, or another secret of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// There is none: the device needs none, or a person gives it.
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
    tcti: Option<String>,
    nv_index: Option<u32>,
    pcrs: Option<Vec<u8>>,
    #[serde(default, deserialize_with = "optional_path")]
    recovery_key: Option<PathBuf>,
    agreement_slot: Option<String>,
    consent_slot: Option<String>,
    management_key: Option<String>,
    #[serde(default, deserialize_with = "optional_path")]
    management_key_file: Option<PathBuf>,
    management_key_credential: Option<String>,
    slots: Option<Vec<String>>,
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
    Tpm2,
    #[serde(rename = "yubikey")]
    YubiKey,
}

impl DeviceTable {
    /// Has it a setting of tokens and YubiKeys?
    const fn is_of_token_or_card(&self) -> bool {
        self.serial.is_some() || self.pin_file.is_some() || self.pin_credential.is_some()
    }

    /// Has it a setting of tokens?
    const fn is_of_token(&self) -> bool {
        self.module.is_some()
            || self.token.is_some()
            || self.environment.is_some()
            || self.call_timeout.is_some()
            || self.max_objects.is_some()
            || self.sessions.is_some()
    }

    /// Has it a setting of TPMs?
    const fn is_of_tpm(&self) -> bool {
        self.tcti.is_some()
            || self.nv_index.is_some()
            || self.pcrs.is_some()
            || self.recovery_key.is_some()
    }

    /// Has it a setting of YubiKeys?
    const fn is_of_card(&self) -> bool {
        self.agreement_slot.is_some()
            || self.consent_slot.is_some()
            || self.management_key.is_some()
            || self.management_key_file.is_some()
            || self.management_key_credential.is_some()
            || self.slots.is_some()
    }

    fn check(self) -> Result<DeviceConfig, &'static str> {
        match (self.kind, self.hpke_tier) {
            (Kind::Software, Some(_)) => {
                return Err(
                    "a device of kind \"software\" keeps keys in tier software alone: leave `hpke_tier` out",
                );
            }
            (Kind::Tpm2, Some(_)) => {
                return Err(
                    "a TPM keeps the keys of each curve in one tier: leave `hpke_tier` out",
                );
            }
            (Kind::Pkcs11, Some(Tier::Software)) => {
                return Err(
                    "a token keeps no keys in tier software: `hpke_tier` is \"hardware\" or \"sealed\"",
                );
            }
            (Kind::YubiKey, Some(Tier::Software)) => {
                return Err(
                    "a YubiKey keeps no keys in tier software: `hpke_tier` is \"hardware\" or \"sealed\"",
                );
            }
            _ => {}
        }
        let kind = match self.kind {
            Kind::Software
                if self.is_of_token_or_card()
                    || self.is_of_token()
                    || self.is_of_card()
                    || self.is_of_tpm() =>
            {
                return Err("a device of kind \"software\" has a name and nothing else");
            }
            Kind::Software => DeviceKind::Software,
            Kind::Tpm2 if self.is_of_token_or_card() || self.is_of_token() || self.is_of_card() => {
                return Err(
                    "a device of kind \"tpm2\" has `tcti`, `nv_index`, `pcrs` and `recovery_key`, nothing else",
                );
            }
            Kind::Tpm2 => DeviceKind::Tpm2(Tpm2Config {
                tcti: self
                    .tcti
                    .as_deref()
                    .map_or(Ok(Tcti::default()), Tcti::parse)?,
                nv_index: match self.nv_index {
                    Some(index) if !NV_INDICES_OF_OWNER.contains(&index) => {
                        return Err("`nv_index` is a number from 0x01800000 to 0x01bfffff");
                    }
                    index => index,
                },
                measured: measured(self.pcrs, self.recovery_key)?,
            }),
            Kind::YubiKey if self.is_of_token() || self.is_of_tpm() => {
                return Err(
                    "a device of kind \"yubikey\" has `serial`, `pin_file` or `pin_credential`, `agreement_slot`, `consent_slot`, `hpke_tier`, a management key and `slots`, nothing else",
                );
            }
            Kind::YubiKey => {
                let agreement_slot = match self.agreement_slot {
                    Some(text) => slot(&text)?,
                    None => Slot::KEY_MANAGEMENT,
                };
                let consent_slot = self.consent_slot.as_deref().map(slot).transpose()?;
                if consent_slot == Some(agreement_slot) {
                    return Err("`consent_slot` is another slot than `agreement_slot`");
                }
                DeviceKind::YubiKey(YubiKeyConfig {
                serial: match self.serial {
                    Some(text) => Some(text.parse().map_err(
                        |_| "a YubiKey's `serial` is a number, as it is printed on it, in quotation marks",
                    )?),
                    None => None,
                },
                pin: pin_source(self.pin_file, self.pin_credential)?,
                agreement_slot,
                consent_slot,
                managed: managed(
                    [Some(agreement_slot), consent_slot],
                    self.management_key.as_deref(),
                    self.management_key_file,
                    self.management_key_credential,
                    self.slots,
                )?,
            })
            }
            Kind::Pkcs11 if self.is_of_tpm() || self.is_of_card() => {
                return Err(
                    "a device of kind \"pkcs11\" has no setting of TPMs (`tcti`, `nv_index`, `pcrs`, `recovery_key`) or YubiKeys (`agreement_slot`, `management_key`, `slots`)",
                );
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
                pin: pin_source(self.pin_file, self.pin_credential)?,
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
            hpke_tier: match kind {
                // There are few slots: keys that come and go by the hundred are sealed.
                DeviceKind::YubiKey(_) => self.hpke_tier.or(Some(Tier::Sealed)),
                _ => self.hpke_tier,
            },
            kind,
        })
    }
}

fn pin_source(
    file: Option<PathBuf>,
    credential: Option<String>,
) -> Result<SecretSource, &'static str> {
    match (file, credential) {
        (None, None) => Ok(SecretSource::None),
        (Some(file), None) => Ok(SecretSource::File(file)),
        (None, Some(name)) => Ok(SecretSource::Credential(name)),
        (Some(_), Some(_)) => {
            Err("the PIN comes from a file or from a credential: leave one of them out")
        }
    }
}

fn slot(text: &str) -> Result<Slot, &'static str> {
    text.parse()
        .map_err(|_| "a slot is \"9a\", \"9c\", \"9d\", \"9e\", or \"82\" to \"95\"")
}

/// What the daemon may make in a YubiKey: nothing without the management key.
fn managed(
    others: [Option<Slot>; 2],
    on_the_card: Option<&str>,
    file: Option<PathBuf>,
    credential: Option<String>,
    slots: Option<Vec<String>>,
) -> Result<Option<ManagedConfig>, &'static str> {
    let key = match (on_the_card, file, credential) {
        (None, None, None) if slots.is_some() => {
            return Err(
                "`slots` are those that the daemon makes keys in, which takes the management key",
            );
        }
        (None, None, None) => return Ok(None),
        (Some("on-card"), None, None) => ManagementKeyConfig::OnTheCard,
        (None, Some(file), None) => ManagementKeyConfig::Kept(SecretSource::File(file)),
        (None, None, Some(name)) => ManagementKeyConfig::Kept(SecretSource::Credential(name)),
        _ => {
            return Err(
                "the management key comes from one place: `management_key = \"on-card\"`, `management_key_file` or `management_key_credential`",
            );
        }
    };
    let slots: Vec<Slot> = match slots {
        None => Slot::retired().collect(),
        Some(listed) => listed
            .iter()
            .map(|text| slot(text))
            .collect::<Result<_, _>>()?,
    };
    let is_twice = |(at, slot): (usize, &Slot)| {
        slots
            .iter()
            .skip(at.saturating_add(1))
            .any(|other| other == slot)
    };
    if slots.is_empty() || slots.iter().enumerate().any(is_twice) {
        return Err("`slots` has at least one slot, and each once");
    }
    if others
        .into_iter()
        .flatten()
        .any(|other| slots.contains(&other))
    {
        return Err(
            "`slots` are for other keys than the one that keys are sealed under, and the consent key",
        );
    }
    Ok(Some(ManagedConfig { key, slots }))
}

/// Both or none: measurements change with each update of the firmware.
fn measured(
    pcrs: Option<Vec<u8>>,
    recovery_key: Option<PathBuf>,
) -> Result<Option<MeasuredConfig>, &'static str> {
    match (pcrs, recovery_key) {
        (None, None) => Ok(None),
        (Some(pcrs), Some(recovery_key)) => Ok(Some(MeasuredConfig {
            pcrs: Pcrs::parse(&pcrs)?,
            recovery_key,
        })),
        (Some(_), None) => Err(
            "`pcrs` needs `recovery_key`: without it an update of the firmware would make all keys useless for good",
        ),
        (None, Some(_)) => Err(
            "`recovery_key` approves other measurements of the machine, so it needs `pcrs`, the registers that keys are bound to",
        ),
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
        if let Some(same) = devices.iter().find(|earlier| is_same(earlier, &device)) {
            // They would count each other's keys, try a wrong PIN twice, or flush
            // what the other has loaded.
            let message = format!(
                "devices {:?} and {:?} are the same one: leave one of them out",
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

fn is_same(one: &DeviceConfig, other: &DeviceConfig) -> bool {
    match (&one.kind, &other.kind) {
        (DeviceKind::Pkcs11(one), DeviceKind::Pkcs11(other)) => {
            (&one.module, &one.token, &one.environment)
                == (&other.module, &other.token, &other.environment)
        }
        (DeviceKind::Tpm2(one), DeviceKind::Tpm2(other)) => one.tcti == other.tcti,
        // Two without a serial number would take the same one.
        (DeviceKind::YubiKey(one), DeviceKind::YubiKey(other)) => {
            one.serial == other.serial || one.serial.is_none() || other.serial.is_none()
        }
        _ => false,
    }
}
