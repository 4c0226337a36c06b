//! What administrators ask. The same way as every request: policy, then
//! record.

use std::sync::atomic::Ordering;

use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::{
    DaemonStatus, DeviceInfo, Failure, KeyQuery, OwnedIdentity, OwnedKey, Owner, StorageInfo, Swept,
};

use super::generate::check_name;
use super::subject::Subject;
use super::{Call, Custody, Request, Session, failure, identities};
use crate::store::KeyRecord;

/// The daemon at a glance.
#[derive(Clone, Copy, Debug)]
pub struct DaemonAtAGlance;

/// The devices.
#[derive(Clone, Copy, Debug)]
pub struct AllDevices;

/// All identities.
#[derive(Clone, Copy, Debug)]
pub struct AllIdentities;

/// A page of keys.
#[derive(Clone, Debug)]
pub struct AllKeys(pub KeyQuery);

/// The storages that hold claims.
#[derive(Clone, Copy, Debug)]
pub struct AllStorages;

/// Drop all claims of a storage whose database is gone.
#[derive(Clone, Debug)]
pub struct ForgetStorage {
    /// Who owns it.
    pub owner: Owner,
    /// Its name.
    pub name: String,
}

/// Destroy what is due now.
#[derive(Clone, Copy, Debug)]
pub struct Sweep;

/// An administrator's look is on record only if it is refused.
fn only_looks(subject: &mut Subject) {
    subject.durability = None;
}

impl Request for DaemonAtAGlance {
    type Reply = DaemonStatus;
    type Read = ();
    const ACTION: Action = Action::Administer;
    const LEAVES_TRACES: bool = false;

    async fn read(&self, _: &Session, subject: &mut Subject) -> Result<(), Failure> {
        only_looks(subject);
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<DaemonStatus, Failure> {
        session.custody().at_a_glance().await
    }
}

impl Request for AllDevices {
    type Reply = Vec<DeviceInfo>;
    type Read = ();
    const ACTION: Action = Action::Administer;
    const LEAVES_TRACES: bool = false;

    async fn read(&self, _: &Session, subject: &mut Subject) -> Result<(), Failure> {
        only_looks(subject);
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<Vec<DeviceInfo>, Failure> {
        Ok(session.custody().device_infos())
    }
}

impl Request for AllIdentities {
    type Reply = Vec<OwnedIdentity>;
    type Read = ();
    const ACTION: Action = Action::Administer;
    const LEAVES_TRACES: bool = false;

    async fn read(&self, _: &Session, subject: &mut Subject) -> Result<(), Failure> {
        only_looks(subject);
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<Vec<OwnedIdentity>, Failure> {
        let custody = session.custody();
        let records = custody
            .registry
            .identities(None)
            .await
            .map_err(failure::of_store)?;
        let mut all = Vec::with_capacity(records.len());
        for record in records {
            let key = custody.key(record.key).await?;
            all.push(OwnedIdentity {
                owner: record.owner.clone(),
                identity: identities::info(&record, &key),
            });
        }
        Ok(all)
    }
}

impl Request for AllKeys {
    type Reply = Vec<OwnedKey>;
    type Read = ();
    const ACTION: Action = Action::Administer;
    const LEAVES_TRACES: bool = false;

    async fn read(&self, _: &Session, subject: &mut Subject) -> Result<(), Failure> {
        only_looks(subject);
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<Vec<OwnedKey>, Failure> {
        let registry = &session.custody().registry;
        let page = registry.keys_page(self.0.after, self.0.destroyed).await;
        let owned = |(key, claims): (KeyRecord, u32)| OwnedKey {
            owner: key.owner.clone(),
            identity: key.identity.clone(),
            claims,
            key: key.info(),
        };
        Ok(page
            .map_err(failure::of_store)?
            .into_iter()
            .map(owned)
            .collect())
    }
}

impl Request for AllStorages {
    type Reply = Vec<StorageInfo>;
    type Read = ();
    const ACTION: Action = Action::Administer;
    const LEAVES_TRACES: bool = false;

    async fn read(&self, _: &Session, subject: &mut Subject) -> Result<(), Failure> {
        only_looks(subject);
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<Vec<StorageInfo>, Failure> {
        session
            .custody()
            .registry
            .storages()
            .await
            .map_err(failure::of_store)
    }
}

impl Request for ForgetStorage {
    type Reply = u32;
    type Read = ();
    const ACTION: Action = Action::Administer;
    const LEAVES_TRACES: bool = true;

    async fn read(&self, _: &Session, _: &mut Subject) -> Result<(), Failure> {
        check_name("a storage's name", &self.name)
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<u32, Failure> {
        let custody = session.custody();
        let forgotten = custody
            .registry
            .forget_storage(&self.owner, &self.name)
            .await;
        custody.due.notify_one();
        forgotten.map_err(failure::of_store)
    }
}

impl Request for Sweep {
    type Reply = Swept;
    type Read = ();
    const ACTION: Action = Action::Administer;
    const LEAVES_TRACES: bool = true;

    async fn read(&self, _: &Session, _: &mut Subject) -> Result<(), Failure> {
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<Swept, Failure> {
        session.custody().sweep().await
    }
}

impl Custody {
    fn device_infos(&self) -> Vec<DeviceInfo> {
        let default = self.devices.default_name();
        let describe = |info: std::sync::Arc<crate::devices::DeviceInfo>| DeviceInfo {
            name: info.name.clone(),
            kind: info.kind.to_owned(),
            state: info.state,
            detail: (!info.reason.is_empty()).then(|| info.reason.clone()),
            offers: info
                .support
                .iter()
                .flat_map(|support| support.tiers.iter().map(|tier| (support.algorithm, *tier)))
                .collect(),
            default: info.name == default,
        };
        self.devices.infos().map(describe).collect()
    }

    async fn at_a_glance(&self) -> Result<DaemonStatus, Failure> {
        let counts = self.registry.counts().await.map_err(failure::of_store)?;
        Ok(DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.started.elapsed().as_secs(),
            connections: self.connections.load(Ordering::Relaxed),
            keys: counts.keys,
            read_only: self.registry.read_only_reason().map(str::to_owned),
            audit_sequence: self.audit.sequence(),
            devices: self.device_infos(),
        })
    }
}
