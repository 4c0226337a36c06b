//! The command line, and the commands that a participant reads.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use clap::Parser;
use openmls::prelude::Ciphersuite;

use crate::hub;
use crate::keys::{Custody, Keys, Stock};
use crate::participant::Participant;
use crate::store::Store;

/// Errors are for the person who reads the answer.
pub(crate) type Result<T, E = String> = std::result::Result<T, E>;

/// Turns any error into the text that a person reads.
pub(crate) trait Readable<T> {
    fn readable(self) -> Result<T>;
}

impl<T, E: std::fmt::Display> Readable<T> for std::result::Result<T, E> {
    fn readable(self) -> Result<T> {
        self.map_err(|error| error.to_string())
    }
}

/// A small chat over MLS with its private keys in custody.
#[derive(Parser)]
#[command(
    after_help = "Commands of a participant, one a line: keypackage, create GROUP, \
    add GROUP NAME, send GROUP TEXT, receive, update GROUP, propose-update GROUP, \
    remove GROUP NAME, external-join GROUP, authenticator GROUP, members GROUP, status, quit"
)]
struct Arguments {
    /// Be the hub: pass messages on, at this socket.
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["name", "dir", "hub"])]
    serve_hub: Option<PathBuf>,
    /// The participant's name.
    #[arg(long, required_unless_present = "serve_hub")]
    name: Option<String>,
    /// The directory of the participant's database.
    #[arg(long, required_unless_present = "serve_hub")]
    dir: Option<PathBuf>,
    /// The hub's socket.
    #[arg(long, required_unless_present = "serve_hub")]
    hub: Option<PathBuf>,
    /// mlskeyd's socket, if it is not where it usually is.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The message bus on which mlskeyd is, and no socket: "system", "session" or an address.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "socket")]
    bus: Option<String>,
    /// The cipher suite: 1, 2 or 3.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=3))]
    suite: u16,
    /// Keep the keys in this process, as without mlskeyd: for comparison.
    #[arg(long)]
    stock: bool,
}

/// Does what the command line says.
pub(crate) fn run() -> Result<()> {
    let arguments = Arguments::parse();
    let (name, dir, hub) = match arguments {
        Arguments {
            serve_hub: Some(socket),
            ..
        } => return hub::serve(&socket),
        Arguments {
            name: Some(name),
            dir: Some(dir),
            hub: Some(hub),
            ..
        } => (name, dir, hub),
        _ => return Err("a participant needs --name, --dir and --hub".to_owned()),
    };
    let suite = Ciphersuite::try_from(arguments.suite).readable()?;
    let connection = Store::open(&dir)?;
    let store = Store::new(&connection);
    let hub = hub::Client::new(hub);
    if arguments.stock {
        let keys = Stock::new(&connection, &name, suite);
        converse(&Participant::new(name, suite, keys, store, hub))
    } else {
        let keys = Custody::new(&connection, &name, suite, arguments.socket, arguments.bus)?;
        converse(&Participant::new(name, suite, keys, store, hub))
    }
}

/// Reads commands and answers them, to the end of the input.
fn converse<K: Keys>(participant: &Participant<'_, K>) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line.readable()?;
        let line = line.trim();
        if line == "quit" {
            println!("ok");
            break;
        }
        if !line.is_empty() {
            let answer = match obey(participant, line) {
                Ok(text) if text.is_empty() => "ok".to_owned(),
                Ok(text) => format!("ok {text}"),
                Err(text) => format!("error {}", text.replace('\n', " ")),
            };
            println!("{answer}");
        }
        std::io::stdout().flush().readable()?;
    }
    Ok(())
}

fn obey<K: Keys>(participant: &Participant<'_, K>, line: &str) -> Result<String> {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (group, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let done = |()| String::new();
    participant.explained(match (command, group, text) {
        ("keypackage", "", "") => participant.publish_key_package().map(done),
        ("receive", "", "") => participant.receive(|event| println!("{event}")).map(done),
        ("status", "", "") => participant.status(),
        (_, "", _) => Err(format!("no such command, or it needs a group: {command}")),
        ("create", group, "") => participant.create(group).map(done),
        ("update", group, "") => participant.update(group).map(done),
        ("propose-update", group, "") => participant.propose_update(group).map(done),
        ("external-join", group, "") => participant.join_externally(group).map(done),
        ("authenticator", group, "") => participant.authenticator(group),
        ("members", group, "") => participant.members(group),
        ("add", group, name) if !name.is_empty() => participant.add(group, name).map(done),
        ("remove", group, name) if !name.is_empty() => participant.remove(group, name).map(done),
        ("send", group, text) if !text.is_empty() => participant.send(group, text).map(done),
        _ => Err(format!(
            "no such command, or a wrong number of words: {command}"
        )),
    })
}
