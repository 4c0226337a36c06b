//! A daemon on a bus with a polkit, and a user that has no rights of its own.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mlskeyd::audit::{AuditOutcome, Entries, FILE_NAME, Record};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Bus, Daemon, Options, Polkit, Process, Stage};

/// `nobody`, since a bus serves only users who have a name.
pub(crate) const NOBODY: u32 = 65_534;

/// polkit says yes to this user, to whatever is asked.
pub(crate) const YES: &str = "polkit.addRule(function(action, subject) {
    if (subject.user == 'nobody') return polkit.Result.YES;
});";

pub(crate) struct Scene {
    pub(crate) daemon: Daemon,
    pub(crate) polkit: Option<Polkit>,
    pub(crate) bus: Bus,
    pub(crate) stage: Stage,
}

impl Scene {
    /// With these rules of polkit.
    pub(crate) fn new(rules: &str) -> Self {
        Self::with(rules, "")
    }

    /// The same, with more of the daemon's configuration.
    pub(crate) fn with(rules: &str, extra: &str) -> Self {
        let mut scene = Self::without_polkit(extra);
        scene.start_polkit(rules);
        scene
    }

    pub(crate) fn without_polkit(extra: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "tests of polkit take root, which can be several users"
        );
        let stage = Stage::new(programs!());
        let bus = Polkit::bus(&stage);
        let directory = stage.path("daemon");
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
        let options = Options {
            extra: format!("{extra}\n{}", bus.section()),
            ..Options::default()
        };
        let daemon = Daemon::start(&stage, &options);
        Self {
            daemon,
            polkit: None,
            bus,
            stage,
        }
    }

    pub(crate) fn start_polkit(&mut self, rules: &str) {
        self.polkit = Some(Polkit::start(&self.stage, &self.bus, rules));
    }

    pub(crate) fn polkit(&mut self) -> &mut Polkit {
        self.polkit.as_mut().unwrap()
    }

    /// A program as another user runs it.
    pub(crate) fn as_user(&self, uid: u32, program: &Path) -> Command {
        let copy = self.stage.path(program.file_name().unwrap());
        if !copy.exists() {
            std::fs::copy(program, &copy).unwrap();
            std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let mut command = Command::new(copy);
        command.current_dir("/").gid(uid).uid(uid);
        command
    }

    /// `mlskeyctl` as `nobody`, at the socket.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Outcome {
        let mut command = self.as_user(NOBODY, &self.stage.programs().ctl);
        command.arg("--socket").arg(self.daemon.socket());
        Outcome::of(command.args(arguments))
    }

    /// The same, on the bus.
    pub(crate) fn ctl_on_bus(&self, arguments: &[&str]) -> Outcome {
        let mut command = self.as_user(NOBODY, &self.stage.programs().ctl);
        command.arg("--bus").arg(self.bus.address());
        Outcome::of(command.args(arguments))
    }

    /// This test program as `nobody`: see `actor`.
    pub(crate) fn actor(&self, act: &str) -> Process {
        let own = std::env::current_exe().unwrap();
        let mut command = self.as_user(NOBODY, &own);
        command.args(["--exact", "actor::acts", "--nocapture", "--ignored"]);
        command.env("MLSKEYD_TEST_ACT", act);
        command.env("MLSKEYD_TEST_SOCKET", self.daemon.socket());
        command.env("MLSKEYD_TEST_BUS", self.bus.address());
        command.env("MLSKEYD_TEST_SCRATCH", self.scratch());
        Process::start(act, command, &self.stage.path("actor.log"))
    }

    pub(crate) fn scratch(&self) -> PathBuf {
        Polkit::scratch(&self.stage)
    }

    /// What is on record of `nobody`.
    pub(crate) fn records(&self) -> Vec<Record> {
        let entries = Entries::open(&self.daemon.state().join(FILE_NAME)).unwrap();
        let records = entries.map(|entry| entry.unwrap().record);
        let of_nobody = |record: &Record| {
            let caller = record.caller.as_ref();
            caller.is_some_and(|caller| caller.owner.uid == NOBODY)
        };
        records.filter(of_nobody).collect()
    }

    /// The actions of `nobody` on record, each with what permitted or refused it.
    pub(crate) fn on_record(&self) -> Vec<String> {
        let records = self.records().into_iter();
        let text = |record: Record| match record.outcome {
            AuditOutcome::Served { policy } => format!("{} by {policy}", record.action),
            AuditOutcome::Denied { policy, .. } => {
                format!("{} refused by {policy}", record.action)
            }
            AuditOutcome::Failed { code } => format!("{} failed: {code:?}", record.action),
            AuditOutcome::Noted { note } => format!("{} {note}", record.action),
        };
        records.map(text).collect()
    }
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
    pub(crate) complained: String,
}

impl Outcome {
    fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        Self {
            code: output.status.code(),
            said: String::from_utf8(output.stdout).unwrap(),
            complained: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub(crate) fn served(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.said
    }

    /// With this exit code, and this in what it says.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, text: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.complained.contains(text), "{self:?}");
    }
}
