//! The list of what is frozen: in memory for each request, and in a file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::{
    Failure, FailureCode, Freeze, FreezeTarget, Frozen as FrozenNow, Owner,
};
use serde::{Deserialize, Serialize};

use super::files::{Files, Obeyed, Order, Word};
use crate::caller::Caller;
use crate::custody::rates::Counted;
use crate::custody::subject::Subject;
use crate::mac_file::{MacFile, MacFileError};
use crate::signers::Signers;
use crate::store_key::Subkey;

/// The file in the state directory.
pub(crate) const FILE: &str = "frozen";

/// What the MAC's key is derived under.
pub(crate) const LABEL: &str = "mlskeyd v1 frozen";

/// Most things that are frozen at a time.
const MAX_FROZEN: usize = 1000;

/// Most targets of which the newest file is remembered: more than may be frozen and files
/// may lie there.
const MAX_OBEYED: usize = 4096;

/// Longest file, in bytes: so many of the longest names and reasons fit.
const MAX_FILE: usize = 8 * 1024 * 1024;

/// The rule that refuses.
const RULE: &str = "rule/frozen";

/// What is frozen, and why: kept in a file, under a MAC.
pub struct Frozen {
    file: MacFile,
    /// What each request looks at: held for a moment, and never while the file is
    /// written.
    now: Mutex<Arc<List>>,
    /// One change at a time, so that the last one is also the last on disk. Is that
    /// behind, since it could not be written?
    changing: Mutex<bool>,
    /// The files that security teams roll out, if anybody's signature counts.
    pub(super) files: Option<Files>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct List {
    frozen: BTreeMap<FreezeTarget, Entry>,
    /// The newest file of each target that was obeyed.
    obeyed: BTreeMap<FreezeTarget, Newest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    reason: String,
    /// By nobody but files? Then a file thaws it, too. What an administrator of this
    /// machine has frozen no file thaws: somebody may have held an old one back.
    by_file: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Newest {
    serial: u64,
    digest: [u8; 32],
}

impl Frozen {
    /// What was frozen before. If that cannot be read everything is: who damages the file
    /// thaws nothing.
    #[must_use]
    pub fn open(path: PathBuf, key: Subkey) -> Self {
        let frozen = Self {
            file: MacFile::new(path, key, MAX_FILE),
            now: Mutex::default(),
            changing: Mutex::default(),
            files: None,
        };
        let list = frozen.read().unwrap_or_else(|error| {
            tracing::error!(%error, path = %frozen.file.path().display(), "the file of what is frozen is damaged: everything is frozen until `mlskeyctl thaw all`");
            let entry = Entry {
                reason: "the list of what is frozen is damaged".to_owned(),
                by_file: false,
            };
            List {
                frozen: [(FreezeTarget::All, entry)].into(),
                obeyed: BTreeMap::new(),
            }
        });
        frozen.set(list);
        frozen
    }

    /// Also by the files of a directory that one of these has signed.
    #[must_use]
    pub fn with_files(self, directory: PathBuf, signers: Option<Signers>) -> Self {
        let files = signers.map(|signers| Files::new(directory, signers));
        Self { files, ..self }
    }

    fn read(&self) -> Result<List, MacFileError> {
        let Some(content) = self.file.read()? else {
            return Ok(List::default());
        };
        postcard::from_bytes(&content).map_err(|_| MacFileError::Damaged)
    }

    fn now(&self) -> Arc<List> {
        Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, list: List) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(list);
    }

    /// Is it frozen by itself?
    pub(super) fn has(&self, target: &FreezeTarget) -> bool {
        self.now().frozen.contains_key(target)
    }

    /// Freezes, as an administrator: in force at once, and on disk before this is answered.
    pub(super) fn freeze(&self, target: FreezeTarget, reason: String) -> Result<(), Failure> {
        self.change(|list| {
            if list.frozen.len() >= MAX_FROZEN && !list.frozen.contains_key(&target) {
                return Err(Failure::new(
                    FailureCode::LimitReached,
                    format!("{MAX_FROZEN} targets are frozen, and no more can be"),
                    "thaw some of them, or freeze all",
                ));
            }
            let entry = Entry {
                reason,
                by_file: false,
            };
            list.frozen.insert(target, entry);
            Ok(())
        })
    }

    /// Thaws, as an administrator, once that is on disk.
    pub(super) fn thaw(&self, target: &FreezeTarget) -> Result<(), Failure> {
        self.change(|list| {
            list.frozen.remove(target);
            Ok(())
        })
    }

    /// Does what files say, one after the other. Answers what came of each.
    pub(super) fn obey(&self, orders: &[Order]) -> Result<Vec<Obeyed>, Failure> {
        self.change(|list| {
            let obeyed = orders.iter().map(|order| list.obey(order)).collect();
            list.forget(orders);
            Ok(obeyed)
        })
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut List) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let turn = self.changing.lock();
        let mut is_behind = turn.unwrap_or_else(PoisonError::into_inner);
        let before = self.now();
        let mut after = List::clone(&before);
        let answer = change(&mut after)?;
        if after == *before && !*is_behind {
            return Ok(answer);
        }
        // While it is written, and for good if it cannot be: what was frozen stays so, and
        // what is to be is. So nothing is thawed that the next start would freeze again;
        // and files are obeyed again.
        let mut either = List::clone(&before);
        either.frozen.extend(after.frozen.clone());
        self.set(either);
        *is_behind = true;
        self.keep(&after).map_err(|error| not_written(&error))?;
        *is_behind = false;
        self.set(after);
        Ok(answer)
    }

