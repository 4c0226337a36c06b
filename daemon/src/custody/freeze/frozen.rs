//! The list of what is frozen: in memory for each request, and in a file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mlskeyd_protocol::v1::{Failure, FailureCode, Freeze, FreezeTarget, Frozen as FrozenNow};

use crate::caller::Caller;
use crate::custody::failure;
use crate::custody::rates::Counted;
use crate::custody::subject::Subject;
use crate::mac_file::{MacFile, MacFileError};
use crate::store_key::Subkey;

use mlskeyd_policies::Action;

/// The file in the state directory.
pub(crate) const FILE: &str = "frozen";

/// What the MAC's key is derived under.
pub(crate) const LABEL: &str = "mlskeyd v1 frozen";

/// Most things that are frozen at a time.
const MAX_FROZEN: usize = 1000;

/// Longest file, in bytes: so many of the longest names and reasons fit.
const MAX_FILE: usize = 8 * 1024 * 1024;

/// The rule that refuses.
const RULE: &str = "rule/frozen";

/// What is frozen, and why: kept in a file, under a MAC.
pub struct Frozen {
    file: MacFile,
    /// What each request looks at: held for a moment, and never while the file is
    /// written.
    now: Mutex<Arc<Targets>>,
    /// One change at a time, so that the last one is also the last on disk.
    changing: Mutex<()>,
}

type Targets = BTreeMap<FreezeTarget, String>;

impl Frozen {
    /// What was frozen before. If that cannot be read everything is: who damages the file
    /// thaws nothing.
    #[must_use]
    pub fn open(path: PathBuf, key: Subkey) -> Self {
        let frozen = Self {
            file: MacFile::new(path, key, MAX_FILE),
            now: Mutex::default(),
            changing: Mutex::default(),
        };
        let targets = frozen.read().unwrap_or_else(|error| {
            tracing::error!(%error, path = %frozen.file.path().display(), "the file of what is frozen is damaged: everything is frozen until `mlskeyctl thaw all`");
            let why = "the list of what is frozen is damaged".to_owned();
            Targets::from([(FreezeTarget::All, why)])
        });
        frozen.set(targets);
        frozen
    }

    fn read(&self) -> Result<Targets, MacFileError> {
        let Some(content) = self.file.read()? else {
            return Ok(Targets::new());
        };
        postcard::from_bytes(&content).map_err(|_| MacFileError::Damaged)
    }

    fn now(&self) -> Arc<Targets> {
        Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, targets: Targets) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(targets);
    }

    /// Is it frozen by itself?
    pub(super) fn has(&self, target: &FreezeTarget) -> bool {
        self.now().contains_key(target)
    }

    /// Freezes: in force at once, and on disk before this is answered.
    pub(super) fn freeze(&self, target: FreezeTarget, reason: String) -> Result<(), Failure> {
        self.change(|now| drop(now.insert(target, reason)))
    }

    /// Thaws, once that is on disk.
    pub(super) fn thaw(&self, target: &FreezeTarget) -> Result<(), Failure> {
        self.change(|now| drop(now.remove(target)))
    }

    fn change(&self, change: impl FnOnce(&mut Targets)) -> Result<(), Failure> {
        let turn = self.changing.lock();
        let _turn = turn.unwrap_or_else(PoisonError::into_inner);
        let before = self.now();
        let mut after = Targets::clone(&before);
        change(&mut after);
        if after.len() > MAX_FROZEN {
            return Err(failure::too_much("what is frozen", MAX_FROZEN));
        }
        // While it is written, and for good if it cannot be: what was frozen stays so, and
        // what is to be is. So nothing is thawed that the next start would freeze again.
        let mut either = Targets::clone(&before);
        either.extend(after.clone());
        self.set(either);
        self.keep(&after).map_err(|error| not_written(&error))?;
        self.set(after);
        Ok(())
    }

    fn keep(&self, targets: &Targets) -> std::io::Result<()> {
        let targets = postcard::to_stdvec(targets).map_err(std::io::Error::other)?;
        self.file.replace(&targets)
    }

    /// Refuses what is frozen. To look, and to keep storages in step, stays possible.
    pub(in crate::custody) fn check(
        &self,
        caller: &Caller,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        let is_watched =
            Counted::of(subject.action).is_some() || subject.action == Action::LeaveCustody;
        let now = self.now();
        if now.is_empty() || !is_watched {
            return Ok(());
        }
        let owner = subject.owner.as_ref().unwrap_or(&caller.owner);
        let mut about = vec![
            FreezeTarget::All,
            FreezeTarget::User(owner.uid),
            FreezeTarget::App(owner.app.clone()),
        ];
        about.extend(subject.device.clone().map(FreezeTarget::Device));
        about.extend(subject.identity.clone().map(|name| FreezeTarget::Identity {
            owner: owner.clone(),
            name,
        }));
        let Some((target, reason)) = about.iter().find_map(|it| now.get_key_value(it)) else {
            return Ok(());
        };
        let message = if reason.is_empty() {
            format!("{target} is frozen")
        } else {
            format!("{target} is frozen: {reason}")
        };
        let advice = "ask the administrator, who can thaw it (`mlskeyctl thaw`)";
        let failure = Failure::new(FailureCode::Denied, message, advice);
        Err(subject.refuse(RULE, failure))
    }

    pub(super) fn listed(&self) -> FrozenNow {
        let now = self.now();
        let frozen = now.iter().map(|(target, reason)| Freeze {
            target: target.clone(),
            reason: reason.clone(),
        });
        FrozenNow {
            frozen: frozen.collect(),
        }
    }
}

