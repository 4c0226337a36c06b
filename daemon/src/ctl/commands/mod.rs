//! The command line: what can be asked, and how it is answered.
//!
//! Each group of commands has a file with what it takes and, beside that, its `run`. A new
//! command is a variant of its group's enum with an arm in the `run` there, a description of
//! its JSON in `help`, and whatever does and shows it in a file of `ctl/`.

mod audit;
mod devices;
mod doctor;
mod freeze;
mod guard;
mod help;
mod identities;
mod keys;
mod policy;
mod reassign;
mod status;
mod storage;
pub(super) mod values;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use mlskeyd_protocol::client::{AdminClient, Call, ClientConfig, Doors};
use mlskeyd_protocol::v1::{Interaction, KeyInfo, KeyPin};
use serde_json::Value;

#[cfg(feature = "yubikey")]
use super::provision;
use super::table::date;
use super::{CtlError, agent, attest};
use crate::freeze_target::TargetCommand;

/// Shows what mlskeyd keeps, and looks after it.
#[derive(Debug, Parser)]
#[command(name = "mlskeyctl", version, after_help = help::EXIT_CODES,
          after_long_help = format!("{}\n\n{}", help::JSON, help::EXIT_CODES))]
pub(super) struct Args {
    /// The daemon's socket [default: $MLSKEYD_SOCKET, else /run/mlskeyd/socket if
    /// that is there, else $XDG_RUNTIME_DIR/mlskeyd/socket if that is there]
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// The message bus on which the daemon is: system, session, none, or its address
    /// [default: $MLSKEYD_BUS; else, if no socket is named, either bus if the socket is not
    /// there or may not be opened]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub(super) bus: Option<String>,
    /// Print JSON (--help describes it)
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The daemon at a glance
    Status,
    /// The devices, and what they offer
    Devices {
        #[command(subcommand)]
        command: Option<devices::DevicesCommand>,
    },
    /// The identities, and which keys sign for them
    Identities {
        #[command(subcommand)]
        command: Option<identities::IdentitiesCommand>,
    },
    /// The keys in custody
    Keys {
        /// Show destroyed keys, too
        #[arg(long)]
        all: bool,
        #[command(subcommand)]
        command: Option<keys::KeysCommand>,
    },
    /// Unlock a device with its PIN
    ///
    /// The PIN is asked for on the terminal, or is a line of standard input if that
    /// is no terminal. It is tried once; what waits for the device then goes on. A
    /// device that is unlocked already does not look at it: exit code 5.
    Unlock {
        /// The device's name
        device: String,
        /// Try the PIN even if one more wrong one would lock the device for good
        #[arg(long)]
        last_try: bool,
    },
    /// Look whether all is as it should be, and say what to do
    ///
    /// It changes nothing, and tries no PIN. Whoever is not root sees less: what is not seen
    /// is `skip`. The exit code is 1 if something fails.
    Doctor {
        /// The daemon's configuration [default: /etc/mlskeyd/mlskeyd.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Ask the person of this login session for PINs, when requests wait for them
    ///
    /// Runs until it is ended, as a service of the session, for its user alone: anybody
    /// may. Pinentry asks for the PIN, once for each time that a device waits for it.
    /// What is unlocked so is unlocked for this user's requests alone, and locked again
    /// when this command ends.
    Agent {
        /// The program that asks the person
        #[arg(long, value_name = "PROGRAM", default_value = "pinentry")]
        pinentry: PathBuf,
    },
    /// The audit log: what was asked, by whom, and what came of it; takes no daemon
    Audit {
        #[command(subcommand)]
        command: audit::AuditCommand,
    },
    /// The company's policies
    Policy {
        #[command(subcommand)]
        command: policy::PolicyCommand,
    },
    /// What the guard remembers of groups
    Guard {
        #[command(subcommand)]
        command: guard::GuardCommand,
    },
    /// Have nothing signed, opened or made for something, at once, until it is thawed
    Freeze {
        #[command(subcommand)]
        target: TargetCommand,
        /// Why: whoever is refused reads it
        #[arg(long, global = true, default_value = "")]
        reason: String,
    },
    /// Thaw what was frozen, by the same words
    Thaw {
        #[command(subcommand)]
        target: TargetCommand,
    },
    /// What is frozen, and why
    Frozen,
    /// Lock a device: its PIN is forgotten, and asked for again
    ///
    /// Also a PIN that the configuration names is not used again until somebody unlocks
    /// the device, or the daemon starts again.
    Lock {
        /// The device's name
        device: String,
    },
    /// Get a device ready that is in front of you; takes no daemon
    #[cfg(feature = "yubikey")]
    Provision {
        #[command(subcommand)]
        command: provision::ProvisionCommand,
    },
    /// Evidence that keys are in hardware, for whoever does not trust this machine
    ///
    /// The verifier chooses a nonce; the machine makes evidence with it; the verifier
    /// makes a challenge for that; the machine answers it; the verifier judges.
    Attest {
        #[command(subcommand)]
        command: attest::AttestCommand,
    },
    /// The apps' storages, whose records say which keys are needed
    Storage {
        #[command(subcommand)]
        command: Option<storage::StorageCommand>,
    },
}

/// What commands work with.
pub(super) struct Context {
    pub(super) client: AdminClient,
    pub(super) call: Call<'static>,
    pub(super) json: bool,
}

impl Context {
    /// What to print: as the command line wants it.
    pub(super) fn text(&self, json: &Value, text: String) -> String {
        if self.json {
            format!("{json:#}\n")
        } else {
            text
        }
    }

