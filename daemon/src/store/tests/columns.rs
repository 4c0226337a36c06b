//! Somebody writes the registry's file, without the store key: the columns beside
//! the bodies. No key dies of a key's or a generation's columns, and none outlives
//! its end unnoticed. What is not covered, since nothing prevents it: a claim that is
//! hidden by `claims.key` or `claims.record`, like one that is taken away, is not
//! counted when another claim of its key is released. The last look then does not ask
//! for its record, and a key that is needed dies.

use super::*;

const YEAR: u64 = 365 * 86_400;

/// A current signature key, and an HPKE key that a record claims; each with its
/// generation.
struct Scene {
    bench: Bench,
    signature: (KeyId, GenerationId),
    claimed: (KeyId, GenerationId),
}

impl Scene {
    async fn new() -> Self {
        let bench = Bench::new();
        let (identity, made, own) = bench.signature_key("alice").await;
        let signature = (identity.key, own);
        bench
            .store
            .create_identity(identity, made, None)
            .await
            .unwrap();
        let key = bench.hpke(Some(ConnectionId(1))).await;
        let claim = Claim {
            storage: "s".into(),
            record: Record::GroupState {
                group: vec![1].into(),
            },
            keys: vec![key],
        };
        bench.store.claim(&alice(), claim).await.unwrap();
        Self {
            signature,
            claimed: (key, bench.generation().await),
            bench,
        }
    }

    /// Changes the closed registry, and opens it again.
    async fn tamper(&mut self, sql: &str) {
        self.bench.store.close().await;
        assert!(self.bench.sql(sql) > 0, "{sql}");
        self.bench.reopen();
    }

    /// All time passes, and connections come and go.
    async fn live_on(&self) -> Vec<KeyId> {
        for connection in [0, 1, 2] {
            let connection = ConnectionId(connection);
            self.bench
                .store
                .connection_closed(connection)
                .await
                .unwrap();
        }
        let mut destroyed = Vec::new();
        for _ in 0..3 {
            self.bench.clock.pass(YEAR);
            destroyed.extend(self.bench.sweep().await);
        }
        destroyed
    }

    async fn assert_all_alive(&self, tampered: &str) {
        let store = &self.bench.store;
        for (key, generation) in [self.signature, self.claimed] {
            assert_eq!(self.bench.state(key).await, KeyState::Active, "{tampered}");
            let refused = store.begin_destroy_generation(generation).await;
            assert_eq!(refused, Err(StoreError::WrongGeneration), "{tampered}");
        }
        let idle = store.generations_to_destroy().await.unwrap();
        assert_eq!(idle, [], "{tampered}");
        let pending = store.pending().await.unwrap();
        assert_eq!(pending, Pending::default(), "{tampered}");
    }
}

#[tokio::test]
async fn no_column_kills_a_key() {
    for (table, change) in [
        ("keys", "wait = 1, run = 0, connection = 1, since = 0"),
        // The run to come.
        ("keys", "wait = 1, run = 2, connection = 1, since = 0"),
        ("keys", "run = 2, connection = 2"),
        ("keys", "wait = 2, since = 0"),
        ("keys", "wait = 3, since = 0"),
        ("keys", "wait = 4, since = 0"),
        ("keys", "ends = 0"),
        ("keys", "not_after = 0"),
        ("keys", "not_after = 0, expired = 0"),
        ("keys", "state = 0"),
        ("keys", "state = 2"),
        ("keys", "state = 3"),
        ("keys", "generation = x'00'"),
        ("keys", "uid = 0, app = '', public_key = x''"),
        ("claims", "released = 1"),
        ("generations", "idle = 1"),
        ("generations", "idle = 1, state = 3"),
        ("generations", "state = 2, own = 1, idle = 1"),
        ("storages", "ending = 0, attached_run = 1"),
    ] {
        let mut scene = Scene::new().await;
        let sql = format!("UPDATE {table} SET {change}");
        scene.tamper(&sql).await;
        assert_eq!(scene.live_on().await, [], "{sql}");
        scene.assert_all_alive(&sql).await;
    }
}

#[tokio::test]
async fn a_generation_whose_keys_were_taken_away_is_not_destroyed() {
    let mut scene = Scene::new().await;
    scene.bench.store.close().await;
    scene.bench.sql("DELETE FROM claims");
    scene.tamper("DELETE FROM keys").await;
    let store = &scene.bench.store;
    assert_eq!(store.generations_to_destroy().await.unwrap(), []);
    for (_, generation) in [scene.signature, scene.claimed] {
        let refused = store.begin_destroy_generation(generation).await;
        assert_eq!(refused, Err(StoreError::WrongGeneration));
    }
}

