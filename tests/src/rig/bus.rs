//! A private message bus, with the rules of a machine's own and mlskeyd's policy for it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Process, Stage};

/// A `dbus-daemon`. Anybody may connect; the user who runs the tests may be mlskeyd there, and
/// listen to everything.
#[derive(Debug)]
pub struct Bus {
    process: Process,
    directory: PathBuf,
}

/// What Debian's `system.conf` says, without what it includes and the user that it runs as.
const SYSTEM: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=SOCKET</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
    <deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus" send_member="UpdateActivationEnvironment"/>
  </policy>
  <policy user="USER">
    <allow own="org.mlskeyd.Custody1"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/>
    MORE
  </policy>
  <limit name="max_connections_per_user">512</limit>
  <limit name="max_replies_per_connection">2048</limit>
  INCLUDED
</busconfig>
"#;

impl Bus {
    /// Starts one.
    pub fn start(stage: &Stage) -> Self {
        Self::start_with(stage, "", &[])
    }

    /// Starts one with more rules for this user, and with more policies that are installed.
    pub fn start_with(stage: &Stage, more: &str, policies: &[&Path]) -> Self {
        let directory = stage.path("bus");
        std::fs::create_dir(&directory).expect("a directory for the bus");
        // Other users come in, too.
        for open in [stage.path(""), directory.clone()] {
            let all = PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(open, all).expect("the directory is opened");
        }
        let own = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../systemd/org.mlskeyd.Custody1.conf"
        );
        let include = |path: &Path| format!("<include>{}</include>\n", path.display());
        let included: String = std::iter::once(Path::new(own))
            .chain(policies.iter().copied())
            .map(include)
            .collect();
        let config = SYSTEM
            .replace("SOCKET", &directory.join("socket").display().to_string())
            .replace("USER", &rustix::process::geteuid().as_raw().to_string())
            .replace("MORE", more)
            .replace("INCLUDED", &included);
        std::fs::write(directory.join("config"), config).expect("its configuration is written");
        let process = launch(&directory);
        Self { process, directory }
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("unix:path={}", self.directory.join("socket").display())
    }

    /// The section of the daemon's configuration that has it on this bus.
    pub fn section(&self) -> String {
        format!("[dbus]\nbus = {:?}\n", self.address())
    }

    /// The process that runs now.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it, with all connections.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, at the same address.
    pub fn restart(&mut self) {
        self.process = launch(&self.directory);
    }
}

fn launch(directory: &Path) -> Process {
    // That of one that was killed.
    let _ = std::fs::remove_file(directory.join("socket"));
    let mut command = Command::new("dbus-daemon");
    command
        .arg("--config-file")
        .arg(directory.join("config"))
        .args(["--nofork", "--nopidfile", "--print-address"]);
    let mut process = Process::start("dbus-daemon", command, &directory.join("log"));
    let address = process.line();
    assert!(address.is_some(), "no bus:\n{}", process.log());
    process
}
