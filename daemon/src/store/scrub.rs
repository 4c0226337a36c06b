//! The background pass that verifies rows before they are needed.

use rusqlite::Connection;
use rusqlite::types::Value;

use super::claims::{ClaimRow, OwnLeafRow, RecordRow, StorageRow};
use super::error::StoreError;
use super::guard::GuardRow;
use super::identities::Permit;
use super::mac::RowMac;
use super::reader::Reading;
use super::reassign::TakeOver;
use super::row::{self, Row};
use super::types::{Generation, IdentityRecord, KeyRecord};
use super::writer::Tx;

/// Where the pass goes on; the default is its beginning.
#[derive(Clone, Debug, PartialEq)]
pub struct ScrubPosition {
    table: usize,
    after: Value,
}

impl ScrubPosition {
    const fn start_of(table: usize) -> Self {
        // Integers sort before blobs.
        let after = Value::Integer(i64::MIN);
        Self { table, after }
    }
}

impl Default for ScrubPosition {
    fn default() -> Self {
        Self::start_of(0)
    }
}

/// What a part of the pass found.
#[derive(Clone, Debug, PartialEq)]
pub struct Scrubbed {
    /// Rows that do not verify, as [`StoreError::Tampered`], and those that are
    /// not found where they belong, as [`StoreError::Misplaced`].
    pub tampered: Vec<StoreError>,
    /// Where to go on; `None`: that was all.
    pub next: Option<ScrubPosition>,
}

/// What is wrong with the next rows, and the id of the last one.
type Check =
    fn(&Connection, &RowMac, &Value, u32) -> Result<(Vec<StoreError>, Option<Value>), StoreError>;

/// Puts the rows from after the first id to the other one in place.
type PutRight = fn(&Tx<'_>, &Value, &Value) -> Result<(), StoreError>;

struct Table {
    check: Check,
    put_right: PutRight,
}

const fn table<R: Row>() -> Table {
    Table {
        check: row::check_next::<R>,
        put_right: row::put_right::<R>,
    }
}

/// All but the one row of `meta`, without which the registry does not open.
const TABLES: [Table; 10] = [
    table::<KeyRecord>(),
    table::<Generation>(),
    table::<IdentityRecord>(),
    table::<Permit>(),
    table::<GuardRow>(),
    table::<TakeOver>(),
    table::<StorageRow>(),
    table::<RecordRow>(),
    table::<ClaimRow>(),
    table::<OwnLeafRow>(),
];

/// Rows of one table in which some are misplaced.
pub(super) struct Disorder {
    table: usize,
    after: Value,
    last: Value,
}

/// Verifies the next rows of one table.
pub(super) fn scrub(
    reading: &Reading<'_>,
    from: ScrubPosition,
    batch: u32,
) -> Result<(Scrubbed, Option<Disorder>), StoreError> {
    let ScrubPosition {
        table: number,
        after,
    } = from;
    let Some(table) = TABLES.get(number) else {
        let nothing = Scrubbed {
            tampered: Vec::new(),
            next: None,
        };
        return Ok((nothing, None));
    };
    let check = |conn: &Connection, mac: &RowMac| (table.check)(conn, mac, &after, batch.max(1));
    let (tampered, last) = reading.if_verifiable(check)?;
    let is_misplaced = |error: &StoreError| matches!(error, StoreError::Misplaced { .. });
    let (next, disorder) = match last {
        Some(last) => {
            let disorder = tampered.iter().any(is_misplaced).then(|| Disorder {
                table: number,
                after,
                last: last.clone(),
            });
            let after = last;
            let table = number;
            (Some(ScrubPosition { table, after }), disorder)
        }
        None => {
            let next = number.saturating_add(1);
            let next = (next < TABLES.len()).then(|| ScrubPosition::start_of(next));
            (next, None)
        }
    };
    Ok((Scrubbed { tampered, next }, disorder))
}

/// Puts these rows in place.
pub(super) fn put_right(tx: &Tx<'_>, disorder: &Disorder) -> Result<(), StoreError> {
    match TABLES.get(disorder.table) {
        Some(table) => (table.put_right)(tx, &disorder.after, &disorder.last),
        None => Ok(()),
    }
}
