//! A row as it lies in the database: a body with a MAC over it, and beside it the
//! columns that find it.
//!
//! What a row says stands in its body alone; what its columns say follows from
//! that, and is never believed. Whoever changes them can hide a row, as by
//! deleting it, until somebody meets it: then they are put right. He cannot make a
//! row say something else.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Params, Row as SqlRow, params, params_from_iter};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StoreError;
use super::mac::RowMac;
use super::writer::Tx;

/// Most rows that one search for the first ones puts right; the next one goes on.
const MAX_PUT_RIGHT: usize = 256;

/// What a table's body column holds.
pub(super) trait Row: Serialize + DeserializeOwned {
    /// The table.
    const TABLE: &'static str;

    /// The columns beside id, body and MAC. Rows that are found by their id alone
    /// have none.
    const COLUMNS: &'static [&'static str] = &[];

    /// What they say.
    fn columns(&self) -> Result<Vec<Value>, StoreError> {
        Ok(Vec::new())
    }
}

/// Rows that a query found.
struct Found<R> {
    /// With the error of those that do not verify.
    rows: Vec<Result<R, StoreError>>,
    /// Those whose columns do not say what their body says.
    misplaced: Vec<(Value, R)>,
}

/// The first rows that a query found and that verify.
struct First<R> {
    rows: Vec<R>,
    /// As in [`Found`], at most [`MAX_PUT_RIGHT`].
    misplaced: Vec<(Value, R)>,
}

/// Writes a row, or what it says now.
pub(super) fn put<R: Row>(
    conn: &Connection,
    mac: &RowMac,
    id: Value,
    row: &R,
) -> Result<(), StoreError> {
    let sealed = mac.seal(&bytes(&id), row)?;
    let beside = row.columns()?;
    let names = || R::COLUMNS.iter().chain(&["body", "mac"]);
    let all: Vec<_> = names().copied().collect();
    let places: Vec<_> = (2..).take(all.len()).map(|n| format!("?{n}")).collect();
    let update: Vec<_> = names()
        .zip(&places)
        .map(|(name, place)| format!("{name} = {place}"))
        .collect();
    let sql = format!(
        "INSERT INTO {} (id, {}) VALUES (?1, {}) ON CONFLICT (id) DO UPDATE SET {}",
        R::TABLE,
        all.join(", "),
        places.join(", "),
        update.join(", ")
    );
    let sealed = [Value::Blob(sealed.body), Value::Blob(sealed.mac.to_vec())];
    let values = std::iter::once(id).chain(beside).chain(sealed);
    conn.prepare_cached(&sql)?
        .execute(params_from_iter(values))?;
    Ok(())
}

/// The row with this id, if there is one and it verifies.
pub(super) fn get<R: Row>(
    conn: &Connection,
    mac: &RowMac,
    id: &[u8],
) -> Result<Option<R>, StoreError> {
    let sql = format!("SELECT body, mac FROM {} WHERE id = ?1", R::TABLE);
    let row: Option<(Vec<u8>, Vec<u8>)> = conn
        .prepare_cached(&sql)?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    row.map(|(body, tag)| mac.open(id, &body, &tag)).transpose()
}

/// Rows that satisfy a condition. Those that do not verify are left out, and said
/// loudly: one bad row must not stop the work on the others.
pub(super) fn select<R: Row>(
    tx: &Tx<'_>,
    condition: &str,
    params: impl Params + Clone,
) -> Result<Vec<R>, StoreError> {
    Ok(verified(try_select(tx, condition, params)?))
}

/// As [`select`], and those that do not verify, too.
pub(super) fn try_select<R: Row>(
    tx: &Tx<'_>,
    condition: &str,
    params: impl Params + Clone,
) -> Result<Vec<Result<R, StoreError>>, StoreError> {
    let found = find(tx.conn, tx.mac, condition, params.clone())?;
    if found.misplaced.is_empty() {
        return Ok(found.rows);
    }
    put_in_place(tx, found.misplaced)?;
    // Now that they are in place, they may satisfy it or not.
    Ok(find(tx.conn, tx.mac, condition, params)?.rows)
}

