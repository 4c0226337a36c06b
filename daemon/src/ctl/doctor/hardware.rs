//! What devices need of the machine.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mlskeyd_protocol::v1::DeviceState;
use nix::unistd::{Gid, Group};
use rustix::fs::{Access, access};

use super::finding::Finding;
use super::{Seen, unseen};
use crate::config::{DeviceConfig, DeviceKind};

/// Where pcscd listens, where nobody says otherwise.
const PCSCD: &str = "/run/pcscd/pcscd.comm";

/// What names another place, for pcscd's library in the daemon.
const PCSCD_VARIABLE: &str = "PCSCLITE_CSOCK_NAME";

/// What polkit asks of whoever connects to pcscd.
const PCSCD_ACTION: &str = "org.debian.pcsc-lite.access_pcsc";

/// Where polkit knows that action from: without it pcscd asks nobody.
const PCSCD_POLICY: &str = "/usr/share/polkit-1/actions/org.debian.pcsc-lite.policy";

/// Longest environment that is searched.
const MAX_ENVIRONMENT: u64 = 1024 * 1024;

/// The configured devices of a kind.
fn devices(seen: &Seen) -> &[DeviceConfig] {
    seen.config().map_or(&[], |config| &config.devices)
}

pub(super) fn pkcs11(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "pkcs11";
    let mut findings: Vec<Finding> = (devices(seen).iter())
        .filter_map(|device| match &device.kind {
            DeviceKind::Pkcs11(token) => Some(module(&device.name, &token.module)),
            _ => None,
        })
        .collect();
    if !findings.is_empty() {
        let named = seen.config().and_then(|it| it.pkcs11_helper.clone());
        findings.push(match named.or_else(|| beside_the_daemon(seen)) {
            Some(helper) => program(&helper),
            None => Finding::skip(CHECK, "where mlskeyd-pkcs11 is only the daemon knows"),
        });
    }
    findings
}

