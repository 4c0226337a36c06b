//! Identities, and the permits to leave custody.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mlskeyd_protocol::limits::MAX_RETIRING;
use mlskeyd_protocol::v1::{Algorithm, Bytes, KeyId, Owner};
use rusqlite::types::Value;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::keys;
use super::mac::{RowMac, name_id};
use super::row::{self, Row};
use super::types::{GuardId, IdentityRecord, KeyRecord, MadeKey, Recredential, Rotation};
use super::writer::Tx;
use crate::failpoint;

/// Most identities of one owner.
pub(super) const MAX_IDENTITIES: u32 = 64;

impl Row for IdentityRecord {
    const TABLE: &'static str = "identities";
    const COLUMNS: &'static [&'static str] = &["uid", "app"];

    fn columns(&self) -> Result<Vec<Value>, StoreError> {
        Ok(vec![self.owner.uid.into(), self.owner.app.clone().into()])
    }
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
    row::get(conn, mac, &name_id(&(owner, name))?)
}

/// All identities, or an owner's, by name. Those that do not verify are left
/// out, and said loudly.
pub(super) fn list(
    conn: &Connection,
    mac: &RowMac,
    owner: Option<&Owner>,
) -> Result<Vec<IdentityRecord>, StoreError> {
    let mut found: Vec<IdentityRecord> = row::select_only(
        conn,
        mac,
        "?1 IS NULL OR (uid = ?1 AND app = ?2)",
        params![owner.map(|o| o.uid), owner.map(|o| &o.app)],
    )?;
    found.sort_by(|a, b| (&a.owner, &a.name).cmp(&(&b.owner, &b.name)));
    Ok(found)
}

/// Fails if the owner has as many identities as it may.
pub(super) fn check_takes_one_more(conn: &Connection, owner: &Owner) -> Result<(), StoreError> {
    let count: u32 = conn
        .prepare_cached("SELECT count(*) FROM identities WHERE uid = ?1 AND app = ?2")?
        .query_row(params![owner.uid, owner.app], |row| row.get(0))?;
    if count >= MAX_IDENTITIES {
        return Err(StoreError::Limit("identities of one app"));
    }
    Ok(())
}

