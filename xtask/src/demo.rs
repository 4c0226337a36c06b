//! `cargo xtask demo`: three people chat over MLS, each in a process of their own, and a
//! private daemon holds their keys.
//!
//! The whole story is in [`Demo::play`]; the command lines of the programs are in
//! [`Programs`] and nowhere else.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cargo;
use crate::stage::{Program, Stage};

mod device;
mod door;

pub(crate) use device::Device;
pub(crate) use door::Door;

use door::Bus;

const GROUP: &str = "team";

/// Builds the programs, then runs the demo.
pub(crate) fn build_and_run(device: Device, door: Door) -> Result<(), String> {
    println!("Building the daemon and the chat example ...");
    let build = [
        "build",
        "-p",
        "mlskeyd",
        "-p",
        "mlskeyd-provider",
        "--bins",
        "--example",
        "chat",
    ];
    let played: &[&str] = match device {
        Device::YubiKey => &["-p", "mlskeyd-virtual-yubikey"],
        _ => &[],
    };
    let build = [&build, played].concat();
    let status = cargo(&build)
        .status()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if !status.success() {
        return Err("the build failed: see above".to_owned());
    }
    run(device, door)
}

/// Runs the demo with the programs that are already built. Its last line is `demo: ok`.
pub(crate) fn run(device: Device, door: Door) -> Result<(), String> {
    let stage = Stage::open("mlskeyd-demo")?;
    let prepared = device.prepare(&stage)?;
    let mut demo = Demo {
        programs: Programs::built(&stage, device, door, &prepared)?,
        device,
        bus: match door {
            Door::Socket => None,
            Door::Dbus => Some(Bus::start(&stage)?),
        },
        _device: prepared.program,
        stage,
        step: String::new(),
        colours: colours(),
    };
    match demo.play() {
        Ok(()) => {
            drop(demo);
            println!("\ndemo: ok");
            Ok(())
        }
        Err(error) => {
            let step = &demo.step;
            Err(format!(
                "the demo failed at '{step}': {error}\n\nThe ends of the logs:\n{}",
                demo.stage.logs()
            ))
        }
    }
}

/// Colours are for people: on a terminal, unless they asked for none (no-color.org).
fn colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Where the programs are, and how each is called.
struct Programs {
    directory: PathBuf,
    config: PathBuf,
    /// How the daemon is found there.
    door: [OsString; 2],
    hub: PathBuf,
    suite: &'static str,
    apps: PathBuf,
    environment: Option<(&'static str, PathBuf)>,
}

impl Programs {
    /// The programs beside this one, and a fresh configuration for the daemon.
    fn built(
        stage: &Stage,
        device: Device,
        door: Door,
        prepared: &device::Prepared,
    ) -> Result<Self, String> {
        let table = &prepared.table;
        let directory = build_directory()?;
        let (config, socket) = (stage.path("mlskeyd.toml"), stage.path("mlskeyd.sock"));
        let (section, door) = match door {
            Door::Socket => (String::new(), ["--socket".into(), socket.clone().into()]),
            Door::Dbus => {
                let address = Bus::address(stage);
                let section = format!("[dbus]\nbus = {address:?}\n\n");
                (section, ["--bus".into(), address.into()])
            }
        };
        let text = format!(
            "state_dir = {:?}\nsocket = {:?}\n\n[store_key]\nfile = {:?}\ncreate = true\n\n{section}{table}",
            stage.path("state"),
            socket,
            stage.path("store.key"),
        );
        std::fs::write(&config, text)
            .map_err(|error| format!("cannot write {}: {error}", config.display()))?;
        Ok(Self {
            directory,
            config,
            door,
            hub: stage.path("hub.sock"),
            suite: device.suite(),
            apps: stage.path("apps"),
            environment: prepared.environment.clone(),
        })
    }

