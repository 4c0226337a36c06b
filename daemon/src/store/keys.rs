//! Keys: their rows, and the journal of making and destroying them.

use std::sync::Arc;
use std::time::Duration;

use mlskeyd_protocol::v1::{Algorithm, Bytes, KeyId, Owner};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};

use super::error::StoreError;
use super::generations;
use super::mac::{RowMac, decode};
use super::row::{self, Row};
use super::tombstones::Tombstone;
use super::types::{
    Binding, Cause, ConnectionId, Generation, KeyRecord, LifeState, MadeKey, NewKey, Rebind, Under,
    Wait,
};
use super::writer::{Effect, Tx};
use super::{claims, column, seconds};
use crate::devices::{GenerationId, KeyBlob};
use crate::failpoint;

/// Longest blob of a device, in bytes.
const MAX_BLOB: usize = 16 * 1024;

const UNDER_GENERATION: &str = "generation = ?1 AND state < 3";

/// Most HPKE keys of one owner that were never claimed.
pub(super) const MAX_UNCLAIMED: u32 = 8192;

impl Row for KeyRecord {
    const TABLE: &'static str = "keys";
    const COLUMNS: &'static [&'static str] = &[
        "uid",
        "app",
        "public_key",
        "generation",
        "state",
        "wait",
        "since",
        "run",
        "connection",
        "not_after",
        "expired",
        "ends",
    ];

    fn columns(&self) -> Result<Vec<Value>, StoreError> {
        let (wait, since, run, connection) = match self.wait {
            Wait::None => (None, None, None, None),
            Wait::Open {
                run,
                connection,
                since,
            } => (Some(1), Some(since), Some(run), Some(connection.0)),
            Wait::Orphan { since } => (Some(2), Some(since), None, None),
            Wait::Released { since } => (Some(3), Some(since), None, None),
            Wait::Unnamed { since } => (Some(4), Some(since), None, None),
        };
        let not_after = match self.binding {
            Binding::Init { not_after, .. } if self.is_active() => Some(not_after),
            _ => None,
        };
        let state = match self.state {
            LifeState::Creating => 0,
            LifeState::Active | LifeState::Missing => 1,
            LifeState::Destroying => 2,
            LifeState::Destroyed => 3,
        };
        let optional = |number: Option<u64>| number.map(column).into();
        Ok(vec![
            self.owner.uid.into(),
            self.owner.app.clone().into(),
            self.public_key.0.clone().into(),
            self.generation.as_bytes().to_vec().into(),
            state.into(),
            wait.into(),
            optional(since),
            optional(run),
            optional(connection),
            optional(not_after),
            optional(self.expired_since),
            optional(self.ends.filter(|_| self.is_active())),
        ])
    }
}

/// A row as SQLite gives it.
struct Raw {
    id: Vec<u8>,
    body: Vec<u8>,
    mac: Vec<u8>,
}

impl Raw {
    fn read(row: &SqlRow<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            body: row.get(1)?,
            mac: row.get(2)?,
        })
    }

    fn verify(&self, mac: &RowMac) -> Result<KeyRecord, StoreError> {
        mac.open(&self.id, &self.body, &self.mac)
    }

    /// For lists: a row that does not verify is shown as missing.
    fn show(&self, mac: &RowMac) -> Option<KeyRecord> {
        self.verify(mac).ok().or_else(|| {
            decode(&self.body).map(|key: KeyRecord| KeyRecord {
                state: LifeState::Missing,
                blob: KeyBlob::new(Vec::new()),
                ..key
            })
        })
    }
}

/// The key, if there is such a row and it verifies.
pub(super) fn get(
    conn: &Connection,
    mac: &RowMac,
    id: &KeyId,
) -> Result<Option<KeyRecord>, StoreError> {
    conn.prepare_cached("SELECT id, body, mac FROM keys WHERE id = ?1")?
        .query_row([id.as_bytes()], Raw::read)
        .optional()?
        .map(|raw| raw.verify(mac))
        .transpose()
}

/// The key of an owner with this public key that is not destroyed; else a
/// destroyed one, so that its fate can be told.
pub(super) fn get_by_public(
    conn: &Connection,
    mac: &RowMac,
    owner: &Owner,
    public_key: &Bytes,
) -> Result<Option<KeyRecord>, StoreError> {
    let raw = conn
        .prepare_cached(
            "SELECT id, body, mac FROM keys WHERE public_key = ?1 AND uid = ?2 AND app = ?3
             ORDER BY state LIMIT 1",
        )?
        .query_row(params![public_key.0, owner.uid, owner.app], Raw::read)
        .optional()?;
    let Some(raw) = raw else { return Ok(None) };
    let key = raw.verify(mac)?;
    Ok(Some(key).filter(|key| key.owner == *owner && key.public_key == *public_key))
}

