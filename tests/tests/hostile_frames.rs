//! Peers that mean harm: each harms its own connection, and meanwhile others
//! are served by the same daemon.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use mlskeyd_protocol::client::{Call, Client, ClientConfig};
use mlskeyd_protocol::frame::{decode, encode};
use mlskeyd_protocol::handshake::{Echo, Hello, Service, Welcome};
use mlskeyd_protocol::limits::MAX_FRAME;
use mlskeyd_protocol::v1::{
    CallOptions, CustodyRequest, CustodyResponse, Interaction, Priority, ServerFrame,
};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, Stage};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

/// What the daemon may need at most, in bytes: what one user's requests may
/// hold (64 MiB), and as much again for everything else.
const MEMORY: u64 = 128 << 20;

/// Does harm to a daemon, while another client asks it again and again, and
/// expects each of the answers.
fn meanwhile_others_are_served(harm: impl FnOnce(&Path)) {
    let stage = Stage::new(programs!());
    let mut daemon = Daemon::start(&stage, &Options::default());
    let socket = daemon.socket();
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let bystander = scope.spawn(|| {
            let client = Client::new(ClientConfig::new(&socket, "bystander"));
            while !stop.load(Ordering::Relaxed) {
                client.status(&Call::default()).expect("an answer");
                served.fetch_add(1, Ordering::Relaxed);
                thread::yield_now();
            }
            assert_eq!(
                client.incarnation(),
                0,
                "the bystander's connection was lost"
            );
        });
        // Also when the harm fails the test.
        let stop = StopWhenDropped(&stop);
        let before = wait_for_more(&served, 0, &bystander);
        harm(&socket);
        wait_for_more(&served, before, &bystander);
        drop(stop);
        bystander.join().expect("the bystander was served");
    });
    // A newcomer is served, too.
    let client = Client::new(ClientConfig::new(&socket, "newcomer"));
    client.status(&Call::default()).expect("an answer");
    let memory = daemon.peak_memory();
    eprintln!(
        "{} calls were served, at most {memory} bytes were in use",
        served.into_inner()
    );
    assert!(memory < MEMORY, "{memory} bytes");
    daemon.stop();
    let log = daemon.log();
    assert!(!log.contains("panic"), "{log}");
}

/// Ends the bystander.
struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until the bystander was served once more.
fn wait_for_more<T>(
    served: &AtomicU64,
    before: u64,
    bystander: &thread::ScopedJoinHandle<'_, T>,
) -> u64 {
    loop {
        let now = served.load(Ordering::Relaxed);
        if now > before || bystander.is_finished() {
            return now;
        }
        thread::yield_now();
    }
}

fn connect(socket: &Path) -> UnixStream {
    UnixStream::connect(socket).expect("the daemon listens")
}

fn hello() -> Vec<u8> {
    encode(&Hello::new(Service::Custody, "hostile"), 1024)
        .unwrap()
        .to_vec()
}

/// A connection that was challenged, and the answer to that.
fn challenged(socket: &Path) -> (UnixStream, Vec<u8>) {
    let mut stream = connect(socket);
    stream.write_all(&hello()).unwrap();
    match decode(&read_frame(&mut stream).unwrap()).unwrap() {
        Welcome::Challenge { nonce } => (stream, encode(&Echo { nonce }, 1024).unwrap().to_vec()),
        other => panic!("{other:?}"),
    }
}

/// A connection after its handshake.
fn greeted(socket: &Path) -> UnixStream {
    let (mut stream, echo) = challenged(socket);
    stream.write_all(&echo).unwrap();
    let welcome: Welcome = decode(&read_frame(&mut stream).unwrap()).unwrap();
    assert!(matches!(welcome, Welcome::Agreed { .. }), "{welcome:?}");
    stream
}

fn read_frame(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length).try_into().unwrap()];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

/// Sends what the daemon will take of it; it may close the connection before it
/// took everything.
fn send(stream: &mut UnixStream, bytes: &[u8]) {
    match stream.write_all(bytes) {
        Err(error)
            if !matches!(
                error.kind(),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
            ) =>
        {
            panic!("{error}")
        }
        _ => {}
    }
}

/// Reads whatever the daemon says until it closes the connection.
fn until_closed(stream: &mut UnixStream) {
    match stream.read_to_end(&mut Vec::new()) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => {}
    }
}

fn status() -> CustodyRequest {
    let options = CallOptions {
        interaction: Interaction::Never,
        priority: Priority::Background,
        token: 1,
    };
    CustodyRequest::Status { options }
}

/// A request frame with any deadline (seconds and nanoseconds) and content.
fn request<T: Serialize>(deadline: (u64, u32), id: u64, content: &T) -> Vec<u8> {
    let trace = tarpc::trace::Context::default();
    encode(&(0_u32, deadline, trace, id, content), usize::MAX)
        .unwrap()
        .to_vec()
}

/// A frame of these bytes.
fn frame(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [length.as_slice(), bytes].concat()
}

#[test]
fn garbage() {
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    meanwhile_others_are_served(|socket| {
        for round in 0..300 {
            let mut garbage = vec![0; random.random_range(1..5_000)];
            random.fill(&mut garbage[..]);
            let mut stream = match round % 4 {
                0 => connect(socket),
                3 => challenged(socket).0,
                _ => greeted(socket),
            };
            if round % 4 == 1 {
                // Behind a length that is right.
                garbage = frame(&garbage);
            }
            send(&mut stream, &garbage);
            let _ = stream.shutdown(Shutdown::Write);
            until_closed(&mut stream);
        }
    });
}

