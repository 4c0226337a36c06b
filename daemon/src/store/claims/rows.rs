//! The rows behind claims.

use mlskeyd_protocol::v1::{Bytes, KeyId, Owner, Record};
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Params, params};
use serde::{Deserialize, Serialize};

use crate::store::column;
use crate::store::error::StoreError;
use crate::store::mac::name_id;
use crate::store::row::{self, Row};
use crate::store::writer::Tx;

/// Most records that name one key. A leaf key is in a few epochs of its group;
/// that of a last-resort KeyPackage in those of all groups it served to join.
pub(super) const MAX_RECORDS_OF_KEY: u32 = 1024;

/// One database of one app account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct StorageRow {
    pub(super) id: u64,
    pub(super) owner: Owner,
    pub(super) name: String,
    /// Is it forgotten when its connections are gone?
    pub(super) ends: bool,
    /// When it was last attached, in seconds since 1970.
    pub(super) last_attached: u64,
    /// The run in which it was attached and not yet detached.
    pub(super) attached_run: Option<u64>,
    /// Since when no connection has it, in observed seconds.
    pub(super) gone_since: Option<u64>,
}

impl Row for StorageRow {
    const TABLE: &'static str = "storages";
    const COLUMNS: &'static [&'static str] = &["uid", "app", "name_id", "ending", "attached_run"];

    fn columns(&self) -> Result<Vec<Value>, StoreError> {
        let ending = self.gone_since.filter(|_| self.ends);
        Ok(vec![
            self.owner.uid.into(),
            self.owner.app.clone().into(),
            name_id(&(&self.owner, &self.name))?.to_vec().into(),
            ending.map(column).into(),
            self.attached_run.map(column).into(),
        ])
    }
}

/// A record of a storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct RecordRow {
    pub(super) id: u64,
    pub(super) storage: u64,
    pub(super) record: Record,
    /// The newest claim.
    pub(super) generation: u64,
    /// The group that it belongs to, once known.
    pub(super) group: Option<Bytes>,
    /// Of a KeyPackage: the group that it served to join.
    pub(super) joined: Option<Bytes>,
    /// Did it die by meaning? The storage is told until it has deleted it.
    pub(super) dead: bool,
    /// Of an Update: since when no own leaf node holds its key, in observed
    /// seconds.
    pub(super) unbound: Option<u64>,
    /// Of a group's state: the end that was begun and not told.
    pub(super) ending: Option<Ending>,
}

/// The end of a group, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct Ending {
    /// When it was begun: larger than all numbers before.
    pub(super) since: u64,
    /// Whose membership ends.
    pub(super) leaf_index: Option<u32>,
}

impl RecordRow {
    /// A record that nothing is known of yet.
    pub(super) fn new(id: u64, storage: u64, record: &Record, generation: u64) -> Self {
        let group = match record {
            Record::GroupState { group } | Record::Epoch { group, .. } => Some(group.clone()),
            Record::Update { .. } | Record::KeyPackage { .. } => None,
        };
        Self {
            id,
            storage,
            record: record.clone(),
            generation,
            group,
            joined: None,
            dead: false,
            unbound: None,
            ending: None,
        }
    }
}

impl Row for RecordRow {
    const TABLE: &'static str = "records";
    const COLUMNS: &'static [&'static str] = &[
        "storage", "name_id", "kind", "group_id", "dead", "joined", "unbound", "ending",
    ];

    fn columns(&self) -> Result<Vec<Value>, StoreError> {
        Ok(vec![
            column(self.storage).into(),
            name_id(&self.record)?.to_vec().into(),
            kind(&self.record).into(),
            self.group.as_ref().map(|group| group.0.clone()).into(),
            self.dead.into(),
            self.joined.is_some().into(),
            self.unbound.map(column).into(),
            self.ending
                .as_ref()
                .map(|ending| column(ending.since))
                .into(),
        ])
    }
}

