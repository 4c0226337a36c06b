//! What security teams have frozen and thawed by files that they signed and rolled out.
//!
//! A file that was obeyed has done its work: who takes it away thaws nothing, and who leaves
//! it there, or brings an old one, freezes or thaws nothing again.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::FreezeTarget;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Frozen, check_reason, check_target};
use crate::custody::Custody;
use crate::custody::subject::Subject;
use crate::freeze_target;
use crate::policy_files::{check_owner, read_owned};
use crate::policy_watch::PolicyWatch;
use crate::signers::{MAX_SIGNATURE, Signers};

/// What a signature on such a file is for.
const NAMESPACE: &str = "freeze@mlskeyd";

/// Most files that are looked at, and how long each may be, in bytes.
const MAX_FILES: usize = 1000;
const MAX_FILE: u64 = 16 * 1024;

/// Where the files are, and whose count.
pub(super) struct Files {
    directory: PathBuf,
    signers: Signers,
    /// Refusals that are told already: each once, while its file stays as it is.
    told: Mutex<BTreeSet<[u8; 32]>>,
}

/// A file, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    target: String,
    #[serde(default)]
    reason: String,
    serial: u64,
    #[serde(default)]
    action: Word,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Word {
    #[default]
    Freeze,
    Thaw,
}

/// What somebody signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) target: FreezeTarget,
    pub(super) word: Word,
    pub(super) reason: String,
    /// The newest of a target counts.
    pub(super) serial: u64,
    /// SHA-256 of the file.
    pub(super) digest: [u8; 32],
    /// The file's name, and who signed it.
    file: String,
    signer: String,
}

/// As it goes on record.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            target,
            reason,
            file,
            serial,
            signer,
            ..
        } = self;
        write!(
            f,
            "{target}: {reason}; by {file}, serial {serial}, signed by {signer}"
        )
    }
}

/// What came of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obeyed {
    /// Its target is frozen, or thawed.
    Yes,
    /// It was obeyed before, or a newer one of its target was.
    Before,
    /// It changed nothing, by itself or since it must not.
    No(&'static str),
}

/// A file that is not obeyed, or something about the directory.
struct Refused {
    name: String,
    why: String,
    /// Of the name, the content and the reason.
    digest: [u8; 32],
}

impl Files {
    pub(super) const fn new(directory: PathBuf, signers: Signers) -> Self {
        Self {
            directory,
            signers,
            told: Mutex::new(BTreeSet::new()),
        }
    }

    /// The orders of all files, the oldest first, and the files that are none.
    fn read(&self) -> (Vec<Order>, Vec<Refused>) {
        let (names, mut refused) = match names(&self.directory) {
            Ok(names) => names,
            Err(why) => {
                let name = self.directory.display().to_string();
                return (Vec::new(), vec![Refused::new(name, &[], why)]);
            }
        };
        let mut orders = Vec::new();
        for name in names {
            match self.read_one(&name) {
                Ok(Some(order)) => orders.push(order),
                Ok(None) => {}
                Err(why) => refused.push(why),
            }
        }
        orders.sort_by(|a, b| (a.serial, &a.file).cmp(&(b.serial, &b.file)));
        (orders, refused)
    }

    /// The signature is looked at first: of what nobody signed nothing is read.
    fn read_one(&self, name: &str) -> Result<Option<Order>, Refused> {
        let path = self.directory.join(name);
        let refused = |content: &[&[u8]], why: String| Refused::new(name.to_owned(), content, why);
        let io = |error: crate::policy_files::PolicyError| refused(&[], error.to_string());
        // It may have been taken away meanwhile.
        let Some(content) = read_owned(&path, MAX_FILE).map_err(io)? else {
            return Ok(None);
        };
        let signature = read_owned(&self.directory.join(format!("{name}.sig")), MAX_SIGNATURE);
        let Some(signature) = signature.map_err(io)? else {
            let why = format!(
                "there is no {name}.sig; sign it with `ssh-keygen -Y sign -f KEY -n {NAMESPACE} {name}`"
            );
            return Err(refused(&[&content], why));
        };
        let signer = self.signers.verify(NAMESPACE, &content, &signature);
        let signer = signer
            .map_err(|error| refused(&[&content, &signature], format!("{name}.sig: {error}")))?;
        let (target, written) =
            parse(&content).map_err(|why| refused(&[&content, &signature], why))?;
        Ok(Some(Order {
            target,
            word: written.action,
            reason: written.reason,
            serial: written.serial,
            digest: Sha256::digest(&content).into(),
            file: name.to_owned(),
            signer,
        }))
    }

    /// Those that were not told yet. Of what is not refused any more nothing is remembered.
    fn news(&self, refused: Vec<Refused>) -> Vec<Refused> {
        let told = self.told.lock();
        let mut told = told.unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *told);
        told.extend(refused.iter().map(|it| it.digest));
        let news = refused.into_iter();
        news.filter(|it| !before.contains(&it.digest)).collect()
    }
}

