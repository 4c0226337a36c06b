//! What is one owner's becomes another's: table by table, all of it or nothing, and nobody
//! else's.

use std::convert::Infallible;

use mlskeyd_protocol::v1::{ReassignKeys, Reassigned, Settle, Settlement};
use rusqlite::types::Value;

use super::*;

fn wire() -> Owner {
    Owner {
        uid: 1000,
        app: "wire".into(),
    }
}

/// Another user, with the same app and the same names.
fn carol() -> Owner {
    Owner {
        uid: 1001,
        ..alice()
    }
}

fn all() -> ReassignKeys {
    ReassignKeys {
        from: alice(),
        to: wire(),
        identities: Vec::new(),
        storages: Vec::new(),
    }
}

fn group(n: u8) -> Record {
    Record::GroupState {
        group: vec![n].into(),
    }
}

fn mark_of(owner: Owner, n: u8) -> GuardId {
    GuardId {
        owner,
        ..guard_id(n)
    }
}

impl Bench {
    async fn give(&self, order: ReassignKeys) -> Result<Reassigned, NotReassigned> {
        let given = self.store.reassign(order, false, |_| Ok(())).await;
        given.unwrap()
    }

    /// An owner's identity, with its key.
    async fn identity_of(&self, owner: &Owner, name: &str) -> KeyId {
        let (identity, made) = self.identity_begun(owner, name).await;
        let key = identity.key;
        let created = self.store.create_identity(identity, made, None).await;
        created.unwrap();
        key
    }

    async fn identity_begun(&self, owner: &Owner, name: &str) -> (IdentityRecord, MadeKey) {
        let made = self.key_begun(owner, name).await;
        let credential = Credential::Basic(name.as_bytes().into());
        let identity = IdentityRecord {
            owner: owner.clone(),
            name: name.into(),
            made_with: credential.clone(),
            credential,
            scheme: SignatureScheme::Ed25519,
            key: made.id,
            retiring: Vec::new(),
            next: None,
        };
        (identity, made)
    }

    /// A signature key that is being made for an identity.
    async fn key_begun(&self, owner: &Owner, name: &str) -> MadeKey {
        let new = NewKey {
            owner: owner.clone(),
            algorithm: Algorithm::Signature(SignatureScheme::Ed25519),
            generation: Under::Own(GenerationId::from_bytes(self.number().to_le_bytes())),
            identity: Some(name.into()),
            ..self.new_hpke(None).await
        };
        let id = new.id;
        self.store.begin_create(new).await.unwrap();
        made(id)
    }

    async fn hpke_of(&self, owner: &Owner, connection: u64) -> KeyId {
        let new = NewKey {
            owner: owner.clone(),
            ..self.new_hpke(Some(ConnectionId(connection))).await
        };
        let id = new.id;
        self.store.begin_create(new).await.unwrap();
        self.store.finish_create(made(id)).await.unwrap();
        id
    }

    /// A record of a storage of an owner that names a key.
    async fn claimed(&self, owner: &Owner, storage: &str, record: Record, key: KeyId) -> Claimed {
        let claim = Claim {
            storage: storage.into(),
            record,
            keys: vec![key],
        };
        self.store.claim(owner, claim).await.unwrap()
    }

    async fn rotate(&self, owner: &Owner, name: &str, from: KeyId) -> KeyId {
        let to = self.key_begun(owner, name).await;
        let id = to.id;
        let rotation = Rotation {
            owner: owner.clone(),
            name: name.into(),
            from,
            to,
            grace: Duration::from_secs(1000),
        };
        self.store.rotate_identity(rotation).await.unwrap();
        id
    }

    async fn signed(&self, of: GuardId, epoch: u64, commit: u8) {
        let mark = GuardMark {
            epoch,
            commits: vec![[commit; 32]],
            ..GuardMark::default()
        };
        let put = move |_: Option<&GuardMark>| Ok::<_, Infallible>(mark);
        let Ok(_) = self.store.update_guard(of, put).await.unwrap();
    }

    async fn owner_of(&self, key: KeyId) -> Owner {
        self.store.key(key).await.unwrap().unwrap().owner.clone()
    }

