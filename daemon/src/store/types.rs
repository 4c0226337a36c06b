//! What the registry keeps, as its callers see it.

use std::time::Duration;

use mlskeyd_protocol::v1::{
    Algorithm, Bytes, Credential, KeyId, KeyInfo, KeyPin, KeyState, Owner, Purpose,
    SignatureScheme, Tier,
};
use serde::{Deserialize, Serialize};

use super::clock::Now;
use crate::devices::{GenerationId, KeyBlob};

/// A connection to the daemon, numbered within this run of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConnectionId(pub u64);

/// How long things wait, and how much is kept in memory. All times are observed
/// time: they pass only while the daemon runs, whatever the wall clock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From the last claim's end to the last look; from a KeyPackage's expiry
    /// to the end of its init key; from the loss of an Update record's leaf to
    /// the record's end.
    pub grace: Duration,
    /// From the end of the creating connection to the end of a key that was
    /// never claimed; and of a connection to that of a storage in memory.
    pub orphan_grace: Duration,
    /// The longest life of a key that was never claimed, while its creating
    /// connection is open.
    pub max_unclaimed_age: Duration,
    /// From the last claim's end to a key's end, if its storages do not come
    /// for the last look.
    pub horizon: Duration,
    /// Most keys, and most guard marks, that are kept in memory.
    pub cached: usize,
}

impl Default for Settings {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        Self {
            grace: Duration::from_secs(24 * HOUR),
            orphan_grace: Duration::from_secs(HOUR),
            max_unclaimed_age: Duration::from_secs(7 * 24 * HOUR),
            horizon: Duration::from_secs(90 * 24 * HOUR),
            cached: 4096,
        }
    }
}

/// A key that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// Its name: random and new.
    pub id: KeyId,
    /// Who will own it.
    pub owner: Owner,
    /// What it is for.
    pub algorithm: Algorithm,
    /// The device that will make it.
    pub device: String,
    /// How it will be kept.
    pub tier: Tier,
    /// The generation that it will hang under.
    pub generation: Under,
    /// The identity of a signature key.
    pub identity: Option<String>,
    /// Is it on the device already, and not to be made there?
    pub adopted: bool,
    /// Has it a PIN of its own?
    pub pin: bool,
    /// The connection that asked for it: its end ends a key that no record
    /// claimed by then. `None` for a connection that is gone already.
    pub connection: Option<ConnectionId>,
    /// The wall clock, in seconds since 1970.
    pub created: u64,
}

/// The generation that a new key hangs under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under {
    /// One that it shares: the device's current one.
    Shared(GenerationId),
    /// One of its own with this new name, journalled together with the key.
    Own(GenerationId),
}

/// What a device made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeKey {
    /// The name it was asked for.
    pub id: KeyId,
    /// The public key, as MLS writes it.
    pub public_key: Bytes,
    /// The private key, as the device wants it stored.
    pub blob: KeyBlob,
    /// How it is kept.
    pub tier: Tier,
}

/// Where a key is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LifeState {
    /// Journalled; the device may or may not have made it.
    Creating,
    /// Usable.
    Active,
    /// Journalled; the device may or may not have destroyed it.
    Destroying,
    /// Gone for good. The row stays, without the blob.
    Destroyed,
    /// Of the registry's rows this one cannot be verified: the store key is
    /// lost, or the row was changed. It cannot be used.
    Missing,
}

/// Most groups that a last-resort KeyPackage's leaf is remembered to be in.
pub const MAX_GROUPS: usize = 256;