/// Has the owner a key with this public key that is not destroyed?
pub(super) fn lives(tx: &Tx<'_>, owner: &Owner, public_key: &Bytes) -> Result<bool, StoreError> {
    let key = get_by_public(tx.conn, tx.mac, owner, public_key)?;
    Ok(key.is_some_and(|key| key.state != LifeState::Destroyed))
}

/// As [`get`], and there has to be one.
fn require(tx: &Tx<'_>, id: &KeyId) -> Result<KeyRecord, StoreError> {
    get(tx.conn, tx.mac, id)?.ok_or(StoreError::NotFound("key"))
}

/// A page of all keys, ordered by id; rows that do not verify show as missing.
pub(super) fn page(
    conn: &Connection,
    mac: &RowMac,
    after: Option<KeyId>,
    destroyed: bool,
    limit: u32,
) -> Result<Vec<(KeyRecord, u32)>, StoreError> {
    let mut statement = conn.prepare_cached(
        "SELECT id, body, mac,
           (SELECT count(*) FROM claims WHERE key = keys.id AND released IS NULL)
         FROM keys WHERE id > ?1 AND (?2 OR state < 3) ORDER BY id LIMIT ?3",
    )?;
    let after = after.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
    let rows = statement.query_map(params![after, destroyed, limit], |row| {
        Ok((Raw::read(row)?, row.get::<_, u32>(3)?))
    })?;
    let mut keys = Vec::new();
    for row in rows {
        let (raw, claims) = row?;
        keys.extend(raw.show(mac).map(|key| (key, claims)));
    }
    Ok(keys)
}

/// A page of an owner's keys that are not destroyed, ordered by id; rows that do not verify
/// show as missing.
pub(super) fn of_owner(
    conn: &Connection,
    mac: &RowMac,
    owner: &Owner,
    after: Option<KeyId>,
    limit: u32,
) -> Result<Vec<KeyRecord>, StoreError> {
    let mut statement = conn.prepare_cached(
        "SELECT id, body, mac FROM keys
         WHERE uid = ?1 AND app = ?2 AND state IN (1, 2) AND id > ?3 ORDER BY id LIMIT ?4",
    )?;
    let after = after.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
    let rows = statement.query_map(params![owner.uid, owner.app, after, limit], Raw::read)?;
    let mut keys = Vec::new();
    for row in rows {
        keys.extend(row?.show(mac).filter(|key| key.owner == *owner));
    }
    Ok(keys)
}

/// Writes the row, and tells the cache when that is durable.
pub(super) fn put(tx: &mut Tx<'_>, key: KeyRecord) -> Result<(), StoreError> {
    let id = Value::Blob(key.id.as_bytes().to_vec());
    row::put(tx.conn, tx.mac, id, &key)?;
    tx.then(Effect::Key(Arc::new(key)));
    Ok(())
}

/// Journals a key that a device is about to make.
pub(super) fn begin_create(tx: &mut Tx<'_>, new: NewKey) -> Result<(), StoreError> {
    if get(tx.conn, tx.mac, &new.id)?.is_some() {
        return Err(StoreError::Conflict("a key of this name"));
    }
    if matches!(new.algorithm, Algorithm::Hpke(_)) {
        check_takes_unclaimed(tx, &new.owner)?;
    }
    let generation = match new.generation {
        Under::Shared(id) => {
            generations::begin_key(tx, &id)?;
            id
        }
        Under::Own(id) => {
            generations::begin_own(tx, id, &new.device)?;
            id
        }
    };
    let wait = match (new.algorithm, new.connection) {
        (Algorithm::Signature(_), _) => Wait::None,
        (_, None) => Wait::Orphan {
            since: tx.now.observed,
        },
        (_, Some(connection)) => Wait::Open {
            run: tx.live.meta.run,
            connection,
            since: tx.now.observed,
        },
    };
    put(
        tx,
        KeyRecord {
            id: new.id,
            owner: new.owner,
            algorithm: new.algorithm,
            public_key: Bytes::default(),
            device: new.device,
            tier: new.tier,
            generation,
            blob: KeyBlob::new(Vec::new()),
            identity: new.identity,
            binding: Binding::None,
            state: LifeState::Creating,
            created: new.created,
            adopted: new.adopted,
            pin: new.pin,
            attested: false,
            ends: None,
            wait,
            expired_since: None,
        },
    )?;
    failpoint::hit("store.begin_create.before_commit");
    Ok(())
}

