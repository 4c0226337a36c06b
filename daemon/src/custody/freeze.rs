//! What administrators have frozen: nothing is signed, opened or made for it, whatever the
//! policies say, until somebody thaws it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use hmac::{Hmac, Mac};
use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::{
    Failure, FailureCode, Freeze, FreezeTarget, Frozen as FrozenNow, ReadFrozen, Thaw,
};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::generate::check_name;
use super::rates::Counted;
use super::subject::Subject;
use super::{Call, Request, Session, failure};
use crate::caller::Caller;
use crate::private_file;
use crate::store_key::Subkey;

/// The file in the state directory.
pub(crate) const FILE: &str = "frozen";

/// What the MAC's key is derived under.
pub(crate) const LABEL: &str = "mlskeyd v1 frozen";

/// Most things that are frozen at a time; longest reason, in bytes.
const MAX_FROZEN: usize = 1000;
const MAX_REASON: usize = 500;

/// The rule that refuses.
const RULE: &str = "rule/frozen";

/// What is frozen, and why: kept in a file, under a MAC.
pub struct Frozen {
    path: PathBuf,
    key: Subkey,
    now: Mutex<Arc<Targets>>,
}

type Targets = BTreeMap<FreezeTarget, String>;

#[derive(Serialize, Deserialize)]
struct Kept {
    targets: Vec<u8>,
    mac: [u8; 32],
}

impl Frozen {
    /// What was frozen before. If that cannot be read everything is: who damages the file
    /// thaws nothing.
    #[must_use]
    pub fn open(path: PathBuf, key: Subkey) -> Self {
        let frozen = Self {
            path,
            key,
            now: Mutex::default(),
        };
        let targets = match std::fs::read(&frozen.path) {
            Ok(bytes) => frozen.parse(&bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(Targets::new()),
            Err(_) => None,
        };
        let targets = targets.unwrap_or_else(|| {
            tracing::error!(path = %frozen.path.display(), "the file of what is frozen is damaged: everything is frozen until `mlskeyctl thaw all`");
            let why = "the list of what is frozen is damaged".to_owned();
            Targets::from([(FreezeTarget::All, why)])
        });
        frozen.set(targets);
        frozen
    }

    fn parse(&self, bytes: &[u8]) -> Option<Targets> {
        let kept: Kept = postcard::from_bytes(bytes).ok()?;
        self.mac(&kept.targets)?.verify_slice(&kept.mac).ok()?;
        postcard::from_bytes(&kept.targets).ok()
    }

    fn mac(&self, bytes: &[u8]) -> Option<Hmac<Sha256>> {
        let mac = <Hmac<Sha256> as Mac>::new_from_slice(self.key.expose()).ok()?;
        Some(mac.chain_update(bytes))
    }

    fn now(&self) -> Arc<Targets> {
        Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, targets: Targets) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(targets);
    }

