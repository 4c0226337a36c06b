//! Where the keys of the demo are, and what plays that.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::stage::{Program, Stage};

/// Where the keys of the demo are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Device {
    /// In the built-in software device.
    #[default]
    Software,
    /// In a token of SoftHSM.
    Pkcs11,
    /// In swtpm, a TPM in software.
    Tpm2,
    /// In a YubiKey in software.
    YubiKey,
}

/// What a device needs for the configuration and for its programs, and the program that
/// it is, if it is one.
pub(super) struct Prepared {
    pub(super) table: String,
    pub(super) program: Option<Program>,
    /// Where its clients find it: a variable of their environment.
    pub(super) environment: Option<(&'static str, PathBuf)>,
}

/// Where the demo looks for two ports: below those that systems give away.
const TPM_PORTS: (u16, u16) = (12_320, 12_420);

/// The user PIN of the demo's token.
const PIN: &str = "271828";

/// Where distributions install SoftHSM's module.
const SOFTHSM: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib/pkcs11/libsofthsm2.so",
];

impl Device {
    pub(crate) fn named(name: Option<&str>) -> Result<Self, String> {
        match name {
            Some("software") => Ok(Self::Software),
            Some("pkcs11") => Ok(Self::Pkcs11),
            Some("tpm2") => Ok(Self::Tpm2),
            Some("yubikey") => Ok(Self::YubiKey),
            _ => Err("--device is software, pkcs11, tpm2 or yubikey".to_owned()),
        }
    }

    /// What the set-up calls that this device needs.
    pub(crate) fn packages(self) -> &'static str {
        match self {
            Self::Software => "demo",
            Self::Pkcs11 => "demo-pkcs11",
            Self::Tpm2 => "demo-tpm2",
            Self::YubiKey => "demo-yubikey",
        }
    }

    /// The cipher suite of the demo: MLS's mandatory one, unless the device keeps
    /// the keys of another one better.
    pub(super) fn suite(self) -> &'static str {
        match self {
            Self::Software | Self::Pkcs11 => "1",
            Self::Tpm2 | Self::YubiKey => "2",
        }
    }

    /// What the daemon says when it is ready.
    pub(super) const fn announced(self) -> &'static str {
        match self {
            Self::Software => "ready, with its built-in software device",
            Self::Pkcs11 => "ready, with a token of SoftHSM",
            Self::Tpm2 => "ready, with a TPM in software (swtpm)",
            Self::YubiKey => "ready, with a YubiKey in software",
        }
    }

    /// The highest tier of its keys, and what is to be said of that.
    pub(super) const fn tier(self) -> (&'static str, Option<&'static str>) {
        let played = match self {
            Self::Software => return ("software", None),
            Self::Pkcs11 => "(As the token says. SoftHSM only plays a token in hardware.)",
            Self::Tpm2 => "(As the TPM says. swtpm only plays one in hardware.)",
            Self::YubiKey => {
                "(As the YubiKey says, which is only played. It seals the keys that come and go.)"
            }
        };
        ("hardware", Some(played))
    }

    /// Makes the device.
    pub(super) fn prepare(self, stage: &Stage) -> Result<Prepared, String> {
        let of_files = |table| Prepared {
            table,
            program: None,
            environment: None,
        };
        match self {
            Self::Software => {
                let table = "[[devices]]\nname = \"software\"\nkind = \"software\"\n";
                Ok(of_files(table.to_owned()))
            }
            Self::Pkcs11 => prepare_token(stage).map(of_files),
            Self::Tpm2 => prepare_tpm(stage),
            Self::YubiKey => prepare_yubikey(stage),
        }
    }
}

