//! Peers that mean harm, against a real server: each harms only itself.
#![cfg(target_os = "linux")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::frame::{decode, encode};
use mlskeyd_protocol::handshake::{Echo, Hello, MAGIC, Nonce, Service, Welcome};
use mlskeyd_protocol::limits::{MAX_FRAME, MAX_IN_FLIGHT, MAX_SHORT_FRAME};
use mlskeyd_protocol::v1::*;
use serde::Serialize;
use support::Server;

fn read_frame(stream: &mut UnixStream) -> Vec<u8> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

/// A connection that was challenged, with the nonce.
fn challenged(server: &Server) -> (UnixStream, Nonce) {
    let mut stream = UnixStream::connect(&server.path).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let hello = Hello::new(Service::Custody, "hostile");
    stream.write_all(&encode(&hello, 1024).unwrap()).unwrap();
    match decode(&read_frame(&mut stream)).unwrap() {
        Welcome::Challenge { nonce } => (stream, nonce),
        other => panic!("{other:?}"),
    }
}

fn greeted(server: &Server) -> UnixStream {
    let (mut stream, nonce) = challenged(server);
    let echo = encode(&Echo { nonce }, 1024).unwrap();
    stream.write_all(&echo).unwrap();
    assert!(matches!(
        decode(&read_frame(&mut stream)).unwrap(),
        Welcome::Agreed { .. }
    ));
    stream
}

/// The daemon closed the connection without another word.
fn is_closed(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn options(token: u64) -> CallOptions {
    CallOptions {
        interaction: Interaction::Never,
        priority: Priority::Background,
        token,
    }
}

/// A request frame with any deadline: seconds, nanoseconds.
fn request<T: Serialize>(deadline: (u64, u32), id: u64, message: &T) -> Vec<u8> {
    let trace = tarpc::trace::Context::default();
    encode(&(0_u32, deadline, trace, id, message), usize::MAX)
        .unwrap()
        .to_vec()
}

fn status() -> CustodyRequest {
    CustodyRequest::Status {
        options: options(1),
    }
}

#[test]
fn far_deadlines_are_served_and_impossible_ones_end_the_connection() {
    let server = Server::start();
    let bystander = server.client();
    bystander.status(&Call::default()).unwrap();
    let years = 3 * 366 * 24 * 3600;
    for deadline in [
        (years, 0),
        (u64::MAX, 0),
        (u64::MAX, 999_999_999),
        (u64::MAX >> 1, 7),
    ] {
        let mut stream = greeted(&server);
        stream.write_all(&request(deadline, 5, &status())).unwrap();
        let reply: ServerFrame<CustodyResponse> = decode(&read_frame(&mut stream)).unwrap();
        assert!(matches!(reply, ServerFrame::Reply(reply) if reply.request_id == 5));
    }
    let mut stream = greeted(&server);
    stream
        .write_all(&request((u64::MAX, u32::MAX), 5, &status()))
        .unwrap();
    assert!(is_closed(&mut stream));
    bystander.status(&Call::default()).unwrap();
    assert_eq!(bystander.incarnation(), 0);
}

#[test]
fn malformed_frames_end_their_connection_only() {
    let server = Server::start();
    let bystander = server.client();
    bystander.status(&Call::default()).unwrap();
    let whole = request((1, 0), 5, &status());
    let mut longer = whole.clone();
    longer.push(0);
    longer[3] += 1;
    let mut shorter = whole.clone();
    shorter.pop();
    shorter[3] -= 1;
    let huge = u32::try_from(MAX_FRAME + 1).unwrap().to_be_bytes().to_vec();
    // A list of many empty strings takes many times its own length when it is
    // decoded.
    let list = CustodyRequest::LookUp {
        options: options(1),
        public_keys: vec![Bytes::default(); MAX_SHORT_FRAME + 1],
    };
    let list = request((1, 0), 5, &list);
    let samples = [
        vec![0xFF; 64],
        vec![0, 0, 0, 0],
        vec![0, 0, 0, 1, 9],
        huge,
        longer,
        shorter,
        list,
    ];
    for (i, bytes) in samples.into_iter().enumerate() {
        let mut stream = greeted(&server);
        // The daemon may close it before everything is written.
        let _ = stream.write_all(&bytes);
        assert!(is_closed(&mut stream), "sample {i}");
    }
    bystander.status(&Call::default()).unwrap();
    assert_eq!(bystander.incarnation(), 0);
}

#[test]
fn a_bad_greeting_is_not_answered_and_a_later_one_is() {
    let server = Server::start();
    let mut stream = UnixStream::connect(&server.path).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(is_closed(&mut stream));

    for hello in [
        encode(
            &Hello {
                oldest: 2,
                newest: 9,
                ..Hello::new(Service::Custody, "new")
            },
            1024,
        )
        .unwrap(),
        // A service that only a later version has.
        encode(&(MAGIC, 1_u16, 1_u16, 77_u32, "new"), 1024).unwrap(),
    ] {
        let mut stream = UnixStream::connect(&server.path).unwrap();
        stream.write_all(&hello).unwrap();
        let answer = decode(&read_frame(&mut stream)).unwrap();
        assert!(
            matches!(
                answer,
                Welcome::Incompatible {
                    oldest: 1,
                    newest: 1,
                    ..
                }
            ),
            "{answer:?}"
        );
        assert!(is_closed(&mut stream));
    }
}

#[test]
fn half_open_and_half_sent_connections_disturb_nobody() {
    let server = Server::start();
    let silent: Vec<_> = (0..250)
        .map(|_| UnixStream::connect(&server.path).unwrap())
        .collect();
    let announced: Vec<_> = (0..250)
        .map(|_| {
            let mut stream = greeted(&server);
            stream
                .write_all(&u32::try_from(MAX_FRAME).unwrap().to_be_bytes())
                .unwrap();
            stream
        })
        .collect();
    server.client().status(&Call::default()).unwrap();
    drop((silent, announced));
}

#[test]
fn calls_above_the_bound_are_turned_away() {
    let server = Server::start();
    let mut stream = greeted(&server);
    for id in 0..=MAX_IN_FLIGHT as u64 {
        let hang = CustodyRequest::Prepare {
            options: options(id),
            identity: "hang".into(),
        };
        stream.write_all(&request((60, 0), id, &hang)).unwrap();
    }
    let reply: ServerFrame<CustodyResponse> = decode(&read_frame(&mut stream)).unwrap();
    match reply {
        ServerFrame::Reply(reply) => {
            assert_eq!(reply.request_id, MAX_IN_FLIGHT as u64);
            assert!(reply.message.is_err());
        }
        ServerFrame::Progress(..) => panic!("{reply:?}"),
    }
}

#[test]
fn who_does_not_read_is_not_written_for() {
    let server = Server::start();
    let mut stream = greeted(&server);
    stream.set_nonblocking(true).unwrap();
    let sign = CustodyRequest::Sign {
        options: options(1),
        request: Sign {
            key: KeyId::from_bytes([1; 16]),
            content: SecretBytes::new(vec![1; 100_000]),
        },
    };
    // The daemon stops to read when its replies are not taken, so that no more
    // than the two sockets' buffers and its own bounds hold is taken from here.
    let mut taken = 0;
    let mut idle = 0;
    let mut id = 0;
    'sending: loop {
        let frame = request((600, 0), id, &sign);
        id += 1;
        let mut rest = &frame[..];
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(count) => {
                    taken += count;
                    idle = 0;
                    rest = &rest[count..];
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock && idle < 100 => {
                    idle += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(_) => break 'sending,
            }
            assert!(taken < 64 << 20, "the daemon takes all that is sent");
        }
    }
    server.client().status(&Call::default()).unwrap();
}