    /// The daemon. It prints `ready` once it serves.
    fn daemon(&self) -> Command {
        let mut command = Command::new(self.directory.join("mlskeyd"));
        command
            .arg("--config")
            .arg(&self.config)
            .arg("--notify-stdout")
            .envs(self.environment.clone());
        command
    }

    /// The delivery service, which passes messages on. It prints `ready` once it serves.
    fn hub(&self) -> Command {
        let mut command = self.chat();
        command.arg("--serve-hub").arg(&self.hub);
        command
    }

    /// One person's messenger.
    fn app(&self, name: &str) -> Command {
        let mut command = self.chat();
        command
            .args(["--name", name, "--suite", self.suite])
            .arg("--dir")
            .arg(self.apps.join(name));
        command.args(&self.door).arg("--hub").arg(&self.hub);
        command
    }

    fn chat(&self) -> Command {
        Command::new(self.directory.join("examples/chat"))
    }

    /// The table of keys that the daemon holds.
    fn keys(&self) -> Command {
        let mut command = Command::new(self.directory.join("mlskeyctl"));
        command.args(&self.door).arg("keys").stdin(Stdio::null());
        command
    }
}

/// One person: a name for the transcript, and the running messenger.
struct Person {
    name: &'static str,
    app: Program,
}

struct Demo {
    device: Device,
    programs: Programs,
    /// The bus, if that is the door.
    bus: Option<Bus>,
    /// Before the stage, whose directory it uses.
    _device: Option<Program>,
    stage: Stage,
    /// The heading of what is happening, for an error.
    step: String,
    colours: bool,
}

impl Demo {
    fn play(&mut self) -> Result<(), String> {
        println!(
            "\nThree people chat over MLS (RFC 9420), each with a messenger of their own. The"
        );
        println!("signature, init and leaf private keys of all three are in the daemon.");

        self.heading("The daemon starts");
        std::fs::create_dir(&self.programs.apps)
            .map_err(|error| format!("cannot make a directory: {error}"))?;
        let daemon = self.start_daemon()?;
        self.says("mlskeyd", self.device.announced());
        let mut hub = self.stage.start("hub", self.programs.hub())?;
        expect_ready(&mut hub)?;
        self.says(
            "hub",
            "ready to pass messages on, whose text it cannot read",
        );

        self.heading("Everybody publishes a key package");
        let mut alice = self.arrives("alice")?;
        let mut bob = self.arrives("bob")?;
        let mut carol = self.arrives("carol")?;

        self.heading("Alice makes a group and adds Bob");
        alice.asks(&format!("create {GROUP}"))?;
        self.says("alice", &format!("creates the group '{GROUP}'"));
        alice.asks(&format!("add {GROUP} bob"))?;
        self.says("alice", "adds bob and sends him a Welcome");
        self.receives(&mut bob, None)?;
        self.agree(&mut [&mut alice, &mut bob])?;

        self.heading("They talk");
        self.sends(&mut alice, "Hello Bob, can you read me?", &mut [&mut bob])?;
        self.sends(
            &mut bob,
            "Loud and clear, and nobody else can.",
            &mut [&mut alice],
        )?;

        self.heading("Bob updates his leaf key");
        bob.asks(&format!("update {GROUP}"))?;
        self.says(
            "bob",
            "replaces his leaf key; the old one is of no use any more",
        );
        self.receives(&mut alice, None)?;
        self.agree(&mut [&mut alice, &mut bob])?;

        self.heading("Carol joins");
        alice.asks(&format!("add {GROUP} carol"))?;
        self.says("alice", "adds carol");
        self.receives(&mut bob, None)?;
        self.receives(&mut carol, None)?;
        self.agree(&mut [&mut alice, &mut bob, &mut carol])?;
        self.sends(&mut carol, "Hi both!", &mut [&mut alice, &mut bob])?;

        self.heading("Bob closes his messenger, and starts it again");
        bob.app.quit("quit")?;
        self.says("bob", "is gone");
        self.sends(&mut alice, "Bob, this waits for you.", &mut [&mut carol])?;
        bob = self.opens("bob")?;
        self.says("bob", "is back");
        self.receives(&mut bob, Some("Bob, this waits for you."))?;
        self.sends(&mut bob, "Got it.", &mut [&mut alice, &mut carol])?;

        self.heading("The daemon restarts under running messengers");
        daemon.terminate()?;
        self.says("mlskeyd", "stopped");
        let daemon = self.start_daemon()?;
        self.says("mlskeyd", "ready again");
        self.sends(
            &mut carol,
            "Did anybody notice?",
            &mut [&mut alice, &mut bob],
        )?;
        alice.asks(&format!("update {GROUP}"))?;
        self.says("alice", "replaces her leaf key");
        self.receives(&mut bob, None)?;
        self.receives(&mut carol, None)?;
        self.agree(&mut [&mut alice, &mut bob, &mut carol])?;

        if let Some(bus) = self.bus.take() {
            self.heading("The bus restarts under all of them");
            bus.stop()?;
            self.says("bus", "gone");
            self.sends(
                &mut alice,
                "What we have goes on without it.",
                &mut [&mut bob, &mut carol],
            )?;
            self.bus = Some(Bus::start(&self.stage)?);
            self.says("bus", "back");
            self.await_daemon()?;
            self.says("mlskeyd", "on it again");
        }

        self.heading("Alice removes Carol");
        alice.asks(&format!("remove {GROUP} carol"))?;
        self.says("alice", "removes carol");
        self.receives(&mut bob, None)?;
        self.receives(&mut carol, None)?;
        self.agree(&mut [&mut alice, &mut bob])?;
        self.sends(&mut alice, "Only we two now.", &mut [&mut bob])?;
        self.is_out(&mut carol)?;

        self.heading("What the daemon holds now (mlskeyctl keys)");
        self.list_keys()?;

        self.heading("Everything ends");
        for person in [alice, bob, carol] {
            person.app.quit("quit")?;
        }
        daemon.terminate()?;
        self.says("", "all programs ended by themselves");
        Ok(())
    }

