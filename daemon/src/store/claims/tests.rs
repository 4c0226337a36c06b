//! The rules of claims, each by name.

mod doubts;

use std::sync::atomic::Ordering;
use std::time::Duration;

use mlskeyd_protocol::v1::{
    Bytes, Claim, Claimed, Housekeeping, KeyId, KeyState, Look, Looked, Note, Owner, Record,
    Report, Settle, Settlement,
};

use super::note::MAX_OWN_LEAVES;
use super::rows::MAX_RECORDS_OF_KEY;
use super::storages::MAX_STORAGES;
use crate::store::tests::{Bench, alice, numbers, public};
use crate::store::{Binding, Cause, ConnectionId, Settings, StoreError};

const STORAGE: &str = "alice@bank/laptop";
const C1: ConnectionId = ConnectionId(1);
const DAY: u64 = 86_400;
const HOUR: u64 = 3600;

fn group(n: u8) -> Bytes {
    Bytes(vec![n])
}

fn epoch(n: u8, epoch: u64, leaf_index: u32) -> Record {
    Record::Epoch {
        group: group(n),
        epoch,
        leaf_index,
    }
}

fn state(n: u8) -> Record {
    Record::GroupState { group: group(n) }
}

fn update(key: KeyId) -> Record {
    Record::Update {
        public_key: public(key),
    }
}

fn package(n: u8) -> Record {
    Record::KeyPackage {
        reference: Bytes(vec![n; 32]),
    }
}

impl Bench {
    async fn attach(&self) -> Housekeeping {
        self.store
            .attach(&alice(), STORAGE.into(), false, C1)
            .await
            .unwrap()
    }

    async fn claim(&self, record: &Record, keys: &[KeyId]) -> Claimed {
        let claim = Claim {
            storage: STORAGE.into(),
            record: record.clone(),
            keys: keys.to_vec(),
        };
        self.store.claim(&alice(), claim).await.unwrap()
    }

    async fn settle(&self, settlement: Settlement) -> Housekeeping {
        let settle = Settle {
            storage: STORAGE.into(),
            settlements: vec![settlement],
        };
        self.store.settle(&alice(), settle).await.unwrap()
    }

    async fn written(&self, record: &Record, generation: u64) -> Housekeeping {
        self.settle(Settlement::Written {
            record: record.clone(),
            generation,
        })
        .await
    }

    async fn deleted(&self, record: &Record) -> Housekeeping {
        self.settle(Settlement::Deleted {
            record: record.clone(),
            generation: None,
        })
        .await
    }

    /// Claim, write, settle: what a storage does when it writes a record.
    async fn write(&self, record: &Record, keys: &[KeyId]) -> Housekeeping {
        let claimed = self.claim(record, keys).await;
        assert_eq!(claimed.lost, []);
        self.written(record, claimed.generation).await
    }

    async fn note(&self, note: Note) -> Housekeeping {
        let report = Report {
            storage: STORAGE.into(),
            notes: vec![note],
        };
        self.store.report(&alice(), report).await.unwrap()
    }

    async fn looked(&self, key: KeyId, records: &[Record]) -> Housekeeping {
        let found = vec![Look {
            key,
            records: records.to_vec(),
        }];
        let looked = Looked {
            storage: STORAGE.into(),
            found,
        };
        self.store.looked(&alice(), looked).await.unwrap()
    }

    /// Init key and leaf key of a KeyPackage that is written to the storage.
    async fn key_package(&self, n: u8, last_resort: bool, not_after: u64) -> (KeyId, KeyId) {
        let (init, leaf) = (self.hpke(None).await, self.hpke(None).await);
        let init_binding = Binding::Init {
            leaf_public: public(leaf),
            not_before: 0,
            not_after,
            last_resort,
            consumed_by: None,
        };
        self.bind(init, init_binding).await;
        let groups = Vec::new();
        let leaf_binding = Binding::LeafOfKeyPackage {
            init: Some(init),
            last_resort,
            groups,
        };
        self.bind(leaf, leaf_binding).await;
        self.write(&package(n), &[init, leaf]).await;
        (init, leaf)
    }
}

