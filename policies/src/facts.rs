//! What policies may know of a request: `schema.cedarschema` says what each of it is.
//!
//! As JSON, what is 0, false or empty is left out: so it is on record with each request.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

fn is_default<T: Default + PartialEq>(field: &T) -> bool {
    *field == T::default()
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallerFacts {
    /// The user's number.
    pub uid: u32,
    /// The user's name.
    pub user: String,
    /// The names of the user's groups.
    #[serde(skip_serializing_if = "is_default")]
    pub groups: BTreeSet<String>,
    /// The app's name.
    pub app: String,
    /// How well the app is known.
    #[serde(skip_serializing_if = "is_default")]
    pub identified: Identified,
}

impl Default for CallerFacts {
    fn default() -> Self {
        Self {
            uid: 1000,
            user: "#1000".to_owned(),
            groups: BTreeSet::new(),
            app: "default".to_owned(),
            identified: Identified::Unknown,
        }
    }
}

/// How well an app is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identified {
    /// The kernel or a sandbox sees to it.
    Enforced,
    /// As far as could be seen.
    Observed,
    /// Not at all.
    #[default]
    Unknown,
}

impl Identified {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Observed => "observed",
            Self::Unknown => "unknown",
        }
    }
}

/// What a request uses or makes, as far as there is that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResourceFacts {
    /// The key's id, in hexadecimal.
    #[serde(skip_serializing_if = "is_default")]
    pub key: String,
    /// What it is for.
    #[serde(skip_serializing_if = "is_default")]
    pub purpose: String,
    /// Its algorithm.
    #[serde(skip_serializing_if = "is_default")]
    pub algorithm: String,
    /// Its tier.
    #[serde(skip_serializing_if = "is_default")]
    pub tier: String,
    /// Is it kept as what its device has wrapped?
    #[serde(skip_serializing_if = "is_default")]
    pub wrapped: bool,
    /// How many whole days ago it was made.
    #[serde(skip_serializing_if = "is_default")]
    pub age_days: u64,
    /// Was evidence made that it is in hardware?
    #[serde(skip_serializing_if = "is_default")]
    pub attested: bool,
    /// The numbers of the cipher suites that it serves.
    #[serde(skip_serializing_if = "is_default")]
    pub suites: BTreeSet<u16>,
    /// The device's name.
    #[serde(skip_serializing_if = "is_default")]
    pub device: String,
    /// The device's kind.
    #[serde(skip_serializing_if = "is_default")]
    pub device_kind: String,
    /// The name of the identity.
    #[serde(skip_serializing_if = "is_default")]
    pub identity: Option<String>,
}

/// All else that is known. What a request has nothing to do with is as it is by default, and
/// policies do not see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContextFacts {
    /// The time.
    pub now: Moment,
    /// What the caller was permitted before.
    #[serde(skip_serializing_if = "is_default")]
    pub rates: Rates,
    /// What the guard knows.
    #[serde(skip_serializing_if = "is_default")]
    pub guard: GuardFacts,
    /// The MLS group's id, in hexadecimal.
    #[serde(skip_serializing_if = "is_default")]
    pub group: Option<String>,
    /// The epoch.
    #[serde(skip_serializing_if = "is_default")]
    pub epoch: u64,
    /// Who sends a message.
    #[serde(skip_serializing_if = "is_default")]
    pub sender: SenderKind,
    /// Will it be encrypted?
    #[serde(skip_serializing_if = "is_default")]
    pub encrypted: bool,
    /// The number of the cipher suite.
    #[serde(skip_serializing_if = "is_default")]
    pub cipher_suite: Option<u16>,
    /// Is the action one that a commit spells out?
    #[serde(skip_serializing_if = "is_default")]
    pub in_commit: bool,
    /// The names of the actions of a commit's proposals.
    #[serde(skip_serializing_if = "is_default")]
    pub proposals: BTreeSet<String>,
    /// The types of those among them that are for private use.
    #[serde(skip_serializing_if = "is_default")]
    pub private_proposals: BTreeSet<u16>,
    /// How many proposals it names by reference of which nothing is known.
    #[serde(skip_serializing_if = "is_default")]
    pub unresolved_references: u64,
    /// How many members are added.
    #[serde(skip_serializing_if = "is_default")]
    pub members_added: u64,
    /// The names of those added.
    #[serde(skip_serializing_if = "is_default")]
    pub added_names: BTreeSet<String>,
    /// How many are removed.
    #[serde(skip_serializing_if = "is_default")]
    pub members_removed: u64,
    /// The leaf indices of those removed.
    #[serde(skip_serializing_if = "is_default")]
    pub removed_leaves: BTreeSet<u32>,
    /// Is there a pre-shared key?
    #[serde(skip_serializing_if = "is_default")]
    pub uses_psk: bool,
    /// The sender's leaf index, if it has one.
    #[serde(skip_serializing_if = "is_default")]
    pub sender_leaf: Option<u32>,
    /// The leaf index of the one that a targeted message is for.
    #[serde(skip_serializing_if = "is_default")]
    pub recipient_leaf: u32,
    /// What members of the group have to be capable of.
    #[serde(skip_serializing_if = "is_default")]
    pub required_capabilities: Option<RequiredCapabilities>,
    /// How a leaf comes into its tree.
    #[serde(skip_serializing_if = "is_default")]
    pub source: String,
    /// How many days a leaf or KeyPackage lasts from now, rounded up.
    #[serde(skip_serializing_if = "is_default")]
    pub lifetime_days: Option<u64>,
    /// Is a KeyPackage one of last resort?
    #[serde(skip_serializing_if = "is_default")]
    pub last_resort: bool,
    /// Does a GroupInfo let others enter?
    #[serde(skip_serializing_if = "is_default")]
    pub lets_join: bool,
    /// The algorithm of a key that is to be made.
    #[serde(skip_serializing_if = "is_default")]
    pub algorithm: String,
    /// Its tier.
    #[serde(skip_serializing_if = "is_default")]
    pub tier: String,
    /// Is an identity there already?
    #[serde(skip_serializing_if = "is_default")]
    pub exists: bool,
    /// How many others the caller has.
    #[serde(skip_serializing_if = "is_default")]
    pub others: u64,
    /// The kind of its credential.
    #[serde(skip_serializing_if = "is_default")]
    pub credential_type: String,
    /// The name in its credential.
    #[serde(skip_serializing_if = "is_default")]
    pub credential: Option<String>,
    /// The names in its certificate.
    #[serde(skip_serializing_if = "is_default")]
    pub certificate_names: BTreeSet<String>,
    /// Who issued it.
    #[serde(skip_serializing_if = "is_default")]
    pub certificate_issuer: Option<String>,
    /// Does the configuration not let the user have it?
    #[serde(
        rename = "credential_permitted",
        with = "not",
        skip_serializing_if = "is_default"
    )]
    pub credential_forbidden: bool,
    /// Is the credential of a leaf another one than the identity's own?
    #[serde(
        rename = "credential_matches",
        with = "not",
        skip_serializing_if = "is_default"
    )]
    pub credential_differs: bool,
    /// Is it for a key that the identity does not have yet?
    #[serde(skip_serializing_if = "is_default")]
    pub new_key: bool,
    /// The name of the user who has what is to have another owner.
    #[serde(skip_serializing_if = "is_default")]
    pub from_user: String,
    /// The app that has it.
    #[serde(skip_serializing_if = "is_default")]
    pub from_app: String,
    /// The name of the user who is to have it.
    #[serde(skip_serializing_if = "is_default")]
    pub to_user: String,
    /// The app that is to have it.
    #[serde(skip_serializing_if = "is_default")]
    pub to_app: String,
    /// The names of the identities in it.
    #[serde(skip_serializing_if = "is_default")]
    pub identities: BTreeSet<String>,
    /// The label of what is no MLS structure.
    #[serde(skip_serializing_if = "is_default")]
    pub label: String,
}

