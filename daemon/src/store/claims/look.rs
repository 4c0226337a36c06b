//! The answer to a look.

use std::collections::BTreeSet;

use mlskeyd_protocol::v1::{Housekeeping, KeyId, Look, Looked, Owner};

use super::claim::consume;
use super::rows::{self, ClaimRow};
use super::{end, housekeeping};
use crate::failpoint;
use crate::store::error::StoreError;
use crate::store::keys;
use crate::store::types::{KeyRecord, Wait};
use crate::store::writer::Tx;

/// Found means claimed again; absent means that this storage is done with the
/// key.
pub(in crate::store) fn looked(
    tx: &mut Tx<'_>,
    owner: &Owner,
    looked: &Looked,
) -> Result<Housekeeping, StoreError> {
    let Some(storage) = rows::storage(tx, owner, &looked.storage)? else {
        return Ok(Housekeeping::default());
    };
    let mut answered = BTreeSet::new();
    for look in looked.found.iter().filter(|look| answered.insert(look.key)) {
        answer(tx, storage.id, owner, look)?;
    }
    // There may be more than one answer could name.
    tx.live.look_from.insert(storage.id, 0);
    failpoint::hit("store.looked.before_commit");
    housekeeping::of(tx, storage.id)
}

fn answer(tx: &mut Tx<'_>, storage: u64, owner: &Owner, look: &Look) -> Result<(), StoreError> {
    let key = match keys::get(tx.conn, tx.mac, &look.key) {
        Ok(Some(key)) => key,
        // One bad row must not keep the storage from its other answers.
        Ok(None) | Err(StoreError::Tampered { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    if key.owner != *owner || !key.is_active() {
        return Ok(());
    }
    match key.wait {
        Wait::None => settle_doubts(tx, storage, look),
        // An old answer must not count for a later release.
        Wait::Released { since } if tx.has_passed(since, tx.settings.grace) => {
            last_look(tx, storage, key, look)
        }
        _ => Ok(()),
    }
}

/// The storage looked for what an earlier process of its left open. What is
/// absent is released, and not yet destroyed: there is a last look for that.
fn settle_doubts(tx: &mut Tx<'_>, storage: u64, look: &Look) -> Result<(), StoreError> {
    let Some(before) = tx.live.in_doubt_before(storage) else {
        return Ok(());
    };
    let mut absent = Vec::new();
    for claim in rows::key_in_doubt(tx, storage, &look.key, before)? {
        let Some(row) = rows::record_by_id(tx, claim.record)? else {
            continue;
        };
        if look.records.contains(&row.record) {
            let unsettled = None;
            rows::put_claim(tx, &ClaimRow { unsettled, ..claim })?;
        } else {
            if let Some(group) = &row.joined {
                consume(tx, &claim.key, group)?;
            }
            absent.push(claim);
        }
    }
    end(tx, absent)
}

fn last_look(tx: &mut Tx<'_>, storage: u64, key: KeyRecord, look: &Look) -> Result<(), StoreError> {
    let (mut found, mut remembered) = (false, Vec::new());
    for claim in rows::claims_of_key(tx, &key.id)? {
        if claim.storage != storage {
            remembered.push(claim);
            continue;
        }
        // Nobody can look into a record whose row does not verify.
        let Some(row) = rows::record_by_id(tx, claim.record)? else {
            remembered.push(claim);
            continue;
        };
        if look.records.contains(&row.record) {
            // As part of the newest claim, so that the next one replaces it.
            let claim = ClaimRow {
                generation: row.generation,
                released: None,
                unsettled: None,
                ..claim
            };
            rows::put_claim(tx, &claim)?;
            found = true;
        } else {
            rows::delete_claim(tx, &claim)?;
        }
    }
    if found {
        return keys::put(
            tx,
            KeyRecord {
                wait: Wait::None,
                ..key
            },
        );
    }
    nothing_more_to_look_at(tx, &key.id, &remembered)
}

/// If no record is left to look at, a key only waits for the end of its grace.
pub(super) fn nothing_more_to_look_at(
    tx: &mut Tx<'_>,
    key: &KeyId,
    remembered: &[ClaimRow],
) -> Result<(), StoreError> {
    let Some(key) = keys::get(tx.conn, tx.mac, key)? else {
        return Ok(());
    };
    match key.wait {
        Wait::Released { since } if remembered.is_empty() => keys::put(
            tx,
            KeyRecord {
                wait: Wait::Unnamed { since },
                ..key
            },
        ),
        _ => Ok(()),
    }
}
