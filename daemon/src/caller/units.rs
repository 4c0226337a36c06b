//! The systemd units in which a process is, by its control group.
//!
//! The path of a control group names units from the root on. What is below the first one is
//! that unit's own to name, so nothing there is believed: but for the manager of a user, which
//! runs the units of this user.

/// The units of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Units {
    /// The system's.
    pub(super) system: Option<String>,
    /// A user's, by the user's manager: whose, and which.
    pub(super) user: Option<(u32, String)>,
}

/// The units that `/proc/PID/cgroup` names, in the unified hierarchy.
pub(super) fn of(cgroup: &str) -> Units {
    let mut lines = cgroup.lines();
    let path = lines.find_map(|line| line.strip_prefix("0::/"));
    let mut parts = path.unwrap_or_default().split('/');
    let system = parts.find_map(unit);
    let manager = system.as_deref().and_then(manager_of);
    let user = manager.and_then(|uid| Some((uid, parts.find_map(unit)?)));
    Units { system, user }
}

/// The user whose manager this unit is.
fn manager_of(unit: &str) -> Option<u32> {
    let uid = unit.strip_prefix("user@")?.strip_suffix(".service")?;
    uid.parse().ok()
}

/// A unit that has processes. systemd puts `_` before a name that the kernel would take for
/// a file of its own.
fn unit(part: &str) -> Option<String> {
    let name = part.strip_prefix('_').unwrap_or(part);
    let has_processes = [".service", ".scope"]
        .iter()
        .any(|kind| name.len() > kind.len() && name.ends_with(kind));
    has_processes.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_that_systemd_made() {
        let system = |name: &str| (Some(name.to_owned()), None);
        let user = |name: &str| {
            let manager = Some("user@1000.service".to_owned());
            (manager, Some((1000, name.to_owned())))
        };
        let below = "/user.slice/user-1000.slice/user@1000.service";
        for (path, (system, user)) in [
            (
                "/system.slice/wire.service".to_owned(),
                system("wire.service"),
            ),
            // What a unit has below itself is its own.
            (
                "/system.slice/ssh.service/wire.service".to_owned(),
                system("ssh.service"),
            ),
            (
                "/user.slice/user-1000.slice/session-3.scope".to_owned(),
                system("session-3.scope"),
            ),
            (
                "/system.slice/system-w.slice/w@1.service".to_owned(),
                system("w@1.service"),
            ),
            ("/_wire.service".to_owned(), system("wire.service")),
            (
                format!("{below}/app.slice/wire.service"),
                user("wire.service"),
            ),
            (
                format!("{below}/app.slice/a.scope/wire.service"),
                user("a.scope"),
            ),
            (below.to_owned(), system("user@1000.service")),
            (
                "/user@x.service/wire.service".to_owned(),
                system("user@x.service"),
            ),
            ("/".to_owned(), (None, None)),
            ("/.service".to_owned(), (None, None)),
            ("/../../wire.slice".to_owned(), (None, None)),
        ] {
            let cgroup = format!("1:name=systemd:/other.service\n0::{path}\n");
            assert_eq!(of(&cgroup), Units { system, user }, "{path}");
        }
        assert_eq!(of(""), Units::default());
        assert_eq!(of("1:name=systemd:/other.service\n"), Units::default());
    }
}