    /// All rows but that of the registry itself.
    fn dump(&self) -> Vec<Vec<Value>> {
        let conn = Connection::open(self.dir.path().join("registry.db")).unwrap();
        let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name != 'meta'";
        let mut names = conn.prepare(tables).unwrap();
        let names = names.query_map([], |row| row.get::<_, String>(0)).unwrap();
        let mut rows = Vec::new();
        for name in names.map(Result::unwrap) {
            let mut all = conn.prepare(&format!("SELECT * FROM {name}")).unwrap();
            let columns = all.column_count();
            let mut found = all.query([]).unwrap();
            while let Some(row) = found.next().unwrap() {
                rows.push((0..columns).map(|n| row.get(n).unwrap()).collect());
            }
        }
        rows
    }

    /// How many rows of a table are found as this owner's.
    fn count(&self, table: &str, owner: &Owner) -> u32 {
        let conn = Connection::open(self.dir.path().join("registry.db")).unwrap();
        let sql = format!("SELECT count(*) FROM {table} WHERE uid = ?1 AND app = ?2");
        conn.query_row(&sql, (owner.uid, &owner.app), |row| row.get(0))
            .unwrap()
    }

    async fn assert_sound(&self) {
        let mut at = Some(ScrubPosition::default());
        while let Some(position) = at {
            let scrubbed = self.store.scrub(position, 100).await.unwrap();
            assert_eq!(scrubbed.tampered, []);
            at = scrubbed.next;
        }
    }
}

/// All kinds of things of an owner.
struct Household {
    retiring: KeyId,
    current: KeyId,
    next: KeyId,
    claimed: KeyId,
    unclaimed: KeyId,
    destroyed: KeyId,
}

impl Household {
    async fn of(bench: &Bench, owner: &Owner) -> Self {
        let retiring = bench.identity_of(owner, "alice").await;
        let current = bench.rotate(owner, "alice", retiring).await;
        let prepared = bench.key_begun(owner, "alice").await;
        let next = prepared.id;
        let prepare = bench
            .store
            .prepare_key(owner.clone(), "alice".into(), prepared);
        prepare.await.unwrap();
        bench.signed(mark_of(owner.clone(), 1), 7, 1).await;
        let leave = bench
            .store
            .permit_leave(mark_of(owner.clone(), 1), vec![5].into());
        leave.await.unwrap();
        let claimed = bench.hpke_of(owner, 1).await;
        bench.claimed(owner, "s", group(1), claimed).await;
        let report = Report {
            storage: "s".into(),
            notes: vec![Note::OwnLeaf {
                group: vec![1].into(),
                public_key: vec![3].into(),
            }],
        };
        bench.store.report(owner, report).await.unwrap();
        let destroyed = bench.hpke_of(owner, 1).await;
        let begin = bench.store.begin_destroy(destroyed, Cause::Ordered);
        begin.await.unwrap();
        bench.store.finish_destroy(destroyed).await.unwrap();
        Self {
            retiring,
            current,
            next,
            claimed,
            unclaimed: bench.hpke_of(owner, 1).await,
            destroyed,
        }
    }

    fn keys(&self) -> [KeyId; 6] {
        [
            self.retiring,
            self.current,
            self.next,
            self.claimed,
            self.unclaimed,
            self.destroyed,
        ]
    }

    /// It is whole, and this owner's.
    async fn assert_of(&self, bench: &Bench, owner: &Owner) {
        let store = &bench.store;
        for key in self.keys() {
            assert_eq!(bench.owner_of(key).await, *owner);
            let by_public = store.key_by_public(owner, &public(key)).await.unwrap();
            assert_eq!(by_public.unwrap().id, key);
        }
        let identity = store.identity(owner, "alice").await.unwrap().unwrap();
        assert_eq!(identity.owner, *owner);
        assert_eq!(
            (identity.retiring, identity.key, identity.next),
            (vec![self.retiring], self.current, Some(self.next))
        );
        let of = mark_of(owner.clone(), 1);
        assert_eq!(store.guard_mark(&of).await.unwrap().unwrap().epoch, 7);
        assert_eq!(store.leave_permit(&of).await.unwrap(), Some(vec![5].into()));
        let storages = store.storages().await.unwrap();
        let storage = storages.iter().find(|it| it.owner == *owner).unwrap();
        assert_eq!((&*storage.name, storage.records, storage.keys), ("s", 1, 1));
        assert_eq!(
            ["keys", "identities", "storages"].map(|table| bench.count(table, owner)),
            [6, 1, 1]
        );
        // Its record is known, as it was.
        let again = bench.claimed(owner, "s", group(1), self.claimed).await;
        assert!(again.generation > 0 && again.lost.is_empty());
    }
}

