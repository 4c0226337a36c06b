//! Claims: which record of which storage still needs which key.
//!
//! A claim is no use of a key: of these requests only what goes wrong is on
//! record.

use mlskeyd_policies::Action;
use mlskeyd_protocol::limits::{
    MAX_CLAIM_KEYS, MAX_GROUP_ID, MAX_PUBLIC_KEY, MAX_RECORDS, MAX_REFERENCE,
};
use mlskeyd_protocol::v1::{
    Claim, Claimed, Failure, Housekeeping, KeyId, Looked, Note, Record, Report, Settle, Settlement,
};

use super::generate::check_name;
use super::{PlainRequest, Session, failure};
use crate::audit::{self, AuditOutcome, Durability};

/// Connects a storage to this connection.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The storage's name.
    pub storage: String,
    /// Does it end with its connection?
    pub ends: bool,
}

impl PlainRequest for Attach {
    type Reply = Housekeeping;
    const ACTION: Action = Action::ManageStorage;

    fn bounds(&self) -> Result<(), Failure> {
        check_name("a storage's name", &self.storage)
    }

    async fn run(self, session: &Session) -> Result<Housekeeping, Failure> {
        let registry = &session.custody().registry;
        registry
            .attach(
                &session.caller().owner,
                self.storage,
                self.ends,
                session.connection(),
            )
            .await
            .map_err(failure::of_store)
    }
}

impl PlainRequest for Claim {
    type Reply = Claimed;
    const ACTION: Action = Action::ManageStorage;

    fn bounds(&self) -> Result<(), Failure> {
        check_name("a storage's name", &self.storage)?;
        check_record(&self.record)?;
        check_count(self.keys.len(), MAX_CLAIM_KEYS)
    }

    async fn run(self, session: &Session) -> Result<Claimed, Failure> {
        let registry = &session.custody().registry;
        let claimed = registry
            .claim(&session.caller().owner, self)
            .await
            .map_err(failure::of_store)?;
        if let Some(first) = claimed.lost.first() {
            session.record_lost(*first, claimed.lost.len()).await?;
        }
        Ok(claimed)
    }
}

impl PlainRequest for Settle {
    type Reply = Housekeeping;
    const ACTION: Action = Action::ManageStorage;

    fn bounds(&self) -> Result<(), Failure> {
        check_name("a storage's name", &self.storage)?;
        check_count(self.settlements.len(), MAX_RECORDS)?;
        self.settlements
            .iter()
            .try_for_each(|settlement| match settlement {
                Settlement::Written { record, .. } | Settlement::Deleted { record, .. } => {
                    check_record(record)
                }
                Settlement::Found { record, keys, .. } => {
                    check_count(keys.len(), MAX_CLAIM_KEYS)?;
                    check_record(record)
                }
            })
    }

    async fn run(self, session: &Session) -> Result<Housekeeping, Failure> {
        let custody = session.custody();
        let next = custody.registry.settle(&session.caller().owner, self).await;
        custody.due.notify_one();
        next.map_err(failure::of_store)
    }
}

impl PlainRequest for Report {
    type Reply = Housekeeping;
    const ACTION: Action = Action::ManageStorage;

    fn bounds(&self) -> Result<(), Failure> {
        check_name("a storage's name", &self.storage)?;
        check_count(self.notes.len(), MAX_RECORDS)?;
        self.notes.iter().try_for_each(|note| match note {
            Note::OwnLeaf { group, public_key } => {
                check_length(group.len(), MAX_GROUP_ID)?;
                check_length(public_key.len(), MAX_PUBLIC_KEY)
            }
            Note::OwnLeavesDeleted { group }
            | Note::GroupEnding { group, .. }
            | Note::GroupLives { group }
            | Note::GroupGone { group }
            | Note::GroupEnded { group, .. } => check_length(group.len(), MAX_GROUP_ID),
        })
    }

    async fn run(self, session: &Session) -> Result<Housekeeping, Failure> {
        let custody = session.custody();
        let next = custody.registry.report(&session.caller().owner, self).await;
        custody.due.notify_one();
        next.map_err(failure::of_store)
    }
}

impl PlainRequest for Looked {
    type Reply = Housekeeping;
    const ACTION: Action = Action::ManageStorage;

    fn bounds(&self) -> Result<(), Failure> {
        check_name("a storage's name", &self.storage)?;
        check_count(self.found.len(), MAX_RECORDS)?;
        self.found.iter().try_for_each(|look| {
            check_count(look.records.len(), MAX_RECORDS)?;
            look.records.iter().try_for_each(check_record)
        })
    }

    async fn run(self, session: &Session) -> Result<Housekeeping, Failure> {
        let custody = session.custody();
        let next = custody.registry.looked(&session.caller().owner, self).await;
        custody.due.notify_one();
        next.map_err(failure::of_store)
    }
}

impl Session {
    /// A record that claims what is gone is an event that is never silent.
    /// One for each claim, whatever the number of its keys.
    async fn record_lost(&self, key: KeyId, number: usize) -> Result<(), Failure> {
        tracing::warn!(%key, number, caller = %self.caller().owner, "a record names keys that are gone");
        let note = AuditOutcome::Noted {
            note: format!("a record names {number} keys that are gone or not the caller's; the first is named here").into(),
        };
        let mut record = audit::Record::new("ClaimLost", note);
        record.key = Some(key);
        record.caller = Some(self.caller().for_audit());
        let audit = &self.custody().audit;
        audit
            .append(record, Durability::Now)
            .await
            .map_err(failure::of_audit)
    }
}

fn check_record(record: &Record) -> Result<(), Failure> {
    match record {
        Record::GroupState { group } | Record::Epoch { group, .. } => {
            check_length(group.len(), MAX_GROUP_ID)
        }
        Record::Update { public_key } => check_length(public_key.len(), MAX_PUBLIC_KEY),
        Record::KeyPackage { reference } => check_length(reference.len(), MAX_REFERENCE),
    }
}

fn check_length(length: usize, limit: usize) -> Result<(), Failure> {
    if length > limit {
        Err(failure::too_much("a part of a record's name", limit))
    } else {
        Ok(())
    }
}

fn check_count(count: usize, limit: usize) -> Result<(), Failure> {
    if count > limit {
        Err(failure::too_much("the list", limit))
    } else {
        Ok(())
    }
}
