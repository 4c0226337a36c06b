//! What administrators do to identities and devices, on the one path, with
//! devices that a test can lock, take away, and put keys on beforehand.

mod approve;
mod attest;
mod facts;
mod life;
mod reassign;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mlskeyd_policies::{Rules, Settings as PolicySettings};
use mlskeyd_protocol::limits::{MAX_GRACE, MAX_PIN, MAX_RETIRING};
use mlskeyd_protocol::server::Reporter;
use mlskeyd_protocol::v1::{
    AcceptDevice, AdoptIdentity, Algorithm, Bytes, CallOptions, Credential, DeviceState,
    IdentityInfo, Interaction, KeyQuery, KeyState, OwnedKey, Placement, Priority, RotateIdentity,
    SecretBytes, SignatureScheme, Tier, Unlock,
};
use secrecy::SecretBox;

use super::*;
use crate::audit;
use crate::devices::queue::{DeviceThreads, Limits};
use crate::devices::software::SoftwareDevice;
use crate::devices::{
    self, Accept, Adopt, Adoption, Destroy, Device, DeviceError, DeviceInfo, Generate,
    GenerationId, KeyBlob, Newcomer, Start, StoredKey, Support, Unlocking, Way,
};
use crate::policy_files::{self, PolicyDirs};
use crate::store::{self, Recredential, SystemClock, TimeSource};
use crate::store_key::StoreKey;

const PIN: &[u8] = b"a PIN of a person";

/// So many keys the registry has in memory.
const CACHED: usize = 32;

const ED25519: Algorithm = Algorithm::Signature(SignatureScheme::Ed25519);

/// A token: hardware with two keys of somebody else's on it, and a PIN.
struct Token {
    info: Arc<DeviceInfo>,
    seen: Arc<Mutex<Seen>>,
}

/// What a token was asked for.
#[derive(Default)]
struct Seen {
    pins: Vec<Vec<u8>>,
    destroyed: Vec<GenerationId>,
    /// Those of them of whose keys nobody was told.
    undone: Vec<GenerationId>,
    /// Does it fail to destroy anything?
    keeps: bool,
    /// How often it did.
    kept: u32,
    /// Was it pulled out?
    away: bool,
    /// What comes of making a key: `None`, it makes none.
    makes: Option<Makes>,
    made: Vec<GenerationId>,
    /// Which one was accepted; the one that is there is `new`.
    own: Option<String>,
    /// Are its measurements approved?
    approved: bool,
}

/// A token makes a key, and its answer is lost.
#[derive(Clone, Copy)]
enum Makes {
    /// It is there afterwards.
    ThenIsThere,
    /// It is pulled out in the middle.
    ThenIsAway,
}

impl Token {
    fn new(name: &str, state: DeviceState, seen: &Arc<Mutex<Seen>>) -> Self {
        Self {
            info: Arc::new(DeviceInfo {
                generations: None,
                name: name.to_owned(),
                kind: "stub",
                state,
                reason: format!("it is {state}"),
                facts: Vec::new(),
                support: vec![Support {
                    algorithm: ED25519,
                    ways: vec![Way {
                        tier: Tier::Hardware,
                        how: "in a stub".to_owned(),
                    }],
                    why_no_other: String::new(),
                }],
                unlocked: BTreeSet::new(),
            }),
            seen: Arc::clone(seen),
        }
    }
}

impl Token {
    fn keep(&self) -> Result<(), DeviceError> {
        let mut seen = self.seen.lock().unwrap();
        if !seen.keeps {
            return Ok(());
        }
        seen.kept += 1;
        Err(DeviceError::Lost {
            reason: "it does not answer".to_owned(),
        })
    }
}

impl Device for Token {
    fn info(&self) -> Arc<DeviceInfo> {
        if !self.seen.lock().unwrap().away {
            return Arc::clone(&self.info);
        }
        Arc::new(DeviceInfo {
            state: DeviceState::Absent,
            ..DeviceInfo::clone(&self.info)
        })
    }

    fn generator(&mut self) -> Option<&mut dyn Generate> {
        let makes = self.seen.lock().unwrap().makes.is_some();
        makes.then_some(self)
    }

