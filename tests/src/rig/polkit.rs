//! polkit, with mlskeyd's actions and a test's own rules.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::runtime::Runtime;
use zbus::Connection;

use super::{Bus, Process, Stage};

/// Where distributions install it.
const PROGRAMS: [&str; 3] = [
    "/usr/lib/polkit-1/polkitd",
    "/usr/libexec/polkitd",
    "/usr/libexec/polkit-1/polkitd",
];

/// What the distribution's own bus has for it.
const BUS_POLICY: &str = "/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf";

const NAME: &str = "org.freedesktop.PolicyKit1";

/// A `polkitd` on a private bus. It reads directories that are the machine's, so it runs in a
/// mount namespace in which they are the test's: that takes root.
#[derive(Debug)]
pub struct Polkit {
    process: Process,
    directory: PathBuf,
    address: String,
}

impl Polkit {
    /// A bus on which there may be one, and none is yet.
    pub fn bus(stage: &Stage) -> Bus {
        Bus::start_with(stage, "", &[Path::new(BUS_POLICY)])
    }

    /// Starts one, with rules in JavaScript (polkit(8)). What they run may write to the
    /// directory [`Self::scratch`].
    pub fn start(stage: &Stage, bus: &Bus, rules: &str) -> Self {
        let directory = stage.path("polkit");
        let actions = directory.join("actions");
        for (path, mode) in [
            (directory.clone(), 0o755),
            (actions.clone(), 0o755),
            (directory.join("rules"), 0o755),
            (scratch(stage), 0o777),
        ] {
            std::fs::create_dir_all(&path).expect("a directory for polkit");
            let mode = PermissionsExt::from_mode(mode);
            std::fs::set_permissions(path, mode).expect("polkit's user reads it");
        }
        let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd/org.mlskeyd.policy");
        std::fs::copy(own, actions.join("org.mlskeyd.policy")).expect("mlskeyd's actions");
        let file = directory.join("rules/10-test.rules");
        std::fs::write(file, rules).expect("the rules are written");
        let address = bus.address();
        let process = launch(&directory, &address);
        let polkit = Self {
            process,
            directory,
            address,
        };
        polkit.await_name();
        polkit
    }

    /// A directory that rules may write to.
    pub fn scratch(stage: &Stage) -> PathBuf {
        scratch(stage)
    }

    /// The process that runs now.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, with the same rules.
    pub fn restart(&mut self) {
        self.process = launch(&self.directory, &self.address);
        self.await_name();
    }

    /// Waits until it is on the bus.
    fn await_name(&self) {
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let bus = zbus::connection::Builder::address(self.address.as_str());
            let bus = bus.build().await.expect("the bus runs");
            while !is_there(&bus).await {
                assert!(self.process.runs(), "no polkit:\n{}", self.process.log());
                tokio::task::yield_now().await;
            }
        });
    }
}

fn scratch(stage: &Stage) -> PathBuf {
    stage.path("polkit/scratch")
}

async fn is_there(bus: &Connection) -> bool {
    let dbus = "org.freedesktop.DBus";
    let path = "/org/freedesktop/DBus";
    let asked = bus.call_method(Some(dbus), path, Some(dbus), "NameHasOwner", &NAME);
    let answer = asked.await.expect("the bus answers");
    answer.body().deserialize().expect("yes or no")
}

fn launch(directory: &Path, address: &str) -> Process {
    let program = PROGRAMS.iter().find(|path| Path::new(path).exists());
    let program = program.expect("polkitd (package polkitd) is installed");
    let script = "set -e; \
        mount --bind \"$1/actions\" /usr/share/polkit-1/actions; \
        mount -t tmpfs -o mode=755 tmpfs /usr/share/polkit-1/rules.d; \
        mount --bind \"$1/rules\" /etc/polkit-1/rules.d; \
        exec \"$2\" --no-debug";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(directory)
        .arg(program)
        .env("DBUS_SYSTEM_BUS_ADDRESS", address);
    Process::start("polkitd", command, &directory.join("log"))
}