/// What the daemon learnt about an HPKE key from the structures it signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Binding {
    /// Nothing yet.
    None,
    /// The init key of a KeyPackage.
    Init {
        /// The leaf's encryption key in that KeyPackage.
        leaf_public: Bytes,
        /// Start of the lifetime, in seconds since 1970.
        not_before: u64,
        /// End of the lifetime, in seconds since 1970.
        not_after: u64,
        /// Has the KeyPackage the last-resort extension?
        last_resort: bool,
        /// The group that it served to join, once its KeyPackage is deleted.
        consumed_by: Option<Bytes>,
    },
    /// The leaf key of a member, from a LeafNode with source update or commit.
    Leaf {
        /// The group id.
        group: Bytes,
        /// The member's leaf index.
        leaf_index: u32,
    },
    /// A leaf key from a LeafNode with source key_package.
    LeafOfKeyPackage {
        /// The KeyPackage's init key; `None` until a KeyPackage is signed (and
        /// forever for the leaf that founds a group).
        init: Option<KeyId>,
        /// Has the KeyPackage the last-resort extension?
        last_resort: bool,
        /// The groups it is used in: at most one, unless it is last-resort.
        groups: Vec<Bytes>,
    },
}

impl Binding {
    /// Is it the leaf key of a KeyPackage that may (still) serve for this group?
    #[must_use]
    pub fn admits(&self, group: &[u8]) -> bool {
        match self {
            Self::Leaf { group: bound, .. } => bound.0 == group,
            Self::LeafOfKeyPackage {
                last_resort,
                groups,
                ..
            } => *last_resort || groups.iter().all(|bound| bound.0 == group),
            Self::None | Self::Init { .. } => false,
        }
    }
}

/// A change of a key's binding; refused if it is not `from` any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebind {
    /// The key.
    pub key: KeyId,
    /// What the change was decided on.
    pub from: Binding,
    /// What it is to be.
    pub to: Binding,
}

/// A key in custody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Its name.
    pub id: KeyId,
    /// Who owns it.
    pub owner: Owner,
    /// What it is for.
    pub algorithm: Algorithm,
    /// Its public key; empty while it is being made.
    pub public_key: Bytes,
    /// The device that holds it.
    pub device: String,
    /// How it is kept.
    pub tier: Tier,
    /// The generation that it hangs under.
    #[serde(with = "generation_id")]
    pub generation: GenerationId,
    /// What the device wants stored; empty before it is made and after it is
    /// destroyed.
    #[serde(with = "key_blob")]
    pub blob: KeyBlob,
    /// The identity of a signature key.
    pub identity: Option<String>,
    /// What an HPKE key is for.
    pub binding: Binding,
    /// Where it is in its life.
    pub state: LifeState,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Was it on its device before, and is the device's own object left alone
    /// when the key is destroyed here?
    pub adopted: bool,
    /// Has it a PIN of its own?
    pub pin: bool,
    /// Was evidence made for a verifier that it is in hardware?
    pub attested: bool,
    /// Of a signature key that retires: when it ends, in observed seconds.
    /// Claims do not matter to it.
    pub(super) ends: Option<u64>,
    pub(super) wait: Wait,
    /// When the end of its KeyPackage was first seen, in observed seconds.
    pub(super) expired_since: Option<u64>,
}

/// What a key without claims waits for. All times in observed seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Wait {
    /// It is claimed, or it is a signature key.
    None,
    /// Never claimed, and its creating connection was open when last heard of.
    Open {
        run: u64,
        connection: ConnectionId,
        since: u64,
    },
    /// Never claimed, and its creating connection is gone.
    Orphan { since: u64 },
    /// Released; the records that last named it are remembered.
    Released { since: u64 },
    /// Released, and no record is left to look at.
    Unnamed { since: u64 },
}

