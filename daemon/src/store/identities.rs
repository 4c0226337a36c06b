//! Identities, and the permits to leave custody.

use std::sync::Arc;

use mlskeyd_protocol::limits::MAX_RETIRING;
use mlskeyd_protocol::v1::{Algorithm, Bytes, KeyId, Owner};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::keys;
use super::mac::{Row, RowMac, name_id};
use super::types::{GuardId, IdentityRecord, KeyRecord, MadeKey, Rotation};
use super::writer::Tx;
use crate::failpoint;

/// Most identities of one owner.
pub(super) const MAX_IDENTITIES: u32 = 64;

impl Row for IdentityRecord {
    const TABLE: &'static str = "identities";
}

/// That an identity may leave custody in one group, to this signature key.
#[derive(Serialize, Deserialize)]
pub(super) struct Permit {
    of: GuardId,
    signature_key: Bytes,
}

impl Row for Permit {
    const TABLE: &'static str = "permits";
}

/// The identity of this name.
pub(super) fn get(
    conn: &Connection,
    mac: &RowMac,
    owner: &Owner,
    name: &str,
) -> Result<Option<IdentityRecord>, StoreError> {
    let id = name_id(&(owner, name))?;
    let row: Option<(Vec<u8>, Vec<u8>)> = conn
        .prepare_cached("SELECT body, mac FROM identities WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    row.map(|(body, tag)| mac.open(&id, &body, &tag))
        .transpose()
}

/// All identities, or an owner's, by name. Those that do not verify are left
/// out, and said loudly.
pub(super) fn list(
    conn: &Connection,
    mac: &RowMac,
    owner: Option<&Owner>,
) -> Result<Vec<IdentityRecord>, StoreError> {
    let mut statement = conn.prepare_cached(
        "SELECT id, body, mac FROM identities WHERE ?1 IS NULL OR (uid = ?1 AND app = ?2)",
    )?;
    let rows = statement.query_map(
        params![owner.map(|o| o.uid), owner.map(|o| &o.app)],
        |row| {
            Ok((
                row.get::<_, Vec<u8>>(0)?,
                row.get::<_, Vec<u8>>(1)?,
                row.get::<_, Vec<u8>>(2)?,
            ))
        },
    )?;
    let mut found = Vec::new();
    for row in rows {
        let (id, body, tag) = row?;
        match mac.open::<IdentityRecord>(&id, &body, &tag) {
            Ok(identity) if owner.is_none_or(|owner| identity.owner == *owner) => {
                found.push(identity);
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "an identity is passed over"),
        }
    }
    found.sort_by(|a, b| (&a.owner, &a.name).cmp(&(&b.owner, &b.name)));
    Ok(found)
}

/// Makes a journalled signature key visible together with its identity, so that
/// a crash leaves both or none.
pub(super) fn create(
    tx: &mut Tx<'_>,
    identity: IdentityRecord,
    made: MadeKey,
) -> Result<Arc<KeyRecord>, StoreError> {
    if get(tx.conn, tx.mac, &identity.owner, &identity.name)?.is_some() {
        return Err(StoreError::Conflict("an identity of this name"));
    }
    let count: u32 = tx
        .conn
        .prepare_cached("SELECT count(*) FROM identities WHERE uid = ?1 AND app = ?2")?
        .query_row(params![identity.owner.uid, identity.owner.app], |row| {
            row.get(0)
        })?;
    if count >= MAX_IDENTITIES {
        return Err(StoreError::Limit("identities of one app"));
    }
    let key = finish_key(tx, &identity, made)?;
    put(tx, &identity)?;
    failpoint::hit("store.create_identity.before_commit");
    Ok(key)
}

/// Makes a journalled signature key the identity's current one and gives the one
/// before its end, so that a crash leaves both or none.
pub(super) fn rotate(
    tx: &mut Tx<'_>,
    rotation: Rotation,
) -> Result<(IdentityRecord, Arc<KeyRecord>), StoreError> {
    let Rotation {
        owner,
        name,
        from,
        to,
        grace,
    } = rotation;
    let before = get(tx.conn, tx.mac, &owner, &name)?.ok_or(StoreError::NotFound("identity"))?;
    if before.key != from {
        return Err(StoreError::Conflict("a newer key of this identity"));
    }
    let mut retiring = still_retiring(tx, &before.retiring)?;
    if keys::retire(tx, &from, grace)? {
        retiring.push(from);
    }
    if retiring.len() > MAX_RETIRING {
        return Err(StoreError::Limit("keys of one identity that retire"));
    }
    let identity = IdentityRecord {
        key: to.id,
        retiring,
        ..before
    };
    let key = finish_key(tx, &identity, to)?;
    put(tx, &identity)?;
    failpoint::hit("store.rotate_identity.before_commit");
    Ok((identity, key))
}

/// Those that still sign. One whose row does not verify does not, and nothing can
/// be done about it here.
fn still_retiring(tx: &Tx<'_>, keys: &[KeyId]) -> Result<Vec<KeyId>, StoreError> {
    let mut still = Vec::new();
    for id in keys {
        match keys::get(tx.conn, tx.mac, id) {
            Ok(Some(key)) if key.is_active() => still.push(*id),
            Ok(_) => {}
            Err(error @ StoreError::Tampered { .. }) => {
                tracing::error!(%error, "a key that retires is passed over");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(still)
}

/// Makes the identity's journalled key visible.
fn finish_key(
    tx: &mut Tx<'_>,
    identity: &IdentityRecord,
    made: MadeKey,
) -> Result<Arc<KeyRecord>, StoreError> {
    let key = keys::finish_create(tx, made)?;
    let fits = key.id == identity.key
        && key.owner == identity.owner
        && key.identity.as_ref() == Some(&identity.name)
        && key.algorithm == Algorithm::Signature(identity.scheme);
    if fits {
        Ok(key)
    } else {
        Err(StoreError::Conflict("a key of another identity"))
    }
}

fn put(tx: &Tx<'_>, identity: &IdentityRecord) -> Result<(), StoreError> {
    let id = name_id(&(&identity.owner, &identity.name))?;
    let sealed = tx.mac.seal(&id, identity)?;
    tx.conn
        .prepare_cached(
            "INSERT INTO identities (id, uid, app, body, mac) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET body = ?4, mac = ?5",
        )?
        .execute(params![
            id,
            identity.owner.uid,
            identity.owner.app,
            sealed.body,
            sealed.mac
        ])?;
    Ok(())
}

/// Permits an identity to leave; replaces an earlier permit for the same group.
pub(super) fn permit_leave(
    tx: &mut Tx<'_>,
    of: GuardId,
    signature_key: Bytes,
) -> Result<(), StoreError> {
    let id = name_id(&of)?;
    let sealed = tx.mac.seal(&id, &Permit { of, signature_key })?;
    tx.conn
        .prepare_cached(
            "INSERT INTO permits (id, body, mac) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET body = ?2, mac = ?3",
        )?
        .execute(params![id, sealed.body, sealed.mac])?;
    Ok(())
}

/// The signature key to which the identity may leave.
pub(super) fn leave_permit(
    conn: &Connection,
    mac: &RowMac,
    of: &GuardId,
) -> Result<Option<Bytes>, StoreError> {
    let id = name_id(of)?;
    let row: Option<(Vec<u8>, Vec<u8>)> = conn
        .prepare_cached("SELECT body, mac FROM permits WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let permit: Option<Permit> = row
        .map(|(body, tag)| mac.open(&id, &body, &tag))
        .transpose()?;
    Ok(permit.map(|permit| permit.signature_key))
}

/// Uses a permit up; answers whether it was there, for this very key.
pub(super) fn use_leave_permit(
    tx: &mut Tx<'_>,
    of: &GuardId,
    signature_key: &Bytes,
) -> Result<bool, StoreError> {
    if leave_permit(tx.conn, tx.mac, of)?.as_ref() != Some(signature_key) {
        return Ok(false);
    }
    tx.conn
        .prepare_cached("DELETE FROM permits WHERE id = ?1")?
        .execute([name_id(of)?])?;
    Ok(true)
}