#[tokio::test]
async fn all_that_an_owner_has_goes_and_nobody_elses() {
    let mut bench = Bench::new();
    let (hers, carols) = (
        Household::of(&bench, &alice()).await,
        Household::of(&bench, &carol()).await,
    );
    hers.assert_of(&bench, &alice()).await;
    let told = bench.give(all()).await.unwrap();
    assert_eq!(
        told,
        Reassigned {
            identities: vec!["alice".into()],
            storages: vec!["s".into()],
            signature_keys: 3,
            hpke_keys: 2,
        }
    );
    // As it is in memory, after a power cut, and after a restart.
    for turn in 0..3 {
        hers.assert_of(&bench, &wire()).await;
        carols.assert_of(&bench, &carol()).await;
        for table in ["keys", "identities", "storages"] {
            assert_eq!(bench.count(table, &alice()), 0, "{table}");
        }
        for key in hers.keys() {
            let by_public = bench.store.key_by_public(&alice(), &public(key)).await;
            assert_eq!(by_public.unwrap(), None);
        }
        assert_eq!(bench.store.identities(Some(&alice())).await.unwrap(), []);
        let permit = bench.store.leave_permit(&guard_id(1)).await.unwrap();
        assert_eq!(permit, None);
        bench.assert_sound().await;
        match turn {
            0 => bench.crash(),
            _ => bench.reopen(),
        }
    }
    // What is needed is not destroyed, and what is not is.
    bench.clock.pass(30 * 86_400);
    let destroyed = bench.sweep().await;
    assert!(destroyed.contains(&hers.unclaimed) && !destroyed.contains(&hers.claimed));
    let nothing = bench.give(all()).await;
    assert_eq!(nothing, Err(NotReassigned::Nothing(alice())));
    // And back.
    let back = ReassignKeys {
        from: wire(),
        to: alice(),
        ..all()
    };
    bench.give(back).await.unwrap();
    assert_eq!(bench.owner_of(hers.current).await, alice());
    assert_eq!(bench.owner_of(carols.current).await, carol());
}

#[tokio::test]
async fn a_conflict_changes_nothing() {
    let bench = Bench::new();
    let hers = Household::of(&bench, &alice()).await;
    let taken = |what, name: &str| {
        Err(NotReassigned::Taken {
            owner: wire(),
            what,
            name: name.into(),
        })
    };
    // A storage that holds something.
    let key = bench.hpke_of(&wire(), 2).await;
    bench.claimed(&wire(), "s", group(9), key).await;
    let before = bench.dump();
    assert_eq!(bench.give(all()).await, taken("a storage", "s"));
    assert_eq!(bench.dump(), before);
    bench.store.forget_storage(&wire(), "s").await.unwrap();
    // An identity.
    bench.identity_of(&wire(), "alice").await;
    let before = bench.dump();
    assert_eq!(bench.give(all()).await, taken("an identity", "alice"));
    let by_name = ReassignKeys {
        identities: vec!["alice".into()],
        ..all()
    };
    assert_eq!(bench.give(by_name).await, taken("an identity", "alice"));
    // What is not there, though other things are.
    for (what, order) in [
        (
            "identity",
            ReassignKeys {
                identities: vec!["bob".into()],
                storages: vec!["s".into()],
                ..all()
            },
        ),
        (
            "storage",
            ReassignKeys {
                storages: vec!["s".into(), "bob".into()],
                ..all()
            },
        ),
    ] {
        let unknown = Err(NotReassigned::Unknown {
            owner: alice(),
            what,
            name: "bob".into(),
        });
        assert_eq!(bench.give(order).await, unknown);
    }
    assert_eq!(bench.dump(), before);
    // A public key that the other one has, as of an object that was adopted twice.
    let twin = NewKey {
        owner: Owner {
            app: "third".into(),
            ..wire()
        },
        ..bench.new_hpke(None).await
    };
    let third = twin.owner.clone();
    let mut twins = made(twin.id);
    twins.public_key = public(hers.claimed);
    bench.store.begin_create(twin).await.unwrap();
    bench.store.finish_create(twins).await.unwrap();
    let to_third = ReassignKeys {
        to: third.clone(),
        ..all()
    };
    let before = bench.dump();
    assert_eq!(
        bench.give(to_third).await,
        Err(NotReassigned::Twin {
            owner: third,
            key: hers.claimed
        })
    );
    assert_eq!(bench.dump(), before);
    hers.assert_of(&bench, &alice()).await;
}

