//! How keys end, and that none is made in vain: against somebody who writes the
//! registry's file, too.

use mlskeyd_protocol::v1::{CreateIdentity, GenerateHpke, Kem, Sign, Swept};

use super::*;
use crate::store::{CurrentGeneration, NewKey, Under};

/// Of the callers themselves: `1000/default`.
fn own() -> Owner {
    Owner {
        app: "default".to_owned(),
        ..alice()
    }
}

fn identity(name: &str) -> CreateIdentity {
    CreateIdentity {
        name: name.to_owned(),
        credential: Credential::Basic(Bytes::from(name.as_bytes())),
        scheme: SignatureScheme::Ed25519,
        placement: Placement {
            device: None,
            tier: None,
        },
    }
}

impl Bench {
    /// Changes the registry behind the daemon's back.
    fn sql(&self, sql: &str) -> usize {
        self.registry_file().execute(sql, []).unwrap()
    }

    fn registry_file(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.dir.path().join("state/registry.db")).unwrap()
    }

    /// Each key that was ever begun to be made has one of its own, or shares one.
    pub(super) fn generations(&self) -> u32 {
        let count = "SELECT count(*) FROM generations";
        let count = self.registry_file().query_row(count, [], |row| row.get(0));
        count.unwrap()
    }

    /// Journals a key: a signature key, if it has a generation of its own.
    async fn journalled(&self, device: &str, number: u8, generation: Under) -> KeyId {
        let id = KeyId::from_bytes([number; 16]);
        let shared = matches!(generation, Under::Shared(_));
        let hpke = Algorithm::Hpke(Kem::DhKemX25519);
        let new = NewKey {
            id,
            owner: alice(),
            algorithm: if shared { hpke } else { ED25519 },
            device: device.to_owned(),
            tier: Tier::Hardware,
            generation,
            identity: None,
            adopted: false,
            pin: false,
            connection: None,
            created: 1,
        };
        let registry = &self.custody.registry;
        registry.begin_create(new).await.unwrap();
        id
    }

    /// Makes a journalled key.
    async fn made(&self, id: KeyId) {
        let made = store::MadeKey {
            id,
            public_key: id.as_bytes().to_vec().into(),
            blob: KeyBlob::new(vec![1]),
            tier: Tier::Hardware,
        };
        let registry = &self.custody.registry;
        registry.finish_create(made).await.unwrap();
    }

    /// The device's thread looks at it.
    async fn look_at(&self, device: &str) {
        let looked = self.custody.devices.run_own(device, |_| Ok(())).await;
        looked.unwrap();
    }

    async fn sign(&self, key: KeyId) -> Failure {
        let content = SecretBytes::new(b"of no known structure".to_vec());
        let request = Sign { key, content };
        self.serve_for(own().uid, request).await.unwrap_err()
    }

    /// So many HPKE keys of one connection, which lives on and never claims them.
    async fn unclaimed(&self, count: usize) -> Session {
        let session = self.custody.connect(Caller::new(own().uid, None));
        for _ in 0..count {
            let (reporter, _reports) = Reporter::channel();
            let call = Call {
                options: CallOptions {
                    interaction: Interaction::Never,
                    priority: Priority::Interactive,
                    token: 1,
                },
                deadline: Instant::now() + Duration::from_secs(60),
                progress: reporter.for_call(1),
                asker: Asker {
                    owner: own(),
                    action: GenerateHpke::ACTION,
                },
            };
            let request = GenerateHpke {
                kem: Kem::DhKemX25519,
                placement: identity("").placement,
            };
            session.serve(call, request).await.unwrap();
        }
        session
    }
}

