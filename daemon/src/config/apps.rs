//! The apps that the configuration names, and by what they are known.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::{Mistake, is_name};
use crate::caller::{DEFAULT_APP, MAX_ID, is_id};

/// Most apps.
const MAX_APPS: usize = 256;

/// Longest path, in bytes (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// An app, and by what it is known. Any one of these is enough; what is stronger is looked
/// at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppConfig {
    /// What policies call it.
    pub name: String,
    /// The id of its Flatpak.
    pub flatpak: Option<String>,
    /// The name of its Snap.
    pub snap: Option<String>,
    /// The systemd unit of the system that it runs in.
    pub unit: Option<String>,
    /// The unit of its user's systemd that it runs in.
    pub user_unit: Option<String>,
    /// The program that it runs.
    pub exe: Option<PathBuf>,
    /// The SHA-256 that this program has to have.
    pub sha256: Option<[u8; 32]>,
    /// Does it take over, once for each user, what that user's unnamed apps made?
    pub takes_over_default: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AppTable {
    flatpak: Option<Spanned<String>>,
    snap: Option<Spanned<String>>,
    unit: Option<Spanned<String>>,
    user_unit: Option<Spanned<String>>,
    exe: Option<Spanned<PathBuf>>,
    sha256: Option<Spanned<String>>,
    takes_over: Option<Spanned<String>>,
}

pub(super) fn check(
    tables: BTreeMap<String, Spanned<AppTable>>,
) -> Result<Vec<AppConfig>, Mistake> {
    let mut taken = BTreeSet::new();
    let too_many = tables.len() > MAX_APPS;
    let checked = tables.into_iter().map(|(name, table)| {
        let span = table.span();
        if too_many {
            return Err(Mistake::new(span, format!("more than {MAX_APPS} apps")));
        }
        if name == DEFAULT_APP {
            let message = "`default` stands for all apps that have no name here; take another";
            return Err(Mistake::new(span, message));
        }
        if !is_name(&name) {
            let message = "an app's name has 1 to 64 letters, digits, `-`, `_` and `.`";
            return Err(Mistake::new(span, message));
        }
        table.into_inner().check(name, span, &mut taken)
    });
    checked.collect()
}

impl AppTable {
    fn check(
        self,
        name: String,
        span: Range<usize>,
        taken: &mut BTreeSet<(&'static str, PathBuf)>,
    ) -> Result<AppConfig, Mistake> {
        let mut text =
            |what: &'static str, value: Option<Spanned<String>>, valid: fn(&str) -> bool| {
                let Some(value) = value else { return Ok(None) };
                if !valid(value.get_ref()) {
                    let message = format!("`{what}` is none: {}", hint(what));
                    return Err(Mistake::new(value.span(), message));
                }
                let (span, value) = (value.span(), value.into_inner());
                once(taken, what, value.clone().into(), span).map(|()| Some(value))
            };
        let flatpak = text("flatpak", self.flatpak, is_id)?;
        let snap = text("snap", self.snap, |name| is_id(name) && !name.contains('.'))?;
        let unit = text("unit", self.unit, is_unit)?;
        let user_unit = text("user_unit", self.user_unit, is_unit)?;
        let exe = self.exe.map(|path| program(path, taken)).transpose()?;
        let sha256 = self.sha256.map(|it| digest(&it, exe.is_some()));
        let app = AppConfig {
            name,
            flatpak,
            snap,
            unit,
            user_unit,
            exe,
            sha256: sha256.transpose()?,
            takes_over_default: takes_over(self.takes_over, taken)?,
        };
        if app.is_known_by_nothing() {
            let message =
                "say by what the app is known: `flatpak`, `snap`, `unit`, `user_unit` or `exe`";
            return Err(Mistake::new(span, message));
        }
        Ok(app)
    }
}

impl AppConfig {
    const fn is_known_by_nothing(&self) -> bool {
        self.flatpak.is_none()
            && self.snap.is_none()
            && self.unit.is_none()
            && self.user_unit.is_none()
            && self.exe.is_none()
    }
}

fn hint(what: &str) -> &'static str {
    match what {
        "flatpak" => "an id such as com.wire.WireDesktop is wanted",
        "snap" => "the name of a Snap is wanted, such as signal-desktop",
        _ => "the name of a unit is wanted, with .service or .scope at its end",
    }
}

