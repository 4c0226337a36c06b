//! Looking at what is there, and preparing it.

use mlskeyd_policies::Action;
use mlskeyd_protocol::limits::{MAX_LOOKUP, MAX_PUBLIC_KEY};
use mlskeyd_protocol::v1::{
    Bytes, DeviceInfo, DeviceState, Failure, FailureCode, IdentityInfo, KeyId, KeyInfo, KeyPin,
    KeyState, ServiceStatus,
};

use super::devices::key_is_locked;
use super::generate::check_name;
use super::subject::Subject;
use super::{Call, PlainRequest, Request, Session, failure};
use crate::store::KeyRecord;

/// Is the service ready for this caller?
#[derive(Clone, Copy, Debug)]
pub struct Status;

/// The caller's identities.
#[derive(Clone, Copy, Debug)]
pub struct Identities;

/// Is the device of this identity's key ready?
#[derive(Clone, Debug)]
pub struct Prepare(pub String);

/// Which of these public keys are in custody for the caller?
#[derive(Clone, Debug)]
pub struct LookUp(pub Vec<Bytes>);

/// A page of the caller's keys that are not destroyed, ordered by id, from after this one.
#[derive(Clone, Copy, Debug)]
pub struct OwnKeys(pub Option<KeyId>);

/// A key of the caller's.
#[derive(Clone, Copy, Debug)]
pub struct OwnKey(pub KeyId);

/// The devices, of which anybody may know what they are and whether they are ready.
#[derive(Clone, Copy, Debug)]
pub struct LookAtDevices;

impl PlainRequest for Status {
    type Reply = ServiceStatus;
    const ACTION: Action = Action::Look;

    async fn run(self, session: &Session) -> Result<ServiceStatus, Failure> {
        let custody = session.custody();
        let default = custody.devices.default_name();
        let state = custody.devices.get(default)?.seen().await.state;
        Ok(ServiceStatus {
            daemon: env!("CARGO_PKG_VERSION").to_owned(),
            default_device: (default.to_owned(), state),
            read_only: custody.registry.read_only_reason().map(str::to_owned),
        })
    }
}

impl PlainRequest for Identities {
    type Reply = Vec<IdentityInfo>;
    const ACTION: Action = Action::Look;

    async fn run(self, session: &Session) -> Result<Vec<IdentityInfo>, Failure> {
        let custody = session.custody();
        let own = custody.registry.identities(Some(&session.caller().owner));
        let records = own.await.map_err(failure::of_store)?;
        let infos = custody.identity_infos(records).await.into_iter();
        Ok(infos.map(|(_, info)| info).collect())
    }
}

impl Request for Prepare {
    type Reply = ();
    type Read = ();
    const ACTION: Action = Action::Prepare;
    const LEAVES_TRACES: bool = false;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        subject.durability = None;
        check_name("an identity's name", &self.0)?;
        let known = session.identity(&self.0).await?;
        let (_, key) = known.ok_or_else(|| failure::not_found("identity"))?;
        subject.about_key(key);
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        let Some(key) = &subject.key else {
            return Err(failure::internal());
        };
        let device = session.custody().devices.get(&key.device)?.seen().await;
        let code = match device.state {
            DeviceState::Ready if session.custody().devices.pin_of(key) == KeyPin::Locked => {
                return Err(key_is_locked(key));
            }
            DeviceState::Ready => return Ok(()),
            DeviceState::Locked => FailureCode::DeviceLocked,
            DeviceState::Absent => FailureCode::DeviceAbsent,
            DeviceState::Failed => FailureCode::DeviceFailed,
        };
        let message = format!("device {} is {}", device.name, device.state);
        Err(Failure::new(code, message, device.reason.clone()).at_device(&device.name))
    }
}

impl PlainRequest for LookUp {
    type Reply = Vec<Option<KeyInfo>>;
    const ACTION: Action = Action::Look;

    fn bounds(&self) -> Result<(), Failure> {
        if self.0.len() > MAX_LOOKUP || self.0.iter().any(|key| key.len() > MAX_PUBLIC_KEY) {
            return Err(failure::too_much(
                "the number of public keys, or one's length,",
                MAX_LOOKUP,
            ));
        }
        Ok(())
    }

    async fn run(self, session: &Session) -> Result<Vec<Option<KeyInfo>>, Failure> {
        let custody = session.custody();
        let owner = &session.caller().owner;
        let mut found = Vec::with_capacity(self.0.len());
        for public_key in &self.0 {
            let key = custody
                .registry
                .key_by_public(owner, public_key)
                .await
                .map_err(failure::of_store)?;
            found.push(key.map(|key| custody.key_info(&key)));
        }
        Ok(found)
    }
}

impl PlainRequest for OwnKeys {
    type Reply = Vec<KeyInfo>;
    const ACTION: Action = Action::Look;

    async fn run(self, session: &Session) -> Result<Vec<KeyInfo>, Failure> {
        let custody = session.custody();
        let owner = session.caller().owner.clone();
        let keys = custody.registry.keys_of(owner, self.0).await;
        let keys = keys.map_err(failure::of_store)?;
        Ok(keys.iter().map(|key| custody.key_info(key)).collect())
    }
}

impl Request for OwnKey {
    type Reply = KeyInfo;
    type Read = ();
    const ACTION: Action = Action::Look;
    const LEAVES_TRACES: bool = false;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        subject.durability = None;
        let key = session.custody().registry.key(self.0).await;
        let key = key.map_err(failure::of_store)?;
        // Whose another one is, or what became of it, is not said.
        let is_own = |key: &KeyRecord| {
            key.owner == session.caller().owner && key.shown_state() != KeyState::Destroyed
        };
        let own = key.filter(|key| is_own(key));
        subject.about_key(own.ok_or_else(|| failure::not_found("key"))?);
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<KeyInfo, Failure> {
        let key = subject.key.as_ref().ok_or_else(failure::internal)?;
        Ok(session.custody().key_info(key))
    }
}

impl PlainRequest for LookAtDevices {
    type Reply = Vec<DeviceInfo>;
    const ACTION: Action = Action::Look;

    async fn run(self, session: &Session) -> Result<Vec<DeviceInfo>, Failure> {
        Ok(session.custody().device_infos().collect())
    }
}
