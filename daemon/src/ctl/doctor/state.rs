//! The configuration, and what the daemon has on disk.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::{Seen, unseen};
use crate::config::{Config, ConfigError, StoreKeySource};
use crate::ctl::policy;
use crate::policy_files::Known;
use crate::store_key::KEY_LEN;

/// Less free space than this is little, and than that is none: in bytes.
const LITTLE: u64 = 512 * 1024 * 1024;
const NONE: u64 = 64 * 1024 * 1024;

const WITHOUT_CONFIG: &str = "without the configuration it is not known";

pub(super) fn configuration(seen: &Seen) -> Vec<Finding> {
    let path = seen.config_path.display();
    vec![match &seen.config {
        Ok(_) => Finding::ok("configuration", format!("the configuration {path} is good")),
        Err(ConfigError::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            unseen("configuration", &seen.config_path, source)
        }
        Err(error) => Finding::failed("configuration", error),
    }]
}

/// Looks at something that the configuration names.
fn with_config(
    seen: &Seen,
    check: &'static str,
    look: impl FnOnce(&Config) -> Vec<Finding>,
) -> Vec<Finding> {
    match seen.config() {
        Some(config) => look(config),
        None => vec![Finding::skip(check, format!("{check}: {WITHOUT_CONFIG}"))],
    }
}

pub(super) fn directory(seen: &Seen) -> Vec<Finding> {
    with_config(seen, "state-directory", |config| {
        let path = &config.state_dir;
        vec![match path.metadata() {
            Ok(found) => private("state-directory", path, &found, seen, 0o700),
            Err(error) => unseen("state-directory", path, &error),
        }]
    })
}

/// Whose it is, and who else may use it.
fn private(check: &'static str, path: &Path, found: &Metadata, seen: &Seen, mode: u32) -> Finding {
    let shown = path.display();
    let (uid, is) = (found.uid(), found.mode() & 0o7777);
    if is & 0o077 != 0 {
        return Finding::fail(
            check,
            format!("{shown} has mode {is:04o}: others may use it"),
            format!("chmod {mode:04o} {shown}"),
        );
    }
    match seen.owner() {
        Some(owner) if owner != uid => Finding::fail(
            check,
            format!("{shown} belongs to user {uid}, and mlskeyd runs as user {owner}"),
            format!("chown {owner} {shown}"),
        ),
        _ => Finding::ok(
            check,
            format!("{shown} is of user {uid} alone, mode {is:04o}"),
        ),
    }
}

pub(super) fn store_key(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "store-key";
    with_config(seen, CHECK, |config| {
        let path = match &config.store_key {
            StoreKeySource::File { path, .. } => path,
            StoreKeySource::Credential { name } => {
                let what = format!("the store key is the credential {name}: the service manager's");
                return vec![Finding::skip(CHECK, what)];
            }
        };
        let found = match path.symlink_metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return vec![absent_key(path, &config.state_dir)];
            }
            Err(error) => return vec![unseen(CHECK, path, &error)],
        };
        let length = u64::try_from(KEY_LEN).unwrap_or(0);
        vec![if found.is_file() && found.len() == length {
            private(CHECK, path, &found, seen, 0o600)
        } else {
            let what = format!("{} is no file of {KEY_LEN} bytes", path.display());
            Finding::fail(CHECK, what, "put the copy of the store key back")
        }]
    })
}

/// Before the first start there is none; beside state it is lost.
fn absent_key(path: &Path, state_dir: &Path) -> Finding {
    let what = format!("there is no store key {}", path.display());
    let has_state = state_dir
        .read_dir()
        .map(|mut listed| listed.next().is_some());
    match has_state {
        Ok(true) => Finding::fail(
            "store-key",
            what,
            "put its copy back: without it keys are missing",
        ),
        _ => Finding::skip(
            "store-key",
            format!("{what}: it is made at the first start"),
        ),
    }
}

pub(super) fn disk(seen: &Seen) -> Vec<Finding> {
    with_config(seen, "disk", |config| {
        let path = &config.state_dir;
        let found = match rustix::fs::statvfs(path) {
            Ok(found) => found,
            Err(error) => return vec![unseen("disk", path, &error.into())],
        };
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        let what = format!("{} has {} MiB free", path.display(), free / 1024 / 1024);
        vec![match free {
            0..NONE => Finding::fail(
                "disk",
                what,
                "free some: without a record nothing is served",
            ),
            NONE..LITTLE => Finding::warn("disk", what, "free some before it is full"),
            _ => Finding::ok("disk", what),
        }]
    })
}

pub(super) fn policies(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "policies";
    let mut findings = with_config(seen, CHECK, |config| {
        let dirs = &config.policy.dirs;
        let (vendor, local) = (&dirs.vendor, &dirs.local);
        let signers = config.policy.signers.as_ref();
        if let Some(hidden) = hidden(local) {
            let what = format!("{} is not for us to read", hidden.display());
            return vec![Finding::skip(CHECK, what)];
        }
        let checked = policy::check(vendor, local, signers, &Known::of(config));
        let mend = format!("mlskeyctl policy check {}", local.display());
        vec![match checked {
            Ok(shown) => {
                let problems = shown.json.get("problems").and_then(|it| it.as_array());
                let lints = problems.map_or(0, Vec::len);
                let last = shown.text.lines().last().unwrap_or_default().to_owned();
                match (shown.is_good, lints) {
                    (false, _) => Finding::fail(CHECK, last, mend),
                    (true, 0) => Finding::ok(CHECK, last),
                    (true, lints) => {
                        Finding::warn(CHECK, format!("{last}, and {lints} look wrong"), mend)
                    }
                }
            }
            Err(error) => Finding::failed(CHECK, &error),
        }]
    });
    // What the daemon has may be older than what is there.
    if let Ok(status) = &seen.status {
        let told = status.policies.warnings.iter();
        findings.extend(
            told.map(|it| {
                Finding::warn(CHECK, format!("in force: {it}"), "mlskeyctl policy reload")
            }),
        );
    }
    findings
}

/// Most files of a directory of policies that are tried.
const MAX_TRIED: usize = 1024;

/// What we may not read in it, or it itself.
fn hidden(directory: &Path) -> Option<PathBuf> {
    let is_denied = |error: std::io::Error| error.kind() == ErrorKind::PermissionDenied;
    let listed = match directory.read_dir() {
        Ok(listed) => listed,
        Err(error) => return is_denied(error).then(|| directory.to_owned()),
    };
    let paths = listed.take(MAX_TRIED).flatten().map(|entry| entry.path());
    let mut files = paths.filter(|path| path.is_file());
    files.find(|path| File::open(path).is_err_and(is_denied))
}
