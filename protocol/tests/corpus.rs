//! Wire version 1 is frozen: today's encoding of one sample of everything is
//! the recorded one, and the recorded bytes decode.
//!
//! A test that fails here means that apps and daemons of different versions no
//! longer understand each other. What a new message adds is recorded by
//! `cargo test -p mlskeyd-protocol --test corpus -- --ignored record`, which
//! never overwrites.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use mlskeyd_protocol::frame::{PREFIX, decode, encode};
use mlskeyd_protocol::handshake::{Echo, Hello, Service, Welcome};
use mlskeyd_protocol::limits::MAX_FRAME;
use mlskeyd_protocol::server::LongRequests;
use mlskeyd_protocol::v1::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/v1")
}

/// What is done with each sample.
trait Each {
    fn sample<T: Serialize + DeserializeOwned + Debug>(&mut self, name: &str, sample: &T);
}

struct Check(usize);

impl Each for Check {
    fn sample<T: Serialize + DeserializeOwned + Debug>(&mut self, name: &str, sample: &T) {
        let recorded = std::fs::read(corpus().join(format!("{name}.bin"))).expect(name);
        assert_eq!(
            *encode(sample, MAX_FRAME).unwrap(),
            recorded,
            "{name} changed"
        );
        let back: T = decode(&recorded[PREFIX..]).expect(name);
        assert_eq!(format!("{back:?}"), format!("{sample:?}"), "{name}");
        // No shorter frame is taken for it, nor a longer one.
        for cut in PREFIX..recorded.len() {
            assert!(
                decode::<T>(&recorded[PREFIX..cut]).is_err(),
                "{name} cut at {cut}"
            );
        }
        let longer = [&recorded[PREFIX..], &[0]].concat();
        assert!(decode::<T>(&longer).is_err(), "{name} with one byte more");
        self.0 += 1;
    }
}

struct Recorder;

impl Each for Recorder {
    fn sample<T: Serialize + DeserializeOwned + Debug>(&mut self, name: &str, sample: &T) {
        let path = corpus().join(format!("{name}.bin"));
        if !path.exists() {
            std::fs::write(path, encode(sample, MAX_FRAME).unwrap()).unwrap();
        }
    }
}

#[test]
fn the_recorded_bytes_are_todays() {
    let mut check = Check(0);
    each_sample(&mut check);
    let files = std::fs::read_dir(corpus()).unwrap().count();
    assert_eq!(check.0, files, "a recorded message is gone");
}

#[test]
#[ignore = "adds what is new to the corpus"]
fn record() {
    each_sample(&mut Recorder);
}

#[test]
fn only_content_may_be_long() {
    let variant = |request: &CustodyRequest| {
        let frame = encode(request, MAX_FRAME).unwrap();
        postcard::take_from_bytes::<u32>(&frame[PREFIX..])
            .unwrap()
            .0
    };
    for request in custody_requests() {
        let long = matches!(
            request,
            CustodyRequest::Sign { .. } | CustodyRequest::Open { .. }
        );
        assert_eq!(
            CustodyRequest::may_be_long(variant(&request)),
            long,
            "{request:?}"
        );
    }
}

fn options() -> CallOptions {
    CallOptions {
        interaction: Interaction::UpTo(30_000),
        priority: Priority::Background,
        token: 300,
    }
}

fn key(byte: u8) -> KeyId {
    KeyId::from_bytes([byte; 16])
}

fn bytes(text: &str) -> Bytes {
    Bytes(text.as_bytes().to_vec())
}

fn placement() -> Placement {
    Placement {
        device: Some("tpm".into()),
        tier: Some(Tier::Sealed),
    }
}

fn identity() -> IdentityInfo {
    IdentityInfo {
        name: "alice@example.com".into(),
        credential: Credential::X509(vec![bytes("member"), bytes("ca")]),
        key: key(1),
        scheme: SignatureScheme::EcdsaP256Sha256,
        public_key: bytes("public"),
        device: "software".into(),
        tier: Tier::Hardware,
        pin: KeyPin::Unlocked,
        retiring: vec![key_info()],
    }
}