#[tokio::test]
async fn a_key_is_not_buried_with_a_generation_that_is_not_its_own() {
    let mut scene = Scene::new().await;
    let (identity, made, dead) = scene.bench.signature_key("bob").await;
    let (store, key) = (&scene.bench.store, identity.key);
    store.create_identity(identity, made, None).await.unwrap();
    store.begin_destroy(key, Cause::Ordered).await.unwrap();
    store.finish_destroy(key).await.unwrap();
    store.begin_destroy_generation(dead).await.unwrap();
    store.finish_destroy_generation(dead).await.unwrap();
    let dead = hex::encode(dead.as_bytes());
    let sql = format!("UPDATE keys SET generation = x'{dead}'");
    scene.tamper(&sql).await;
    scene.assert_all_alive(&sql).await;
    assert_eq!(
        scene.bench.store.pending().await.unwrap(),
        Pending::default()
    );
}

#[tokio::test]
async fn a_key_that_has_ended_does_not_outlive_that_by_being_hidden() {
    let mut scene = Scene::new().await;
    let (old, _) = scene.signature;
    let rotation = next_rotation(&scene.bench, old, 100).await;
    scene.bench.store.rotate_identity(rotation).await.unwrap();
    scene.tamper("UPDATE keys SET ends = NULL").await;
    let has_ended = |scene: &Scene| {
        let store = scene.bench.store.clone();
        async move { store.has_ended(&store.key(old).await.unwrap().unwrap()) }
    };
    // No date ends it, or keeps it.
    scene.bench.clock.wall.store(0, Ordering::SeqCst);
    assert!(!has_ended(&scene).await);
    scene.bench.clock.boottime.fetch_add(99, Ordering::SeqCst);
    scene.bench.clock.wall.store(10 * YEAR, Ordering::SeqCst);
    assert!(!has_ended(&scene).await);
    scene.bench.clock.boottime.fetch_add(1, Ordering::SeqCst);
    scene.bench.clock.wall.store(0, Ordering::SeqCst);
    assert!(has_ended(&scene).await);
    assert_eq!(scene.bench.sweep().await, []);

    // It does not count among those that retire, and a second end puts the first
    // one not off.
    let store = &scene.bench.store;
    let now = store.identity(&alice(), "alice").await.unwrap().unwrap();
    let again = next_rotation(&scene.bench, now.key, 100).await;
    let (after, _) = store.rotate_identity(again).await.unwrap();
    assert_eq!(after.retiring, [now.key]);

    let pass = scrub_all(store).await;
    let [StoreError::Misplaced { table, id }] = pass.as_slice() else {
        panic!("{pass:?}");
    };
    assert_eq!((*table, id.as_str()), ("keys", old.to_string().as_str()));
    assert_eq!(scrub_all(store).await, []);
    assert_eq!(scene.bench.sweep().await, [old]);
}

#[tokio::test]
async fn an_end_is_never_put_off() {
    let scene = Scene::new().await;
    let (old, _) = scene.signature;
    let rotation = next_rotation(&scene.bench, old, 100).await;
    let store = &scene.bench.store;
    store.rotate_identity(rotation.clone()).await.unwrap();
    // The identity of before is put back.
    let before = store.identity(&alice(), "alice").await.unwrap().unwrap();
    let before = IdentityRecord {
        key: old,
        retiring: Vec::new(),
        ..before
    };
    let put_back = move |tx: &mut Tx<'_>| identities::put(tx, &before);
    store.write(put_back).await.unwrap();
    let again = next_rotation(&scene.bench, old, YEAR).await;
    store.rotate_identity(again).await.unwrap();
    scene.bench.clock.pass(100);
    assert_eq!(scene.bench.sweep().await, [old]);
}

#[tokio::test]
async fn what_is_hidden_from_the_sweep_is_found_by_the_pass_over_all() {
    for hidden in ["wait = NULL", "state = 2", "since = 1000000000000"] {
        let mut scene = Scene::new().await;
        let key = scene.bench.hpke(None).await;
        scene
            .tamper(&format!("UPDATE keys SET {hidden} WHERE id = x'{key}'"))
            .await;
        scene.bench.clock.pass(YEAR);
        assert_eq!(scene.bench.sweep().await, [], "{hidden}");
        let pass = scrub_all(&scene.bench.store).await;
        assert!(
            matches!(pass.as_slice(), [StoreError::Misplaced { .. }]),
            "{hidden}"
        );
        assert_eq!(scene.bench.sweep().await, [key], "{hidden}");
    }
}