    fn destroyer(&mut self) -> Option<&mut dyn Destroy> {
        Some(self)
    }

    fn unlocker(&mut self) -> Option<&mut dyn devices::Unlock> {
        Some(self)
    }

    fn adopter(&mut self) -> Option<&mut dyn Adopt> {
        Some(self)
    }

    fn approver(&mut self) -> Option<&mut dyn devices::Approve> {
        Some(self)
    }

    fn attester(&mut self) -> Option<&mut dyn devices::Attest> {
        Some(self)
    }

    fn accepter(&mut self) -> Option<&mut dyn Accept> {
        Some(self)
    }
}

impl Accept for Token {
    fn look(&mut self) -> Result<Newcomer, DeviceError> {
        let own = self.seen.lock().unwrap().own.clone();
        Ok(Newcomer {
            noun: "token",
            fate: "what is only there is missing",
            is_own: own.as_deref() == Some("new"),
            serial: "new".to_owned(),
            own: Some(own.unwrap_or_else(|| "old".to_owned())),
        })
    }

    fn accept(&mut self, serial: &str) -> Result<(), DeviceError> {
        let mut seen = self.seen.lock().unwrap();
        if seen.away {
            let reason = "it was pulled out meanwhile".to_owned();
            return Err(DeviceError::Absent { reason });
        }
        seen.own = Some(serial.to_owned());
        Ok(())
    }
}

impl Generate for Token {
    fn create_generation(&mut self, _: GenerationId) -> Result<(), DeviceError> {
        Ok(())
    }

    fn generate(&mut self, request: devices::NewKey) -> Result<StoredKey, DeviceError> {
        let mut seen = self.seen.lock().unwrap();
        seen.made.push(request.generation);
        seen.away = matches!(seen.makes, Some(Makes::ThenIsAway));
        Err(DeviceError::Lost {
            reason: "it was pulled out".to_owned(),
        })
    }
}

impl Destroy for Token {
    fn destroy_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        self.keep()?;
        self.seen.lock().unwrap().destroyed.push(id);
        Ok(())
    }

    fn undo_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        self.destroy_generation(id)?;
        self.seen.lock().unwrap().undone.push(id);
        Ok(())
    }

    fn destroy_key(&mut self, _: &StoredKey) -> Result<(), DeviceError> {
        self.keep()
    }
}

impl devices::Unlock for Token {
    fn unlock(&mut self, pin: &SecretBytes, last_try: bool) -> Result<Unlocking, DeviceError> {
        if self.info.reason.is_empty() {
            // By what is below.
            return Ok(Unlocking::WasUnlocked);
        }
        self.seen.lock().unwrap().pins.push(pin.expose().to_vec());
        if pin.expose() != PIN || !last_try {
            let reason = "the PIN is wrong, or this is the last try".to_owned();
            return Err(DeviceError::Locked { reason });
        }
        self.info = Arc::new(DeviceInfo {
            state: DeviceState::Ready,
            reason: String::new(),
            ..DeviceInfo::clone(&self.info)
        });
        Ok(Unlocking::ByThePin)
    }

    fn lock(&mut self) -> Result<(), DeviceError> {
        self.info = Arc::new(DeviceInfo {
            state: DeviceState::Locked,
            reason: "somebody locked it".to_owned(),
            ..DeviceInfo::clone(&self.info)
        });
        Ok(())
    }
}

impl Adopt for Token {
    fn adopt(&mut self, request: &Adoption) -> Result<StoredKey, DeviceError> {
        if !["first", "second"].contains(&request.label.as_str()) {
            return Err(DeviceError::NotAdopted {
                label: request.label.clone(),
                reason: "there is no such key".to_owned(),
            });
        }
        Ok(StoredKey {
            id: request.id,
            algorithm: Algorithm::Signature(request.scheme),
            tier: Tier::Hardware,
            generation: request.generation,
            pin: false,
            public: format!("the public half of {}", request.label).into_bytes(),
            blob: KeyBlob::new(request.label.clone().into_bytes()),
        })
    }
}