    fn keep(&self, list: &List) -> std::io::Result<()> {
        let list = postcard::to_stdvec(list).map_err(std::io::Error::other)?;
        self.file.replace(&list)
    }

    /// Refuses what is frozen.
    pub(in crate::custody) fn check(
        &self,
        caller: &Caller,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        let now = self.now();
        if now.frozen.is_empty() || !stops(subject.action) {
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
        let Some((target, entry)) = about.iter().find_map(|it| now.frozen.get_key_value(it)) else {
            return Ok(());
        };
        let reason = &entry.reason;
        let message = if reason.is_empty() {
            format!("{target} is frozen")
        } else {
            format!("{target} is frozen: {reason}")
        };
        let advice = "ask the administrator, who can thaw it (`mlskeyctl thaw`)";
        let failure = Failure::new(FailureCode::Denied, message, advice);
        Err(subject.refuse(RULE, failure))
    }

    /// What of an owner, or of these identities of it, is frozen by name, if anything is: under
    /// another owner's it would not be.
    pub(in crate::custody) fn holds(
        &self,
        owner: &Owner,
        identities: &[String],
    ) -> Option<FreezeTarget> {
        let now = self.now();
        let of_owner = [
            FreezeTarget::User(owner.uid),
            FreezeTarget::App(owner.app.clone()),
        ];
        let identities = identities.iter().map(|name| FreezeTarget::Identity {
            owner: owner.clone(),
            name: name.clone(),
        });
        let mut about = of_owner.into_iter().chain(identities);
        about.find(|target| now.frozen.contains_key(target))
    }

    pub(super) fn listed(&self) -> FrozenNow {
        let now = self.now();
        let frozen = now.frozen.iter().map(|(target, entry)| Freeze {
            target: target.clone(),
            reason: entry.reason.clone(),
        });
        FrozenNow {
            frozen: frozen.collect(),
        }
    }
}

/// Whom it concerns is let do nothing with a key and make none. To look, and to keep storages in
/// step, stays possible, and so does all that administrators do: a key is exchanged while its
/// identity is frozen.
const fn stops(action: Action) -> bool {
    Counted::of(action).is_some() || matches!(action, Action::LeaveCustody)
}

impl List {
    fn obey(&mut self, order: &Order) -> Obeyed {
        let target = &order.target;
        if let Some(newest) = self.obeyed.get(target) {
            if newest.serial > order.serial || newest.digest == order.digest {
                return Obeyed::Before;
            }
            if newest.serial == order.serial {
                return Obeyed::No(
                    "another file about this had the same serial: give it a higher one",
                );
            }
        }
        let by_file = self.frozen.get(target).map(|entry| entry.by_file);
        let obeyed = match (order.word, by_file) {
            // What an administrator has frozen stays his.
            (Word::Freeze, Some(false)) => Obeyed::Yes,
            (Word::Freeze, None) if self.frozen.len() >= MAX_FROZEN => {
                return Obeyed::No("too much is frozen: thaw some, or freeze all");
            }
            (Word::Freeze, _) => {
                let entry = Entry {
                    reason: order.reason.clone(),
                    by_file: true,
                };
                self.frozen.insert(target.clone(), entry);
                Obeyed::Yes
            }
            (Word::Thaw, Some(true)) => {
                self.frozen.remove(target);
                Obeyed::Yes
            }
            (Word::Thaw, Some(false)) => Obeyed::No(
                "an administrator of this machine froze it, who can thaw it (`mlskeyctl thaw`)",
            ),
            (Word::Thaw, None) => Obeyed::No("it is not frozen"),
        };
        let newest = Newest {
            serial: order.serial,
            digest: order.digest,
        };
        self.obeyed.insert(target.clone(), newest);
        obeyed
    }

