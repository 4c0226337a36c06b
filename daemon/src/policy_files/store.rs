//! Which policies are in force, and the last ones that were good.
//!
//! Where the configuration names signers, the company's own count only as a set that one of
//! them signed, and never an older one than was in force. What was in force is kept in the
//! state directory, under a MAC, before it is: so no crash makes the daemon forget which
//! serial it has seen.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mlskeyd_policies::Set;
use mlskeyd_protocol::v1::{PoliciesInForce, SignedPolicies};
use serde::{Deserialize, Serialize};

use super::candidate::Candidate;
use super::manifest::{MANIFEST, SignedSet};
use super::{Directory, Known, PolicyDirs, PolicyError, PolicyFiles};
use crate::mac_file::{MacFile, MacFileError};
use crate::policy_watch::PolicyWatch;
use crate::signers::Signers;
use crate::store_key::Subkey;

/// Longest file of what was in force, in bytes: more than two directories may have.
const MAX_KEPT: usize = 64 * 1024 * 1024;

/// Longest word of what is wrong with policies, in characters: the whole is in the log.
const MAX_WHY: usize = 1000;

/// Most that looks wrong which is told.
const MAX_LINTS: usize = 20;

/// So long names of users and groups are looked up that policies name: of the rest it is not
/// known whether they are there.
const LOOK_UPS: Duration = Duration::from_secs(10);

/// What looks wrong with policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lints {
    count: usize,
    /// The first ones, shortened.
    first: Vec<String>,
}

/// The policies of the directories, and those that were in force last.
pub struct PolicyStore {
    dirs: PolicyDirs,
    signers: Option<Signers>,
    kept: MacFile,
    /// What was read the last time, good or bad.
    read: Mutex<Option<OnDisk>>,
    now: Mutex<InForce>,
    candidate: Option<Candidate>,
    known: Known,
}

/// What the directories have.
#[derive(Clone, PartialEq, Eq)]
struct OnDisk {
    vendor: PolicyFiles,
    local: Directory,
}

/// What was in force.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    vendor: PolicyFiles,
    /// The company's, since the last signed set, where no signature is asked for.
    unsigned: Option<PolicyFiles>,
    /// The signed set with the highest serial that was ever in force.
    signed: Option<SignedSet>,
}

/// A set, and what is to be said of it.
pub(crate) struct Loaded {
    pub(crate) set: Set,
    pub(crate) about: InForce,
}

/// What is to be said of what is in force.
#[derive(Clone, Default)]
pub(crate) struct InForce {
    count: usize,
    signed: Option<SignedPolicies>,
    /// Why the company's own are not in force.
    without: Option<String>,
    /// What was wrong when the policies were read the last time.
    refused: Option<String>,
    /// What looks wrong, and is in force, as far as that was looked at.
    lints: Lints,
}

impl PolicyStore {
    /// Those of these directories, with what was in force in this file of the state
    /// directory, under a key that is the daemon's own. The company's count only if one of
    /// the signers, if there are some, has signed them.
    #[must_use]
    pub fn new(dirs: PolicyDirs, signers: Option<Signers>, kept: PathBuf, key: Subkey) -> Self {
        let candidate = dirs.candidate.clone();
        Self {
            candidate: candidate.map(|local| Candidate::new(dirs.vendor.clone(), local)),
            dirs,
            signers,
            kept: MacFile::new(kept, key, MAX_KEPT),
            read: Mutex::default(),
            now: Mutex::default(),
            known: Known::default(),
        }
    }

    /// The same, with names that policies can use.
    pub(crate) fn with_known(self, known: Known) -> Self {
        Self { known, ..self }
    }

