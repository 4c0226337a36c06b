//! A maker of TPMs: it certifies their endorsement keys, as swtpm's own tools do it,
//! with an authority in the test's directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use pki_types::CertificateDer;
use pki_types::pem::PemObject;

use super::{Stage, Swtpm};

/// Where a TPM has the certificate of its P-256 key.
const P256_CERTIFICATE: &str = "0x01c0000a";

/// Where a TPM has certificates between its own and a root.
const CHAIN: &str = "0x01c00100";

/// What may be done with certificates in a TPM: anybody reads them.
const ATTRIBUTES: &str = "ppwrite|ppread|ownerread|authread|no_da|platformcreate";

/// An authority with a root, and one below it that certifies.
#[derive(Debug)]
pub struct Maker {
    directory: PathBuf,
}

impl Maker {
    /// Makes one of this name.
    ///
    /// # Panics
    /// If its directory cannot be made.
    pub fn new(stage: &Stage, name: &str) -> Self {
        let directory = stage.path(name);
        std::fs::create_dir(&directory).expect("the maker's directory");
        let maker = Self { directory };
        let (authority, setup) = (maker.config(), maker.path("setup.conf"));
        let authority_text = format!(
            "statedir = {0}\nsigningkey = {0}/signkey.pem\nissuercert = {0}/issuercert.pem\n\
             certserial = {0}/certserial\n",
            maker.directory.display(),
        );
        std::fs::write(&authority, authority_text).expect("the authority's configuration");
        std::fs::write(maker.options(), "").expect("the authority's options");
        let setup_text = format!(
            "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {}\n\
             create_certs_tool_options = {}\nactive_pcr_banks = sha256\n",
            authority.display(),
            maker.options().display(),
        );
        std::fs::write(setup, setup_text).expect("the configuration of swtpm_setup");
        maker
    }

    /// Makes a TPM, with its RSA endorsement key certified, in a directory that is empty.
    ///
    /// # Panics
    /// If swtpm-tools are not installed, or fail.
    pub fn make_tpm(&self, state: &Path) {
        let mut command = Command::new("swtpm_setup");
        command.args(["--tpm2", "--create-ek-cert", "--config"]);
        command.arg(self.path("setup.conf"));
        command.arg("--tpm-state").arg(state);
        run(command);
    }

    /// Certifies the P-256 endorsement key of a TPM, too, and leaves that and the
    /// authority's own certificate in it. Nobody else may be connected.
    ///
    /// # Panics
    /// As [`Self::make_tpm`].
    pub fn certify_p256(&self, tpm: &Swtpm) {
        tpm.tool(&["createek", "-G", "ecc", "-c", "ek.ctx", "-u", "ek.pub"]);
        let public = tpm.tool(&["readpublic", "-c", "ek.ctx"]);
        tpm.tool(&["flushcontext", "-t"]);
        let coordinate = |name: &str| {
            let mut lines = public.lines().filter_map(|line| line.strip_prefix(name));
            lines.next().expect("a coordinate").trim().to_owned()
        };
        let point = format!("x={},y={},id=secp256r1", coordinate("x:"), coordinate("y:"));
        let mut command = Command::new("swtpm_localca");
        command.args(["--type", "ek", "--tpm2", "--ek", &point]);
        command.args(["--tpm-spec-family", "2.0", "--tpm-spec-level", "0"]);
        command.args(["--tpm-spec-revision", "164", "--tpm-model", "swtpm"]);
        command.args(["--tpm-manufacturer", "id:00001014", "--tpm-version", "id:1"]);
        command.arg("--dir").arg(tpm.state());
        command.arg("--configfile").arg(self.config());
        command.arg("--optsfile").arg(self.options());
        run(command);
        leave(tpm, P256_CERTIFICATE, "ek.cert");
        let own = CertificateDer::from_pem_file(self.authority()).expect("a certificate");
        std::fs::write(tpm.state().join("issuer.der"), own).expect("the TPM's directory");
        leave(tpm, CHAIN, "issuer.der");
    }

    /// The certificate of the root, in PEM.
    pub fn root(&self) -> PathBuf {
        self.path("swtpm-localca-rootca-cert.pem")
    }

    /// The certificate of the authority that certifies, in PEM.
    pub fn authority(&self) -> PathBuf {
        self.path("issuercert.pem")
    }

    fn config(&self) -> PathBuf {
        self.path("localca.conf")
    }

    fn options(&self) -> PathBuf {
        self.path("localca.options")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Leaves a file of the TPM's directory in an index, which anybody may read.
fn leave(tpm: &Swtpm, index: &str, file: &str) {
    let length = std::fs::metadata(tpm.state().join(file))
        .expect("a file")
        .len();
    let length = length.to_string();
    tpm.tool(&[
        "nvdefine", index, "-C", "p", "-s", &length, "-a", ATTRIBUTES,
    ]);
    tpm.tool(&["nvwrite", index, "-C", "p", "-i", file]);
}

fn run(mut command: Command) {
    let output = command.output();
    let output =
        output.unwrap_or_else(|error| panic!("{command:?} (package swtpm-tools): {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}