#[tokio::test]
async fn until_it_is_settled_a_record_holds_old_and_new_keys() {
    let mut bench = Bench::new();
    let (old, new) = (bench.hpke(None).await, bench.hpke(None).await);
    bench.write(&state(1), &[old]).await;
    let claimed = bench.claim(&state(1), &[new]).await;
    bench.crash();
    assert_eq!(bench.state(old).await, KeyState::Active);
    assert_eq!(bench.state(new).await, KeyState::Active);
    bench.written(&state(1), claimed.generation).await;
    bench.written(&state(1), claimed.generation).await;
    bench.crash();
    assert_eq!(bench.state(old).await, KeyState::Idle);
    assert_eq!(bench.state(new).await, KeyState::Active);
}

#[tokio::test]
async fn the_same_claim_again_writes_nothing() {
    let bench = Bench::new();
    let (a, b) = (bench.hpke(None).await, bench.hpke(None).await);
    let first = bench.claim(&state(1), &[a, b]).await;
    let before = std::fs::metadata(bench.dir.path().join("registry.db-wal"))
        .unwrap()
        .len();
    let again = bench.claim(&state(1), &[b, a, b]).await;
    assert_eq!(first.generation, again.generation);
    let after = std::fs::metadata(bench.dir.path().join("registry.db-wal"))
        .unwrap()
        .len();
    assert_eq!(before, after);
    assert_ne!(
        bench.claim(&state(1), &[a]).await.generation,
        first.generation
    );
}

#[tokio::test]
async fn stale_generations_are_ignored() {
    let bench = Bench::new();
    let (a, b) = (bench.hpke(None).await, bench.hpke(None).await);
    let old = bench.claim(&state(1), &[a]).await.generation;
    let new = bench.claim(&state(1), &[b]).await.generation;
    bench.written(&state(1), old).await;
    let stale = Settlement::Deleted {
        record: state(1),
        generation: Some(old),
    };
    bench.settle(stale).await;
    assert_eq!(bench.state(a).await, KeyState::Active);
    assert_eq!(bench.state(b).await, KeyState::Active);
    bench
        .settle(Settlement::Deleted {
            record: state(1),
            generation: Some(new),
        })
        .await;
    // A record that was deleted and written again is not hit by what was said
    // of the first one.
    bench.claim(&state(1), &[b]).await;
    bench
        .settle(Settlement::Deleted {
            record: state(1),
            generation: Some(new),
        })
        .await;
    assert_eq!(bench.state(a).await, KeyState::Idle);
    assert_eq!(bench.state(b).await, KeyState::Active);
}

#[tokio::test]
async fn a_stale_settlement_does_not_drop_what_the_storage_may_still_hold() {
    let bench = Bench::new();
    let keys = [
        bench.hpke(None).await,
        bench.hpke(None).await,
        bench.hpke(None).await,
    ];
    bench.claim(&state(1), &keys[..1]).await;
    let second = bench.claim(&state(1), &keys[1..2]).await.generation;
    let third = bench.claim(&state(1), &keys[2..]).await.generation;
    bench.written(&state(1), second).await;
    assert_eq!(bench.state(keys[0]).await, KeyState::Active);
    bench.written(&state(1), third).await;
    assert_eq!(bench.state(keys[0]).await, KeyState::Idle);
    assert_eq!(bench.state(keys[1]).await, KeyState::Idle);
}

#[tokio::test]
async fn an_older_copy_of_a_key_s_row_does_not_kill_a_claimed_key() {
    let mut bench = Bench::new();
    let key = bench.hpke(None).await;
    bench.write(&state(1), &[key]).await;
    bench.deleted(&state(1)).await;
    bench.store.close().await;
    bench.sql("CREATE TABLE copy AS SELECT * FROM keys");
    bench.reopen();
    bench.claim(&state(1), &[key]).await;
    bench.store.close().await;
    bench.sql(
        "UPDATE keys SET (wait, since, body, mac) = (SELECT wait, since, body, mac FROM copy)",
    );
    bench.reopen();
    bench.clock.pass(100 * DAY);
    assert_eq!(
        bench.state(key).await,
        KeyState::Idle,
        "the copy is in place"
    );
    assert_eq!(bench.sweep().await, []);
}