fn put_in_place<R: Row>(tx: &Tx<'_>, misplaced: Vec<(Value, R)>) -> Result<(), StoreError> {
    for (id, row) in misplaced {
        match put(tx.conn, tx.mac, id, &row) {
            Err(error) if error.ends_transaction() => return Err(error),
            // Another row may be in its place.
            Err(error) => tracing::error!(%error, "a row cannot be put right"),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// The first rows that satisfy a condition, verify and are `wanted`, at most `limit`.
/// Those that do not verify, or are not wanted, take no room: however many there
/// are, they do not hide the others.
pub(super) fn first<R: Row>(
    tx: &Tx<'_>,
    condition: &str,
    params: impl Params + Clone,
    limit: usize,
    mut wanted: impl FnMut(&R) -> Result<bool, StoreError>,
) -> Result<Vec<R>, StoreError> {
    let found = find_first(tx, condition, params.clone(), limit, &mut wanted)?;
    if found.misplaced.is_empty() {
        return Ok(found.rows);
    }
    put_in_place(tx, found.misplaced)?;
    Ok(find_first(tx, condition, params, limit, &mut wanted)?.rows)
}

fn find_first<R: Row>(
    tx: &Tx<'_>,
    condition: &str,
    params: impl Params,
    limit: usize,
    wanted: &mut impl FnMut(&R) -> Result<bool, StoreError>,
) -> Result<First<R>, StoreError> {
    let mut statement = tx.conn.prepare_cached(&query::<R>(condition))?;
    let mut rows = statement.query(params)?;
    let mut first = First {
        rows: Vec::new(),
        misplaced: Vec::new(),
    };
    let (mut bad, mut last): (u64, _) = (0, None);
    while first.rows.len() < limit {
        let Some(sql) = rows.next()? else { break };
        match read::<R>(tx.mac, sql)? {
            Ok(row) if !is_in_place(&row, sql)? => {
                if first.misplaced.len() < MAX_PUT_RIGHT {
                    let id = sql.get(0)?;
                    tracing::error!(error = %misplaced::<R>(&id), "a row is put right");
                    first.misplaced.push((id, row));
                }
            }
            Ok(row) if wanted(&row)? => first.rows.push(row),
            Ok(_) => {}
            Err(error) => {
                bad = bad.saturating_add(1);
                last = Some(error);
            }
        }
    }
    if let Some(error) = last {
        tracing::error!(rows = bad, %error, "rows are passed over; this is the last one's error");
    }
    Ok(first)
}

/// As [`select`], where nothing can be put right: without those whose columns
/// were changed.
pub(super) fn select_only<R: Row>(
    conn: &Connection,
    mac: &RowMac,
    condition: &str,
    params: impl Params,
) -> Result<Vec<R>, StoreError> {
    Ok(verified(find(conn, mac, condition, params)?.rows))
}

fn verified<R>(rows: Vec<Result<R, StoreError>>) -> Vec<R> {
    let loudly = |error: &StoreError| tracing::error!(%error, "a row is passed over");
    rows.into_iter()
        .filter_map(|row| row.inspect_err(loudly).ok())
        .collect()
}

fn find<R: Row>(
    conn: &Connection,
    mac: &RowMac,
    condition: &str,
    params: impl Params,
) -> Result<Found<R>, StoreError> {
    let mut statement = conn.prepare_cached(&query::<R>(condition))?;
    let mut rows = statement.query(params)?;
    let mut found = Found {
        rows: Vec::new(),
        misplaced: Vec::new(),
    };
    while let Some(sql) = rows.next()? {
        match read::<R>(mac, sql)? {
            Ok(row) if is_in_place(&row, sql)? => found.rows.push(Ok(row)),
            Ok(row) => {
                let id = sql.get(0)?;
                tracing::error!(error = %misplaced::<R>(&id), "a row is put right");
                found.misplaced.push((id, row));
            }
            Err(error) => found.rows.push(Err(error)),
        }
    }
    Ok(found)
}

/// What [`read`] and [`is_in_place`] read.
fn query<R: Row>(condition: &str) -> String {
    let columns = R::COLUMNS.iter().map(|name| format!(", {name}"));
    let columns: String = columns.collect();
    format!(
        "SELECT id, body, mac{columns} FROM {} WHERE {condition}",
        R::TABLE
    )
}

/// Verifies what a [`query`] gave.
fn read<R: Row>(mac: &RowMac, sql: &SqlRow<'_>) -> Result<Result<R, StoreError>, StoreError> {
    let (id, body, tag): (Value, Vec<u8>, Vec<u8>) = (sql.get(0)?, sql.get(1)?, sql.get(2)?);
    Ok(mac.open(&bytes(&id), &body, &tag))
}

/// Do the columns beside the body say what that says?
fn is_in_place<R: Row>(row: &R, sql: &SqlRow<'_>) -> Result<bool, StoreError> {
    for (number, expected) in (3..).zip(row.columns()?) {
        if sql.get::<usize, Value>(number)? != expected {
            return Ok(false);
        }
    }
    Ok(true)
}

fn misplaced<R: Row>(id: &Value) -> StoreError {
    StoreError::Misplaced {
        table: R::TABLE,
        id: hex::encode(bytes(id)),
    }
}

/// An id as it is authenticated.
fn bytes(id: &Value) -> Vec<u8> {
    match id {
        Value::Integer(number) => number.to_be_bytes().to_vec(),
        Value::Blob(bytes) => bytes.clone(),
        Value::Null | Value::Real(_) | Value::Text(_) => Vec::new(),
    }
}

/// Verifies the next `batch` rows of a table, in the order of their ids; answers
/// what is wrong with them, and the last id.
pub(super) fn check_next<R: Row>(
    conn: &Connection,
    mac: &RowMac,
    after: &Value,
    batch: u32,
) -> Result<(Vec<StoreError>, Option<Value>), StoreError> {
    let mut statement = conn.prepare_cached(&query::<R>("id > ?1 ORDER BY id LIMIT ?2"))?;
    let mut rows = statement.query(params![after, batch])?;
    let (mut wrong, mut last) = (Vec::new(), None);
    while let Some(sql) = rows.next()? {
        let id: Value = sql.get(0)?;
        match read::<R>(mac, sql)? {
            Ok(row) if is_in_place(&row, sql)? => {}
            Ok(_) => wrong.push(misplaced::<R>(&id)),
            Err(error) => wrong.push(error),
        }
        last = Some(id);
    }
    Ok((wrong, last))
}

/// Puts right what stands beside the bodies of these rows, if they verify.
pub(super) fn put_right<R: Row>(
    tx: &Tx<'_>,
    after: &Value,
    last: &Value,
) -> Result<(), StoreError> {
    select::<R>(tx, "id > ?1 AND id <= ?2", params![after, last]).map(|_| ())
}