/// Fails if the owner has so many keys that no record ever claimed that one more
/// must not be made.
fn check_takes_unclaimed(tx: &Tx<'_>, owner: &Owner) -> Result<(), StoreError> {
    let count: u32 = tx
        .conn
        .prepare_cached(
            "SELECT count(*) FROM (
               SELECT 1 FROM keys WHERE uid = ?1 AND app = ?2 AND wait <= 2 LIMIT ?3)",
        )?
        .query_row(params![owner.uid, owner.app, MAX_UNCLAIMED], |row| {
            row.get(0)
        })?;
    if count >= MAX_UNCLAIMED {
        return Err(StoreError::Limit("keys of one app that no record claims"));
    }
    Ok(())
}

/// Makes a journalled key visible.
pub(super) fn finish_create(tx: &mut Tx<'_>, made: MadeKey) -> Result<Arc<KeyRecord>, StoreError> {
    let key = require(tx, &made.id)?;
    if key.state != LifeState::Creating {
        return Err(StoreError::Conflict("a finished key of this name"));
    }
    if made.blob.as_bytes().len() > MAX_BLOB {
        return Err(StoreError::Limit("bytes in a device's key blob"));
    }
    if has_twin(tx, &key, &made.public_key)? {
        return Err(StoreError::Conflict("a key with this public key"));
    }
    generations::finish_own(tx, &key.generation)?;
    let key = KeyRecord {
        public_key: made.public_key,
        blob: made.blob,
        tier: made.tier,
        state: LifeState::Active,
        ..key
    };
    put(tx, key.clone())?;
    failpoint::hit("store.finish_create.before_commit");
    Ok(Arc::new(key))
}

/// Is the public key in custody already? One that was made now never comes
/// twice. One that is adopted may have been here before, and belongs to one owner
/// at a time.
fn has_twin(tx: &Tx<'_>, key: &KeyRecord, public_key: &Bytes) -> Result<bool, StoreError> {
    if !key.adopted {
        return Ok(get_by_public(tx.conn, tx.mac, &key.owner, public_key)?.is_some());
    }
    Ok(tx
        .conn
        .prepare_cached("SELECT 1 FROM keys WHERE public_key = ?1 AND state < 3 LIMIT 1")?
        .exists([&public_key.0])?)
}

/// Gives a signature key its end, unless it is destroyed already; answers whether
/// it signs on until then.
pub(super) fn retire(tx: &mut Tx<'_>, id: &KeyId, grace: Duration) -> Result<bool, StoreError> {
    let key = require(tx, id)?;
    match key.state {
        LifeState::Active => {}
        LifeState::Destroying | LifeState::Destroyed => return Ok(false),
        LifeState::Creating | LifeState::Missing => return Err(StoreError::NotFound("key")),
    }
    let ends = tx.now.observed.saturating_add(seconds(grace));
    // An end that it has is never put off.
    let ends = key.ends.map_or(ends, |before| before.min(ends));
    let signs_on = ends > tx.now.observed;
    let ends = Some(ends);
    put(tx, KeyRecord { ends, ..key })?;
    Ok(signs_on)
}

/// Evidence was made that it is in hardware.
pub(super) fn attested(tx: &mut Tx<'_>, id: &KeyId) -> Result<(), StoreError> {
    let key = require(tx, id)?;
    if key.attested {
        return Ok(());
    }
    put(
        tx,
        KeyRecord {
            attested: true,
            ..key
        },
    )
}

/// Drops a journalled key that the device did not make, or has destroyed.
/// Answers its generation, if that is to be destroyed now.
pub(super) fn abandon_create(
    tx: &mut Tx<'_>,
    id: &KeyId,
) -> Result<Option<Generation>, StoreError> {
    let Some(key) = get(tx.conn, tx.mac, id)? else {
        return Ok(None);
    };
    if key.state != LifeState::Creating {
        return Err(StoreError::Conflict("a finished key of this name"));
    }
    tx.conn
        .prepare_cached("DELETE FROM keys WHERE id = ?1")?
        .execute([id.as_bytes()])?;
    tx.then(Effect::KeyRemoved(*id));
    let generation = generations::abandon_key(tx, &key.generation)?;
    Ok(generation.filter(Generation::is_idle))
}

/// Journals that a key is to be destroyed: from here on nobody can use it.
pub(super) fn begin_destroy(
    tx: &mut Tx<'_>,
    id: &KeyId,
    cause: Cause,
) -> Result<KeyRecord, StoreError> {
    let key = require(tx, id)?;
    match key.state {
        LifeState::Active => {
            if cause == Cause::Due && !claims::is_due(tx, &key)? {
                return Err(StoreError::NotDue(*id));
            }
        }
        // Again, after a failure: the tombstone may be what is missing.
        LifeState::Destroying => {}
        LifeState::Destroyed => return Err(StoreError::Destroyed(*id)),
        LifeState::Creating | LifeState::Missing => return Err(StoreError::NotFound("key")),
    }
    claims::key_ends(tx, &key)?;
    let key = KeyRecord {
        state: LifeState::Destroying,
        wait: Wait::None,
        expired_since: None,
        ..key
    };
    put(tx, key.clone())?;
    tx.then(Effect::Tombstone(Tombstone::Key(key.id, key.generation)));
    failpoint::hit("store.begin_destroy.before_commit");
    Ok(key)
}