/// A fresh TPM.
fn prepare_tpm(stage: &Stage) -> Result<Prepared, String> {
    let state = stage.path("tpm");
    std::fs::create_dir(&state).map_err(|error| format!("cannot make the TPM: {error}"))?;
    // Two ports, one after the other, which others may take in the meantime.
    for port in (TPM_PORTS.0..TPM_PORTS.1).step_by(2) {
        let both = [port, port.saturating_add(1)];
        if both.iter().any(|&port| is_taken(port)) {
            continue;
        }
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"]);
        command
            .arg("--tpmstate")
            .arg(format!("dir={}", state.display()));
        for (channel, port) in ["--server", "--ctrl"].iter().zip(both) {
            let address = format!("type=tcp,port={port},bindaddr=127.0.0.1");
            command.arg(channel).arg(address);
        }
        let mut program = stage.start("swtpm", command)?;
        // It says to nobody when it listens.
        while program.runs() {
            if both.iter().all(|&port| is_taken(port)) {
                return Ok(Prepared {
                    table: format!(
                        "[[devices]]\nname = \"tpm\"\nkind = \"tpm2\"\n\
                         tcti = \"swtpm:host=127.0.0.1,port={port}\"\n"
                    ),
                    program: Some(program),
                    environment: None,
                });
            }
            std::thread::yield_now();
        }
    }
    Err("swtpm does not start".to_owned())
}

fn is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err()
}

/// A fresh token of a SoftHSM of its own.
fn prepare_token(stage: &Stage) -> Result<String, String> {
    let failed = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let (tokens, config, pin) = (
        stage.path("tokens"),
        stage.path("softhsm2.conf"),
        stage.path("pin"),
    );
    std::fs::create_dir(&tokens).map_err(|error| failed("cannot make the token", error))?;
    let text = format!("directories.tokendir = {}\n", tokens.display());
    std::fs::write(&config, text).map_err(|error| failed("cannot configure SoftHSM", error))?;
    private_file(&pin, PIN).map_err(|error| failed("cannot write the PIN", error))?;
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "demo", "--pin", PIN])
        .args(["--so-pin", "31415926"])
        .env("SOFTHSM2_CONF", &config)
        .stdout(Stdio::null())
        .status()
        .map_err(|error| failed("cannot start softhsm2-util", error))?;
    if !made.success() {
        return Err("softhsm2-util made no token".to_owned());
    }
    let module = SOFTHSM.iter().find(|path| Path::new(path).exists());
    let module = module.ok_or("SoftHSM is installed, but not its module")?;
    Ok(format!(
        "[[devices]]\nname = \"token\"\nkind = \"pkcs11\"\nmodule = {module:?}\ntoken = \"demo\"\n\
         pin_file = {pin:?}\nenvironment = {{ SOFTHSM2_CONF = {config:?} }}\n"
    ))
}

/// A fresh YubiKey in a reader of a pcscd of its own, got ready as any is.
fn prepare_yubikey(stage: &Stage) -> Result<Prepared, String> {
    let socket = stage.path("pcscd");
    let mut command = Command::new(super::build_directory()?.join("mlskeyd-virtual-yubikey"));
    command.arg(&socket);
    let mut program = stage.start("yubikey", command)?;
    super::expect_ready(&mut program)?;
    for order in [
        r#"{"make":{"serial":27182818,"version":[5,4,3]}}"#,
        r#"{"insert":{"card":0,"reader":0}}"#,
    ] {
        let answer = program.tell(order)?;
        if answer != r#""done""# {
            return Err(format!("the virtual YubiKey said {answer}"));
        }
    }
    let pin = stage.path("pin");
    private_file(&pin, PIN).map_err(|error| format!("cannot write the PIN: {error}"))?;
    let mut provision = Command::new(super::build_directory()?.join("mlskeyctl"));
    provision
        .args(["provision", "yubikey"])
        .env("PCSCLITE_CSOCK_NAME", &socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let failed = |error: std::io::Error| format!("cannot run mlskeyctl: {error}");
    let mut provisioning = provision.spawn().map_err(failed)?;
    if let Some(mut input) = provisioning.stdin.take() {
        // The new PIN, and the new PUK.
        writeln!(input, "{PIN}\n31415926").map_err(failed)?;
    }
    if !provisioning.wait().map_err(failed)?.success() {
        return Err("mlskeyctl did not get the YubiKey ready".to_owned());
    }
    Ok(Prepared {
        table: format!(
            "[[devices]]\nname = \"yubikey\"\nkind = \"yubikey\"\npin_file = {pin:?}\nmanagement_key = \"on-card\"\n"
        ),
        program: Some(program),
        environment: Some(("PCSCLITE_CSOCK_NAME", socket)),
    })
}

/// A file that nobody else can read.
fn private_file(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new();
    file.create_new(true).write(true).mode(0o600);
    file.open(path)?.write_all(text.as_bytes())
}
