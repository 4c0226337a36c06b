//! Claims: which record of which storage still needs which key.
//!
//! The order that makes it crash-safe, for replacing the keys O of a record by
//! N: [`Claim`] (the daemon durably holds both), the write to the storage,
//! [`Settlement::Written`] (the daemon drops what only O named). For a delete:
//! the delete in the storage, then [`Settlement::Deleted`]; a record that is
//! never written again is claimed for no keys first. All of it is idempotent,
//! and what a crash leaves open the storage's next process is asked to look for.

use serde::{Deserialize, Serialize};

use crate::handle::KeyId;
use crate::secret::Bytes;

/// A record of an OpenMLS storage that can hold handles, or decides which
/// records live. Byte strings are raw, without any codec's framing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Record {
    /// A group's state; names the new key while a commit is pending.
    GroupState {
        /// The group id.
        group: Bytes,
    },
    /// The HPKE key pairs of one epoch of a member.
    Epoch {
        /// The group id.
        group: Bytes,
        /// The epoch.
        epoch: u64,
        /// The member's leaf index.
        leaf_index: u32,
    },
    /// The key pair of an Update that was proposed.
    Update {
        /// The HPKE public key, which is also the record's key.
        public_key: Bytes,
    },
    /// A KeyPackage with its private keys.
    KeyPackage {
        /// The KeyPackageRef.
        reference: Bytes,
    },
}

/// 'This record of this storage will hold these keys.' Said before the record
/// is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The storage's name, 1 to 255 bytes of UTF-8, given by the app.
    pub storage: String,
    /// The record.
    pub record: Record,
    /// The keys that it will hold: at most
    /// [`MAX_CLAIM_KEYS`](crate::limits::MAX_CLAIM_KEYS).
    pub keys: Vec<KeyId>,
}

/// The answer to a [`Claim`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// Names this claim when it is settled.
    pub generation: u64,
    /// Keys that could not be claimed: destroyed already, or not the caller's.
    /// Never to be passed over in silence.
    pub lost: Vec<KeyId>,
    /// What the storage should do next.
    pub housekeeping: Housekeeping,
}

/// What became of a record in the storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Settlement {
    /// The write that this claim announced is done (and committed). Ignored if
    /// a newer claim for the record was made since.
    Written {
        /// The record.
        record: Record,
        /// [`Claimed::generation`].
        generation: u64,
    },
    /// The write or delete that this claim announced was rolled back, and this is
    /// what the record holds. Says nothing of what is settled already; ignored if
    /// a newer claim for the record was made since.
    Found {
        /// The record.
        record: Record,
        /// [`Claimed::generation`].
        generation: u64,
        /// The keys in it: at most
        /// [`MAX_CLAIM_KEYS`](crate::limits::MAX_CLAIM_KEYS). None, if it is not
        /// there.
        keys: Vec<KeyId>,
    },
    /// The record is deleted (and that is committed).
    Deleted {
        /// The record.
        record: Record,
        /// The newest generation of the record that the caller knows; a newer
        /// claim makes this ignored. `None`: whatever there is.
        generation: Option<u64>,
    },
}

/// Reports what became of records: at most
/// [`MAX_RECORDS`](crate::limits::MAX_RECORDS) at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settle {
    /// The storage's name.
    pub storage: String,
    /// In the order in which it happened.
    pub settlements: Vec<Settlement>,
}

/// An event of a storage that decides which records live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// A leaf with this encryption key is among the group's own leaf nodes: an
    /// Update record with this public key belongs to this group.
    OwnLeaf {
        /// The group id.
        group: Bytes,
        /// The leaf's encryption key.
        public_key: Bytes,
    },
    /// The group's own leaf nodes were deleted.
    OwnLeavesDeleted {
        /// The group id.
        group: Bytes,
    },
    /// The group's state is about to be written as inactive, or deleted. If the
    /// storage does not say how that ended, its next process is asked.
    GroupEnding {
        /// The group id.
        group: Bytes,
        /// The member's leaf index; `None` if the storage no longer knows it.
        leaf_index: Option<u32>,
    },
    /// The end that was begun did not come: the group's state is there and not
    /// inactive.
    GroupLives {
        /// The group id.
        group: Bytes,
    },
    /// The end that an earlier process began did come: the group's state is
    /// inactive, or not there. Says nothing of what was claimed since it began.
    GroupGone {
        /// The group id.
        group: Bytes,
    },
    /// The group became inactive, or was deleted.
    GroupEnded {
        /// The group id.
        group: Bytes,
        /// The member's leaf index; `None` if the storage no longer knows it: then
        /// it is the one that was said when the end began.
        leaf_index: Option<u32>,
    },
}

/// Reports an event of a storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The storage's name.
    pub storage: String,
    /// What happened, in order: at most
    /// [`MAX_RECORDS`](crate::limits::MAX_RECORDS).
    pub notes: Vec<Note>,
}

/// What a storage should do next; empty most of the time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Housekeeping {
    /// KeyPackages that served to join a group: once the group's state is
    /// written or read, they are to be deleted.
    pub joined: Vec<Joined>,
    /// Records that died by meaning: delete them and settle that.
    pub dead: Vec<Record>,
    /// Groups whose end an earlier process began: say whether they are gone or live.
    pub ending: Vec<Bytes>,
    /// Read these records again and answer with [`Looked`]: the last look before
    /// keys are destroyed, or one at what an earlier process left open.
    pub looks: Vec<Look>,
}

impl Housekeeping {
    /// Is there nothing to do?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            joined,
            dead,
            ending,
            looks,
        } = self;
        joined.is_empty() && dead.is_empty() && ending.is_empty() && looks.is_empty()
    }
}

/// A KeyPackage that served to join a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The KeyPackage's record.
    pub record: Record,
    /// The group id.
    pub group: Bytes,
}

/// Do these records still hold the key? They are the last that named it before it
/// is destroyed, or a process of the storage claimed it for them and never said
/// that it wrote them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// The key.
    pub key: KeyId,
    /// The records.
    pub records: Vec<Record>,
}

/// What was found by a [`Look`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// The storage's name.
    pub storage: String,
    /// For each key that was looked for, the records that do hold it. No record:
    /// this storage does not need the key.
    pub found: Vec<Look>,
}