#[tokio::test]
async fn keys_that_are_destroyed_or_foreign_are_lost_and_said_so() {
    let bench = Bench::new();
    let (alive, dead) = (bench.hpke(None).await, bench.hpke(None).await);
    bench
        .store
        .begin_destroy(dead, Cause::Ordered)
        .await
        .unwrap();
    let unknown = KeyId::from_bytes([9; 16]);
    let unfinished = bench.begin(None).await;
    let mut lost = bench
        .claim(&state(1), &[alive, dead, unknown, unfinished])
        .await
        .lost;
    lost.sort();
    let mut expected = vec![dead, unknown, unfinished];
    expected.sort();
    assert_eq!(lost, expected);
    let eve = Owner {
        uid: 1001,
        ..alice()
    };
    let claim = Claim {
        storage: STORAGE.into(),
        record: state(1),
        keys: vec![alive],
    };
    assert_eq!(bench.store.claim(&eve, claim).await.unwrap().lost, [alive]);
    // And the stranger's storage of the same name is another one.
    assert_eq!(bench.store.storages().await.unwrap().len(), 2);
    bench.deleted(&state(1)).await;
    assert_eq!(bench.state(alive).await, KeyState::Idle);
}

#[tokio::test]
async fn zero_is_not_death_and_any_claim_ends_the_grace() {
    let bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    bench.write(&state(1), &[key]).await;
    bench.deleted(&state(1)).await;
    bench.clock.pass(DAY - 1);
    assert_eq!(bench.sweep().await, []);
    assert!(bench.attach().await.looks.is_empty());
    // The same claim as before, by a read: the grace begins anew.
    bench.claim(&epoch(1, 1, 0), &[key]).await;
    bench.clock.pass(2 * DAY);
    assert_eq!(bench.sweep().await, []);
    assert_eq!(bench.state(key).await, KeyState::Active);
    let error = bench
        .store
        .begin_destroy(key, Cause::Due)
        .await
        .unwrap_err();
    assert_eq!(error, StoreError::NotDue(key));
}

#[tokio::test]
async fn the_last_look_decides() {
    let mut bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    bench.write(&epoch(1, 1, 0), &[key]).await;
    bench.deleted(&epoch(1, 1, 0)).await;
    // An answer before the time counts for nothing.
    bench.looked(key, &[]).await;
    bench.crash();
    bench.clock.pass(DAY);
    assert_eq!(bench.sweep().await, []);
    assert_eq!(bench.store.waiting().await.unwrap(), 1);
    let expected = [Look {
        key,
        records: vec![epoch(1, 1, 0)],
    }];
    assert_eq!(bench.attach().await.looks, expected);
    // Not asked again at every call, but soon.
    assert!(
        bench
            .claim(&state(9), &[])
            .await
            .housekeeping
            .looks
            .is_empty()
    );
    bench.clock.pass(60);
    assert_eq!(
        bench.claim(&state(9), &[]).await.housekeeping.looks,
        expected
    );

    // The database was put back: found, so claimed again.
    bench.looked(key, &[epoch(1, 1, 0)]).await;
    bench.crash();
    assert_eq!(bench.state(key).await, KeyState::Active);
    bench.attach().await;
    bench.deleted(&epoch(1, 1, 0)).await;
    bench.clock.pass(DAY);
    assert_eq!(bench.attach().await.looks, expected);
    assert!(bench.looked(key, &[]).await.looks.is_empty());
    assert_eq!(bench.sweep().await, [key]);
    assert_eq!(bench.claim(&epoch(1, 1, 0), &[key]).await.lost, [key]);
}

#[tokio::test]
async fn every_storage_that_named_a_key_looks_for_it() {
    let bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    bench.write(&state(1), &[key]).await;
    let phone = Claim {
        storage: "phone".into(),
        record: state(1),
        keys: vec![key],
    };
    bench.store.claim(&alice(), phone).await.unwrap();
    bench.deleted(&state(1)).await;
    assert_eq!(bench.state(key).await, KeyState::Active);
    let settlements = vec![Settlement::Deleted {
        record: state(1),
        generation: None,
    }];
    let settle = Settle {
        storage: "phone".into(),
        settlements,
    };
    bench.store.settle(&alice(), settle).await.unwrap();
    bench.clock.pass(DAY);
    assert_eq!(bench.attach().await.looks.len(), 1);
    bench.looked(key, &[]).await;
    assert_eq!(bench.sweep().await, [], "the phone has not looked");
    let phone = bench
        .store
        .attach(&alice(), "phone".into(), false, C1)
        .await
        .unwrap();
    assert_eq!(phone.looks.len(), 1);
}