    /// What is in force from the start.
    ///
    /// # Errors
    /// What is wrong with the files, if there is nothing that was in force either.
    pub(crate) fn at_start(&self) -> Result<Loaded, PolicyError> {
        let error = match self.load() {
            Ok(loaded) => return Ok(loaded),
            Err(error) => error,
        };
        let kept = match (self.kept(), &self.signers) {
            (Ok(kept), _) => kept,
            // It is not known any more which sets are old ones.
            (Err(error), Some(_)) => return Err(self.cannot_keep(&error)),
            (Err(_), None) => return Err(error),
        };
        let Some((files, signed)) = self.of_last_time(kept) else {
            return Err(error);
        };
        let Ok(set) = files.set() else {
            return Err(error);
        };
        tracing::error!(%error, "the policies of the last start stay in force");
        let mut about = self.about(&set, signed.as_ref());
        about.refused = Some(cut(&error));
        self.now().clone_from(&about);
        Ok(Loaded { set, about })
    }

    /// What was in force the last time. Where signatures are asked for nothing is that has
    /// none, though it was before they were: then the vendor's alone are in force.
    fn of_last_time(&self, kept: Kept) -> Option<(PolicyFiles, Option<SignedSet>)> {
        let unsigned = kept.unsigned.filter(|_| self.signers.is_none());
        if let Some(unsigned) = unsigned {
            return Some((kept.vendor.overridden(unsigned), None));
        }
        if let Some(signed) = kept.signed {
            let files = kept.vendor.overridden(signed.files.clone());
            return Some((files, Some(signed)));
        }
        self.signers.as_ref()?;
        // What is there now is newer than what was.
        let now = PolicyFiles::vendors(&self.dirs).ok();
        let now = now.filter(|now| now.set().is_ok());
        Some((now.unwrap_or(kept.vendor), None))
    }

