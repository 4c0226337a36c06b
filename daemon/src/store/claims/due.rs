//! When a key's time has come.

use std::time::Duration;

use mlskeyd_protocol::v1::KeyId;
use rusqlite::params;

use super::rows::{self, StorageRow};
use super::storages;
use crate::store::error::StoreError;
use crate::store::row;
use crate::store::types::{Binding, KeyRecord, Wait};
use crate::store::writer::Tx;
use crate::store::{column, keys, seconds};

/// Most rows that one call tidies.
const CHORE: usize = 256;

/// After a call that found nothing to do, what seems due is something that
/// cannot be done (a row that does not verify): it is tried again so much later.
const TRY_AGAIN: u64 = 60;

/// Keys whose time has come, at most `limit`.
pub(in crate::store) fn destroyable(
    tx: &mut Tx<'_>,
    limit: usize,
) -> Result<Vec<KeyId>, StoreError> {
    let before = tx.conn.total_changes();
    orphans_of_earlier_runs(tx)?;
    forget_ended_storages(tx)?;
    watch_expiry(tx)?;
    let settings = tx.settings;
    let sets = [
        ("wait = 4 AND since <= ?1", tx.ago(settings.grace)),
        ("wait = 3 AND since <= ?1", tx.ago(settings.horizon)),
        ("wait = 2 AND since <= ?1", tx.ago(settings.orphan_grace)),
        (
            "wait = 1 AND since <= ?1",
            tx.ago(settings.max_unclaimed_age),
        ),
        ("expired <= ?1", tx.ago(settings.grace)),
        ("ends <= ?1", Some(column(tx.now.observed))),
    ];
    let mut due = Vec::new();
    for (condition, until) in sets {
        let more = limit.saturating_sub(due.len());
        let condition = format!("{condition} AND state = 1");
        // Before they are counted: what only seems due would be in the way of the
        // others for ever.
        let is_due = |key: &KeyRecord| Ok(!due.contains(&key.id) && is_due(tx, key)?);
        let keys = row::first(tx, &condition, params![until], more, is_due)?;
        due.extend(keys.into_iter().map(|key| key.id));
    }
    let idle = due.is_empty() && tx.conn.total_changes() == before;
    tx.live.nothing_due_at = idle.then_some(tx.now.observed);
    Ok(due)
}

/// Has the key's time come? Judged on what verifies, never on a column.
pub(in crate::store) fn is_due(tx: &Tx<'_>, key: &KeyRecord) -> Result<bool, StoreError> {
    let settings = tx.settings;
    if let Some(ends) = key.ends {
        return Ok(ends <= tx.now.observed);
    }
    if let (Binding::Init { not_after, .. }, Some(since)) = (&key.binding, key.expired_since)
        && *not_after < tx.now.wall
        && tx.has_passed(since, settings.grace)
    {
        return Ok(true);
    }
    let over = match key.wait {
        Wait::None => false,
        Wait::Open { since, .. } => tx.has_passed(since, settings.max_unclaimed_age),
        Wait::Orphan { since } => tx.has_passed(since, settings.orphan_grace),
        Wait::Released { since } => tx.has_passed(since, settings.horizon),
        Wait::Unnamed { since } => tx.has_passed(since, settings.grace),
    };
    Ok(over && !rows::may_be_held(tx, &key.id)?)
}

/// Connections do not outlive the daemon: keys of an earlier run's count as
/// orphans since this run began.
fn orphans_of_earlier_runs(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let run = [column(tx.live.meta.run)];
    let stale: Vec<KeyRecord> = row::first(tx, "wait = 1 AND run < ?1", run, CHORE, |_| Ok(true))?;
    for key in stale {
        keys::put(
            tx,
            KeyRecord {
                wait: Wait::Orphan {
                    since: tx.live.started,
                },
                ..key
            },
        )?;
    }
    Ok(())
}