#[tokio::test]
async fn keys_of_a_storage_that_never_comes_wait_to_the_horizon() {
    let mut bench = Bench::new();
    let key = bench.hpke(None).await;
    bench.write(&state(1), &[key]).await;
    bench.deleted(&state(1)).await;
    bench.clock.pass(90 * DAY - 1);
    bench.reopen();
    assert_eq!(bench.sweep().await, []);
    assert_eq!(
        bench.store.next_due().await.unwrap(),
        Some(Duration::from_secs(1))
    );
    bench.clock.pass(1);
    assert_eq!(bench.sweep().await, [key]);
    assert_eq!(bench.store.next_due().await.unwrap(), None);
}

#[tokio::test]
async fn a_key_that_was_never_claimed_goes_after_its_connection() {
    let mut bench = Bench::new();
    let (gone, open) = (
        bench.hpke(Some(C1)).await,
        bench.hpke(Some(ConnectionId(2))).await,
    );
    bench.clock.pass(HOUR);
    assert_eq!(bench.sweep().await, []);
    bench.store.connection_closed(C1).await.unwrap();
    bench.clock.pass(HOUR - 1);
    assert_eq!(bench.sweep().await, []);
    assert_eq!(
        bench.store.next_due().await.unwrap(),
        Some(Duration::from_secs(1))
    );
    bench.clock.pass(1);
    assert_eq!(bench.sweep().await, [gone]);
    bench.clock.pass(7 * DAY - 2 * HOUR - 1);
    assert_eq!(bench.sweep().await, []);
    bench.clock.pass(1);
    assert_eq!(bench.sweep().await, [open]);

    // A restart ends all connections.
    let key = bench.hpke(Some(C1)).await;
    bench.reopen();
    assert_eq!(bench.sweep().await, []);
    bench.clock.pass(HOUR);
    assert_eq!(bench.sweep().await, [key]);
}

#[tokio::test]
async fn a_clock_that_jumps_kills_nothing() {
    let mut bench = Bench::new();
    bench.attach().await;
    let not_after = 1_700_000_000 + 90 * DAY;
    let (init, leaf) = bench.key_package(1, false, not_after).await;
    bench.clock.wall.fetch_add(1000 * DAY, Ordering::SeqCst);
    assert_eq!(bench.sweep().await, [], "expiry only starts the grace");
    bench.clock.pass(DAY - 1);
    assert_eq!(bench.sweep().await, []);
    bench.clock.wall.fetch_sub(1000 * DAY, Ordering::SeqCst);
    assert_eq!(bench.sweep().await, []);
    bench.clock.pass(5 * DAY);
    assert_eq!(bench.sweep().await, []);
    // Real expiry, with restarts in between.
    bench.clock.pass(90 * DAY);
    assert_eq!(bench.sweep().await, []);
    bench.reopen();
    bench.clock.pass(DAY);
    assert_eq!(bench.sweep().await, [init]);
    // The rest of the KeyPackage is of no use: its record dies, and then the
    // leaf key.
    assert_eq!(bench.attach().await.dead, [package(1)]);
    assert_eq!(bench.state(leaf).await, KeyState::Active);
    assert!(bench.deleted(&package(1)).await.dead.is_empty());
    assert_eq!(bench.state(leaf).await, KeyState::Idle);
}

#[tokio::test]
async fn observed_time_stands_still_while_no_daemon_runs() {
    let mut bench = Bench::new();
    let key = bench.hpke(None).await;
    bench.store.close().await;
    bench.clock.pass(10 * DAY);
    bench.reopen();
    assert_eq!(bench.sweep().await, []);
    bench.clock.pass(HOUR);
    assert_eq!(bench.sweep().await, [key]);
}

#[tokio::test]
async fn a_welcome_that_was_opened_marks_its_key_package_joined() {
    let mut bench = Bench::new();
    bench.attach().await;
    let (init, leaf) = bench.key_package(1, false, u64::MAX).await;
    let claimed = bench.claim(&epoch(7, 3, 1), &[leaf]).await;
    assert_eq!(claimed.housekeeping.joined.len(), 1);
    bench.crash();
    let joined = bench.attach().await.joined;
    assert_eq!(
        (&joined[0].record, &joined[0].group),
        (&package(1), &group(7))
    );
    assert!(bench.deleted(&package(1)).await.joined.is_empty());
    bench.crash();
    let init_key = bench.store.key(init).await.unwrap().unwrap();
    let Binding::Init { consumed_by, .. } = &init_key.binding else {
        panic!("{init_key:?}")
    };
    assert_eq!(consumed_by.as_ref(), Some(&group(7)));
    assert_eq!(init_key.shown_state(), KeyState::Idle);
    let leaf_key = bench.store.key(leaf).await.unwrap().unwrap();
    assert!(
        leaf_key.is_active() && !leaf_key.is_idle(),
        "the leaf key lives on"
    );
    assert!(leaf_key.binding.admits(&group(7)) && !leaf_key.binding.admits(&group(8)));
}