    /// What the directories have now. It is kept for the next start, and a signed set is
    /// refused if it cannot be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn load(&self) -> Result<Loaded, PolicyError> {
        let loaded = self.read_all().and_then(|read| {
            self.read().replace(read.clone());
            self.take(read)
        });
        match &loaded {
            Ok(loaded) => self.now().clone_from(&loaded.about),
            Err(error) => self.now().refused = Some(cut(error)),
        }
        loaded
    }

    fn take(&self, read: OnDisk) -> Result<Loaded, PolicyError> {
        let Some(signers) = &self.signers else {
            let set = read.together().set()?;
            let unsigned = Some(read.local.files);
            self.keep_if_possible(|before| Kept {
                vendor: read.vendor,
                unsigned,
                signed: before.signed,
            });
            let about = self.about(&set, None);
            return Ok(Loaded { set, about });
        };
        let before = self.kept().map_err(|error| self.cannot_keep(&error))?;
        let signed = SignedSet::verify(&self.dirs.local, &read.local, signers)?;
        let Some(signed) = signed else {
            if let Some(last) = &before.signed {
                return Err(self.refused(format!(
                    "it is not there, and a signed set was in force: serial {}; put a signed set there (one without files is one, too)",
                    last.serial
                )));
            }
            let set = read.vendor.set()?;
            self.keep_if_possible(|before| Kept {
                vendor: read.vendor,
                ..before
            });
            let about = self.about(&set, None);
            return Ok(Loaded { set, about });
        };
        if let Some(last) = &before.signed {
            self.check_not_older(&signed, last)?;
        }
        let set = read.together().set()?;
        let about = self.about(&set, Some(&signed));
        let kept = Kept {
            vendor: read.vendor,
            unsigned: None,
            signed: Some(signed),
        };
        // Before it is in force: else an older one could follow after a crash.
        self.keep(&kept, &before)
            .map_err(|error| self.cannot_keep(&error.into()))?;
        Ok(Loaded { set, about })
    }

    fn check_not_older(&self, signed: &SignedSet, last: &SignedSet) -> Result<(), PolicyError> {
        if signed.serial < last.serial {
            return Err(self.refused(format!(
                "older than what was in force: serial {}, now {}; to go back to an older content sign it with a higher serial",
                last.serial, signed.serial
            )));
        }
        if signed.serial == last.serial && signed.digest != last.digest {
            return Err(self.refused(format!(
                "other content than what was in force with the same serial {}; sign it with a higher one",
                last.serial
            )));
        }
        Ok(())
    }

    fn refused(&self, why: String) -> PolicyError {
        PolicyError::Unsigned {
            path: self.dirs.local.join(MANIFEST),
            why,
        }
    }

    fn cannot_keep(&self, error: &MacFileError) -> PolicyError {
        PolicyError::Kept {
            path: self.kept.path().to_owned(),
            why: error.to_string(),
        }
    }

    /// What is in force is said, and what is to be seen to is warned of.
    fn about(&self, set: &Set, signed: Option<&SignedSet>) -> InForce {
        let about = InForce {
            count: set.len(),
            signed: signed.map(|signed| SignedPolicies {
                serial: signed.serial,
                signer: signed.signer.clone(),
                expires: signed.expires,
            }),
            without: (self.signers.is_some() && signed.is_none()).then(|| {
                format!(
                    "`signers` are configured, and no signed set was ever in force: of {} nothing counts, and the vendor's policies alone are in force",
                    self.dirs.local.display()
                )
            }),
            refused: None,
            lints: Lints::default(),
        };
        for warning in about.warnings() {
            tracing::warn!("{warning}");
        }
        about
    }

    /// What looks wrong with a set. That may take long: names of users and groups are looked up,
    /// maybe in a directory of the company.
    pub(crate) fn lint(&self, set: &Set, identities: Option<BTreeSet<String>>) -> Lints {
        let known = self.known.clone().with_identities(identities);
        let begun = Instant::now();
        let lints = set.lint(&|kind, name| {
            let is_too_long = begun.elapsed() > LOOK_UPS;
            (!is_too_long).then(|| known.is_there(kind, name)).flatten()
        });
        Lints {
            count: lints.len(),
            first: lints.iter().take(MAX_LINTS).map(cut).collect(),
        }
    }

    /// Has it be told that this looks wrong with what is in force.
    pub(crate) fn found(&self, lints: Lints) {
        let mut now = self.now();
        now.lints = lints;
        for lint in now.told_lints() {
            tracing::warn!("{lint}");
        }
    }

    /// What is to be said of what is in force.
    pub(crate) fn about_now(&self) -> InForce {
        self.now().clone()
    }

    /// What the candidate is now, if there is one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn candidate(&self) -> Result<Option<Set>, PolicyError> {
        self.candidate.as_ref().map(Candidate::load).transpose()
    }

    /// Are they other ones than were read the last time?
    pub(crate) fn has_changed(&self) -> bool {
        // What cannot be read is told when it is loaded.
        let now = self.read_all().ok();
        let candidate = self.candidate.as_ref();
        now.is_none() || *self.read() != now || candidate.is_some_and(Candidate::has_changed)
    }

    /// Is told when they may have changed.
    pub(crate) fn watch(&self) -> notify::Result<PolicyWatch> {
        let PolicyDirs {
            vendor,
            local,
            candidate,
        } = self.dirs.clone();
        let all = [Some(vendor), Some(local), candidate];
        PolicyWatch::new(all.into_iter().flatten().collect())
    }

    /// What administrators are told of what is in force, whenever they look.
    pub(crate) fn in_force(&self) -> PoliciesInForce {
        let now = self.now();
        let mut told = now.for_administrators(now.warnings());
        if now.lints.count > 0 {
            told.warnings.push(format!(
                "{}: `mlskeyctl policy reload` says what",
                now.counted_lints()
            ));
        }
        told
    }

    /// Is it to go on record what is in force from the start? A signed set is, and whatever
    /// is not as the directories have it.
    pub(crate) fn is_to_be_told(&self) -> bool {
        self.signers.is_some() || self.now().refused.is_some()
    }

    fn read_all(&self) -> Result<OnDisk, PolicyError> {
        let local = Directory::read(&self.dirs.local, self.signers.is_some())?;
        Ok(OnDisk {
            vendor: PolicyFiles::vendors(&self.dirs)?,
            local: local.unwrap_or_default(),
        })
    }

    fn read(&self) -> MutexGuard<'_, Option<OnDisk>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> MutexGuard<'_, InForce> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> Result<Kept, MacFileError> {
        let Some(content) = self.kept.read()? else {
            return Ok(Kept::default());
        };
        postcard::from_bytes(&content).map_err(|_| MacFileError::Damaged)
    }

    /// Also if it is the same: it may not be durable yet.
    fn keep(&self, kept: &Kept, before: &Kept) -> io::Result<()> {
        if kept == before {
            return self.kept.sync();
        }
        let content = postcard::to_stdvec(kept).map_err(io::Error::other)?;
        self.kept.replace(&content)
    }

    fn keep_if_possible(&self, change: impl FnOnce(Kept) -> Kept) {
        let kept = match self.kept() {
            // What cannot be read now may be another time, and says which sets are old.
            Err(error @ MacFileError::Io(_)) => Err(error),
            kept => {
                let before = kept.unwrap_or_default();
                let after = change(before.clone());
                let is_same = before == after;
                let kept = if is_same {
                    Ok(())
                } else {
                    self.keep(&after, &before)
                };
                kept.map_err(MacFileError::Io)
            }
        };
        if let Err(error) = kept {
            tracing::error!(%error, "the policies are in force, and could not be kept for a start with bad ones");
        }
    }
}