#[tokio::test]
async fn a_dead_generation_is_not_kept_by_being_hidden() {
    let mut scene = Scene::new().await;
    let (key, generation) = scene.signature;
    let store = &scene.bench.store;
    store.begin_destroy(key, Cause::Ordered).await.unwrap();
    store.finish_destroy(key).await.unwrap();
    scene
        .tamper("UPDATE generations SET idle = 0, state = 4")
        .await;
    let store = &scene.bench.store;
    assert_eq!(store.generations_to_destroy().await.unwrap(), []);
    // Both were moved.
    assert_eq!(scrub_all(store).await.len(), 2);
    let idle = store.generations_to_destroy().await.unwrap();
    assert_eq!(idle.len(), 1);
    assert_eq!(idle[0].id, generation);
}

#[tokio::test]
async fn an_older_row_of_a_generation_that_is_put_back_destroys_no_living_key() {
    let mut bench = Bench::new();
    let dying = bench.hpke(None).await;
    let generation = bench.generation().await;
    bench.sql("CREATE TABLE older AS SELECT * FROM generations");
    let living = bench.hpke(None).await;
    bench.store.close().await;
    let put_back = "UPDATE generations SET (body, mac) = (SELECT body, mac FROM older)";
    assert_eq!(bench.sql(put_back), 1);
    bench.sql("DROP TABLE older");
    bench.reopen();
    let destroy = async |key| {
        let begun = bench.store.begin_destroy(key, Cause::Ordered).await;
        begun.unwrap();
        bench.store.finish_destroy(key).await.unwrap();
    };
    destroy(dying).await;
    // So its own row says.
    assert_eq!(bench.store.generations_to_destroy().await.unwrap().len(), 1);
    let refused = bench.store.begin_destroy_generation(generation).await;
    assert_eq!(refused, Err(StoreError::WrongGeneration));
    assert_eq!(bench.state(living).await, KeyState::Active);

    // What does not verify keeps nothing alive.
    let junk = "INSERT INTO keys SELECT randomblob(16), uid, app, public_key, generation, state,
        wait, since, run, connection, not_after, expired, ends, body, mac
        FROM keys WHERE state = 1";
    assert_eq!(bench.sql(junk), 1);
    destroy(living).await;
    let begun = bench.store.begin_destroy_generation(generation).await;
    assert_eq!(begun, Ok(GenerationState::Destroying));
}

#[tokio::test]
async fn a_generation_that_had_keys_is_destroyed_whole_also_if_it_seems_unfinished() {
    let mut bench = Bench::new();
    let day = Duration::from_secs(86_400);
    let CurrentGeneration::CreateNew(generation) =
        bench.store.current_generation("soft", day).await.unwrap()
    else {
        panic!("there is one already");
    };
    bench.sql("CREATE TABLE older AS SELECT * FROM generations");
    bench.store.finish_generation(generation).await.unwrap();
    let key = bench.hpke(None).await;
    bench
        .store
        .begin_destroy(key, Cause::Ordered)
        .await
        .unwrap();
    bench.store.finish_destroy(key).await.unwrap();
    // As it was while it was made.
    bench.store.close().await;
    let put_back = "UPDATE generations SET (state, idle, body, mac) =
        (SELECT state, idle, body, mac FROM older)";
    assert_eq!(bench.sql(put_back), 1);
    bench.sql("DROP TABLE older");
    bench.reopen();
    let begun = bench.store.begin_destroy_generation(generation).await;
    assert_eq!(begun, Ok(GenerationState::Destroying));
}

#[tokio::test]
async fn rows_that_only_seem_due_do_not_keep_others_from_their_end() {
    let mut scene = Scene::new().await;
    let due = scene.bench.hpke(None).await;
    // Twenty that do not verify, all due before it.
    scene.bench.store.close().await;
    let (claimed, _) = scene.claimed;
    let junk = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20)
         INSERT INTO keys SELECT randomblob(16), uid, app, public_key, generation, 1,
           2, -1, run, connection, not_after, expired, ends, body, mac
         FROM keys, n WHERE id = x'{claimed}'"
    );
    assert_eq!(scene.bench.sql(&junk), 20);
    scene.bench.reopen();
    scene.bench.clock.pass(YEAR);
    let found = scene.bench.store.destroyable(8).await.unwrap();
    assert_eq!(found, [due]);
    assert_eq!(scene.bench.sweep().await, [due]);
    assert_eq!(scene.bench.state(claimed).await, KeyState::Active);
}
