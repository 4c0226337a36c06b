//! The attestation key in slot F9, its certificate, and what it says of other keys
//! (<https://developers.yubico.com/PIV/Introduction/PIV_attestation.html>).
//!
//! OpenSSL's program issues the certificates, when they are first asked for: nobody
//! else's eyes are as used to them. Firmware 5.4 has a key of RSA here, 5.7 one of P-384.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::card::NEW;

/// Where the makers of one card's certificates work.
pub(crate) struct Workshop {
    directory: PathBuf,
    version: [u8; 3],
    serial: u32,
}

/// A key of which something is said.
pub(crate) struct Attested<'a> {
    pub(crate) slot: u8,
    pub(crate) algorithm: u8,
    pub(crate) public: &'a [u8],
    pub(crate) policies: [u8; 2],
}

impl Workshop {
    pub(crate) const fn new(directory: PathBuf, version: [u8; 3], serial: u32) -> Self {
        Self {
            directory,
            version,
            serial,
        }
    }

    /// The certificate of the root, in PEM.
    pub(crate) fn root(&self) -> Option<String> {
        self.prepare()?;
        fs::read_to_string(self.path("root.pem")).ok()
    }

    /// The certificate of the attestation key: DER.
    pub(crate) fn certificate(&self) -> Option<Vec<u8>> {
        self.prepare()?;
        fs::read(self.path("f9.der")).ok()
    }

    /// The certificate of a key: DER.
    pub(crate) fn attest(&self, key: &Attested<'_>) -> Option<Vec<u8>> {
        self.prepare()?;
        let prefix = match key.algorithm {
            0x11 => "3059301306072a8648ce3d020106082a8648ce3d030107034200",
            0x14 => "3076301006072a8648ce3d020106052b81040022036200",
            0xe0 => "302a300506032b6570032100",
            _ => "302a300506032b656e032100",
        };
        let mut public = hex::decode(prefix).ok()?;
        public.extend_from_slice(key.public);
        fs::write(self.path("slot.pub"), public).ok()?;
        let [version, policies] = [&self.version[..], &key.policies].map(of_hex);
        let serial = crate::tlv::write(2, &integer(self.serial));
        let extensions = format!(
            "{YUBICO}.3=DER:{version}\n{YUBICO}.7=DER:{}\n{YUBICO}.8=DER:{policies}\n{YUBICO}.9=DER:01\n",
            of_hex(&serial)
        );
        fs::write(self.path("slot.ext"), extensions).ok()?;
        let subject = format!("/CN=YubiKey PIV Attestation {:02x}", key.slot);
        self.openssl([
            "x509",
            "-new",
            "-force_pubkey",
            "slot.pub",
            "-subj",
            &subject,
            "-CA",
            "f9.pem",
            "-CAkey",
            "f9.key",
            "-days",
            "3650",
            "-extfile",
            "slot.ext",
            "-outform",
            "DER",
            "-out",
            "slot.der",
        ])?;
        fs::read(self.path("slot.der")).ok()
    }

    /// Makes the root and the attestation key, unless they are there.
    fn prepare(&self) -> Option<()> {
        if self.path("f9.der").exists() {
            return Some(());
        }
        fs::create_dir_all(&self.directory).ok()?;
        let kind: &[&str] = if self.version < NEW {
            &["-newkey", "rsa:2048"]
        } else {
            &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"]
        };
        let version = of_hex(&self.version);
        let extensions = format!("basicConstraints=CA:TRUE,pathlen:0\n{YUBICO}.3=DER:{version}\n");
        fs::write(self.path("f9.ext"), extensions).ok()?;
        let root = [
            "req",
            "-x509",
            "-nodes",
            "-keyout",
            "root.key",
            "-out",
            "root.pem",
            "-subj",
            "/CN=Virtual PIV Root CA",
            "-days",
            "3650",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ];
        self.openssl([&root, kind].concat())?;
        let request = [
            "req",
            "-new",
            "-nodes",
            "-keyout",
            "f9.key",
            "-out",
            "f9.csr",
            "-subj",
            "/CN=Yubico PIV Attestation",
        ];
        self.openssl([&request, kind].concat())?;
        self.openssl([
            "x509", "-req", "-in", "f9.csr", "-CA", "root.pem", "-CAkey", "root.key", "-days",
            "3650", "-extfile", "f9.ext", "-out", "f9.pem",
        ])?;
        self.openssl(["x509", "-in", "f9.pem", "-outform", "DER", "-out", "f9.new"])?;
        fs::rename(self.path("f9.new"), self.path("f9.der")).ok()
    }

    fn openssl(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Option<()> {
        let mut command = Command::new("openssl");
        let output = command
            .args(arguments)
            .current_dir(&self.directory)
            .output()
            .ok()?;
        output.status.success().then_some(())
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }
}

const YUBICO: &str = "1.3.6.1.4.1.41482.3";

/// Bytes as OpenSSL's configuration has them.
fn of_hex(bytes: &[u8]) -> String {
    let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// A positive INTEGER: without a leading zero, unless it would be negative.
fn integer(number: u32) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(3);
    let bytes = bytes.get(start..).unwrap_or_default();
    match bytes.first() {
        Some(0x80..) => [&[0], bytes].concat(),
        _ => bytes.to_vec(),
    }
}