/// The system's clocks, set forward.
#[derive(Default)]
struct TestClock(AtomicU64);

impl TimeSource for TestClock {
    fn boottime(&self) -> Duration {
        SystemClock.boottime() + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }

    fn wall(&self) -> u64 {
        SystemClock.wall()
    }
}

/// Custody over the devices `software` (the default), `token`, `locked` and
/// `gone`.
struct Bench {
    custody: Arc<Custody>,
    clock: Arc<TestClock>,
    seen: Arc<Mutex<Seen>>,
    _threads: Vec<DeviceThreads<Owner>>,
    dir: tempfile::TempDir,
}

impl Bench {
    /// As if a certificate had been issued, and imported.
    async fn certify(&self, identity: &IdentityInfo) {
        let update = Recredential {
            owner: alice(),
            name: identity.name.clone(),
            from: identity.credential.clone(),
            to: Credential::X509(vec![Bytes::from(b"a certificate".as_slice())]),
            key: identity.key,
            grace: Duration::ZERO,
        };
        self.custody.registry.recredential(update).await.unwrap();
    }

    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let clock = Arc::new(TestClock::default());
        let registry = Registry::open_with_clock(
            &state,
            &[1; 32],
            store::Settings {
                cached: CACHED,
                ..store::Settings::default()
            },
            Arc::clone(&clock) as _,
        );
        let (audit, _) = AuditLog::open(&state).unwrap();
        let seen = Arc::default();
        let key = StoreKey::new(SecretBox::new(Box::new([2; 32])));
        let software = state.join("software");
        let software =
            SoftwareDevice::open("software", &software, &key, Start::CreateIfAbsent).unwrap();
        let devices: [Box<dyn Device>; 4] = [
            Box::new(software),
            Box::new(Token::new("token", DeviceState::Ready, &seen)),
            Box::new(Token::new("locked", DeviceState::Locked, &seen)),
            Box::new(Token::new("gone", DeviceState::Absent, &seen)),
        ];
        let limits = Limits {
            per_owner: 8,
            total: 8,
        };
        let (mut threads, mut handles) = (Vec::new(), BTreeMap::new());
        for device in devices {
            let name = device.info().name.clone();
            let thread = DeviceThreads::spawn(device, limits).unwrap();
            let configured = Configured {
                handle: thread.handle(),
                hpke_tier: None,
            };
            handles.insert(name, configured);
            threads.push(thread);
        }
        let rules = Rules::new(PolicySettings {
            allow_leave: false,
            consent: Vec::new(),
            daemon_uid: 77,
        });
        let dirs = PolicyDirs {
            vendor: dir.path().join("vendor"),
            local: dir.path().join("local"),
            candidate: None,
        };
        let frozen = Frozen::open(
            dir.path().join(FROZEN_FILE),
            key.subkey(FROZEN_LABEL).unwrap(),
        );
        let key = key.subkey(policy_files::LABEL).unwrap();
        let policies = PolicyStore::new(dirs, None, dir.path().join("policies.last"), key);
        let policy = Policy::new(rules, policies.at_start().unwrap().set);
        let settings = Settings {
            private_proposals: BTreeSet::new(),
            users: BTreeMap::new(),
            issuers: None,
            credentials: None,
            consent_device: None,
            generation_age: 86_400,
            takes_over: Some("wire".to_owned()),
            rotation_grace: 1_000,
            bus: None,
        };
        let devices = Devices::new(handles, "software".to_owned());
        Self {
            custody: Custody::new(
                registry.unwrap(),
                devices,
                policy,
                policies,
                frozen,
                audit,
                settings,
            ),
            clock,
            seen,
            _threads: threads,
            dir,
        }
    }

    /// As root.
    async fn serve<R: Request>(&self, request: R) -> Result<R::Reply, Failure> {
        self.serve_for(0, request).await
    }

    async fn serve_for<R: Request>(&self, uid: u32, request: R) -> Result<R::Reply, Failure> {
        self.serve_to(Caller::new(uid, None), request).await
    }

    async fn serve_to<R: Request>(&self, caller: Caller, request: R) -> Result<R::Reply, Failure> {
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
                owner: caller.owner.clone(),
                action: R::ACTION,
            },
        };
        let session = self.custody.connect(caller);
        session.serve(call, request).await
    }

    async fn keys(&self) -> Vec<OwnedKey> {
        let query = KeyQuery {
            after: None,
            destroyed: true,
        };
        self.serve(AllKeys(query)).await.unwrap()
    }

    async fn key(&self, id: KeyId) -> OwnedKey {
        let mut keys = self.keys().await;
        keys.retain(|key| key.key.id == id);
        keys.pop().unwrap()
    }

    /// Nothing is left half done, but on a device that is not there.
    async fn assert_finished(&self) {
        let mut pending = self.custody.registry.pending().await.unwrap();
        let stuck = &mut pending.generations_destroying;
        stuck.retain(|generation| generation.device != "gone");
        assert_eq!(pending, store::Pending::default());
    }

    fn records(&self) -> Vec<audit::Record> {
        let log = self.dir.path().join("state").join(audit::FILE_NAME);
        let entries = audit::Entries::open(&log).unwrap();
        entries.map(|entry| entry.unwrap().record).collect()
    }

    /// The last record of an action.
    fn record(&self, action: &str) -> audit::Record {
        let mut records = self.records();
        records.retain(|record| record.action == action);
        records.pop().unwrap_or_else(|| panic!("no {action}"))
    }
}

