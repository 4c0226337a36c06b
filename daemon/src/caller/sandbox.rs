//! Which Flatpak or Snap a process is.

use std::fs::File;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, fstat, openat};

use super::process::bounded;
use super::units::Units;

/// Longest id of a Flatpak or name of a Snap, in bytes.
pub(crate) const MAX_ID: usize = 255;

/// A Flatpak, by its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flatpak {
    pub(super) id: String,
    /// Which of its sandboxes: Flatpak numbers them.
    pub(super) instance: Option<String>,
}

/// A Snap, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snap {
    pub(super) name: String,
    /// Does the kernel (AppArmor) hold the process to the Snap's rules?
    pub(super) confined: bool,
}

/// The Flatpak whose root directory this is: Flatpak puts a description of the sandbox there,
/// which the app in it cannot change.
pub(super) fn flatpak(root: BorrowedFd<'_>) -> Option<Flatpak> {
    // Whoever made this root may have put anything there: a pipe is not waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat(
        root,
        ".flatpak-info",
        flags | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let is_file = FileType::from_raw_mode(fstat(&file).ok()?.st_mode).is_file();
    let info = bounded(File::from(file)).ok().filter(|_| is_file)?;
    Some(Flatpak {
        id: value(&info, "[Application]", "name")?,
        instance: value(&info, "[Instance]", "instance-id"),
    })
}

/// The first of this name in the section, if it is an id.
fn value(info: &str, wanted: &str, name: &str) -> Option<String> {
    let mut section = "";
    for line in info.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == wanted
            && let Some((key, value)) = line.split_once('=')
            && key.trim_end() == name
        {
            return is_id(value.trim_start()).then(|| value.trim_start().to_owned());
        }
    }
    None
}

/// The letters of ids of Flatpaks and names of Snaps.
pub(crate) fn is_id(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=MAX_ID).contains(&text.len()) && text.chars().all(plain)
}

/// Is the process in the scope that Flatpak had the user's systemd make for this id?
pub(super) fn is_in_scope_of(id: &str, units: &Units) -> bool {
    let Some((_, scope)) = &units.user else {
        return false;
    };
    let scope = scope.replace("\\x2d", "-");
    let scope = scope.strip_prefix("app-").unwrap_or(&scope);
    let instance = scope
        .strip_prefix("flatpak-")
        .and_then(|rest| rest.strip_prefix(id))
        .and_then(|rest| rest.strip_prefix('-')?.strip_suffix(".scope"));
    instance.is_some_and(|it| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The Snap of a process: by the security label that the kernel has for it, else by its unit.
pub(super) fn snap(label: &str, units: &Units) -> Option<Snap> {
    let label = label.trim_end();
    if let Some(name) = snap_name(label) {
        let confined = label.ends_with(" (enforce)");
        return Some(Snap { name, confined });
    }
    let user = units.user.iter().map(|(_, unit)| unit);
    let name = user.chain(&units.system).find_map(|unit| snap_name(unit))?;
    let confined = false;
    Some(Snap { name, confined })
}

/// `wire` of `snap.wire.app`.
fn snap_name(text: &str) -> Option<String> {
    let (name, _) = text.strip_prefix("snap.")?.split_once('.')?;
    is_id(name).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::caller::units;

    #[test]
    fn a_flatpak_is_what_its_root_says() {
        let info = |text: &str| value(text, "[Application]", "name");
        let own = "[Application]\nname=com.wire.WireDesktop\nruntime=x\n[Instance]\nname=other\ninstance-id=42\n";
        assert_eq!(info(own).as_deref(), Some("com.wire.WireDesktop"));
        let instance = |text: &str| value(text, "[Instance]", "instance-id");
        assert_eq!(instance(own).as_deref(), Some("42"));
        assert_eq!(instance("[Application]\ninstance-id=42\n"), None);
        for none in [
            "",
            "name=com.wire.WireDesktop",
            "[Runtime]\nname=com.wire.WireDesktop",
            "[Application]\nname=",
            "[Application]\nname=com.wire\u{1b}[2J",
            "[Application]\n[Other]\nname=com.wire",
            &format!("[Application]\nname={}", "a".repeat(MAX_ID + 1)),
        ] {
            assert_eq!(info(none), None, "{none:?}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".flatpak-info");
        let root = || File::open(dir.path()).unwrap();
        assert_eq!(flatpak(root().as_fd()), None);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR).unwrap();
        assert_eq!(flatpak(root().as_fd()), None);
        std::fs::remove_file(&path).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::write(&elsewhere, "[Application]\nname=com.wire\n").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert_eq!(flatpak(root().as_fd()), None);
        std::fs::rename(&elsewhere, &path).unwrap();
        assert_eq!(
            flatpak(root().as_fd()).map(|it| it.id).as_deref(),
            Some("com.wire")
        );
        let long = "#".repeat(1 << 20) + "\n[Application]\nname=com.wire\n";
        std::fs::write(&path, long).unwrap();
        assert_eq!(flatpak(root().as_fd()), None);
    }

    fn below_the_manager(unit: &str) -> Units {
        units::of(&format!(
            "0::/user.slice/user@1000.service/app.slice/{unit}"
        ))
    }

    #[test]
    fn a_flatpaks_scope_has_its_id_and_a_number() {
        let is = |unit| is_in_scope_of("com.wire.W-D", &below_the_manager(unit));
        assert!(is("app-flatpak-com.wire.W-D-4711.scope"));
        assert!(is("app-flatpak-com.wire.W\\x2dD-4711.scope"));
        assert!(is("flatpak-com.wire.W-D-4711.scope"));
        assert!(!is("app-flatpak-com.wire.W-D-x-4711.scope"));
        assert!(!is("app-flatpak-com.wire.W-D-.scope"));
        assert!(!is("app-flatpak-com.wire-4711.scope"));
        assert!(!is("app-gnome-com.wire.W-D-4711.scope"));
    }

    #[test]
    fn a_snap_is_what_its_label_says_else_its_unit() {
        let unit = below_the_manager("snap.signal.app-6c9.scope");
        let of = |label: &str, units: &Units| snap(label, units).map(|it| (it.name, it.confined));
        let some = |name: &str, confined| Some((name.to_owned(), confined));
        assert_eq!(of("snap.wire.app (enforce)\n", &unit), some("wire", true));
        assert_eq!(of("snap.wire.app (complain)\n", &unit), some("wire", false));
        assert_eq!(of("unconfined\n", &unit), some("signal", false));
        assert_eq!(of("", &Units::default()), None);
        assert_eq!(of("snap..app (enforce)", &Units::default()), None);
        let service = units::of("0::/system.slice/snap.wire.daemon.service");
        assert_eq!(of("", &service), some("wire", false));
    }
}
