//! What a process claimed and never settled is in doubt once it is gone.

use mlskeyd_protocol::v1::{KeyId, KeyState, Look, Looked, Note, Record, Settlement};

use super::{C1, DAY, STORAGE, epoch, group, package, state};
use crate::store::ConnectionId;
use crate::store::tests::{Bench, alice};

fn look(key: KeyId, record: Record) -> Look {
    Look {
        key,
        records: vec![record],
    }
}

#[tokio::test]
async fn a_claim_whose_write_never_came_is_released_by_a_look() {
    let mut bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    bench.claim(&package(1), &[key]).await;
    bench.crash();
    assert_eq!(bench.attach().await.looks, [look(key, package(1))]);
    bench.looked(key, &[]).await;
    assert_eq!(bench.state(key).await, KeyState::Idle);
    assert_eq!(bench.sweep().await, [], "zero is not death");
    bench.clock.pass(2 * DAY);
    assert_eq!(bench.sweep().await, [], "there is a last look");
    assert_eq!(bench.attach().await.looks, [look(key, package(1))]);
    bench.looked(key, &[]).await;
    assert_eq!(bench.sweep().await, [key]);
}

#[tokio::test]
async fn what_is_found_is_held_and_asked_for_once() {
    let mut bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    bench.claim(&package(1), &[key]).await;
    bench.crash();
    assert_eq!(bench.attach().await.looks, [look(key, package(1))]);
    let more = bench.looked(key, &[package(1)]).await;
    assert_eq!(more.looks, []);
    assert_eq!(bench.state(key).await, KeyState::Active);
    bench.crash();
    assert_eq!(bench.attach().await.looks, []);
    bench.clock.pass(1000 * DAY);
    assert_eq!(bench.sweep().await, []);
}

#[tokio::test]
async fn of_a_replacement_that_never_came_the_old_key_stays_until_the_next() {
    let mut bench = Bench::new();
    bench.attach().await;
    let (old, new) = (bench.hpke(None).await, bench.hpke(None).await);
    bench.write(&state(1), &[old]).await;
    bench.claim(&state(1), &[new]).await;
    bench.crash();
    let mut asked: Vec<KeyId> = bench
        .attach()
        .await
        .looks
        .iter()
        .map(|look| look.key)
        .collect();
    asked.sort();
    let mut both = vec![old, new];
    both.sort();
    assert_eq!(asked, both);
    bench.looked(old, &[state(1)]).await;
    bench.looked(new, &[]).await;
    assert_eq!(bench.state(old).await, KeyState::Active);
    assert_eq!(bench.state(new).await, KeyState::Idle);
    let third = bench.hpke(None).await;
    bench.write(&state(1), &[third]).await;
    assert_eq!(bench.state(old).await, KeyState::Idle);
}

#[tokio::test]
async fn nothing_is_in_doubt_while_its_connection_may_still_settle_it() {
    let bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    bench.claim(&package(1), &[key]).await;
    let other = ConnectionId(2);
    let owner = alice();
    let attach = || bench.store.attach(&owner, STORAGE.into(), false, other);
    assert_eq!(attach().await.unwrap().looks, []);
    bench.looked(key, &[]).await;
    assert_eq!(bench.state(key).await, KeyState::Active, "nobody asked");
    let own = bench.hpke(None).await;
    bench.claim(&package(2), &[own]).await;
    bench.store.connection_closed(C1).await.unwrap();
    let looks = bench.claim(&state(1), &[]).await.housekeeping.looks;
    assert_eq!(looks, [look(key, package(1))], "of the first one only");
}

#[tokio::test]
async fn what_is_claimed_again_meanwhile_is_not_in_doubt() {
    let mut bench = Bench::new();
    bench.attach().await;
    let (key, other) = (bench.hpke(None).await, bench.hpke(None).await);
    bench.claim(&state(1), &[key]).await;
    bench.crash();
    bench.attach().await;
    // The answer comes late.
    bench.claim(&state(1), &[key, other]).await;
    bench.looked(key, &[]).await;
    assert_eq!(bench.state(key).await, KeyState::Active);
}