impl OnDisk {
    fn together(&self) -> PolicyFiles {
        let vendor = self.vendor.clone();
        vendor.overridden(self.local.files.clone())
    }
}

fn cut(said: &impl ToString) -> String {
    said.to_string().chars().take(MAX_WHY).collect()
}

impl InForce {
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// What administrators are told who have loaded it.
    pub(crate) fn as_loaded(&self) -> PoliciesInForce {
        let mut warnings = self.warnings();
        warnings.extend(self.told_lints());
        self.for_administrators(warnings)
    }

    fn for_administrators(&self, warnings: Vec<String>) -> PoliciesInForce {
        PoliciesInForce {
            count: u32::try_from(self.count).unwrap_or(u32::MAX),
            signed: self.signed.clone(),
            warnings,
        }
    }

    /// What looks wrong, and how much more.
    fn told_lints(&self) -> Vec<String> {
        let mut told = self.lints.first.clone();
        let more = self.lints.count.saturating_sub(told.len());
        if more > 0 {
            told.push(format!(
                "and {more} lints more: `mlskeyctl policy check` tells all"
            ));
        }
        told
    }

    fn counted_lints(&self) -> String {
        format!("the policies have {} lints", self.lints.count)
    }

    /// What somebody should see to.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let now = Timestamp::now().as_second();
        if let Some(signed) = &self.signed
            && let Some(expires) = signed.expires
            && expires <= now
        {
            let when = Timestamp::from_second(expires).unwrap_or_default();
            warnings.push(format!(
                "the policies of serial {} EXPIRED at {when}: they stay in force; roll out a newer set",
                signed.serial
            ));
        }
        warnings.extend(self.without.clone());
        if let Some(refused) = &self.refused {
            warnings.push(format!(
                "what the directories have is not in force: {refused}"
            ));
        }
        warnings
    }

    /// As it goes on record: how many, and who signed which ones.
    pub(crate) fn note(&self) -> String {
        let mut note = format!("{} policies", self.count);
        if let Some(signed) = &self.signed {
            note.push_str(&format!(
                ", serial {}, signed by {}",
                signed.serial, signed.signer
            ));
        }
        for warning in self.warnings() {
            note.push_str("; ");
            note.push_str(&warning);
        }
        if self.lints.count > 0 {
            note.push_str("; ");
            note.push_str(&self.counted_lints());
        }
        note
    }
}

#[cfg(test)]
mod tests;