fn not_written(error: &std::io::Error) -> Failure {
    tracing::error!(%error, "what is frozen could not be written down");
    Failure::new(
        FailureCode::Internal,
        "this could not be written down; what was frozen is, until the daemon starts again",
        "see to the state directory (the daemon's log says more), then repeat this",
    )
}

#[cfg(test)]
mod tests {
    use secrecy::SecretBox;

    use super::*;
    use crate::store_key::{KEY_LEN, StoreKey};

    fn open(dir: &std::path::Path) -> Frozen {
        let key = StoreKey::new(SecretBox::new(Box::new([7; KEY_LEN])));
        Frozen::open(dir.join(FILE), key.subkey(LABEL).unwrap())
    }

    #[test]
    fn what_is_frozen_stays_so_and_damage_thaws_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let frozen = open(dir.path());
        assert!(frozen.now().is_empty());
        let target = FreezeTarget::Device("token".to_owned());
        frozen.freeze(target.clone(), "lost".to_owned()).unwrap();
        assert_eq!(open(dir.path()).now()[&target], "lost");
        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let damaged = open(dir.path());
        assert!(damaged.now().contains_key(&FreezeTarget::All));
        damaged.thaw(&FreezeTarget::All).unwrap();
        assert!(open(dir.path()).now().is_empty());
    }

    #[test]
    fn what_cannot_be_written_down_is_frozen_all_the_same_and_not_thawed() {
        let dir = tempfile::tempdir().unwrap();
        let frozen = open(dir.path());
        // A directory in its place.
        std::fs::create_dir_all(dir.path().join(FILE).join("x")).unwrap();
        let target = FreezeTarget::User(1);
        frozen.freeze(target.clone(), String::new()).unwrap_err();
        assert!(frozen.now().contains_key(&target));
        frozen.thaw(&target).unwrap_err();
        assert!(frozen.now().contains_key(&target));
    }

    #[test]
    fn changes_at_once_are_all_in_memory_and_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let frozen = open(dir.path());
        std::thread::scope(|scope| {
            for first in [0, 100, 200, 300] {
                let frozen = &frozen;
                scope.spawn(move || {
                    for uid in first..first + 10 {
                        let target = FreezeTarget::User(uid);
                        frozen.freeze(target.clone(), String::new()).unwrap();
                        assert!(frozen.has(&target));
                        if uid % 2 == 0 {
                            frozen.thaw(&target).unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(frozen.now().len(), 20);
        assert_eq!(open(dir.path()).now(), frozen.now());
    }

    #[test]
    fn who_asks_waits_for_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let frozen = open(dir.path());
        let look = |_: &mut Targets| assert!(!frozen.has(&FreezeTarget::All));
        frozen.change(look).unwrap();
    }
}