/// What is seldom, and so is left out, is called by its contrary in policies.
mod not {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
    pub(super) fn serialize<S: Serializer>(field: &bool, to: S) -> Result<S::Ok, S::Error> {
        (!field).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
        bool::deserialize(from).map(|is| !is)
    }
}

/// What members of a group have to be capable of (RFC 9420, 11.1), as the numbers of types.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequiredCapabilities {
    /// Extensions.
    #[serde(skip_serializing_if = "is_default")]
    pub extensions: BTreeSet<u16>,
    /// Proposals.
    #[serde(skip_serializing_if = "is_default")]
    pub proposals: BTreeSet<u16>,
    /// Credentials.
    #[serde(skip_serializing_if = "is_default")]
    pub credentials: BTreeSet<u16>,
}

/// A moment, in the time zone of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Moment {
    /// In UTC, as RFC 3339 has it.
    pub time: String,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 1 is Monday, 7 is Sunday.
    pub weekday: u8,
}

impl Default for Moment {
    fn default() -> Self {
        Self {
            time: "2026-01-07T12:00:00Z".to_owned(),
            hour: 12,
            minute: 0,
            weekday: 3,
        }
    }
}

/// What a caller was permitted before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    /// Signatures in the last minute.
    #[serde(skip_serializing_if = "is_default")]
    pub signatures_minute: u64,
    /// Signatures in the last hour.
    #[serde(skip_serializing_if = "is_default")]
    pub signatures_hour: u64,
    /// Ciphertexts opened in the last minute.
    #[serde(skip_serializing_if = "is_default")]
    pub opens_minute: u64,
    /// Ciphertexts opened in the last hour.
    #[serde(skip_serializing_if = "is_default")]
    pub opens_hour: u64,
    /// Keys made in the last minute.
    #[serde(skip_serializing_if = "is_default")]
    pub keys_minute: u64,
    /// Keys made in the last hour.
    #[serde(skip_serializing_if = "is_default")]
    pub keys_hour: u64,
}

/// What the guard knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardFacts {
    /// Was anything signed in the group before?
    #[serde(skip_serializing_if = "is_default")]
    pub known: bool,
    /// How far this is behind the newest epoch.
    #[serde(skip_serializing_if = "is_default")]
    pub epochs_behind: u64,
    /// How far it is ahead of it.
    #[serde(skip_serializing_if = "is_default")]
    pub epochs_ahead: u64,
    /// Other commits that were signed in this epoch.
    #[serde(skip_serializing_if = "is_default")]
    pub commits: u64,
    /// Was the registry restored from a copy since something was signed here?
    #[serde(skip_serializing_if = "is_default")]
    pub restored: bool,
}

/// Who sends a message (RFC 9420, 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SenderKind {
    /// A member.
    #[default]
    Member,
    /// Somebody outside whom the group admits.
    External,
    /// Somebody who proposes to be added.
    NewMemberProposal,
    /// Somebody who enters by a commit.
    NewMemberCommit,
}

impl SenderKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::External => "external",
            Self::NewMemberProposal => "new_member_proposal",
            Self::NewMemberCommit => "new_member_commit",
        }
    }
}
