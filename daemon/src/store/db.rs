//! Opening: the lock, the file, its schema, and whether the key fits.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::error::{OpenError, StoreError};
use super::mac::RowMac;
use super::row::Row;
use crate::audit::Tip;

/// The database's name in the state directory.
pub(super) const DATABASE: &str = "registry.db";

/// One step per schema version; the first makes an empty database.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];

/// What the registry keeps about itself. Rewritten in every transaction that
/// changes anything, and the proof that the store key fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    /// Observed seconds.
    pub(super) observed: u64,
    /// The last number given: to generations of claims, and as row ids.
    pub(super) sequence: u64,
    /// How many daemons have run on this state.
    pub(super) run: u64,
    /// How often an older copy of this database was found to have been put back.
    pub(super) restores: u64,
    /// Where the audit log ended when it was last compared with the guard's marks.
    pub(super) audited: Option<Tip>,
}

impl Row for Meta {
    const TABLE: &'static str = "meta";
}

impl Meta {
    pub(super) fn write(&self, conn: &Connection, mac: &RowMac) -> Result<(), StoreError> {
        let sealed = mac.seal(&[1], self)?;
        conn.prepare_cached(
            "INSERT INTO meta (id, body, mac) VALUES (1, ?1, ?2)
             ON CONFLICT (id) DO UPDATE SET body = ?1, mac = ?2",
        )?
        .execute((sealed.body, sealed.mac))?;
        Ok(())
    }
}

/// Makes the directory if need be, and refuses one that others may enter.
pub(super) fn prepare_directory(dir: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io {
        path: dir.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io)?;
    if fs::metadata(dir).map_err(io)?.mode() & 0o077 != 0 {
        return Err(OpenError::Permissions(dir.to_owned()));
    }
    Ok(())
}

/// Holds the directory for this process until the file is dropped.
pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let io = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    // Not truncated before it is ours: it names the holder.
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // Whatever stands there is only shown.
            let _ = file.take(16).read_to_string(&mut pid);
            let pid = pid.trim();
            let pid = if pid.is_empty() { "unknown" } else { pid }.to_owned();
            return Err(OpenError::InUse {
                dir: dir.to_owned(),
                pid,
            });
        }
        other => other.map_err(|errno| io(errno.into()))?,
    }
    file.set_len(0).map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}

/// A connection with all that every connection needs.
pub(super) fn connect(dir: &Path) -> Result<Connection, OpenError> {
    let path = dir.join(DATABASE);
    let io = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    // SQLite gives its other files the mode of this one.
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(io)?;
    configure(&path).map_err(|source| OpenError::Database {
        dir: dir.to_owned(),
        source,
    })
}

fn configure(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let conn = Connection::open_with_flags(fs::canonicalize(path).unwrap_or(path.into()), flags)?;
    conn.busy_timeout(std::time::Duration::from_secs(5))?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.set_prepared_statement_cache_capacity(128);
    Ok(conn)
}

/// What an opened file turned out to be.
pub(super) enum Opened {
    /// The key fits; the schema is the newest.
    Usable(Meta),
    /// The key does not fit. Nothing was changed.
    Unverifiable,
}

/// Brings the schema up to date, unless the key does not fit.
pub(super) fn prepare(
    dir: &Path,
    conn: &mut Connection,
    mac: &RowMac,
) -> Result<Opened, OpenError> {
    migrate(dir, conn, mac, MIGRATIONS)
}

fn migrate(
    dir: &Path,
    conn: &mut Connection,
    mac: &RowMac,
    migrations: &[&str],
) -> Result<Opened, OpenError> {
    let database = |source| OpenError::Database {
        dir: dir.to_owned(),
        source,
    };
    let contents = |source| OpenError::Contents {
        dir: dir.to_owned(),
        source,
    };
    let known = u32::try_from(migrations.len()).unwrap_or(u32::MAX);
    let found: u32 = conn
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(database)?;
    if found > known {
        return Err(OpenError::Newer {
            dir: dir.to_owned(),
            found,
            known,
        });
    }
    if found > 0 {
        if read_meta(conn, mac).map_err(contents)?.is_none() {
            return Ok(Opened::Unverifiable);
        }
        if found < known {
            keep_copy(dir, conn, found)?;
        }
    }
    let steps = migrations
        .iter()
        .skip(usize::try_from(found).unwrap_or(usize::MAX));
    if steps.len() > 0 {
        let transaction = conn.transaction().map_err(database)?;
        for step in steps {
            transaction.execute_batch(step).map_err(database)?;
        }
        if found == 0 {
            Meta::default().write(&transaction, mac).map_err(contents)?;
        }
        transaction
            .pragma_update(None, "user_version", known)
            .map_err(database)?;
        transaction.commit().map_err(database)?;
    }
    Ok(match read_meta(conn, mac).map_err(contents)? {
        Some(meta) => Opened::Usable(meta),
        None => Opened::Unverifiable,
    })
}

fn read_meta(conn: &Connection, mac: &RowMac) -> Result<Option<Meta>, StoreError> {
    let row: Option<(Vec<u8>, Vec<u8>)> = conn
        .query_row("SELECT body, mac FROM meta WHERE id = 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    Ok(row.and_then(|(body, tag)| mac.open(&[1], &body, &tag).ok()))
}

/// An older daemon can be put back with the copy, `registry.db.schema-N`.
fn keep_copy(dir: &Path, conn: &Connection, schema: u32) -> Result<(), OpenError> {
    let copy: PathBuf = dir.join(format!("{DATABASE}.schema-{schema}"));
    let unfinished = copy.with_extension("new");
    let io = |source| OpenError::Io {
        path: copy.clone(),
        source,
    };
    match fs::remove_file(&unfinished) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
        _ => {}
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(io)?;
    // The statement takes an empty file, and keeps its mode.
    conn.execute("VACUUM INTO ?1", [unfinished.to_string_lossy()])
        .map_err(|source| OpenError::Database {
            dir: dir.to_owned(),
            source,
        })?;
    file.sync_all().map_err(io)?;
    fs::rename(&unfinished, &copy).map_err(io)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_schema_is_migrated_and_a_copy_of_it_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mac = RowMac::new(&[1; 32]);
        let mut conn = connect(dir.path()).unwrap();
        migrate(dir.path(), &mut conn, &mac, MIGRATIONS).unwrap_or_else(|e| panic!("{e}"));
        let newer = [MIGRATIONS[0], "CREATE TABLE more (id INTEGER PRIMARY KEY)"];

        // Not with a wrong key, and not half.
        let wrong = migrate(dir.path(), &mut conn, &RowMac::new(&[2; 32]), &newer);
        assert!(matches!(wrong, Ok(Opened::Unverifiable)));
        let broken = [
            MIGRATIONS[0],
            "CREATE TABLE more (id INTEGER PRIMARY KEY); nonsense",
        ];
        assert!(migrate(dir.path(), &mut conn, &mac, &broken).is_err());
        assert_eq!(version(&conn), 1);

        assert!(matches!(
            migrate(dir.path(), &mut conn, &mac, &newer),
            Ok(Opened::Usable(_))
        ));
        assert_eq!(version(&conn), 2);
        conn.execute("INSERT INTO more VALUES (1)", []).unwrap();
        let copy = dir.path().join("registry.db.schema-1");
        assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o777, 0o600);
        let copy = Connection::open(copy).unwrap();
        assert_eq!(version(&copy), 1);
        assert!(matches!(read_meta(&copy, &mac), Ok(Some(_))));
    }

    fn version(conn: &Connection) -> u32 {
        conn.pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap()
    }
}
