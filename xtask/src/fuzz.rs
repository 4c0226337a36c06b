//! `cargo xtask fuzz`: libFuzzer for what reads the structures that apps want signed or opened. `docs/fuzzing.md` says
//! what it looks for and what was measured.

mod coverage;
mod planted;
mod seeds;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::root;

/// What of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// Fuzzes for so many minutes.
    Fuzz { minutes: u32 },
    /// The same, then keeps in the corpus what reached something new.
    Keep { minutes: u32 },
    /// Shows within so many minutes that a planted bug is found.
    Planted { minutes: u32 },
    /// Measures which lines of the parser the corpus reaches.
    Coverage,
}

/// Minutes if none are named.
pub(crate) const MINUTES: u32 = 10;

/// Longer inputs show nothing that shorter ones do not; the parser's limits on counts have tests of their own.
const MAX_LENGTH: usize = 8192;

pub(crate) fn run(run: Run) -> Result<(), String> {
    match run {
        Run::Fuzz { minutes } => fuzz(minutes),
        Run::Keep { minutes } => fuzz(minutes).and_then(|()| keep()),
        Run::Planted { minutes } => planted::run(minutes),
        Run::Coverage => coverage::run(),
    }
}

/// Where all that is made is put.
fn target() -> PathBuf {
    root().join("target/fuzz")
}

fn fuzz(minutes: u32) -> Result<(), String> {
    tools()?;
    let found = target().join("found");
    let seeds = seeds::write(&target().join("seeds"))?;
    fs::create_dir_all(&found).map_err(|error| error.to_string())?;
    let corpus = root().join("fuzz/corpus/parse");
    let inputs = [&found, &corpus, &seeds];
    succeed(libfuzzer(&root(), &inputs, &time(minutes)))
}

/// Adds to the corpus what reaches code that nothing in it reaches, the shortest inputs first.
fn keep() -> Result<(), String> {
    let (found, seeds) = (target().join("found"), target().join("seeds"));
    let corpus = root().join("fuzz/corpus/parse");
    succeed(libfuzzer(
        &root(),
        &[&corpus, &found, &seeds],
        &["-merge=1".to_owned()],
    ))
}

fn time(minutes: u32) -> [String; 1] {
    [format!("-max_total_time={}", minutes.saturating_mul(60))]
}

/// `cargo fuzz run` of the target in this tree. New inputs go to the first directory.
fn libfuzzer(tree: &Path, inputs: &[&PathBuf], options: &[String]) -> Command {
    let mut command = cargo_fuzz("run", tree);
    command
        .args(inputs)
        .arg("--")
        .arg(format!("-max_len={MAX_LENGTH}"))
        .arg(format!("-dict={}", tree.join("fuzz/parse.dict").display()))
        .args(["-timeout=20", "-print_final_stats=1"])
        .args(options);
    command
}

/// `cargo fuzz SUBCOMMAND` for the target in this tree. No sanitizer: the parser has no `unsafe`, so that there is
/// nothing to be found that is no panic, and the fuzzer is twice as fast.
fn cargo_fuzz(subcommand: &str, tree: &Path) -> Command {
    let mut command = nightly();
    command
        .args(["fuzz", subcommand, "--sanitizer", "none", "--target-dir"])
        .arg(target())
        .arg("parse")
        .current_dir(tree);
    command
}

/// `cargo` of the nightly toolchain. This program's own one is of another.
fn nightly() -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo"]);
    command
}

/// What cargo-fuzz needs is there.
fn tools() -> Result<(), String> {
    let answers = |arguments: &[&str]| {
        nightly()
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    for (arguments, what, install) in [
        (
            &["--version"][..],
            "the nightly toolchain, which libFuzzer needs, is",
            "rustup toolchain install nightly",
        ),
        (
            &["fuzz", "--version"],
            "cargo-fuzz is",
            "cargo install cargo-fuzz --locked",
        ),
    ] {
        if !answers(arguments) {
            return Err(format!("{what} not installed. Run: {install}"));
        }
    }
    Ok(())
}

fn succeed(mut command: Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{}: {status}", name_of(&command))),
        Err(error) => Err(format!("cannot start {}: {error}", name_of(&command))),
    }
}

fn name_of(command: &Command) -> String {
    command.get_program().display().to_string()
}
