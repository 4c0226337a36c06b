//! The configuration: a TOML file in which every key but a device's `name` and
//! `kind` has a default, and unknown keys are refused. `docs/mlskeyd.toml` shows all of it.

mod apps;
mod dbus;
mod devices;
mod pcrs;
mod slot;
mod tcti;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mlskeyd_policies::Action;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use toml::Spanned;

pub use self::apps::AppConfig;
use self::apps::AppTable;
pub use self::dbus::Bus;
use self::dbus::DbusTable;
use self::devices::DeviceTable;
pub use self::devices::{
    DeviceConfig, DeviceKind, ManagedConfig, ManagementKeyConfig, MeasuredConfig,
    NV_INDICES_OF_OWNER, Pkcs11Config, SecretSource, TokenChoice, Tpm2Config, YubiKeyConfig,
};
pub use self::pcrs::Pcrs;
pub use self::slot::{NoSlot, Slot};
pub use self::tcti::Tcti;
use crate::mls::FIRST_PRIVATE_USE;
use crate::policy_files::PolicyDirs;
use crate::signers::Signers;

/// Longest configuration file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// The configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the registry, the audit log and the software device's keys are.
    pub state_dir: PathBuf,
    /// The Unix socket.
    pub socket: PathBuf,
    /// Where the store key comes from.
    pub store_key: StoreKeySource,
    /// The program `mlskeyd-pkcs11`; `None`: the one beside the daemon's own.
    pub pkcs11_helper: Option<PathBuf>,
    /// The devices: at least one, with different names.
    pub devices: Vec<DeviceConfig>,
    /// The name of the device where new keys go by default: one of `devices`.
    pub default_device: String,
    /// How long keys live.
    pub lifetimes: Lifetimes,
    /// Where policies come from, and what they and the rules go by.
    pub policy: PolicyConfig,
    /// The bounds.
    pub limits: Limits,
    /// The apps that have names, in the order of these.
    pub apps: Vec<AppConfig>,
    /// The bus on which the daemon is, too; `None`: on none.
    pub bus: Option<Bus>,
}

/// Where the store key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKeySource {
    /// A file of 32 bytes, mode 0600.
    File {
        /// The file.
        path: PathBuf,
        /// Make it at the first start, when there is neither a key nor state?
        create: bool,
    },
    /// A systemd credential of 32 bytes.
    Credential {
        /// Its name.
        name: String,
    },
}

/// How long keys live. Measured in time that the daemon observed, so that a
/// clock that jumps ends nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lifetimes {
    /// From the time when no record names a key any more to its destruction.
    #[serde(deserialize_with = "duration")]
    pub grace: Duration,
    /// The same for a key that no record ever named, from the end of the
    /// connection that made it.
    #[serde(deserialize_with = "duration")]
    pub orphan_grace: Duration,
    /// The longest that a key waits to be named while that connection lives.
    #[serde(deserialize_with = "duration")]
    pub max_unclaimed_age: Duration,
    /// How long keys that are due wait for a storage that is not connected.
    #[serde(deserialize_with = "duration")]
    pub storage_horizon: Duration,
    /// How long HPKE keys are made under the same generation key.
    #[serde(deserialize_with = "positive_duration")]
    pub generation: Duration,
    /// How long a signature key goes on when its identity got another one.
    #[serde(deserialize_with = "duration")]
    pub rotation_grace: Duration,
}

const HOUR: u64 = 60 * 60;
const DAY: u64 = 24 * HOUR;

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(DAY),
            orphan_grace: Duration::from_secs(HOUR),
            max_unclaimed_age: Duration::from_secs(7 * DAY),
            storage_horizon: Duration::from_secs(90 * DAY),
            generation: Duration::from_secs(DAY),
            rotation_grace: Duration::from_secs(30 * DAY),
        }
    }
}

/// Where policies come from, and what they and the rules go by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyConfig {
    /// May an app take a group out of custody?
    pub allow_leave: bool,
    /// What takes a person's consent; `None`: nothing.
    pub consent: Option<ConsentConfig>,
    /// Where the policies are.
    pub dirs: PolicyDirs,
    /// Who has to have signed the company's; `None`: nobody.
    pub signers: Option<Signers>,
    /// Where files are that freeze and thaw, if one of the signers has signed them.
    pub freeze_dir: PathBuf,
    /// The names that users may have in credentials, in which `{user}` stands for their
    /// own; `None`: any.
    pub credentials: Option<Vec<String>>,
    /// The names of those users who may have other ones.
    pub users: BTreeMap<String, Vec<String>>,
    /// The file with the issuers of certificates in credentials, in PEM.
    pub certificate_issuers: Option<PathBuf>,
    /// The types of proposals for private use that apps may have signed.
    pub private_proposals: BTreeSet<u16>,
}