#[tokio::test]
async fn a_last_resort_key_package_serves_many_groups() {
    let bench = Bench::new();
    bench.attach().await;
    let (init, leaf) = bench.key_package(1, true, u64::MAX).await;
    for n in 7..9 {
        let claimed = bench.claim(&epoch(n, 3, 1), &[leaf]).await;
        assert!(claimed.housekeeping.joined.is_empty());
    }
    let leaf_key = bench.store.key(leaf).await.unwrap().unwrap();
    let Binding::LeafOfKeyPackage { groups, .. } = &leaf_key.binding else {
        panic!()
    };
    assert_eq!(groups, &[group(7), group(8)]);
    bench.deleted(&package(1)).await;
    let init_key = bench.store.key(init).await.unwrap().unwrap();
    assert!(matches!(
        &init_key.binding,
        Binding::Init {
            consumed_by: None,
            ..
        }
    ));
}

#[tokio::test]
async fn a_newer_epoch_retires_older_ones_of_the_same_member_only() {
    let mut bench = Bench::new();
    bench.attach().await;
    let keys = [
        bench.hpke(None).await,
        bench.hpke(None).await,
        bench.hpke(None).await,
    ];
    bench.write(&epoch(1, 4, 0), &keys[..1]).await;
    bench.write(&epoch(1, 4, 1), &keys[1..2]).await;
    bench.write(&epoch(2, 4, 0), &keys[1..2]).await;
    let claimed = bench.claim(&epoch(1, 5, 0), &keys[2..]).await;
    assert!(
        claimed.housekeeping.dead.is_empty(),
        "not before it is written"
    );
    let dead = bench
        .written(&epoch(1, 5, 0), claimed.generation)
        .await
        .dead;
    assert_eq!(dead, [epoch(1, 4, 0)]);
    bench.crash();
    assert_eq!(bench.attach().await.dead, [epoch(1, 4, 0)]);
    assert_eq!(
        bench.state(keys[0]).await,
        KeyState::Active,
        "the record is still there"
    );
    assert!(bench.deleted(&epoch(1, 4, 0)).await.dead.is_empty());
    assert_eq!(bench.state(keys[0]).await, KeyState::Idle);
    assert_eq!(bench.state(keys[1]).await, KeyState::Active);
}

#[tokio::test]
async fn the_end_of_a_group_ends_its_records_of_that_member() {
    let bench = Bench::new();
    bench.attach().await;
    let keys = [
        bench.hpke(None).await,
        bench.hpke(None).await,
        bench.hpke(None).await,
    ];
    bench.write(&epoch(1, 4, 0), &keys[..1]).await;
    bench.write(&epoch(1, 4, 1), &keys[1..2]).await;
    bench
        .bind(
            keys[2],
            Binding::Leaf {
                group: group(1),
                leaf_index: 0,
            },
        )
        .await;
    bench.write(&update(keys[2]), &keys[2..]).await;
    bench
        .note(Note::OwnLeaf {
            group: group(1),
            public_key: public(keys[2]),
        })
        .await;
    // Which of the two members? No guess.
    let unknown = Note::GroupEnded {
        group: group(1),
        leaf_index: None,
    };
    assert!(bench.note(unknown.clone()).await.dead.is_empty());
    let ended = Note::GroupEnded {
        group: group(1),
        leaf_index: Some(0),
    };
    let dead = bench.note(ended).await.dead;
    assert_eq!(dead, [epoch(1, 4, 0), update(keys[2])]);
    // A record that is claimed again lives again.
    let claimed = bench.claim(&epoch(1, 4, 0), &keys[..1]).await;
    assert_eq!(claimed.housekeeping.dead, [update(keys[2])]);
    bench.deleted(&epoch(1, 4, 0)).await;
    bench.deleted(&update(keys[2])).await;
    let dead = bench.note(unknown).await.dead;
    assert!(dead.contains(&epoch(1, 4, 1)), "{dead:?}");
}