/// It is not served: neither with another nonce, nor with anything beside it.
#[test]
fn only_the_nonce_answers_a_challenge() {
    let server = Server::start();
    let echo = |nonce| encode(&Echo { nonce }, 1024).unwrap().to_vec();
    let (mut stream, nonce) = challenged(&server);
    let mut other = nonce;
    other[31] ^= 1;
    stream.write_all(&echo(other)).unwrap();
    assert!(is_closed(&mut stream), "another nonce");
    for wrong in [
        [0, 0, 0, 31].iter().chain(&nonce[1..]).copied().collect(),
        [echo(nonce), vec![0]].concat(),
        [echo(nonce), echo(nonce)].concat(),
        vec![0, 0, 4, 1],
    ] {
        let (mut stream, _) = challenged(&server);
        stream.write_all(&wrong).unwrap();
        assert!(is_closed(&mut stream), "{wrong:?}");
    }
    // Byte by byte it is as good.
    let (mut stream, nonce) = challenged(&server);
    for byte in echo(nonce) {
        stream.write_all(&[byte]).unwrap();
    }
    let welcome: Welcome = decode(&read_frame(&mut stream)).unwrap();
    assert!(matches!(welcome, Welcome::Agreed { .. }), "{welcome:?}");
}

/// What is sent before the challenge is not taken for what comes after it.
#[test]
fn nothing_is_sent_ahead_of_the_challenge() {
    let server = Server::start();
    let hello = encode(&Hello::new(Service::Custody, "hostile"), 1024).unwrap();
    let ahead = encode(&Echo { nonce: [5; 32] }, 1024).unwrap();
    let mut stream = UnixStream::connect(&server.path).unwrap();
    stream.write_all(&[&hello[..], &ahead].concat()).unwrap();
    assert!(is_closed(&mut stream));
}
