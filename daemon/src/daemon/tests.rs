//! The daemon on a thread of the test, with the software device.

use std::os::unix::net::UnixStream;

use mlskeyd_protocol::client::{AdminClient, Call, CallError, Client, ClientConfig};
use mlskeyd_protocol::v1::{
    CreateIdentity, Credential, GenerateHpke, Kem, KeyId, KeyQuery, KeyState, Placement,
    SignatureScheme,
};

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
        // Its start and its stop.
        assert_eq!(audit::verify(&log).unwrap().entries, 2 * started);
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

#[test]
fn a_device_that_is_configured_later_is_made_and_one_that_lost_its_keys_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let first = config(dir.path());
    let text = |devices: &str| {
        format!(
            "state_dir = {:?}\nsocket = {:?}\n{devices}",
            first.state_dir.display().to_string(),
            first.socket.display().to_string(),
        )
    };
    let both = text(
        "[[devices]]\nname = \"software\"\nkind = \"software\"\n\
         [[devices]]\nname = \"second\"\nkind = \"software\"\n",
    );
    let both = Config::parse(Path::new("test.toml"), &both).unwrap();
    let directory = |name: &str| first.state_dir.join("devices").join(name).join("device");

    let running = Daemon::start(first.clone()).unwrap();
    make_identity(running.socket(), "alice", "software").unwrap();
    running.stop();
    let running = Daemon::start(both.clone()).unwrap();
    assert!(directory("second").exists());
    make_identity(running.socket(), "bob", "second").unwrap();
    running.stop();

    for name in ["software", "second"] {
        std::fs::remove_dir_all(directory(name).parent().unwrap()).unwrap();
    }
    let running = Daemon::start(both).unwrap();
    assert!(!directory("second").exists() && !directory("software").exists());
    let error = make_identity(running.socket(), "carol", "second").unwrap_err();
    assert!(error.to_string().contains("second"), "{error}");
    running.stop();
}

/// Makes an identity with its key on the device.
fn make_identity(socket: &Path, name: &str, device: &str) -> Result<(), CallError> {
    let client = Client::new(ClientConfig::new(socket.to_owned(), "test"));
    let request = CreateIdentity {
        name: name.to_owned(),
        credential: Credential::Basic(b"alice".to_vec().into()),
        scheme: SignatureScheme::Ed25519,
        placement: Placement {
            device: Some(device.to_owned()),
            tier: None,
        },
    };
    client
        .create_identity(request, &Call::default())
        .map(|_| ())
}

#[test]
fn a_device_that_is_away_keeps_its_destroyed_keys_and_stops_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let running = Daemon::start(config.clone()).unwrap();
    let client = Client::new(ClientConfig::new(running.socket(), "test"));
    let request = GenerateHpke {
        kem: Kem::DhKemX25519,
        placement: Placement::default(),
    };
    let made = client.generate_hpke(request, &Call::default()).unwrap();
    drop(client);
    running.stop();

    let device = config.state_dir.join("devices/software");
    let away = dir.path().join("away");
    let generations = |device: &Path| {
        std::fs::read_dir(device.join("generations"))
            .unwrap()
            .count()
    };
    std::fs::rename(&device, &away).unwrap();
    begin_to_destroy(&config, made.key);
    // What is to be destroyed meets a device that does not answer.
    let running = Daemon::start(config.clone()).unwrap();
    make_identity(running.socket(), "bob", "software").unwrap_err();
    running.stop();
    assert_eq!(generations(&away), 1);
    std::fs::rename(&away, &device).unwrap();
    let running = Daemon::start(config).unwrap();
    while generations(&device) > 0 {
        std::thread::yield_now();
    }
    running.stop();
}