#[tokio::test]
async fn what_is_settled_is_not_in_doubt() {
    let mut bench = Bench::new();
    bench.attach().await;
    let (key, gone) = (bench.hpke(None).await, bench.hpke(None).await);
    bench.write(&package(1), &[key]).await;
    let generation = Some(bench.claim(&package(2), &[gone]).await.generation);
    bench
        .settle(Settlement::Deleted {
            record: package(2),
            generation,
        })
        .await;
    bench.crash();
    assert_eq!(bench.attach().await.looks, []);
}

#[tokio::test]
async fn all_doubts_are_asked_for_in_the_end() {
    let mut bench = Bench::new();
    bench.attach().await;
    let mut keys = Vec::new();
    for n in 0..40 {
        let key = bench.hpke(None).await;
        bench.claim(&package(n), &[key]).await;
        keys.push(key);
    }
    bench.crash();
    let mut looks = bench.attach().await.looks;
    let mut asked = Vec::new();
    while !looks.is_empty() {
        assert!(looks.len() <= 16);
        asked.extend(looks.iter().map(|look| look.key));
        let looked = Looked {
            storage: STORAGE.into(),
            found: looks,
        };
        looks = bench.store.looked(&alice(), looked).await.unwrap().looks;
    }
    asked.sort();
    keys.sort();
    assert_eq!(asked, keys);
}

fn ending(leaf_index: Option<u32>) -> Note {
    let group = group(1);
    Note::GroupEnding { group, leaf_index }
}

#[tokio::test]
async fn an_end_that_was_begun_is_asked_for_once_its_connection_is_gone() {
    let mut bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    bench.write(&epoch(1, 1, 2), &[key]).await;
    assert!(bench.note(ending(Some(2))).await.is_empty());
    // The state itself may hold a commit's key, and be settled first.
    bench.deleted(&state(1)).await;
    bench.crash();
    assert_eq!(bench.attach().await.ending, [group(1)]);
    let gone = Note::GroupGone { group: group(1) };
    let next = bench.note(gone).await;
    assert_eq!(next.dead, [epoch(1, 1, 2)]);
    assert!(next.ending.is_empty());
}

#[tokio::test]
async fn an_end_names_the_member_that_it_was_begun_for() {
    let mut bench = Bench::new();
    bench.attach().await;
    let (hers, his) = (bench.hpke(None).await, bench.hpke(None).await);
    bench.write(&epoch(1, 1, 0), &[hers]).await;
    bench.write(&epoch(1, 1, 1), &[his]).await;
    bench.note(ending(Some(1))).await;
    bench.crash();
    bench.attach().await;
    let gone = Note::GroupGone { group: group(1) };
    assert_eq!(bench.note(gone).await.dead, [epoch(1, 1, 1)]);
}

#[tokio::test]
async fn an_end_that_did_not_come_is_forgotten() {
    let mut bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    bench.write(&epoch(1, 1, 2), &[key]).await;
    bench.note(ending(Some(2))).await;
    bench.crash();
    assert_eq!(bench.attach().await.ending, [group(1)]);
    let lives = Note::GroupLives { group: group(1) };
    assert!(bench.note(lives).await.is_empty());
    bench.crash();
    assert!(bench.attach().await.is_empty());
    assert_eq!(bench.state(key).await, KeyState::Active);
}

#[tokio::test]
async fn a_key_package_that_is_gone_was_used_if_its_group_was_joined() {
    let mut bench = Bench::new();
    bench.attach().await;
    let (init, leaf) = bench.key_package(1, false, u64::MAX).await;
    bench.write(&epoch(1, 1, 1), &[leaf]).await;
    // The delete was announced, and never settled.
    bench.claim(&package(1), &[]).await;
    bench.crash();
    let next = bench.attach().await;
    assert_eq!(next.joined.len(), 1);
    assert_eq!(next.looks.len(), 2);
    bench.looked(init, &[]).await;
    bench.looked(leaf, &[]).await;
    let key = bench.store.key(init).await.unwrap().unwrap();
    let binding = format!("{:?}", key.binding);
    assert!(binding.contains("consumed_by: Some"), "{binding}");
    assert_eq!(bench.state(leaf).await, KeyState::Active);
}