#[tokio::test]
async fn an_update_lives_while_its_leaf_is_among_the_own_leaf_nodes() {
    for leaf_first in [false, true] {
        let mut bench = Bench::new();
        bench.attach().await;
        let key = bench.hpke(None).await;
        let own_leaf = Note::OwnLeaf {
            group: group(1),
            public_key: public(key),
        };
        if leaf_first {
            bench.note(own_leaf.clone()).await;
        }
        bench.write(&update(key), &[key]).await;
        if !leaf_first {
            bench.note(own_leaf).await;
        }
        bench.clock.pass(10 * DAY);
        bench.crash();
        assert!(bench.attach().await.dead.is_empty());
        assert!(
            bench
                .note(Note::OwnLeavesDeleted { group: group(2) })
                .await
                .dead
                .is_empty()
        );
        bench.note(Note::OwnLeavesDeleted { group: group(1) }).await;
        bench.clock.pass(DAY - 1);
        assert!(bench.attach().await.dead.is_empty());
        bench.clock.pass(1);
        assert_eq!(bench.attach().await.dead, [update(key)]);
        bench.deleted(&update(key)).await;
        assert_eq!(bench.state(key).await, KeyState::Idle);
    }
}

#[tokio::test]
async fn an_update_that_never_got_a_leaf_dies_after_grace() {
    let bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    bench.write(&update(key), &[key]).await;
    bench.clock.pass(DAY - 1);
    assert!(bench.attach().await.dead.is_empty());
    bench.clock.pass(1);
    assert_eq!(bench.attach().await.dead, [update(key)]);
}

#[tokio::test]
async fn a_storage_in_memory_is_forgotten_after_its_last_connection() {
    let mut bench = Bench::new();
    let key = bench.hpke(None).await;
    for connection in [C1, ConnectionId(2)] {
        bench
            .store
            .attach(&alice(), STORAGE.into(), true, connection)
            .await
            .unwrap();
    }
    bench.write(&state(1), &[key]).await;
    bench.store.connection_closed(C1).await.unwrap();
    bench.clock.pass(2 * HOUR);
    bench.sweep().await;
    assert!(bench.store.storages().await.unwrap()[0].attached);
    bench.crash();
    assert!(!bench.store.storages().await.unwrap()[0].attached);
    bench.clock.pass(HOUR - 1);
    bench.sweep().await;
    assert_eq!(bench.store.storages().await.unwrap().len(), 1);
    bench.clock.pass(1);
    assert_eq!(bench.sweep().await, []);
    assert!(bench.store.storages().await.unwrap().is_empty());
    assert_eq!(bench.state(key).await, KeyState::Idle);
    bench.clock.pass(DAY);
    assert_eq!(bench.sweep().await, [key], "nothing is left to look at");
}

#[tokio::test]
async fn a_storage_that_is_gone_can_be_forgotten() {
    let bench = Bench::new();
    bench.attach().await;
    let (a, b) = (bench.hpke(None).await, bench.hpke(None).await);
    bench.write(&state(1), &[a]).await;
    bench.write(&state(2), &[b]).await;
    bench.deleted(&state(2)).await;
    let info = &bench.store.storages().await.unwrap()[0];
    assert_eq!((info.records, info.keys, info.attached), (1, 1, true));
    assert!(bench.store.forget_storage(&alice(), "other").await.is_err());
    assert_eq!(
        bench.store.forget_storage(&alice(), STORAGE).await.unwrap(),
        1,
        "the record that was deleted names no key any more"
    );
    assert_eq!(bench.sweep().await, []);
    bench.clock.pass(DAY);
    let mut destroyed = bench.sweep().await;
    destroyed.sort();
    assert_eq!(destroyed, [a, b]);
}

#[tokio::test]
async fn a_leaf_key_that_moves_on_for_ever_leaves_no_trail() {
    let bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    for n in 0..50 {
        bench.write(&epoch(1, n, 0), &[key]).await;
        if n > 0 {
            bench.deleted(&epoch(1, n - 1, 0)).await;
        }
    }
    bench.deleted(&epoch(1, 49, 0)).await;
    bench.clock.pass(DAY);
    let looks = bench.attach().await.looks;
    assert_eq!(looks[0].records.len(), super::REMEMBERED);
    assert!(looks[0].records.contains(&epoch(1, 49, 0)));
}