/// Makes a journalled signature key visible together with its identity, so that
/// a crash leaves both or none; only if the owner has so many others, where that matters.
pub(super) fn create(
    tx: &mut Tx<'_>,
    identity: IdentityRecord,
    made: MadeKey,
    others: Option<u64>,
) -> Result<Arc<KeyRecord>, StoreError> {
    if get(tx.conn, tx.mac, &identity.owner, &identity.name)?.is_some() {
        return Err(StoreError::Conflict("an identity of this name"));
    }
    check_takes_one_more(tx.conn, &identity.owner)?;
    if let Some(others) = others {
        let now = list(tx.conn, tx.mac, Some(&identity.owner))?.len();
        if u64::try_from(now) != Ok(others) {
            return Err(StoreError::Outrun("the number of the owner's identities"));
        }
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

/// Makes a journalled signature key visible as the one that an identity has next. One that
/// was prepared before has no certificate to come any more, and ends.
pub(super) fn prepare(
    tx: &mut Tx<'_>,
    owner: &Owner,
    name: &str,
    made: MadeKey,
) -> Result<Arc<KeyRecord>, StoreError> {
    let before = get(tx.conn, tx.mac, owner, name)?.ok_or(StoreError::NotFound("identity"))?;
    if let Some(given_up) = before.next {
        keys::retire(tx, &given_up, Duration::ZERO)?;
    }
    let (current, next) = (before.key, made.id);
    // As if it were its key: that is what it has to fit.
    let with_next = IdentityRecord {
        key: next,
        ..before
    };
    let key = finish_key(tx, &with_next, made)?;
    let identity = IdentityRecord {
        key: current,
        next: Some(next),
        ..with_next
    };
    put(tx, &identity)?;
    Ok(key)
}

/// Pins another credential, and makes the prepared key the identity's own if it is for that
/// one, so that a crash leaves both or none.
pub(super) fn recredential(
    tx: &mut Tx<'_>,
    update: Recredential,
) -> Result<(IdentityRecord, Arc<KeyRecord>), StoreError> {
    let Recredential {
        owner,
        name,
        from,
        to,
        key,
        grace,
    } = update;
    let before = get(tx.conn, tx.mac, &owner, &name)?.ok_or(StoreError::NotFound("identity"))?;
    if before.credential != from {
        return Err(StoreError::Conflict("another credential of this identity"));
    }
    let mut identity = IdentityRecord {
        credential: to,
        ..before
    };
    if key != identity.key {
        if identity.next != Some(key) {
            return Err(StoreError::Conflict("another key of this identity"));
        }
        let mut retiring = still_retiring(tx, &identity.retiring)?;
        if keys::retire(tx, &identity.key, grace)? {
            retiring.push(identity.key);
        }
        if retiring.len() > MAX_RETIRING {
            return Err(StoreError::Limit("keys of one identity that retire"));
        }
        identity = IdentityRecord {
            key,
            retiring,
            next: None,
            ..identity
        };
    }
    let found = keys::get(tx.conn, tx.mac, &key)?.ok_or(StoreError::NotFound("key"))?;
    put(tx, &identity)?;
    failpoint::hit("store.recredential.before_commit");
    Ok((identity, Arc::new(found)))
}

/// Those that still sign. One whose row does not verify does not, and nothing can
/// be done about it here.
fn still_retiring(tx: &Tx<'_>, keys: &[KeyId]) -> Result<Vec<KeyId>, StoreError> {
    let mut still = Vec::new();
    for id in keys {
        match keys::get(tx.conn, tx.mac, id) {
            Ok(Some(key)) if key.is_active() && !key.has_ended(tx.now.observed) => still.push(*id),
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

pub(super) fn put(tx: &Tx<'_>, identity: &IdentityRecord) -> Result<(), StoreError> {
    let id = name_id(&(&identity.owner, &identity.name))?;
    row::put(tx.conn, tx.mac, Value::Blob(id.to_vec()), identity)
}

/// An owner has it no more.
pub(super) fn delete(tx: &Tx<'_>, owner: &Owner, name: &str) -> Result<(), StoreError> {
    tx.conn
        .prepare_cached("DELETE FROM identities WHERE id = ?1")?
        .execute([name_id(&(owner, name))?])?;
    Ok(())
}

/// The permits of an owner's identities of these names are those of the other's.
pub(super) fn hand_over_permits(
    tx: &mut Tx<'_>,
    (from, to): (&Owner, &Owner),
    names: &BTreeSet<String>,
) -> Result<(), StoreError> {
    let goes = |permit: &Permit| {
        let of = &permit.of;
        Ok(of.owner == *from && names.contains(&of.identity))
    };
    for permit in row::first::<Permit>(tx, "1", [], usize::MAX, goes)? {
        delete_permit(tx, &permit.of)?;
        let owner = to.clone();
        permit_leave(tx, GuardId { owner, ..permit.of }, permit.signature_key)?;
    }
    Ok(())
}

/// Permits an identity to leave; replaces an earlier permit for the same group.
pub(super) fn permit_leave(
    tx: &mut Tx<'_>,
    of: GuardId,
    signature_key: Bytes,
) -> Result<(), StoreError> {
    let id = name_id(&of)?;
    let permit = Permit { of, signature_key };
    row::put(tx.conn, tx.mac, Value::Blob(id.to_vec()), &permit)
}

/// The signature key to which the identity may leave.
pub(super) fn leave_permit(
    conn: &Connection,
    mac: &RowMac,
    of: &GuardId,
) -> Result<Option<Bytes>, StoreError> {
    let permit: Option<Permit> = row::get(conn, mac, &name_id(of)?)?;
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
    delete_permit(tx, of)?;
    Ok(true)
}

fn delete_permit(tx: &Tx<'_>, of: &GuardId) -> Result<(), StoreError> {
    tx.conn
        .prepare_cached("DELETE FROM permits WHERE id = ?1")?
        .execute([name_id(of)?])?;
    Ok(())
}
