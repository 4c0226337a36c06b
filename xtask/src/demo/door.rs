//! The door through which the messengers come.

use std::process::Command;

use crate::stage::{Program, Stage};

/// Where the messengers find the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Door {
    /// Its Unix socket.
    #[default]
    Socket,
    /// A message bus, and nothing else.
    Dbus,
}

impl Door {
    /// What follows `--door` on the command line.
    pub(crate) fn named(name: Option<&str>) -> Result<Self, String> {
        match name {
            Some("socket") => Ok(Self::Socket),
            Some("dbus") => Ok(Self::Dbus),
            _ => Err("--door takes socket or dbus".to_owned()),
        }
    }

    /// What the set-up calls that this door needs.
    pub(crate) fn packages(self) -> &'static str {
        match self {
            Self::Socket => "demo",
            Self::Dbus => "demo-dbus",
        }
    }
}

/// A private message bus.
pub(super) struct Bus {
    program: Program,
}

impl Bus {
    /// The address of the bus of this stage.
    pub(super) fn address(stage: &Stage) -> String {
        format!("unix:path={}", stage.path("bus.sock").display())
    }

    /// Starts it, and waits until it serves.
    pub(super) fn start(stage: &Stage) -> Result<Self, String> {
        let config = stage.path("bus.conf");
        let text = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n\
             <busconfig>\n<type>system</type>\n<listen>{}</listen>\n<auth>EXTERNAL</auth>\n\
             <policy context=\"default\">\n<allow own=\"org.mlskeyd.Custody1\"/>\n\
             <allow send_destination=\"*\"/>\n<allow receive_sender=\"*\"/>\n</policy>\n\
             </busconfig>\n",
            Self::address(stage)
        );
        let failed = |error| format!("cannot prepare the bus: {error}");
        std::fs::write(&config, text).map_err(failed)?;
        // What one that has ended may have left.
        let _ = std::fs::remove_file(stage.path("bus.sock"));
        let mut command = Command::new("dbus-daemon");
        command.arg("--config-file").arg(&config);
        command.args(["--nofork", "--nopidfile", "--print-address"]);
        let mut program = stage.start("bus", command)?;
        program.line()?;
        Ok(Self { program })
    }

    /// Ends it.
    pub(super) fn stop(self) -> Result<(), String> {
        self.program.terminate()
    }
}
