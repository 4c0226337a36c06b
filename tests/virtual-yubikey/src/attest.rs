//! The attestation key in slot F9, its certificate, and what it says of other keys
//! (<https://developers.yubico.com/PIV/Introduction/PIV_attestation.html>).
//!
//! OpenSSL's program makes the keys and signs, when it is first asked for: a key of RSA
//! takes its time. Firmware 5.4 has a key of RSA here, 5.7 one of P-384.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::card::NEW;
use crate::key::random;
use crate::tlv;

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

impl Attested<'_> {
    /// Its `SubjectPublicKeyInfo`.
    fn info(&self) -> Option<Vec<u8>> {
        let head = match self.algorithm {
            0x11 => "3059301306072a8648ce3d020106082a8648ce3d030107034200",
            0x14 => "3076301006072a8648ce3d020106052b81040022036200",
            0xe0 => "302a300506032b6570032100",
            _ => "302a300506032b656e032100",
        };
        Some([&hex::decode(head).ok()?, self.public].concat())
    }
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

    /// The public key of the attestation key, as metadata tells it.
    pub(crate) fn public(&self) -> Option<Vec<u8>> {
        let f9 = self.certificate()?;
        let [_, _, info] = of_f9(&f9)?;
        let info = tlv::all(info)?;
        let key = tlv::only(&info, 0x03)?.get(1..)?;
        if self.version >= NEW {
            return Some(tlv::write(0x86, key));
        }
        let key = tlv::all(key)?;
        let key = tlv::all(tlv::only(&key, 0x30)?)?;
        let [(2, modulus), (2, exponent)] = key[..] else {
            return None;
        };
        let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
        Some([tlv::write(0x81, modulus), tlv::write(0x82, exponent)].concat())
    }

    /// The certificate of a key: DER. Issuer and validity are those of the attestation
    /// key's own; the manual has a whole one
    /// (<https://docs.yubico.com/yesdk/users-manual/application-piv/apdu/attest.html>).
    /// Which hash firmware 5.7 signs is not said there: it is SHA-256 here.
    pub(crate) fn attest(&self, key: &Attested<'_>) -> Option<Vec<u8>> {
        let f9 = self.certificate()?;
        let [validity, issuer, _] = of_f9(&f9)?;
        let signed_by = hex::decode(if self.version < NEW {
            "300d06092a864886f70d01010b0500"
        } else {
            "300a06082a8648ce3d040302"
        });
        let signed_by = signed_by.ok()?;
        let [first, rest @ ..] = random::<16>();
        let number = [&[first & 0x3f | 0x40], &rest[..]].concat();
        let certificate = [
            tlv::write(0xa0, &tlv::write(2, &[2])),
            tlv::write(2, &number),
            signed_by.clone(),
            tlv::write(0x30, issuer),
            tlv::write(0x30, validity),
            subject(key.slot),
            key.info()?,
            tlv::write(0xa3, &tlv::write(0x30, &self.extensions(key))),
        ];
        let certificate = tlv::write(0x30, &certificate.concat());
        let signature = [vec![0], self.sign(&certificate)?].concat();
        let whole = [certificate, signed_by, tlv::write(3, &signature)];
        Some(tlv::write(0x30, &whole.concat()))
    }

    /// What the card says of a key, and of itself: firmware, serial number, policies, and
    /// form, which is a keychain's with USB-A.
    fn extensions(&self, key: &Attested<'_>) -> Vec<u8> {
        let serial = tlv::write(2, &integer(self.serial));
        let values: [(u8, &[u8]); 4] = [
            (3, &self.version),
            (7, &serial),
            (8, &key.policies),
            (9, &[1]),
        ];
        let extensions = values.map(|(number, value)| {
            let id = [&YUBICO_DER, &[number][..]].concat();
            tlv::write(0x30, &[tlv::write(6, &id), tlv::write(4, value)].concat())
        });
        extensions.concat()
    }

    /// A signature by the attestation key.
    fn sign(&self, content: &[u8]) -> Option<Vec<u8>> {
        fs::write(self.path("slot.tbs"), content).ok()?;
        self.openssl([
            "dgst", "-sha256", "-sign", "f9.key", "-out", "slot.sig", "slot.tbs",
        ])?;
        fs::read(self.path("slot.sig")).ok()
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
        let extensions =
            format!("basicConstraints=critical,CA:TRUE,pathlen:0\n{YUBICO}.3=DER:{version}\n");
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
/// The same, in DER.
const YUBICO_DER: [u8; 9] = [0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0xc4, 0x0a, 0x03];

/// Validity, subject, and public key of the attestation key's certificate: the contents.
fn of_f9(der: &[u8]) -> Option<[&[u8]; 3]> {
    let certificate = tlv::all(der)?;
    let certificate = tlv::all(tlv::only(&certificate, 0x30)?)?;
    let parts = tlv::all(certificate.first()?.1)?;
    // Before them: version, serial number, algorithm and issuer.
    let part = |index: usize| parts.get(index).map(|(_, content)| *content);
    Some([part(4)?, part(5)?, part(6)?])
}

/// The name of the key in a slot.
fn subject(slot: u8) -> Vec<u8> {
    let name = format!("YubiKey PIV Attestation {slot:02x}");
    let name = [
        tlv::write(6, &[0x55, 0x04, 0x03]),
        tlv::write(0x0c, name.as_bytes()),
    ];
    let name = tlv::write(0x31, &tlv::write(0x30, &name.concat()));
    tlv::write(0x30, &name)
}

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
