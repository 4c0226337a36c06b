//! What a storage is told to do next.

use std::collections::BTreeSet;

use mlskeyd_protocol::v1::{Bytes, Housekeeping, Joined, KeyId, Look, Record};
use rusqlite::params;

use super::rows::{self, ClaimRow, RecordRow};
use crate::store::error::StoreError;
use crate::store::row;
use crate::store::types::KeyRecord;
use crate::store::writer::Tx;
use crate::store::{column, keys, seconds};

/// Most KeyPackages, dead records and groups, each, that one answer names.
const MAX_RECORDS: usize = 64;

/// Most keys that one answer asks to look for, for either reason.
const MAX_LOOKS: usize = 16;

/// Of so many claims that are in doubt the keys are taken: a key may have several.
const MAX_DOUBTS: usize = 64;

/// A look that was asked for and not answered is asked for again after so many
/// seconds, or when the storage is attached again.
const ASK_AGAIN: u64 = 60;

/// All that is due for this storage, within bounds.
pub(super) fn of(tx: &mut Tx<'_>, storage: u64) -> Result<Housekeeping, StoreError> {
    Ok(Housekeeping {
        joined: joined(tx, storage)?,
        dead: dead(tx, storage)?,
        ending: ending(tx, storage)?,
        looks: looks(tx, storage)?,
    })
}

fn joined(tx: &Tx<'_>, storage: u64) -> Result<Vec<Joined>, StoreError> {
    let rows: Vec<RecordRow> = row::first(
        tx,
        "storage = ?1 AND joined = 1",
        [column(storage)],
        MAX_RECORDS,
        |_| Ok(true),
    )?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            row.joined.map(|group| Joined {
                record: row.record,
                group,
            })
        })
        .collect())
}

fn dead(tx: &Tx<'_>, storage: u64) -> Result<Vec<Record>, StoreError> {
    let mut dead: Vec<RecordRow> = row::first(
        tx,
        "storage = ?1 AND dead = 1",
        [column(storage)],
        MAX_RECORDS,
        |_| Ok(true),
    )?;
    let judged = tx.ago(tx.settings.grace);
    let mut unbound = row::first(
        tx,
        "storage = ?1 AND unbound <= ?2 AND dead = 0",
        params![column(storage), judged],
        MAX_RECORDS.saturating_sub(dead.len()),
        |_| Ok(true),
    )?;
    dead.append(&mut unbound);
    Ok(dead.into_iter().map(|row| row.record).collect())
}

/// Groups whose end a connection that is gone has begun.
fn ending(tx: &Tx<'_>, storage: u64) -> Result<Vec<Bytes>, StoreError> {
    let Some(before) = tx.live.in_doubt_before(storage) else {
        return Ok(Vec::new());
    };
    let rows: Vec<RecordRow> = row::first(
        tx,
        "storage = ?1 AND ending < ?2",
        [column(storage), column(before)],
        MAX_RECORDS,
        |_| Ok(true),
    )?;
    Ok(rows.into_iter().filter_map(|row| row.group).collect())
}

/// What this storage is to look for, and where.
fn looks(tx: &mut Tx<'_>, storage: u64) -> Result<Vec<Look>, StoreError> {
    // Most calls find that there is nothing to search for.
    let due = tx
        .live
        .look_from
        .get(&storage)
        .is_some_and(|from| *from <= tx.now.observed);
    if !due || !tx.live.attached.contains_key(&storage) {
        return Ok(Vec::new());
    }
    // The last look: keys whose grace is over, and the records that last named
    // them.
    const NAMED_HERE: &str = "EXISTS (SELECT 1 FROM claims WHERE claims.key = keys.id
        AND claims.storage = ?1 AND claims.released IS NOT NULL)";
    let grace = tx.settings.grace;
    let keys: Vec<KeyRecord> = row::first(
        tx,
        &format!("wait = 3 AND since <= ?2 AND state = 1 AND {NAMED_HERE} ORDER BY since"),
        params![column(storage), tx.ago(grace)],
        MAX_LOOKS,
        |_| Ok(true),
    )?;
    let mut looks = Vec::new();
    for key in &keys {
        let mut records = Vec::new();
        for claim in rows::remembered_of_key(tx, &key.id)? {
            if claim.storage == storage {
                records.extend(rows::record_by_id(tx, claim.record)?.map(|row| row.record));
            }
        }
        looks.push(Look {
            key: key.id,
            records,
        });
    }
    looks.append(&mut doubts(tx, storage)?);
    let next_due = rows::minimum(
        tx,
        &format!("SELECT min(since) FROM keys WHERE wait = 3 AND since > ?2 AND state = 1 AND {NAMED_HERE}"),
        params![column(storage), tx.ago(grace).unwrap_or(-1)],
    )?
    .map(|since| since.saturating_add(seconds(grace)));
    let ask_again = (!looks.is_empty()).then_some(tx.now.observed.saturating_add(ASK_AGAIN));
    match next_due.into_iter().chain(ask_again).min() {
        Some(from) => tx.live.look_from.insert(storage, from),
        None => tx.live.look_from.remove(&storage),
    };
    Ok(looks)
}

/// Keys of which a connection that is gone did not say what became of them: its
/// process died, or connected anew.
fn doubts(tx: &Tx<'_>, storage: u64) -> Result<Vec<Look>, StoreError> {
    let Some(before) = tx.live.in_doubt_before(storage) else {
        return Ok(Vec::new());
    };
    // What does not verify could not be answered for.
    let is_known = |claim: &ClaimRow| {
        Ok(matches!(
            keys::get(tx.conn, tx.mac, &claim.key),
            Ok(Some(_))
        ))
    };
    let in_doubt = rows::in_doubt(tx, storage, before, MAX_DOUBTS, is_known)?;
    let in_doubt: BTreeSet<KeyId> = in_doubt.into_iter().map(|claim| claim.key).collect();
    let mut looks = Vec::new();
    for key in in_doubt {
        if looks.len() >= MAX_LOOKS {
            break;
        }
        let mut records = Vec::new();
        for claim in rows::key_in_doubt(tx, storage, &key, before)? {
            records.extend(rows::record_by_id(tx, claim.record)?.map(|row| row.record));
        }
        if !records.is_empty() {
            looks.push(Look { key, records });
        }
    }
    Ok(looks)
}