fn alice() -> Owner {
    Owner {
        uid: 1000,
        app: "chat".to_owned(),
    }
}

fn adoption(name: &str, label: &str) -> AdoptIdentity {
    AdoptIdentity {
        owner: alice(),
        name: name.to_owned(),
        credential: Credential::Basic(Bytes::from(name.as_bytes())),
        scheme: SignatureScheme::Ed25519,
        device: "token".to_owned(),
        label: label.to_owned(),
    }
}

fn rotation(device: Option<&str>, tier: Option<Tier>) -> RotateIdentity {
    RotateIdentity {
        owner: alice(),
        name: "alice".to_owned(),
        placement: Placement {
            device: device.map(str::to_owned),
            tier,
        },
        grace: None,
        pin: None,
        drop_pin: false,
    }
}

fn to_software() -> RotateIdentity {
    rotation(Some("software"), Some(Tier::Software))
}

fn code<T: std::fmt::Debug>(result: Result<T, Failure>) -> FailureCode {
    result.unwrap_err().code
}

#[tokio::test]
async fn an_adopted_key_signs_for_its_identity_and_its_device_keeps_it() {
    let bench = Bench::new();
    let adopted = bench.serve(adoption("alice", "first")).await.unwrap();
    assert_eq!(adopted.tier, Tier::Hardware);
    assert_eq!(adopted.public_key.0, b"the public half of first");
    let listed = bench.key(adopted.key).await;
    assert!(listed.key.adopted && listed.owner == alice());
    assert_eq!(bench.record("AdoptIdentity").key, Some(adopted.key));

    let now = bench
        .serve(RotateIdentity {
            grace: Some(0),
            ..to_software()
        })
        .await
        .unwrap();
    assert!(!bench.key(now.key).await.key.adopted);
    assert_eq!(bench.serve(Sweep).await.unwrap().destroyed, 1);
    let gone = bench.key(adopted.key).await.key;
    assert_eq!(gone.state, KeyState::Destroyed);
    let record = bench.record("Destroy");
    assert_eq!(record.key, Some(adopted.key));
    let AuditOutcome::Noted { note } = record.outcome else {
        panic!("no note")
    };
    assert!(note.contains("stays on its device"), "{note}");
    // A name that the device knows nothing under.
    assert_eq!(bench.seen.lock().unwrap().destroyed.len(), 1);
    assert_eq!(bench.seen.lock().unwrap().undone, []);
    bench.assert_finished().await;

    // What was forgotten can be adopted again.
    let again = bench.serve(adoption("carol", "first")).await.unwrap();
    assert_eq!(bench.key(again.key).await.key.state, KeyState::Active);
}

