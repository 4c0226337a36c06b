use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use super::*;

/// A process that runs until it is dropped.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        let sleep = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .spawn();
        Self(sleep.unwrap())
    }

    fn peer(&self) -> Result<Peer, Unseen> {
        Peer::by_id(i32::try_from(self.0.id()).ok())
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.end();
    }
}

fn own_peer(socket: &UnixStream) -> Peer {
    Peer::of(socket.as_fd(), None).unwrap()
}

#[test]
fn the_peer_of_a_socket_is_its_process() {
    let (socket, _peer) = UnixStream::pair().unwrap();
    let peer = own_peer(&socket);
    assert_eq!(u32::try_from(peer.pid).unwrap(), std::process::id());
    let seen = peer.look().unwrap();
    assert!(seen.exact);
    assert_eq!(seen.program.path, std::env::current_exe().unwrap());
    assert!(seen.is_same(&peer.look().unwrap()));
}

#[test]
fn a_process_that_has_ended_is_gone() {
    let mut sleeper = Sleeper::new();
    let peer = sleeper.peer().unwrap();
    peer.look().unwrap();
    sleeper.end();
    assert!(matches!(peer.look(), Err(Unseen::Gone)));
    assert!(matches!(sleeper.peer(), Err(Unseen::Gone)));
}

/// Not waited for, it has its id still, but nothing that it is known by.
#[test]
fn a_process_that_nobody_waited_for_is_gone() {
    let mut sleeper = Sleeper::new();
    let peer = sleeper.peer().unwrap();
    sleeper.0.kill().unwrap();
    let mut ended = [PollFd::new(&peer.pidfd, PollFlags::IN)];
    poll(&mut ended, None).unwrap();
    assert!(matches!(peer.look(), Err(Unseen::Gone)));
    assert!(matches!(sleeper.peer(), Err(Unseen::Gone)));
}

#[test]
fn two_processes_of_one_program_are_two() {
    let (one, other) = (Sleeper::new(), Sleeper::new());
    let mut one = one.peer().unwrap().look().unwrap();
    let other = other.peer().unwrap().look().unwrap();
    // They may have begun within one tick.
    one.started = other.started.wrapping_add(1);
    assert!(!one.is_same(&other));
    one.started = other.started;
    assert!(one.is_same(&other));
    let (socket, _peer) = UnixStream::pair().unwrap();
    let mut own = own_peer(&socket).look().unwrap();
    own.started = other.started;
    assert!(!own.is_same(&other), "another program");
}

#[test]
fn what_another_process_writes_is_not_taken() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let peer = own_peer(&theirs);
    peer.tell_writers(theirs.as_fd(), true).unwrap();
    ours.write_all(b"own").unwrap();
    let mut room = [0; 16];
    assert_eq!(peer.receive(theirs.as_fd(), &mut room, None).unwrap(), 3);
    let mut child = Command::new("echo");
    child.stdout(OwnedFd::from(ours.try_clone().unwrap()));
    child.status().unwrap();
    let foreign = peer.receive(theirs.as_fd(), &mut room, None).unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::PermissionDenied);
    drop((child, ours));
    assert_eq!(peer.receive(theirs.as_fd(), &mut room, None).unwrap(), 0);
}

/// As on a kernel before 6.5.
#[test]
fn without_the_kernels_help_anybody_may_have_written() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let peer = Sleeper::new();
    let peer = peer.peer().unwrap();
    peer.tell_writers(theirs.as_fd(), true).unwrap();
    ours.write_all(b"own").unwrap();
    assert_eq!(peer.receive(theirs.as_fd(), &mut [0; 16], None).unwrap(), 3);
    assert!(!peer.look().unwrap().exact);
}

#[test]
fn a_name_with_anything_in_it_hides_no_start() {
    let fields = |from: u32| {
        (from..53)
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    for name in ["sleep", "a) S 1 2 3 (", ") ", ""] {
        let stat = format!("4711 ({name}) S {}", fields(4));
        assert_eq!(started(&stat), Some(22), "{name:?}");
    }
    assert_eq!(started("4711 (sleep) S 1"), None);
    assert_eq!(started(""), None);
}