fn key_info() -> KeyInfo {
    KeyInfo {
        id: key(2),
        algorithm: Algorithm::Hpke(Kem::DhKemX25519),
        purpose: Purpose::Leaf,
        state: KeyState::Idle,
        public_key: bytes("public"),
        device: "software".into(),
        tier: Tier::Software,
        created: 1_800_000_000,
        ends: Some(1_900_000_000),
        adopted: true,
        pin: KeyPin::Locked,
    }
}

fn records() -> Vec<Record> {
    vec![
        Record::GroupState {
            group: bytes("group"),
        },
        Record::Epoch {
            group: bytes("group"),
            epoch: 7,
            leaf_index: 3,
        },
        Record::Update {
            public_key: bytes("public"),
        },
        Record::KeyPackage {
            reference: bytes("reference"),
        },
    ]
}

fn looks() -> Vec<Look> {
    vec![Look {
        key: key(3),
        records: records(),
    }]
}

fn housekeeping() -> Housekeeping {
    let [state, epoch, update, package] = records().try_into().unwrap();
    Housekeeping {
        joined: vec![Joined {
            record: package,
            group: bytes("group"),
        }],
        dead: vec![state, epoch, update],
        ending: vec![bytes("group")],
        looks: looks(),
    }
}

fn custody_requests() -> Vec<CustodyRequest> {
    use CustodyRequest as R;
    let options = options();
    let [state, epoch, ..] = <[Record; 4]>::try_from(records()).unwrap();
    vec![
        R::Status { options },
        R::CreateIdentity {
            options,
            request: CreateIdentity {
                name: "alice@example.com".into(),
                credential: Credential::Basic(bytes("alice")),
                scheme: SignatureScheme::Ed25519,
                placement: placement(),
            },
        },
        R::Identities { options },
        R::Prepare {
            options,
            identity: "alice@example.com".into(),
        },
        R::Sign {
            options,
            request: Sign {
                key: key(1),
                content: SecretBytes::new(b"content".to_vec()),
            },
        },
        R::GenerateHpke {
            options,
            request: GenerateHpke {
                kem: Kem::DhKemP256,
                placement: Placement::default(),
            },
        },
        R::Open {
            options,
            request: Open {
                key: key(2),
                kem: Kem::DhKemX25519,
                aead: Aead::ChaCha20Poly1305,
                enc: bytes("enc"),
                info: bytes("info"),
                aad: bytes(""),
                ciphertext: bytes("ciphertext"),
            },
        },
        R::LookUp {
            options,
            public_keys: vec![bytes("one"), bytes("two")],
        },
        R::LeaveCustody {
            options,
            request: LeaveCustody {
                identity: "alice@example.com".into(),
                group: bytes("group"),
                signature_key: bytes("public"),
            },
        },
        R::Attach {
            options,
            storage: "alice@bank/laptop".into(),
            ends: true,
        },
        R::Claim {
            options,
            request: Claim {
                storage: "alice@bank/laptop".into(),
                record: state.clone(),
                keys: vec![key(1), key(2)],
            },
        },
        R::Settle {
            options,
            request: Settle {
                storage: "alice@bank/laptop".into(),
                settlements: vec![
                    Settlement::Written {
                        record: state,
                        generation: 9,
                    },
                    Settlement::Found {
                        record: epoch.clone(),
                        generation: 7,
                        keys: vec![key(1)],
                    },
                    Settlement::Deleted {
                        record: epoch,
                        generation: Some(8),
                    },
                ],
            },
        },
        R::Report {
            options,
            request: Report {
                storage: "alice@bank/laptop".into(),
                notes: vec![
                    Note::OwnLeaf {
                        group: bytes("group"),
                        public_key: bytes("public"),
                    },
                    Note::OwnLeavesDeleted {
                        group: bytes("group"),
                    },
                    Note::GroupEnding {
                        group: bytes("group"),
                        leaf_index: Some(3),
                    },
                    Note::GroupLives {
                        group: bytes("group"),
                    },
                    Note::GroupGone {
                        group: bytes("group"),
                    },
                    Note::GroupEnded {
                        group: bytes("group"),
                        leaf_index: Some(3),
                    },
                ],
            },
        },
        R::Looked {
            options,
            request: Looked {
                storage: "alice@bank/laptop".into(),
                found: looks(),
            },
        },
    ]
}

