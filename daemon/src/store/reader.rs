//! The thread that reads what is not in memory.

use std::sync::Arc;

use mlskeyd_protocol::v1::{Bytes, KeyId, Owner};
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::cache::Cache;
use super::error::StoreError;
use super::mac::RowMac;
use super::types::{Counts, GuardId, GuardMark, KeyRecord};
use super::{guard, keys};

/// Most readings that wait.
pub(super) const QUEUE: usize = 1024;

/// What is sent to the reader.
pub(super) enum Message {
    /// Do this.
    Read(Box<dyn FnOnce(&Reading<'_>) + Send>),
    /// Close, and say when it is done.
    Stop(oneshot::Sender<()>),
}

/// What a reading works with.
pub(super) struct Reading<'a> {
    pub(super) conn: &'a Connection,
    pub(super) mac: &'a RowMac,
    cache: &'a Cache,
    read_only: Option<&'a str>,
}

impl Reading<'_> {
    pub(super) fn key(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let seen = self.cache.changes();
        let key = self.if_verifiable(|conn, mac| keys::get(conn, mac, id))?;
        Ok(self.keep(seen, key))
    }

    pub(super) fn key_by_public(
        &self,
        (owner, public_key): &(Owner, Bytes),
    ) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let seen = self.cache.changes();
        let find =
            |conn: &Connection, mac: &RowMac| keys::get_by_public(conn, mac, owner, public_key);
        let key = self.if_verifiable(find)?;
        Ok(self.keep(seen, key))
    }

    fn keep(&self, seen: u64, key: Option<KeyRecord>) -> Option<Arc<KeyRecord>> {
        let key = Arc::new(key?);
        self.cache.found_key(seen, &key);
        Some(key)
    }

    pub(super) fn guard(&self, of: GuardId) -> Result<Option<Arc<GuardMark>>, StoreError> {
        let seen = self.cache.changes();
        let mark = self
            .if_verifiable(|conn, mac| guard::get(conn, mac, &of))?
            .map(Arc::new);
        if let Some(mark) = &mark {
            self.cache.found_guard(seen, of, Arc::clone(mark));
        }
        Ok(mark)
    }

    /// Without the store key no row can be told from a forged one.
    pub(super) fn if_verifiable<T>(
        &self,
        read: impl FnOnce(&Connection, &RowMac) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match self.read_only {
            None => read(self.conn, self.mac),
            Some(reason) => Err(StoreError::ReadOnly(reason.to_owned())),
        }
    }

    pub(super) fn counts(&self) -> Result<Counts, StoreError> {
        let count = |sql: &str| -> Result<u64, StoreError> {
            let count: i64 = self
                .conn
                .prepare_cached(sql)?
                .query_row([], |row| row.get(0))?;
            Ok(count.cast_unsigned())
        };
        Ok(Counts {
            keys: count("SELECT count(*) FROM keys WHERE state IN (1, 2)")?,
            identities: count("SELECT count(*) FROM identities")?,
            storages: count("SELECT count(*) FROM storages")?,
        })
    }
}

/// Everything that the thread owns.
pub(super) struct Reader {
    pub(super) conn: Connection,
    pub(super) mac: Arc<RowMac>,
    pub(super) cache: Arc<Cache>,
    pub(super) read_only: Option<String>,
    /// The lock of the directory, if there is no writer to hold it.
    pub(super) _lock: Option<std::fs::File>,
}

impl Reader {
    /// Serves until it is told to stop, or nobody is left who could ask.
    pub(super) fn run(self, mut queue: mpsc::Receiver<Message>) {
        while let Some(message) = queue.blocking_recv() {
            match message {
                Message::Read(read) => read(&Reading {
                    conn: &self.conn,
                    mac: &self.mac,
                    cache: &self.cache,
                    read_only: self.read_only.as_deref(),
                }),
                Message::Stop(done) => {
                    drop(self);
                    let _ = done.send(());
                    return;
                }
            }
        }
    }
}