#[tokio::test]
async fn a_key_is_adopted_for_one_identity_of_one_owner() {
    let bench = Bench::new();
    bench.serve(adoption("alice", "first")).await.unwrap();
    let bob = Owner {
        uid: 1001,
        ..alice()
    };
    let refusals = [
        (adoption("alice", "second"), FailureCode::Conflict),
        (adoption("carol", "first"), FailureCode::Conflict),
        (adoption("carol", "third"), FailureCode::BadRequest),
        (
            AdoptIdentity {
                owner: bob.clone(),
                ..adoption("bob", "first")
            },
            FailureCode::Conflict,
        ),
        (
            AdoptIdentity {
                device: "software".to_owned(),
                ..adoption("carol", "second")
            },
            FailureCode::Unsupported,
        ),
        (
            AdoptIdentity {
                device: "gone".to_owned(),
                ..adoption("carol", "second")
            },
            FailureCode::DeviceAbsent,
        ),
    ];
    for (request, expected) in refusals {
        let refused = bench.serve(request.clone()).await;
        assert_eq!(code(refused), expected, "{request:?}");
    }
    bench.assert_finished().await;
    assert_eq!(bench.keys().await.len(), 1);
    // Before the device is asked.
    for (request, text) in [
        (adoption("alice", "second"), "has an identity"),
        (adoption("carol", "\n"), "a key's label has to be"),
    ] {
        let refused = bench.serve(request).await.unwrap_err();
        assert!(refused.message.contains(text), "{refused}");
    }
    let request = AdoptIdentity {
        owner: bob,
        ..adoption("alice", "second")
    };
    bench.serve(request).await.unwrap();
}

#[tokio::test]
async fn an_identity_whose_device_is_gone_gets_a_key_on_another_one() {
    let bench = Bench::new();
    let old = bench.serve(adoption("alice", "first")).await.unwrap();
    bench.seen.lock().unwrap().away = true;
    let token = bench.custody.devices.run_own("token", |_| Ok(())).await;
    token.unwrap();
    let stays = bench.serve(rotation(None, None)).await.unwrap_err();
    assert_eq!(stays.code, FailureCode::DeviceAbsent);
    assert!(stays.advice.contains("--device"), "{stays}");

    let lower = bench.serve(rotation(Some("software"), None)).await;
    let lower = lower.unwrap_err();
    assert_eq!(lower.code, FailureCode::Unsupported);
    assert!(lower.advice.contains("--tier software"), "{lower}");
    let new = bench.serve(to_software()).await.unwrap();
    assert_ne!(new.key, old.key);
    assert_eq!(new.credential, old.credential);
    assert_eq!(new.retiring.len(), 1);
    assert_eq!(new.retiring[0].id, old.key);
}

#[tokio::test]
async fn so_many_keys_retire_at_a_time_and_no_more() {
    let bench = Bench::new();
    bench.serve(adoption("alice", "first")).await.unwrap();
    let mut info: Option<IdentityInfo> = None;
    for n in 1..=MAX_RETIRING {
        let rotated = bench.serve(to_software()).await.unwrap();
        assert_eq!(rotated.retiring.len(), n);
        info = Some(rotated);
    }
    let before = bench.generations();
    let full = bench.serve(to_software()).await.unwrap_err();
    assert_eq!(full.code, FailureCode::LimitReached);
    assert!(full.advice.contains("mlskeyctl identities"), "{full}");
    assert_eq!(bench.generations(), before, "no key was begun");
    bench.assert_finished().await;

    bench.clock.0.fetch_add(1_001, Ordering::SeqCst);
    let swept = bench.serve(Sweep).await.unwrap();
    assert_eq!(swept.destroyed, u64::try_from(MAX_RETIRING).unwrap());
    let rotated = bench.serve(to_software()).await.unwrap();
    assert_eq!(rotated.retiring.len(), 1);
    assert_eq!(rotated.retiring[0].id, info.unwrap().key);
    // Old and new are on record.
    let record = bench.record("KeyRotated");
    assert_eq!(record.key, Some(rotated.retiring[0].id));
    let AuditOutcome::Noted { note } = record.outcome else {
        panic!("{record:?}")
    };
    for key in [rotated.retiring[0].id, rotated.key] {
        assert!(note.contains(&key.to_string()), "{note}");
    }
    assert_eq!(bench.record("RotateIdentity").key, Some(rotated.key));
}

