//! Starts a pcscd of its own, and does with cards what it is told.
//!
//! `virtual-yubikey SOCKET`: where clients of pcscd find it (`PCSCLITE_CSOCK_NAME`). It
//! starts itself once more in namespaces of its own, where it may mount and listen; all
//! ends with it, and it with its standard input.
#![allow(clippy::print_stdout, reason = "it answers on standard output")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{BufRead, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use mlskeyd_virtual_yubikey::card::Card;
use mlskeyd_virtual_yubikey::control::{Order, Report};
use mlskeyd_virtual_yubikey::reader::{Held, Inserted};
use pcsc::{ReaderState, State};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The port of the first of two readers; the other one has the next.
const FIRST_PORT: u16 = 35_963;
const READERS: usize = 2;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [socket] => Err(unshared(socket).into()),
        [inside, socket] if inside == "--inside" => Desk::new(socket.as_ref())?.serve(),
        _ => Err("usage: virtual-yubikey SOCKET".into()),
    }
}

/// Goes on inside.
fn unshared(socket: &std::ffi::OsStr) -> std::io::Error {
    let own = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--net", "--pid"])
        .args(["--fork", "--kill-child"])
        .arg(own)
        .arg("--inside")
        .arg(socket)
        .env("PCSCLITE_CSOCK_NAME", socket)
        .exec()
}

/// What is on the table: pcscd, and cards.
struct Desk {
    listener: UnixListener,
    /// Beside the socket.
    directory: PathBuf,
    pcscd: Child,
    cards: Vec<Arc<Held>>,
    inserted: BTreeMap<usize, (usize, Inserted)>,
    /// A card that another program has.
    held: Option<pcsc::Card>,
}

impl Desk {
    fn new(socket: &std::path::Path) -> Result<Self> {
        succeed(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        succeed(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]))?;
        fs::create_dir_all("/run/pcscd")?;
        // One of vpcd's readers has two places for cards, each with a port; it knows no
        // second one.
        let reader = format!(
            "FRIENDLYNAME \"Yubico YubiKey OTP+FIDO+CCID\"\nDEVICENAME /dev/null:{FIRST_PORT}\nLIBPATH {}\nCHANNELID {FIRST_PORT}\n",
            library()?
        );
        fs::write("/run/reader.conf", reader)?;
        let listener = UnixListener::bind(socket)?;
        let pcscd = start_pcscd(&listener)?;
        Ok(Self {
            listener,
            directory: socket.with_extension("certificates"),
            pcscd,
            cards: Vec::new(),
            inserted: BTreeMap::new(),
            held: None,
        })
    }

    fn serve(mut self) -> Result<()> {
        let mut out = std::io::stdout();
        writeln!(out, "ready")?;
        for line in std::io::stdin().lock().lines() {
            let report = self.follow(serde_json::from_str(&line?)?)?;
            writeln!(out, "{}", serde_json::to_string(&report)?)?;
            out.flush()?;
        }
        Ok(())
    }

    fn follow(&mut self, order: Order) -> Result<Report> {
        match order {
            Order::Make { serial, version } => {
                let workshop = self.directory.join(self.cards.len().to_string());
                let held = Held::new(Card::new(serial, version, workshop));
                self.cards.push(Arc::new(held));
            }
            Order::Insert { card, reader } => {
                let held = Arc::clone(self.card(card)?);
                self.inserted.remove(&reader);
                let inserted = Inserted::new(port(reader)?, held)?;
                self.inserted.insert(reader, (card, inserted));
                see(reader, State::PRESENT)?;
            }
            Order::Remove { reader } => {
                self.inserted.remove(&reader);
                see(reader, State::EMPTY)?;
            }
            Order::HappensAt {
                reader,
                after,
                mishap,
            } => {
                let (_, inserted) = self.inserted.get(&reader).ok_or("no card is there")?;
                inserted.happens_at(after, mishap);
            }
            Order::Wait { card, seconds } => self.card(card)?.card().wait(seconds),
            Order::Finger { card, finger } => self.card(card)?.point(finger),
            Order::Root { card } => {
                let root = self.card(card)?.card().root();
                return Ok(Report::Root(root.ok_or("openssl is not installed")?));
            }
            Order::Snapshot { card } => {
                return Ok(Report::Snapshot(self.card(card)?.card().snapshot()));
            }
            Order::Tries { card } => {
                return Ok(Report::Tries(self.card(card)?.card().tries()));
            }
            Order::Put { card, object, data } => {
                let (object, data) = (hex::decode(object)?, hex::decode(data)?);
                self.card(card)?.card().put(object, data);
            }
            Order::Remake { card, slot } => self.card(card)?.card().remake(slot),
            Order::Old3Des { card } => self.card(card)?.card().use_3des(),
            Order::IsIn { reader } => {
                let is_in = self.inserted.get(&reader).is_some_and(|(_, it)| it.is_in());
                return Ok(Report::IsIn(is_in));
            }
            Order::Hold { reader } => {
                self.held = Some(connect(reader, pcsc::ShareMode::Exclusive)?);
            }
            Order::LetGo => self.held = None,
            Order::Disturb { reader, commands } => {
                let card = connect(reader, pcsc::ShareMode::Shared)?;
                let mut answers = Vec::new();
                for command in commands {
                    let mut buffer = [0; 264];
                    let answer = card.transmit(&hex::decode(command)?, &mut buffer)?;
                    answers.push(hex::encode(answer));
                }
                card.disconnect(pcsc::Disposition::LeaveCard)
                    .map_err(|(_, error)| error)?;
                return Ok(Report::Answers(answers));
            }
            Order::Seen { card } => return Ok(Report::Seen(self.card(card)?.take_seen())),
            Order::RestartPcscd => {
                let there: Vec<_> = std::mem::take(&mut self.inserted)
                    .into_iter()
                    .map(|(reader, (card, _))| (reader, card))
                    .collect();
                self.pcscd.kill()?;
                self.pcscd.wait()?;
                self.pcscd = start_pcscd(&self.listener)?;
                for (reader, card) in there {
                    self.follow(Order::Insert { card, reader })?;
                }
            }
        }
        Ok(Report::Done)
    }

    fn card(&self, card: usize) -> Result<&Arc<Held>> {
        Ok(self.cards.get(card).ok_or("there is no such card")?)
    }
}

