//! The project's own commands, started as `cargo xtask COMMAND`.

mod bench;
mod demo;
mod fuzz;
mod kryoptic;
mod pages;
mod setup;
mod stage;
mod steps;
mod test;
mod ykman;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
The project's own commands. On a fresh machine each lists the system packages that it lacks,
and installs them after asking, or with --yes.

usage: cargo xtask demo [--yes] [--device software|pkcs11|tpm2|yubikey] [--door socket|dbus]
                                          three people chat, with their keys in a private daemon;
                                          pkcs11: in a token of SoftHSM; tpm2: in swtpm,
                                          a TPM in software; yubikey: in a YubiKey in
                                          software; dbus: they come by way of a message bus
       cargo xtask test [--yes] [--full]  all checks and tests; --full adds the longer ones
       cargo xtask bench [--yes]          what requests and keys cost (docs/performance.md)
       cargo xtask fuzz [--minutes N] [--keep|--planted|--coverage]
                                          fuzzes the parser of MLS structures (docs/fuzzing.md);
                                          --keep adds to the corpus what it found;
                                          --planted shows that it finds a planted bug;
                                          --coverage tells which lines the corpus reaches
       cargo xtask man [DIR]              the manual pages, for packages [default: target/man]
       cargo xtask completions [DIR]      what bash, zsh and fish complete of mlskeyctl
                                          [default: target/completions]
       cargo xtask setup [--yes] [--full] only the packages that the others need";

/// What was asked for on the command line.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Demo(demo::Device, demo::Door),
    Test { full: bool },
    Bench,
    Fuzz(fuzz::Run),
    Pages(pages::Pages, Option<PathBuf>),
    Setup { full: bool },
    Help,
}

/// Reads the command line: the command, and whether packages may be installed unasked.
fn parse(words: &[String]) -> Result<(Command, bool), String> {
    if let [first, rest @ ..] = words
        && first == "fuzz"
    {
        return Ok((Command::Fuzz(parse_fuzz(rest)?), false));
    }
    if let [first, rest @ ..] = words
        && let Some(pages) = match first.as_str() {
            "man" => Some(pages::Pages::Man),
            "completions" => Some(pages::Pages::Completions),
            _ => None,
        }
    {
        return Ok((Command::Pages(pages, parse_directory(rest)?), false));
    }
    let (mut command, mut yes, mut full) = (None, false, false);
    let (mut device, mut door) = (None, None);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--device" => device = Some(demo::Device::named(words.next().map(String::as_str))?),
            "--door" => door = Some(demo::Door::named(words.next().map(String::as_str))?),
            "--yes" | "-y" => yes = true,
            "--full" => full = true,
            "--help" | "-h" | "help" => return Ok((Command::Help, false)),
            "demo" | "test" | "bench" | "setup" if command.is_none() => {
                command = Some(word.as_str())
            }
            other => return Err(format!("unexpected argument '{other}'")),
        }
    }
    match (command, full) {
        (Some(other), _) if other != "demo" && (device.is_some() || door.is_some()) => {
            Err("--device and --door go with demo only".to_owned())
        }
        (Some("test"), full) => Ok((Command::Test { full }, yes)),
        (Some("setup"), full) => Ok((Command::Setup { full }, yes)),
        (_, true) => Err("--full goes with test and setup only".to_owned()),
        (Some("bench"), _) => Ok((Command::Bench, yes)),
        (Some("demo"), _) => {
            let (device, door) = (device.unwrap_or_default(), door.unwrap_or_default());
            Ok((Command::Demo(device, door), yes))
        }
        _ => Err("which command?".to_owned()),
    }
}

/// Reads what follows `fuzz`. It installs nothing, so it takes no --yes.
fn parse_fuzz(words: &[String]) -> Result<fuzz::Run, String> {
    let (mut minutes, mut run) = (None, None);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--minutes" => {
                let number = words.next().and_then(|word| word.parse().ok());
                let number = number.filter(|number| *number > 0);
                minutes = Some(number.ok_or("--minutes takes a number")?);
            }
            "--keep" | "--planted" | "--coverage" if run.is_none() => run = Some(word.as_str()),
            other => return Err(format!("unexpected argument '{other}'")),
        }
    }
    let named = minutes.is_some();
    let minutes = minutes.unwrap_or(fuzz::MINUTES);
    match run {
        Some("--coverage") if named => Err("--minutes does not go with --coverage".to_owned()),
        Some("--coverage") => Ok(fuzz::Run::Coverage),
        Some("--planted") => Ok(fuzz::Run::Planted { minutes }),
        Some(_) => Ok(fuzz::Run::Keep { minutes }),
        None => Ok(fuzz::Run::Fuzz { minutes }),
    }
}

/// Reads what follows `man` and `completions`. They take what is installed.
fn parse_directory(words: &[String]) -> Result<Option<PathBuf>, String> {
    match words {
        [] => Ok(None),
        [dir] if !dir.starts_with('-') => Ok(Some(dir.into())),
        [other, ..] => Err(format!("unexpected argument '{other}'")),
    }
}

