//! The program `mlskeyd` as an administrator and a service manager use it.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn mlskeyd(arguments: &[&str], config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlskeyd"));
    command
        .args(arguments)
        .arg("--config")
        .arg(config)
        .env_remove("MLSKEYD_LOG");
    command
}

fn write_config(dir: &Path, more: &str) -> PathBuf {
    let path = dir.join("mlskeyd.toml");
    let (state, socket) = (dir.join("state"), dir.join("socket"));
    let text = format!("state_dir = {state:?}\nsocket = {socket:?}\n{more}");
    std::fs::write(&path, text).unwrap();
    path
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_good_configuration_is_checked_without_starting() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let output = mlskeyd(&["--check-config"], &config).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!dir.path().join("state").exists());
}

#[test]
fn a_bad_configuration_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "[lifetime]\n");
    for arguments in [&["--check-config"][..], &[]] {
        let output = mlskeyd(arguments, &config).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        let text = stderr(&output);
        let place = format!("{}:3:2: ", config.display());
        assert!(
            text.contains(&place) && text.contains("`lifetimes`?"),
            "{text}"
        );
    }
    assert!(!dir.path().join("state").exists());
}

#[test]
fn it_says_when_it_is_ready_and_stops_on_either_signal() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = tempfile::tempdir().unwrap();
        let config = write_config(dir.path(), "");
        let mut child = mlskeyd(&["--notify-stdout"], &config)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        UnixStream::connect(dir.path().join("socket")).unwrap();

        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(!dir.path().join("socket").exists());
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }
}

#[test]
fn the_help_tells_the_exit_codes() {
    let output = Command::new(env!("CARGO_BIN_EXE_mlskeyd"))
        .arg("--help")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("Exit codes") && text.contains("MLSKEYD_LOG"),
        "{text}"
    );
}
