//! The blocking client against a real server.
#![cfg(target_os = "linux")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use mlskeyd_protocol::client::{
    AdminClient, Call, CallError, CancelToken, Client, ClientConfig, Doors, Probe, probe,
};
use mlskeyd_protocol::frame::encode;
use mlskeyd_protocol::handshake::Welcome;
use mlskeyd_protocol::limits::{MAX_DEADLINE, MAX_FRAME};
use mlskeyd_protocol::v1::*;
use support::Server;

fn sign(content: Vec<u8>) -> Sign {
    Sign {
        key: KeyId::from_bytes([1; 16]),
        content: SecretBytes::new(content),
    }
}

fn never() -> Call<'static> {
    Call {
        interaction: Interaction::Never,
        ..Call::default()
    }
}

fn generate(client: &Client) -> Result<GeneratedHpke, CallError> {
    let request = GenerateHpke {
        kem: Kem::DhKemP256,
        placement: Placement::default(),
    };
    client.generate_hpke(request, &never())
}

/// Waits for what another thread is about to do.
fn eventually(what: &str, happened: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if happened() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("did not happen: {what}");
}

#[test]
fn threads_do_not_wait_for_each_other() {
    let server = Server::start();
    let client = server.client();
    // All sixteen calls must be under way at once for any to end.
    let barrier = Arc::new(Barrier::new(16));
    thread::scope(|scope| {
        for i in 0..16_u8 {
            let (client, barrier) = (client.clone(), Arc::clone(&barrier));
            scope.spawn(move || {
                let met = |_: &Progress| {
                    barrier.wait();
                };
                let call = Call {
                    on_progress: Some(&met),
                    ..Call::default()
                };
                // Two reports come: two meetings.
                client.prepare("touch:x", &call).unwrap();
                for round in 0..50 {
                    let content = vec![i; 1 + round * 100];
                    assert_eq!(
                        client.sign(sign(content.clone()), &never()).unwrap().0,
                        content
                    );
                }
            });
        }
    });
    assert!(server.seen.connections.load(Ordering::SeqCst) <= 16);
}

#[test]
fn one_thread_keeps_to_one_connection() {
    let server = Server::start();
    let client = server.client();
    for _ in 0..20 {
        client.status(&never()).unwrap();
    }
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn large_content_passes_and_larger_is_refused_here() {
    let server = Server::start();
    let client = server.client();
    let content = vec![7; 3 * 1024 * 1024];
    assert_eq!(
        client.sign(sign(content.clone()), &never()).unwrap().0,
        content
    );
    let error = client.sign(sign(vec![7; MAX_FRAME]), &never()).unwrap_err();
    assert!(matches!(error, CallError::Protocol(_)), "{error}");
    client.status(&never()).unwrap();
}

#[test]
fn a_deadline_ends_the_call_on_both_sides() {
    let server = Server::start();
    let client = server.client();
    let call = Call {
        deadline: Duration::from_millis(50),
        ..Call::default()
    };
    assert_eq!(client.prepare("hang", &call), Err(CallError::Timeout));
    eventually("the call is dropped", || {
        server.seen.dropped.load(Ordering::SeqCst) == 1
    });
    client.status(&never()).unwrap();
}

#[test]
fn the_longest_deadline_is_cut() {
    let server = Server::start();
    let call = Call {
        deadline: Duration::MAX,
        ..Call::default()
    };
    match server.client().prepare("deadline:", &call).unwrap_err() {
        CallError::Failure(failure) => {
            assert!(failure.message.parse::<u64>().unwrap() <= MAX_DEADLINE.as_secs());
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_token_cancels_a_call_under_way_and_later_ones() {
    let server = Server::start();
    let client = server.client();
    let token = CancelToken::new().unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            client.prepare(
                "hang",
                &Call {
                    cancel: Some(&token),
                    ..Call::default()
                },
            )
        });
        eventually("the call begins", || {
            server.seen.begun.load(Ordering::SeqCst) == 1
        });
        token.cancel();
        assert_eq!(waiting.join().unwrap(), Err(CallError::Cancelled));
    });
    eventually("the call is dropped", || {
        server.seen.dropped.load(Ordering::SeqCst) == 1
    });
    let later = client.prepare(
        "hang",
        &Call {
            cancel: Some(&token),
            ..Call::default()
        },
    );
    assert_eq!(later, Err(CallError::Cancelled));
    client.status(&never()).unwrap();
}

