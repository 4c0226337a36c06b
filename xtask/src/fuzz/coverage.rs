//! Measures which lines of the parser the corpus reaches, with the replay of the ordinary tests: so it needs neither
//! a nightly toolchain nor a second build of all that the workspace stands on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{succeed, target};
use crate::{cargo, root};

/// The parser.
const SOURCES: &str = "daemon/src/mls";
/// How many of a hundred lines the corpus must reach.
const BAR: usize = 90;

const TEST: [&str; 5] = ["test", "-p", "mlskeyd-tests", "--test", "fuzz_replay"];

pub(super) fn run() -> Result<(), String> {
    let tools = Tools::find()?;
    let directory = target().join("coverage");
    if directory.exists() {
        fs::remove_dir_all(&directory).map_err(|error| error.to_string())?;
    }
    let binary = build()?;
    let mut replay = Command::new(&binary);
    // Not the random changes: they differ from run to run.
    replay
        .arg("the_corpus_holds")
        .env("LLVM_PROFILE_FILE", directory.join("%p.profraw"));
    succeed(replay)?;

    let profile = directory.join("profile");
    let mut merge = Command::new(&tools.profdata);
    merge
        .args(["merge", "-sparse", "-o"])
        .arg(&profile)
        .arg(&directory);
    succeed(merge)?;
    let output = Command::new(&tools.cov)
        .args(["export", "-format=lcov", "-instr-profile"])
        .arg(&profile)
        .arg(&binary)
        .arg(canonical(&root().join(SOURCES))?)
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    report(&files(&String::from_utf8_lossy(&output.stdout)))
}

/// Builds the replay with counters in it. Where it is then.
fn build() -> Result<PathBuf, String> {
    let mut build = cargo(&TEST);
    build
        .args(["--no-run", "--message-format", "json-render-diagnostics"])
        .env(
            "RUSTC_WORKSPACE_WRAPPER",
            canonical(&root().join("xtask/covered"))?,
        )
        .stderr(std::process::Stdio::inherit());
    let output = build.output().map_err(|error| error.to_string())?;
    let messages = String::from_utf8_lossy(&output.stdout);
    executable(&messages)
        .filter(|_| output.status.success())
        .ok_or_else(|| "the replay could not be built".to_owned())
}

/// The test's program, from cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| line.split_once("\"executable\":\"")?.1.split('"').next())
        .find(|path| path.contains("/fuzz_replay-"))
        .map(PathBuf::from)
}

fn canonical(path: &Path) -> Result<PathBuf, String> {
    path.canonicalize()
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// LLVM's tools of the version that rustc stands on.
struct Tools {
    profdata: PathBuf,
    cov: PathBuf,
}

impl Tools {
    fn find() -> Result<Self, String> {
        let ask = |arguments: &[&str]| {
            let output = Command::new("rustc").args(arguments).output();
            output.map_or_else(
                |_| String::new(),
                |o| String::from_utf8_lossy(&o.stdout).into_owned(),
            )
        };
        let version = ask(&["-vV"]);
        let field = |name| {
            let mut lines = version.lines();
            lines
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_default()
        };
        let host = field("host: ");
        let major = field("LLVM version: ")
            .split('.')
            .next()
            .unwrap_or_default();
        let own = Path::new(ask(&["--print", "sysroot"]).trim())
            .join("lib/rustlib")
            .join(host)
            .join("bin");
        let system = PathBuf::from(format!("/usr/lib/llvm-{major}/bin"));
        [own, system]
            .iter()
            .map(|directory| Self {
                profdata: directory.join("llvm-profdata"),
                cov: directory.join("llvm-cov"),
            })
            .find(|tools| tools.profdata.exists() && tools.cov.exists())
            .ok_or_else(|| {
                format!(
                    "LLVM's tools are missing. Run: rustup component add llvm-tools\n\
                     or install the package llvm-{major} of Debian's."
                )
            })
    }
}

/// The lines of one file that can run, and those of them that never did.
#[derive(Debug, PartialEq, Eq)]
struct File {
    name: String,
    lines: usize,
    missed: Vec<String>,
}

impl File {
    fn reached(&self) -> usize {
        self.lines.saturating_sub(self.missed.len())
    }
}

/// Reads LLVM's output in the form of lcov.
fn files(lcov: &str) -> Vec<File> {
    let mut files: Vec<File> = Vec::new();
    for line in lcov.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            let name = path.rsplit_once(SOURCES).map_or(path, |(_, name)| name);
            files.push(File {
                name: name.trim_start_matches('/').to_owned(),
                lines: 0,
                missed: Vec::new(),
            });
        }
        let counted = line
            .strip_prefix("DA:")
            .and_then(|line| line.split_once(','));
        if let (Some((number, count)), Some(file)) = (counted, files.last_mut()) {
            file.lines = file.lines.saturating_add(1);
            if count == "0" {
                file.missed.push(number.to_owned());
            }
        }
    }
    files
}

/// Prints a table, and fails below the bar.
fn report(files: &[File]) -> Result<(), String> {
    println!(
        "{:<22}{:>7}{:>9}{:>9}  missed",
        "file", "lines", "reached", "%"
    );
    let (mut lines, mut reached) = (0_usize, 0_usize);
    for file in files {
        let missed = file.missed.join(" ");
        print_row(&file.name, file.lines, file.reached(), &missed);
        lines = lines.saturating_add(file.lines);
        reached = reached.saturating_add(file.reached());
    }
    print_row("all", lines, reached, "");
    if lines == 0 || reached.saturating_mul(100) < lines.saturating_mul(BAR) {
        return Err(format!("the corpus reaches less than {BAR} % of {SOURCES}"));
    }
    Ok(())
}

fn print_row(name: &str, lines: usize, reached: usize, missed: &str) {
    // In tenths, rounded down.
    let tenths = reached.saturating_mul(1000).checked_div(lines).unwrap_or(0);
    let percent = format!("{}.{}", tenths / 10, tenths % 10);
    println!("{name:<22}{lines:>7}{reached:>9}{percent:>9}  {missed}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lcov_is_read() {
        let lcov = "SF:/x/daemon/src/mls/a.rs\nFN:1,f\nDA:1,5\nDA:3,0\nLF:2\nend_of_record\nSF:/x/daemon/src/mls/b/c.rs\nDA:7,1\n";
        let file = |name: &str, lines, missed: &[&str]| File {
            name: name.to_owned(),
            lines,
            missed: missed.iter().map(|line| (*line).to_owned()).collect(),
        };
        assert_eq!(
            files(lcov),
            [file("a.rs", 2, &["3"]), file("b/c.rs", 1, &[])]
        );
        assert!(report(&files(lcov)).is_err());
        assert!(report(&[]).is_err());
        assert!(report(&[file("a.rs", 10, &["3"])]).is_ok());
    }

    #[test]
    fn the_program_is_found_in_cargos_messages() {
        let messages = "{\"executable\":null}\n{\"executable\":\"/t/test-ctl\"}\n{\"x\":1,\"executable\":\"/t/fuzz_replay-0a\",\"fresh\":true}";
        assert_eq!(
            executable(messages),
            Some(PathBuf::from("/t/fuzz_replay-0a"))
        );
    }
}