/// 'This record holds this key.'
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct ClaimRow {
    pub(super) record: u64,
    pub(super) storage: u64,
    pub(super) key: KeyId,
    /// The claim that said so last.
    pub(super) generation: u64,
    /// 'Held', rather: the order in which such claims ended.
    pub(super) released: Option<u64>,
    /// The newest claim of the record, as long as the storage has not said that
    /// it wrote what that says. If its process dies before, this is in doubt; and
    /// if a look then did not find the key, it is released only as it seems.
    pub(super) unsettled: Option<u64>,
}

impl ClaimRow {
    /// Does it hold, for all that is known, and was what its record holds left
    /// open before this moment?
    pub(super) fn is_in_doubt(&self, before: u64) -> bool {
        self.released.is_none() && self.unsettled.is_some_and(|since| since < before)
    }
}

impl Row for ClaimRow {
    const TABLE: &'static str = "claims";
    const COLUMNS: &'static [&'static str] = &["record", "key", "storage", "released", "unsettled"];

    fn columns(&self) -> Result<Vec<Value>, StoreError> {
        Ok(vec![
            column(self.record).into(),
            self.key.as_bytes().to_vec().into(),
            column(self.storage).into(),
            self.released.map(column).into(),
            self.unsettled.map(column).into(),
        ])
    }
}

/// 'A leaf with this key is among the group's own leaf nodes.'
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct OwnLeafRow {
    pub(super) storage: u64,
    pub(super) public_key: Bytes,
    pub(super) group: Bytes,
    /// The order in which leaves were appended.
    pub(super) number: u64,
}

impl Row for OwnLeafRow {
    const TABLE: &'static str = "own_leaves";
    const COLUMNS: &'static [&'static str] = &["storage", "public_key", "group_id", "number"];

    fn columns(&self) -> Result<Vec<Value>, StoreError> {
        Ok(vec![
            column(self.storage).into(),
            self.public_key.0.clone().into(),
            self.group.0.clone().into(),
            column(self.number).into(),
        ])
    }
}

pub(super) fn storages(
    tx: &Tx<'_>,
    condition: &str,
    params: impl Params + Clone,
) -> Result<Vec<StorageRow>, StoreError> {
    row::select(tx, condition, params)
}

/// The storage of this name. If its row does not verify, that is an error: a
/// second one of the same name would know nothing of what the first one holds.
pub(in crate::store) fn storage(
    tx: &Tx<'_>,
    owner: &Owner,
    name: &str,
) -> Result<Option<StorageRow>, StoreError> {
    let found: Vec<Result<StorageRow, StoreError>> =
        row::try_select(tx, "name_id = ?1", [name_id(&(owner, name))?])?;
    let verified = found.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(verified.into_iter().next())
}

pub(super) fn put_storage(tx: &Tx<'_>, storage: &StorageRow) -> Result<(), StoreError> {
    row::put(tx.conn, tx.mac, column(storage.id).into(), storage)
}

pub(super) fn records(
    tx: &Tx<'_>,
    condition: &str,
    params: impl Params + Clone,
) -> Result<Vec<RecordRow>, StoreError> {
    row::select(tx, condition, params)
}

pub(super) fn record(
    tx: &Tx<'_>,
    storage: u64,
    record: &Record,
) -> Result<Option<RecordRow>, StoreError> {
    let name = name_id(record)?;
    let found = records(
        tx,
        "storage = ?1 AND name_id = ?2",
        params![column(storage), name],
    )?;
    Ok(found.into_iter().next())
}

/// The id of the record's row, even if that does not verify.
pub(super) fn record_id(
    tx: &Tx<'_>,
    storage: u64,
    record: &Record,
) -> Result<Option<u64>, StoreError> {
    minimum(
        tx,
        "SELECT id FROM records WHERE storage = ?1 AND name_id = ?2",
        params![column(storage), name_id(record)?],
    )
}

pub(super) fn record_by_id(tx: &Tx<'_>, id: u64) -> Result<Option<RecordRow>, StoreError> {
    Ok(records(tx, "id = ?1", [column(id)])?.into_iter().next())
}

pub(super) fn put_record(tx: &Tx<'_>, row: &RecordRow) -> Result<(), StoreError> {
    row::put(tx.conn, tx.mac, column(row.id).into(), row)
}

