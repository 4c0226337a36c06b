use std::fs::Permissions;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::*;
use crate::caller::Peer;
use crate::caller::sandbox::Flatpak;
use crate::caller::sandbox::Snap;
use crate::caller::units;
use crate::config::Config;

const UID: u32 = 1000;

fn apps(text: &str) -> Apps {
    Apps::new(Config::parse(Path::new("c.toml"), text).unwrap().apps)
}

/// This process, which is in nothing.
fn seen() -> Seen {
    let (socket, _peer) = UnixStream::pair().unwrap();
    let mut seen = Peer::of(socket.as_fd(), None).unwrap().look().unwrap();
    (seen.units, seen.flatpak, seen.snap) = (units::of(""), None, None);
    seen
}

fn in_unit(path: &str) -> Seen {
    let mut seen = seen();
    seen.units = units::of(&format!("0::{path}\n"));
    seen
}

fn flatpak(id: &str) -> Option<Flatpak> {
    let (id, instance) = (id.to_owned(), None);
    Some(Flatpak { id, instance })
}

fn is(apps: &Apps, seen: &Seen) -> (String, Identified) {
    let app = apps.of(UID, seen);
    (app.name, app.identified)
}

fn named(name: &str, identified: Identified) -> (String, Identified) {
    (name.to_owned(), identified)
}

fn nobody() -> (String, Identified) {
    named("default", Identified::Unknown)
}

const ALL: &str = "[apps.f]\nflatpak = \"com.wire\"\n[apps.s]\nsnap = \"wire\"\n\
    [apps.u]\nunit = \"wire.service\"\n[apps.m]\nuser_unit = \"app-flatpak-com.wire-7.scope\"";

#[test]
fn what_is_stronger_goes_first() {
    let apps = apps(ALL);
    let below = "/user.slice/user-1000.slice/user@1000.service/app-flatpak-com.wire-7.scope";
    let mut seen = in_unit(below);
    assert_eq!(is(&apps, &seen), named("m", Identified::Observed));
    seen.snap = Some(Snap {
        name: "wire".into(),
        confined: true,
    });
    assert_eq!(is(&apps, &seen), named("s", Identified::Enforced));
    seen.flatpak = flatpak("com.wire");
    assert_eq!(is(&apps, &seen), named("f", Identified::Enforced));
    seen.flatpak = flatpak("com.other");
    assert_eq!(is(&apps, &seen), named("s", Identified::Enforced));
    let seen = in_unit("/system.slice/wire.service");
    assert_eq!(is(&apps, &seen), named("u", Identified::Enforced));
}

#[test]
fn what_nobody_sees_to_is_observed() {
    let apps = apps(ALL);
    let mut seen = seen();
    seen.flatpak = flatpak("com.wire");
    // Its root says so, and no scope does: anybody's namespace has such a root.
    assert_eq!(is(&apps, &seen), named("f", Identified::Observed));
    seen.flatpak = None;
    seen.snap = Some(Snap {
        name: "wire".into(),
        confined: false,
    });
    assert_eq!(is(&apps, &seen), named("s", Identified::Observed));
    seen.snap = None;
    assert_eq!(is(&apps, &seen), nobody());
}

#[test]
fn the_unit_of_another_users_manager_is_nobodys() {
    let apps = apps("[apps.m]\nuser_unit = \"wire.service\"\n[apps.u]\nunit = \"wire.service\"");
    let below = |uid: u32| in_unit(&format!("/user.slice/user@{uid}.service/wire.service"));
    assert_eq!(is(&apps, &below(UID)), named("m", Identified::Observed));
    assert_eq!(is(&apps, &below(UID + 1)), nobody());
}

#[test]
fn of_an_interpreter_or_by_an_old_kernel_nothing_is_enforced() {
    let apps = apps(ALL);
    let mut seen = in_unit("/system.slice/wire.service");
    assert_eq!(is(&apps, &seen), named("u", Identified::Enforced));
    seen.exact = false;
    assert_eq!(is(&apps, &seen), named("u", Identified::Observed));
    seen.exact = true;
    seen.program.path = PathBuf::from("/usr/bin/python3.11");
    assert_eq!(is(&apps, &seen), named("u", Identified::Observed));
}