    /// The same, of a command that went well.
    fn answer(&self, json: Value, text: String) -> Answer {
        Answer {
            text: self.text(&json, text),
            code: 0,
        }
    }
}

/// What to print, and the exit code.
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) code: u8,
}

/// The exit code of an unlocking for which no PIN was needed.
const NOT_TRIED: u8 = 5;

/// How long a person may take to authenticate, in milliseconds, and a whole call with that.
const TO_AUTHENTICATE: u32 = 120_000;
const WITH_AUTHENTICATION: Duration = Duration::from_secs(180);

/// Does what the command line asks.
pub(super) fn run(args: &Args) -> Result<Answer, CtlError> {
    let doors = Doors::named(args.socket.clone(), args.bus.as_deref());
    let software = concat!("mlskeyctl/", env!("CARGO_PKG_VERSION"));
    let config = ClientConfig {
        // An administrator wants to know at once that the daemon is away.
        reconnect_for: Duration::ZERO,
        ..ClientConfig::through(doors.clone(), software)
    };
    let context = &Context {
        client: AdminClient::new(config),
        call: call(rustix::process::geteuid().is_root()),
        json: args.json,
    };
    match &args.command {
        Command::Status => status::run(context),
        Command::Devices { command } => devices::run(command.as_ref(), context),
        Command::Identities { command } => identities::run(command.as_ref(), context),
        Command::Keys { all, command } => keys::run(*all, command.as_ref(), context),
        Command::Unlock { device, last_try } => devices::unlock(device, *last_try, context),
        Command::Lock { device } => devices::lock(device, context),
        Command::Doctor { config } => {
            let doors = args.bus.is_some().then_some(doors);
            doctor::run(args.socket.as_deref(), doors, config.as_deref(), context)
        }
        Command::Agent { pinentry } => match agent::run(doors, pinentry.clone())? {},
        Command::Audit { command } => audit::run(command, context),
        Command::Policy { command } => policy::run(command, context),
        Command::Guard { command } => guard::run(command, context),
        Command::Freeze { target, reason } => freeze::freeze(target, reason, context),
        Command::Thaw { target } => freeze::thaw(target, context),
        Command::Frozen => freeze::frozen(context),
        #[cfg(feature = "yubikey")]
        Command::Provision { command } => {
            let (json, text) = provision::run(command)?;
            Ok(context.answer(json, text))
        }
        Command::Attest { command } => attest::run(command, context),
        Command::Storage { command } => storage::run(command.as_ref(), context),
    }
}

