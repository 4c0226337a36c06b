//! The machine: its kernel, and the services beside the daemon.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use mlskeyd_protocol::client::{Doors, Probe, probe};

use super::finding::Finding;
use super::process::read;
use super::{ANSWER_WITHIN, Seen};
use crate::config::Bus;

/// The first kernel that says who has written: `SCM_PIDFD`, `SO_PEERPIDFD`.
const TELLS_WRITERS: (u32, u32) = (6, 5);

/// Where the system's bus is, where nobody says otherwise.
const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";

/// What a bus starts polkit by.
const POLKIT: &str = "usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service";

/// What polkit may be asked of mlskeyd.
const ACTIONS: &str = "usr/share/polkit-1/actions/org.mlskeyd.policy";

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

pub(super) fn kernel(_: &Seen) -> Vec<Finding> {
    vec![
        release(read("/proc/sys/kernel/osrelease").as_deref()),
        ptrace(read("/proc/sys/kernel/yama/ptrace_scope").as_deref()),
    ]
}

fn release(release: Option<&str>) -> Finding {
    const CHECK: &str = "kernel";
    let Some(release) = release.map(str::trim) else {
        return Finding::skip(CHECK, "the kernel's release cannot be seen");
    };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse::<u32>().ok();
    match number().zip(number()) {
        None => Finding::skip(
            CHECK,
            format!("Linux {release}: that is no release we know"),
        ),
        Some(it) if it >= TELLS_WRITERS => Finding::ok(
            CHECK,
            format!("Linux {release} tells which process has written"),
        ),
        Some(_) => Finding::warn(
            CHECK,
            format!("Linux {release} does not tell which process has written"),
            "take 6.5 or later: until then apps are `observed` at best",
        ),
    }
}

fn ptrace(scope: Option<&str>) -> Finding {
    const CHECK: &str = "ptrace-scope";
    const ADVICE: &str = "sysctl kernel.yama.ptrace_scope=1, and in /etc/sysctl.d";
    match scope.map(str::trim) {
        None => Finding::warn(
            CHECK,
            "the kernel is without Yama: programs of a user may trace each other",
            "start it with lsm=...,yama if it has that",
        ),
        Some("0") => Finding::warn(CHECK, "programs of a user may trace each other", ADVICE),
        Some(scope) => Finding::ok(CHECK, format!("ptrace_scope is {scope}")),
    }
}

pub(super) fn bus(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "bus";
    let Some(config) = seen.config() else {
        return vec![Finding::skip(
            CHECK,
            "bus: without the configuration it is not known",
        )];
    };
    let Some(bus) = &config.bus else {
        return vec![Finding::skip(
            CHECK,
            "mlskeyd is on no bus: [dbus] names none",
        )];
    };
    let from = |name: &str| std::env::var(name).ok();
    let address = match bus {
        Bus::System => from("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(|| SYSTEM_BUS.to_owned()),
        Bus::At(address) => address.clone(),
        Bus::Session => match from("DBUS_SESSION_BUS_ADDRESS") {
            Some(address) => address,
            None => {
                let what = "the session's bus: DBUS_SESSION_BUS_ADDRESS is not set here";
                return vec![Finding::skip(CHECK, what)];
            }
        },
    };
    let Some(path) = socket_of(&address) else {
        let what = format!("the bus {address} is none at a path: it is not looked at");
        return vec![Finding::skip(CHECK, what)];
    };
    if let Err(error) = UnixStream::connect(&path) {
        return vec![Finding::fail(
            CHECK,
            format!("the bus does not answer at {}: {error}", path.display()),
            "start dbus, or correct `bus` in [dbus]",
        )];
    }
    let at = path.display();
    let mut findings = vec![match probe(&Doors::bus(address.as_str()), ANSWER_WITHIN) {
        Probe::Answers => Finding::ok(CHECK, format!("mlskeyd answers on the bus at {at}")),
        _ => Finding::fail(
            CHECK,
            format!("mlskeyd does not answer on the bus at {at}"),
            "look at its log; the bus's policy has to let it own org.mlskeyd.Custody1",
        ),
    }];
    if !matches!(bus, Bus::Session) {
        findings.push(polkit(Path::new("/")));
    }
    findings
}

/// Can polkit say who else administers?
fn polkit(root: &Path) -> Finding {
    const CHECK: &str = "polkit";

    if !root.join(POLKIT).exists() {
        return Finding::warn(
            CHECK,
            "polkit is not installed: root and mlskeyd's own user administer it, and nobody else",
            "install polkit if others are to",
        );
    }
    let path = root.join(ACTIONS);
    match std::fs::read_to_string(&path) {
        Err(error) => Finding::fail(
            CHECK,
            format!(
                "polkit knows nothing of mlskeyd's actions: {}: {error}",
                path.display()
            ),
            "put systemd/org.mlskeyd.policy there",
        ),
        // polkit answers for nobody else but root.
        Ok(text) if !text.contains("org.freedesktop.policykit.owner") => Finding::warn(
            CHECK,
            format!("{} names no user that mlskeyd runs as", path.display()),
            "take systemd/org.mlskeyd.policy, and name the daemon's user in it",
        ),
        Ok(_) => Finding::ok(CHECK, "polkit is installed, and knows mlskeyd's actions"),
    }
}

/// The path of the first address (D-Bus Specification, Server Addresses) that has one.
fn socket_of(address: &str) -> Option<PathBuf> {
    let paths = address.split(';').filter_map(|one| {
        let mut values = one.strip_prefix("unix:")?.split(',');
        values.find_map(|value| value.strip_prefix("path="))
    });
    // Of what is escaped nobody makes a socket.
    let mut plain = paths.filter(|path| !path.contains('%'));
    plain.next().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn polkit_has_to_know_the_actions_and_who_asks() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let verdict = || polkit(root.path()).verdict;
        assert_eq!(verdict(), Verdict::Warn);
        put(POLKIT, "");
        assert_eq!(verdict(), Verdict::Fail);
        put(ACTIONS, "<policyconfig/>");
        assert_eq!(verdict(), Verdict::Warn);
        put(
            ACTIONS,
            include_str!("../../../../systemd/org.mlskeyd.policy"),
        );
        assert_eq!(verdict(), Verdict::Ok);
    }

    #[test]
    fn releases_of_the_kernel_are_compared_as_numbers() {
        for (text, verdict) in [
            ("6.5.0-41-generic\n", Verdict::Ok),
            ("6.12.1", Verdict::Ok),
            ("7.0-rc1", Verdict::Ok),
            ("6.4.16", Verdict::Warn),
            ("5.15.0", Verdict::Warn),
            ("plan9", Verdict::Skip),
        ] {
            assert_eq!(release(Some(text)).verdict, verdict, "{text}");
        }
        assert_eq!(release(None).verdict, Verdict::Skip);
        assert_eq!(ptrace(Some("0\n")).verdict, Verdict::Warn);
        assert_eq!(ptrace(Some("1\n")).verdict, Verdict::Ok);
        assert_eq!(ptrace(None).verdict, Verdict::Warn);
    }

    #[test]
    fn a_bus_is_at_the_path_of_its_address() {
        let path = |address: &str| socket_of(address).map(|path| path.display().to_string());
        assert_eq!(path(SYSTEM_BUS).unwrap(), "/run/dbus/system_bus_socket");
        let both = "unix:abstract=/x;unix:guid=1,path=/tmp/bus";
        assert_eq!(path(both).unwrap(), "/tmp/bus");
        assert_eq!(path("tcp:host=localhost,path=/x"), None);
        assert_eq!(path("unix:path=/a%20b"), None);
    }
}
