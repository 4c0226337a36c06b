//! Claiming and settling.

use std::collections::BTreeSet;

use mlskeyd_protocol::v1::{
    Bytes, Claim, Claimed, Housekeeping, KeyId, Owner, Record, Settle, Settlement,
};
use rusqlite::params;

use super::rows::{self, ClaimRow, RecordRow};
use super::{housekeeping, release, storages};
use crate::failpoint;
use crate::store::error::StoreError;
use crate::store::types::{Binding, KeyRecord, MAX_GROUPS, Wait};
use crate::store::writer::Tx;
use crate::store::{column, keys};

/// Holds what the record holds and will hold, until that is settled.
pub(in crate::store) fn claim(
    tx: &mut Tx<'_>,
    owner: &Owner,
    claim: &Claim,
) -> Result<Claimed, StoreError> {
    let storage = storages::get_or_create(tx, owner, &claim.storage)?.id;
    let Sorted { alive, lost } = sort(tx, owner, &claim.keys)?;
    let known = rows::record(tx, storage, &claim.record)?;
    let generation = match known {
        None if alive.is_empty() => 0,
        Some(row) if says_the_same(tx, &row, &alive)? => row.generation,
        known => hold(tx, storage, &claim.record, known, alive)?,
    };
    failpoint::hit("store.claim.before_commit");
    Ok(Claimed {
        generation,
        lost,
        housekeeping: housekeeping::of(tx, storage)?,
    })
}

struct Sorted {
    alive: Vec<KeyRecord>,
    lost: Vec<KeyId>,
}

