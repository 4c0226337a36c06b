//! Kryoptic: a PKCS#11 module in Rust whose tokens are SQLite databases. `cargo
//! xtask test --full` builds it and says where it is.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use mlskeyd::config::Pkcs11Config;

use super::{Library, Stage};

/// The variable that names the module.
const MODULE: &str = "MLSKEYD_KRYOPTIC";

/// A Kryoptic of its own, with its tokens in the test's directory.
#[derive(Debug)]
pub struct Kryoptic {
    library: Library,
    config: PathBuf,
    tokens: PathBuf,
    /// Tokens so far: their slots are numbered from 0.
    count: usize,
}

impl Kryoptic {
    /// Makes a Kryoptic without tokens.
    ///
    /// # Panics
    /// If the variable `MLSKEYD_KRYOPTIC` does not say where the module is.
    pub fn new(stage: &Stage) -> Self {
        let module = std::env::var_os(MODULE);
        let module = module.expect("MLSKEYD_KRYOPTIC, as set by `cargo xtask test --full`");
        let tokens = stage.path("kryoptic");
        std::fs::create_dir(&tokens).expect("the tokens' directory");
        let config = stage.path("kryoptic.conf");
        std::fs::write(&config, "").expect("the configuration is written");
        let environment = [("KRYOPTIC_CONF", config.display().to_string())];
        Self {
            library: Library::new(stage, module.into(), &environment),
            config,
            tokens,
            count: 0,
        }
    }

    /// Initialises a token with this label.
    pub fn add_token(&mut self, label: &str) {
        let slot = self.count;
        let database = self.tokens.join(format!("{slot}.sql"));
        let mut config = OpenOptions::new()
            .append(true)
            .open(&self.config)
            .expect("the configuration is there");
        write!(
            config,
            "[[slots]]\nslot = {slot}\ndbtype = \"sqlite\"\ndbargs = {database:?}\n"
        )
        .expect("the configuration is written");
        self.count += 1;
        self.library.init_token(slot, label);
    }

    /// A device of this name for the daemon's configuration: the token with this
    /// label.
    pub fn device(&self, name: &str, label: &str) -> String {
        self.library.device(name, label)
    }

    /// The same, checked.
    pub fn device_config(&self, label: &str) -> Pkcs11Config {
        self.library.device_config(label)
    }

    /// The module, its environment and its tokens' PIN.
    pub fn library(&self) -> &Library {
        &self.library
    }
}