#[tokio::test]
async fn a_key_that_has_ended_signs_no_more_though_it_is_hidden_from_the_sweep() {
    let bench = Bench::new();
    let before = bench.serve_for(own().uid, identity("alice")).await.unwrap();
    let rotation = RotateIdentity {
        owner: own(),
        ..to_software()
    };
    let now = bench.serve(rotation.clone()).await.unwrap();
    assert_eq!(bench.sign(before.key).await.code, FailureCode::Denied);
    assert_eq!(bench.sql("UPDATE keys SET ends = NULL"), 2);

    bench.clock.0.fetch_add(999, Ordering::SeqCst);
    assert_eq!(bench.sign(before.key).await.code, FailureCode::Denied);
    bench.clock.0.fetch_add(1, Ordering::SeqCst);
    assert_eq!(bench.serve(Sweep).await.unwrap().destroyed, 0);
    let ended = bench.sign(before.key).await;
    assert_eq!(ended.code, FailureCode::Destroyed);
    assert!(ended.message.contains("identity \"alice\""), "{ended}");
    assert!(ended.advice.contains("external commit"), "{ended}");
    let record = bench.record("SignUnknown");
    assert!(record.is_refusal() && record.key == Some(before.key));
    // Nor does anybody count on it.
    let listed = bench.serve(AllIdentities).await.unwrap();
    assert_eq!(listed[0].identity.key, now.key);
    assert_eq!(listed[0].identity.retiring, []);

    // Once it is found it is destroyed, and the answer stays the same.
    let mut position = Some(store::ScrubPosition::default());
    while let Some(from) = position {
        position = bench.custody.registry.scrub(from, 128).await.unwrap().next;
    }
    assert_eq!(bench.serve(Sweep).await.unwrap().destroyed, 1);
    assert_eq!(bench.sign(before.key).await.message, ended.message);
}

#[tokio::test]
async fn a_full_table_of_identities_costs_no_device_a_key() {
    let bench = Bench::new();
    let first = bench.serve_for(own().uid, identity("alice")).await.unwrap();
    let more = "INSERT INTO identities SELECT randomblob(32), uid, app, body, mac FROM identities";
    for _ in 0..6 {
        bench.sql(more);
    }
    let before = bench.generations();
    let full = bench.serve_for(own().uid, identity("bob")).await;
    let full = full.unwrap_err();
    assert_eq!(full.code, FailureCode::LimitReached);
    assert!(full.advice.contains("mlskeyctl identities"), "{full}");
    let adoption = AdoptIdentity {
        owner: own(),
        ..adoption("bob", "first")
    };
    assert_eq!(code(bench.serve(adoption.clone()).await), full.code);
    assert_eq!(bench.generations(), before);
    // What is there is answered, and others have their own room.
    let again = bench.serve_for(own().uid, identity("alice")).await.unwrap();
    assert_eq!(again.key, first.key);
    let others = AdoptIdentity {
        owner: alice(),
        ..adoption
    };
    bench.serve(others).await.unwrap();
}

#[tokio::test]
async fn a_sweep_answers_in_portions_and_each_is_whole() {
    let bench = Bench::new();
    let _session = bench.unclaimed(20).await;
    bench.clock.0.fetch_add(8 * 86_400, Ordering::SeqCst);
    let mut portions = Vec::new();
    loop {
        let Swept {
            destroyed, more, ..
        } = bench.custody.sweep(Duration::ZERO).await.unwrap();
        portions.push(destroyed);
        bench.assert_finished().await;
        let mut keys = bench.keys().await;
        keys.retain(|key| key.key.state == KeyState::Destroyed);
        let so_far: u64 = portions.iter().sum();
        assert_eq!(u64::try_from(keys.len()).unwrap(), so_far);
        if !more {
            break;
        }
    }
    assert_eq!(portions, [8, 8, 4, 0]);
    assert_eq!(
        bench
            .records()
            .iter()
            .filter(|it| it.action == "Destroy")
            .count(),
        20
    );
    assert_eq!(bench.serve(Sweep).await.unwrap(), Swept::default());
}

#[tokio::test]
async fn a_long_sweep_takes_turns_with_the_daemons_own() {
    let bench = Bench::new();
    let _session = bench.unclaimed(20).await;
    bench.clock.0.fetch_add(8 * 86_400, Ordering::SeqCst);
    // As the daemon's own sweep asks for them.
    let own = async {
        let mut destroyed = Vec::new();
        loop {
            let swept = bench.custody.sweep(Duration::ZERO).await.unwrap();
            destroyed.push(swept.destroyed);
            if !swept.more {
                return destroyed;
            }
        }
    };
    let (own, asked) = tokio::join!(own, bench.serve(Sweep));
    let asked = asked.unwrap().destroyed;
    assert_eq!(own.iter().sum::<u64>() + asked, 20);
    assert!(asked > 0 && own[0] > 0, "{own:?}, {asked}");
}

