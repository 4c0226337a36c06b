//! From a directory to a running registry.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tokio::sync::mpsc;

use super::cache::Cache;
use super::clock::{Clock, TimeSource};
use super::db::{self, Meta, Opened};
use super::error::OpenError;
use super::mac::RowMac;
use super::reader::{self, Reader};
use super::tombstones::Tombstones;
use super::types::Settings;
use super::writer::{self, Live, Tx, Writer};
use super::{Registry, Shared, claims, keys};

const LOST_KEY: &str = "the store key is not the one that this state was made with; \
    put the right one back and start again";

pub(super) fn open(
    dir: &Path,
    mac_key: &[u8; 32],
    settings: Settings,
    source: Arc<dyn TimeSource>,
) -> Result<Registry, OpenError> {
    db::prepare_directory(dir)?;
    let lock = db::lock(dir)?;
    let mac = Arc::new(RowMac::new(mac_key));
    let cache = Arc::new(Cache::new(settings.cached));
    let mut conn = db::connect(dir)?;
    let starting = Starting {
        dir,
        mac: Arc::clone(&mac),
        cache: Arc::clone(&cache),
        settings,
    };
    let (writer, read_only, lock) = match db::prepare(dir, &mut conn, &mac)? {
        Opened::Usable(meta) => (Some(starting.writer(conn, meta, source, lock)?), None, None),
        Opened::Unverifiable => {
            tracing::error!("{LOST_KEY}; until then all keys are missing, and none is deleted");
            (None, Some(LOST_KEY.to_owned()), Some(lock))
        }
    };
    let reader_conn = db::connect(dir)?;
    reader_conn
        .pragma_update(None, "query_only", true)
        .map_err(|source| OpenError::Database {
            dir: dir.to_owned(),
            source,
        })?;
    let reader = Reader {
        conn: reader_conn,
        mac,
        cache: Arc::clone(&cache),
        read_only: read_only.clone(),
        _lock: lock,
    };
    let (restores, audited) = writer.as_ref().map_or((0, None), |writer| {
        let meta = &writer.live.meta;
        (meta.restores, meta.audited)
    });
    let (to_reader, queue) = mpsc::channel(reader::QUEUE);
    let mut threads = vec![starting.thread("registry-read", move || reader.run(queue))?];
    let clock = writer.as_ref().map(|writer| Arc::clone(&writer.clock));
    let to_writer = match writer {
        None => None,
        Some(writer) => {
            let (to_writer, queue) = mpsc::channel(writer::QUEUE);
            threads.push(starting.thread("registry-write", move || writer.run(queue))?);
            Some(to_writer)
        }
    };
    Ok(Registry {
        shared: Arc::new(Shared {
            writer: to_writer,
            reader: to_reader,
            cache,
            clock,
            read_only,
            restores: AtomicU64::new(restores),
            audited,
            threads: Mutex::new(threads),
        }),
    })
}

struct Starting<'a> {
    dir: &'a Path,
    mac: Arc<RowMac>,
    cache: Arc<Cache>,
    settings: Settings,
}

impl Starting<'_> {
    /// The writer, after its first transaction: a new run has begun, nothing is
    /// attached, and what is destroyed stays destroyed.
    fn writer(
        &self,
        conn: Connection,
        meta: Meta,
        source: Arc<dyn TimeSource>,
        lock: File,
    ) -> Result<Writer, OpenError> {
        let (tombstones, stones) = Tombstones::open(self.dir, &self.mac)?;
        let started = meta.observed;
        let mut writer = Writer {
            conn,
            mac: Arc::clone(&self.mac),
            settings: self.settings,
            clock: Arc::new(Clock::start(source, started)),
            live: Live {
                meta: Meta {
                    run: meta.run.saturating_add(1),
                    ..meta
                },
                attached: HashMap::new(),
                storages_of: HashMap::new(),
                look_from: HashMap::new(),
                started,
                nothing_due_at: None,
            },
            cache: Arc::clone(&self.cache),
            tombstones,
            scrub: true,
            _lock: lock,
        };
        writer
            .now(move |tx: &mut Tx<'_>| {
                tx.live.meta.write(tx.conn, tx.mac)?;
                claims::detach_all(tx)?;
                keys::bury(tx, &stones)
            })
            .map_err(|source| OpenError::Contents {
                dir: self.dir.to_owned(),
                source,
            })?;
        Ok(writer)
    }

    fn thread(
        &self,
        name: &str,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<std::thread::JoinHandle<()>, OpenError> {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map_err(|source| OpenError::Io {
                path: self.dir.to_owned(),
                source,
            })
    }
}
