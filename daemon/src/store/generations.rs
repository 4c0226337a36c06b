//! Generation keys: what keys hang under, so that they can be destroyed.

use rand_core::{OsRng, RngCore};
use rusqlite::Connection;
use rusqlite::types::Value;

use super::error::StoreError;
use super::keys;
use super::mac::RowMac;
use super::row::{self, Row};
use super::tombstones::Tombstone;
use super::types::{CurrentGeneration, Generation, GenerationState};
use super::writer::{Effect, Tx};
use crate::devices::GenerationId;
use crate::failpoint;

impl Row for Generation {
    const TABLE: &'static str = "generations";
    const COLUMNS: &'static [&'static str] = &["device", "own", "state", "idle"];

    fn columns(&self) -> Result<Vec<Value>, StoreError> {
        let state = match self.state {
            GenerationState::Creating => 0,
            GenerationState::Current => 1,
            GenerationState::Retired => 2,
            GenerationState::Destroying => 3,
            GenerationState::Destroyed => 4,
            GenerationState::Undoing => 5,
        };
        Ok(vec![
            self.device.clone().into(),
            self.own.into(),
            state.into(),
            self.is_idle().into(),
        ])
    }
}

/// The generation, if there is such a row and it verifies.
fn get(
    conn: &Connection,
    mac: &RowMac,
    id: &GenerationId,
) -> Result<Option<Generation>, StoreError> {
    row::get(conn, mac, id.as_bytes())
}

fn put(tx: &Tx<'_>, generation: &Generation) -> Result<(), StoreError> {
    let id = Value::Blob(generation.id.as_bytes().to_vec());
    row::put(tx.conn, tx.mac, id, generation)
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
    row::select(tx, "own = 0 AND state = 1 AND device = ?1", [device])
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
        living: 0,
        has_dead: false,
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

/// Counts a key that is about to be made: it may go only where nobody is
/// destroying.
pub(super) fn begin_key(tx: &Tx<'_>, id: &GenerationId) -> Result<(), StoreError> {
    let generation = require(tx, id)?;
    // A retired one, too: it may have been the current one when it was asked for.
    let open = matches!(
        generation.state,
        GenerationState::Current | GenerationState::Retired
    );
    if !open || generation.own {
        return Err(StoreError::WrongGeneration);
    }
    let living = generation.living.saturating_add(1);
    put(
        tx,
        &Generation {
            living,
            ..generation
        },
    )
}

/// A key of it was not made after all. Answers the generation.
pub(super) fn abandon_key(
    tx: &Tx<'_>,
    id: &GenerationId,
) -> Result<Option<Generation>, StoreError> {
    one_less(tx, id, |generation| generation.has_dead)
}

/// A key of it is destroyed.
pub(super) fn key_is_destroyed(tx: &Tx<'_>, id: &GenerationId) -> Result<(), StoreError> {
    one_less(tx, id, |_| true).map(|_| ())
}

/// Counts one key less. Of a generation whose row does not verify nothing is
/// counted, since it is never destroyed.
fn one_less(
    tx: &Tx<'_>,
    id: &GenerationId,
    has_dead: impl FnOnce(&Generation) -> bool,
) -> Result<Option<Generation>, StoreError> {
    let generation = match get(tx.conn, tx.mac, id) {
        Ok(Some(generation)) => generation,
        Ok(None) | Err(StoreError::Tampered { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let generation = Generation {
        living: generation.living.saturating_sub(1),
        has_dead: has_dead(&generation),
        ..generation
    };
    put(tx, &generation)?;
    Ok(Some(generation))
}

/// Journals the generation of one key, together with that key.
pub(super) fn begin_own(tx: &mut Tx<'_>, id: GenerationId, device: &str) -> Result<(), StoreError> {
    if get(tx.conn, tx.mac, &id)?.is_some() {
        return Err(StoreError::Conflict("a generation of this name"));
    }
    let generation = Generation {
        living: 1,
        ..creating(tx, id, device, true)
    };
    put(tx, &generation)
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

/// Those that are to be destroyed, or have begun to be.
pub(super) fn to_destroy(conn: &Connection, mac: &RowMac) -> Result<Vec<Generation>, StoreError> {
    row::select_only(conn, mac, "idle = 1", [])
}

/// The same, of this one only.
pub(super) fn to_destroy_of(
    conn: &Connection,
    mac: &RowMac,
    id: &GenerationId,
) -> Result<Vec<Generation>, StoreError> {
    let found = get(conn, mac, id)?;
    Ok(found.into_iter().filter(Generation::is_idle).collect())
}

/// Journals that a generation without living keys is to be destroyed. Its own count
/// has to say so, since rows of keys that somebody hid or took away are no proof;
/// and so have the keys, since an older row of the generation that somebody put
/// back counts too few of them. Answers the state that it is in then.
pub(super) fn begin_destroy(
    tx: &mut Tx<'_>,
    id: &GenerationId,
) -> Result<GenerationState, StoreError> {
    let generation = require(tx, id)?;
    let state = match generation.state {
        GenerationState::Destroyed => return Ok(GenerationState::Destroyed),
        _ if generation.living > 0 => return Err(StoreError::WrongGeneration),
        // It was never finished, and so none of its keys: unless an older row of it
        // was put back.
        GenerationState::Creating | GenerationState::Undoing
            if !generation.has_dead && !keys::is_named_by_any(tx, id)? =>
        {
            GenerationState::Undoing
        }
        _ => GenerationState::Destroying,
    };
    if let Some(key) = keys::one_under_generation(tx, id)? {
        tracing::error!(generation = %id, key = %key.id,
            "a generation counts no living key and has one: it is not destroyed; somebody may have put an older row of it back");
        return Err(StoreError::WrongGeneration);
    }
    put(
        tx,
        &Generation {
            state,
            ..generation
        },
    )?;
    failpoint::hit("store.begin_destroy_generation.before_commit");
    Ok(state)
}

/// The device has destroyed it.
pub(super) fn finish_destroy(tx: &mut Tx<'_>, id: &GenerationId) -> Result<(), StoreError> {
    let generation = require(tx, id)?;
    match generation.state {
        GenerationState::Destroying | GenerationState::Undoing => {}
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
    for generation in row::select::<Generation>(tx, "id = ?1", [id.as_bytes()])? {
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
