//! The blocking client through the door on a message bus: a real dbus-daemon, and a
//! real server behind the channels that are handed out there.
#![cfg(target_os = "linux")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

#[path = "support/bus.rs"]
mod bus;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bus::{Answer, Bus, OnBus};
use mlskeyd_protocol::client::{
    AdminClient, Call, CallError, CancelToken, Client, ClientConfig, Doors, Probe, probe,
};
use mlskeyd_protocol::v1::*;
use support::Server;

fn never() -> Call<'static> {
    Call {
        interaction: Interaction::Never,
        ..Call::default()
    }
}

fn doors(bus: &Bus) -> Doors {
    Doors::bus(bus.address().as_str())
}

fn through(doors: Doors) -> Client {
    Client::new(ClientConfig::through(doors, "test/1"))
}

fn client(bus: &Bus) -> Client {
    through(doors(bus))
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

fn connections(server: &Server) -> usize {
    server.seen.connections.load(Ordering::SeqCst)
}

fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::SeqCst)
}

/// Does a thread ask a bus now?
fn is_asking() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.flatten().any(|task| {
        let name = std::fs::read_to_string(task.path().join("comm"));
        name.is_ok_and(|name| name.trim() == "mlskeyd-bus")
    })
}

#[test]
fn a_channel_is_asked_for_once_and_serves_as_the_socket_does() {
    let (bus, server) = (Bus::start(), Server::start());
    let daemon = OnBus::of(&server, &bus);
    let client = client(&bus);
    for _ in 0..5 {
        client.status(&never()).unwrap();
    }
    assert_eq!((count(&daemon.asked), connections(&server)), (1, 1));
    let (attachment, _) = client.attach("storage", true, &never()).unwrap();
    assert!(attachment.is_alive());
    // What is asked of the server is that service, and it may refuse it.
    let config = ClientConfig::through(doors(&bus), "test/1");
    let error = AdminClient::new(config).devices(&never()).unwrap_err();
    assert_eq!(error, CallError::Refused("not the admin; ask one".into()));
    assert_eq!(probe(&doors(&bus), Duration::from_secs(5)), Probe::Answers);
}

#[test]
fn it_works_inside_any_runtime() {
    let (bus, server) = (Bus::start(), Server::start());
    let _daemon = OnBus::of(&server, &bus);
    let current = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    current.block_on(async { client(&bus).status(&never()).unwrap() });
    let multi = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let (one, other) = (client(&bus), client(&bus));
    multi.block_on(async move {
        tokio::spawn(async move { one.status(&never()).unwrap() })
            .await
            .unwrap();
        tokio::task::spawn_blocking(move || other.status(&never()).unwrap())
            .await
            .unwrap();
    });
    assert_eq!(connections(&server), 3);
}

#[test]
fn many_threads_ask_at_once() {
    let (bus, server) = (Bus::start(), Server::start());
    let daemon = OnBus::of(&server, &bus);
    let client = client(&bus);
    let barrier = Barrier::new(32);
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                barrier.wait();
                client.status(&Call::default()).unwrap();
            });
        }
    });
    let asked = count(&daemon.asked);
    assert!((1..=32).contains(&asked), "{asked}");
    assert_eq!(connections(&server), asked);
    assert_eq!(client.incarnation(), 0);
}

#[test]
fn a_bus_that_hangs_does_not_hold_a_call_longer_than_it_wants() {
    let (bus, server) = (Bus::start(), Server::start());
    let daemon = OnBus::of(&server, &bus);
    bus.hang();
    let client = client(&bus);

    let call = Call {
        deadline: Duration::from_millis(100),
        ..Call::default()
    };
    let start = Instant::now();
    assert_eq!(client.status(&call), Err(CallError::Timeout));
    assert!(start.elapsed() >= Duration::from_millis(100));
    eventually("nobody asks any more", || !is_asking());

    // Connecting has its own time.
    let short = Client::new(ClientConfig {
        connect_timeout: Duration::from_millis(50),
        ..ClientConfig::through(doors(&bus), "test/1")
    });
    let error = short.status(&never()).unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, CallError::Unreachable { .. }), "{told}");
    assert!(told.contains(&bus.address()), "{told}");
    assert!(matches!(
        probe(&doors(&bus), Duration::from_millis(50)),
        Probe::Unreachable(_)
    ));

    let token = CancelToken::new().unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let config = ClientConfig {
                connect_timeout: Duration::from_secs(3600),
                ..ClientConfig::through(doors(&bus), "test/1")
            };
            let call = Call {
                deadline: Duration::from_secs(3600),
                cancel: Some(&token),
                ..Call::default()
            };
            Client::new(config).status(&call)
        });
        eventually("somebody asks", is_asking);
        token.cancel();
        assert_eq!(waiting.join().unwrap(), Err(CallError::Cancelled));
    });
    // Nor does the thread stay, which would have had an hour.
    eventually("nobody asks any more", || !is_asking());
    assert_eq!(count(&daemon.asked), 0);
}