#[tokio::test]
async fn a_rotation_that_cannot_be_leaves_all_as_it_was() {
    let bench = Bench::new();
    let before = bench.serve(adoption("alice", "first")).await.unwrap();
    let certified = bench.serve(adoption("certified", "second")).await.unwrap();
    bench.certify(&certified).await;
    for (request, expected) in [
        (
            RotateIdentity {
                name: "certified".to_owned(),
                ..to_software()
            },
            FailureCode::BadRequest,
        ),
        (
            RotateIdentity {
                name: "nobody".to_owned(),
                ..to_software()
            },
            FailureCode::NotFound,
        ),
        (
            RotateIdentity {
                grace: Some(MAX_GRACE + 1),
                ..to_software()
            },
            FailureCode::BadRequest,
        ),
        (rotation(Some("gone"), None), FailureCode::DeviceAbsent),
        (
            rotation(Some("locked"), None),
            FailureCode::InteractionRequired,
        ),
        // The stub makes no keys.
        (rotation(None, None), FailureCode::Unsupported),
    ] {
        let refused = bench.serve(request.clone()).await;
        assert_eq!(code(refused), expected, "{request:?}");
    }
    bench.assert_finished().await;
    let all = bench.serve(AllIdentities).await.unwrap();
    assert_eq!(all[0].identity, before);
}

#[tokio::test]
async fn two_rotations_at_once_make_one_key_after_the_other_or_one() {
    let bench = Bench::new();
    bench.serve(adoption("alice", "first")).await.unwrap();
    let (one, other) = tokio::join!(bench.serve(to_software()), bench.serve(to_software()));
    let served = [&one, &other].iter().filter(|r| r.is_ok()).count();
    for refused in [one, other].into_iter().filter_map(Result::err) {
        assert_eq!(refused.code, FailureCode::Conflict);
    }
    bench.assert_finished().await;
    let all = bench.serve(AllIdentities).await.unwrap();
    assert_eq!(all[0].identity.retiring.len(), served);
}

#[tokio::test]
async fn who_unlocks_a_device_is_on_record_and_the_pin_is_not() {
    let bench = Bench::new();
    let unlock = |pin: &[u8], last_try| {
        bench.serve(Unlock {
            device: "locked".to_owned(),
            pin: SecretBytes::new(pin.to_vec()),
            last_try,
        })
    };
    // Out of bounds: the device sees nothing of it.
    for wrong in [vec![], vec![b'7'; MAX_PIN + 1]] {
        assert_eq!(code(unlock(&wrong, false).await), FailureCode::BadRequest);
    }
    assert_eq!(bench.seen.lock().unwrap().pins.len(), 0);
    assert_eq!(code(unlock(PIN, false).await), FailureCode::DeviceLocked);
    let failed = bench.record("UnlockDevice");
    assert!(failed.is_refusal() && failed.device.as_deref() == Some("locked"));
    // The same at another device is a record of its own.
    let elsewhere = Unlock {
        device: "token".to_owned(),
        pin: SecretBytes::new(b"another".to_vec()),
        last_try: true,
    };
    assert_eq!(
        code(bench.serve(elsewhere).await),
        FailureCode::DeviceLocked
    );
    let failed = bench.record("UnlockDevice");
    assert_eq!(failed.device.as_deref(), Some("token"));
    let unlocked = unlock(PIN, true).await.unwrap();
    let info = unlocked.device;
    assert_eq!((info.state, info.detail), (DeviceState::Ready, None));
    assert!(unlocked.pin_tried);
    let served = bench.record("UnlockDevice");
    assert_eq!(served.device.as_deref(), Some("locked"));
    assert_eq!(served.caller.unwrap().owner.uid, 0);
    // Who comes too late is told that his PIN may be wrong as well.
    let again = unlock(b"another", true).await.unwrap();
    assert_eq!(again.device.state, DeviceState::Ready);
    assert!(!again.pin_tried);
    // Each PIN was tried once.
    assert_eq!(bench.seen.lock().unwrap().pins, [PIN, b"another", PIN]);

    let log = std::fs::read(bench.dir.path().join("state").join(audit::FILE_NAME)).unwrap();
    assert!(!log.windows(PIN.len()).any(|window| window == PIN));
}