#[test]
fn progress_is_reported_before_the_reply() {
    let server = Server::start();
    let reports = Mutex::new(Vec::new());
    let report = |progress: &Progress| reports.lock().unwrap().push(progress.clone());
    let call = Call {
        on_progress: Some(&report),
        ..Call::default()
    };
    server.client().prepare("touch:yubikey", &call).unwrap();
    let device = "yubikey".to_owned();
    assert_eq!(
        reports.into_inner().unwrap(),
        [
            Progress::WaitingForTouch {
                device: device.clone()
            },
            Progress::Busy { device }
        ]
    );
}

#[test]
fn a_restart_is_not_noticed_and_the_incarnation_grows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = Server::start_at(&path);
    let client = server.client();
    client.status(&never()).unwrap();
    assert_eq!(client.incarnation(), 0);
    drop(server);
    // Also what must not be repeated, since it was not sent.
    let server = Server::start_at(&path);
    generate(&client).unwrap();
    assert_eq!(client.incarnation(), 1);
    assert_eq!(server.seen.generated.load(Ordering::SeqCst), 1);
}

#[test]
fn a_call_waits_for_a_daemon_that_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = Server::start_at(&path);
    let client = server.client();
    client.status(&never()).unwrap();
    drop(server);
    assert!(matches!(
        client.status(&never()),
        Err(CallError::Unreachable { .. })
    ));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| client.status(&Call::default()));
        thread::sleep(Duration::from_millis(60));
        let _server = Server::start_at(&path);
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(client.incarnation(), 1);
}

#[test]
fn a_daemon_that_stays_away_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let config = ClientConfig {
        reconnect_for: Duration::from_millis(100),
        ..ClientConfig::new(&path, "test")
    };
    let client = Client::new(config);
    let error = client.status(&Call::default()).unwrap_err();
    assert_eq!(
        error,
        CallError::NotInstalled {
            doors: Doors::socket(&path)
        }
    );
    // A socket that nobody listens on.
    drop(UnixListener::bind(&path).unwrap());
    let start = Instant::now();
    let error = client.status(&Call::default()).unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[test]
fn the_daemon_may_refuse_and_may_fail() {
    let server = Server::start();
    let client = Client::new(ClientConfig {
        software: "nobody".into(),
        ..server.config()
    });
    let error = client.status(&never()).unwrap_err();
    assert_eq!(error, CallError::Refused("not you; be somebody".into()));

    let request = LeaveCustody {
        identity: "a".into(),
        group: Bytes(vec![1]),
        signature_key: Bytes(vec![2]),
    };
    match server
        .client()
        .leave_custody(request, &never())
        .unwrap_err()
    {
        CallError::Failure(failure) => assert_eq!(failure.code, FailureCode::Unsupported),
        other => panic!("{other}"),
    }
}

#[test]
fn a_fault_in_one_call_ends_its_connection_only() {
    let server = Server::start();
    let client = server.client();
    let (attachment, _) = client.attach("storage", false, &never()).unwrap();
    let request = CreateIdentity {
        name: "a".into(),
        credential: Credential::Basic(Bytes(vec![1])),
        scheme: SignatureScheme::Ed25519,
        placement: Placement::default(),
    };
    let error = client.create_identity(request, &never()).unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    client.status(&never()).unwrap();
    assert!(attachment.is_alive());
}

#[test]
fn an_attachment_holds_its_connection_and_notices_its_end() {
    let server = Server::start();
    let client = server.client();
    let (attachment, housekeeping) = client.attach("storage", true, &never()).unwrap();
    assert!(housekeeping.is_empty());
    client.status(&never()).unwrap();
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 2);
    assert!(attachment.is_alive());
    drop(server);
    eventually("the attachment ends", || !attachment.is_alive());
}

#[test]
fn a_gentle_stop_finishes_calls_under_way() {
    let server = Server::start();
    let client = server.client();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| client.prepare("sleep:100", &Call::default()));
        eventually("the call begins", || {
            server.seen.begun.load(Ordering::SeqCst) == 1
        });
        server.stop_gently();
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn calls_work_inside_any_runtime() {
    let server = Server::start();
    let client = server.client();
    let current = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    current.block_on(async { client.status(&never()).unwrap() });
    let multi = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let inner = client.clone();
    multi.block_on(async move {
        let other = inner.clone();
        tokio::spawn(async move { other.status(&never()).unwrap() })
            .await
            .unwrap();
        tokio::task::spawn_blocking(move || inner.status(&never()).unwrap())
            .await
            .unwrap();
    });
}

#[test]
fn a_probe_tells_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let within = Duration::from_secs(5);
    let doors = Doors::socket(&path);
    assert_eq!(probe(&doors, within), Probe::NotInstalled);
    let listener = UnixListener::bind(&path).unwrap();
    // It listens, but does not answer.
    assert!(matches!(
        probe(&doors, Duration::from_millis(20)),
        Probe::Unreachable(_)
    ));
    drop(listener);
    assert!(matches!(probe(&doors, within), Probe::Unreachable(_)));
    let _server = Server::start_at(&path);
    assert_eq!(probe(&doors, within), Probe::Answers);
}