fn custody_responses() -> Vec<CustodyResponse> {
    use CustodyResponse as R;
    vec![
        R::Status(Ok(ServiceStatus {
            daemon: "0.1.0".into(),
            default_device: ("software".into(), DeviceState::Ready),
            read_only: Some("disk full".into()),
        })),
        R::CreateIdentity(Ok(identity())),
        R::Identities(Ok(vec![identity()])),
        R::Prepare(Ok(())),
        R::Sign(Ok(bytes("signature"))),
        R::GenerateHpke(Ok(GeneratedHpke {
            key: key(2),
            public_key: bytes("public"),
        })),
        R::Open(Ok(SecretBytes::new(b"plaintext".to_vec()))),
        R::LookUp(Ok(vec![None, Some(key_info())])),
        R::LeaveCustody(Ok(())),
        R::Attach(Ok(housekeeping())),
        R::Claim(Ok(Claimed {
            generation: 9,
            lost: vec![key(4)],
            housekeeping: Housekeeping::default(),
        })),
        R::Settle(Ok(housekeeping())),
        R::Report(Ok(housekeeping())),
        R::Looked(Ok(housekeeping())),
    ]
}

fn owner() -> Owner {
    Owner {
        uid: 1000,
        app: "chat".into(),
    }
}

fn admin_requests() -> Vec<AdminRequest> {
    use AdminRequest as R;
    let options = options();
    vec![
        R::Status { options },
        R::Devices { options },
        R::Identities { options },
        R::Keys {
            options,
            query: KeyQuery {
                after: Some(key(2)),
                destroyed: true,
            },
        },
        R::Storages { options },
        R::ForgetStorage {
            options,
            owner: owner(),
            name: "alice@bank/laptop".into(),
        },
        R::Sweep { options },
        R::RotateIdentity {
            options,
            request: RotateIdentity {
                owner: owner(),
                name: "alice@example.com".into(),
                placement: placement(),
                grace: Some(86_400),
                pin: Some(SecretBytes::new(b"1234".to_vec())),
                drop_pin: true,
            },
        },
        R::AdoptIdentity {
            options,
            request: AdoptIdentity {
                owner: owner(),
                name: "alice@example.com".into(),
                credential: Credential::Basic(bytes("alice")),
                scheme: SignatureScheme::EcdsaP256Sha256,
                device: "hsm".into(),
                label: "alice's key".into(),
            },
        },
        R::Unlock {
            options,
            request: Unlock {
                device: "hsm".into(),
                pin: SecretBytes::new(b"123456".to_vec()),
                last_try: true,
            },
        },
        R::AcceptDevice {
            options,
            request: AcceptDevice {
                device: "hsm".into(),
            },
        },
        R::AttestIdentity {
            options,
            request: AttestIdentity {
                owner: owner(),
                name: "alice@example.com".into(),
                nonce: Bytes(vec![0x42; 32]),
            },
        },
        R::AnswerChallenge {
            options,
            request: AnswerChallenge {
                device: "tpm".into(),
                challenge: bytes("a challenge"),
            },
        },
        R::CreateIdentityFor {
            options,
            request: CreateIdentityFor {
                owner: owner(),
                name: "alice@example.com".into(),
                credential: Credential::Basic(bytes("alice")),
                scheme: SignatureScheme::EcdsaP256Sha256,
                placement: placement(),
                pin: Some(SecretBytes::new(b"1234".to_vec())),
            },
        },
        R::UnlockIdentity {
            options,
            request: UnlockIdentity {
                owner: owner(),
                name: "alice@example.com".into(),
                key: Some(key(2)),
                pin: SecretBytes::new(b"1234".to_vec()),
                last_try: true,
            },
        },
        R::LockIdentity {
            options,
            request: LockIdentity {
                owner: owner(),
                name: "alice@example.com".into(),
            },
        },
        R::ReadMeasurements {
            options,
            request: ReadMeasurements {
                device: "tpm".into(),
            },
        },
        R::ApproveMeasurements {
            options,
            request: ApproveMeasurements {
                device: "tpm".into(),
                signature: bytes("a signature"),
            },
        },
        R::LockDevice {
            options,
            request: LockDevice {
                device: "yubikey".into(),
            },
        },
        R::ReloadPolicies {
            options,
            request: ReloadPolicies {},
        },
        R::Refusals {
            options,
            request: ReadRefusals { record: Some(7) },
        },
        R::Freeze {
            options,
            request: Freeze {
                target: FreezeTarget::Device("token".into()),
                reason: "it was lost".into(),
            },
        },
        R::Thaw {
            options,
            request: Thaw {
                target: FreezeTarget::Identity {
                    owner: owner(),
                    name: "alice@example.com".into(),
                },
            },
        },
        R::Frozen {
            options,
            request: ReadFrozen {},
        },
        R::ResetGuard {
            options,
            request: ResetGuard {
                owner: owner(),
                identity: "alice@example.com".into(),
                group: bytes("a group"),
            },
        },
        R::RegistryRestored {
            options,
            request: RegistryRestored {},
        },
        R::SignCsr {
            options,
            request: SignCsr {
                owner: owner(),
                name: "alice@example.com".into(),
                certified: "alice@example.com".into(),
                new_key: Some(NewSignatureKey {
                    placement: placement(),
                    pin: Some(SecretBytes::new(b"1234".to_vec())),
                    drop_pin: false,
                }),
            },
        },
        R::UpdateCredential {
            options,
            request: UpdateCredential {
                owner: owner(),
                name: "alice@example.com".into(),
                credential: Credential::X509(vec![bytes("a certificate")]),
                grace: Some(60),
            },
        },
        R::ReassignKeys {
            options,
            request: ReassignKeys {
                from: owner(),
                to: Owner {
                    app: "wire".into(),
                    ..owner()
                },
                identities: vec!["alice@example.com".into()],
                storages: vec!["alice@bank/laptop".into()],
            },
        },
    ]
}

