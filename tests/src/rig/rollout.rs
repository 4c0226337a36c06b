//! A security team that rolls out the company's policies, and signs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::SshKey;

/// A directory of policies that the daemon reads, a fresh set that is not there yet, and the
/// key that signs.
#[derive(Debug)]
pub struct Rollout {
    directory: PathBuf,
    ctl: PathBuf,
    /// The key whose signatures count.
    pub security: SshKey,
}

impl Rollout {
    /// What a signature over policies is for.
    pub const NAMESPACE: &'static str = "policies@mlskeyd";

    /// A team with a key of this kind, whose files are below a directory; no policies yet.
    pub fn new(directory: &Path, ctl: &Path, kind: &str) -> Self {
        let rollout = Self {
            directory: directory.to_owned(),
            ctl: ctl.to_owned(),
            security: SshKey::new(directory, "security", kind),
        };
        for directory in [rollout.there(), rollout.fresh("")] {
            fs::create_dir(directory).expect("a directory for policies");
        }
        rollout
    }

    /// Lines of the section `policy`.
    pub fn configuration(&self) -> String {
        let (there, public) = (self.there(), self.security.public());
        format!("local_dir = {there:?}\nsigners = [{public:?}]\n")
    }

    fn there(&self) -> PathBuf {
        self.directory.join("policies.d")
    }

    /// A file of the set that is not there yet.
    pub fn fresh(&self, name: &str) -> PathBuf {
        self.directory.join("fresh").join(name)
    }

    /// Its manifest.
    pub fn manifest(&self) -> PathBuf {
        self.fresh("manifest.toml")
    }

    /// Makes a fresh set of one file, with a manifest that nobody has signed.
    pub fn write(&self, policies: &str, serial: u64, options: &[&str]) {
        fs::remove_dir_all(self.fresh("")).expect("the set of before");
        fs::create_dir(self.fresh("")).expect("a directory for a set");
        fs::write(self.fresh("90-company.cedar"), policies).expect("policies");
        let mut command = Command::new(&self.ctl);
        command.args(["policy", "manifest"]).arg(self.fresh(""));
        command
            .args(["--serial", &serial.to_string()])
            .args(options);
        let output = command.output().expect("mlskeyctl starts");
        assert!(output.status.success(), "{output:?}");
    }

    /// The same, signed.
    pub fn sign(&self, policies: &str, serial: u64) {
        self.write(policies, serial, &[]);
        self.security.sign(Self::NAMESPACE, &self.manifest());
    }

    /// Exchanges the fresh set for the one that is there, at once: the daemon, which looks by
    /// itself, sees no other one.
    pub fn deliver(&self) {
        let (fresh, there) = (self.fresh(""), self.there());
        renameat_with(CWD, fresh, CWD, there, RenameFlags::EXCHANGE).expect("both are there");
    }
}
