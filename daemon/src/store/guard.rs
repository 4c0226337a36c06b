//! Guard marks. Only kept here: what they mean is custody's to decide.

use std::sync::Arc;

use rusqlite::Connection;
use rusqlite::types::Value;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::mac::{RowMac, name_id};
use super::row::{self, Row};
use super::types::{GuardId, GuardMark, MAX_COMMITS};
use super::writer::{Effect, Tx};
use crate::failpoint;

#[derive(Serialize, Deserialize)]
pub(super) struct GuardRow {
    of: GuardId,
    mark: GuardMark,
}

impl Row for GuardRow {
    const TABLE: &'static str = "guards";
}

/// The mark, if there is one.
pub(super) fn get(
    conn: &Connection,
    mac: &RowMac,
    of: &GuardId,
) -> Result<Option<GuardMark>, StoreError> {
    let row: Option<GuardRow> = row::get(conn, mac, &name_id(of)?)?;
    Ok(row.filter(|row| row.of == *of).map(|row| row.mark))
}

/// Changes a mark to what `decide` says of the one that is there. Nothing is
/// written if it stays the same, or if `decide` refuses.
pub(super) fn update<E>(
    tx: &mut Tx<'_>,
    of: GuardId,
    decide: impl FnOnce(Option<&GuardMark>) -> Result<GuardMark, E>,
) -> Result<Result<Arc<GuardMark>, E>, StoreError> {
    let before = get(tx.conn, tx.mac, &of)?;
    let mark = match decide(before.as_ref()) {
        Ok(mark) => mark,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if mark.commits.len() > MAX_COMMITS {
        return Err(StoreError::Limit("distinct commits in one epoch"));
    }
    let mark = Arc::new(mark);
    if before.as_ref() == Some(&*mark) {
        return Ok(Ok(mark));
    }
    let id = name_id(&of)?;
    let row = GuardRow {
        of,
        mark: (*mark).clone(),
    };
    row::put(tx.conn, tx.mac, Value::Blob(id.to_vec()), &row)?;
    tx.then(Effect::Guard(row.of, Arc::clone(&mark)));
    failpoint::hit("store.guard.before_commit");
    Ok(Ok(mark))
}
