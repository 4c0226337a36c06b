//! A card from the factory, and programs on it.

use std::path::PathBuf;
use std::process::Command;

use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Stage, YubiKeys, with_input};

/// A firmware without Curve25519.
pub(crate) const OLD: [u8; 3] = [5, 4, 3];
/// One that has it, and deletes keys.
pub(crate) const NEW: [u8; 3] = [5, 7, 1];

pub(crate) const PIN: &str = "123456";
pub(crate) const PUK: &str = "12345678";

/// A card in reader 0, as it leaves the factory.
pub(crate) struct Bench {
    pub(crate) cards: YubiKeys,
    pub(crate) card: usize,
    pub(crate) stage: Stage,
}

impl Bench {
    pub(crate) fn new(version: [u8; 3]) -> Self {
        let stage = Stage::new(programs!());
        let mut cards = YubiKeys::new(&stage);
        let card = cards.make(12_345_678, version);
        // Debian's programs of Yubico's know no other management key.
        cards.use_3des(card);
        cards.insert(card, 0);
        Self { cards, card, stage }
    }

    /// A file of the stage.
    pub(crate) fn file(&self, name: &str) -> String {
        self.stage.path(name).to_str().unwrap().to_owned()
    }

    /// The same, with this content.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> String {
        std::fs::write(self.stage.path(name), content).unwrap();
        self.file(name)
    }

    /// Runs a program on the card: whether it succeeded, and all that it said.
    pub(crate) fn attempt(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let mut command = self.cards.client(program);
        command.args(arguments);
        let output = with_input(command, "");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    /// The same, of one that has to succeed.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let (done, said) = self.attempt(program, arguments);
        assert!(done, "{program} {arguments:?}: {said}");
        said
    }

    /// A certificate for a public key, by somebody who certifies anything. (Debian's
    /// `yubico-piv-tool` signs none: it fails before it asks the card.)
    pub(crate) fn certify(&self, public: &str) -> String {
        let [key, authority, certificate] =
            ["authority.key", "authority.pem", "certificate.pem"].map(|name| self.file(name));
        self.openssl(&[
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-keyout",
            &key,
            "-out",
            &authority,
            "-subj",
            "/CN=authority",
        ]);
        self.openssl(&[
            "x509",
            "-new",
            "-force_pubkey",
            public,
            "-subj",
            "/CN=test",
            "-CA",
            &authority,
            "-CAkey",
            &key,
            "-out",
            &certificate,
        ]);
        certificate
    }

    /// OpenSSL, which has to succeed.
    pub(crate) fn openssl(&self, arguments: &[&str]) -> String {
        let output = Command::new("openssl").args(arguments).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "openssl {arguments:?}: {said}");
        said
    }
}

/// Where a library is installed.
pub(crate) fn library(names: &[&str]) -> PathBuf {
    let folders = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    ];
    let mut paths = folders.iter().flat_map(|folder| {
        let paths = names
            .iter()
            .map(move |name| PathBuf::from(folder).join(name));
        paths.collect::<Vec<_>>()
    });
    paths
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("none of {names:?} is installed"))
}