    /// Only so many targets are remembered: never fewer than are frozen, of which an older
    /// file must not say anything, nor than have a file that lies there.
    fn forget(&mut self, orders: &[Order]) {
        let excess = self.obeyed.len().saturating_sub(MAX_OBEYED);
        if excess == 0 {
            return;
        }
        let lie_there: BTreeSet<_> = orders.iter().map(|order| &order.target).collect();
        let mut rest: Vec<_> = self
            .obeyed
            .iter()
            .filter(|(target, _)| !lie_there.contains(target) && !self.frozen.contains_key(target))
            .map(|(target, newest)| (newest.serial, target.clone()))
            .collect();
        rest.sort();
        for (_, target) in rest.into_iter().take(excess) {
            self.obeyed.remove(&target);
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
        assert!(frozen.now().frozen.is_empty());
        let target = FreezeTarget::Device("token".to_owned());
        frozen.freeze(target.clone(), "lost".to_owned()).unwrap();
        assert_eq!(open(dir.path()).now().frozen[&target].reason, "lost");
        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let damaged = open(dir.path());
        assert!(damaged.has(&FreezeTarget::All));
        damaged.thaw(&FreezeTarget::All).unwrap();
        assert!(open(dir.path()).now().frozen.is_empty());
    }

    #[test]
    fn what_cannot_be_written_down_is_frozen_all_the_same_and_not_thawed() {
        let dir = tempfile::tempdir().unwrap();
        let frozen = open(dir.path());
        // A directory in its place.
        std::fs::create_dir_all(dir.path().join(FILE).join("x")).unwrap();
        let target = FreezeTarget::User(1);
        frozen.freeze(target.clone(), String::new()).unwrap_err();
        assert!(frozen.has(&target));
        frozen.thaw(&target).unwrap_err();
        assert!(frozen.has(&target));
        // Who repeats it when there is room has it on disk.
        std::fs::remove_dir_all(dir.path().join(FILE)).unwrap();
        frozen.freeze(target.clone(), String::new()).unwrap();
        assert!(open(dir.path()).has(&target));
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
        assert_eq!(frozen.now().frozen.len(), 20);
        assert_eq!(open(dir.path()).now(), frozen.now());
    }

    #[test]
    fn who_asks_waits_for_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let frozen = open(dir.path());
        let look = |_: &mut List| Ok(frozen.has(&FreezeTarget::All));
        assert!(!frozen.change(look).unwrap());
    }
}