#[test]
fn a_generation_that_the_device_has_lost_gets_no_more_keys_and_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let running = Daemon::start(config.clone()).unwrap();
    let make = |running: &Running| {
        let client = Client::new(ClientConfig::new(running.socket(), "test"));
        let request = GenerateHpke {
            kem: Kem::DhKemX25519,
            placement: Placement::default(),
        };
        client.generate_hpke(request, &Call::default()).unwrap().key
    };
    let first = make(&running);
    running.stop();
    let generations = config.state_dir.join("devices/software/generations");
    for generation in std::fs::read_dir(&generations).unwrap() {
        std::fs::remove_file(generation.unwrap().path()).unwrap();
    }

    let running = Daemon::start(config.clone()).unwrap();
    // Of many that meet it at once, one gives it up.
    let others: BTreeSet<_> = std::thread::scope(|scope| {
        let makers: Vec<_> = (0..8).map(|_| scope.spawn(|| make(&running))).collect();
        makers.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert_eq!(others.len(), 8);
    assert_eq!(std::fs::read_dir(&generations).unwrap().count(), 1);
    let admin = AdminClient::new(ClientConfig::new(running.socket(), "test"));
    let all = KeyQuery {
        after: None,
        destroyed: true,
    };
    let keys = admin.keys(all, &Call::default()).unwrap();
    assert!(keys.iter().all(|key| key.key.state != KeyState::Destroyed));
    let known: BTreeSet<_> = keys.iter().map(|key| key.key.id).collect();
    let mut expected = others;
    expected.insert(first);
    assert_eq!(known, expected);
    running.stop();
    let log = config.state_dir.join(audit::FILE_NAME);
    let entries = audit::Entries::open(&log).unwrap();
    let lost = entries.filter(|entry| entry.as_ref().unwrap().record.action == "GenerationLost");
    assert_eq!(lost.count(), 1);

    // Nor does a later start destroy it on a guess.
    let running = Daemon::start(config).unwrap();
    make(&running);
    let admin = AdminClient::new(ClientConfig::new(running.socket(), "test"));
    let swept = admin.sweep(&Call::default()).unwrap();
    assert_eq!((swept.destroyed, swept.stuck), (0, 0));
}

/// As a daemon that died in the middle of destroying the key.
fn begin_to_destroy(config: &Config, key: KeyId) {
    let Loaded::Found(store_key) = parts::store_key(config).unwrap() else {
        panic!("no store key")
    };
    let mac_key = store_key.subkey(REGISTRY_LABEL).unwrap();
    let settings = store_settings(config);
    Runtime::new().unwrap().block_on(async {
        let registry = Registry::open(&config.state_dir, mac_key.expose(), settings).unwrap();
        let begun = registry.begin_destroy(key, store::Cause::Ordered).await;
        begun.unwrap();
        registry.close().await;
    });
}

#[test]
fn connections_are_bounded_as_the_configuration_says() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.limits.connections_per_user = 1;
    let running = Daemon::start(config).unwrap();
    let client = |_| Client::new(ClientConfig::new(running.socket(), "test"));
    let [first, second] = [1, 2].map(client);
    first.status(&Call::default()).unwrap();
    let error = second.status(&Call::default()).unwrap_err();
    assert!(
        error.to_string().contains("too many connections"),
        "{error}"
    );
}

#[test]
fn a_row_that_was_changed_is_found_before_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let running = Daemon::start(config.clone()).unwrap();
    make_identity(running.socket(), "alice", "software").unwrap();
    running.stop();
    let registry = rusqlite::Connection::open(config.state_dir.join("registry.db")).unwrap();
    registry
        .execute("UPDATE identities SET mac = x'00'", [])
        .unwrap();
    drop(registry);

    let running = Daemon::start(config.clone()).unwrap();
    let log = config.state_dir.join(audit::FILE_NAME);
    let found = || {
        let entries = audit::Entries::open(&log).unwrap();
        entries
            .map_while(Result::ok)
            .any(|entry| entry.record.action == "RowTampered")
    };
    while !found() {
        std::thread::yield_now();
    }
    running.stop();
}