    fn start_daemon(&self) -> Result<Program, String> {
        let mut daemon = self.stage.start("mlskeyd", self.programs.daemon())?;
        expect_ready(&mut daemon)?;
        Ok(daemon)
    }

    fn opens(&self, name: &'static str) -> Result<Person, String> {
        Ok(Person {
            name,
            app: self.stage.start(name, self.programs.app(name))?,
        })
    }

    fn arrives(&self, name: &'static str) -> Result<Person, String> {
        let mut person = self.opens(name)?;
        person.asks("keypackage")?;
        self.says(name, "starts a messenger and publishes a key package");
        Ok(person)
    }

    /// One person writes, the others read exactly that.
    fn sends(&self, from: &mut Person, text: &str, to: &mut [&mut Person]) -> Result<(), String> {
        from.asks(&format!("send {GROUP} {text}"))?;
        self.says(from.name, &format!("writes: {text}"));
        to.iter_mut()
            .try_for_each(|person| self.receives(person, Some(text)))
    }

    /// One person takes what the hub has for them: something, or this very text.
    fn receives(&self, person: &mut Person, text: Option<&str>) -> Result<(), String> {
        let events = person.asks("receive")?.events;
        for event in &events {
            self.says(person.name, &format!("receives {event}"));
        }
        match text {
            None if events.is_empty() => Err(format!("nothing arrived at {}", person.name)),
            Some(text) if !events.iter().any(|event| event.contains(text)) => {
                Err(format!("'{text}' did not arrive at {}", person.name))
            }
            _ => Ok(()),
        }
    }

