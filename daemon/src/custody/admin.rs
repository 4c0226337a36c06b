//! What administrators ask. The same way as every request: policy, then
//! record.

use std::sync::atomic::Ordering;

use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::{
    DaemonStatus, DeviceInfo, Failure, FailureCode, KeyInfo, KeyQuery, KeyState, Offer,
    OwnedIdentity, OwnedKey, Owner, StorageInfo, Swept,
};

use super::devices::Shown;
use super::generate::check_name;
use super::sweep::PORTION;
use super::{Custody, PlainRequest, Session, failure};
use crate::polkit::Right;
use crate::store::{KeyRecord, StoreError};

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

/// Destroy a portion of what is due now.
#[derive(Clone, Copy, Debug)]
pub struct Sweep;

impl PlainRequest for DaemonAtAGlance {
    type Reply = DaemonStatus;
    const ACTION: Action = Action::Administer;
    const RIGHT: Option<Right> = Some(Right::View);

    async fn run(self, session: &Session) -> Result<DaemonStatus, Failure> {
        session.custody().at_a_glance().await
    }
}

impl PlainRequest for AllDevices {
    type Reply = Vec<DeviceInfo>;
    const ACTION: Action = Action::Administer;
    const RIGHT: Option<Right> = Some(Right::View);

    async fn run(self, session: &Session) -> Result<Vec<DeviceInfo>, Failure> {
        Ok(session.custody().device_infos().collect())
    }
}

impl PlainRequest for AllIdentities {
    type Reply = Vec<OwnedIdentity>;
    const ACTION: Action = Action::Administer;
    const RIGHT: Option<Right> = Some(Right::ReadRecords);

    async fn run(self, session: &Session) -> Result<Vec<OwnedIdentity>, Failure> {
        let custody = session.custody();
        let records = custody
            .registry
            .identities(None)
            .await
            .map_err(failure::of_store)?;
        let infos = custody.identity_infos(records).await.into_iter();
        Ok(infos
            .map(|(owner, identity)| OwnedIdentity { owner, identity })
            .collect())
    }
}

impl PlainRequest for AllKeys {
    type Reply = Vec<OwnedKey>;
    const ACTION: Action = Action::Administer;
    const RIGHT: Option<Right> = Some(Right::ReadRecords);

    async fn run(self, session: &Session) -> Result<Vec<OwnedKey>, Failure> {
        let custody = session.custody();
        let page = custody.registry.keys_page(self.0.after, self.0.destroyed);
        let page = page.await;
        let owned = |(key, claims): (KeyRecord, u32)| OwnedKey {
            owner: key.owner.clone(),
            identity: key.identity.clone(),
            claims,
            key: custody.key_info(&key),
        };
        Ok(page
            .map_err(failure::of_store)?
            .into_iter()
            .map(owned)
            .collect())
    }
}

impl PlainRequest for AllStorages {
    type Reply = Vec<StorageInfo>;
    const ACTION: Action = Action::Administer;
    const RIGHT: Option<Right> = Some(Right::ReadRecords);

    async fn run(self, session: &Session) -> Result<Vec<StorageInfo>, Failure> {
        session
            .custody()
            .registry
            .storages()
            .await
            .map_err(failure::of_store)
    }
}

impl PlainRequest for ForgetStorage {
    type Reply = u32;
    const ACTION: Action = Action::Administer;
    const RIGHT: Option<Right> = Some(Right::DestroyKeys);
    const RECORDED: bool = true;

    fn bounds(&self) -> Result<(), Failure> {
        check_name("a storage's name", &self.name)
    }

    async fn run(self, session: &Session) -> Result<u32, Failure> {
        let custody = session.custody();
        let forgotten = custody
            .registry
            .forget_storage(&self.owner, &self.name)
            .await;
        custody.due.notify_one();
        forgotten.map_err(|error| match error {
            StoreError::NotFound(_) => Failure::new(
                FailureCode::NotFound,
                format!("{} has no storage {:?}", self.owner, self.name),
                "`mlskeyctl storage list` shows those that are there",
            ),
            error => failure::of_store(error),
        })
    }
}

impl PlainRequest for Sweep {
    type Reply = Swept;
    const ACTION: Action = Action::Administer;
    const RIGHT: Option<Right> = Some(Right::DestroyKeys);
    const RECORDED: bool = true;

    async fn run(self, session: &Session) -> Result<Swept, Failure> {
        session.custody().sweep(PORTION).await
    }
}

impl Custody {
    /// A key as apps and administrators see it: missing, too, while its device says
    /// that what it hangs under is not there. The registry knows nothing of that, nor
    /// whether its PIN was given.
    pub(super) fn key_info(&self, key: &KeyRecord) -> KeyInfo {
        let info = KeyInfo {
            pin: self.devices.pin_of(key),
            ..self.registry.info(key)
        };
        if info.state == KeyState::Destroyed || !self.devices.lack(key) {
            return info;
        }
        KeyInfo {
            state: KeyState::Missing,
            ..info
        }
    }

    pub(super) fn device_infos(&self) -> impl Iterator<Item = DeviceInfo> {
        self.devices.all_shown().map(device_info)
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
            policies: self.policies.in_force(),
            devices: self.device_infos().collect(),
        })
    }
}

/// A device as administrators see it.
pub(super) fn device_info(shown: Shown) -> DeviceInfo {
    let info = &shown.info;
    let offers = info.support.iter().flat_map(|support| {
        support.ways.iter().map(|way| Offer {
            algorithm: support.algorithm,
            tier: way.tier,
            how: way.how.clone(),
        })
    });
    let remarks = info
        .support
        .iter()
        .filter(|support| !support.why_no_other.is_empty())
        .map(|support| (support.algorithm, support.why_no_other.clone()));
    DeviceInfo {
        name: info.name.clone(),
        kind: info.kind.to_owned(),
        state: info.state,
        detail: (!info.reason.is_empty()).then(|| info.reason.clone()),
        facts: info.facts.clone(),
        counts: shown.counts,
        offers: offers.collect(),
        remarks: remarks.collect(),
        hpke_tier: shown.hpke_tier,
        default: shown.default,
    }
}
