//! Which of the configured apps a process is, and how well that is known.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Once;

use mlskeyd_policies::Identified;
use rustix::fs::Stat;

use super::digest::Digests;
use super::process::{Program, Seen, Unseen};
use super::sandbox;
use super::{App, DEFAULT_APP};
use crate::config::AppConfig;

/// Programs that run what they are told to: such a file says little of the app. By how
/// their names begin; versions follow.
const INTERPRETERS: [&str; 25] = [
    "ash", "bash", "busybox", "bun", "dash", "deno", "dotnet", "electron", "fish", "gjs", "java",
    "ksh", "ld-", "lua", "luajit", "mono", "node", "perl", "php", "pypy", "python", "ruby", "sh",
    "tclsh", "zsh",
];

/// How a path ends whose file is not there any more.
const DELETED: &str = " (deleted)";

/// Longest text about a program that goes on record, in bytes.
const MAX_SHOWN: usize = 512;

/// Who may write to a file beside its owner.
const OTHERS_WRITE: u32 = 0o022;

/// The apps that the configuration names.
#[derive(Debug)]
pub(crate) struct Apps {
    apps: Vec<AppConfig>,
    digests: Digests,
    /// The mount namespace of the system.
    mounts: Option<u64>,
    told: Once,
}

impl Apps {
    pub(crate) fn new(apps: Vec<AppConfig>) -> Self {
        Self {
            apps,
            digests: Digests::default(),
            mounts: std::fs::metadata("/proc/1/ns/mnt").ok().map(|it| it.ino()),
            told: Once::new(),
        }
    }

    /// The app of a process of this user.
    pub(crate) fn of(&self, uid: u32, seen: &Seen) -> App {
        let found = self.find(uid, seen);
        let (name, identified) = found.unwrap_or((DEFAULT_APP, Identified::Unknown));
        // Then it is not sure which process it is, or what it runs.
        let doubtful = !seen.exact || is_interpreter(&seen.program.path);
        App {
            name: name.to_owned(),
            identified: match identified {
                Identified::Enforced if doubtful => Identified::Observed,
                identified => identified,
            },
            program: Some(shown(uid, seen)),
            is_confined: seen.is_confined(),
        }
    }

    /// The app of a process that cannot be seen. Says so in the log, once.
    pub(crate) fn hidden(&self, why: &Unseen) -> App {
        if !self.apps.is_empty() {
            self.told.call_once(|| {
                tracing::warn!(%why, "a caller cannot be seen, so it is the app `default`: mlskeyd needs CAP_SYS_PTRACE (AmbientCapabilities= in its unit) and a /proc that hides no processes (ProtectProc=default), and callers have to be in its PID namespace. This is said once");
            });
        }
        App {
            // Who is in one can keep others from looking.
            is_confined: true,
            ..App::default()
        }
    }

    /// What is stronger goes first.
    fn find(&self, uid: u32, seen: &Seen) -> Option<(&str, Identified)> {
        self.flatpak(seen)
            .or_else(|| self.snap(seen))
            .or_else(|| self.unit(seen))
            .or_else(|| self.user_unit(uid, seen))
            .or_else(|| self.program(&seen.program))
    }

    fn flatpak(&self, seen: &Seen) -> Option<(&str, Identified)> {
        let id = seen.flatpak.as_ref()?.id.as_str();
        let app = self.named(|app| app.flatpak.as_deref() == Some(id))?;
        // Who may make namespaces can write such a file as well, but has no scope for it.
        let identified = match sandbox::is_in_scope_of(id, &seen.units) {
            true => Identified::Enforced,
            false => Identified::Observed,
        };
        Some((app, identified))
    }

    fn snap(&self, seen: &Seen) -> Option<(&str, Identified)> {
        let snap = seen.snap.as_ref()?;
        let app = self.named(|app| app.snap.as_ref() == Some(&snap.name))?;
        let identified = match snap.confined {
            true => Identified::Enforced,
            false => Identified::Observed,
        };
        Some((app, identified))
    }

