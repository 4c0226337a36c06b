//! The running daemon: what it answers, and what its process may.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use mlskeyd_protocol::client::{CallError, Probe, probe};
use mlskeyd_protocol::v1::{DaemonStatus, DeviceInfo, DeviceState, FailureCode, OwnedIdentity};

use super::finding::Finding;
use super::{ANSWER_WITHIN, Seen, call, unseen};
use crate::certificates::RENEW_WITHIN;
use crate::ctl::certificates;
use crate::ctl::table::date;

/// This program's version, which should be the daemon's.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Is it that we are nobody to the daemon, and not that something is wrong?
fn is_refusal(error: &CallError) -> bool {
    match error {
        CallError::Refused(_) => true,
        CallError::Failure(failure) => failure.code == FailureCode::Denied,
        _ => false,
    }
}

/// Looks at what the daemon says of itself.
fn with_status(
    seen: &Seen,
    check: &'static str,
    look: impl FnOnce(&DaemonStatus) -> Vec<Finding>,
) -> Vec<Finding> {
    match &seen.status {
        Ok(status) => look(status),
        Err(error) if is_refusal(error) => {
            let what = format!(
                "{check}: the daemon tells root, its own user, and whom polkit lets, by --bus"
            );
            vec![Finding::skip(check, what)]
        }
        Err(_) => vec![Finding::skip(
            check,
            format!("{check}: the daemon does not answer"),
        )],
    }
}

pub(super) fn daemon(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "daemon";
    let at = seen.socket.display();
    vec![match &seen.status {
        Ok(status) if status.version == VERSION => {
            let pid = status.pid;
            Finding::ok(
                CHECK,
                format!("mlskeyd {VERSION} answers at {at}, process {pid}"),
            )
        }
        Ok(status) => Finding::warn(
            CHECK,
            format!("mlskeyd {} answers, and this is {VERSION}", status.version),
            "start mlskeyd again after an update: systemctl restart mlskeyd",
        ),
        // It serves others: does it serve apps?
        Err(error) if is_refusal(error) => match probe(&seen.doors(), ANSWER_WITHIN) {
            Probe::Answers => Finding::ok(CHECK, format!("mlskeyd answers at {at}")),
            _ => Finding::failed(CHECK, error),
        },
        Err(error) => Finding::failed(CHECK, error),
    }]
}

pub(super) fn socket(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "socket";
    let path = &seen.socket;
    if seen.doors.is_some() {
        let what = format!("{}: a bus was named", path.display());
        return vec![Finding::skip(CHECK, what)];
    }
    let found = match path.metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let what = format!("there is no socket {}", path.display());
            return vec![Finding::fail(CHECK, what, "start mlskeyd, which makes it")];
        }
        Err(error) => return vec![unseen(CHECK, path, &error)],
    };
    let shown = path.display();
    let mode = found.mode() & 0o7777;
    vec![if !found.file_type().is_socket() {
        let what = format!("{shown} is no socket");
        Finding::fail(CHECK, what, "move it away, and start mlskeyd again")
    } else if mode & 0o222 != 0o222 {
        Finding::warn(
            CHECK,
            format!("the socket {shown} has mode {mode:04o}: not all apps may connect"),
            format!("chmod 0666 {shown}: mlskeyd itself decides whom it serves"),
        )
    } else {
        Finding::ok(CHECK, format!("apps may connect to {shown}"))
    }]
}

pub(super) fn registry(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "registry";
    with_status(seen, CHECK, |status| {
        vec![match &status.read_only {
            None => Finding::ok(
                CHECK,
                format!("the registry takes changes, {} keys", status.keys),
            ),
            Some(why) => Finding::fail(
                CHECK,
                format!("the registry is read-only: {why}"),
                "see to that, and start mlskeyd again",
            ),
        }]
    })
}

pub(super) fn devices(seen: &Seen) -> Vec<Finding> {
    with_status(seen, "devices", |status| {
        status.devices.iter().map(device).collect()
    })
}

fn device(device: &DeviceInfo) -> Finding {
    const CHECK: &str = "devices";
    let name = &device.name;
    let mut what = format!("device {name} ({}) is {}", device.kind, device.state);
    if let Some(detail) = &device.detail {
        what.push_str(&format!(": {detail}"));
    }
    match device.state {
        DeviceState::Ready => Finding::ok(CHECK, what),
        DeviceState::Locked => Finding::warn(CHECK, what, format!("mlskeyctl unlock {name}")),
        DeviceState::Absent => {
            Finding::warn(CHECK, what, "put it in, or see to the service behind it")
        }
        DeviceState::Failed => {
            Finding::fail(CHECK, what, "see to that; `mlskeyctl devices` says more")
        }
    }
}

pub(super) fn certificates(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "certificates";
    with_status(seen, CHECK, |_| {
        let identities = match seen.client.identities(&call()) {
            Ok(identities) => identities,
            Err(error) => return vec![Finding::failed(CHECK, &error)],
        };
        let now = super::machine::now();
        let findings: Vec<_> = (identities.iter())
            .filter_map(|owned| certificate(owned, now))
            .collect();
        if findings.is_empty() {
            let what = "no identity's certificate ends within 30 days";
            return vec![Finding::ok(CHECK, what)];
        }
        findings
    })
}

/// A certificate that ends soon, or has ended.
fn certificate(owned: &OwnedIdentity, now: u64) -> Option<Finding> {
    const CHECK: &str = "certificates";
    let (owner, name) = (&owned.owner, &owned.identity.name);
    let ends = certificates::ends(&owned.identity.credential)?;
    let advice = format!("mlskeyctl identities csr {owner} {name}, and import what is issued");
    let whose = format!("the certificate of {name} of {owner}");
    if ends <= now {
        Some(Finding::fail(
            CHECK,
            format!("{whose} ended {}", date(ends)),
            advice,
        ))
    } else if ends <= now.saturating_add(RENEW_WITHIN) {
        Some(Finding::warn(
            CHECK,
            format!("{whose} ends {}", date(ends)),
            advice,
        ))
    } else {
        None
    }
}

pub(super) fn process(seen: &Seen) -> Vec<Finding> {
    with_status(seen, "process", |status| {
        let Some(process) = &seen.process else {
            let what = format!("process {} cannot be seen in /proc", status.pid);
            return vec![Finding::skip("process", what)];
        };
        let named = seen.config().map(|config| !config.apps.is_empty());
        let looks = match (process.may_look, named) {
            (true, _) => Finding::ok("callers", "mlskeyd may look at other users' programs"),
            (false, Some(true)) => Finding::warn(
                "callers",
                "mlskeyd may not look at other users' programs, so their apps have no names",
                "AmbientCapabilities=CAP_SYS_PTRACE in its unit",
            ),
            (false, _) => Finding::skip(
                "callers",
                "mlskeyd may not look at other users' programs; it takes that only for [apps]",
            ),
        };
        let dumps = match process.dumps_core {
            Some(false) => Finding::ok("core-dumps", "mlskeyd dumps no core"),
            Some(true) => Finding::warn(
                "core-dumps",
                "mlskeyd may dump its memory, and keys in it",
                "LimitCORE=0 in its unit",
            ),
            None => Finding::skip("core-dumps", "the daemon's limits cannot be seen"),
        };
        vec![looks, dumps]
    })
}
