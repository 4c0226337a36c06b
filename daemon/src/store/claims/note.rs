//! Events of a storage that decide which records live.

use mlskeyd_protocol::v1::{Bytes, Housekeeping, Note, Owner, Record, Report};
use rusqlite::params;

use super::rows::{self, Ending, OwnLeafRow, RecordRow};
use super::{housekeeping, storages};
use crate::failpoint;
use crate::store::error::StoreError;
use crate::store::types::Binding;
use crate::store::writer::Tx;
use crate::store::{column, keys};

/// Most own leaf nodes that are remembered per group, the newest. OpenMLS clears them at
/// each merge.
pub(super) const MAX_OWN_LEAVES: u32 = 1024;

/// Most ends of groups of one storage that are in doubt. Of one more, a crash
/// keeps the keys.
pub(super) const MAX_ENDING: u32 = 1024;

/// Larger than all numbers that a column can hold.
const NEVER: u64 = i64::MAX.cast_unsigned();

/// Takes events in.
pub(in crate::store) fn report(
    tx: &mut Tx<'_>,
    owner: &Owner,
    report: &Report,
) -> Result<Housekeeping, StoreError> {
    let storage = storages::get_or_create(tx, owner, &report.storage)?.id;
    for note in &report.notes {
        match note {
            Note::OwnLeaf { group, public_key } => own_leaf(tx, storage, group, public_key)?,
            Note::OwnLeavesDeleted { group } => {
                own_leaves_deleted(tx, storage, group, NEVER)?;
            }
            Note::GroupEnding { group, leaf_index } => {
                group_ending(tx, storage, group, *leaf_index)?;
            }
            Note::GroupLives { group } => {
                end_of(tx, storage, group)?;
            }
            Note::GroupEnded { group, leaf_index } => {
                let begun = end_of(tx, storage, group)?.and_then(|begun| begun.leaf_index);
                own_leaves_deleted(tx, storage, group, NEVER)?;
                group_ended(tx, storage, group, leaf_index.or(begun), NEVER)?;
            }
            Note::GroupGone { group } => {
                // The group may be joined again meanwhile, and its state written
                // last: what was claimed since does not end.
                if let Some(Ending { since, leaf_index }) = end_of(tx, storage, group)? {
                    own_leaves_deleted(tx, storage, group, since)?;
                    group_ended(tx, storage, group, leaf_index, since)?;
                }
            }
        }
    }
    failpoint::hit("store.report.before_commit");
    housekeeping::of(tx, storage)
}

fn own_leaf(
    tx: &mut Tx<'_>,
    storage: u64,
    group: &Bytes,
    public_key: &Bytes,
) -> Result<(), StoreError> {
    let leaf = OwnLeafRow {
        storage,
        public_key: public_key.clone(),
        group: group.clone(),
        number: tx.next_number(),
    };
    rows::put_own_leaf(tx, &leaf)?;
    forget_oldest_leaves(tx, storage, group)?;
    if let Some(row) = update_with(tx, storage, public_key)? {
        let group = Some(group.clone());
        rows::put_record(
            tx,
            &RecordRow {
                group,
                unbound: None,
                ..row
            },
        )?;
    }
    Ok(())
}

/// A refusal would be repeated for ever. An Update record whose leaf is
/// forgotten stays with the group, and dies with it.
fn forget_oldest_leaves(tx: &Tx<'_>, storage: u64, group: &Bytes) -> Result<(), StoreError> {
    tx.conn
        .prepare_cached(
            "DELETE FROM own_leaves WHERE id IN (
               SELECT id FROM own_leaves WHERE storage = ?1 AND group_id = ?2
               ORDER BY number DESC LIMIT -1 OFFSET ?3)",
        )?
        .execute(params![column(storage), group.0, MAX_OWN_LEAVES])?;
    Ok(())
}

fn own_leaves_deleted(
    tx: &Tx<'_>,
    storage: u64,
    group: &Bytes,
    before: u64,
) -> Result<(), StoreError> {
    let mut leaves = leaves_of_group(tx, storage, group)?;
    leaves.retain(|leaf| leaf.number < before);
    tx.conn
        .prepare_cached(
            "DELETE FROM own_leaves WHERE storage = ?1 AND group_id = ?2 AND number < ?3",
        )?
        .execute(params![column(storage), group.0, column(before)])?;
    for leaf in leaves {
        let Some(row) = update_with(tx, storage, &leaf.public_key)? else {
            continue;
        };
        if !rows::may_be_own_leaf(tx, storage, &leaf.public_key)? {
            rows::put_record(
                tx,
                &RecordRow {
                    unbound: Some(tx.now.observed),
                    ..row
                },
            )?;
        }
    }
    Ok(())
}