#[test]
fn a_daemon_that_hangs_on_the_bus_does_not_hold_a_call_either() {
    let bus = Bus::start();
    let daemon = OnBus::answering(Answer::Never, &bus);
    let client = client(&bus);
    let token = CancelToken::new().unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let call = Call {
                cancel: Some(&token),
                ..Call::default()
            };
            client.status(&call)
        });
        eventually("it is asked", || count(&daemon.asked) == 1);
        token.cancel();
        assert_eq!(waiting.join().unwrap(), Err(CallError::Cancelled));
    });
    // One that leaves without an answer was there, if it never answered, either.
    let impatient = Client::new(ClientConfig {
        reconnect_for: Duration::from_millis(100),
        ..ClientConfig::through(doors(&bus), "test/1")
    });
    thread::scope(|scope| {
        let waiting = scope.spawn(|| impatient.status(&Call::default()));
        eventually("it is asked", || count(&daemon.asked) == 2);
        drop(daemon);
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    });

    // It may be back soon, and is waited for.
    let daemon = OnBus::answering(Answer::Never, &bus);
    let server = Server::start();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| client.status(&Call::default()));
        eventually("it is asked", || count(&daemon.asked) == 1);
        drop(daemon);
        let _daemon = OnBus::of(&server, &bus);
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn where_nobody_is_every_door_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, no_bus) = (dir.path().join("socket"), dir.path().join("no-bus"));
    let no_bus = format!("unix:path={}", no_bus.display());
    let bus = Bus::start();
    let nowhere = Doors::socket(&socket)
        .or(Doors::bus(no_bus.as_str()))
        .or(doors(&bus));
    let error = through(nowhere.clone())
        .status(&Call::default())
        .unwrap_err();
    assert_eq!(
        error,
        CallError::NotInstalled {
            doors: nowhere.clone()
        }
    );
    let told = error.to_string();
    for named in [&*socket.display().to_string(), &no_bus, &bus.address()] {
        assert!(told.contains(named), "{told}");
    }
    for advice in ["MLSKEYD_SOCKET", "MLSKEYD_BUS", "sandbox"] {
        assert!(told.contains(advice), "{told}");
    }
    assert_eq!(probe(&nowhere, Duration::from_secs(5)), Probe::NotInstalled);

    // One that comes is found, behind the last one, too.
    let client = through(nowhere);
    client.status(&never()).unwrap_err();
    let server = Server::start();
    let _daemon = OnBus::of(&server, &bus);
    client.status(&never()).unwrap();
}

#[test]
fn what_is_no_bus_is_said_to_be_none() {
    for address in [
        "nonsense",
        "tcp:host=localhost,port=1",
        "unix:tmpdir=/tmp",
        "",
    ] {
        let error = through(Doors::bus(address)).status(&never()).unwrap_err();
        let told = error.to_string();
        assert!(matches!(error, CallError::Unreachable { .. }), "{told}");
        assert!(told.contains("a bus is `system`"), "{told}");
    }
    // A socket that nobody listens on may be one that is being restarted.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    drop(UnixListener::bind(&path).unwrap());
    let address = format!("unix:path={}", path.display());
    let error = through(Doors::bus(address.as_str()))
        .status(&never())
        .unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
}

#[test]
fn what_is_no_channel_is_not_talked_to() {
    for answer in [
        Answer::Pipe,
        Answer::File,
        Answer::Listener,
        Answer::Datagrams,
    ] {
        let bus = Bus::start();
        let _daemon = OnBus::answering(answer, &bus);
        let error = client(&bus).status(&Call::default()).unwrap_err();
        let told = error.to_string();
        assert!(matches!(error, CallError::Protocol(_)), "{told}");
        assert!(told.contains("no connected Unix stream socket"), "{told}");
    }
    let (bus, server) = (Bus::start(), Server::start());
    let text = OnBus::with_text(&bus);
    let error = client(&bus).status(&Call::default()).unwrap_err();
    assert!(matches!(error, CallError::Protocol(_)), "{error}");
    drop(text);
    let _two = OnBus::with_two(&server, &bus);
    eventually("the other one has the name", || {
        let error = client(&bus).status(&never()).unwrap_err();
        matches!(error, CallError::Protocol(_))
    });
}

#[test]
fn a_refusal_has_the_text_of_who_refuses() {
    let bus = Bus::start();
    let text = "uid 7 has 64 channels; close some";
    let _daemon = OnBus::answering(Answer::Refusal(text), &bus);
    let error = client(&bus).status(&Call::default()).unwrap_err();
    assert!(
        matches!(&error, CallError::Refused(why) if why.contains(text)),
        "{error}"
    );

    let bus = Bus::with("<deny send_destination=\"org.mlskeyd.Custody1\"/>");
    let server = Server::start();
    let daemon = OnBus::of(&server, &bus);
    let error = client(&bus).status(&Call::default()).unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, CallError::Refused(_)), "{told}");
    assert!(
        told.contains("policy") && told.contains("sandbox"),
        "{told}"
    );
    assert_eq!(count(&daemon.asked), 0);
}