    fn unit(&self, seen: &Seen) -> Option<(&str, Identified)> {
        let unit = seen.units.system.as_ref()?;
        let app = self.named(|app| app.unit.as_ref() == Some(unit))?;
        Some((app, Identified::Enforced))
    }

    fn user_unit(&self, uid: u32, seen: &Seen) -> Option<(&str, Identified)> {
        let (_, unit) = seen
            .units
            .user
            .as_ref()
            .filter(|(whose, _)| *whose == uid)?;
        let app = self.named(|app| app.user_unit.as_ref() == Some(unit))?;
        Some((app, Identified::Observed))
    }

    fn program(&self, program: &Program) -> Option<(&str, Identified)> {
        let app = self.apps.iter().find(|app| {
            let runs = |path| self.is_at(program, path);
            app.exe.as_deref().is_some_and(runs) && self.is_untouched(program, app.sha256)
        })?;
        Some((&app.name, Identified::Observed))
    }

    fn named(&self, is_it: impl Fn(&AppConfig) -> bool) -> Option<&str> {
        let app = self.apps.iter().find(|app| is_it(app))?;
        Some(&app.name)
    }

    /// Is this the file that is at `path`, or was there until an update?
    fn is_at(&self, program: &Program, path: &Path) -> bool {
        let is_same =
            |now: &Metadata| (now.dev(), now.ino()) == (program.stat.st_dev, program.stat.st_ino);
        // Not by the path alone: in a mount namespace of its own a process may have any
        // file there.
        if std::fs::metadata(path).is_ok_and(|now| is_same(&now)) {
            return true;
        }
        let said = program
            .path
            .to_str()
            .and_then(|it| it.strip_suffix(DELETED));
        program.stat.st_nlink == 0
            && said.is_some_and(|said| Path::new(said) == path)
            && self.mounts == Some(program.mounts)
    }

    /// Is what the file holds root's to say, or as the digest says?
    fn is_untouched(&self, program: &Program, digest: Option<[u8; 32]>) -> bool {
        match digest {
            Some(wanted) => self.digests.of(program) == Some(wanted),
            None => is_roots(&program.stat),
        }
    }
}

/// Does the file belong to root, and may nobody else write to it?
const fn is_roots(stat: &Stat) -> bool {
    stat.st_uid == 0 && stat.st_mode & OTHERS_WRITE == 0
}

fn is_interpreter(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.map(|name| name.strip_suffix(DELETED).unwrap_or(name));
    // What is no text is none of the names that are known.
    name.is_some_and(|name| INTERPRETERS.iter().any(|known| is_version_of(name, known)))
}

/// Is it this name, perhaps with a version: `python3.11`, `electron28`, `node-20`?
fn is_version_of(name: &str, known: &str) -> bool {
    let version = |c: char| c.is_ascii_digit() || "-._".contains(c);
    let rest = name.strip_prefix(known);
    rest.is_some_and(|rest| known.ends_with('-') || rest.chars().all(version))
}

/// A process as people read it: its program, and what it is in.
fn shown(uid: u32, seen: &Seen) -> String {
    let mut text: String = seen.program.path.display().to_string();
    if let Some(flatpak) = &seen.flatpak {
        text = format!("{text} (Flatpak {})", flatpak.id);
    } else if let Some(snap) = &seen.snap {
        text = format!("{text} (Snap {})", snap.name);
    } else if let Some((_, unit)) = seen.units.user.as_ref().filter(|(whose, _)| *whose == uid) {
        text = format!("{text} (user unit {unit})");
    } else if let Some(unit) = &seen.units.system {
        text = format!("{text} (unit {unit})");
    }
    let mut length = 0_usize;
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take_while(|c| {
            length = length.saturating_add(c.len_utf8());
            length <= MAX_SHOWN
        })
        .collect()
}

#[cfg(test)]
mod tests;
