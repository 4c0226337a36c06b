//! A PKCS#11 module as a test sees it: a shared library, the environment that it
//! reads, and a PIN that all of its tokens have.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mlskeyd::config::{Pkcs11Config, SecretSource, TokenChoice};

use super::Stage;

/// A module, and what its tokens are reached with.
#[derive(Clone, Debug)]
pub struct Library {
    module: PathBuf,
    environment: Vec<(String, String)>,
    pin: PathBuf,
}

impl Library {
    /// The user PIN of all tokens.
    pub const PIN: &'static str = "271828";

    const SO_PIN: &'static str = "31415926";

    /// A module with this environment, and a file with the PIN on the stage.
    pub fn new(stage: &Stage, module: PathBuf, environment: &[(&str, String)]) -> Self {
        let pin = stage.path("pin");
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&pin)
            .expect("the PIN's file");
        writeln!(file, "{}", Self::PIN).expect("the PIN is written");
        let environment = environment.iter();
        Self {
            module,
            environment: environment
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            pin,
        }
    }

    /// The same tokens, reached by another module before this one.
    pub(super) fn behind(&self, module: PathBuf, environment: &[(&str, String)]) -> Self {
        let more = environment.iter();
        let more = more.map(|(name, value)| ((*name).to_owned(), value.clone()));
        Self {
            module,
            environment: self.environment.iter().cloned().chain(more).collect(),
            pin: self.pin.clone(),
        }
    }

    /// Initialises the token in a slot, by somebody else's program.
    pub(super) fn init_token(&self, slot: usize, label: &str) {
        let as_officer = ["--login", "--login-type", "so"];
        self.tool(slot, &["--init-token", "--label", label]);
        let new_pin = ["--init-pin", "--new-pin", Self::PIN];
        self.tool(slot, &[as_officer.as_slice(), &new_pin].concat());
    }

    /// Can the module be loaded, and does it show its slots?
    ///
    /// # Errors
    /// What was said instead.
    pub(super) fn try_out(&self) -> Result<(), String> {
        let output = self.pkcs11_tool().arg("--list-slots").output();
        let output = output.expect("pkcs11-tool (package opensc) starts");
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn tool(&self, slot: usize, arguments: &[&str]) {
        let output = self
            .pkcs11_tool()
            .args(["--slot", &slot.to_string()])
            .args(["--so-pin", Self::SO_PIN])
            .args(arguments)
            .output()
            .expect("pkcs11-tool (package opensc) starts");
        assert!(output.status.success(), "{output:?}");
    }

    fn pkcs11_tool(&self) -> Command {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(&self.module);
        command.envs(self.environment.iter().cloned());
        command
    }

    /// A device of this name for the daemon's configuration: the token with this
    /// label.
    pub fn device(&self, name: &str, label: &str) -> String {
        let pairs = self.environment.iter();
        let environment: Vec<String> = pairs
            .map(|(name, value)| format!("{name} = {value:?}"))
            .collect();
        format!(
            "[[devices]]\nname = {name:?}\nkind = \"pkcs11\"\nmodule = {:?}\ntoken = {label:?}\n\
             pin_file = {:?}\nenvironment = {{ {} }}\n",
            self.module,
            self.pin,
            environment.join(", "),
        )
    }

    /// The same, checked.
    pub fn device_config(&self, label: &str) -> Pkcs11Config {
        Pkcs11Config {
            module: self.module.clone(),
            token: TokenChoice::Label(label.to_owned()),
            pin: SecretSource::File(self.pin.clone()),
            environment: self.environment.iter().cloned().collect(),
            call_timeout: Duration::from_secs(30),
            max_objects: 1000,
            sessions: 4,
        }
    }

    /// The shared library.
    pub fn module(&self) -> &Path {
        &self.module
    }

    /// The file with the user PIN.
    pub fn pin_file(&self) -> &Path {
        &self.pin
    }

    /// What the module reads from its environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.environment.clone()
    }
}