#[tokio::test]
async fn whoever_asked_has_the_last_word() {
    let bench = Bench::new();
    Household::of(&bench, &alice()).await;
    let before = bench.dump();
    let no = |identities: &[IdentityRecord]| {
        assert_eq!(identities.len(), 1);
        Err(NotReassigned::Outrun(alice()))
    };
    let refused = bench.store.reassign(all(), true, no).await.unwrap();
    assert_eq!(refused, Err(NotReassigned::Outrun(alice())));
    let planned = bench.store.plan_reassignment(all()).await.unwrap();
    assert_eq!(planned.unwrap().hpke_keys, 2);
    assert_eq!(bench.dump(), before);
}

#[tokio::test]
async fn an_identity_goes_with_its_keys_alone() {
    let bench = Bench::new();
    let hers = Household::of(&bench, &alice()).await;
    let bob = bench.identity_of(&alice(), "bob").await;
    bench
        .signed(
            GuardId {
                identity: "bob".into(),
                ..guard_id(1)
            },
            3,
            1,
        )
        .await;
    let order = ReassignKeys {
        identities: vec!["alice".into()],
        ..all()
    };
    let told = bench.give(order).await.unwrap();
    assert_eq!((told.signature_keys, told.hpke_keys), (3, 0));
    assert_eq!(told.storages, Vec::<String>::new());
    for key in [hers.retiring, hers.current, hers.next] {
        assert_eq!(bench.owner_of(key).await, wire());
    }
    for key in [bob, hers.claimed, hers.unclaimed, hers.destroyed] {
        assert_eq!(bench.owner_of(key).await, alice());
    }
    let mark = |owner, identity: &str| GuardId {
        identity: identity.into(),
        ..mark_of(owner, 1)
    };
    let known = bench
        .store
        .guard_mark(&mark(wire(), "alice"))
        .await
        .unwrap();
    assert_eq!(known.unwrap().epoch, 7);
    let bobs = bench.store.guard_mark(&mark(wire(), "bob")).await.unwrap();
    assert_eq!(bobs, None);
    let left = bench.store.identities(Some(&alice())).await.unwrap();
    assert_eq!(left.len(), 1);
    // The same without the store's memory of it.
    bench.assert_sound().await;
}

