//! A connection to a bus that one process makes and another uses: by hand, since it has to
//! outlive the process that has connected (D-Bus Specification, Message Protocol).

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

const BUS: &str = "org.freedesktop.DBus";
const CUSTODY: &str = "org.mlskeyd.Custody1";

/// Connects to the bus at this address, and says hello.
pub(crate) fn connect(address: &str) -> UnixStream {
    let path = address.strip_prefix("unix:path=").expect("a path");
    let mut bus = UnixStream::connect(path).expect("a bus");
    let uid = rustix::process::geteuid().as_raw().to_string();
    let hello = format!("\0AUTH EXTERNAL {}\r\n", hex::encode(uid));
    bus.write_all(hello.as_bytes()).expect("it reads");
    assert!(line(&mut bus).starts_with("OK "));
    bus.write_all(b"NEGOTIATE_UNIX_FD\r\n").expect("it reads");
    assert_eq!(line(&mut bus), "AGREE_UNIX_FD");
    bus.write_all(b"BEGIN\r\n").expect("it reads");
    let hello = call("/org/freedesktop/DBus", "Hello", BUS, BUS);
    bus.write_all(&hello).expect("it reads");
    answer(&bus).expect("a name");
    bus
}

/// Has the daemon list what is its own, and answers whether it does.
pub(crate) fn list(bus: &mut UnixStream) -> bool {
    let manager = "org.freedesktop.DBus.ObjectManager";
    let list = call(
        "/org/mlskeyd/Custody1",
        "GetManagedObjects",
        CUSTODY,
        manager,
    );
    bus.write_all(&list).expect("it reads");
    answer(bus).is_ok()
}

/// Has the daemon give a channel to whom the bus takes this connection for.
pub(crate) fn open_channel(bus: &mut UnixStream) -> UnixStream {
    let open = call("/org/mlskeyd/Custody1", "OpenChannel", CUSTODY, CUSTODY);
    bus.write_all(&open).expect("it reads");
    let answer = answer(bus).expect("a channel");
    answer.expect("a descriptor").into()
}

fn call(path: &str, member: &str, name: &str, interface: &str) -> Vec<u8> {
    let call = zbus::Message::method_call(path, member);
    let call = call.destination(name).interface(interface).build(&());
    call.expect("a message").data().to_vec()
}

fn line(bus: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        bus.read_exact(&mut byte).expect("it answers");
        line.extend(byte);
    }
    String::from_utf8_lossy(&line).trim_end().to_owned()
}

/// The descriptor in the next answer, if there is one, whatever comes before it; or that it is
/// an error.
fn answer(bus: &UnixStream) -> Result<Option<OwnedFd>, ()> {
    const ANSWER: u8 = 2;
    const ERROR: u8 = 3;
    loop {
        let (head, fd) = receive(bus, 16);
        let number = |at: usize| {
            let bytes = head[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes) as usize
        };
        let rest = number(12).next_multiple_of(8) + number(4);
        let (_, late) = receive(bus, rest);
        match head[1] {
            ANSWER => return Ok(fd.or(late)),
            ERROR => return Err(()),
            _ => {}
        }
    }
}

/// So many bytes, and the descriptor that came along.
fn receive(bus: &UnixStream, count: usize) -> (Vec<u8>, Option<OwnedFd>) {
    let (mut bytes, mut fd) = (vec![0; count], None);
    let mut at = 0;
    while at < count {
        let mut space = [MaybeUninit::uninit(); 64];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes[at..])];
        let received = recvmsg(bus, &mut parts, &mut control, RecvFlags::empty());
        at += received.expect("it answers").bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                fd = fd.or(fds.last());
            }
        }
    }
    (bytes, fd)
}