    /// Changes it: in force at once, and on disk before this is answered.
    fn change(&self, change: impl FnOnce(&mut Targets)) -> Result<(), Failure> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let mut targets = Targets::clone(&now);
        change(&mut targets);
        if targets.len() > MAX_FROZEN {
            return Err(failure::too_much("what is frozen", MAX_FROZEN));
        }
        let before = std::mem::replace(&mut *now, Arc::new(targets));
        let kept = self.keep(&now);
        // What could not be frozen for good is frozen for now; what could not be thawed
        // for good stays frozen.
        if kept.is_err() && before.keys().any(|target| !now.contains_key(target)) {
            *now = before;
        }
        kept.map_err(|error| not_written(&error))
    }

    fn keep(&self, targets: &Targets) -> std::io::Result<()> {
        let targets = postcard::to_stdvec(targets).map_err(std::io::Error::other)?;
        let mac = self.mac(&targets);
        let mac = mac.ok_or_else(|| std::io::Error::other("no MAC"))?;
        let mac = mac.finalize().into_bytes().into();
        let kept = postcard::to_stdvec(&Kept { targets, mac });
        private_file::replace(&self.path, &kept.map_err(std::io::Error::other)?)
    }

    /// Refuses what is frozen. To look, and to keep storages in step, stays possible.
    pub(super) fn check(&self, caller: &Caller, subject: &mut Subject) -> Result<(), Failure> {
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

    fn listed(&self) -> FrozenNow {
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

/// Is it something that can be?
fn check_target(target: &FreezeTarget, subject: &mut Subject) -> Result<(), Failure> {
    match target {
        FreezeTarget::All | FreezeTarget::User(_) => Ok(()),
        FreezeTarget::App(name) => check_name("an app's name", name),
        FreezeTarget::Device(name) => {
            check_name("a device's name", name)?;
            subject.device = Some(name.clone());
            Ok(())
        }
        FreezeTarget::Identity { owner, name } => {
            check_name("an app's name", &owner.app)?;
            check_name("an identity's name", name)?;
            subject.identity = Some(name.clone());
            Ok(())
        }
    }
}

impl Request for Freeze {
    type Reply = FrozenNow;
    type Read = ();
    const ACTION: Action = Action::Freeze;
    const LEAVES_TRACES: bool = true;

    async fn read(&self, _: &Session, _: &Call, subject: &mut Subject) -> Result<(), Failure> {
        check_target(&self.target, subject)?;
        if self.reason.len() > MAX_REASON || self.reason.chars().any(char::is_control) {
            return Err(failure::too_much("the reason", MAX_REASON));
        }
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<FrozenNow, Failure> {
        let custody = session.custody();
        let note = format!("{}: {}", self.target, self.reason);
        custody.frozen.change(|now| {
            now.insert(self.target, self.reason);
        })?;
        custody.note("Frozen", note).await;
        Ok(custody.frozen.listed())
    }
}

impl Request for Thaw {
    type Reply = FrozenNow;
    type Read = ();
    const ACTION: Action = Action::Thaw;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        check_target(&self.target, subject)?;
        if session.custody().frozen.now().contains_key(&self.target) {
            return Ok(());
        }
        Err(Failure::new(
            FailureCode::NotFound,
            format!("{} is not frozen", self.target),
            "`mlskeyctl frozen` shows what is",
        ))
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<FrozenNow, Failure> {
        let custody = session.custody();
        let note = self.target.to_string();
        custody.frozen.change(|now| {
            now.remove(&self.target);
        })?;
        custody.note("Thawed", note).await;
        Ok(custody.frozen.listed())
    }
}

impl Request for ReadFrozen {
    type Reply = FrozenNow;
    type Read = ();
    const ACTION: Action = Action::Administer;
    const LEAVES_TRACES: bool = false;

    async fn read(&self, _: &Session, _: &Call, subject: &mut Subject) -> Result<(), Failure> {
        // To look leaves no record, a refusal does.
        subject.durability = None;
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<FrozenNow, Failure> {
        Ok(session.custody().frozen.listed())
    }
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
        frozen
            .change(|now| drop(now.insert(target.clone(), "lost".to_owned())))
            .unwrap();
        assert_eq!(open(dir.path()).now()[&target], "lost");
        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let damaged = open(dir.path());
        assert!(damaged.now().contains_key(&FreezeTarget::All));
        damaged
            .change(|now| drop(now.remove(&FreezeTarget::All)))
            .unwrap();
        assert!(open(dir.path()).now().is_empty());
    }

    #[test]
    fn what_cannot_be_written_down_is_frozen_all_the_same_and_not_thawed() {
        let dir = tempfile::tempdir().unwrap();
        let frozen = open(dir.path());
        // A directory in its place.
        std::fs::create_dir_all(dir.path().join(FILE).join("x")).unwrap();
        let target = FreezeTarget::User(1);
        let freeze = |now: &mut Targets| drop(now.insert(target.clone(), String::new()));
        frozen.change(freeze).unwrap_err();
        assert!(frozen.now().contains_key(&target));
        frozen.change(|now| drop(now.remove(&target))).unwrap_err();
        assert!(frozen.now().contains_key(&target));
    }
}