/// The device has destroyed it, or its generation: the blob goes, the row stays.
pub(super) fn finish_destroy(tx: &mut Tx<'_>, id: &KeyId) -> Result<(), StoreError> {
    let key = require(tx, id)?;
    match key.state {
        LifeState::Destroying => {}
        LifeState::Destroyed => return Ok(()),
        LifeState::Creating | LifeState::Active | LifeState::Missing => {
            return Err(StoreError::Conflict("a living key of this name"));
        }
    }
    generations::key_is_destroyed(tx, &key.generation)?;
    put(
        tx,
        KeyRecord {
            state: LifeState::Destroyed,
            blob: KeyBlob::new(Vec::new()),
            ..key
        },
    )?;
    tx.then(Effect::Scrub);
    failpoint::hit("store.finish_destroy.before_commit");
    Ok(())
}

/// Marks for destruction what a tombstone says is destroyed: an older copy of
/// the database was put back. Rows that do not verify are passed over: nothing
/// uses them, and the daemon has to start.
pub(super) fn bury(tx: &mut Tx<'_>, stones: &[Tombstone]) -> Result<(), StoreError> {
    let mut restored = false;
    for stone in stones {
        let keys = match stone {
            Tombstone::Key(id, _) => row::select(tx, "id = ?1", [id.as_bytes()])?,
            Tombstone::Generation(id) => {
                generations::bury(tx, id)?;
                under_generation(tx, id)?
            }
        };
        for key in keys {
            if matches!(key.state, LifeState::Active | LifeState::Creating) {
                tracing::warn!(key = %key.id, "an older registry was put back; the key stays destroyed");
                restored |= key.state == LifeState::Active;
                claims::key_ends(tx, &key)?;
                put(
                    tx,
                    KeyRecord {
                        state: LifeState::Destroying,
                        wait: Wait::None,
                        ..key
                    },
                )?;
            }
        }
    }
    if restored {
        let restores = &mut tx.live.meta.restores;
        *restores = restores.saturating_add(1);
        tx.live.meta.write(tx.conn, tx.mac)?;
    }
    Ok(())
}

fn under_generation(tx: &Tx<'_>, id: &GenerationId) -> Result<Vec<KeyRecord>, StoreError> {
    row::select(tx, UNDER_GENERATION, [id.as_bytes()])
}

/// A key under the generation that is not destroyed, if there is one.
pub(super) fn one_under_generation(
    tx: &Tx<'_>,
    id: &GenerationId,
) -> Result<Option<KeyRecord>, StoreError> {
    let found = row::first(tx, UNDER_GENERATION, [id.as_bytes()], 1, |_| Ok(true))?;
    Ok(found.into_iter().next())
}

/// Does a key of any state name the generation? Rows of destroyed keys stay; those of
/// keys that were never finished do not.
pub(super) fn is_named_by_any(tx: &Tx<'_>, id: &GenerationId) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM keys WHERE generation = ?1)";
    let mut statement = tx.conn.prepare_cached(sql)?;
    Ok(statement.query_row([id.as_bytes()], |row| row.get(0))?)
}

/// Changes bindings, all or none.
pub(super) fn bind(
    tx: &mut Tx<'_>,
    owner: &Owner,
    changes: Vec<Rebind>,
) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
    let mut bound = Vec::new();
    for change in changes {
        let key = require(tx, &change.key)?;
        if key.owner != *owner {
            return Err(StoreError::NotFound("key"));
        }
        if key.state != LifeState::Active {
            return Err(StoreError::Destroyed(key.id));
        }
        if key.binding == change.to {
            bound.push(Arc::new(key));
            continue;
        }
        if key.binding != change.from {
            return Err(StoreError::Conflict("a binding of this key"));
        }
        let key = KeyRecord {
            binding: change.to,
            ..key
        };
        put(tx, key.clone())?;
        bound.push(Arc::new(key));
    }
    failpoint::hit("store.bind.before_commit");
    Ok(bound)
}

/// The connection is gone: its keys that were never claimed become orphans.
pub(super) fn orphan(tx: &mut Tx<'_>, connection: ConnectionId) -> Result<(), StoreError> {
    let run = tx.live.meta.run;
    let of_connection = "run = ?1 AND connection = ?2";
    let connection = (column(run), column(connection.0));
    for key in row::select::<KeyRecord>(tx, of_connection, connection)? {
        put(
            tx,
            KeyRecord {
                wait: Wait::Orphan {
                    since: tx.now.observed,
                },
                ..key
            },
        )?;
    }
    Ok(())
}