/// What takes a person's consent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsentConfig {
    /// The device whose consent key the person touches.
    pub device: String,
    /// The requests.
    pub requests: Vec<Action>,
}

/// Requests that may take a person's consent. Those of each message may not: nobody
/// would look any more at what is touched.
const TAKE_CONSENT: [Action; 8] = [
    Action::CreateIdentity,
    Action::CreateIdentityFor,
    Action::AdoptIdentity,
    Action::RotateIdentity,
    Action::UpdateCredential,
    Action::SignCsr,
    Action::ReassignKeys,
    Action::LeaveCustody,
];

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PolicyTable {
    allow_leave: bool,
    consent_device: Option<Spanned<String>>,
    consent: Option<Spanned<Vec<String>>>,
    #[serde(deserialize_with = "path")]
    vendor_dir: PathBuf,
    #[serde(deserialize_with = "path")]
    local_dir: PathBuf,
    signers: Option<Spanned<Vec<String>>>,
    #[serde(deserialize_with = "path")]
    freeze_dir: PathBuf,
    credentials: Option<Vec<String>>,
    private_proposals: Option<Spanned<BTreeSet<u16>>>,
    #[serde(deserialize_with = "optional_path")]
    candidate_dir: Option<PathBuf>,
    #[serde(deserialize_with = "optional_path")]
    certificate_issuers: Option<PathBuf>,
    users: BTreeMap<String, UserTable>,
}

/// What there is to say of one user.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserTable {
    credentials: Vec<String>,
}

impl Default for PolicyTable {
    fn default() -> Self {
        Self {
            allow_leave: false,
            consent_device: None,
            consent: None,
            vendor_dir: "/usr/lib/mlskeyd/policies.d".into(),
            local_dir: "/etc/mlskeyd/policies.d".into(),
            signers: None,
            freeze_dir: "/etc/mlskeyd/freeze.d".into(),
            credentials: None,
            private_proposals: None,
            candidate_dir: None,
            certificate_issuers: None,
            users: BTreeMap::new(),
        }
    }
}

impl PolicyTable {
    fn check(self, devices: &[DeviceConfig]) -> Result<PolicyConfig, Mistake> {
        let consent = match (self.consent_device, self.consent) {
            (None, None) => None,
            (None, Some(listed)) => {
                return Err(Mistake::new(
                    listed.span(),
                    "`consent` needs `consent_device`, whose consent key a person touches",
                ));
            }
            (Some(device), listed) => {
                let has_key = |one: &DeviceConfig| {
                    let consents =
                        matches!(&one.kind, DeviceKind::YubiKey(it) if it.consent_slot.is_some());
                    one.name == *device.get_ref() && consents
                };
                if !devices.iter().any(has_key) {
                    return Err(Mistake::new(
                        device.span(),
                        "`consent_device` is a device of kind \"yubikey\" with a `consent_slot`",
                    ));
                }
                Some(ConsentConfig {
                    device: device.into_inner(),
                    requests: consent_requests(listed)?,
                })
            }
        };
        let private = self
            .private_proposals
            .unwrap_or_else(|| Spanned::new(0..0, BTreeSet::new()));
        if private.get_ref().iter().any(|it| *it < FIRST_PRIVATE_USE) {
            return Err(Mistake::new(
                private.span(),
                "types for private use are 0xf000 to 0xffff (RFC 9420, 17.4)",
            ));
        }
        let signers = self.signers.map(|lines| {
            Signers::parse(lines.get_ref().iter().map(String::as_str))
                .map_err(|why| Mistake::new(lines.span(), format!("`signers`: {why}")))
        });
        Ok(PolicyConfig {
            allow_leave: self.allow_leave,
            consent,
            private_proposals: private.into_inner(),
            certificate_issuers: self.certificate_issuers,
            users: (self.users.into_iter())
                .map(|(user, table)| (user, table.credentials))
                .collect(),
            dirs: PolicyDirs {
                vendor: self.vendor_dir,
                local: self.local_dir,
                candidate: self.candidate_dir,
            },
            signers: signers.transpose()?,
            freeze_dir: self.freeze_dir,
            credentials: self.credentials,
        })
    }
}