#[tokio::test]
async fn a_damaged_row_of_a_key_that_was_being_made_does_not_keep_the_daemon_from_starting() {
    let bench = Bench::new();
    let new = NewKey {
        id: KeyId::from_bytes([1; 16]),
        owner: alice(),
        algorithm: ED25519,
        device: "software".to_owned(),
        tier: Tier::Software,
        generation: Under::Own(GenerationId::from_bytes([2; 16])),
        identity: Some("alice".to_owned()),
        adopted: false,
        pin: false,
        connection: None,
        created: 1,
    };
    bench.custody.registry.begin_create(new).await.unwrap();
    assert_eq!(bench.sql("UPDATE keys SET mac = x'00'"), 1);
    let repaired = bench.custody.repair().await.unwrap();
    assert_eq!(repaired, Repaired::default());
}

#[tokio::test]
async fn a_device_that_is_lost_in_the_middle_of_a_rotation_keeps_no_key() {
    for makes in [Makes::ThenIsThere, Makes::ThenIsAway] {
        let bench = Bench::new();
        let before = bench.serve(adoption("alice", "first")).await.unwrap();
        bench.seen.lock().unwrap().makes = Some(makes);
        let lost = bench.serve(rotation(None, None)).await.unwrap_err();
        assert_eq!(lost.code, FailureCode::DeviceFailed);
        let listed = bench.serve(AllIdentities).await.unwrap();
        assert_eq!(listed[0].identity, before);
        assert_eq!(bench.keys().await.len(), 1);
        let is_away = matches!(makes, Makes::ThenIsAway);
        assert_eq!(bench.seen.lock().unwrap().destroyed.is_empty(), is_away);

        // It comes back.
        bench.seen.lock().unwrap().away = false;
        bench.look_at("token").await;
        assert_eq!(bench.serve(Sweep).await.unwrap(), Swept::default());
        {
            let seen = bench.seen.lock().unwrap();
            assert_eq!((seen.made.len(), &seen.made), (1, &seen.destroyed));
            // Nobody was told of it, and so nothing more is needed.
            assert_eq!(seen.undone, seen.destroyed);
        }
        bench.assert_finished().await;
    }
}

#[tokio::test]
async fn what_was_given_up_while_it_was_made_does_not_wait_for_a_restart() {
    let bench = Bench::new();
    let generation = GenerationId::from_bytes([2; 16]);
    let new = NewKey {
        id: KeyId::from_bytes([1; 16]),
        owner: alice(),
        algorithm: ED25519,
        device: "token".to_owned(),
        tier: Tier::Hardware,
        generation: Under::Own(generation),
        identity: Some("alice".to_owned()),
        adopted: false,
        pin: false,
        connection: None,
        created: 1,
    };
    let registry = &bench.custody.registry;
    registry.begin_create(new.clone()).await.unwrap();
    assert_eq!(bench.serve(Sweep).await.unwrap(), Swept::default());
    assert_eq!(bench.seen.lock().unwrap().destroyed, []);
    // The disk is full just then, and no more is on record.
    registry.abandon_create(new.id).await.unwrap();
    assert_eq!(bench.serve(Sweep).await.unwrap(), Swept::default());
    assert_eq!(bench.seen.lock().unwrap().destroyed, [generation]);
    assert_eq!(bench.seen.lock().unwrap().undone, [generation]);
    bench.assert_finished().await;
}

#[tokio::test]
async fn an_identity_whose_key_is_gone_hides_no_other_and_says_what_it_lacks() {
    let bench = Bench::new();
    let uid = own().uid;
    // Before and behind those that are gone, by their names.
    let alice = bench.serve_for(uid, identity("alice")).await.unwrap();
    let aaron = bench.serve_for(uid, identity("aaron")).await.unwrap();
    let zoe = bench.serve_for(uid, identity("zoe")).await.unwrap();
    let destroyed = bench
        .custody
        .registry
        .begin_destroy(aaron.key, store::Cause::Ordered);
    destroyed.await.unwrap();
    let listed = bench.serve_for(uid, Identities).await.unwrap();
    assert_eq!(listed, [alice.clone(), zoe.clone()]);
    // Somebody takes the row away, and the daemon forgets what it remembers.
    bench
        .custody
        .registry
        .finish_destroy(aaron.key)
        .await
        .unwrap();
    let aline = bench.serve_for(uid, identity("aline")).await.unwrap();
    let sql = format!("DELETE FROM keys WHERE id = x'{}'", aline.key);
    bench.sql(&sql);
    let _session = bench.unclaimed(CACHED + 1).await;
    let listed = bench.serve_for(uid, Identities).await.unwrap();
    assert_eq!(listed, [alice, zoe]);
    let rotation = RotateIdentity {
        owner: own(),
        name: "aline".to_owned(),
        ..to_software()
    };
    let refused = bench.serve(rotation).await.unwrap_err();
    assert_eq!(refused.code, FailureCode::KeyMissing, "{refused}");
}

