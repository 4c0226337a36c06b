//! What was recorded of the oldest wire version is served at both doors.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use mlskeyd_protocol::frame::{PREFIX, decode, encode};
use mlskeyd_protocol::handshake::{Echo, Hello, Service, Welcome};
use mlskeyd_protocol::limits::MAX_FRAME;
use mlskeyd_protocol::v1::{AdminResponse, AgentResponse, CustodyResponse, ServerFrame};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::scene::{NAME, ROOT, Scene};

fn send(stream: &mut UnixStream, message: &impl Serialize) {
    let frame = encode(message, MAX_FRAME).unwrap();
    stream.write_all(&frame).unwrap();
}

fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> T {
    let mut length = [0; PREFIX];
    stream.read_exact(&mut length).unwrap();
    let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut frame).unwrap();
    decode(&frame).unwrap()
}

fn greet(stream: &mut UnixStream, service: Service) {
    // As the oldest client says it.
    let hello = Hello {
        oldest: 1,
        newest: 1,
        ..Hello::new(service, "corpus")
    };
    send(stream, &hello);
    let Welcome::Challenge { nonce } = receive(stream) else {
        panic!("no challenge")
    };
    send(stream, &Echo { nonce });
    let welcome: Welcome = receive(stream);
    assert!(
        matches!(welcome, Welcome::Agreed { version: 1, .. }),
        "{welcome:?}"
    );
}

/// Sends each recorded request of a service, and reads what belongs there.
fn replay<T: DeserializeOwned>(stream: &mut UnixStream, prefix: &str) -> usize {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/tests/corpus/v1");
    let mut count = 0_u8;
    for file in std::fs::read_dir(corpus).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with(prefix) {
            continue;
        }
        count += 1;
        // A request's head: the time that is left, nobody's trace, and its number.
        let mut head = vec![0, 2, 0];
        head.extend([0; 16]);
        head.extend([0, 1, count]);
        let recorded = std::fs::read(&path).unwrap();
        let body = [&head, &recorded[PREFIX..]].concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length[..], &body].concat()).unwrap();
        loop {
            match receive::<ServerFrame<T>>(stream) {
                ServerFrame::Progress(..) => {}
                ServerFrame::Reply(reply) => {
                    assert_eq!(reply.request_id, u64::from(count), "{name}");
                    break;
                }
            }
        }
    }
    count.into()
}

#[test]
fn the_oldest_recorded_requests_are_answered_at_both_doors() {
    let scene = Scene::new();
    let guest = scene.guest();
    let at_the_socket = || UnixStream::connect(scene.daemon.socket()).unwrap();
    let on_the_bus = || {
        let answer = guest.call(ROOT, NAME, "OpenChannel", &()).unwrap();
        let channel: zbus::OwnedFd = answer.body().deserialize().unwrap();
        UnixStream::from(OwnedFd::from(channel))
    };
    let doors: [&dyn Fn() -> UnixStream; 2] = [&at_the_socket, &on_the_bus];
    for open in doors {
        for (service, prefix) in [
            (Service::Custody, "custody-request-"),
            (Service::Agent, "agent-request-"),
            (Service::Admin, "admin-request-"),
        ] {
            let mut stream = open();
            greet(&mut stream, service);
            let count = match service {
                Service::Custody => replay::<CustodyResponse>(&mut stream, prefix),
                Service::Agent => replay::<AgentResponse>(&mut stream, prefix),
                Service::Admin => replay::<AdminResponse>(&mut stream, prefix),
            };
            assert!(count > 2, "{prefix}");
        }
    }
}
