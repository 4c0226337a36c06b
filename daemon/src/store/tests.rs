//! The registry's rules: opening, the journal, rows, group commit.

mod columns;
mod reassign;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mlskeyd_protocol::v1::{
    Algorithm, Bytes, Claim, Credential, Kem, KeyId, KeyState, Note, Owner, Record, Report,
    SignatureScheme, Tier,
};
use rusqlite::Connection;

use super::*;
use crate::devices::KeyBlob;

pub(super) const KEY: [u8; 32] = [7; 32];

/// Clocks that a test sets.
#[derive(Default)]
pub(super) struct TestClock {
    pub(super) boottime: AtomicU64,
    pub(super) wall: AtomicU64,
}

impl TestClock {
    pub(super) fn pass(&self, seconds: u64) {
        self.boottime.fetch_add(seconds, Ordering::SeqCst);
        self.wall.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl TimeSource for TestClock {
    fn boottime(&self) -> Duration {
        Duration::from_secs(self.boottime.load(Ordering::SeqCst))
    }
    fn wall(&self) -> u64 {
        self.wall.load(Ordering::SeqCst)
    }
}

pub(super) struct Bench {
    pub(super) dir: tempfile::TempDir,
    pub(super) clock: Arc<TestClock>,
    pub(super) settings: Settings,
    pub(super) store: Registry,
    next: AtomicU64,
}

pub(super) fn alice() -> Owner {
    Owner {
        uid: 1000,
        app: "chat".into(),
    }
}

/// `tempfile` leaves the mode to the umask.
pub(super) fn private_dir() -> tempfile::TempDir {
    let mode = fs::Permissions::from_mode(0o700);
    tempfile::Builder::new()
        .permissions(mode)
        .tempdir()
        .unwrap()
}

fn open(dir: &Path, settings: Settings, clock: &Arc<TestClock>) -> Registry {
    Registry::open_with_clock(dir, &KEY, settings, Arc::clone(clock) as _).unwrap()
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(super) fn with(settings: Settings) -> Self {
        let dir = private_dir();
        let clock = Arc::new(TestClock::default());
        clock.wall.store(1_700_000_000, Ordering::SeqCst);
        let store = open(dir.path(), settings, &clock);
        Self {
            dir,
            clock,
            settings,
            store,
            next: AtomicU64::new(1),
        }
    }

    /// A clean stop and start.
    pub(super) fn reopen(&mut self) {
        let elsewhere = private_dir();
        self.store = open(elsewhere.path(), self.settings, &self.clock);
        self.store = open(self.dir.path(), self.settings, &self.clock);
    }

    /// A power cut: what is on disk just now is all that is left.
    pub(super) fn crash(&mut self) {
        let copy = private_dir();
        copy_state(self.dir.path(), copy.path());
        self.store = open(copy.path(), self.settings, &self.clock);
        self.dir = copy;
    }

    pub(super) fn sql(&self, sql: &str) -> usize {
        Connection::open(self.dir.path().join("registry.db"))
            .unwrap()
            .execute(sql, [])
            .unwrap()
    }

    fn number(&self) -> u128 {
        u128::from(self.next.fetch_add(1, Ordering::SeqCst))
    }

    pub(super) fn id(&self) -> KeyId {
        KeyId::from_bytes(self.number().to_be_bytes())
    }

    pub(super) async fn generation(&self) -> GenerationId {
        match self
            .store
            .current_generation("soft", Duration::from_secs(86_400))
            .await
            .unwrap()
        {
            CurrentGeneration::Existing(id) => id,
            CurrentGeneration::CreateNew(id) => {
                self.store.finish_generation(id).await.unwrap();
                id
            }
        }
    }

    async fn new_hpke(&self, connection: Option<ConnectionId>) -> NewKey {
        NewKey {
            id: self.id(),
            owner: alice(),
            algorithm: Algorithm::Hpke(Kem::DhKemX25519),
            device: "soft".into(),
            tier: Tier::Software,
            generation: Under::Shared(self.generation().await),
            identity: None,
            adopted: false,
            pin: false,
            connection,
            created: 1_700_000_000,
        }
    }

    pub(super) async fn begin(&self, connection: Option<ConnectionId>) -> KeyId {
        let new = self.new_hpke(connection).await;
        let id = new.id;
        self.store.begin_create(new).await.unwrap();
        id
    }

    pub(super) async fn hpke(&self, connection: Option<ConnectionId>) -> KeyId {
        let id = self.begin(connection).await;
        self.store.finish_create(made(id)).await.unwrap();
        id
    }

    pub(super) async fn bind(&self, key: KeyId, to: Binding) {
        let from = self.store.key(key).await.unwrap().unwrap().binding.clone();
        self.store
            .bind(&alice(), vec![Rebind { key, from, to }])
            .await
            .unwrap();
    }

    pub(super) async fn state(&self, key: KeyId) -> KeyState {
        self.store.key(key).await.unwrap().unwrap().shown_state()
    }

    /// What custody does when its timer fires.
    pub(super) async fn sweep(&self) -> Vec<KeyId> {
        let mut destroyed = Vec::new();
        loop {
            let due = self.store.destroyable(10).await.unwrap();
            if due.is_empty() {
                return destroyed;
            }
            for id in due {
                self.store.begin_destroy(id, Cause::Due).await.unwrap();
                self.store.finish_destroy(id).await.unwrap();
                destroyed.push(id);
            }
        }
    }

    pub(super) async fn signature_key(
        &self,
        name: &str,
    ) -> (IdentityRecord, MadeKey, GenerationId) {
        let key = self.id();
        let generation = GenerationId::from_bytes(self.number().to_le_bytes());
        let scheme = SignatureScheme::Ed25519;
        let new = NewKey {
            id: key,
            owner: alice(),
            algorithm: Algorithm::Signature(scheme),
            device: "soft".into(),
            tier: Tier::Software,
            generation: Under::Own(generation),
            identity: Some(name.into()),
            adopted: false,
            pin: false,
            connection: None,
            created: 1,
        };
        self.store.begin_create(new).await.unwrap();
        let credential = Credential::Basic(name.as_bytes().into());
        let identity = IdentityRecord {
            owner: alice(),
            name: name.into(),
            made_with: credential.clone(),
            credential,
            scheme,
            key,
            retiring: Vec::new(),
            next: None,
        };
        (identity, made(key), generation)
    }
}

pub(super) fn made(id: KeyId) -> MadeKey {
    let blob = [b"the blob of ".as_slice(), id.to_string().as_bytes()].concat();
    MadeKey {
        id,
        public_key: public(id),
        blob: KeyBlob::new(blob),
        tier: Tier::Software,
    }
}

pub(super) fn public(id: KeyId) -> Bytes {
    Bytes([b"public".as_slice(), id.as_bytes()].concat())
}

fn copy_state(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn guard_id(n: u8) -> GuardId {
    GuardId {
        owner: alice(),
        identity: "alice".into(),
        group: Bytes(vec![n]),
    }
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_told_the_pid() {
    let bench = Bench::new();
    let error = Registry::open(bench.dir.path(), &KEY, Settings::default()).unwrap_err();
    let expected = format!("another mlskeyd (pid {})", std::process::id());
    assert!(error.to_string().starts_with(&expected), "{error}");
}

#[tokio::test]
async fn newer_state_is_refused() {
    let mut bench = Bench::new();
    bench.store.close().await;
    bench.sql("PRAGMA user_version = 2");
    let error = Registry::open(bench.dir.path(), &KEY, Settings::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("newer mlskeyd (schema 2, this one knows 1)"),
        "{error}"
    );
    bench.sql("PRAGMA user_version = 1");
    bench.reopen();
}

#[tokio::test]
async fn files_are_for_their_owner_only() {
    let bench = Bench::new();
    bench.hpke(None).await;
    for entry in fs::read_dir(bench.dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
    bench.store.close().await;
    fs::set_permissions(bench.dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
    let error = Registry::open(bench.dir.path(), &KEY, Settings::default()).unwrap_err();
    assert!(matches!(error, OpenError::Permissions(_)), "{error}");
}

#[tokio::test]
async fn a_lost_store_key_makes_read_only_and_loses_nothing() {
    let mut bench = Bench::new();
    let key = bench.hpke(None).await;
    bench.store.close().await;
    let before = fs::read(bench.dir.path().join("tombstones")).unwrap();

    let lost = Registry::open(bench.dir.path(), &[8; 32], Settings::default()).unwrap();
    assert!(lost.read_only_reason().unwrap().contains("store key"));
    assert!(matches!(lost.key(key).await, Err(StoreError::ReadOnly(_))));
    assert!(matches!(
        lost.begin_destroy(key, Cause::Ordered).await,
        Err(StoreError::ReadOnly(_))
    ));
    let page = lost.keys_page(None, false).await.unwrap();
    assert_eq!(page[0].0.shown_state(), KeyState::Missing);
    assert!(page[0].0.blob.as_bytes().is_empty());
    lost.close().await;
    assert_eq!(
        fs::read(bench.dir.path().join("tombstones")).unwrap(),
        before
    );

    bench.reopen();
    assert_eq!(bench.state(key).await, KeyState::Active);
}

#[tokio::test]
async fn a_key_is_visible_only_when_it_is_finished() {
    let mut bench = Bench::new();
    let key = bench.begin(None).await;
    assert_eq!(bench.store.key(key).await.unwrap(), None);
    bench.crash();
    assert_eq!(bench.store.key(key).await.unwrap(), None);
    let pending = bench.store.pending().await.unwrap();
    assert_eq!(
        pending
            .creating
            .iter()
            .map(|key| key.id)
            .collect::<Vec<_>>(),
        [key]
    );

    let finished = bench.store.finish_create(made(key)).await.unwrap();
    assert_eq!(finished.blob, made(key).blob);
    bench.crash();
    let found = bench
        .store
        .key_by_public(&alice(), &public(key))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found, finished);
    let stranger = Owner {
        uid: 1001,
        ..alice()
    };
    assert_eq!(
        bench
            .store
            .key_by_public(&stranger, &public(key))
            .await
            .unwrap(),
        None
    );
    assert_eq!(bench.store.pending().await.unwrap(), Pending::default());
    assert!(bench.store.abandon_create(key).await.is_err());

    let abandoned = bench.begin(None).await;
    bench.store.abandon_create(abandoned).await.unwrap();
    bench.crash();
    assert_eq!(bench.store.pending().await.unwrap(), Pending::default());
}

#[tokio::test]
async fn destruction_is_journalled_and_the_blob_leaves_the_files() {
    let mut bench = Bench::new();
    let key = bench.hpke(None).await;
    let blob = made(key).blob.as_bytes().to_vec();
    assert!(on_disk(bench.dir.path(), &blob));
    bench
        .store
        .begin_destroy(key, Cause::Ordered)
        .await
        .unwrap();
    bench.crash();
    assert_eq!(bench.state(key).await, KeyState::Destroyed);
    assert_eq!(bench.store.pending().await.unwrap().destroying[0].id, key);
    bench
        .store
        .begin_destroy(key, Cause::Ordered)
        .await
        .unwrap();
    bench.store.finish_destroy(key).await.unwrap();
    bench.store.finish_destroy(key).await.unwrap();
    assert!(!on_disk(bench.dir.path(), &blob), "the blob is still there");
    bench.crash();
    assert_eq!(bench.state(key).await, KeyState::Destroyed);
    assert_eq!(bench.store.counts().await.unwrap().keys, 0);
    assert_eq!(bench.store.keys_page(None, true).await.unwrap().len(), 1);
    let error = bench
        .store
        .begin_destroy(key, Cause::Ordered)
        .await
        .unwrap_err();
    assert_eq!(error, StoreError::Destroyed(key));
}

fn on_disk(dir: &Path, what: &[u8]) -> bool {
    fs::read_dir(dir).unwrap().any(|entry| {
        fs::read(entry.unwrap().path())
            .unwrap()
            .windows(what.len())
            .any(|part| part == what)
    })
}

#[tokio::test]
async fn a_restored_database_does_not_bring_a_key_back() {
    let mut bench = Bench::new();
    let (dead, alive) = (bench.hpke(None).await, bench.hpke(None).await);
    let yesterday = private_dir();
    bench.store.close().await;
    copy_state(bench.dir.path(), yesterday.path());
    bench.reopen();
    bench
        .store
        .begin_destroy(dead, Cause::Ordered)
        .await
        .unwrap();
    bench.store.finish_destroy(dead).await.unwrap();
    bench.store.close().await;

    fs::copy(
        yesterday.path().join("registry.db"),
        bench.dir.path().join("registry.db"),
    )
    .unwrap();
    bench.reopen();
    assert_eq!(bench.state(dead).await, KeyState::Destroyed);
    assert_eq!(bench.state(alive).await, KeyState::Active);
    assert_eq!(bench.store.pending().await.unwrap().destroying[0].id, dead);
}

#[tokio::test]
async fn tombstones_of_destroyed_generations_are_dropped_and_their_keys_stay_dead() {
    let mut bench = Bench::new();
    let key = bench.hpke(None).await;
    let generation = bench.generation().await;
    let yesterday = private_dir();
    bench.store.close().await;
    copy_state(bench.dir.path(), yesterday.path());
    bench.reopen();
    bench
        .store
        .begin_destroy(key, Cause::Ordered)
        .await
        .unwrap();
    bench.store.finish_destroy(key).await.unwrap();
    // Its last key is dead: it takes no more, current or not.
    assert_eq!(
        bench.store.generations_to_destroy().await.unwrap()[0].id,
        generation
    );
    bench
        .store
        .begin_destroy_generation(generation)
        .await
        .unwrap();
    bench
        .store
        .finish_destroy_generation(generation)
        .await
        .unwrap();
    assert!(
        bench
            .store
            .generations_to_destroy()
            .await
            .unwrap()
            .is_empty()
    );
    let tombstones = bench.dir.path().join("tombstones");
    assert_eq!(fs::metadata(&tombstones).unwrap().len(), 100);
    bench.reopen();
    assert_eq!(fs::metadata(&tombstones).unwrap().len(), 50);

    bench.store.close().await;
    fs::copy(
        yesterday.path().join("registry.db"),
        bench.dir.path().join("registry.db"),
    )
    .unwrap();
    // A crash in the middle of an append, and a forged entry.
    let mut bytes = fs::read(&tombstones).unwrap();
    bytes.extend_from_slice(&[1; 50 + 13]);
    fs::write(&tombstones, &bytes).unwrap();
    bench.reopen();
    assert_eq!(fs::metadata(&tombstones).unwrap().len(), 100);
    assert_eq!(bench.state(key).await, KeyState::Destroyed);
    let pending = bench.store.pending().await.unwrap();
    assert_eq!(pending.generations_destroying[0].id, generation);
}

#[tokio::test]
async fn generations_rotate_and_go_with_their_last_key() {
    let bench = Bench::new();
    let age = Duration::from_secs(86_400);
    let key = bench.hpke(None).await;
    let first = bench.generation().await;
    assert_eq!(
        bench.store.current_generation("soft", age).await.unwrap(),
        CurrentGeneration::Existing(first)
    );
    bench.clock.pass(86_400);
    let second = bench.generation().await;
    assert_ne!(first, second);
    // The new one waits for its first key.
    // The old one holds a key: it is retired, not due.
    assert!(
        bench
            .store
            .generations_to_destroy()
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        bench.store.begin_destroy_generation(first).await,
        Err(StoreError::WrongGeneration)
    );
    bench
        .store
        .begin_destroy(key, Cause::Ordered)
        .await
        .unwrap();
    assert!(
        bench
            .store
            .generations_to_destroy()
            .await
            .unwrap()
            .is_empty()
    );
    bench.store.finish_destroy(key).await.unwrap();
    assert_eq!(
        bench.store.generations_to_destroy().await.unwrap()[0].id,
        first
    );
    bench.store.begin_destroy_generation(first).await.unwrap();
    // Nobody may put a key there any more.
    let new = NewKey {
        id: bench.id(),
        owner: alice(),
        algorithm: Algorithm::Hpke(Kem::DhKemP256),
        device: "soft".into(),
        tier: Tier::Software,
        generation: Under::Shared(first),
        identity: None,
        adopted: false,
        pin: false,
        connection: None,
        created: 0,
    };
    assert_eq!(
        bench.store.begin_create(new).await,
        Err(StoreError::WrongGeneration)
    );
    let pending = bench.store.pending().await.unwrap();
    assert_eq!(pending.generations_destroying[0].id, first);
    bench.store.finish_destroy_generation(first).await.unwrap();
}

#[tokio::test]
async fn an_identity_comes_with_its_key_or_not_at_all() {
    let mut bench = Bench::new();
    let (identity, key, generation) = bench.signature_key("alice").await;
    bench.crash();
    let pending = bench.store.pending().await.unwrap();
    assert_eq!(pending.generations_creating[0].id, generation);
    bench
        .store
        .create_identity(identity.clone(), key, None)
        .await
        .unwrap();
    bench.crash();
    let found = bench.store.identity(&alice(), "alice").await.unwrap();
    assert_eq!(found.as_ref(), Some(&identity));
    let expected = std::slice::from_ref(&identity);
    assert_eq!(bench.store.identities(None).await.unwrap(), expected);
    assert_eq!(
        bench.store.identities(Some(&alice())).await.unwrap(),
        expected
    );
    let other = Owner {
        app: "other".into(),
        ..alice()
    };
    assert_eq!(bench.store.identities(Some(&other)).await.unwrap(), []);
    assert_eq!(bench.store.identity(&other, "alice").await.unwrap(), None);

    let (again, key, generation) = bench.signature_key("alice").await;
    let error = bench
        .store
        .create_identity(again.clone(), key, None)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Conflict(_)), "{error}");
    assert_eq!(bench.store.key(again.key).await.unwrap(), None);
    bench.store.abandon_create(again.key).await.unwrap();
    bench
        .store
        .begin_destroy_generation(generation)
        .await
        .unwrap();
    bench
        .store
        .finish_destroy_generation(generation)
        .await
        .unwrap();
    assert_eq!(bench.store.pending().await.unwrap(), Pending::default());

    // Its generation goes with it, and not before.
    assert!(
        bench
            .store
            .generations_to_destroy()
            .await
            .unwrap()
            .is_empty()
    );
    bench
        .store
        .begin_destroy(identity.key, Cause::Ordered)
        .await
        .unwrap();
    bench.store.finish_destroy(identity.key).await.unwrap();
    assert_eq!(bench.store.generations_to_destroy().await.unwrap().len(), 1);
}

#[tokio::test]
async fn bindings_change_all_or_none_and_only_from_what_was_seen() {
    let mut bench = Bench::new();
    let (a, b) = (bench.hpke(None).await, bench.hpke(None).await);
    let leaf = |n| Binding::Leaf {
        group: Bytes(vec![n]),
        leaf_index: 0,
    };
    let change = |key, from, to| Rebind { key, from, to };
    bench
        .store
        .bind(&alice(), vec![change(a, Binding::None, leaf(1))])
        .await
        .unwrap();
    bench
        .store
        .bind(&alice(), vec![change(a, Binding::None, leaf(1))])
        .await
        .unwrap();
    let both = vec![
        change(b, Binding::None, leaf(2)),
        change(a, Binding::None, leaf(2)),
    ];
    assert!(matches!(
        bench.store.bind(&alice(), both).await,
        Err(StoreError::Conflict(_))
    ));
    let stranger = Owner { uid: 5, ..alice() };
    let foreign = vec![change(b, Binding::None, leaf(2))];
    assert!(matches!(
        bench.store.bind(&stranger, foreign).await,
        Err(StoreError::NotFound(_))
    ));
    bench.crash();
    assert_eq!(bench.store.key(a).await.unwrap().unwrap().binding, leaf(1));
    assert_eq!(
        bench.store.key(b).await.unwrap().unwrap().binding,
        Binding::None
    );
}

#[tokio::test]
async fn the_guard_advances_durably_and_never_by_a_refusal() {
    let mut bench = Bench::new();
    let at = |epoch| GuardMark {
        epoch,
        leaf_index: Some(3),
        commits: vec![[1; 32]],
        ..GuardMark::default()
    };
    assert_eq!(bench.store.guard_mark(&guard_id(1)).await.unwrap(), None);
    let raised = bench
        .store
        .update_guard(guard_id(1), move |_| Ok::<_, ()>(at(5)))
        .await
        .unwrap();
    assert_eq!(*raised.unwrap(), at(5));
    let refused = bench
        .store
        .update_guard(guard_id(1), |_| Err("rollback"))
        .await
        .unwrap();
    assert_eq!(refused, Err("rollback"));
    let many = GuardMark {
        commits: vec![[0; 32]; MAX_COMMITS + 1],
        ..at(6)
    };
    let error = bench
        .store
        .update_guard(guard_id(1), |_| Ok::<_, ()>(many))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Limit(_)));
    bench.crash();
    assert_eq!(
        *bench.store.guard_mark(&guard_id(1)).await.unwrap().unwrap(),
        at(5)
    );
    assert_eq!(bench.store.guard_mark(&guard_id(2)).await.unwrap(), None);
}

#[tokio::test]
async fn a_permit_to_leave_is_used_once_and_for_its_key_only() {
    let mut bench = Bench::new();
    let key = Bytes(vec![9; 32]);
    bench
        .store
        .permit_leave(guard_id(1), key.clone())
        .await
        .unwrap();
    bench.crash();
    assert_eq!(
        bench.store.leave_permit(&guard_id(1)).await.unwrap(),
        Some(key.clone())
    );
    assert!(
        !bench
            .store
            .use_leave_permit(guard_id(2), key.clone())
            .await
            .unwrap()
    );
    assert!(
        !bench
            .store
            .use_leave_permit(guard_id(1), Bytes(vec![8; 32]))
            .await
            .unwrap()
    );
    assert!(
        bench
            .store
            .use_leave_permit(guard_id(1), key.clone())
            .await
            .unwrap()
    );
    assert!(
        !bench
            .store
            .use_leave_permit(guard_id(1), key)
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn a_row_of_any_table_that_was_changed_is_found_and_not_used() {
    let mut bench = Bench::new();
    let key = bench.hpke(None).await;
    let (identity, made, _) = bench.signature_key("alice").await;
    bench
        .store
        .create_identity(identity, made, None)
        .await
        .unwrap();
    bench
        .store
        .permit_leave(guard_id(1), Bytes(vec![1]))
        .await
        .unwrap();
    let mark = GuardMark::default();
    bench
        .store
        .update_guard(guard_id(1), |_| Ok::<_, ()>(mark))
        .await
        .unwrap()
        .unwrap();
    let group = Bytes(vec![1]);
    let record = Record::Epoch {
        group: group.clone(),
        epoch: 1,
        leaf_index: 0,
    };
    let claim = Claim {
        storage: "s".into(),
        record,
        keys: vec![key],
    };
    let claimed = bench.store.claim(&alice(), claim.clone()).await.unwrap();
    let notes = vec![Note::OwnLeaf {
        group: group.clone(),
        public_key: public(key),
    }];
    bench
        .store
        .report(
            &alice(),
            Report {
                storage: "s".into(),
                notes,
            },
        )
        .await
        .unwrap();
    assert_eq!(scrub_all(&bench.store).await, []);

    let tables = [
        "keys",
        "generations",
        "identities",
        "permits",
        "guards",
        "storages",
        "records",
        "claims",
        "own_leaves",
    ];
    for table in tables {
        for column in ["body", "mac"] {
            bench.store.close().await;
            let whole = private_dir();
            copy_state(bench.dir.path(), whole.path());
            let conn = Connection::open(bench.dir.path().join("registry.db")).unwrap();
            let sql = format!("SELECT substr(hex({column}), 1, 2) FROM {table} LIMIT 1");
            let first: String = conn.query_row(&sql, [], |row| row.get(0)).unwrap();
            let other = if first == "FF" { "FE" } else { "FF" };
            let change = format!(
                "UPDATE {table} SET {column} = unhex('{other}' || substr(hex({column}), 3)) \
                 WHERE substr(hex({column}), 1, 2) = '{first}'"
            );
            let changed = conn.execute(&change, []).unwrap();
            drop(conn);
            bench.reopen();
            let found = scrub_all(&bench.store).await;
            assert_eq!(found.len(), changed, "{table}.{column}");
            for error in found {
                assert!(matches!(error, StoreError::Tampered { table: t, .. } if t == table));
            }
            assert!(
                not_used(&bench.store, table, key, &claim, claimed.generation).await,
                "{table} was used"
            );
            bench.store.close().await;
            copy_state(whole.path(), bench.dir.path());
            bench.reopen();
        }
    }
    assert_eq!(scrub_all(&bench.store).await, []);
}

/// Is the use of the table's row refused, or the row passed over? `known` is
/// the generation that `claim` was answered while all was well.
async fn not_used(store: &Registry, table: &str, key: KeyId, claim: &Claim, known: u64) -> bool {
    let tampered = |error: StoreError| matches!(error, StoreError::Tampered { .. });
    match table {
        "keys" => {
            let lost = store.claim(&alice(), claim.clone()).await.unwrap().lost;
            store.key(key).await.is_err_and(tampered) && lost == [key]
        }
        "generations" => store.generations_to_destroy().await.unwrap().is_empty(),
        "identities" => store.identity(&alice(), "alice").await.is_err_and(tampered),
        "permits" => store.leave_permit(&guard_id(1)).await.is_err_and(tampered),
        "guards" => store.guard_mark(&guard_id(1)).await.is_err_and(tampered),
        "own_leaves" => {
            let notes = vec![Note::OwnLeavesDeleted {
                group: Bytes(vec![1]),
            }];
            let report = Report {
                storage: "s".into(),
                notes,
            };
            store.report(&alice(), report).await.is_ok()
        }
        // Claimed anew, which mends the row.
        "records" | "claims" => {
            let claimed = store.claim(&alice(), claim.clone()).await.unwrap();
            claimed.generation > known && scrub_all(store).await.is_empty()
        }
        _ => store
            .claim(&alice(), claim.clone())
            .await
            .is_err_and(tampered),
    }
}

async fn scrub_all(store: &Registry) -> Vec<StoreError> {
    let mut found = Vec::new();
    let mut position = Some(ScrubPosition::default());
    while let Some(from) = position {
        let part = store.scrub(from, 1).await.unwrap();
        found.extend(part.tampered);
        position = part.next;
    }
    found
}

#[tokio::test]
async fn a_row_cannot_take_the_place_of_another() {
    let mut bench = Bench::new();
    let (a, b) = (bench.hpke(None).await, bench.hpke(None).await);
    bench.store.close().await;
    let take = |column: &str| format!("(SELECT {column} FROM keys WHERE id = x'{a}')");
    bench.sql(&format!(
        "UPDATE keys SET body = {}, mac = {} WHERE id = x'{b}'",
        take("body"),
        take("mac")
    ));
    bench.reopen();
    assert!(bench.store.key(a).await.unwrap().is_some());
    assert!(matches!(
        bench.store.key(b).await,
        Err(StoreError::Tampered { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_callers_share_commits_and_one_failure_hurts_nobody_else() {
    let bench = Arc::new(Bench::new());
    bench.generation().await;
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                if n % 10 == 0 {
                    let error = bench.store.finish_destroy(bench.id()).await.unwrap_err();
                    assert!(matches!(error, StoreError::NotFound(_)));
                    None
                } else {
                    Some(bench.hpke(None).await)
                }
            })
        })
        .collect();
    let mut keys = Vec::new();
    for task in tasks {
        keys.extend(task.await.unwrap());
    }
    let mut bench = Arc::into_inner(bench).unwrap();
    bench.crash();
    assert_eq!(keys.len(), 180);
    for key in keys {
        assert_eq!(bench.state(key).await, KeyState::Active);
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_call_and_the_next_one_works() {
    let bench = Bench::new();
    let key = bench.hpke(None).await;
    let limit = |pages: u32| {
        bench.store.write(move |tx| {
            let pragma = format!("PRAGMA max_page_count = {pages}");
            tx.conn.query_row(&pragma, [], |row| row.get::<_, i64>(0))?;
            Ok(())
        })
    };
    limit(1).await.unwrap();
    let mut failed = None;
    for n in 0..=255 {
        let mark = GuardMark {
            commits: vec![[n; 32]; MAX_COMMITS],
            ..GuardMark::default()
        };
        let outcome = bench
            .store
            .update_guard(guard_id(n), |_| Ok::<_, ()>(mark))
            .await;
        if let Err(error) = outcome {
            failed = Some((n, error));
            break;
        }
    }
    let (n, error) = failed.unwrap();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert_eq!(bench.store.guard_mark(&guard_id(n)).await.unwrap(), None);
    assert_eq!(bench.state(key).await, KeyState::Active);
    limit(1_000_000).await.unwrap();
    let again = bench
        .store
        .update_guard(guard_id(n), |_| Ok::<_, ()>(GuardMark::default()))
        .await;
    again.unwrap().unwrap();
}

#[tokio::test]
async fn a_closed_registry_says_so() {
    let bench = Bench::new();
    let key = bench.hpke(None).await;
    bench.store.close().await;
    bench.store.close().await;
    assert_eq!(
        bench.store.begin_destroy(key, Cause::Ordered).await,
        Err(StoreError::Closed)
    );
    assert_eq!(bench.store.counts().await, Err(StoreError::Closed));
    assert!(!bench.dir.path().join("registry.db-wal").exists());
}

/// So many rows, for a limit on them.
pub(super) fn numbers(count: u32) -> String {
    format!(
        "(WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers \
         WHERE n < {count}) SELECT n FROM numbers)"
    )
}

/// What does not verify is in no list: it does not count as one that came meanwhile either.
#[tokio::test]
async fn an_identity_counts_if_it_is_known() {
    let mut bench = Bench::new();
    let (alice, made, _) = bench.signature_key("alice").await;
    let owner = alice.owner.clone();
    let created = bench.store.create_identity(alice, made, Some(0)).await;
    created.unwrap();
    bench.store.close().await;
    bench.sql("UPDATE identities SET mac = zeroblob(32)");
    bench.reopen();
    let known = bench.store.identities(Some(&owner)).await.unwrap();
    assert_eq!(known, []);
    let (bob, made, _) = bench.signature_key("bob").await;
    let outrun = bench
        .store
        .create_identity(bob.clone(), made.clone(), Some(1));
    assert!(matches!(outrun.await, Err(StoreError::Outrun(_))));
    bench
        .store
        .create_identity(bob, made, Some(0))
        .await
        .unwrap();
}

#[tokio::test]
async fn one_app_has_so_many_identities_and_no_more() {
    let mut bench = Bench::new();
    let (alice, made, _) = bench.signature_key("alice").await;
    bench
        .store
        .create_identity(alice, made, None)
        .await
        .unwrap();
    bench.store.close().await;
    bench.sql(&format!(
        "INSERT INTO identities SELECT randomblob(32), uid, app, body, mac FROM identities, {}",
        numbers(identities::MAX_IDENTITIES - 1)
    ));
    bench.reopen();
    let (bob, made, _) = bench.signature_key("bob").await;
    let refused = bench
        .store
        .create_identity(bob, made, None)
        .await
        .unwrap_err();
    assert!(matches!(refused, StoreError::Limit(_)), "{refused}");
}

#[tokio::test]
async fn one_app_has_so_many_unclaimed_keys_and_no_more() {
    let mut bench = Bench::new();
    bench.hpke(None).await;
    bench.store.close().await;
    bench.sql(&format!(
        "INSERT INTO keys SELECT randomblob(16), uid, app, public_key, generation, state, wait, \
         since, run, connection, not_after, expired, ends, body, mac FROM keys, {}",
        numbers(keys::MAX_UNCLAIMED - 1)
    ));
    bench.reopen();
    let new = bench.new_hpke(None).await;
    let others = NewKey {
        id: bench.id(),
        owner: Owner {
            app: "mail".into(),
            ..alice()
        },
        ..new.clone()
    };
    let refused = bench.store.begin_create(new).await.unwrap_err();
    assert!(matches!(refused, StoreError::Limit(_)), "{refused}");
    bench.store.begin_create(others).await.unwrap();
}

/// An identity with a key, and a rotation to another one that is journalled.
async fn about_to_rotate(bench: &Bench, grace: u64) -> (IdentityRecord, Rotation) {
    let (identity, first, _) = bench.signature_key("alice").await;
    let created = bench
        .store
        .create_identity(identity.clone(), first, None)
        .await;
    created.unwrap();
    let rotation = next_rotation(bench, identity.key, grace).await;
    (identity, rotation)
}

async fn next_rotation(bench: &Bench, from: KeyId, grace: u64) -> Rotation {
    let (_, to, _) = bench.signature_key("alice").await;
    Rotation {
        owner: alice(),
        name: "alice".into(),
        from,
        to,
        grace: Duration::from_secs(grace),
    }
}

#[tokio::test]
async fn a_rotation_is_whole_after_a_crash_or_did_not_happen() {
    let mut bench = Bench::new();
    let (before, rotation) = about_to_rotate(&bench, 100).await;
    let (old, new) = (before.key, rotation.to.id);
    bench.crash();
    let found = bench.store.identity(&alice(), "alice").await.unwrap();
    assert_eq!(found, Some(before.clone()));
    assert_eq!(bench.state(old).await, KeyState::Active);
    assert_eq!(bench.store.pending().await.unwrap().creating[0].id, new);

    bench.store.rotate_identity(rotation.clone()).await.unwrap();
    bench.crash();
    let found = bench.store.identity(&alice(), "alice").await.unwrap();
    let after = IdentityRecord {
        key: new,
        retiring: vec![old],
        ..before
    };
    assert_eq!(found, Some(after));
    assert_eq!(bench.state(old).await, KeyState::Retiring);
    assert_eq!(bench.state(new).await, KeyState::Active);
    // A second one that was decided on the same key comes too late.
    let late = next_rotation(&bench, old, 100).await;
    let refused = bench.store.rotate_identity(late).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict(_)), "{refused}");
}

#[tokio::test]
async fn a_retiring_key_ends_when_its_grace_was_observed_and_not_by_the_date() {
    let mut bench = Bench::new();
    let (identity, rotation) = about_to_rotate(&bench, 100).await;
    bench.store.rotate_identity(rotation.clone()).await.unwrap();
    let (old, new) = (identity.key, rotation.to.id);
    let ends = |bench: &Bench| {
        let store = bench.store.clone();
        async move { store.info(&store.key(old).await.unwrap().unwrap()).ends }
    };
    assert_eq!(ends(&bench).await, Some(1_700_000_100));
    let due = bench.store.next_due().await.unwrap();
    assert_eq!(due, Some(Duration::from_secs(100)));

    // The date jumps ahead, and the machine is off for long.
    bench.clock.wall.fetch_add(1_000_000, Ordering::SeqCst);
    assert_eq!(bench.sweep().await, []);
    let early = bench.store.begin_destroy(old, Cause::Due).await;
    assert_eq!(early, Err(StoreError::NotDue(old)));
    bench.clock.pass(60);
    bench.store.close().await;
    bench.clock.boottime.store(5, Ordering::SeqCst);
    bench.reopen();
    assert_eq!(bench.sweep().await, []);
    let left = ends(&bench).await.unwrap() - bench.clock.wall();
    assert_eq!(left, 40);
    bench.clock.pass(39);
    assert_eq!(bench.sweep().await, []);
    bench.clock.pass(1);
    assert_eq!(bench.sweep().await, [old]);
    assert_eq!(ends(&bench).await, None);
    bench.clock.pass(1_000_000);
    assert_eq!(bench.sweep().await, []);
    assert_eq!(bench.state(new).await, KeyState::Active);
}

#[tokio::test]
async fn no_claim_keeps_a_retiring_key_or_ends_it_early() {
    let bench = Bench::new();
    let (identity, rotation) = about_to_rotate(&bench, 100).await;
    bench.store.rotate_identity(rotation).await.unwrap();
    let claim = |number: u8| Claim {
        storage: "alice/laptop".into(),
        record: Record::GroupState {
            group: vec![number].into(),
        },
        keys: vec![identity.key],
    };
    bench.store.claim(&alice(), claim(1)).await.unwrap();
    bench.clock.pass(99);
    assert_eq!(bench.sweep().await, []);
    assert_eq!(bench.state(identity.key).await, KeyState::Retiring);
    bench.clock.pass(1);
    assert_eq!(bench.sweep().await, [identity.key]);
    let lost = bench.store.claim(&alice(), claim(2)).await.unwrap().lost;
    assert_eq!(lost, [identity.key]);
}

#[tokio::test]
async fn an_identity_whose_key_is_destroyed_gets_another_one() {
    let bench = Bench::new();
    let (identity, rotation) = about_to_rotate(&bench, 100).await;
    let ordered = bench
        .store
        .begin_destroy(identity.key, Cause::Ordered)
        .await;
    ordered.unwrap();
    let (after, _) = bench.store.rotate_identity(rotation).await.unwrap();
    assert_eq!(after.retiring, []);
}

#[tokio::test]
async fn damaged_rows_do_not_keep_the_daemon_from_starting() {
    let mut bench = Bench::new();
    let key = bench.hpke(None).await;
    bench
        .store
        .attach(&alice(), "s".into(), true, ConnectionId(1))
        .await
        .unwrap();
    bench
        .store
        .begin_destroy(key, Cause::Ordered)
        .await
        .unwrap();
    bench.store.finish_destroy(key).await.unwrap();
    for generation in bench.store.generations_to_destroy().await.unwrap() {
        let id = generation.id;
        bench.store.begin_destroy_generation(id).await.unwrap();
        bench.store.finish_destroy_generation(id).await.unwrap();
    }
    let other = bench.hpke(None).await;
    bench
        .store
        .begin_destroy(other, Cause::Ordered)
        .await
        .unwrap();
    bench.store.close().await;
    for table in ["keys", "generations", "storages"] {
        bench.sql(&format!("UPDATE {table} SET mac = x'00'"));
    }
    bench.sql("UPDATE storages SET ending = 0");
    bench.reopen();
    assert_eq!(bench.store.read_only_reason(), None);
    bench.clock.pass(100 * 86_400);
    assert_eq!(bench.sweep().await, []);
}
