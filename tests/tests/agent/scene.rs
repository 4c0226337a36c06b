//! A daemon with a locked YubiKey, agents, and what their people say.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mlskeyd_protocol::client::{Call, CallError, Client};
use mlskeyd_protocol::v1::{CreateIdentity, Credential, IdentityInfo, Placement, SignatureScheme};
use mlskeyd_tests::member::client;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Daemon, Options, Process, Stage, YubiKeys};

/// A daemon with the software device, and one that a YubiKey is, whose PIN a person has
/// to give.
pub(crate) struct Scene {
    pub(crate) daemon: Daemon,
    pub(crate) options: Options,
    pub(crate) cards: YubiKeys,
    pub(crate) card: usize,
    pub(crate) stage: Stage,
}

/// An agent, and what its person will say: a line for each question.
pub(crate) struct Agent {
    pub(crate) process: Process,
    log: PathBuf,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(&[], "")
    }

    /// The same: what `mlskeyctl provision yubikey` is told, and more of the
    /// configuration, beginning with the device.
    pub(crate) fn with(provision: &[&str], more: &str) -> Self {
        let stage = Stage::new(programs!());
        // Others may look for the daemon's socket.
        for path in ["", "daemon"] {
            let path = stage.path(path);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let mut cards = YubiKeys::new(&stage);
        let card = cards.make(1234, [5, 4, 3]);
        cards.insert(card, 0);
        cards.provision(provision).unwrap();
        let options = Options {
            extra: YubiKeys::device("yubikey", &format!("management_key = \"on-card\"\n{more}")),
            pcscd: Some(cards.socket().to_owned()),
            ..Options::default()
        };
        let daemon = Daemon::start(&stage, &options);
        let scene = Self {
            daemon,
            options,
            cards,
            card,
            stage,
        };
        scene.await_state("locked");
        scene
    }

    pub(crate) fn client(&self) -> Client {
        client(&self.daemon.socket())
    }

    /// Waits until the device is in this state.
    pub(crate) fn await_state(&self, wanted: &str) {
        loop {
            let devices = self.daemon.ctl(&["devices"]).unwrap();
            let mut devices = devices.as_array().unwrap().iter();
            if devices.any(|device| device["name"] == "yubikey" && device["state"] == wanted) {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Starts an agent whose person says these things, one for each question: `pin` and
    /// a PIN, `cancel`, `hang`, `die`, or `garbage`.
    pub(crate) fn agent(&self, name: &str, says: &[&str]) -> Agent {
        self.agent_as(name, says, Command::new(&self.stage.programs().ctl))
    }

    /// The same, by this command.
    pub(crate) fn agent_as(&self, name: &str, says: &[&str], mut command: Command) -> Agent {
        let directory = self.stage.path(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o777)).unwrap();
        let [script, log, answers] =
            ["pinentry", "log", "answers"].map(|file| directory.join(file));
        std::fs::write(&log, "").unwrap();
        std::fs::write(&answers, says.join("\n") + "\n").unwrap();
        for (path, mode) in [(&log, 0o666), (&answers, 0o666)] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
        std::fs::write(&script, pinentry(&log, &answers)).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        command.arg("--socket").arg(self.daemon.socket());
        command.args(["agent", "--pinentry"]).arg(&script);
        let process = Process::start("agent", command, &directory.join("agent.log"));
        Agent { process, log }
    }
}

impl Agent {
    /// What it was told, and asked: lines of the Assuan protocol.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until pinentry was asked so often.
    pub(crate) fn await_questions(&self, count: usize) {
        while self.log().matches("GETPIN").count() < count {
            std::thread::yield_now();
        }
    }

    /// How often it was asked.
    pub(crate) fn questions(&self) -> usize {
        self.log().matches("GETPIN").count()
    }
}

/// A pinentry that notes what it is told.
fn pinentry(log: &Path, answers: &Path) -> String {
    let (log, answers) = (log.display(), answers.display());
    format!(
        r#"#!/bin/sh
echo "OK ready"
while read -r line; do
    echo "$line" >> {log}
    case "$line" in
    GETPIN)
        answer=$(sed -n 1p {answers})
        sed 1d {answers} > {answers}.new && cat {answers}.new > {answers}
        case "$answer" in
        "pin "*) echo "S some status"; echo "D ${{answer#pin }}"; echo OK ;;
        cancel) echo "ERR 83886179 Operation cancelled" ;;
        hang) read -r never < /dev/zero; exec sleep 1000 ;;
        garbage) head -c 100000 /dev/zero; exit ;;
        *) exit 1 ;;
        esac ;;
    BYE) echo OK; exit ;;
    *) echo OK ;;
    esac
done
"#
    )
}

/// Has the daemon make an identity on the YubiKey.
pub(crate) fn create(client: &Client, name: &str) -> Result<IdentityInfo, CallError> {
    let request = CreateIdentity {
        name: name.to_owned(),
        credential: Credential::Basic(name.as_bytes().into()),
        scheme: SignatureScheme::EcdsaP256Sha256,
        placement: Placement {
            device: Some("yubikey".to_owned()),
            tier: None,
        },
    };
    client.create_identity(request, &Call::default())
}

/// Why the daemon did not.
pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, CallError>) -> String {
    match result {
        Err(CallError::Failure(failure)) => failure.message,
        other => panic!("{other:?}"),
    }
}