#[tokio::test]
async fn a_group_that_is_gone_does_not_end_what_was_claimed_since() {
    let mut bench = Bench::new();
    bench.attach().await;
    let (old, new) = (bench.hpke(None).await, bench.hpke(None).await);
    bench.write(&epoch(1, 5, 1), &[old]).await;
    bench.note(ending(Some(1))).await;
    bench.crash();
    bench.attach().await;
    // It is joined again: the state is written last.
    bench.write(&epoch(1, 9, 1), &[new]).await;
    let gone = Note::GroupGone { group: group(1) };
    let next = bench.note(gone.clone()).await;
    assert_eq!(next.dead, [epoch(1, 5, 1)]);
    // And an answer that comes twice says nothing.
    bench.deleted(&epoch(1, 5, 1)).await;
    assert_eq!(bench.note(gone).await.dead, []);
}

#[tokio::test]
async fn a_write_that_a_look_did_not_see_is_claimed_again_when_it_is_settled() {
    let mut bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    let generation = bench.claim(&epoch(1, 1, 1), &[key]).await.generation;
    bench.crash();
    bench.attach().await;
    bench.looked(key, &[]).await;
    assert_eq!(bench.state(key).await, KeyState::Idle);
    bench.written(&epoch(1, 1, 1), generation).await;
    assert_eq!(bench.state(key).await, KeyState::Active);
    bench.clock.pass(1000 * DAY);
    assert_eq!(bench.sweep().await, []);
}

#[tokio::test]
async fn a_claim_that_is_repeated_is_in_doubt_no_longer() {
    let mut bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    let first = bench.claim(&state(1), &[key]).await.generation;
    bench.crash();
    bench.attach().await;
    assert_ne!(bench.claim(&state(1), &[key]).await.generation, first);
    bench.looked(key, &[]).await;
    assert_eq!(bench.state(key).await, KeyState::Active);
}

#[tokio::test]
async fn what_is_found_after_a_rollback_ends_only_what_was_left_open() {
    let bench = Bench::new();
    bench.attach().await;
    let (old, new) = (bench.hpke(None).await, bench.hpke(None).await);
    bench.write(&state(1), &[old]).await;
    let generation = bench.claim(&state(1), &[new]).await.generation;
    let found = |generation, keys: &[KeyId]| Settlement::Found {
        record: state(1),
        generation,
        keys: keys.to_vec(),
    };
    bench.settle(found(generation - 1, &[])).await;
    assert_eq!(bench.state(old).await, KeyState::Active, "it is stale");
    bench.settle(found(generation, &[old])).await;
    assert_eq!(bench.state(old).await, KeyState::Active);
    assert_eq!(bench.state(new).await, KeyState::Idle);
    // What another process settled meanwhile stays.
    let generation = bench.claim(&state(1), &[new]).await.generation;
    bench.written(&state(1), generation).await;
    bench.settle(found(generation, &[])).await;
    assert_eq!(bench.state(new).await, KeyState::Active);
}

#[tokio::test]
async fn a_dead_record_whose_delete_did_not_come_stays_dead() {
    let bench = Bench::new();
    bench.attach().await;
    let (old, new) = (bench.hpke(None).await, bench.hpke(None).await);
    bench.write(&epoch(1, 1, 1), &[old]).await;
    bench.write(&epoch(1, 2, 1), &[new]).await;
    let announced = bench.claim(&epoch(1, 1, 1), &[]).await;
    assert_eq!(announced.housekeeping.dead, [epoch(1, 1, 1)]);
}

#[tokio::test]
async fn a_claim_that_seemed_to_end_does_not_come_back_with_another() {
    let mut bench = Bench::new();
    bench.attach().await;
    let key = bench.hpke(None).await;
    bench.claim(&state(1), &[key]).await;
    bench.crash();
    bench.attach().await;
    bench.looked(key, &[]).await;
    bench.write(&state(1), &[]).await;
    assert_eq!(bench.state(key).await, KeyState::Idle);
}