#[tokio::test]
async fn a_storage_goes_with_the_keys_that_only_it_names() {
    let bench = Bench::new();
    let [both, own, released, others] = [
        bench.hpke_of(&alice(), 1).await,
        bench.hpke_of(&alice(), 1).await,
        bench.hpke_of(&alice(), 1).await,
        bench.hpke_of(&alice(), 1).await,
    ];
    bench.claimed(&alice(), "s", group(1), own).await;
    bench.claimed(&alice(), "s", group(2), both).await;
    bench.claimed(&alice(), "t", group(2), both).await;
    bench.claimed(&alice(), "t", group(3), others).await;
    // A key that a record of it named until lately.
    let claim = bench.claimed(&alice(), "s", group(4), released).await;
    let settle = Settle {
        storage: "s".into(),
        settlements: vec![Settlement::Deleted {
            record: group(4),
            generation: Some(claim.generation),
        }],
    };
    bench.store.settle(&alice(), settle).await.unwrap();
    let unclaimed = bench.hpke_of(&alice(), 1).await;
    let alice_key = bench.identity_of(&alice(), "alice").await;
    let order = |names: &[&str]| ReassignKeys {
        storages: names.iter().map(|name| (*name).to_owned()).collect(),
        ..all()
    };
    let before = bench.dump();
    let shared = Err(NotReassigned::Shared {
        storage: "s".into(),
        key: both,
    });
    assert_eq!(bench.give(order(&["s"])).await, shared);
    assert_eq!(bench.dump(), before);
    let told = bench.give(order(&["s", "t"])).await.unwrap();
    assert_eq!((told.signature_keys, told.hpke_keys), (0, 4));
    for key in [both, own, released, others] {
        assert_eq!(bench.owner_of(key).await, wire());
    }
    assert_eq!(bench.owner_of(unclaimed).await, alice());
    assert_eq!(bench.owner_of(alice_key).await, alice());
    bench.assert_sound().await;
}

/// The owner before loses it with the next request, and the other one, who came first and
/// found nothing, finds it with the next one.
#[tokio::test]
async fn a_storage_that_is_connected_changes_hands() {
    let bench = Bench::new();
    let key = bench.hpke_of(&alice(), 1).await;
    let (old, new) = (ConnectionId(1), ConnectionId(2));
    let attach = async |owner: Owner, connection| {
        let attached = bench.store.attach(&owner, "s".into(), false, connection);
        attached.await.unwrap();
    };
    attach(alice(), old).await;
    let claim = bench.claimed(&alice(), "s", group(1), key).await;
    attach(wire(), new).await;
    bench.give(all()).await.unwrap();
    let attached = |storages: Vec<StorageInfo>| {
        let all = storages.into_iter();
        all.map(|it| (it.owner, it.attached, it.keys))
            .collect::<Vec<_>>()
    };
    let now = attached(bench.store.storages().await.unwrap());
    assert_eq!(now, [(wire(), true, 1)]);
    // What the connection before said last is of no effect, and what it left open is asked
    // for at the other one.
    let settle = Settle {
        storage: "s".into(),
        settlements: vec![Settlement::Deleted {
            record: group(1),
            generation: Some(claim.generation),
        }],
    };
    bench.store.settle(&alice(), settle).await.unwrap();
    let lost = bench.claimed(&alice(), "s", group(1), key).await.lost;
    assert_eq!(lost, [key]);
    let other = bench.hpke_of(&wire(), 2).await;
    let housekeeping = bench
        .claimed(&wire(), "s", group(2), other)
        .await
        .housekeeping;
    assert_eq!(housekeeping.looks.len(), 1);
    assert_eq!(housekeeping.looks[0].key, key);
    // The end of the connection before is not the end of the storage.
    bench.store.connection_closed(old).await.unwrap();
    let now = attached(bench.store.storages().await.unwrap());
    assert_eq!(now, [(alice(), false, 0), (wire(), true, 2)]);
    bench.store.connection_closed(new).await.unwrap();
    let now = attached(bench.store.storages().await.unwrap());
    assert_eq!(now, [(alice(), false, 0), (wire(), false, 2)]);
    assert_eq!(bench.state(key).await, KeyState::Active);
}

#[tokio::test]
async fn what_is_being_made_stays_and_what_is_being_destroyed_goes() {
    let bench = Bench::new();
    let current = bench.identity_of(&alice(), "alice").await;
    let dying = bench.hpke_of(&alice(), 1).await;
    bench
        .store
        .begin_destroy(dying, Cause::Ordered)
        .await
        .unwrap();
    let hpke = bench.begin(Some(ConnectionId(1))).await;
    let (bob, bobs) = bench.identity_begun(&alice(), "bob").await;
    let rotated = bench.key_begun(&alice(), "alice").await;
    let told = bench.give(all()).await.unwrap();
    assert_eq!((told.signature_keys, told.hpke_keys), (1, 1));
    // Finished where it was begun, if there is a place for it.
    let finished = bench.store.finish_create(made(hpke)).await.unwrap();
    assert_eq!(finished.owner, alice());
    let created = bench.store.create_identity(bob, bobs, None).await.unwrap();
    assert_eq!(created.owner, alice());
    let id = rotated.id;
    let rotation = Rotation {
        owner: alice(),
        name: "alice".into(),
        from: current,
        to: rotated,
        grace: Duration::ZERO,
    };
    let refused = bench.store.rotate_identity(rotation).await;
    assert_eq!(refused, Err(StoreError::NotFound("identity")));
    bench.store.abandon_create(id).await.unwrap();
    bench.store.finish_destroy(dying).await.unwrap();
    assert_eq!(bench.owner_of(dying).await, wire());
    let pending = bench.store.pending().await.unwrap();
    assert_eq!((pending.creating, pending.destroying), (vec![], vec![]));
}