fn module(device: &str, path: &Path) -> Finding {
    const CHECK: &str = "pkcs11";
    // Of a file alone: a pipe would wait for its other end.
    match path.metadata() {
        Ok(found) if found.is_file() => match File::open(path) {
            Ok(_) => Finding::ok(
                CHECK,
                format!("module {} of {device} is there", path.display()),
            ),
            Err(error) => unseen(CHECK, path, &error),
        },
        Ok(_) => {
            let what = format!("module {} of {device} is no file", path.display());
            Finding::fail(CHECK, what, "correct `module` in the configuration")
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Finding::fail(
            CHECK,
            format!("module {} of {device} is not there", path.display()),
            "install the vendor's package, or correct `module` in the configuration",
        ),
        Err(error) => unseen(CHECK, path, &error),
    }
}

/// The helper that the daemon starts where none is configured.
fn beside_the_daemon(seen: &Seen) -> Option<PathBuf> {
    let pid = seen.status.as_ref().ok()?.pid;
    let own = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(own.with_file_name("mlskeyd-pkcs11"))
}

fn program(path: &Path) -> Finding {
    const CHECK: &str = "pkcs11";
    match path.metadata() {
        Ok(found) if found.is_file() && found.mode() & 0o111 != 0 => {
            Finding::ok(CHECK, format!("the helper {} is there", path.display()))
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => unseen(CHECK, path, &error),
        _ => Finding::fail(
            CHECK,
            format!("the helper {} is no program", path.display()),
            "install mlskeyd again, or correct `pkcs11_helper` in the configuration",
        ),
    }
}

pub(super) fn pcscd(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "pcscd";
    let mut configured = devices(seen).iter();
    if !configured.any(|device| matches!(device.kind, DeviceKind::YubiKey(_))) {
        return Vec::new();
    }
    let path = of_daemon(seen, PCSCD_VARIABLE)
        .or_else(|| std::env::var_os(PCSCD_VARIABLE).map(PathBuf::from))
        .unwrap_or_else(|| PCSCD.into());
    let socket = match path.metadata() {
        Ok(found) if found.file_type().is_socket() => {
            Finding::ok(CHECK, format!("pcscd listens at {}", path.display()))
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => unseen(CHECK, &path, &error),
        _ => Finding::fail(
            CHECK,
            format!("nobody listens at {}", path.display()),
            "install pcscd, then: systemctl enable --now pcscd.socket",
        ),
    };
    vec![socket, permitted(seen)]
}

/// A variable of the daemon's environment, which root alone sees.
fn of_daemon(seen: &Seen, name: &str) -> Option<PathBuf> {
    let pid = seen.status.as_ref().ok()?.pid;
    let file = File::open(format!("/proc/{pid}/environ")).ok()?;
    let mut text = Vec::new();
    file.take(MAX_ENVIRONMENT).read_to_end(&mut text).ok()?;
    let mut variables = text.split(|byte| *byte == 0);
    let value = variables.find_map(|one| {
        let one = std::str::from_utf8(one).ok()?;
        one.strip_prefix(name)?.strip_prefix('=')
    })?;
    Some(value.into())
}

/// May the daemon's user open the reader?
fn permitted(seen: &Seen) -> Finding {
    const CHECK: &str = "pcscd-access";
    let Ok(status) = &seen.status else {
        return Finding::skip(CHECK, "whether mlskeyd may use pcscd only it knows");
    };
    let mut cards = status.devices.iter().filter(|it| it.kind == "yubikey");
    if cards.any(|it| matches!(it.state, DeviceState::Ready | DeviceState::Locked)) {
        return Finding::ok(CHECK, "mlskeyd uses pcscd");
    }
    if !Path::new(PCSCD_POLICY).exists() {
        return Finding::ok(CHECK, "pcscd asks nobody who may use it");
    }
    let asked = Command::new("/usr/bin/pkcheck")
        .args(["--action-id", PCSCD_ACTION, "--process"])
        .arg(status.pid.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match asked.ok().and_then(|it| it.code()) {
        Some(0) => Finding::ok(CHECK, "polkit lets mlskeyd use pcscd"),
        // Not authorized, or only if somebody authenticates: pkcheck(1).
        Some(1..=3) => Finding::fail(
            CHECK,
            "polkit does not let mlskeyd's user use pcscd",
            format!("a rule in /etc/polkit-1/rules.d that permits {PCSCD_ACTION} for that user"),
        ),
        _ => Finding::skip(CHECK, "polkit does not say whether mlskeyd may use pcscd"),
    }
}

pub(super) fn tpm(seen: &Seen) -> Vec<Finding> {
    let chips = devices(seen)
        .iter()
        .filter_map(|device| match &device.kind {
            DeviceKind::Tpm2(chip) => chip.tcti.device().map(|path| (&device.name, path)),
            _ => None,
        });
    chips.map(|(name, path)| node(seen, name, path)).collect()
}

fn node(seen: &Seen, name: &str, path: &Path) -> Finding {
    const CHECK: &str = "tpm";
    let shown = path.display();
    let found = match path.metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let what = format!("{shown} of {name} is not there");
            return Finding::fail(CHECK, what, "turn the TPM on in the firmware's settings");
        }
        Err(error) => return unseen(CHECK, path, &error),
    };
    if !found.file_type().is_char_device() {
        let what = format!("{shown} of {name} is no device");
        return Finding::fail(CHECK, what, "correct `tcti` in the configuration");
    }
    let may = match &seen.process {
        Some(process) => process.may_use(found.uid(), found.gid(), found.mode()),
        None if access(path, Access::READ_OK | Access::WRITE_OK).is_ok() => true,
        None => {
            let what = format!("{shown} of {name} is not for us; whether for mlskeyd is not seen");
            return Finding::skip(CHECK, what);
        }
    };
    if may {
        return Finding::ok(CHECK, format!("{shown} of {name} may be used"));
    }
    let group = Group::from_gid(Gid::from_raw(found.gid())).ok().flatten();
    let group = group.map_or_else(|| found.gid().to_string(), |group| group.name);
    Finding::fail(
        CHECK,
        format!("mlskeyd may not use {shown} of {name}"),
        format!("put its user into group {group}: SupplementaryGroups={group} in its unit"),
    )
}