fn forget_ended_storages(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let until = tx.ago(tx.settings.orphan_grace);
    let over = |since| tx.has_passed(since, tx.settings.orphan_grace);
    let is_over = |row: &StorageRow| Ok(row.ends && row.gone_since.is_some_and(over));
    for storage in row::first(tx, "ending <= ?1", [until], CHORE, is_over)? {
        storages::forget_row(tx, &storage)?;
    }
    Ok(())
}

/// The wall clock only starts a grace, and stops it when it is set back: a
/// wrong date that is put right in time kills nothing.
fn watch_expiry(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let wall = [column(tx.now.wall)];
    let expired = "not_after < ?1 AND expired IS NULL AND state = 1";
    for key in row::first::<KeyRecord>(tx, expired, wall, CHORE, |_| Ok(true))? {
        let expired_since = Some(tx.now.observed);
        keys::put(
            tx,
            KeyRecord {
                expired_since,
                ..key
            },
        )?;
    }
    let valid_again = "expired IS NOT NULL AND not_after >= ?1 AND state = 1";
    for key in row::first::<KeyRecord>(tx, valid_again, wall, CHORE, |_| Ok(true))? {
        keys::put(
            tx,
            KeyRecord {
                expired_since: None,
                ..key
            },
        )?;
    }
    Ok(())
}

/// How long until [`destroyable`] has something to do; `None`: nothing waits.
pub(in crate::store) fn next_due(tx: &Tx<'_>) -> Result<Option<Duration>, StoreError> {
    let settings = tx.settings;
    let run = column(tx.live.meta.run);
    let waiting = |wait: u8, time: Duration| {
        let sql = "SELECT min(since) FROM keys WHERE wait = ?1 AND state = 1";
        rows::minimum(tx, sql, [wait])
            .map(|since| since.map(|since| since.saturating_add(seconds(time))))
    };
    let at_once = "SELECT 0 FROM keys WHERE wait = 1 AND run < ?1 LIMIT 1";
    let ending = "SELECT min(ending) FROM storages WHERE ending IS NOT NULL";
    let expired = "SELECT min(expired) FROM keys WHERE expired IS NOT NULL";
    let ends = "SELECT min(ends) FROM keys WHERE ends IS NOT NULL";
    let expiry = "SELECT min(not_after) FROM keys WHERE not_after IS NOT NULL AND expired IS NULL";
    let times = [
        rows::minimum(tx, at_once, [run])?,
        waiting(1, settings.max_unclaimed_age)?,
        waiting(2, settings.orphan_grace)?,
        waiting(3, settings.horizon)?,
        waiting(4, settings.grace)?,
        rows::minimum(tx, ending, [])?
            .map(|since| since.saturating_add(seconds(settings.orphan_grace))),
        rows::minimum(tx, expired, [])?.map(|since| since.saturating_add(seconds(settings.grace))),
        rows::minimum(tx, ends, [])?,
        // By the wall clock, and one second later: it has to be over.
        rows::minimum(tx, expiry, [])?.map(|end| {
            let left = end.saturating_add(1).saturating_sub(tx.now.wall);
            tx.now.observed.saturating_add(left)
        }),
    ];
    let not_before = tx
        .live
        .nothing_due_at
        .map_or(0, |at| at.saturating_add(TRY_AGAIN));
    Ok(times.into_iter().flatten().min().map(|due| {
        let due = if due <= tx.now.observed {
            due.max(not_before)
        } else {
            due
        };
        Duration::from_secs(due.saturating_sub(tx.now.observed))
    }))
}

/// Keys whose grace is over and that wait for a last look.
pub(in crate::store) fn waiting(tx: &Tx<'_>) -> Result<u64, StoreError> {
    let sql = "SELECT count(*) FROM keys WHERE wait = 3 AND since <= ?1 AND state = 1";
    let count: i64 = tx
        .conn
        .prepare_cached(sql)?
        .query_row([tx.ago(tx.settings.grace)], |row| row.get(0))?;
    Ok(count.cast_unsigned())
}