#[tokio::test]
async fn the_new_owner_has_no_more_than_it_may() {
    let bench = Bench::new();
    for n in 0..identities::MAX_IDENTITIES {
        bench.identity_of(&wire(), &n.to_string()).await;
    }
    bench.identity_of(&alice(), "alice").await;
    let before = bench.dump();
    let full = NotReassigned::Full {
        owner: wire(),
        what: "identities",
    };
    assert_eq!(bench.give(all()).await, Err(full));
    assert_eq!(bench.dump(), before);
}

/// Records of before are of the owner before: nothing that they name has been forgotten.
#[tokio::test]
async fn the_guard_remembers_for_both() {
    let bench = Bench::new();
    bench.identity_of(&alice(), "alice").await;
    for (n, epoch) in [(1, 7), (2, 7), (3, 7), (4, 7)] {
        bench.signed(guard_id(n), epoch, n).await;
    }
    // Of another identity of this name that the new owner had once.
    for (n, epoch) in [(1, 6), (2, 7), (3, 8)] {
        bench.signed(mark_of(wire(), n), epoch, 9).await;
    }
    bench.give(all()).await.unwrap();
    let mut known = Vec::new();
    for n in 1..=4 {
        let before = bench.store.guard_mark(&guard_id(n)).await.unwrap();
        assert_eq!(before.unwrap().epoch, 7);
        let mark = bench.store.guard_mark(&mark_of(wire(), n)).await.unwrap();
        let mark = mark.unwrap();
        let commits: Vec<u8> = mark.commits.iter().map(|commit| commit[0]).collect();
        known.push((mark.epoch, commits));
    }
    let expected = [(7, vec![1]), (7, vec![9, 2]), (8, vec![9]), (7, vec![4])];
    assert_eq!(known, expected);
    // Nothing more is signed for an identity that is another's.
    let decide = |_: Option<&GuardMark>| Ok::<_, Infallible>(GuardMark::default());
    let refused = bench.store.reserve_guard(guard_id(5), decide).await;
    assert_eq!(refused, Err(StoreError::NotFound("identity")));
    let reserved = bench.store.reserve_guard(mark_of(wire(), 5), decide).await;
    assert!(reserved.is_ok());
}

#[tokio::test]
async fn what_is_taken_over_is_so_once() {
    let mut bench = Bench::new();
    bench.hpke_of(&alice(), 1).await;
    let take = |bench: &Bench| {
        let store = bench.store.clone();
        async move { store.reassign(all(), true, |_| Ok(())).await.unwrap() }
    };
    assert!(!bench.store.has_taken_over(&wire()).await.unwrap());
    assert_eq!(take(&bench).await.unwrap().hpke_keys, 1);
    let later = bench.hpke_of(&alice(), 1).await;
    for _ in 0..2 {
        assert!(bench.store.has_taken_over(&wire()).await.unwrap());
        assert!(!bench.store.has_taken_over(&carol()).await.unwrap());
        assert_eq!(take(&bench).await, Err(NotReassigned::Nothing(alice())));
        assert_eq!(bench.owner_of(later).await, alice());
        bench.reopen();
    }
    bench.store.mark_taken_over(carol()).await.unwrap();
    assert!(bench.store.has_taken_over(&carol()).await.unwrap());
    bench.assert_sound().await;
}
