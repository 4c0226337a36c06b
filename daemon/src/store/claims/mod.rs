//! Claims: which record of which storage still needs which key, and what
//! becomes of keys that none needs.

mod claim;
mod due;
mod hand_over;
mod housekeeping;
mod look;
mod note;
mod rows;
mod storages;
#[cfg(test)]
mod tests;

pub(super) use claim::{claim, settle};
pub(super) use due::{destroyable, is_due, next_due, waiting};
pub(super) use hand_over::{hand_over, holds_nothing, keys_of, storages_naming, storages_of};
pub(super) use look::looked;
pub(super) use note::report;
pub(super) use rows::{ClaimRow, OwnLeafRow, RecordRow, StorageRow, storage};
pub(super) use storages::{MAX_STORAGES, attach, connection_closed, detach_all, forget, list};

use mlskeyd_protocol::v1::{Algorithm, KeyId, Record};

use super::error::StoreError;
use super::types::{KeyRecord, Wait};
use super::writer::Tx;
use super::{keys, seconds};
use rows::ClaimRow as Claimed;

/// Of one key, so many records that named it are remembered for the last look.
/// A leaf key moves from epoch to epoch, maybe thousands of times.
const REMEMBERED: usize = 8;

/// Ends claims for good. Keys that no other record claims begin to wait.
fn release(tx: &mut Tx<'_>, ended: Vec<Claimed>) -> Result<(), StoreError> {
    let unsettled = None;
    let for_good = |claim| Claimed { unsettled, ..claim };
    end(tx, ended.into_iter().map(for_good).collect())
}

/// Ends claims of one record, as it seems. One that is still unsettled holds
/// again if its settlement comes after all.
fn end(tx: &mut Tx<'_>, ended: Vec<Claimed>) -> Result<(), StoreError> {
    for claim in ended {
        let released = Some(tx.next_number());
        rows::put_claim(
            tx,
            &Claimed {
                released,
                ..claim.clone()
            },
        )?;
        let mut remembered = rows::remembered_of_key(tx, &claim.key)?;
        remembered.sort_by_key(|claim| std::cmp::Reverse(claim.released));
        for forgotten in remembered.iter().skip(REMEMBERED) {
            rows::delete_claim(tx, forgotten)?;
        }
        begin_to_wait(tx, &claim.key, &remembered)?;
    }
    Ok(())
}

/// Starts the grace of a key, if no record claims it any more.
fn begin_to_wait(tx: &mut Tx<'_>, key: &KeyId, remembered: &[Claimed]) -> Result<(), StoreError> {
    if rows::has_claims(tx, key)? {
        return Ok(());
    }
    let Some(key) = keys::get(tx.conn, tx.mac, key)? else {
        return Ok(());
    };
    let ends_by_claims = matches!(key.algorithm, Algorithm::Hpke(_)) && key.is_active();
    if !ends_by_claims || key.is_idle() {
        return Ok(());
    }
    let since = tx.now.observed;
    let wait = if remembered.is_empty() {
        Wait::Unnamed { since }
    } else {
        Wait::Released { since }
    };
    keys::put(tx, KeyRecord { wait, ..key })?;
    let look_from = since.saturating_add(seconds(tx.settings.grace));
    for claim in remembered {
        let from = tx.live.look_from.entry(claim.storage).or_insert(look_from);
        *from = look_from.min(*from);
    }
    Ok(())
}

/// A key is about to be destroyed: nothing refers to it any more. A KeyPackage
/// without its init key is of no use, so its record dies with it.
pub(super) fn key_ends(tx: &mut Tx<'_>, key: &KeyRecord) -> Result<(), StoreError> {
    for claim in rows::claims_of_key(tx, &key.id)? {
        if let Some(row) = rows::record_by_id(tx, claim.record)? {
            let was_held = claim.released.is_none() && row.joined.is_none();
            if was_held && matches!(row.record, Record::KeyPackage { .. }) {
                rows::put_record(tx, &RecordRow { dead: true, ..row })?;
            }
        }
        rows::delete_claim(tx, &claim)?;
    }
    Ok(())
}