/// How calls are made. Whoever is not root may have to authenticate to polkit first.
fn call(is_root: bool) -> Call<'static> {
    if is_root {
        return Call {
            interaction: Interaction::Never,
            ..Call::default()
        };
    }
    Call {
        interaction: Interaction::UpTo(TO_AUTHENTICATE),
        deadline: WITH_AUTHENTICATION,
        ..Call::default()
    }
}

fn or_none<T>(items: &[T], text: String, none: &str) -> String {
    if items.is_empty() {
        none.to_owned()
    } else {
        text
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// What a key's state needs said: the end of one that retires, and whose it is.
fn state_text(key: &KeyInfo) -> String {
    let mut text = key.state.to_string();
    if let Some(ends) = key.ends {
        text.push_str(&format!(" until {}", date(ends)));
    }
    if key.adopted {
        text.push_str(", adopted");
    }
    text.push_str(pin_text(key.pin));
    text
}

/// What is said of a key that has a PIN of its own.
const fn pin_text(pin: KeyPin) -> &'static str {
    match pin {
        KeyPin::None => "",
        KeyPin::Locked => ", PIN locked",
        KeyPin::Unlocked => ", PIN unlocked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Args::command().debug_assert();
        let args = Args::parse_from(["mlskeyctl", "keys", "--json"]);
        assert!(
            args.json
                && matches!(
                    args.command,
                    Command::Keys {
                        all: false,
                        command: None
                    }
                )
        );
    }

    /// All commands that do something, by their words.
    fn all(command: &clap::Command, words: &str) -> Vec<(String, clap::Command)> {
        let below = command
            .get_subcommands()
            .filter(|it| it.get_name() != "help");
        let mut found: Vec<_> = below
            .flat_map(|it| all(it, format!("{words} {}", it.get_name()).trim_start()))
            .collect();
        if found.is_empty() || !command.is_subcommand_required_set() {
            found.push((words.to_owned(), command.clone()));
        }
        found
    }

    /// The commands whose JSON is described: at the start of a line, before two spaces.
    fn described() -> Vec<&'static str> {
        let lines = help::JSON
            .lines()
            .filter_map(|line| line.strip_prefix("  "));
        let commands = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
        let names = commands.flat_map(|line| {
            let end = line.find(['{', '[']).or_else(|| line.find("  "));
            let end = line.find("  ").into_iter().chain(end).min();
            line[..end.unwrap_or(line.len())].split(", ")
        });
        names.map(str::trim).collect()
    }

    #[test]
    fn the_json_of_each_command_is_described() {
        let described = described();
        let commands = all(&Args::command(), "");
        for (words, _) in &commands {
            // A list is the default of its group; what is frozen and thawed are words.
            let known = described.iter().any(|one| {
                one == words || *one == format!("{words} list") || {
                    let target = words.strip_prefix(one);
                    ["freeze", "thaw"].contains(one) && target.is_some_and(|it| it.starts_with(' '))
                }
            });
            assert!(known || words.is_empty(), "{words}");
        }
        let is_one = |one: &&str| {
            let path = format!("{one} ");
            commands
                .iter()
                .any(|(words, _)| words == one || words.starts_with(&path))
        };
        let unknown: Vec<_> = described.iter().filter(|one| !is_one(one)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn a_pin_is_no_argument() {
        for (words, command) in all(&Args::command(), "") {
            for argument in command.get_arguments() {
                let names = [Some(argument.get_id().as_str()), argument.get_long()];
                let values = argument.get_value_names().unwrap_or_default();
                let names = names.into_iter().flatten().map(str::to_owned);
                let is_secret = names
                    .chain(values.iter().map(ToString::to_string))
                    .flat_map(|name| {
                        let words = name.split(['-', '_', ' ']).map(str::to_lowercase);
                        words.collect::<Vec<_>>()
                    })
                    .any(|word| ["pin", "puk", "passphrase", "password"].contains(&word.as_str()));
                assert!(
                    !(is_secret && argument.get_action().takes_values()),
                    "{words}: {}",
                    argument.get_id()
                );
            }
        }
    }
}