#[test]
fn a_channel_outlives_the_bus() {
    let (mut bus, server) = (Bus::start(), Server::start());
    let daemon = OnBus::of(&server, &bus);
    let client = client(&bus);
    let (attachment, _) = client.attach("storage", false, &never()).unwrap();
    client.status(&never()).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| client.prepare("sleep:200", &Call::default()));
        eventually("the call begins", || count(&server.seen.begun) == 1);
        bus.restart();
        waiting.join().unwrap().unwrap();
    });
    client.status(&never()).unwrap();
    assert!(attachment.is_alive());
    assert_eq!((connections(&server), client.incarnation()), (2, 0));

    // The next channel is asked for on the new bus.
    drop(daemon);
    let daemon = OnBus::of(&server, &bus);
    client.attach("another", false, &never()).unwrap();
    client.attach("a third", false, &never()).unwrap();
    assert!(count(&daemon.asked) >= 1);
}

#[test]
fn a_daemon_that_is_restarted_is_found_again() {
    let (bus, server) = (Bus::start(), Server::start());
    let daemon = OnBus::of(&server, &bus);
    let client = client(&bus);
    client.status(&never()).unwrap();
    drop((daemon, server));
    // It was there, so it is away and not missing.
    let error = client.status(&never()).unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| client.status(&Call::default()));
        // Pauses of the client pass before.
        thread::sleep(Duration::from_millis(60));
        let server = Server::start();
        let _daemon = OnBus::of(&server, &bus);
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(client.incarnation(), 1);
}

#[test]
fn the_bus_is_not_asked_while_there_is_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (bus, server) = (Bus::start(), Server::start_at(&dir.path().join("socket")));
    let daemon = OnBus::of(&server, &bus);
    let doors = Doors::socket(&server.path).or(doors(&bus));
    let client = through(doors.clone());
    client.status(&never()).unwrap();
    let path = server.path.clone();
    drop(server);
    // Nor in place of one that was met, when its socket is gone for a moment.
    let error = client.status(&never()).unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    // Nor while nobody listens there.
    drop(UnixListener::bind(&path).unwrap());
    let error = through(doors).status(&never()).unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    assert_eq!(count(&daemon.asked), 0);
}

/// Says to its child process, which is another user, where the socket is.
const AS_ANOTHER: &str = "SOCKET_OF_ANOTHER_USER";

#[test]
fn a_socket_that_this_user_may_not_open_leads_to_the_bus() {
    const TEST: &str = "a_socket_that_this_user_may_not_open_leads_to_the_bus";
    if let Some(socket) = std::env::var_os(AS_ANOTHER) {
        return ask_as_another_user(socket.into());
    }
    if !rustix::process::geteuid().is_root() {
        // As root of a user namespace, where there are several users.
        let status = Command::new("unshare")
            .args(["--user", "--map-root-user", "--map-auto"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let (bus, server) = (Bus::start(), Server::start());
    let daemon = OnBus::of(&server, &bus);
    let closed = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&server.path, closed).unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(server.path.parent().unwrap(), open.clone()).unwrap();
    // Where other users may run it.
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [dir.path(), &program] {
        std::fs::set_permissions(path, open.clone()).unwrap();
    }
    let as_another = |bus: &str| {
        // `nobody`: a bus takes no user without a name.
        let output = Command::new(&program)
            .args(["--exact", TEST, "--nocapture"])
            .env(AS_ANOTHER, &server.path)
            .env("MLSKEYD_BUS", bus)
            .current_dir("/")
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{told}");
        told
    };
    let told = as_another(&bus.address());
    assert!(told.contains("served"), "{told}");
    assert_eq!((count(&daemon.asked), connections(&server)), (1, 1));

    // If the daemon is not on the bus, either, both doors are named.
    let elsewhere = Bus::start();
    let told = as_another(&elsewhere.address());
    let path = server.path.display().to_string();
    for named in [
        &*path,
        "Permission denied",
        &elsewhere.address(),
        "nobody there",
    ] {
        assert!(told.contains(named), "{told}");
    }
}

fn ask_as_another_user(socket: std::path::PathBuf) {
    let bus = std::env::var("MLSKEYD_BUS").unwrap();
    let doors = Doors::named(Some(socket), Some(&bus));
    match through(doors).status(&Call::default()) {
        Ok(_) => println!("served"),
        Err(error @ CallError::Unreachable { .. }) => println!("{error}"),
        Err(other) => panic!("{other:?}"),
    }
}
