//! tpm2-pkcs11: a PKCS#11 module whose keys a TPM 2.0 makes and uses; here
//! swtpm, a TPM in software.
//!
//! A TPM has room for three loaded keys. What shares it out is a kernel's
//! `/dev/tpmrm0` on a real machine and tpm2-abrmd here, which is spoken to over
//! a bus of its own.

use std::path::Path;
use std::process::Command;

use mlskeyd::config::Pkcs11Config;

use super::{Library, Process, Stage, Swtpm};

/// Where distributions install the module.
const MODULES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so",
    "/usr/lib/aarch64-linux-gnu/pkcs11/libtpm2_pkcs11.so",
    "/usr/lib64/pkcs11/libtpm2_pkcs11.so",
    "/usr/lib/pkcs11/libtpm2_pkcs11.so",
    "/usr/lib/libtpm2_pkcs11.so",
];

/// The bus's name of tpm2-abrmd.
const ABRMD: &str = "com.intel.tss2.Tabrmd";

/// A TPM, what shares it out, and a tpm2-pkcs11 with a store in the test's
/// directory. The TPM keeps its state where there is a power cut.
#[derive(Debug)]
pub struct Tpm2Pkcs11 {
    library: Library,
    /// Tokens so far: the slot after theirs is always free.
    count: usize,
    // The bus before the TPM: tpm2-abrmd ends with it.
    _bus: Process,
    _tpm: Swtpm,
}

impl Tpm2Pkcs11 {
    /// Makes a TPM, and a store without tokens.
    ///
    /// # Panics
    /// If one of the programs, or the module, is not installed.
    pub fn new(stage: &Stage) -> Self {
        let store = stage.path("tpm2-pkcs11");
        std::fs::create_dir(&store).expect("the store's directory");
        let tpm = Swtpm::new(stage);
        let bus = start_bus(stage, &tpm);
        let address = format!("unix:path={}", stage.path("bus").display());
        let environment = [
            ("DBUS_SESSION_BUS_ADDRESS", address),
            (
                "TPM2_PKCS11_TCTI",
                format!("tabrmd:bus_type=session,bus_name={ABRMD}"),
            ),
            ("TPM2_PKCS11_BACKEND", "esysdb".to_owned()),
            ("TPM2_PKCS11_STORE", store.display().to_string()),
        ];
        let module = MODULES.iter().map(Path::new).find(|path| path.exists());
        let module = module.expect("tpm2-pkcs11 (package libtpm2-pkcs11-1) is installed");
        let library = Library::new(stage, module.to_owned(), &environment);
        await_abrmd(&library);
        Self {
            library,
            count: 0,
            _bus: bus,
            _tpm: tpm,
        }
    }

    /// Initialises a token with this label.
    pub fn add_token(&mut self, label: &str) {
        self.count += 1;
        self.library.init_token(self.count, label);
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

/// Waits until tpm2-abrmd answers: it takes its name on the bus, by which it is
/// waited for, a moment before it listens there.
fn await_abrmd(library: &Library) {
    const TRIES: usize = 10;
    let mut tried = library.try_out();
    for _ in 1..TRIES {
        if tried.is_ok() {
            break;
        }
        tried = library.try_out();
    }
    tried.expect("tpm2-abrmd answers");
}

/// Starts a bus, which starts tpm2-abrmd when somebody asks for it.
fn start_bus(stage: &Stage, tpm: &Swtpm) -> Process {
    let services = stage.path("services");
    std::fs::create_dir(&services).expect("a directory of services");
    let service = format!(
        "[D-BUS Service]\nName={ABRMD}\n\
         Exec=/usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin tpm2-abrmd --session --allow-root \
         --flush-all --dbus-name={ABRMD} --tcti={}\n",
        tpm.tcti(),
    );
    let file = services.join(format!("{ABRMD}.service"));
    std::fs::write(file, service).expect("the service is written");
    let config = stage.path("bus.conf");
    let text = format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n\
         <busconfig>\n<type>session</type>\n<listen>unix:path={}</listen>\n\
         <auth>EXTERNAL</auth>\n<servicedir>{}</servicedir>\n\
         <policy context=\"default\">\n<allow send_destination=\"*\" eavesdrop=\"true\"/>\n\
         <allow eavesdrop=\"true\"/>\n<allow own=\"*\"/>\n</policy>\n</busconfig>\n",
        stage.path("bus").display(),
        services.display(),
    );
    std::fs::write(&config, text).expect("the bus's configuration is written");
    let mut command = Command::new("dbus-daemon");
    command.arg("--config-file").arg(config);
    command.args(["--nofork", "--nopidfile", "--print-address"]);
    let mut bus = Process::start("dbus-daemon", command, &stage.path("bus.log"));
    let address = bus.line();
    assert!(address.is_some(), "no bus:\n{}", bus.log());
    bus
}