fn admin_responses() -> Vec<AdminResponse> {
    use AdminResponse as R;
    let device = DeviceInfo {
        name: "software".into(),
        kind: "software".into(),
        state: DeviceState::Locked,
        detail: Some("insert it".into()),
        facts: vec![Fact {
            name: "serial".into(),
            value: "4711".into(),
        }],
        counts: vec![Count {
            name: "sessions".into(),
            used: Some(1),
            peak: Some(3),
            most: 300,
        }],
        offers: vec![Offer {
            algorithm: Algorithm::Signature(SignatureScheme::Ed25519),
            tier: Tier::Software,
            how: "encrypted".into(),
        }],
        remarks: vec![(Algorithm::Hpke(Kem::DhKemX25519), "no such curve".into())],
        hpke_tier: Some(Tier::Sealed),
        default: true,
    };
    vec![
        R::Status(Ok(DaemonStatus {
            version: "0.1.0".into(),
            pid: 4711,
            uptime: 86_400,
            connections: 3,
            keys: 100,
            read_only: None,
            audit_sequence: 12,
            policies: policies(),
            devices: vec![device.clone()],
        })),
        R::Devices(Ok(vec![device.clone()])),
        R::Identities(Ok(vec![OwnedIdentity {
            owner: owner(),
            identity: identity(),
        }])),
        R::Keys(Ok(vec![OwnedKey {
            owner: owner(),
            key: key_info(),
            identity: Some("alice@example.com".into()),
            claims: 2,
        }])),
        R::Storages(Ok(vec![StorageInfo {
            owner: owner(),
            name: "alice@bank/laptop".into(),
            attached: true,
            records: 4,
            keys: 5,
            last_attached: 1_800_000_000,
        }])),
        R::ForgetStorage(Ok(4)),
        R::Sweep(Ok(Swept {
            destroyed: 1,
            waiting: 2,
            stuck: 3,
            more: true,
        })),
        R::RotateIdentity(Ok(identity())),
        R::AdoptIdentity(Ok(identity())),
        R::Unlock(Ok(Unlocked {
            device: device.clone(),
            pin_tried: true,
        })),
        R::AcceptDevice(Ok(AcceptedDevice {
            device: device.clone(),
            serial: "a1b2c3d4".into(),
            before: Some("0a1b2c3d".into()),
        })),
        R::AttestIdentity(Ok(bytes("evidence"))),
        R::AnswerChallenge(Ok(bytes("a response"))),
        R::CreateIdentityFor(Ok(identity())),
        R::UnlockIdentity(Ok(UnlockedIdentity {
            identity: identity(),
            pin_tried: true,
        })),
        R::LockIdentity(Ok(identity())),
        R::ReadMeasurements(Ok(measurements(false))),
        R::ApproveMeasurements(Ok(measurements(true))),
        R::LockDevice(Ok(device)),
        R::ReloadPolicies(Ok(policies())),
        R::Refusals(Ok(Refusals {
            explained: vec![Explained {
                time: 1_700_000_000,
                action: "SignCommit".into(),
                refused: Some(Refused {
                    policy: "no-rollback".into(),
                    reason: "this group is in a newer epoch".into(),
                }),
                by_rule: false,
                policies: vec!["no-rollback".into()],
                permitted_by: Some("own-messages".into()),
                facts: "{}".into(),
            }],
        })),
        R::Freeze(Ok(Frozen { frozen: Vec::new() })),
        R::Thaw(Ok(Frozen { frozen: Vec::new() })),
        R::Frozen(Ok(Frozen {
            frozen: [
                FreezeTarget::All,
                FreezeTarget::User(1000),
                FreezeTarget::App("wire".into()),
            ]
            .map(|target| Freeze {
                target,
                reason: "an incident".into(),
            })
            .into(),
        })),
        R::ResetGuard(Ok(GuardReset { epoch: 9 })),
        R::RegistryRestored(Ok(())),
        R::SignCsr(Ok(SignedCsr {
            key: key(7),
            request: bytes("a request"),
        })),
        R::UpdateCredential(Ok(identity())),
        R::ReassignKeys(Ok(Reassigned {
            identities: vec!["alice@example.com".into()],
            storages: vec!["alice@bank/laptop".into()],
            signature_keys: 2,
            hpke_keys: 105,
        })),
    ]
}