#[tokio::test]
async fn answers_are_bounded() {
    let bench = Bench::new();
    bench.attach().await;
    for n in 0..70 {
        let key = bench.hpke(None).await;
        bench.write(&update(key), &[key]).await;
        if n < 20 {
            bench.deleted(&update(key)).await;
            let key = bench.hpke(None).await;
            bench.write(&update(key), &[key]).await;
        }
    }
    bench.clock.pass(DAY);
    let answer = bench.attach().await;
    assert_eq!((answer.dead.len(), answer.looks.len()), (64, 16));
    for look in answer.looks {
        bench.looked(look.key, &[]).await;
    }
    assert_eq!(bench.attach().await.looks.len(), 4);
}

#[tokio::test]
async fn signature_keys_never_become_idle() {
    let bench = Bench::with(Settings {
        grace: Duration::ZERO,
        ..Settings::default()
    });
    let (identity, made, _) = bench.signature_key("alice").await;
    bench
        .store
        .create_identity(identity.clone(), made, None)
        .await
        .unwrap();
    bench.write(&state(1), &[identity.key]).await;
    bench.deleted(&state(1)).await;
    bench.clock.pass(1000 * DAY);
    assert_eq!(bench.sweep().await, []);
    assert_eq!(bench.state(identity.key).await, KeyState::Active);
}

#[tokio::test]
async fn so_many_records_name_one_key_and_no_more() {
    let mut bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    bench.write(&state(1), &[key]).await;
    bench.store.close().await;
    bench.sql(&format!(
        "INSERT INTO claims SELECT randomblob(24), record, key, storage, released, unsettled, body, mac \
         FROM claims, {}",
        numbers(MAX_RECORDS_OF_KEY - 1)
    ));
    bench.reopen();
    bench.claim(&state(1), &[key]).await;
    let claim = Claim {
        storage: STORAGE.into(),
        record: state(2),
        keys: vec![key],
    };
    let refused = bench.store.claim(&alice(), claim).await.unwrap_err();
    assert!(matches!(refused, StoreError::Limit(_)), "{refused}");
    // Those that were put in do not verify: the key may be held.
    bench.deleted(&state(1)).await;
    bench.clock.pass(1000 * DAY);
    assert_eq!(bench.sweep().await, []);
}

#[tokio::test]
async fn a_key_with_a_claim_that_does_not_verify_is_held() {
    let mut bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    bench.write(&state(1), &[key]).await;
    bench.deleted(&state(1)).await;
    bench.store.close().await;
    bench.sql("UPDATE claims SET mac = x'00'");
    bench.reopen();
    bench.clock.pass(1000 * DAY);
    assert_eq!(bench.sweep().await, []);
    assert_eq!(bench.state(key).await, KeyState::Idle);
}

#[tokio::test]
async fn the_oldest_own_leaf_makes_room_for_a_new_one() {
    let mut bench = Bench::new();
    bench.attach().await;
    let own_leaf = |key| Note::OwnLeaf {
        group: group(1),
        public_key: Bytes(vec![key]),
    };
    bench.note(own_leaf(1)).await;
    bench.store.close().await;
    bench.sql(&format!(
        "INSERT INTO own_leaves SELECT randomblob(32), storage, x'00', group_id, -n, body, mac \
         FROM own_leaves, {}",
        numbers(MAX_OWN_LEAVES - 1)
    ));
    bench.reopen();
    bench.note(own_leaf(2)).await;
    bench.store.close().await;
    // What is deleted here is what is there.
    let of = |condition: &str| bench.sql(&format!("DELETE FROM own_leaves WHERE {condition}"));
    let oldest = -i64::from(MAX_OWN_LEAVES - 1);
    assert_eq!(of(&format!("number = {oldest}")), 0);
    assert_eq!(of("public_key IN (x'01', x'02')"), 2);
    assert_eq!(of("1"), usize::try_from(MAX_OWN_LEAVES).unwrap() - 2);
}