#[test]
fn interpreters_are_known_by_name() {
    for name in [
        "python3",
        "python3.13 (deleted)",
        "node-20",
        "electron28",
        "sh",
        "bash",
        "java",
        "ld-linux-x86-64.so.2",
        "pypy3",
    ] {
        assert!(is_interpreter(&Path::new("/usr/bin").join(name)), "{name}");
    }
    for name in [
        "wire-desktop",
        "shotwell",
        "nodejs-app",
        "javac",
        "electronics",
        "",
    ] {
        assert!(!is_interpreter(&Path::new("/usr/bin").join(name)), "{name}");
    }
}

/// A program as the process that runs it is seen.
fn program(path: &Path) -> Program {
    let file = std::fs::File::open(path).unwrap();
    Program {
        stat: rustix::fs::fstat(&file).unwrap(),
        file: file.into(),
        path: path.to_owned(),
        mounts: seen().program.mounts,
    }
}

fn running(path: &Path) -> Seen {
    let mut seen = seen();
    seen.program = program(path);
    seen
}

fn of_exe(path: &Path, more: &str) -> Apps {
    let mut apps = apps(&format!("[apps.wire]\nexe = {path:?}\n{more}"));
    apps.mounts = Some(seen().program.mounts);
    apps
}

#[test]
fn a_program_is_roots_file_at_that_path() {
    let apps = of_exe(Path::new("/bin/sleep"), "");
    assert_eq!(
        is(&apps, &running(Path::new("/bin/sleep"))),
        named("wire", Identified::Observed)
    );
    // Whatever a mount namespace shows there.
    let mut other = running(Path::new("/bin/cat"));
    other.program.path = PathBuf::from("/bin/sleep");
    assert_eq!(is(&apps, &other), nobody());
    let mut seen = running(Path::new("/bin/sleep"));
    for (owner, mode) in [(1000, 0o755), (0, 0o775), (0, 0o757)] {
        seen.program.stat.st_uid = owner;
        seen.program.stat.st_mode = 0o100_000 | mode;
        assert_eq!(is(&apps, &seen), nobody(), "{owner} {mode:o}");
    }
}

#[test]
fn a_program_that_an_update_replaced_is_known_until_it_ends() {
    let apps = of_exe(Path::new("/opt/wire/wire"), "");
    let mut seen = running(Path::new("/bin/sleep"));
    seen.program.stat.st_nlink = 0;
    seen.program.path = PathBuf::from("/opt/wire/wire (deleted)");
    assert_eq!(is(&apps, &seen), named("wire", Identified::Observed));
    seen.program.mounts += 1;
    assert_eq!(
        is(&apps, &seen),
        nobody(),
        "the path is of another mount namespace"
    );
    seen.program.mounts -= 1;
    seen.program.stat.st_nlink = 1;
    assert_eq!(
        is(&apps, &seen),
        nobody(),
        "it is there, and so somewhere else"
    );
}

#[test]
fn a_digest_makes_any_file_known_and_none_that_differs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wire");
    std::fs::write(&path, "one").unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let digest = hex::encode(Sha256::digest(b"one"));
    assert_eq!(is(&of_exe(&path, ""), &running(&path)), nobody());
    let apps = of_exe(&path, &format!("sha256 = {digest:?}"));
    assert_eq!(
        is(&apps, &running(&path)),
        named("wire", Identified::Observed)
    );
    // As fast as a clock's tick, and of the same size.
    std::fs::write(&path, "two").unwrap();
    assert_eq!(is(&apps, &running(&path)), nobody());
}

#[test]
fn what_goes_on_record_is_short_and_plain() {
    let mut seen = running(Path::new("/bin/sleep"));
    seen.flatpak = flatpak("com.wire");
    let app = apps("").of(UID, &seen);
    assert_eq!(app.program.unwrap(), "/bin/sleep (Flatpak com.wire)");
    seen.program.path = PathBuf::from(format!("/a\n\u{1b}{}", "ü".repeat(4000)));
    let shown = apps("").of(UID, &seen).program.unwrap();
    assert!(
        shown.len() <= MAX_SHOWN && !shown.contains(char::is_control),
        "{shown}"
    );
}
