//! What the audit log says about one request.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use mlskeyd_protocol::v1::{Bytes, FailureCode, KeyId, Owner};
use serde::{Deserialize, Serialize};

/// Longest encoded record, in bytes. All that a caller chooses in it is bounded
/// well below.
pub(super) const MAX_RECORD: usize = 16 * 1024;

/// One entry of the audit log: who did what with which key, and what came of
/// it. Never what was signed or opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Wall time at the start of the request, in microseconds since 1970.
    pub time: u64,
    /// Who asked; `None`: the daemon did it by itself.
    pub caller: Option<AuditCaller>,
    /// Who owns what it is about, if that is somebody else.
    pub owner: Option<Owner>,
    /// The action's name, as in policies; or what the daemon did by itself.
    pub action: Cow<'static, str>,
    /// The key that was used, made or destroyed.
    pub key: Option<KeyId>,
    /// The name of the identity.
    pub identity: Option<String>,
    /// The MLS group id.
    pub group: Option<Bytes>,
    /// The MLS epoch.
    pub epoch: Option<u64>,
    /// Does a signature in it raise the guard's mark?
    pub raises: bool,
    /// The name of the device.
    pub device: Option<String>,
    /// What came of it.
    pub outcome: AuditOutcome,
    /// SHA-256 of what was signed or opened.
    pub content: Option<[u8; 32]>,
    /// Policies that are only reported, and would have refused it.
    pub would_deny: Vec<String>,
    /// What policies knew of it, as JSON, if they were asked.
    pub facts: Option<String>,
    /// How long it took, in microseconds.
    pub duration: u64,
    /// How many more requests, equal to the last one recorded of this caller,
    /// this record stands for; 0 in a record of its own.
    pub repeated: u64,
}

/// The caller, as the audit log names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditCaller {
    /// The user and the app.
    pub owner: Owner,
    /// The process id at connect time; `None` if it has none here.
    pub pid: Option<i32>,
    /// What it ran then, in words: the program, and what it was in.
    pub program: Option<String>,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditOutcome {
    /// It was permitted by the policy with this id, and served.
    Served {
        /// The policy's id.
        policy: Cow<'static, str>,
    },
    /// The policy refused it.
    Denied {
        /// The policy's id.
        policy: Cow<'static, str>,
        /// Its reason.
        reason: Cow<'static, str>,
    },
    /// It failed.
    Failed {
        /// Why.
        code: FailureCode,
    },
    /// Something that no caller asked for was noted.
    Noted {
        /// What.
        note: Cow<'static, str>,
    },
}

impl Record {
    /// A record of `action`, from now on.
    #[must_use]
    pub fn new(action: impl Into<Cow<'static, str>>, outcome: AuditOutcome) -> Self {
        Self {
            time: micros_since_1970(),
            caller: None,
            owner: None,
            action: action.into(),
            key: None,
            identity: None,
            group: None,
            epoch: None,
            raises: false,
            device: None,
            outcome,
            content: None,
            duration: 0,
            would_deny: Vec::new(),
            facts: None,
            repeated: 0,
        }
    }

    /// Was the request refused, or did it fail?
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self.outcome,
            AuditOutcome::Denied { .. } | AuditOutcome::Failed { .. }
        )
    }

    /// Are both refusals of the same caller, for the same reason, of the same
    /// action with the same key or device? The process does not matter: one that is
    /// started again and again is still in a row.
    pub(super) fn repeats(&self, earlier: &Self) -> bool {
        self.is_refusal()
            && self.asker() == earlier.asker()
            && self.owner == earlier.owner
            && self.action == earlier.action
            && self.key == earlier.key
            && self.device == earlier.device
            && self.outcome == earlier.outcome
    }

    /// Who asked.
    pub(super) fn asker(&self) -> Option<&Owner> {
        self.caller.as_ref().map(|caller| &caller.owner)
    }
}

/// A record with its number, as the log holds it. Numbers start at 1 and have
/// no gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The number.
    pub sequence: u64,
    /// The record.
    pub record: Record,
}

/// The encoding: postcard of this. A changed layout is a new variant.
#[derive(Serialize, Deserialize)]
enum Versioned<'a> {
    V1 {
        sequence: u64,
        record: Cow<'a, Record>,
    },
}

/// Encodes; `None` if the result is longer than [`MAX_RECORD`].
pub(super) fn encode(sequence: u64, record: &Record) -> Option<Vec<u8>> {
    let versioned = Versioned::V1 {
        sequence,
        record: Cow::Borrowed(record),
    };
    postcard::to_stdvec(&versioned)
        .ok()
        .filter(|bytes| bytes.len() <= MAX_RECORD)
}

/// Decodes; `None` if the bytes are not exactly one record.
pub(super) fn decode(bytes: &[u8]) -> Option<Entry> {
    match postcard::take_from_bytes(bytes).ok()? {
        (Versioned::V1 { sequence, record }, []) => Some(Entry {
            sequence,
            record: record.into_owned(),
        }),
        _ => None,
    }
}

fn micros_since_1970() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
