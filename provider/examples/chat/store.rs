//! The participant's database, beside what OpenMLS keeps in it.

use std::path::Path;

use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::commands::{Readable, Result};
use crate::hub::Submission;

/// How OpenMLS's records are written.
#[derive(Default)]
pub(crate) struct Json;

impl Codec for Json {
    type Error = serde_json::Error;

    fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, Self::Error> {
        serde_json::to_vec(value)
    }

    fn from_slice<T: DeserializeOwned>(slice: &[u8]) -> Result<T, Self::Error> {
        serde_json::from_slice(slice)
    }
}

/// OpenMLS's storage in the participant's database.
pub(crate) type MlsStorage<'a> = SqliteStorageProvider<Json, &'a Connection>;

/// What the chat itself remembers.
pub(crate) struct Store<'a> {
    connection: &'a Connection,
}

impl<'a> Store<'a> {
    /// Opens the database in `dir`, and makes both if they are not there.
    pub(crate) fn open(dir: &Path) -> Result<Connection> {
        std::fs::create_dir_all(dir).readable()?;
        let mut connection = Connection::open(dir.join("chat.sqlite")).readable()?;
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .readable()?;
        SqliteStorageProvider::<Json, &mut Connection>::new(&mut connection)
            .run_migrations()
            .readable()?;
        connection
            .execute_batch(
                "CREATE TABLE IF NOT EXISTS chat_groups (name TEXT PRIMARY KEY);
                 CREATE TABLE IF NOT EXISTS chat_state (key TEXT PRIMARY KEY, value TEXT);
                 CREATE TABLE IF NOT EXISTS chat_outbox (id INTEGER PRIMARY KEY, submission TEXT);",
            )
            .readable()?;
        Ok(connection)
    }

    pub(crate) const fn new(connection: &'a Connection) -> Self {
        Self { connection }
    }

    /// Remembers that there is a group of this name.
    pub(crate) fn add_group(&self, name: &str) -> Result<()> {
        self.execute("INSERT OR IGNORE INTO chat_groups VALUES (?1)", name)
    }

    /// The names of the groups.
    pub(crate) fn groups(&self) -> Result<Vec<String>> {
        let mut select = self
            .connection
            .prepare("SELECT name FROM chat_groups ORDER BY name")
            .readable()?;
        let rows = select.query_map([], |row| row.get(0)).readable()?;
        rows.collect::<Result<_, _>>().readable()
    }

    /// Puts something into the outbox: written with the change of the group
    /// that it belongs to, in one transaction, so neither gets lost alone.
    pub(crate) fn post(&self, submission: &Submission) -> Result<()> {
        let text = serde_json::to_string(submission).readable()?;
        self.execute("INSERT INTO chat_outbox (submission) VALUES (?1)", text)
    }

    /// The oldest in the outbox.
    pub(crate) fn next_post(&self) -> Result<Option<(i64, Submission)>> {
        let row: Option<(i64, String)> = self
            .connection
            .query_row(
                "SELECT id, submission FROM chat_outbox ORDER BY id LIMIT 1",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()
            .readable()?;
        row.map(|(id, text)| Ok((id, serde_json::from_str(&text).readable()?)))
            .transpose()
    }

    /// Takes something out of the outbox.
    pub(crate) fn posted(&self, id: i64) -> Result<()> {
        self.execute("DELETE FROM chat_outbox WHERE id = ?1", id)
    }

    /// The number of the last message that was received.
    pub(crate) fn received(&self) -> Result<u64> {
        let text = self.state("received")?;
        text.map_or(Ok(0), |text| text.parse().readable())
    }

    /// Remembers the number of the last message that was received.
    pub(crate) fn set_received(&self, sequence: u64) -> Result<()> {
        self.set_state("received", &sequence.to_string())
    }

    /// Something that is remembered.
    pub(crate) fn state(&self, key: &str) -> Result<Option<String>> {
        self.connection
            .query_row(
                "SELECT value FROM chat_state WHERE key = ?1",
                [key],
                |row| row.get(0),
            )
            .optional()
            .readable()
    }

    /// Remembers something.
    pub(crate) fn set_state(&self, key: &str, value: &str) -> Result<()> {
        self.connection
            .execute(
                "INSERT OR REPLACE INTO chat_state VALUES (?1, ?2)",
                params![key, value],
            )
            .readable()
            .map(|_| ())
    }

    fn execute(&self, statement: &str, value: impl rusqlite::ToSql) -> Result<()> {
        self.connection
            .execute(statement, [value])
            .readable()
            .map(|_| ())
    }
}
