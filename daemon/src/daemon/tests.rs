//! The daemon on a thread of the test, with the software device.

use std::os::unix::net::UnixStream;

use super::*;
use crate::store_key::StoreKey;

/// A daemon's configuration, with everything in `dir`.
fn config(dir: &Path) -> Config {
    let text = format!(
        "state_dir = {:?}\nsocket = {:?}",
        dir.join("state").display().to_string(),
        dir.join("socket").display().to_string(),
    );
    Config::parse(Path::new("test.toml"), &text).unwrap()
}

fn state_files(config: &Config) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(&config.state_dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn it_serves_from_start_to_stop_and_again() {
    let dir = tempfile::tempdir().unwrap();
    for started in 1..=2 {
        let running = Daemon::start(config(dir.path())).unwrap();
        UnixStream::connect(running.socket()).unwrap();
        running.stop();
        assert!(!dir.path().join("socket").exists());
        let log = dir.path().join("state").join(audit::FILE_NAME);
        assert_eq!(audit::verify(&log).unwrap().entries, started);
    }
}

#[test]
fn it_starts_inside_of_any_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let current_thread = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for other in [current_thread, Runtime::new().unwrap()] {
        other.block_on(async {
            let running = Daemon::start(config(dir.path())).unwrap();
            UnixStream::connect(running.socket()).unwrap();
        });
    }
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let running = Daemon::start(config(dir.path())).unwrap();
    let mut second = config(dir.path());
    second.socket = dir.path().join("other");
    let error = Daemon::start(second.clone()).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains(&std::process::id().to_string()),
        "{message}"
    );
    UnixStream::connect(running.socket()).unwrap();
    drop(running);
    Daemon::start(second).unwrap();
}

#[test]
fn a_daemon_that_does_not_start_leaves_nothing_behind_that_stops_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut blocked = config(dir.path());
    std::fs::write(dir.path().join("file"), "").unwrap();
    blocked.socket = dir.path().join("file");
    let error = Daemon::start(blocked).unwrap_err();
    assert!(matches!(error, StartError::Socket(_)), "{error}");
    Daemon::start(config(dir.path())).unwrap();
}

#[test]
fn a_lost_store_key_loses_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    Daemon::start(config.clone()).unwrap().stop();
    let (key, kept) = (
        config.state_dir.join("store.key"),
        dir.path().join("kept.key"),
    );
    std::fs::rename(&key, &kept).unwrap();
    let before = state_files(&config);

    Daemon::start(config.clone()).unwrap().stop();
    assert!(!key.exists(), "no new key beside old state");
    let after = state_files(&config);
    assert!(
        before.iter().all(|file| after.contains(file)),
        "{before:?} {after:?}"
    );

    std::fs::rename(&kept, &key).unwrap();
    StoreKey::load_file(&key).unwrap();
    Daemon::start(config).unwrap();
}