impl KeyRecord {
    /// Is no record in need of it?
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.wait, Wait::Released { .. } | Wait::Unnamed { .. })
    }

    /// Did no record ever claim it, as it has to be claimed?
    pub(super) const fn is_unclaimed(&self) -> bool {
        matches!(self.wait, Wait::Open { .. } | Wait::Orphan { .. })
    }

    /// Is it alive? One that retires is not usable for ever: see
    /// [`Registry::has_ended`](super::Registry::has_ended).
    #[must_use]
    pub const fn is_active(&self) -> bool {
        matches!(self.state, LifeState::Active)
    }

    /// Has its identity a newer key, so that this one has an end?
    #[must_use]
    pub const fn is_retiring(&self) -> bool {
        self.ends.is_some()
    }

    /// Is it over, whether or not it is destroyed yet? `observed` is the observed
    /// time.
    pub(super) fn has_ended(&self, observed: u64) -> bool {
        self.ends.is_some_and(|ends| ends <= observed)
    }

    /// What the key is known to be for.
    #[must_use]
    pub const fn purpose(&self) -> Purpose {
        match (&self.algorithm, &self.binding) {
            (Algorithm::Signature(_), _) => Purpose::Signature,
            (_, Binding::None) => Purpose::Hpke,
            (_, Binding::Init { .. }) => Purpose::Init,
            (_, Binding::Leaf { .. } | Binding::LeafOfKeyPackage { .. }) => Purpose::Leaf,
        }
    }

    /// Where the key is in its life, as apps and administrators see it.
    #[must_use]
    pub const fn shown_state(&self) -> KeyState {
        match self.state {
            LifeState::Active if self.is_retiring() => KeyState::Retiring,
            LifeState::Active if self.is_idle() => KeyState::Idle,
            LifeState::Active => KeyState::Active,
            LifeState::Creating | LifeState::Missing => KeyState::Missing,
            LifeState::Destroying | LifeState::Destroyed => KeyState::Destroyed,
        }
    }

    /// The key as apps and administrators see it; `now` tells when it ends. Whether
    /// its PIN was given only its device knows.
    pub(super) fn info(&self, now: Option<Now>) -> KeyInfo {
        let state = self.shown_state();
        let ends = match (now, self.ends) {
            (Some(now), Some(ends)) if state == KeyState::Retiring => {
                let left = ends.saturating_sub(now.observed);
                Some(now.wall.saturating_add(left))
            }
            _ => None,
        };
        KeyInfo {
            id: self.id,
            algorithm: self.algorithm,
            purpose: self.purpose(),
            state,
            public_key: self.public_key.clone(),
            device: self.device.clone(),
            tier: self.tier,
            created: self.created,
            ends,
            adopted: self.adopted,
            pin: if self.pin {
                KeyPin::Locked
            } else {
                KeyPin::None
            },
        }
    }
}

/// Why a key is to be destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its time has come: refused with [`StoreError::NotDue`](super::StoreError)
    /// if a claim came in between.
    Due,
    /// Somebody ordered it.
    Ordered,
}

/// A generation key of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Its name.
    #[serde(with = "generation_id")]
    pub id: GenerationId,
    /// The device.
    pub device: String,
    /// Is it one key's own?
    pub own: bool,
    /// When it was made, in observed seconds.
    pub created: u64,
    /// Where it is in its life.
    pub state: GenerationState,
    /// Its keys that are not destroyed, those that are being made included.
    pub(super) living: u64,
    /// Was one of its keys destroyed?
    pub(super) has_dead: bool,
}

impl Generation {
    /// Is it to be destroyed, or does that go on? It has no living key, and does
    /// not merely wait for its first one: the current one, too, once all of its
    /// keys have died, and one whose only key was given up while it was made.
    #[must_use]
    pub(super) const fn is_idle(&self) -> bool {
        let waits_for_keys = match self.state {
            GenerationState::Creating => !self.own,
            GenerationState::Current => !self.own && !self.has_dead,
            GenerationState::Retired | GenerationState::Destroying | GenerationState::Undoing => {
                false
            }
            GenerationState::Destroyed => return false,
        };
        self.living == 0 && !waits_for_keys
    }
}

/// Where a generation is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GenerationState {
    /// Journalled; the device may or may not have made it.
    Creating,
    /// Takes new keys.
    Current,
    /// Takes no new keys, and goes when its last key has gone.
    Retired,
    /// Journalled; the device may or may not have destroyed it.
    Destroying,
    /// Gone for good, with all of its keys.
    Destroyed,
    /// As `Destroying`, and none of its keys was ever finished: nobody knows one.
    Undoing,
}

impl GenerationState {
    /// Is it journalled to be destroyed?
    pub(crate) const fn is_ending(self) -> bool {
        matches!(self, Self::Destroying | Self::Undoing)
    }
}