#[tokio::test]
async fn another_token_is_on_record_before_it_is_the_devices_own() {
    let bench = Bench::new();
    let accept = |device: &str| {
        bench.serve(AcceptDevice {
            device: device.to_owned(),
        })
    };
    let noted = |record: &audit::Record| match &record.outcome {
        AuditOutcome::Noted { note } => note.to_string(),
        other => panic!("{other:?}"),
    };
    bench.seen.lock().unwrap().away = true;
    assert_eq!(code(accept("token").await), FailureCode::DeviceAbsent);
    assert_eq!(bench.seen.lock().unwrap().own, None);
    let note = noted(&bench.record("ReplaceToken"));
    assert!(
        note.contains("\"new\"") && note.contains("\"old\""),
        "{note}"
    );
    assert!(bench.record("AcceptDevice").is_refusal());

    bench.seen.lock().unwrap().away = false;
    let accepted = accept("token").await.unwrap();
    assert_eq!(accepted.device.name, "token");
    let serials = (accepted.serial.as_str(), accepted.before.as_deref());
    assert_eq!(serials, ("new", Some("old")));
    let records = bench.records();
    let [.., before, served] = records.as_slice() else {
        panic!("{records:?}")
    };
    assert_eq!(
        (&*before.action, &*served.action),
        ("ReplaceToken", "AcceptDevice")
    );
    assert!(!served.is_refusal());
    for record in [before, served] {
        assert_eq!(record.device.as_deref(), Some("token"));
        assert_eq!(record.caller.as_ref().unwrap().owner.uid, 0);
    }

    // Nothing is to be accepted; or cannot be.
    for (device, expected) in [
        ("token", FailureCode::Conflict),
        ("software", FailureCode::Unsupported),
        ("nowhere", FailureCode::DeviceAbsent),
        ("\n", FailureCode::BadRequest),
    ] {
        assert_eq!(code(accept(device).await), expected, "{device}");
    }
    let mut records = bench.records();
    records.retain(|record| record.action == "ReplaceToken");
    assert_eq!(records.len(), 2);
}

#[tokio::test]
async fn each_of_these_is_an_administrators() {
    let bench = Bench::new();
    bench.serve(adoption("alice", "first")).await.unwrap();
    let unlock = Unlock {
        device: "locked".to_owned(),
        pin: SecretBytes::new(PIN.to_vec()),
        last_try: true,
    };
    let alice = alice().uid;
    let accept = AcceptDevice {
        device: "token".to_owned(),
    };
    for refused in [
        code(bench.serve_for(alice, adoption("mallory", "second")).await),
        code(bench.serve_for(alice, to_software()).await),
        code(bench.serve_for(alice, unlock).await),
        code(bench.serve_for(alice, accept).await),
    ] {
        assert_eq!(refused, FailureCode::Denied);
    }
    assert_eq!(bench.seen.lock().unwrap().pins.len(), 0);
    assert_eq!(bench.seen.lock().unwrap().own, None);
    assert_eq!(bench.keys().await.len(), 1);
}

/// A daemon of one user's own runs as that user; the user's sandboxes are not it.
#[tokio::test]
async fn nobody_administers_from_a_sandbox() {
    let bench = Bench::new();
    let mut confined = Caller::new(77, None);
    confined.is_confined = true;
    let accept = || AcceptDevice {
        device: "token".to_owned(),
    };
    let refused = bench.serve_to(confined, accept()).await;
    assert_eq!(code(refused), FailureCode::Denied);
    assert_eq!(bench.seen.lock().unwrap().own, None);
    bench
        .serve_to(Caller::new(77, None), accept())
        .await
        .unwrap();
}