/// A daemon that reads what comes and answers each connection with these bytes,
/// one after the other: the greeting's answer, then more after a request.
fn scripted(path: &Path, answers: Vec<Vec<Vec<u8>>>) -> thread::JoinHandle<usize> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let mut requests = 0;
        for answers in answers {
            let (mut stream, _) = listener.accept().unwrap();
            for (i, answer) in answers.iter().enumerate() {
                read_frame(&mut stream);
                requests += usize::from(i > 0);
                stream.write_all(answer).unwrap();
            }
        }
        requests
    })
}

fn read_frame(stream: &mut UnixStream) {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    stream.read_exact(&mut frame).unwrap();
}

fn welcome(welcome: &Welcome) -> Vec<u8> {
    encode(welcome, 1024).unwrap().to_vec()
}

fn agreed() -> Vec<u8> {
    welcome(&Welcome::Agreed {
        version: 1,
        daemon: "test".into(),
        uid: 0,
    })
}

fn challenge() -> Vec<u8> {
    welcome(&Welcome::Challenge { nonce: [1; 32] })
}

#[test]
fn versions_that_do_not_fit_say_which_side_to_update() {
    for (oldest, newest, advice) in [(2, 3, "update this app"), (0, 0, "update mlskeyd")] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let answer = welcome(&Welcome::Incompatible {
            oldest,
            newest,
            daemon: "9".into(),
        });
        let daemon = scripted(&path, vec![vec![answer]]);
        match Client::new(ClientConfig::new(&path, "t"))
            .status(&Call::default())
            .unwrap_err()
        {
            CallError::Incompatible { message } => assert!(message.contains(advice), "{message}"),
            other => panic!("{other}"),
        }
        daemon.join().unwrap();
    }
}

#[test]
fn garbage_from_the_daemon_is_an_error() {
    let reply = |request_id, message| {
        let reply = tarpc::Response {
            request_id,
            message: Ok(message),
        };
        encode(&ServerFrame::Reply(reply), 1024).unwrap().to_vec()
    };
    let status = CustodyResponse::Status(Ok(ServiceStatus {
        daemon: "test".into(),
        default_device: ("none".into(), DeviceState::Absent),
        read_only: None,
    }));
    let garbage = [
        vec![vec![0xFF; 8]],
        vec![vec![0, 0, 0, 2, 0xFF, 0xFF]],
        vec![welcome(&Welcome::Agreed {
            version: 9,
            daemon: "9".into(),
            uid: 0,
        })],
        // One challenge is enough; and another version is none after it, either.
        vec![challenge(), challenge()],
        vec![agreed(), vec![0xFF; 8]],
        vec![agreed(), vec![0, 0, 0, 3, 9, 9, 9]],
        // Another call's reply; another method's reply.
        vec![agreed(), reply(77, status)],
        vec![
            agreed(),
            reply(1, CustodyResponse::Identities(Ok(Vec::new()))),
        ],
    ];
    for (i, answers) in garbage.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let daemon = scripted(&path, vec![answers]);
        let error = Client::new(ClientConfig::new(&path, "t"))
            .status(&never())
            .unwrap_err();
        assert!(matches!(error, CallError::Protocol(_)), "{i}: {error}");
        daemon.join().unwrap();
    }
}

#[test]
fn a_lost_reply_is_asked_for_again_only_where_that_is_harmless() {
    let lost = || vec![agreed(), Vec::new()];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("harmless");
    let daemon = scripted(&path, vec![lost(), lost()]);
    let client = Client::new(ClientConfig::new(&path, "t"));
    assert!(matches!(
        client.status(&never()),
        Err(CallError::Unreachable { .. })
    ));
    assert_eq!(daemon.join().unwrap(), 2);

    let path = dir.path().join("harmful");
    let refused = vec![welcome(&Welcome::Refused("once is enough".into()))];
    let daemon = scripted(&path, vec![lost(), refused]);
    let client = Client::new(ClientConfig::new(&path, "t"));
    let error = generate(&client).unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    // It did not connect again by itself.
    assert!(matches!(
        client.status(&never()),
        Err(CallError::Refused(_))
    ));
    assert_eq!(daemon.join().unwrap(), 1);
}

#[test]
fn an_admin_client_asks_for_its_own_service() {
    let server = Server::start();
    let error = AdminClient::new(server.config())
        .devices(&never())
        .unwrap_err();
    assert_eq!(error, CallError::Refused("not the admin; ask one".into()));
}