/// No two apps are known by the same thing.
fn once(
    taken: &mut BTreeSet<(&'static str, PathBuf)>,
    what: &'static str,
    value: PathBuf,
    span: Range<usize>,
) -> Result<(), Mistake> {
    let message = format!("another app has this `{what}`");
    let is_new = taken.insert((what, value));
    is_new
        .then_some(())
        .ok_or_else(|| Mistake::new(span, message))
}

fn program(
    path: Spanned<PathBuf>,
    taken: &mut BTreeSet<(&'static str, PathBuf)>,
) -> Result<PathBuf, Mistake> {
    let span = path.span();
    let path = path.into_inner();
    if !path.is_absolute() || path.as_os_str().len() > MAX_PATH {
        return Err(Mistake::new(
            span,
            "a path has to begin with `/`, and to be one",
        ));
    }
    once(taken, "exe", path.clone(), span).map(|()| path)
}

fn digest(text: &Spanned<String>, has_program: bool) -> Result<[u8; 32], Mistake> {
    if !has_program {
        return Err(Mistake::new(
            text.span(),
            "`sha256` is of the file `exe`: name that, too",
        ));
    }
    let mut digest = [0; 32];
    hex::decode_to_slice(text.get_ref(), &mut digest)
        .map_err(|_| Mistake::new(text.span(), "a SHA-256 has 64 hexadecimal digits"))?;
    Ok(digest)
}

/// Whether an app takes over what unnamed ones made, as one may.
fn takes_over(
    whose: Option<Spanned<String>>,
    taken: &mut BTreeSet<(&'static str, PathBuf)>,
) -> Result<bool, Mistake> {
    let Some(whose) = whose else {
        return Ok(false);
    };
    if whose.get_ref() != DEFAULT_APP {
        let message = "only what `default` has can be taken over; for other apps there is `mlskeyctl keys reassign`";
        return Err(Mistake::new(whose.span(), message));
    }
    once(taken, "takes_over", DEFAULT_APP.into(), whose.span()).map(|()| true)
}

/// The name of a unit that has processes.
fn is_unit(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let has_processes = name.ends_with(".service") || name.ends_with(".scope");
    name.len() <= MAX_ID && has_processes && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn read(text: &str) -> Result<Vec<AppConfig>, String> {
        let config = Config::parse(Path::new("c.toml"), text);
        config
            .map(|config| config.apps)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_app_is_known_by_what_is_said() {
        let digest = "ab".repeat(32);
        let text = format!(
            "[apps.wire]\nflatpak = \"com.wire.WireDesktop\"\nsnap = \"wire\"\n\
             unit = \"wire@1.service\"\nuser_unit = \"wire.service\"\nexe = \"/opt/wire\"\n\
             sha256 = \"{digest}\"\ntakes_over = \"default\"\n[apps.other]\nunit = \"wire.service\"\n"
        );
        let apps = read(&text).unwrap();
        let names: Vec<_> = apps.iter().map(|app| app.name.as_str()).collect();
        assert_eq!(names, ["other", "wire"]);
        let wire = &apps[1];
        assert_eq!(wire.flatpak.as_deref(), Some("com.wire.WireDesktop"));
        assert_eq!(wire.snap.as_deref(), Some("wire"));
        assert_eq!(wire.unit.as_deref(), Some("wire@1.service"));
        assert_eq!(wire.user_unit.as_deref(), Some("wire.service"));
        assert_eq!(wire.exe.as_deref(), Some(Path::new("/opt/wire")));
        assert_eq!(wire.sha256, Some([0xAB; 32]));
        assert!(wire.takes_over_default && !apps[0].takes_over_default);
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn what_names_no_app_is_refused_at_its_place() {
        let long = format!("[apps.a]\nflatpak = \"{}\"", "x".repeat(MAX_ID + 1));
        let many: String = (0..=MAX_APPS)
            .map(|i| format!("[apps.a{i}]\nunit = \"u{i}.service\"\n"))
            .collect();
        for (text, wanted) in [
            (
                "[apps.default]\nunit = \"a.service\"",
                "c.toml:1:1: `default` stands for",
            ),
            (
                "[apps.\"a b\"]\nunit = \"a.service\"",
                "c.toml:1:1: an app's name",
            ),
            ("[apps.a]", "c.toml:1:1: say by what"),
            ("[apps.a]\nsha256 = \"00\"", "c.toml:2:10: `sha256` is of"),
            (
                "[apps.a]\nexe = \"/a\"\nsha256 = \"00\"",
                "c.toml:3:10: a SHA-256",
            ),
            ("[apps.a]\nexe = \"a\"", "c.toml:2:7: a path"),
            ("[apps.a]\nunit = \"a\"", "c.toml:2:8: `unit` is none"),
            (
                "[apps.a]\nunit = \"a/b.service\"",
                "c.toml:2:8: `unit` is none",
            ),
            ("[apps.a]\nsnap = \"a.b\"", "c.toml:2:8: `snap` is none"),
            (&long, "c.toml:2:11: `flatpak` is none"),
            (
                "[apps.a]\nexe = \"/a\"\ntakes_over = \"b\"",
                "c.toml:3:14: only what `default` has",
            ),
            (
                "[apps.a]\nexe = \"/a\"\ntakes_over = \"default\"\n\
                 [apps.b]\nexe = \"/b\"\ntakes_over = \"default\"",
                "c.toml:6:14: another app has this `takes_over`",
            ),
            (
                "[apps.a]\ntakes_over = \"default\"",
                "c.toml:1:1: say by what",
            ),
            ("[apps.a]\nflatpack = \"a\"", "did you mean `flatpak`?"),
            (
                "[apps.a]\nunit = \"a.service\"\n[apps.b]\nunit = \"a.service\"",
                "c.toml:4:8: another app has this `unit`",
            ),
            (&many, "more than 256 apps"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