fn port(reader: usize) -> Result<u16> {
    if reader >= READERS {
        return Err("there is no such reader".into());
    }
    Ok(FIRST_PORT.saturating_add(u16::try_from(reader)?))
}

/// Connects to a card, as any program does.
fn connect(reader: usize, mode: pcsc::ShareMode) -> Result<pcsc::Card> {
    let context = pcsc::Context::establish(pcsc::Scope::System)?;
    let readers = context.list_readers_owned()?;
    let reader = readers.get(reader).ok_or("there is no such reader")?;
    Ok(context.connect(reader, mode, pcsc::Protocols::ANY)?)
}

/// Waits until pcscd sees that a reader is so.
fn see(reader: usize, wanted: State) -> Result<()> {
    let context = pcsc::Context::establish(pcsc::Scope::System)?;
    let readers = context.list_readers_owned()?;
    let reader = readers.get(reader).ok_or("there is no such reader")?;
    let mut states = [ReaderState::new(reader.as_c_str(), State::UNAWARE)];
    loop {
        context.get_status_change(None, &mut states)?;
        let [state] = &mut states;
        if state.event_state().contains(wanted) {
            return Ok(());
        }
        state.sync_current_state();
    }
}

fn library() -> Result<String> {
    let known = [
        "/usr/lib/pcsc/drivers/serial/libifdvpcd.so",
        "/usr/lib64/pcsc/drivers/serial/libifdvpcd.so",
    ];
    let found = known.iter().find(|path| fs::exists(path).unwrap_or(false));
    Ok((*found.ok_or("vpcd (package vsmartcard-vpcd) is not installed")?).to_owned())
}

fn start_pcscd(listener: &UnixListener) -> Result<Child> {
    // It takes its socket as systemd passes one: as descriptor 3.
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" --foreground --config /run/reader.conf";
    let program = ["/usr/sbin/pcscd", "/usr/bin/pcscd"];
    let program = program
        .iter()
        .find(|path| fs::exists(path).unwrap_or(false));
    let pcscd = Command::new("sh")
        .args(["-c", script])
        .arg(program.ok_or("pcscd is not installed")?)
        .stdin(Stdio::from(OwnedFd::from(listener.try_clone()?)))
        .stdout(Stdio::null())
        .spawn()?;
    // It answers when its readers listen.
    pcsc::Context::establish(pcsc::Scope::System)?;
    Ok(pcscd)
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {status}").into())
}
