//! Generation keys: what keys hang under, so that they can be destroyed.

use rand_core::{OsRng, RngCore};
use rusqlite::{Connection, OptionalExtension, Params, params};

use super::error::StoreError;
use super::mac::{Row, RowMac};
use super::tombstones::Tombstone;
use super::types::{CurrentGeneration, Generation, GenerationState};
use super::writer::{Effect, Tx};
use crate::devices::GenerationId;
use crate::failpoint;

impl Row for Generation {
    const TABLE: &'static str = "generations";
}

type Raw = (Vec<u8>, Vec<u8>, Vec<u8>);

/// The generation, if there is such a row and it verifies.
pub(super) fn get(
    conn: &Connection,
    mac: &RowMac,
    id: &GenerationId,
) -> Result<Option<Generation>, StoreError> {
    conn.prepare_cached("SELECT id, body, mac FROM generations WHERE id = ?1")?
        .query_row([id.as_bytes()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?
        .map(|(id, body, tag): Raw| mac.open(&id, &body, &tag))
        .transpose()
}

/// Those of a condition; those that do not verify are left out, and said
/// loudly.
pub(super) fn select(
    conn: &Connection,
    mac: &RowMac,
    condition: &str,
    params: impl Params,
) -> Result<Vec<Generation>, StoreError> {
    let sql = format!("SELECT id, body, mac FROM generations WHERE {condition}");
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map(params, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut generations = Vec::new();
    for raw in rows {
        let (id, body, tag): Raw = raw?;
        match mac.open(&id, &body, &tag) {
            Ok(generation) => generations.push(generation),
            Err(error) => tracing::error!(%error, "a generation is passed over"),
        }
    }
    Ok(generations)
}

fn put(tx: &Tx<'_>, generation: &Generation) -> Result<(), StoreError> {
    let sealed = tx.mac.seal(generation.id.as_bytes(), generation)?;
    let state: u8 = match generation.state {
        GenerationState::Creating => 0,
        GenerationState::Current => 1,
        GenerationState::Retired => 2,
        GenerationState::Destroying => 3,
        GenerationState::Destroyed => 4,
    };
    tx.conn
        .prepare_cached(
            "INSERT INTO generations (id, device, own, state, body, mac)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (id) DO UPDATE SET state = ?4, body = ?5, mac = ?6",
        )?
        .execute(params![
            generation.id.as_bytes(),
            generation.device,
            generation.own,
            state,
            sealed.body,
            sealed.mac
        ])?;
    Ok(())
}

fn require(tx: &Tx<'_>, id: &GenerationId) -> Result<Generation, StoreError> {
    get(tx.conn, tx.mac, id)?.ok_or(StoreError::NotFound("generation"))
}

/// Where a new HPKE key of the device goes; journals a new generation if there
/// is none, or the current one is `max_age` seconds old.
pub(super) fn current(
    tx: &mut Tx<'_>,
    device: &str,
    max_age: u64,
) -> Result<CurrentGeneration, StoreError> {
    let current = currents(tx, device)?
        .into_iter()
        .find(|generation| tx.now.observed.saturating_sub(generation.created) < max_age);
    if let Some(generation) = current {
        return Ok(CurrentGeneration::Existing(generation.id));
    }
    let mut id = [0; GenerationId::LEN];
    OsRng
        .try_fill_bytes(&mut id)
        .map_err(|e| StoreError::Unavailable(format!("no random bytes: {e}")))?;
    let id = GenerationId::from_bytes(id);
    put(tx, &creating(tx, id, device, false))?;
    failpoint::hit("store.current_generation.before_commit");
    Ok(CurrentGeneration::CreateNew(id))
}

/// The generations that take the device's new HPKE keys: one, or none. How many
/// signature keys there are, each with a generation of its own, does not matter.
fn currents(tx: &Tx<'_>, device: &str) -> Result<Vec<Generation>, StoreError> {
    let mut found = select(
        tx.conn,
        tx.mac,
        "own = 0 AND state = 1 AND device = ?1",
        [device],
    )?;
    found.retain(|generation| {
        generation.device == device
            && !generation.own
            && generation.state == GenerationState::Current
    });
    Ok(found)
}

/// Whether anything of the device is, or may be, alive.
pub(super) fn any_of(conn: &Connection, device: &str) -> Result<bool, StoreError> {
    Ok(conn
        .prepare_cached("SELECT 1 FROM generations WHERE device = ?1 AND state != 4 LIMIT 1")?
        .exists([device])?)
}

fn creating(tx: &Tx<'_>, id: GenerationId, device: &str, own: bool) -> Generation {
    Generation {
        id,
        device: device.to_owned(),
        own,
        created: tx.now.observed,
        state: GenerationState::Creating,
    }
}

/// The device has made it: it becomes the current one.
pub(super) fn finish(tx: &mut Tx<'_>, id: &GenerationId) -> Result<(), StoreError> {
    let generation = require(tx, id)?;
    match generation.state {
        GenerationState::Creating if !generation.own => {}
        GenerationState::Current => return Ok(()),
        _ => return Err(StoreError::WrongGeneration),
    }
    for older in currents(tx, &generation.device)? {
        put(
            tx,
            &Generation {
                state: GenerationState::Retired,
                ..older
            },
        )?;
    }
    put(
        tx,
        &Generation {
            state: GenerationState::Current,
            ..generation
        },
    )?;
    failpoint::hit("store.finish_generation.before_commit");
    Ok(())
}

/// Does it take the device's new keys?
pub(super) fn is_current(
    conn: &Connection,
    mac: &RowMac,
    id: &GenerationId,
) -> Result<bool, StoreError> {
    let found = get(conn, mac, id)?;
    Ok(found.is_some_and(|found| found.state == GenerationState::Current && !found.own))
}

/// It takes no new keys any more, since its device has lost it; those that it has
/// stay as they are.
pub(super) fn retire(tx: &mut Tx<'_>, id: &GenerationId) -> Result<(), StoreError> {
    let generation = require(tx, id)?;
    if generation.state != GenerationState::Current || generation.own {
        return Ok(());
    }
    put(
        tx,
        &Generation {
            state: GenerationState::Retired,
            ..generation
        },
    )?;
    failpoint::hit("store.retire_generation.before_commit");
    Ok(())
}

/// A new key may go only where nobody is destroying.
pub(super) fn check_takes_keys(tx: &Tx<'_>, id: &GenerationId) -> Result<(), StoreError> {
    let generation = require(tx, id)?;
    // A retired one, too: it may have been the current one when it was asked for.
    let open = matches!(
        generation.state,
        GenerationState::Current | GenerationState::Retired
    );
    if open && !generation.own {
        Ok(())
    } else {
        Err(StoreError::WrongGeneration)
    }
}

/// Journals the generation of one key, together with that key.
pub(super) fn begin_own(tx: &mut Tx<'_>, id: GenerationId, device: &str) -> Result<(), StoreError> {
    if get(tx.conn, tx.mac, &id)?.is_some() {
        return Err(StoreError::Conflict("a generation of this name"));
    }
    put(tx, &creating(tx, id, device, true))
}

/// The device has made the key: its own generation, if it has one, is real.
pub(super) fn finish_own(tx: &mut Tx<'_>, id: &GenerationId) -> Result<(), StoreError> {
    let generation = require(tx, id)?;
    match generation.state {
        GenerationState::Creating if generation.own => put(
            tx,
            &Generation {
                state: GenerationState::Current,
                ..generation
            },
        ),
        GenerationState::Current | GenerationState::Retired => Ok(()),
        _ => Err(StoreError::WrongGeneration),
    }
}

/// Without a living key, and not merely waiting for its first one: the current
/// one, too, once all of its keys have died.
const IDLE: &str = "NOT EXISTS (
        SELECT 1 FROM keys WHERE generation = generations.id AND keys.state < 3)
    AND (state != 1 OR own = 1
        OR EXISTS (SELECT 1 FROM keys WHERE generation = generations.id))";

/// Those that are to be destroyed, or have begun to be.
pub(super) fn to_destroy(conn: &Connection, mac: &RowMac) -> Result<Vec<Generation>, StoreError> {
    select(conn, mac, &format!("state IN (1, 2, 3) AND {IDLE}"), [])
}

/// The same, of this one only.
pub(super) fn to_destroy_of(
    conn: &Connection,
    mac: &RowMac,
    id: &GenerationId,
) -> Result<Vec<Generation>, StoreError> {
    let condition = format!("id = ?1 AND state IN (1, 2, 3) AND {IDLE}");
    select(conn, mac, &condition, [id.as_bytes()])
}

fn holds_keys(conn: &Connection, id: &GenerationId) -> Result<bool, StoreError> {
    Ok(conn
        .prepare_cached("SELECT 1 FROM keys WHERE generation = ?1 AND state < 3 LIMIT 1")?
        .exists([id.as_bytes()])?)
}

/// Journals that a generation without living keys is to be destroyed.
pub(super) fn begin_destroy(tx: &mut Tx<'_>, id: &GenerationId) -> Result<(), StoreError> {
    let generation = require(tx, id)?;
    match generation.state {
        GenerationState::Destroyed => return Ok(()),
        _ if holds_keys(tx.conn, id)? => return Err(StoreError::WrongGeneration),
        _ => {}
    }
    put(
        tx,
        &Generation {
            state: GenerationState::Destroying,
            ..generation
        },
    )?;
    failpoint::hit("store.begin_destroy_generation.before_commit");
    Ok(())
}

/// The device has destroyed it.
pub(super) fn finish_destroy(tx: &mut Tx<'_>, id: &GenerationId) -> Result<(), StoreError> {
    let generation = require(tx, id)?;
    match generation.state {
        GenerationState::Destroying => {}
        GenerationState::Destroyed => return Ok(()),
        _ => return Err(StoreError::WrongGeneration),
    }
    put(
        tx,
        &Generation {
            state: GenerationState::Destroyed,
            ..generation
        },
    )?;
    tx.then(Effect::Tombstone(Tombstone::Generation(*id)));
    tx.then(Effect::Scrub);
    failpoint::hit("store.finish_destroy_generation.before_commit");
    Ok(())
}

/// A tombstone says that it is destroyed, whatever the row says.
pub(super) fn bury(tx: &mut Tx<'_>, id: &GenerationId) -> Result<(), StoreError> {
    for generation in select(tx.conn, tx.mac, "id = ?1", [id.as_bytes()])? {
        if generation.state != GenerationState::Destroyed {
            let state = GenerationState::Destroying;
            put(
                tx,
                &Generation {
                    state,
                    ..generation
                },
            )?;
        }
    }
    Ok(())
}