/// Until the storage says how it went on, the end of the group is in doubt.
fn group_ending(
    tx: &mut Tx<'_>,
    storage: u64,
    group: &Bytes,
    leaf_index: Option<u32>,
) -> Result<(), StoreError> {
    let since = tx.next_number();
    let record = Record::GroupState {
        group: group.clone(),
    };
    let known = rows::record(tx, storage, &record)?;
    let id = rows::record_id(tx, storage, &record)?.unwrap_or(since);
    let mut row = known.unwrap_or_else(|| RecordRow::new(id, storage, &record, since));
    let known = row.ending.as_ref().and_then(|ending| ending.leaf_index);
    if row.ending.is_none() && rows::count_endings(tx, storage)? >= MAX_ENDING {
        return Ok(());
    }
    let leaf_index = leaf_index.or(known);
    row.ending = Some(Ending { since, leaf_index });
    rows::put_record(tx, &row)
}

/// The end of the group is in doubt no longer. Answers what was said when it
/// began, if it was.
fn end_of(tx: &Tx<'_>, storage: u64, group: &Bytes) -> Result<Option<Ending>, StoreError> {
    let record = Record::GroupState {
        group: group.clone(),
    };
    let Some(mut row) = rows::record(tx, storage, &record)? else {
        return Ok(None);
    };
    let Some(ending) = row.ending.take() else {
        return Ok(None);
    };
    rows::put_record(tx, &row)?;
    rows::delete_if_empty(tx, row.id)?;
    Ok(Some(ending))
}

/// Every epoch and Update record of that group and member dies. If the storage
/// no longer knows which member it was, and its records are of several, none
/// does: nothing is destroyed on a guess.
fn group_ended(
    tx: &Tx<'_>,
    storage: u64,
    group: &Bytes,
    leaf_index: Option<u32>,
    before: u64,
) -> Result<(), StoreError> {
    let condition = "storage = ?1 AND group_id = ?2 AND dead = 0";
    let mut of_members = Vec::new();
    for row in rows::records(tx, condition, params![column(storage), group.0])? {
        if row.generation < before
            && rows::holds_keys(tx, row.id)?
            && let Some(index) = member_of(tx, &row, group)?
        {
            of_members.push((index, row));
        }
    }
    let ended = match (leaf_index, of_members.first()) {
        (Some(index), _) => index,
        (None, Some((first, _))) if of_members.iter().all(|(index, _)| index == first) => *first,
        (None, _) => return Ok(()),
    };
    for (index, row) in of_members {
        if index == ended {
            rows::put_record(tx, &RecordRow { dead: true, ..row })?;
        }
    }
    Ok(())
}

/// The leaf index that a record belongs to: an Update record does not say so
/// itself, but its leaf was signed here.
fn member_of(tx: &Tx<'_>, row: &RecordRow, group: &Bytes) -> Result<Option<u32>, StoreError> {
    match row.record {
        Record::Epoch { leaf_index, .. } => return Ok(Some(leaf_index)),
        Record::Update { .. } => {}
        Record::GroupState { .. } | Record::KeyPackage { .. } => return Ok(None),
    }
    for claim in rows::claims_of_record(tx, row.id)? {
        let key = keys::get(tx.conn, tx.mac, &claim.key)?;
        if let Some(Binding::Leaf {
            group: bound,
            leaf_index,
        }) = key.map(|key| key.binding)
            && bound == *group
        {
            return Ok(Some(leaf_index));
        }
    }
    Ok(None)
}

fn update_with(
    tx: &Tx<'_>,
    storage: u64,
    public_key: &Bytes,
) -> Result<Option<RecordRow>, StoreError> {
    rows::record(
        tx,
        storage,
        &Record::Update {
            public_key: public_key.clone(),
        },
    )
}

fn leaves_of_group(
    tx: &Tx<'_>,
    storage: u64,
    group: &Bytes,
) -> Result<Vec<OwnLeafRow>, StoreError> {
    rows::own_leaves(
        tx,
        "storage = ?1 AND group_id = ?2",
        params![column(storage), group.0],
    )
}
