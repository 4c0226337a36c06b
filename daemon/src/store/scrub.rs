//! The background pass that verifies rows before they are needed.

use rusqlite::params;
use rusqlite::types::Value;

use super::claims::{ClaimRow, OwnLeafRow, RecordRow, StorageRow};
use super::error::StoreError;
use super::guard::GuardRow;
use super::identities::Permit;
use super::mac::{Row, RowMac};
use super::reader::Reading;
use super::types::{Generation, IdentityRecord, KeyRecord};

/// Where the pass goes on; the default is its beginning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScrubPosition {
    table: usize,
    after: Option<Value>,
}

/// What a part of the pass found.
#[derive(Clone, Debug, PartialEq)]
pub struct Scrubbed {
    /// Rows that do not verify, as [`StoreError::Tampered`].
    pub tampered: Vec<StoreError>,
    /// Where to go on; `None`: that was all.
    pub next: Option<ScrubPosition>,
}

/// Verifies a row given as id, body and MAC.
type Verify = fn(&RowMac, &[u8], &[u8], &[u8]) -> Result<(), StoreError>;

struct Table {
    name: &'static str,
    verify: Verify,
}

const fn table<R: Row>() -> Table {
    Table {
        name: R::TABLE,
        verify: |mac, id, body, tag| mac.open::<R>(id, body, tag).map(|_| ()),
    }
}

/// All but the one row of `meta`, without which the registry does not open.
const TABLES: [Table; 9] = [
    table::<KeyRecord>(),
    table::<Generation>(),
    table::<IdentityRecord>(),
    table::<Permit>(),
    table::<GuardRow>(),
    table::<StorageRow>(),
    table::<RecordRow>(),
    table::<ClaimRow>(),
    table::<OwnLeafRow>(),
];

/// Verifies the next rows of one table.
pub(super) fn scrub(
    reading: &Reading<'_>,
    from: ScrubPosition,
    batch: u32,
) -> Result<Scrubbed, StoreError> {
    let Some(table) = TABLES.get(from.table) else {
        return Ok(Scrubbed {
            tampered: Vec::new(),
            next: None,
        });
    };
    let next_table = from.table.saturating_add(1);
    // Integers sort before blobs.
    let after = from.after.unwrap_or(Value::Integer(i64::MIN));
    let (mut tampered, mut last) = (Vec::new(), None);
    reading.if_verifiable(|conn, mac| {
        let sql = format!(
            "SELECT id, body, mac FROM {} WHERE id > ?1 ORDER BY id LIMIT ?2",
            table.name
        );
        let mut statement = conn.prepare_cached(&sql)?;
        let mut rows = statement.query(params![after, batch.max(1)])?;
        while let Some(row) = rows.next()? {
            let id: Value = row.get(0)?;
            let (body, tag): (Vec<u8>, Vec<u8>) = (row.get(1)?, row.get(2)?);
            let bytes = match &id {
                Value::Integer(number) => number.to_be_bytes().to_vec(),
                Value::Blob(bytes) => bytes.clone(),
                Value::Null | Value::Real(_) | Value::Text(_) => Vec::new(),
            };
            tampered.extend((table.verify)(mac, &bytes, &body, &tag).err());
            last = Some(id);
        }
        Ok(())
    })?;
    let next = match last {
        Some(id) => Some(ScrubPosition {
            table: from.table,
            after: Some(id),
        }),
        None => (next_table < TABLES.len()).then_some(ScrubPosition {
            table: next_table,
            after: None,
        }),
    };
    Ok(Scrubbed { tampered, next })
}