    /// All of them are in the same epoch with the same secrets, and know each other.
    fn agree(&self, people: &mut [&mut Person]) -> Result<(), String> {
        let names: Vec<&str> = people.iter().map(|person| person.name).collect();
        let mut first: Option<String> = None;
        for person in people.iter_mut() {
            let authenticator = person.asks(&format!("authenticator {GROUP}"))?.text;
            if authenticator.is_empty() {
                return Err(format!("{} has no epoch authenticator", person.name));
            }
            if *first.get_or_insert_with(|| authenticator.clone()) != authenticator {
                return Err(format!(
                    "the epoch authenticators of {} differ",
                    names.join(", ")
                ));
            }
            let members = person.asks(&format!("members {GROUP}"))?;
            let members = [members.events.join(" "), members.text].join(" ");
            if let Some(absent) = names.iter().find(|name| !members.contains(*name)) {
                return Err(format!(
                    "{} does not see {absent} among the members ({members})",
                    person.name
                ));
            }
        }
        let short: String = first.unwrap_or_default().chars().take(16).collect();
        self.says(
            "",
            &format!("{}: same epoch authenticator, {short}...", names.join(", ")),
        );
        Ok(())
    }

    /// Nothing of what the group says now reaches a removed person, nor can they speak.
    fn is_out(&self, person: &mut Person) -> Result<(), String> {
        let name = person.name;
        if person.asks("receive").is_ok_and(|answer| {
            answer
                .events
                .iter()
                .any(|event| event.contains("Only we two"))
        }) {
            return Err(format!("{name} was removed and reads on"));
        }
        if person.asks(&format!("send {GROUP} Let me in!")).is_ok() {
            return Err(format!("{name} was removed and writes on"));
        }
        self.says(name, "can read and write no more");
        Ok(())
    }

    /// Waits until the daemon has come back to the bus, which it looks for by itself.
    fn await_daemon(&self) -> Result<(), String> {
        const TRIES: usize = 100;
        const PAUSE: Duration = Duration::from_millis(100);
        for _ in 0..TRIES {
            let keys = self.programs.keys().output();
            let keys = keys.map_err(|error| format!("cannot start mlskeyctl: {error}"))?;
            if keys.status.success() {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        Err("the daemon does not come back to the bus".to_owned())
    }

    fn list_keys(&self) -> Result<(), String> {
        let output = self
            .programs
            .keys()
            .output()
            .map_err(|error| format!("cannot start mlskeyctl: {error}"))?;
        let table = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!(
                "mlskeyctl keys ended with {}: {errors}",
                output.status
            ));
        }
        table.lines().for_each(|line| println!("    {line}"));
        let (tier, played) = self.device.tier();
        if !table.contains(tier) {
            return Err(format!("mlskeyctl keys shows no key of tier '{tier}'"));
        }
        if let Some(played) = played {
            println!("    {played}");
        }
        Ok(())
    }

    fn heading(&mut self, text: &str) {
        text.clone_into(&mut self.step);
        if self.colours {
            println!("\n\x1b[1m{text}\x1b[0m");
        } else {
            println!("\n{text}");
        }
    }

    fn says(&self, name: &str, text: &str) {
        let colour = match name {
            "alice" => "35",
            "bob" => "36",
            "carol" => "33",
            _ => "2",
        };
        if self.colours {
            println!("    \x1b[{colour}m{name:<8}\x1b[0m{text}");
        } else {
            println!("    {name:<8}{text}");
        }
    }
}

impl Person {
    fn asks(&mut self, request: &str) -> Result<crate::stage::Answer, String> {
        self.app.ask(request)
    }
}

fn expect_ready(program: &mut Program) -> Result<(), String> {
    match program.line()?.as_str() {
        "ready" => Ok(()),
        other => Err(format!("expected the line 'ready', got '{other}'")),
    }
}

/// Where the programs are that were built with this one.
fn build_directory() -> Result<PathBuf, String> {
    let mut this = std::env::current_exe()
        .map_err(|error| format!("cannot find the build directory: {error}"))?;
    this.pop();
    Ok(this)
}