/// Which of these keys can be claimed?
fn sort(tx: &Tx<'_>, owner: &Owner, asked: &[KeyId]) -> Result<Sorted, StoreError> {
    let mut sorted = Sorted {
        alive: Vec::new(),
        lost: Vec::new(),
    };
    for id in asked.iter().collect::<BTreeSet<_>>() {
        match keys::get(tx.conn, tx.mac, id) {
            Ok(Some(key)) if key.owner == *owner && key.is_active() => sorted.alive.push(key),
            Ok(_) => sorted.lost.push(*id),
            // One bad row must not keep the storage from claiming its others.
            Err(error @ StoreError::Tampered { .. }) => {
                tracing::error!(%error, "a key that is claimed does not verify");
                sorted.lost.push(*id);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(sorted)
}

/// Is this claim the newest one over again, and is no key waiting for it?
fn says_the_same(tx: &Tx<'_>, row: &RecordRow, keys: &[KeyRecord]) -> Result<bool, StoreError> {
    let mut claims = rows::claims_of_record(tx, row.id)?;
    claims.retain(|claim| claim.generation == row.generation);
    let before = tx.live.in_doubt_before(row.storage).unwrap_or(0);
    // To settle a claim that seemed to end would bring it back.
    let none_in_doubt = !claims.iter().any(|claim| {
        let is_held = claim.released.is_none();
        claim.is_in_doubt(before) || (!is_held && claim.unsettled.is_some())
    });
    let held: BTreeSet<KeyId> = claims
        .into_iter()
        .filter(|claim| claim.released.is_none())
        .map(|claim| claim.key)
        .collect();
    let asked: BTreeSet<KeyId> = keys.iter().map(|key| key.id).collect();
    let none_waits = keys.iter().all(|key| key.wait == Wait::None);
    Ok(held == asked && none_waits && none_in_doubt && !row.dead)
}

fn hold(
    tx: &mut Tx<'_>,
    storage: u64,
    record: &Record,
    known: Option<RecordRow>,
    alive: Vec<KeyRecord>,
) -> Result<u64, StoreError> {
    let generation = tx.next_number();
    // A row that does not verify is written anew in its place: what it holds is
    // held on, until this claim is settled.
    let id = rows::record_id(tx, storage, record)?.unwrap_or(generation);
    let mut row = known.unwrap_or_else(|| RecordRow::new(id, storage, record, generation));
    row.generation = generation;
    // What is about to be deleted stays dead if it is not.
    row.dead &= alive.is_empty();
    if let Record::Update { public_key } = record {
        let has_leaf = rows::may_be_own_leaf(tx, storage, public_key)?;
        row.unbound = (!has_leaf).then_some(tx.now.observed);
        row.group = rows::group_of_leaf(tx, storage, public_key)?.or(row.group);
    }
    rows::put_record(tx, &row)?;
    for claim in rows::claims_of_record(tx, row.id)? {
        let is_replaced = !alive.iter().any(|key| key.id == claim.key);
        if claim.released.is_none() && is_replaced {
            let unsettled = Some(generation);
            rows::put_claim(tx, &ClaimRow { unsettled, ..claim })?;
        }
    }
    for mut key in alive {
        rows::check_takes_claim(tx, row.id, &key.id)?;
        let claim = ClaimRow {
            record: row.id,
            storage,
            key: key.id,
            generation,
            released: None,
            unsettled: Some(generation),
        };
        rows::put_claim(tx, &claim)?;
        let mut changed = key.wait != Wait::None;
        key.wait = Wait::None;
        if let Record::Epoch { group, .. } = record {
            changed |= join(tx, storage, &mut key, group)?;
        }
        if changed {
            keys::put(tx, key)?;
        }
    }
    Ok(generation)
}

/// An epoch record claims the leaf key of a KeyPackage: the KeyPackage has
/// served to join this group. Answers whether the key's binding changed.
fn join(tx: &Tx<'_>, storage: u64, key: &mut KeyRecord, group: &Bytes) -> Result<bool, StoreError> {
    let admitted = key.binding.admits(group);
    let Binding::LeafOfKeyPackage {
        init,
        last_resort,
        groups,
    } = &mut key.binding
    else {
        return Ok(false);
    };
    if !admitted {
        return Ok(false);
    }
    if init.is_some() && !*last_resort {
        for claim in rows::claims_of_key(tx, &key.id)? {
            let row = rows::record_by_id(tx, claim.record)?;
            let Some(row) = row.filter(|row| row.storage == storage) else {
                continue;
            };
            let is_package = matches!(row.record, Record::KeyPackage { .. });
            if is_package && claim.released.is_none() && row.joined.is_none() {
                rows::put_record(
                    tx,
                    &RecordRow {
                        joined: Some(group.clone()),
                        ..row
                    },
                )?;
            }
        }
    }
    let is_new = !groups.contains(group) && groups.len() < MAX_GROUPS;
    if is_new {
        groups.push(group.clone());
    }
    Ok(is_new)
}

/// Drops what the storage no longer holds.
pub(in crate::store) fn settle(
    tx: &mut Tx<'_>,
    owner: &Owner,
    settle: &Settle,
) -> Result<Housekeeping, StoreError> {
    let Some(storage) = rows::storage(tx, owner, &settle.storage)? else {
        return Ok(Housekeeping::default());
    };
    for settlement in &settle.settlements {
        match settlement {
            Settlement::Written { record, generation } => {
                if let Some(row) = rows::record(tx, storage.id, record)? {
                    written(tx, &row, *generation)?;
                }
            }
            Settlement::Found {
                record,
                generation,
                keys,
            } => {
                if let Some(row) = rows::record(tx, storage.id, record)? {
                    found(tx, &row, *generation, keys)?;
                }
            }
            Settlement::Deleted { record, generation } => {
                if let Some(row) = rows::record(tx, storage.id, record)? {
                    deleted(tx, row, *generation)?;
                }
            }
        }
    }
    failpoint::hit("store.settle.before_commit");
    housekeeping::of(tx, storage.id)
}

fn written(tx: &mut Tx<'_>, row: &RecordRow, generation: u64) -> Result<(), StoreError> {
    if row.generation != generation {
        return Ok(());
    }
    let mut ended = Vec::new();
    for claim in rows::claims_of_record(tx, row.id)? {
        let is_held = claim.released.is_none();
        if claim.generation == generation {
            if claim.unsettled.is_none() {
                continue;
            }
            // A look may not have seen what was not yet committed.
            end_wait(tx, &claim.key)?;
            rows::put_claim(
                tx,
                &ClaimRow {
                    released: None,
                    unsettled: None,
                    ..claim
                },
            )?;
        } else if is_held {
            ended.push(claim);
        }
    }
    release(tx, ended)?;
    if let Record::Epoch {
        group,
        epoch,
        leaf_index,
    } = &row.record
    {
        retire_older(tx, row.storage, group, *epoch, *leaf_index)?;
    }
    rows::delete_if_empty(tx, row.id)
}

fn end_wait(tx: &mut Tx<'_>, key: &KeyId) -> Result<(), StoreError> {
    match keys::get(tx.conn, tx.mac, key)? {
        Some(key) if key.is_active() && key.wait != Wait::None => {
            let wait = Wait::None;
            keys::put(tx, KeyRecord { wait, ..key })
        }
        _ => Ok(()),
    }
}

/// What the claim of this generation left open is not any more.
fn found(
    tx: &mut Tx<'_>,
    row: &RecordRow,
    generation: u64,
    keys: &[KeyId],
) -> Result<(), StoreError> {
    let mut absent = Vec::new();
    for claim in rows::claims_of_record(tx, row.id)? {
        if claim.released.is_some() || claim.unsettled != Some(generation) {
            continue;
        }
        if keys.contains(&claim.key) {
            let unsettled = None;
            rows::put_claim(tx, &ClaimRow { unsettled, ..claim })?;
        } else {
            absent.push(claim);
        }
    }
    release(tx, absent)
}

/// OpenMLS reads the newest epoch's key pairs only, and leaves older ones
/// behind now and then.
fn retire_older(
    tx: &Tx<'_>,
    storage: u64,
    group: &Bytes,
    newest: u64,
    own_index: u32,
) -> Result<(), StoreError> {
    let condition = "storage = ?1 AND group_id = ?2 AND dead = 0";
    for row in rows::records(tx, condition, params![column(storage), group.0])? {
        let Record::Epoch {
            epoch, leaf_index, ..
        } = row.record
        else {
            continue;
        };
        if leaf_index == own_index && epoch < newest && rows::holds_keys(tx, row.id)? {
            rows::put_record(tx, &RecordRow { dead: true, ..row })?;
        }
    }
    Ok(())
}

fn deleted(tx: &mut Tx<'_>, row: RecordRow, generation: Option<u64>) -> Result<(), StoreError> {
    if generation.is_some_and(|known| row.generation > known) {
        return Ok(());
    }
    let mut ended = rows::claims_of_record(tx, row.id)?;
    ended.retain(|claim| claim.released.is_none());
    if let Some(group) = &row.joined {
        for claim in &ended {
            consume(tx, &claim.key, group)?;
        }
    }
    release(tx, ended)?;
    if let Some(row) = rows::record_by_id(tx, row.id)? {
        rows::put_record(
            tx,
            &RecordRow {
                joined: None,
                dead: false,
                unbound: None,
                ..row
            },
        )?;
        rows::delete_if_empty(tx, row.id)?;
    }
    Ok(())
}

/// The KeyPackage served and is gone: its init key opens nothing any more.
pub(super) fn consume(tx: &mut Tx<'_>, key: &KeyId, group: &Bytes) -> Result<(), StoreError> {
    let Some(mut key) = keys::get(tx.conn, tx.mac, key)? else {
        return Ok(());
    };
    if let Binding::Init { consumed_by, .. } = &mut key.binding
        && consumed_by.is_none()
    {
        *consumed_by = Some(group.clone());
        keys::put(tx, key)?;
    }
    Ok(())
}