fn policies() -> PoliciesInForce {
    PoliciesInForce {
        count: 17,
        signed: Some(SignedPolicies {
            serial: 7,
            signer: "security@bank (SHA256:abc)".into(),
            expires: Some(1_798_761_600),
        }),
        warnings: vec!["they expired".into()],
    }
}

fn measurements(approved: bool) -> Measurements {
    Measurements {
        registers: vec![(7, Bytes(vec![0x07; 32])), (23, Bytes(vec![0x23; 32]))],
        to_sign: Bytes(vec![0x42; 64]),
        approved,
    }
}

/// Every code, in its order, then every variant of the small enums.
fn small() -> impl Serialize + DeserializeOwned + Debug {
    use FailureCode as C;
    (
        [
            [
                C::Denied,
                C::BadRequest,
                C::NotFound,
                C::Destroyed,
                C::KeyMissing,
            ],
            [
                C::Conflict,
                C::Withheld,
                C::DecryptionFailed,
                C::Unsupported,
                C::DeviceLocked,
            ],
            [
                C::DeviceAbsent,
                C::DeviceFailed,
                C::Busy,
                C::LimitReached,
                C::Timeout,
            ],
        ],
        [
            C::InteractionRequired,
            C::ReadOnly,
            C::AuditUnavailable,
            C::Internal,
        ],
        [Tier::Software, Tier::Sealed, Tier::Hardware],
        [
            DeviceState::Absent,
            DeviceState::Locked,
            DeviceState::Ready,
            DeviceState::Failed,
        ],
        [SignatureScheme::Ed25519, SignatureScheme::EcdsaP256Sha256],
        [Kem::DhKemP256, Kem::DhKemX25519],
        [Aead::Aes128Gcm, Aead::ChaCha20Poly1305],
        [
            Purpose::Signature,
            Purpose::Hpke,
            Purpose::Init,
            Purpose::Leaf,
        ],
        [
            KeyState::Active,
            KeyState::Idle,
            KeyState::Retiring,
            KeyState::Missing,
            KeyState::Destroyed,
        ],
        [Priority::Interactive, Priority::Background],
        [KeyPin::None, KeyPin::Locked, KeyPin::Unlocked],
        [Interaction::Never, Interaction::UpTo(1)],
    )
}

