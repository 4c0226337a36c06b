//! SoftHSM: a PKCS#11 module whose tokens are files.

use std::path::{Path, PathBuf};
use std::process::Command;

use mlskeyd::config::Pkcs11Config;

use super::{Library, Stage};

/// Where distributions install the module.
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib/pkcs11/libsofthsm2.so",
];

/// A SoftHSM of its own, with its tokens in the test's directory.
#[derive(Clone, Debug)]
pub struct SoftHsm {
    library: Library,
    config: PathBuf,
    tokens: PathBuf,
}

/// What another program says of an object, line by line.
#[derive(Debug)]
pub struct Shown(Vec<String>);

impl Shown {
    /// Has it neither a label nor an ID? All that is made for the daemon has.
    pub fn is_nameless(&self) -> bool {
        let tells = |what| {
            let told = self.0.iter().find_map(|line| line.strip_prefix(what));
            told.is_some_and(|told| !told.trim().is_empty())
        };
        !tells("label:") && !tells("ID:")
    }
}

impl SoftHsm {
    /// The user PIN of all tokens.
    pub const PIN: &'static str = Library::PIN;

    /// Makes a SoftHSM without tokens.
    pub fn new(stage: &Stage) -> Self {
        let tokens = stage.path("softhsm");
        std::fs::create_dir(&tokens).expect("the tokens' directory");
        let config = stage.path("softhsm2.conf");
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        std::fs::write(&config, text).expect("the configuration is written");
        let environment = [("SOFTHSM2_CONF", config.display().to_string())];
        Self {
            library: Library::new(stage, Self::module().to_owned(), &environment),
            config,
            tokens,
        }
    }

    /// Initialises a token with this label.
    pub fn add_token(&self, label: &str) {
        self.add_token_with_pin(label, Self::PIN);
    }

    /// Initialises a token with another user PIN.
    pub fn add_token_with_pin(&self, label: &str, pin: &str) {
        let output = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label])
            .args(["--pin", pin, "--so-pin", "31415926"])
            .env("SOFTHSM2_CONF", &self.config)
            .output()
            .expect("softhsm2-util (package softhsm2) starts");
        assert!(output.status.success(), "{output:?}");
    }

    /// A device of this name for the daemon's configuration: the token with this
    /// label.
    pub fn device(&self, name: &str, label: &str) -> String {
        self.library.device(name, label)
    }

    /// What reaches its tokens.
    pub const fn library(&self) -> &Library {
        &self.library
    }

    /// The same, checked.
    pub fn device_config(&self, label: &str) -> Pkcs11Config {
        self.library.device_config(label)
    }

    /// The file with the user PIN.
    pub fn pin_file(&self) -> &Path {
        self.library.pin_file()
    }

    /// The serial numbers of all tokens.
    pub fn serials(&self) -> Vec<String> {
        let output = Command::new("softhsm2-util")
            .arg("--show-slots")
            .env("SOFTHSM2_CONF", &self.config)
            .output()
            .expect("softhsm2-util (package softhsm2) starts");
        let text = String::from_utf8(output.stdout).expect("text");
        let lines = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Serial number:"));
        let serials = lines.map(|serial| serial.trim().to_owned());
        // The slot of the next token has none.
        serials.filter(|serial| !serial.is_empty()).collect()
    }

    /// How many objects all tokens have.
    pub fn objects(&self) -> usize {
        self.object_files().len()
    }

    /// The objects that the token with this label shows to another program.
    pub fn shown(&self, label: &str) -> Vec<Shown> {
        let output = Command::new("pkcs11-tool")
            .arg("--module")
            .arg(Self::module())
            .args(["--token-label", label, "--login", "--pin", Self::PIN])
            .arg("--list-objects")
            .env("SOFTHSM2_CONF", &self.config)
            .output()
            .expect("pkcs11-tool (package opensc) starts");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        let mut objects: Vec<Shown> = Vec::new();
        for line in text.lines() {
            if line.contains(" Object; ") || line.starts_with("Data object") {
                objects.push(Shown(vec![line.trim().to_owned()]));
            } else if let Some(Shown(told)) = objects.last_mut() {
                told.push(line.trim().to_owned());
            }
        }
        objects
    }

    /// Each object of a token is a file.
    fn object_files(&self) -> Vec<PathBuf> {
        let read = |directory: &Path| {
            let entries = std::fs::read_dir(directory).expect("a token's directory");
            entries.map(|entry| entry.expect("an entry").path())
        };
        let is_object = |path: &PathBuf| {
            path.extension().is_some_and(|end| end == "object")
                && path.file_name().is_some_and(|name| name != "token.object")
        };
        read(&self.tokens)
            .flat_map(|token| read(&token).filter(is_object).collect::<Vec<_>>())
            .collect()
    }

    /// All objects' files, with what is in them.
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let read = |path: PathBuf| {
            let content = std::fs::read(&path).expect("an object's file");
            (path, content)
        };
        self.object_files().into_iter().map(read).collect()
    }

    /// Takes all tokens away, as if they were unplugged.
    pub fn unplug(&self) {
        std::fs::rename(&self.tokens, self.away()).expect("the tokens are there");
        std::fs::create_dir(&self.tokens).expect("an empty directory");
    }

    /// Brings them back.
    pub fn plug_in(&self) {
        std::fs::remove_dir(&self.tokens).expect("the directory is empty");
        std::fs::rename(self.away(), &self.tokens).expect("the tokens are away");
    }

    /// Takes all tokens away, and brings those that were away.
    pub fn exchange(&self) {
        let meanwhile = self.tokens.with_extension("meanwhile");
        for (from, to) in [
            (&self.tokens, &meanwhile),
            (&self.away(), &self.tokens),
            (&meanwhile, &self.away()),
        ] {
            std::fs::rename(from, to).expect("tokens here, and tokens away");
        }
    }

    fn away(&self) -> PathBuf {
        self.tokens.with_extension("away")
    }

    /// The shared library.
    pub fn module() -> &'static Path {
        let found = MODULES.iter().map(Path::new).find(|path| path.exists());
        found.expect("SoftHSM (package softhsm2) is installed")
    }

    /// What the module reads from its environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.library.environment()
    }
}