const fn kind(record: &Record) -> u8 {
    match record {
        Record::GroupState { .. } => 0,
        Record::Epoch { .. } => 1,
        Record::Update { .. } => 2,
        Record::KeyPackage { .. } => 3,
    }
}

pub(super) fn claims(
    tx: &Tx<'_>,
    condition: &str,
    params: impl Params + Clone,
) -> Result<Vec<ClaimRow>, StoreError> {
    row::select(tx, condition, params)
}

pub(super) fn claims_of_record(tx: &Tx<'_>, record: u64) -> Result<Vec<ClaimRow>, StoreError> {
    claims(tx, "record = ?1", [column(record)])
}

pub(super) fn claims_of_key(tx: &Tx<'_>, key: &KeyId) -> Result<Vec<ClaimRow>, StoreError> {
    claims(tx, "key = ?1", [key.as_bytes()])
}

/// The claims of a key that ended and are remembered: few, however many hold.
pub(super) fn remembered_of_key(tx: &Tx<'_>, key: &KeyId) -> Result<Vec<ClaimRow>, StoreError> {
    claims(tx, "key = ?1 AND released IS NOT NULL", [key.as_bytes()])
}

/// Of how many groups of a storage the end is in doubt.
pub(super) fn count_endings(tx: &Tx<'_>, storage: u64) -> Result<u32, StoreError> {
    Ok(tx
        .conn
        .prepare_cached("SELECT count(*) FROM records WHERE storage = ?1 AND ending IS NOT NULL")?
        .query_row([column(storage)], |row| row.get(0))?)
}

/// Claims of a storage that were made before a moment and are in doubt.
pub(super) fn in_doubt(
    tx: &Tx<'_>,
    storage: u64,
    before: u64,
    limit: usize,
    wanted: impl FnMut(&ClaimRow) -> Result<bool, StoreError>,
) -> Result<Vec<ClaimRow>, StoreError> {
    row::first(
        tx,
        "storage = ?1 AND unsettled < ?2 AND released IS NULL ORDER BY unsettled",
        [column(storage), column(before)],
        limit,
        wanted,
    )
}

/// Those of one key.
pub(super) fn key_in_doubt(
    tx: &Tx<'_>,
    storage: u64,
    key: &KeyId,
    before: u64,
) -> Result<Vec<ClaimRow>, StoreError> {
    claims(
        tx,
        "key = ?1 AND released IS NULL AND storage = ?2 AND unsettled < ?3",
        params![key.as_bytes(), column(storage), column(before)],
    )
}

/// May a claim of the key still hold? One that does not verify may.
pub(super) fn may_be_held(tx: &Tx<'_>, key: &KeyId) -> Result<bool, StoreError> {
    let claims: Vec<Result<ClaimRow, StoreError>> =
        row::try_select(tx, "key = ?1", [key.as_bytes()])?;
    Ok(claims.iter().any(|claim| {
        claim
            .as_ref()
            .map_or(true, |claim| claim.released.is_none())
    }))
}

/// Fails if so many records name the key that one more must not: work on a key
/// goes through all that name it.
pub(super) fn check_takes_claim(tx: &Tx<'_>, record: u64, key: &KeyId) -> Result<(), StoreError> {
    let is_there = tx
        .conn
        .prepare_cached("SELECT 1 FROM claims WHERE id = ?1")?
        .exists([claim_id(column(record), key)])?;
    if is_there {
        return Ok(());
    }
    let count: u32 = tx
        .conn
        .prepare_cached("SELECT count(*) FROM (SELECT 1 FROM claims WHERE key = ?1 LIMIT ?2)")?
        .query_row(params![key.as_bytes(), MAX_RECORDS_OF_KEY], |row| {
            row.get(0)
        })?;
    if count >= MAX_RECORDS_OF_KEY {
        return Err(StoreError::Limit("records that name one key"));
    }
    Ok(())
}