/// Where new HPKE keys of a device go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CurrentGeneration {
    /// Into this generation.
    Existing(GenerationId),
    /// This one is journalled: have the device make it, then finish it.
    CreateNew(GenerationId),
}

/// What was begun and never finished: for repair at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Have the device destroy what it may have made, then abandon them.
    pub creating: Vec<KeyRecord>,
    /// Destroy them again, then finish.
    pub destroying: Vec<KeyRecord>,
    /// Begin to destroy them, then as below.
    pub generations_creating: Vec<Generation>,
    /// Destroy them again, then finish.
    pub generations_destroying: Vec<Generation>,
}

/// An identity that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRecord {
    /// Who owns it.
    pub owner: Owner,
    /// The name, unique for the owner.
    pub name: String,
    /// The pinned credential.
    pub credential: Credential,
    /// The signature scheme.
    pub scheme: SignatureScheme,
    /// The signature key.
    pub key: KeyId,
    /// Those before it that were still to end when this one was made, the
    /// oldest first: at most
    /// [`MAX_RETIRING`](mlskeyd_protocol::limits::MAX_RETIRING).
    pub retiring: Vec<KeyId>,
    /// The key that is the identity's own once its certificate is.
    pub next: Option<KeyId>,
    /// The credential that it was made with: its app asks for it by that.
    pub made_with: Credential,
}

/// A journalled key takes the place of an identity's signature key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Who owns the identity.
    pub owner: Owner,
    /// Its name.
    pub name: String,
    /// The key that it has had so far.
    pub from: KeyId,
    /// The key that it has from now on.
    pub to: MadeKey,
    /// How long the old one goes on, in observed time.
    pub grace: Duration,
}

/// Another credential for an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recredential {
    /// Who owns the identity.
    pub owner: Owner,
    /// Its name.
    pub name: String,
    /// The credential that it has had so far.
    pub from: Credential,
    /// The one that it has from now on.
    pub to: Credential,
    /// The key that it has with that: its own, or the one that was prepared.
    pub key: KeyId,
    /// How long a key that is replaced goes on, in observed time.
    pub grace: Duration,
}

/// What the daemon remembers per identity and group, to tell a rollback or a
/// fork.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardMark {
    /// The highest epoch signed.
    pub epoch: u64,
    /// The member's leaf index, once known.
    pub leaf_index: Option<u32>,
    /// SHA-256 of the distinct commits reserved in this epoch: at most
    /// [`MAX_COMMITS`].
    pub commits: Vec<[u8; 32]>,
    /// How often the registry had been restored, as
    /// [`Registry::restores`](super::Registry::restores) has it, when this was known to be
    /// the newest.
    pub restores: u64,
    /// The last external commit that was signed, and how often the registry had been
    /// restored by then. Whether the group took it shows in the epochs after it.
    pub entered: Option<(u64, u64)>,
}

/// Most distinct commits of one epoch that a guard mark holds.
pub const MAX_COMMITS: usize = 64;

/// The name of a guard mark.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GuardId {
    /// Who owns the identity.
    pub owner: Owner,
    /// The identity's name.
    pub identity: String,
    /// The group id.
    pub group: Bytes,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Keys that are not destroyed.
    pub keys: u64,
    /// Identities.
    pub identities: u64,
    /// Storages.
    pub storages: u64,
}

/// How the registry writes a [`GenerationId`].
mod generation_id {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::GenerationId;

    pub(super) fn serialize<S: Serializer>(id: &GenerationId, s: S) -> Result<S::Ok, S::Error> {
        id.as_bytes().serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<GenerationId, D::Error> {
        <[u8; 16]>::deserialize(d).map(GenerationId::from_bytes)
    }
}

/// How the registry writes a [`KeyBlob`].
mod key_blob {
    use mlskeyd_protocol::v1::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::KeyBlob;

    pub(super) fn serialize<S: Serializer>(blob: &KeyBlob, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(blob.as_bytes())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<KeyBlob, D::Error> {
        Bytes::deserialize(d).map(|bytes| KeyBlob::new(bytes.0))
    }
}