fn consent_requests(listed: Option<Spanned<Vec<String>>>) -> Result<Vec<Action>, Mistake> {
    let Some(listed) = listed else {
        return Ok(vec![Action::CreateIdentity]);
    };
    let named = |name: &String| {
        let mut known = TAKE_CONSENT.into_iter();
        known.find(|action| action.name() == name).ok_or_else(|| {
            let known = TAKE_CONSENT.map(Action::name).join(", ");
            let message = format!("no consent is taken for {name:?}; it is for: {known}");
            Mistake::new(listed.span(), message)
        })
    };
    listed.get_ref().iter().map(named).collect()
}

/// The bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most open connections.
    #[serde(deserialize_with = "count")]
    pub connections: u32,
    /// Most open connections of one user.
    #[serde(deserialize_with = "count")]
    pub connections_per_user: u32,
    /// Most requests that wait for one device.
    #[serde(deserialize_with = "count")]
    pub queue: u32,
    /// Most requests of one owner that wait for one device.
    #[serde(deserialize_with = "count")]
    pub queue_per_owner: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 960,
            connections_per_user: 256,
            queue: 1024,
            queue_per_owner: 64,
        }
    }
}

/// The file, as it is written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ConfigFile {
    #[serde(deserialize_with = "path")]
    state_dir: PathBuf,
    #[serde(deserialize_with = "path")]
    socket: PathBuf,
    store_key: Spanned<StoreKeyTable>,
    pkcs11_helper: Option<Spanned<PathBuf>>,
    devices: Vec<Spanned<DeviceTable>>,
    default_device: Option<Spanned<String>>,
    lifetimes: Lifetimes,
    policy: PolicyTable,
    limits: Limits,
    apps: BTreeMap<String, Spanned<AppTable>>,
    dbus: DbusTable,
}

impl Default for ConfigFile {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/mlskeyd".into(),
            socket: "/run/mlskeyd/socket".into(),
            store_key: Spanned::new(0..0, StoreKeyTable::default()),
            pkcs11_helper: None,
            devices: Vec::new(),
            default_device: None,
            lifetimes: Lifetimes::default(),
            policy: PolicyTable::default(),
            limits: Limits::default(),
            apps: BTreeMap::new(),
            dbus: DbusTable::default(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreKeyTable {
    #[serde(default, deserialize_with = "optional_path")]
    file: Option<PathBuf>,
    credential: Option<String>,
    create: Option<bool>,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be read.
    #[error("the configuration {} cannot be read: {source}; name another file with --config, or write one (docs/mlskeyd.toml is a sample)", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It says something that it must not.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong, and what would be right.
        message: String,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], with line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let io = |source| ConfigError::Io {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(io)?;
        let mut text = String::new();
        let mut bounded = std::io::Read::take(file, MAX_FILE.saturating_add(1));
        let read = std::io::Read::read_to_string(&mut bounded, &mut text).map_err(io)?;
        if u64::try_from(read).unwrap_or(u64::MAX) > MAX_FILE {
            return Err(io(std::io::Error::other("it is longer than 1 MiB")));
        }
        Self::parse(path, &text)
    }

    /// Checks a file's text. `path` is for the errors.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`], with line and column.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str::<ConfigFile>(text)
            .map_err(|error| Mistake {
                span: error.span(),
                message: with_suggestion(error.message()),
            })
            .and_then(ConfigFile::check)
            .map_err(|mistake| mistake.locate(path, text))
    }
}

impl ConfigFile {
    /// The rules that concern more than one value.
    fn check(self) -> Result<Config, Mistake> {
        let store_key = self.store_key.span();
        let store_key = self
            .store_key
            .into_inner()
            .check(&self.state_dir)
            .map_err(|message| Mistake::new(store_key, message))?;
        let devices = devices::check(self.devices)?;
        let pkcs11_helper = match self.pkcs11_helper {
            Some(path) if !path.get_ref().is_absolute() => {
                return Err(Mistake::new(path.span(), "a path has to begin with `/`"));
            }
            path => path.map(Spanned::into_inner),
        };
        let default_device = match self.default_device {
            None => devices
                .first()
                .map(|device| device.name.clone())
                .unwrap_or_default(),
            Some(named) if devices.iter().any(|device| device.name == *named.get_ref()) => {
                named.into_inner()
            }
            Some(named) => {
                let names: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
                let suggestion = suggest(named.get_ref(), names.iter().copied());
                let names = names.join(", ");
                let message = format!(
                    "there is no device {:?}{suggestion}; the devices are: {names}",
                    named.get_ref()
                );
                return Err(Mistake::new(named.span(), message));
            }
        };
        let policy = self.policy.check(&devices)?;
        Ok(Config {
            state_dir: self.state_dir,
            socket: self.socket,
            store_key,
            pkcs11_helper,
            devices,
            default_device,
            lifetimes: self.lifetimes,
            policy,
            limits: self.limits,
            apps: apps::check(self.apps)?,
            bus: self.dbus.bus,
        })
    }
}

