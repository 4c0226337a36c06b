//! A process that poses as another one at the daemon's socket. It does what its arguments
//! say, one after the other, on one connection: its own, or the one that it finds as its
//! standard input.
//!
//! - `connect SOCKET`, or `channel BUS`: a connection, or one that it is given on a bus at that address;
//! - `connect-bus BUS`, then `ask-for-channel`: the same in two steps; `list`: has the daemon list there what is its own;
//! - `hello`, `challenge`, `echo` (`echo-from-a-thread`), `answer`: the handshake,
//!   of which `challenge` and `answer` read what the daemon says, and the latter prints it;
//! - `nonce HEX`: it was told the nonce;
//! - `say WORD`: prints it; `go`: waits for a line on standard input, or its end; `await FILE`: until it is there;
//! - `child PROGRAM ARGUMENTS --`: starts a program with the connection as its standard input;
//!   `child-of UID ...`: as this user;
//! - `exec PROGRAM ARGUMENTS`: becomes this program, with the connection and the nonce;
//! - `hide`: lets no other process of its user look at it;
//! - `identity SOCKET NAME`: makes an identity on a connection of its own, and prints what came of it;
//! - `rest`: does nothing any more.

mod bus;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use mlskeyd_protocol::client::{Call, Client, ClientConfig};
use mlskeyd_protocol::frame::{decode, encode};
use mlskeyd_protocol::handshake::{Echo, Hello, Nonce, Service, Welcome};
use mlskeyd_protocol::v1::{Bytes, CreateIdentity, Credential, Placement, SignatureScheme};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use serde::Serialize;

/// How long it looks away before it looks for a file again.
const BLINK: Duration = Duration::from_millis(2);

#[derive(Default)]
struct Impostor {
    connection: Option<UnixStream>,
    nonce: Nonce,
}

impl Impostor {
    fn connection(&mut self) -> &mut UnixStream {
        self.connection.get_or_insert_with(|| {
            let inherited = io::stdin().as_fd().try_clone_to_owned();
            inherited.expect("standard input is open").into()
        })
    }

    /// The daemon may have closed the connection.
    fn send(&mut self, message: &impl Serialize) {
        let frame = encode(message, 1024).expect("a short message");
        let _ = self.connection().write_all(&frame);
    }

    fn receive(&mut self) -> Option<Welcome> {
        let mut length = [0; 4];
        self.connection().read_exact(&mut length).ok()?;
        let length = u32::from_be_bytes(length).try_into().ok()?;
        let mut frame = vec![0; length];
        self.connection().read_exact(&mut frame).ok()?;
        decode(&frame).ok()
    }

    fn challenge(&mut self) {
        match self.receive() {
            Some(Welcome::Challenge { nonce }) => self.nonce = nonce,
            other => say(other),
        }
    }

    /// Starts a program on this connection.
    fn program(&mut self, program: &str, arguments: &[String]) -> Command {
        let socket = self.connection().try_clone().expect("one more descriptor");
        let mut command = Command::new(program);
        command
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .args(["nonce", &hex::encode(self.nonce)])
            .args(arguments);
        command
    }
}

/// Prints the daemon's answer in one line.
fn say(answer: Option<Welcome>) {
    match answer {
        Some(Welcome::Agreed { uid, .. }) => println!("agreed {uid}"),
        Some(Welcome::Refused(reason)) => println!("refused: {reason}"),
        Some(other) => println!("{other:?}"),
        None => println!("closed"),
    }
}

fn make_identity(socket: &str, name: &str) {
    let client = Client::new(ClientConfig::new(socket, "impostor"));
    let request = CreateIdentity {
        name: name.to_owned(),
        credential: Credential::Basic(Bytes::from(name.as_bytes())),
        scheme: SignatureScheme::Ed25519,
        placement: Placement::default(),
    };
    match client.create_identity(request, &Call::default()) {
        Ok(identity) => println!("made {}", identity.key),
        Err(error) => println!("not made: {error:?}"),
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut me = Impostor::default();
    let mut rest = arguments.as_slice();
    let mut user = None;
    while let Some((step, after)) = rest.split_first() {
        let word = || after.first().expect("a word follows").as_str();
        let mut used = 0;
        match step.as_str() {
            "connect" => {
                me.connection = Some(UnixStream::connect(word()).expect("the daemon listens"));
                used = 1;
            }
            "channel" => {
                me.connection = Some(bus::open_channel(&mut bus::connect(word())));
                used = 1;
            }
            "connect-bus" => {
                me.connection = Some(bus::connect(word()));
                used = 1;
            }
            "list" => println!("listed: {}", bus::list(me.connection())),
            "ask-for-channel" => me.connection = Some(bus::open_channel(me.connection())),
            "hello" => me.send(&Hello::new(Service::Custody, "impostor")),
            "challenge" => me.challenge(),
            "nonce" => {
                hex::decode_to_slice(word(), &mut me.nonce).expect("a nonce");
                used = 1;
            }
            "echo" => me.send(&Echo { nonce: me.nonce }),
            "echo-from-a-thread" => std::thread::scope(|scope| {
                scope.spawn(|| me.send(&Echo { nonce: me.nonce }));
            }),
            "answer" => say(me.receive()),
            "say" => {
                println!("{}", word());
                used = 1;
            }
            "go" => {
                let _ = io::stdin().read_line(&mut String::new());
            }
            "await" => {
                while !Path::new(word()).exists() {
                    std::thread::sleep(BLINK);
                }
                used = 1;
            }
            "child-of" => {
                user = Some(word().parse().expect("a user id"));
                used = 1;
            }
            "child" => {
                let end = after.iter().position(|word| word == "--");
                used = end.expect("-- ends its arguments") + 1;
                let mut command = me.program(word(), &after[1..used - 1]);
                if let Some(user) = user.take() {
                    command.current_dir("/").gid(user).uid(user);
                }
                // Whoever started this waits for both.
                #[expect(clippy::zombie_processes)]
                command.spawn().expect("a child starts");
            }
            "exec" => panic!("{}", me.program(word(), &after[1..]).exec()),
            "hide" => set_dumpable_behavior(DumpableBehavior::NotDumpable).expect("it hides"),
            "identity" => {
                make_identity(&after[0], &after[1]);
                used = 2;
            }
            "rest" => loop {
                std::thread::park();
            },
            other => panic!("{other} is no step"),
        }
        rest = &after[used..];
    }
}
