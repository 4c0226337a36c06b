//! Storages that get another owner.

use std::collections::BTreeSet;

use mlskeyd_protocol::v1::{KeyId, Owner};

use super::rows::{self, StorageRow};
use super::storages::{attach_to, detach};
use crate::store::column;
use crate::store::error::StoreError;
use crate::store::writer::Tx;

impl StorageRow {
    pub(in crate::store) const fn id(&self) -> u64 {
        self.id
    }

    pub(in crate::store) fn name(&self) -> &str {
        &self.name
    }
}

/// The owner's storages, by name.
pub(in crate::store) fn storages_of(
    tx: &Tx<'_>,
    owner: &Owner,
) -> Result<Vec<StorageRow>, StoreError> {
    let mut found = rows::storages(tx, "uid = ?1 AND app = ?2", (owner.uid, &owner.app))?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The keys that records of the storage name, or named last.
pub(in crate::store) fn keys_of(
    tx: &Tx<'_>,
    storage: &StorageRow,
) -> Result<BTreeSet<KeyId>, StoreError> {
    let of_storage = "record IN (SELECT id FROM records WHERE storage = ?1)";
    let claims = rows::claims(tx, of_storage, [column(storage.id)])?;
    Ok(claims.into_iter().map(|claim| claim.key).collect())
}

/// The storages whose records name the key, or named it last.
pub(in crate::store) fn storages_naming(
    tx: &Tx<'_>,
    key: &KeyId,
) -> Result<BTreeSet<u64>, StoreError> {
    let claims = rows::claims_of_key(tx, key)?;
    Ok(claims.into_iter().map(|claim| claim.storage).collect())
}

/// Was it attached, and nothing more?
pub(in crate::store) fn holds_nothing(
    tx: &Tx<'_>,
    storage: &StorageRow,
) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM records WHERE storage = ?1
        UNION ALL SELECT 1 FROM own_leaves WHERE storage = ?1 LIMIT 1";
    let mut statement = tx.conn.prepare_cached(sql)?;
    Ok(!statement.exists([column(storage.id)])?)
}

/// These storages are the new owner's, in the place of those of the same name that make way.
/// Connections of the owner before have them no more: what those left open is in doubt.
pub(in crate::store) fn hand_over(
    tx: &mut Tx<'_>,
    to: &Owner,
    storages: Vec<StorageRow>,
    make_way: Vec<StorageRow>,
) -> Result<(), StoreError> {
    for storage in storages {
        detach(tx, storage.id);
        let mut row = StorageRow {
            owner: to.clone(),
            attached_run: None,
            gone_since: storage.gone_since.or(Some(tx.now.observed)),
            ..storage
        };
        let mut connections = Vec::new();
        if let Some(other) = make_way.iter().find(|it| it.name == row.name) {
            connections = detach(tx, other.id);
            tx.conn
                .prepare_cached("DELETE FROM storages WHERE id = ?1")?
                .execute([column(other.id)])?;
            // What its app said last.
            row.ends = other.ends;
            row.last_attached = other.last_attached;
            row.attached_run = other.attached_run;
            row.gone_since = other.gone_since;
        }
        rows::put_storage(tx, &row)?;
        for connection in connections {
            attach_to(tx, row.id, connection);
        }
    }
    Ok(())
}
