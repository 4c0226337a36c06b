//! Storages: which there are, and which are connected.

use std::collections::BTreeSet;

use mlskeyd_protocol::limits::MAX_NAME;
use mlskeyd_protocol::v1::{Housekeeping, Owner, StorageInfo};
use rusqlite::params;

use super::rows::{self, StorageRow};
use super::{begin_to_wait, housekeeping};
use crate::failpoint;
use crate::store::error::StoreError;
use crate::store::types::ConnectionId;
use crate::store::writer::Tx;
use crate::store::{column, keys};

/// Most storages of one owner.
pub(in crate::store) const MAX_STORAGES: u32 = 256;

/// Connects a storage to a connection.
pub(in crate::store) fn attach(
    tx: &mut Tx<'_>,
    owner: &Owner,
    name: &str,
    ends: bool,
    connection: ConnectionId,
) -> Result<Housekeeping, StoreError> {
    let storage = get_or_create(tx, owner, name)?;
    let run = Some(tx.live.meta.run);
    let storage = StorageRow {
        ends,
        last_attached: tx.now.wall,
        attached_run: run,
        gone_since: None,
        ..storage
    };
    rows::put_storage(tx, &storage)?;
    attach_to(tx, storage.id, connection);
    failpoint::hit("store.attach.before_commit");
    housekeeping::of(tx, storage.id)
}

/// The connection has the storage from now on.
pub(super) fn attach_to(tx: &mut Tx<'_>, storage: u64, connection: ConnectionId) {
    let number = tx.next_number();
    tx.live
        .attached
        .entry(storage)
        .or_default()
        .entry(connection)
        .or_insert(number);
    tx.live
        .storages_of
        .entry(connection)
        .or_default()
        .insert(storage);
    tx.live.look_from.insert(storage, 0);
}

/// No connection has the storage any more; answers which had it.
pub(super) fn detach(tx: &mut Tx<'_>, storage: u64) -> Vec<ConnectionId> {
    let connections = tx.live.attached.remove(&storage).unwrap_or_default();
    for connection in connections.keys() {
        if let Some(storages) = tx.live.storages_of.get_mut(connection) {
            storages.remove(&storage);
        }
    }
    tx.live.look_from.remove(&storage);
    connections.into_keys().collect()
}

/// The storage, which is made if it is not known: a claim must not be lost.
pub(super) fn get_or_create(
    tx: &mut Tx<'_>,
    owner: &Owner,
    name: &str,
) -> Result<StorageRow, StoreError> {
    if let Some(storage) = rows::storage(tx, owner, name)? {
        return Ok(storage);
    }
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(StoreError::Limit("bytes in a storage's name"));
    }
    let count: u32 = tx
        .conn
        .prepare_cached("SELECT count(*) FROM storages WHERE uid = ?1 AND app = ?2")?
        .query_row(params![owner.uid, owner.app], |row| row.get(0))?;
    if count >= MAX_STORAGES {
        return Err(StoreError::Limit("storages of one app"));
    }
    let storage = StorageRow {
        id: tx.next_number(),
        owner: owner.clone(),
        name: name.to_owned(),
        ends: false,
        last_attached: tx.now.wall,
        attached_run: None,
        gone_since: Some(tx.now.observed),
    };
    rows::put_storage(tx, &storage)?;
    Ok(storage)
}

/// The connection is gone, and so are its storages and its keys that were never
/// claimed.
pub(in crate::store) fn connection_closed(
    tx: &mut Tx<'_>,
    connection: ConnectionId,
) -> Result<(), StoreError> {
    for id in tx.live.storages_of.remove(&connection).unwrap_or_default() {
        let Some(connections) = tx.live.attached.get_mut(&id) else {
            continue;
        };
        connections.remove(&connection);
        if !connections.is_empty() {
            // What this one left open may be in doubt now.
            tx.live.look_from.insert(id, 0);
            continue;
        }
        tx.live.attached.remove(&id);
        for storage in rows::storages(tx, "id = ?1", [column(id)])? {
            leave(tx, storage)?;
        }
    }
    keys::orphan(tx, connection)
}

/// At start no storage is attached any more, whatever the last run left behind.
pub(in crate::store) fn detach_all(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    for storage in rows::storages(tx, "attached_run IS NOT NULL", [])? {
        leave(tx, storage)?;
    }
    Ok(())
}

fn leave(tx: &Tx<'_>, storage: StorageRow) -> Result<(), StoreError> {
    let gone_since = Some(tx.now.observed);
    rows::put_storage(
        tx,
        &StorageRow {
            attached_run: None,
            gone_since,
            ..storage
        },
    )
}

/// Forgets a storage with all of its claims; answers how many records that
/// were. There is nothing left to look at for its keys.
pub(in crate::store) fn forget(
    tx: &mut Tx<'_>,
    owner: &Owner,
    name: &str,
) -> Result<u32, StoreError> {
    let storage = rows::storage(tx, owner, name)?.ok_or(StoreError::NotFound("storage"))?;
    forget_row(tx, &storage)
}

pub(super) fn forget_row(tx: &mut Tx<'_>, storage: &StorageRow) -> Result<u32, StoreError> {
    let id = column(storage.id);
    let of_storage = "record IN (SELECT id FROM records WHERE storage = ?1)";
    let ended = rows::claims(tx, of_storage, [id])?;
    // As they are listed: a record that is only remembered holds nothing.
    let held = ended.iter().filter(|claim| claim.released.is_none());
    let records = held
        .map(|claim| claim.record)
        .collect::<BTreeSet<_>>()
        .len();
    tx.conn
        .prepare_cached("DELETE FROM storages WHERE id = ?1")?
        .execute([id])?;
    detach(tx, storage.id);
    // Each key once: many of the records may have named it.
    for key in ended.iter().map(|claim| claim.key).collect::<BTreeSet<_>>() {
        let remembered = rows::remembered_of_key(tx, &key)?;
        begin_to_wait(tx, &key, &remembered)?;
        super::look::nothing_more_to_look_at(tx, &key, &remembered)?;
    }
    Ok(u32::try_from(records).unwrap_or(u32::MAX))
}

/// All storages, by owner and name.
pub(in crate::store) fn list(tx: &Tx<'_>) -> Result<Vec<StorageInfo>, StoreError> {
    let mut infos = Vec::new();
    for storage in rows::storages(tx, "1", [])? {
        let (records, keys) = tx
            .conn
            .prepare_cached(
                "SELECT count(DISTINCT record), count(DISTINCT key) FROM claims
                 WHERE record IN (SELECT id FROM records WHERE storage = ?1) AND released IS NULL",
            )?
            .query_row(params![column(storage.id)], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        infos.push(StorageInfo {
            attached: tx.live.attached.contains_key(&storage.id),
            owner: storage.owner,
            name: storage.name,
            records,
            keys,
            last_attached: storage.last_attached,
        });
    }
    infos.sort_by(|a, b| (&a.owner, &a.name).cmp(&(&b.owner, &b.name)));
    Ok(infos)
}