/// What the set-up calls that the tests need.
const fn packages_of_tests(full: bool) -> &'static str {
    if full { "full" } else { "test" }
}

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `cargo`, the one that started us, at the root of the workspace.
fn cargo(arguments: &[&str]) -> std::process::Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match parse(&words) {
        Ok((Command::Help, _)) => {
            println!("{USAGE}");
            Ok(())
        }
        Ok((Command::Setup { full }, yes)) => {
            setup::packages(packages_of_tests(full), yes).and_then(|()| setup::components(yes))
        }
        Ok((Command::Demo(device, door), yes)) => setup::packages(device.packages(), yes)
            .and_then(|()| setup::packages(door.packages(), yes))
            .and_then(|()| demo::build_and_run(device, door)),
        Ok((Command::Test { full }, yes)) => setup::packages(packages_of_tests(full), yes)
            .and_then(|()| setup::components(yes))
            .and_then(|()| test::run(full)),
        Ok((Command::Bench, yes)) => {
            setup::packages(packages_of_tests(false), yes).and_then(|()| bench::run())
        }
        Ok((Command::Fuzz(run), _)) => fuzz::run(run),
        Ok((Command::Pages(pages, dir), _)) => pages::run(&pages, dir),
        Err(wrong) => {
            eprintln!("cargo xtask: {wrong}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("cargo xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Command, bool), String> {
        parse(
            &line
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn command_lines_are_read() {
        let pkcs11 = Command::Demo(demo::Device::Pkcs11, demo::Door::Socket);
        assert_eq!(parsed("demo --device pkcs11"), Ok((pkcs11, false)));
        let dbus = Command::Demo(demo::Device::Software, demo::Door::Dbus);
        assert_eq!(parsed("demo --door dbus"), Ok((dbus, false)));
        let tpm2 = Command::Demo(demo::Device::Tpm2, demo::Door::Socket);
        assert_eq!(parsed("demo --device tpm2"), Ok((tpm2, false)));
        let yubikey = Command::Demo(demo::Device::YubiKey, demo::Door::Socket);
        assert_eq!(parsed("demo --device yubikey"), Ok((yubikey, false)));
        assert_eq!(
            parsed("demo"),
            Ok((
                Command::Demo(demo::Device::Software, demo::Door::Socket),
                false
            ))
        );
        assert_eq!(
            parsed("demo --yes"),
            Ok((
                Command::Demo(demo::Device::Software, demo::Door::Socket),
                true
            ))
        );
        assert_eq!(
            parsed("--yes test --full"),
            Ok((Command::Test { full: true }, true))
        );
        assert_eq!(parsed("bench --yes"), Ok((Command::Bench, true)));
        let setup = |full| Ok((Command::Setup { full }, false));
        assert_eq!(parsed("setup"), setup(false));
        assert_eq!(parsed("setup --full"), setup(true));
        assert_eq!(parsed("--help"), Ok((Command::Help, false)));
    }

    #[test]
    fn what_to_fuzz_is_read() {
        let fuzz = |run| Ok((Command::Fuzz(run), false));
        use fuzz::Run::{Coverage, Fuzz, Keep, Planted};
        assert_eq!(parsed("fuzz"), fuzz(Fuzz { minutes: 10 }));
        assert_eq!(parsed("fuzz --minutes 3"), fuzz(Fuzz { minutes: 3 }));
        assert_eq!(parsed("fuzz --keep --minutes 1"), fuzz(Keep { minutes: 1 }));
        assert_eq!(parsed("fuzz --planted"), fuzz(Planted { minutes: 10 }));
        assert_eq!(parsed("fuzz --coverage"), fuzz(Coverage));
    }

    #[test]
    fn where_pages_go_is_read() {
        use pages::Pages::{Completions, Man};
        let parsed_to = |pages, dir: Option<&str>| {
            let dir = dir.map(PathBuf::from);
            Ok((Command::Pages(pages, dir), false))
        };
        assert_eq!(parsed("man"), parsed_to(Man, None));
        assert_eq!(parsed("man out"), parsed_to(Man, Some("out")));
        let completions = parsed_to(Completions, Some("/tmp/x"));
        assert_eq!(parsed("completions /tmp/x"), completions);
    }

    #[test]
    fn unknown_words_and_flags_are_refused() {
        for line in [
            "fuzz --minutes",
            "fuzz --minutes 0",
            "fuzz --minutes ten",
            "fuzz --coverage --minutes 1",
            "fuzz --keep --planted",
            "fuzz --yes",
            "man --yes",
            "man a b",
            "",
            "--full",
            "demo --full",
            "demo --device",
            "demo --device tpm",
            "test --device pkcs11",
            "bench --full",
            "demo test",
            "demo extra",
            "test --ful",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