impl Refused {
    fn new(name: String, content: &[&[u8]], why: String) -> Self {
        let mut digest = Sha256::new();
        for part in [name.as_bytes(), why.as_bytes()].iter().chain(content) {
            digest.update(Sha256::digest(part));
        }
        Self {
            digest: digest.finalize().into(),
            name,
            why,
        }
    }
}

/// The names of files, in order, and what is wrong with how many they are.
fn names(directory: &Path) -> Result<(Vec<String>, Vec<Refused>), String> {
    let io = |error: io::Error| error.to_string();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((Vec::new(), Vec::new()));
        }
        Err(error) => return Err(io(error)),
    };
    let metadata = fs::metadata(directory).map_err(io)?;
    check_owner(directory, &metadata).map_err(|error| error.to_string())?;
    let mut names = BTreeSet::new();
    let mut refused = Vec::new();
    for entry in entries {
        let name = entry.map_err(io)?.file_name();
        let Some(name) = name.to_str() else { continue };
        // Not what an editor leaves behind.
        if !name.ends_with(".toml") || name.starts_with('.') {
            continue;
        }
        names.insert(name.to_owned());
        // Those that are last are left out.
        if names.len() > MAX_FILES {
            names.pop_last();
            if refused.is_empty() {
                let why = format!(
                    "there are more than {MAX_FILES} files: the first ones count, by their names; take away what was obeyed"
                );
                refused.push(Refused::new(directory.display().to_string(), &[], why));
            }
        }
    }
    Ok((names.into_iter().collect(), refused))
}

fn parse(content: &[u8]) -> Result<(FreezeTarget, Written), String> {
    let text = str::from_utf8(content).map_err(|_| "it is no text".to_owned())?;
    let written: Written =
        toml::from_str(text).map_err(|error| error.message().trim_end().to_owned())?;
    let target = freeze_target::parse(&written.target)?;
    check_target(&target, &mut Subject::new(Action::Freeze))
        .and_then(|()| check_reason(&written.reason))
        .map_err(|failure| failure.message)?;
    Ok((target, written))
}

impl Frozen {
    /// Obeys the files. Answers what is to go on record.
    fn look_at_files(&self) -> Vec<(&'static str, String)> {
        let Some(files) = &self.files else {
            return Vec::new();
        };
        let (orders, mut refused) = files.read();
        let obeyed = self.obey(&orders).unwrap_or_else(|failure| {
            // What is to be frozen is, for now; the next look tries again.
            tracing::error!(
                error = failure.message,
                "files that freeze or thaw could not be obeyed for good"
            );
            Vec::new()
        });
        let mut notes = Vec::new();
        for (order, obeyed) in orders.iter().zip(obeyed) {
            match (obeyed, order.word) {
                (Obeyed::Before, _) => {}
                (Obeyed::Yes, Word::Freeze) => notes.push(("Frozen", order.to_string())),
                (Obeyed::Yes, Word::Thaw) => notes.push(("Thawed", order.to_string())),
                (Obeyed::No(why), _) => {
                    let why = format!("{order}: {why}");
                    refused.push(Refused::new(order.file.clone(), &[&order.digest], why));
                }
            }
        }
        for Refused { name, why, .. } in files.news(refused) {
            tracing::error!(name, why, "a file that freezes or thaws is refused");
            notes.push(("FreezeFileRefused", format!("{name}: {why}")));
        }
        notes
    }
}

impl Custody {
    /// Obeys what security teams have signed, if anybody's signature counts.
    pub(crate) async fn look_at_freeze_files(self: &Arc<Self>) {
        let custody = Arc::clone(self);
        let notes = tokio::task::spawn_blocking(move || custody.frozen.look_at_files());
        for (action, note) in notes.await.unwrap_or_default() {
            self.note(action, note).await;
        }
    }

    /// Is told when the files may have changed. To be had before they are looked at for the
    /// first time: then none comes between.
    pub(crate) fn watch_freeze_files(&self) -> Option<PolicyWatch> {
        let files = self.frozen.files.as_ref()?;
        let watch = PolicyWatch::new(vec![files.directory.clone()]);
        watch
            .inspect_err(|error| {
                tracing::warn!(%error, "files that freeze are not looked at when they change: SIGHUP, or `mlskeyctl policy reload`");
            })
            .ok()
    }

    /// Obeys the files whenever they change.
    pub(crate) async fn run_freeze_watch(self: Arc<Self>, watch: Option<PolicyWatch>) {
        let Some(mut watch) = watch else { return };
        loop {
            watch.changed().await;
            self.look_at_freeze_files().await;
        }
    }
}

#[cfg(test)]
mod tests;
