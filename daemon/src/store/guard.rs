//! Guard marks. Only kept here: what they mean is custody's to decide.

use std::collections::BTreeSet;
use std::sync::Arc;

use mlskeyd_protocol::v1::Owner;
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
    put(tx, of, &mark)?;
    failpoint::hit("store.guard.before_commit");
    Ok(Ok(mark))
}

fn put(tx: &mut Tx<'_>, of: GuardId, mark: &Arc<GuardMark>) -> Result<(), StoreError> {
    let id = name_id(&of)?;
    let row = GuardRow {
        of,
        mark: GuardMark::clone(mark),
    };
    row::put(tx.conn, tx.mac, Value::Blob(id.to_vec()), &row)?;
    tx.then(Effect::Guard(row.of, Arc::clone(mark)));
    Ok(())
}

/// What is remembered of an owner's identities of these names is remembered of the other's, too.
pub(super) fn remember_for(
    tx: &mut Tx<'_>,
    (from, to): (&Owner, &Owner),
    names: &BTreeSet<String>,
) -> Result<(), StoreError> {
    let goes = |row: &GuardRow| {
        let of = &row.of;
        Ok(of.owner == *from && names.contains(&of.identity))
    };
    for row in row::first::<GuardRow>(tx, "1", [], usize::MAX, goes)? {
        let owner = to.clone();
        let of = GuardId { owner, ..row.of };
        let mark = match get(tx.conn, tx.mac, &of)? {
            Some(before) => newest(before, row.mark),
            None => row.mark,
        };
        put(tx, of, &Arc::new(mark))?;
    }
    Ok(())
}

/// One identity of this name may have been the owner's before, in the same group.
fn newest(before: GuardMark, mark: GuardMark) -> GuardMark {
    if before.epoch > mark.epoch {
        return before;
    }
    if before.epoch < mark.epoch {
        return mark;
    }
    let is_other = |commit: &[u8; 32]| !mark.commits.contains(commit);
    let others = before.commits.into_iter().filter(is_other);
    let room = MAX_COMMITS.saturating_sub(mark.commits.len());
    let commits = others.take(room).chain(mark.commits.iter().copied());
    GuardMark {
        commits: commits.collect(),
        ..mark
    }
}