#[tokio::test]
async fn a_device_that_fails_ends_no_sweep_and_is_asked_once_in_it() {
    let bench = Bench::new();
    for number in 1..=8 {
        let device = if number > 5 { "software" } else { "token" };
        let own = Under::Own(GenerationId::from_bytes([number; 16]));
        let key = bench.journalled(device, number, own).await;
        let registry = &bench.custody.registry;
        registry.abandon_create(key).await.unwrap();
    }
    bench.seen.lock().unwrap().keeps = true;
    let mut portions = 0;
    let swept = loop {
        // No portion has time for a second step.
        let swept = bench.custody.sweep(Duration::ZERO).await.unwrap();
        portions += 1;
        assert!(portions <= 3, "{swept:?}");
        if !swept.more {
            break swept;
        }
    };
    assert_eq!((portions, swept.stuck), (3, 5));
    assert_eq!(bench.seen.lock().unwrap().kept, 1);
    // It is asked again by the next one.
    bench.seen.lock().unwrap().keeps = false;
    assert_eq!(bench.serve(Sweep).await.unwrap(), Swept::default());
    assert_eq!(bench.seen.lock().unwrap().destroyed.len(), 5);
    bench.assert_finished().await;
}

#[tokio::test]
async fn a_device_that_gives_back_no_room_is_not_asked_for_more() {
    let bench = Bench::new();
    let registry = &bench.custody.registry;
    let day = Duration::from_secs(86_400);
    let current = registry.current_generation("token", day).await.unwrap();
    let CurrentGeneration::CreateNew(shared) = current else {
        panic!("{current:?}");
    };
    registry.finish_generation(shared).await.unwrap();
    // One that lives on, one that dies there, and one with a generation of its own,
    // which comes last.
    let own = GenerationId::from_bytes([0xff; 16]);
    for (number, under) in [
        (1, Under::Shared(shared)),
        (2, Under::Shared(shared)),
        (3, Under::Own(own)),
    ] {
        let key = bench.journalled("token", number, under).await;
        bench.made(key).await;
        if number > 1 {
            let begun = registry.begin_destroy(key, store::Cause::Ordered).await;
            begun.unwrap();
        }
    }
    bench.seen.lock().unwrap().keeps = true;
    let swept = bench.serve(Sweep).await.unwrap();
    assert_eq!((swept.destroyed, swept.stuck), (2, 1));
    assert_eq!(bench.seen.lock().unwrap().kept, 1);
    bench.seen.lock().unwrap().keeps = false;
    assert_eq!(bench.serve(Sweep).await.unwrap(), Swept::default());
    assert_eq!(bench.seen.lock().unwrap().destroyed, [own]);
    assert_eq!(bench.seen.lock().unwrap().undone, []);
}

#[tokio::test]
async fn the_generation_of_a_key_that_was_not_made_goes_with_it_if_it_was_the_last() {
    let bench = Bench::new();
    let registry = &bench.custody.registry;
    let day = Duration::from_secs(86_400);
    let current = registry.current_generation("token", day).await.unwrap();
    let CurrentGeneration::CreateNew(shared) = current else {
        panic!("{current:?}");
    };
    registry.finish_generation(shared).await.unwrap();
    let first = bench.journalled("token", 1, Under::Shared(shared)).await;
    let last = bench.journalled("token", 2, Under::Shared(shared)).await;
    registry.retire_generation(shared).await.unwrap();
    bench.custody.undo_creation(first).await;
    assert_eq!(bench.seen.lock().unwrap().destroyed, []);
    bench.custody.undo_creation(last).await;
    assert_eq!(bench.seen.lock().unwrap().destroyed, [shared]);
    // It may have had others, which somebody knows.
    assert_eq!(bench.seen.lock().unwrap().undone, []);
    bench.assert_finished().await;
}