impl StoreKeyTable {
    fn check(self, state_dir: &Path) -> Result<StoreKeySource, &'static str> {
        match (self.file, self.credential) {
            (Some(_), Some(_)) => {
                Err("the store key comes from a file or from a credential: leave one of them out")
            }
            (None, Some(_)) if self.create == Some(true) => {
                Err("a credential is made outside of mlskeyd: leave `create` out")
            }
            (None, Some(name))
                if name.is_empty() || name.contains('/') || name.starts_with('.') =>
            {
                Err("a credential has a plain name, without `/`")
            }
            (None, Some(name)) => Ok(StoreKeySource::Credential { name }),
            (file, None) => Ok(StoreKeySource::File {
                path: file.unwrap_or_else(|| state_dir.join("store.key")),
                create: self.create.unwrap_or(true),
            }),
        }
    }
}

/// What is wrong, and where in the text.
struct Mistake {
    span: Option<Range<usize>>,
    message: String,
}

impl Mistake {
    fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            span: Some(span),
            message: message.into(),
        }
    }

    fn locate(self, path: &Path, text: &str) -> ConfigError {
        let start = self.span.map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or(text);
        let (line_start, line) = before
            .match_indices('\n')
            .map(|(at, _)| at.saturating_add(1))
            .zip(2..)
            .last()
            .unwrap_or((0, 1));
        let column = before
            .get(line_start..)
            .unwrap_or("")
            .chars()
            .count()
            .saturating_add(1);
        ConfigError::Invalid {
            path: path.to_owned(),
            line,
            column,
            message: self.message,
        }
    }
}

/// Adds what was meant to serde's "unknown field `x`, expected one of `y`, `z`".
fn with_suggestion(message: &str) -> String {
    let message = message.trim_end();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let suggestion = match quoted.next() {
        Some(unknown) if message.starts_with("unknown ") => suggest(unknown, quoted),
        _ => String::new(),
    };
    format!("{message}{suggestion}")
}

/// `; did you mean ...?`, if something is close.
fn suggest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|word| (distance(written, word), word))
        .min()
        .filter(|(distance, word)| *distance <= word.chars().count().div_ceil(3))
        .map(|(_, word)| format!("; did you mean `{word}`?"))
        .unwrap_or_default()
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut last = i.saturating_add(1);
        let mut next = vec![last];
        for (pair, b) in row.windows(2).zip(&b) {
            let &[diagonal, above] = pair else { continue };
            let replaced = if a == *b {
                diagonal
            } else {
                diagonal.saturating_add(1)
            };
            last = replaced
                .min(above.saturating_add(1))
                .min(last.saturating_add(1));
            next.push(last);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    if is_name(&name) {
        Ok(name)
    } else {
        Err(D::Error::custom(
            "a name has 1 to 64 letters, digits, `-`, `_` and `.`",
        ))
    }
}

fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(plain)
}

fn path<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(from)?;
    // The daemon's working directory is nobody's choice.
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(D::Error::custom("a path has to begin with `/`"))
    }
}

fn optional_path<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    path(from).map(Some)
}

fn count<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    const MAX: u32 = 65_536;
    match u32::deserialize(from)? {
        n @ 1..=MAX => Ok(n),
        _ => Err(D::Error::custom(format!("a limit is between 1 and {MAX}"))),
    }
}

fn positive_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    match duration(from)? {
        Duration::ZERO => Err(D::Error::custom("this has to be longer than 0s")),
        duration => Ok(duration),
    }
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    parse_duration(&text).ok_or_else(|| {
        D::Error::custom(format!(
            "{text:?} is no duration: write a number and a unit, as in \"30s\", \"15m\", \"24h\" or \"90d\" (10 years at most)"
        ))
    })
}

/// A whole number and one unit: `s`, `m`, `h` or `d`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => HOUR,
        "d" => DAY,
        _ => return None,
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds = digits.parse::<u64>().ok()?.checked_mul(seconds)?;
    (seconds <= 3650 * DAY).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