fn each_sample(each: &mut impl Each) {
    each.sample("small", &small());
    let reply = |message| {
        ServerFrame::Reply(tarpc::Response {
            request_id: 300,
            message,
        })
    };
    for request in custody_requests() {
        each.sample(&name("custody-request", &request), &request);
    }
    for response in custody_responses() {
        each.sample(&name("custody-reply", &response), &reply(Ok(response)));
    }
    for request in admin_requests() {
        each.sample(&name("admin-request", &request), &request);
    }
    let options = options();
    for request in [
        AgentRequest::Prompts { options, known: 7 },
        AgentRequest::AnswerPrompt {
            options,
            request: AnswerPrompt {
                prompt: 9,
                pin: SecretBytes::new(b"1234".to_vec()),
            },
        },
        AgentRequest::DeclinePrompt { options, prompt: 9 },
    ] {
        each.sample(&name("agent-request", &request), &request);
    }
    let prompt = |id, kind| Prompt {
        id,
        kind,
        device: "yubikey".into(),
        serial: Some("1234".into()),
        text: "the app default wants to sign".into(),
    };
    for response in [
        AgentResponse::Prompts(Ok(Prompts {
            known: 8,
            prompts: vec![
                prompt(9, PromptKind::Pin),
                prompt(10, PromptKind::Touch),
                prompt(11, PromptKind::Refusal),
            ],
        })),
        AgentResponse::AnswerPrompt(Ok(())),
        AgentResponse::DeclinePrompt(Ok(())),
    ] {
        each.sample(
            &name("agent-reply", &response),
            &ServerFrame::Reply(tarpc::Response {
                request_id: 300,
                message: Ok(response),
            }),
        );
    }
    for response in admin_responses() {
        each.sample(
            &name("admin-reply", &response),
            &ServerFrame::Reply(tarpc::Response {
                request_id: 300,
                message: Ok(response),
            }),
        );
    }
    let failure = Failure::new(
        FailureCode::Denied,
        "not permitted",
        "ask the security team",
    )
    .about_key(key(1))
    .at_device("tpm")
    .by_policy("default-deny");
    each.sample(
        "custody-reply-failure",
        &reply(Ok(CustodyResponse::Sign(Err(failure)))),
    );
    let throttled = tarpc::ServerError::new(std::io::ErrorKind::Other, "throttled".into());
    each.sample("custody-reply-throttled", &reply(Err(throttled)));

    let device = "yubikey".to_owned();
    for (name, progress) in [
        (
            "progress-touch",
            Progress::WaitingForTouch {
                device: device.clone(),
            },
        ),
        (
            "progress-locked",
            Progress::Locked {
                device: device.clone(),
            },
        ),
        ("progress-busy", Progress::Busy { device }),
    ] {
        each.sample(
            name,
            &ServerFrame::<CustodyResponse>::Progress(300, progress),
        );
    }
    each.sample(
        "cancel",
        &tarpc::ClientMessage::<CustodyRequest>::Cancel {
            trace_context: tarpc::trace::Context::default(),
            request_id: 300,
        },
    );

    for (name, service) in [
        ("hello-custody", Service::Custody),
        ("hello-admin", Service::Admin),
        ("hello-agent", Service::Agent),
    ] {
        each.sample(
            name,
            &Hello {
                oldest: 1,
                newest: 1,
                ..Hello::new(service, "chat/1.0")
            },
        );
    }
    let daemon = "0.1.0".to_owned();
    each.sample(
        "welcome-agreed",
        &Welcome::Agreed {
            version: 1,
            daemon: daemon.clone(),
            uid: 1000,
        },
    );
    each.sample(
        "welcome-incompatible",
        &Welcome::Incompatible {
            oldest: 2,
            newest: 3,
            daemon,
        },
    );
    each.sample(
        "welcome-refused",
        &Welcome::Refused("too many connections".into()),
    );
    each.sample("welcome-challenge", &Welcome::Challenge { nonce: [7; 32] });
    each.sample("echo", &Echo { nonce: [7; 32] });
}

/// A file name from the name of an enum's variant.
fn name(kind: &str, message: &impl Debug) -> String {
    let text = format!("{message:?}");
    let variant: String = text
        .chars()
        .take_while(char::is_ascii_alphanumeric)
        .collect();
    format!("{kind}-{}", variant.to_lowercase())
}