#[test]
fn a_request_cut_at_every_byte() {
    meanwhile_others_are_served(|socket| {
        let cut_off = |mut stream: UnixStream, whole: &[u8], cut: usize| {
            send(&mut stream, &whole[..cut]);
            stream.shutdown(Shutdown::Write).unwrap();
            until_closed(&mut stream);
        };
        let (hello, whole) = (hello(), request((1, 0), 5, &status()));
        for cut in 0..hello.len() {
            cut_off(connect(socket), &hello, cut);
        }
        for cut in 0..challenged(socket).1.len() {
            let (stream, echo) = challenged(socket);
            cut_off(stream, &echo, cut);
        }
        for cut in 0..whole.len() {
            cut_off(greeted(socket), &whole, cut);
        }
        // Cut within, the length being that of the rest.
        let content = request((1, 0), 5, &status())[4..].to_vec();
        for cut in 0..content.len() {
            let mut stream = greeted(socket);
            send(&mut stream, &frame(&content[..cut]));
            until_closed(&mut stream);
        }
    });
}

#[test]
fn huge_announced_lengths() {
    meanwhile_others_are_served(|socket| {
        for length in [u32::MAX, 1 << 31, u32::try_from(MAX_FRAME).unwrap() + 1] {
            for mut stream in [connect(socket), greeted(socket)] {
                send(&mut stream, &length.to_be_bytes());
                until_closed(&mut stream);
            }
        }
        // As long as is allowed, and nothing of it: nothing is set aside.
        let length = u32::try_from(MAX_FRAME).unwrap().to_be_bytes();
        let waiting: Vec<_> = (0..200)
            .map(|_| {
                let mut stream = greeted(socket);
                send(&mut stream, &length);
                stream
            })
            .collect();
        drop(waiting);
    });
}

#[test]
fn far_deadlines() {
    let three_years = 3 * 366 * 24 * 60 * 60;
    meanwhile_others_are_served(|socket| {
        for deadline in [(three_years, 0), (u64::MAX, 0), (u64::MAX, 999_999_999)] {
            let mut stream = greeted(socket);
            send(&mut stream, &request(deadline, 5, &status()));
            let reply: ServerFrame<CustodyResponse> =
                decode(&read_frame(&mut stream).unwrap()).unwrap();
            assert!(matches!(reply, ServerFrame::Reply(reply) if reply.request_id == 5));
        }
        // No duration at all: its nanoseconds are seconds beyond the end.
        let mut stream = greeted(socket);
        send(&mut stream, &request((u64::MAX, u32::MAX), 5, &status()));
        until_closed(&mut stream);
    });
}

#[test]
fn unknown_variants() {
    meanwhile_others_are_served(|socket| {
        let trace = tarpc::trace::Context::default;
        let unknown = [
            encode(&(9_u32, (1_u64, 0_u32), trace(), 5_u64, status()), 1024)
                .unwrap()
                .to_vec(),
            request((1, 0), 5, &200_u32),
            request((1, 0), 5, &(u32::MAX, [u64::MAX; 8])),
            // A status with an interaction that there is not.
            request((1, 0), 5, &(0_u32, 77_u32)),
        ];
        for bytes in unknown {
            let mut stream = greeted(socket);
            send(&mut stream, &bytes);
            until_closed(&mut stream);
        }
        let mut other_service = hello();
        let magic_and_versions = 4 + 8 + 2;
        other_service[magic_and_versions] = 9;
        let mut other_magic = hello();
        other_magic[4] ^= 1;
        for bytes in [other_service, other_magic] {
            let mut stream = connect(socket);
            send(&mut stream, &bytes);
            until_closed(&mut stream);
        }
    });
}

#[test]
fn half_open_connections() {
    meanwhile_others_are_served(|socket| {
        let hello = hello();
        let half_open: Vec<_> = (0..500)
            .map(|number| {
                let mut stream = connect(socket);
                // Nothing, a part of the greeting, or all of it and no answer to the challenge.
                send(&mut stream, &hello[..number % (hello.len() + 1)]);
                stream
            })
            .collect();
        // Others come and go while they are there.
        for _ in 0..10 {
            drop(greeted(socket));
        }
        drop(half_open);
    });
}

#[test]
fn slow_readers() {
    meanwhile_others_are_served(|socket| {
        let requests: Vec<u8> = (0..20_000)
            .flat_map(|id| request((60, 0), id, &status()))
            .collect();
        thread::scope(|scope| {
            let readers: Vec<_> = (0..32)
                .map(|_| {
                    scope.spawn(|| {
                        let mut stream = greeted(socket);
                        // Asks as long as the daemon takes it, and never reads.
                        stream
                            .set_write_timeout(Some(Duration::from_secs(1)))
                            .unwrap();
                        assert!(
                            stream.write_all(&requests).is_err(),
                            "the daemon took it all"
                        );
                        stream
                    })
                })
                .collect();
            let readers: Vec<_> = readers
                .into_iter()
                .map(|reader| reader.join().unwrap())
                .collect();
            drop(greeted(socket));
            drop(readers);
        });
    });
}