pub(super) fn put_claim(tx: &Tx<'_>, claim: &ClaimRow) -> Result<(), StoreError> {
    let id = claim_id(column(claim.record), &claim.key);
    row::put(tx.conn, tx.mac, id.into(), claim)
}

/// Drops a claim, and its record if nothing else needs that.
pub(super) fn delete_claim(tx: &Tx<'_>, claim: &ClaimRow) -> Result<(), StoreError> {
    tx.conn
        .prepare_cached("DELETE FROM claims WHERE id = ?1")?
        .execute([claim_id(column(claim.record), &claim.key)])?;
    delete_if_empty(tx, claim.record)
}

/// Drops a record of which nothing is left to remember.
pub(super) fn delete_if_empty(tx: &Tx<'_>, record: u64) -> Result<(), StoreError> {
    tx.conn
        .prepare_cached(
            "DELETE FROM records WHERE id = ?1 AND dead = 0 AND joined = 0 AND ending IS NULL
               AND NOT EXISTS (SELECT 1 FROM claims WHERE record = ?1)",
        )?
        .execute([column(record)])?;
    Ok(())
}

/// A group among whose own leaf nodes a leaf with this key is.
pub(super) fn group_of_leaf(
    tx: &Tx<'_>,
    storage: u64,
    public_key: &Bytes,
) -> Result<Option<Bytes>, StoreError> {
    let rows: Vec<OwnLeafRow> = row::first(
        tx,
        "storage = ?1 AND public_key = ?2",
        params![column(storage), public_key.0],
        1,
        |_| Ok(true),
    )?;
    Ok(rows.into_iter().map(|row| row.group).next())
}

/// May a leaf with this key be among some group's own leaf nodes? A row that
/// does not verify says so, too: its Update must not die of it.
pub(super) fn may_be_own_leaf(
    tx: &Tx<'_>,
    storage: u64,
    public_key: &Bytes,
) -> Result<bool, StoreError> {
    Ok(tx
        .conn
        .prepare_cached("SELECT 1 FROM own_leaves WHERE storage = ?1 AND public_key = ?2 LIMIT 1")?
        .exists(params![column(storage), public_key.0])?)
}

pub(super) fn own_leaves(
    tx: &Tx<'_>,
    condition: &str,
    params: impl Params + Clone,
) -> Result<Vec<OwnLeafRow>, StoreError> {
    row::select(tx, condition, params)
}

pub(super) fn put_own_leaf(tx: &Tx<'_>, leaf: &OwnLeafRow) -> Result<(), StoreError> {
    let id = name_id(&(leaf.storage, &leaf.public_key, &leaf.group))?;
    row::put(tx.conn, tx.mac, Value::Blob(id.to_vec()), leaf)
}

/// Does the key have a claim that holds? Finds only; what is to be destroyed is
/// judged on [`may_be_held`].
pub(super) fn has_claims(tx: &Tx<'_>, key: &KeyId) -> Result<bool, StoreError> {
    Ok(tx
        .conn
        .prepare_cached("SELECT 1 FROM claims WHERE key = ?1 AND released IS NULL LIMIT 1")?
        .exists([key.as_bytes()])?)
}

/// Does the record hold a key, as far as the storage said? Else it is only
/// remembered for a last look.
pub(super) fn holds_keys(tx: &Tx<'_>, record: u64) -> Result<bool, StoreError> {
    Ok(tx
        .conn
        .prepare_cached("SELECT 1 FROM claims WHERE record = ?1 AND released IS NULL LIMIT 1")?
        .exists([column(record)])?)
}

/// The number that a query finds, if it finds one.
pub(super) fn minimum(
    tx: &Tx<'_>,
    sql: &str,
    params: impl Params,
) -> Result<Option<u64>, StoreError> {
    let least: Option<Option<i64>> = tx
        .conn
        .prepare_cached(sql)?
        .query_row(params, |row| row.get(0))
        .optional()?;
    Ok(least.flatten().map(i64::cast_unsigned))
}

fn claim_id(record: i64, key: &KeyId) -> Vec<u8> {
    let mut id = record.to_be_bytes().to_vec();
    id.extend_from_slice(key.as_bytes());
    id
}
