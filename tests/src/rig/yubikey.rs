//! Virtual YubiKeys in the readers of a pcscd of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use mlskeyd_virtual_yubikey::control::{FingerOrder, Mishap, Order, Report};

use super::{Process, Stage, with_input};

/// The PIN of cards that were made ready.
pub const PIN: &str = "271828";
/// Their PUK.
pub const PUK: &str = "31415926";

/// A pcscd, and the cards that somebody holds: card 0 is the first that was made. There
/// are two readers, 0 and 1.
#[derive(Debug)]
pub struct YubiKeys {
    process: Process,
    socket: PathBuf,
    ctl: PathBuf,
    cards: usize,
}

impl YubiKeys {
    /// Starts pcscd; there is no card yet.
    ///
    /// # Panics
    /// If pcscd or vpcd is not installed.
    pub fn new(stage: &Stage) -> Self {
        let socket = stage.path("pcscd");
        let mut command = Command::new(&stage.programs().yubikey);
        command.arg(&socket);
        let mut process = Process::start("virtual-yubikey", command, &stage.path("yubikey.log"));
        process.expect_line("ready");
        Self {
            process,
            socket,
            ctl: stage.programs().ctl.clone(),
            cards: 0,
        }
    }

    /// A new card of this firmware, which is in no reader yet: its number.
    pub fn make(&mut self, serial: u32, version: [u8; 3]) -> usize {
        self.order(&Order::Make { serial, version });
        self.cards += 1;
        self.cards - 1
    }

    /// Puts a card into a reader.
    pub fn insert(&mut self, card: usize, reader: usize) {
        self.order(&Order::Insert { card, reader });
    }

    /// Pulls the card out of a reader.
    pub fn remove(&mut self, reader: usize) {
        self.order(&Order::Remove { reader });
    }

    /// Pulls it out once so many more commands are done; `done`: the one after them is,
    /// too, and its answer is lost.
    pub fn pull_at(&mut self, reader: usize, after: u32, done: bool) {
        let mishap = if done {
            Mishap::PulledWhenDone
        } else {
            Mishap::Pulled
        };
        self.order(&Order::HappensAt {
            reader,
            after,
            mishap,
        });
    }

    /// It loses its power for a moment once so many more commands are done, which pcscd
    /// tells nobody.
    pub fn reset_at(&mut self, reader: usize, after: u32) {
        let mishap = Mishap::Reset;
        self.order(&Order::HappensAt {
            reader,
            after,
            mishap,
        });
    }

    /// Tells the finger what to do.
    pub fn finger(&mut self, card: usize, finger: FingerOrder) {
        self.order(&Order::Finger { card, finger });
    }

    /// The certificate that a card's attestation leads to, in PEM.
    pub fn root(&mut self, card: usize) -> String {
        match self.order(&Order::Root { card }) {
            Report::Root(pem) => pem,
            other => panic!("{other:?}"),
        }
    }

    /// What is in a card that is not secret.
    pub fn snapshot(&mut self, card: usize) -> Vec<(String, String)> {
        match self.order(&Order::Snapshot { card }) {
            Report::Snapshot(snapshot) => snapshot,
            other => panic!("{other:?}"),
        }
    }

    /// The tries that its PIN has left.
    pub fn tries(&mut self, card: usize) -> u8 {
        match self.order(&Order::Tries { card }) {
            Report::Tries(tries) => tries,
            other => panic!("{other:?}"),
        }
    }

    /// INS, P1 and P2 of the commands that reached it since it was asked last.
    pub fn seen(&mut self, card: usize) -> Vec<[u8; 3]> {
        match self.order(&Order::Seen { card }) {
            Report::Seen(seen) => seen,
            other => panic!("{other:?}"),
        }
    }

    /// Puts data into an object, both in hexadecimal.
    pub fn put(&mut self, card: usize, object: &str, data: &str) {
        let (object, data) = (object.to_owned(), data.to_owned());
        self.order(&Order::Put { card, object, data });
    }

    /// Has a slot have another key of the same kind, as if somebody had made it there.
    pub fn remake(&mut self, card: usize, slot: u8) {
        self.order(&Order::Remake { card, slot });
    }

    /// Has a card take the factory's management key as one of 3DES.
    pub fn use_3des(&mut self, card: usize) {
        self.order(&Order::Old3Des { card });
    }

    /// Is there a card in a reader?
    pub fn is_in(&mut self, reader: usize) -> bool {
        match self.order(&Order::IsIn { reader }) {
            Report::IsIn(is_in) => is_in,
            other => panic!("{other:?}"),
        }
    }

    /// Another program has a card for itself, until [`let_go`](Self::let_go).
    pub fn hold(&mut self, reader: usize) {
        self.order(&Order::Hold { reader });
    }

    /// It lets go of it.
    pub fn let_go(&mut self) {
        self.order(&Order::LetGo);
    }

    /// Another program sends commands, in hexadecimal: what the card answers.
    pub fn disturb(&mut self, reader: usize, commands: &[&str]) -> Vec<String> {
        let commands = commands.iter().map(|command| (*command).to_owned());
        let commands = commands.collect();
        match self.order(&Order::Disturb { reader, commands }) {
            Report::Answers(answers) => answers,
            other => panic!("{other:?}"),
        }
    }

    /// Lets time pass for a card, in seconds.
    pub fn wait(&mut self, card: usize, seconds: u32) {
        self.order(&Order::Wait { card, seconds });
    }

    /// Ends pcscd at once, and starts it again.
    pub fn restart_pcscd(&mut self) {
        self.order(&Order::RestartPcscd);
    }

    /// Where clients find pcscd.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A program that finds pcscd.
    pub fn client(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("PCSCLITE_CSOCK_NAME", &self.socket);
        command
    }

    /// Gets the card ready that is in a reader: PIN, PUK, and what `mlskeyctl provision
    /// yubikey` is told beside that. What it says.
    ///
    /// # Errors
    /// What it wrote to standard error.
    pub fn provision(&self, more: &[&str]) -> Result<serde_json::Value, String> {
        self.provision_with(more, &format!("{PIN}\n{PUK}\n"))
    }

    /// The same, with these answers.
    ///
    /// # Errors
    /// The same.
    pub fn provision_with(
        &self,
        more: &[&str],
        answers: &str,
    ) -> Result<serde_json::Value, String> {
        let mut command = self.client(&self.ctl);
        command.args(["provision", "yubikey", "--json"]).args(more);
        let output = with_input(command, answers);
        if output.status.success() {
            return Ok(serde_json::from_slice(&output.stdout).expect("JSON"));
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// A device for the daemon's configuration, with more settings.
    pub fn device(name: &str, more: &str) -> String {
        format!("[[devices]]\nname = {name:?}\nkind = \"yubikey\"\n{more}\n")
    }

    fn order(&mut self, order: &Order) -> Report {
        let line = serde_json::to_string(order).expect("an order");
        assert!(
            self.process.write(format!("{line}\n").as_bytes()),
            "it ended"
        );
        let answer = self.process.line().expect("an answer");
        serde_json::from_str(&answer).expect("a report")
    }
}