#[tokio::test]
async fn one_app_has_so_many_storages_and_no_more() {
    let mut bench = Bench::new();
    bench.attach().await;
    bench.store.close().await;
    bench.sql(&format!(
        "INSERT INTO storages SELECT NULL, uid, app, randomblob(32), ending, attached_run, body, \
         mac FROM storages, {}",
        numbers(MAX_STORAGES - 1)
    ));
    bench.reopen();
    bench.attach().await;
    let refused = bench
        .store
        .attach(&alice(), "new".into(), false, C1)
        .await
        .unwrap_err();
    assert!(matches!(refused, StoreError::Limit(_)), "{refused}");
}

mod random {
    //! Random claims, settlements, deletions, crashes and answers against a
    //! model that knows what the storage really holds.

    use std::collections::{BTreeMap, BTreeSet};

    use rand::rngs::StdRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[tokio::test]
    async fn no_key_that_a_storage_holds_is_destroyed_and_all_others_are() {
        let seed = std::env::var("MLSKEYD_SEED")
            .map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
        println!("MLSKEYD_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut bench = Bench::new();
        let mut looks = bench.attach().await.looks;
        let mut holds: BTreeMap<Record, BTreeSet<KeyId>> = BTreeMap::new();
        let mut generations: BTreeMap<Record, u64> = BTreeMap::new();
        let mut alive: BTreeSet<KeyId> = BTreeSet::new();
        for step in 0..300 {
            let record = state(random.random_range(0..4));
            match random.random_range(0..10) {
                0 => {
                    alive.insert(bench.hpke(None).await);
                }
                1..=4 => {
                    let pool: Vec<KeyId> = alive.iter().copied().collect();
                    let count = random.random_range(0..3);
                    let keys: BTreeSet<KeyId> =
                        pool.choose_multiple(&mut random, count).copied().collect();
                    let asked: Vec<KeyId> = keys.iter().copied().collect();
                    let claimed = bench.claim(&record, &asked).await;
                    assert_eq!(claimed.lost, [], "step {step}");
                    looks.extend(claimed.housekeeping.looks);
                    generations.insert(record.clone(), claimed.generation);
                    // The app may die before the write, or before the settle.
                    if random.random_bool(0.8) {
                        holds.insert(record.clone(), keys);
                        if random.random_bool(0.8) {
                            looks.extend(bench.written(&record, claimed.generation).await.looks);
                        }
                    }
                }
                5 => {
                    holds.remove(&record);
                    let generation = generations.get(&record).copied();
                    let deleted = Settlement::Deleted { record, generation };
                    looks.extend(bench.settle(deleted).await.looks);
                }
                6 => {
                    if random.random_bool(0.5) {
                        bench.crash();
                    } else {
                        bench.reopen();
                    }
                    looks = bench.attach().await.looks;
                }
                7 => {
                    for look in std::mem::take(&mut looks) {
                        let found: Vec<Record> = holds
                            .iter()
                            .filter(|(record, keys)| {
                                look.records.contains(record) && keys.contains(&look.key)
                            })
                            .map(|(record, _)| record.clone())
                            .collect();
                        looks.extend(bench.looked(look.key, &found).await.looks);
                    }
                }
                _ => {
                    bench.clock.pass(random.random_range(0..DAY));
                    for key in bench.sweep().await {
                        assert!(alive.remove(&key), "step {step}");
                        let held = holds.values().any(|keys| keys.contains(&key));
                        assert!(!held, "step {step}: {key} is held and was destroyed");
                    }
                }
            }
        }
        // In the end all that nothing holds goes, and nothing else.
        for (record, keys) in holds.clone() {
            let keys: Vec<KeyId> = keys.into_iter().collect();
            bench.write(&record, &keys).await;
        }
        for record in (0..4)
            .map(state)
            .filter(|record| !holds.contains_key(record))
        {
            bench.deleted(&record).await;
        }
        for _ in 0..40 {
            bench.clock.pass(DAY);
            for look in bench.attach().await.looks {
                let found: Vec<Record> = look
                    .records
                    .iter()
                    .filter(|record| {
                        holds
                            .get(record)
                            .is_some_and(|keys| keys.contains(&look.key))
                    })
                    .cloned()
                    .collect();
                bench.looked(look.key, &found).await;
            }
            for key in bench.sweep().await {
                alive.remove(&key);
            }
        }
        let held: BTreeSet<KeyId> = holds.into_values().flatten().collect();
        assert_eq!(alive, held);
    }
}
