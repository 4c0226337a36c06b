//! Signature keys with a PIN of their own: making identities that have one,
//! unlocking and locking them. Who did it goes on record, and the PIN nowhere.

use std::sync::Arc;

use mlskeyd_policies::Action;
use mlskeyd_protocol::limits::MAX_PIN;
use mlskeyd_protocol::v1::{
    Algorithm, CreateIdentityFor, Credential, Failure, FailureCode, IdentityInfo, LockIdentity,
    SecretBytes, UnlockIdentity, UnlockedIdentity,
};

use super::generate::{Place, read_place};
use super::identities::{conflict, for_no_key};
use super::lifecycle::{NO_KEY_PINS, Order};
use super::request::encoded;
use super::subject::Subject;
use super::{Call, Custody, Request, Session, failure};
use crate::devices::{Device, Unlocking};
use crate::store::{IdentityRecord, KeyRecord, StoreError};

impl Request for CreateIdentityFor {
    type Reply = IdentityInfo;
    type Read = Place;
    const ACTION: Action = Action::CreateIdentityFor;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<Place, Failure> {
        if let Some(pin) = &self.pin {
            check_pin(pin)?;
        }
        if matches!(self.credential, Credential::X509(_)) {
            return Err(for_no_key());
        }
        let custody = session.custody();
        custody
            .check_new_identity(&self.owner, &self.name, &self.credential, subject)
            .await?;
        let algorithm = Algorithm::Signature(self.scheme);
        read_place(session, call, &self.placement, algorithm, subject).await
    }

    fn consents_to(&self, _: &Self::Read) -> Result<Option<Vec<u8>>, Failure> {
        encoded(self)
    }

    async fn perform(
        self,
        place: Place,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<IdentityInfo, Failure> {
        let order = Order {
            owner: &self.owner,
            algorithm: Algorithm::Signature(self.scheme),
            place: &place,
            identity: Some(&self.name),
            pin: self.pin.as_ref(),
        };
        let made = session.make_key(&order, call).await?;
        subject.made = Some(made.id);
        let record = IdentityRecord {
            owner: self.owner,
            name: self.name.clone(),
            made_with: self.credential.clone(),
            credential: self.credential,
            scheme: self.scheme,
            key: made.id,
            retiring: Vec::new(),
            next: None,
        };
        let finished = session.custody().finish_identity(record, made).await;
        finished.map_err(|error| match error {
            StoreError::Conflict(_) => conflict(&self.name),
            error => failure::of_store(error),
        })
    }
}

/// What was read from an [`UnlockIdentity`] request.
pub struct ToUnlock {
    identity: IdentityRecord,
    key: Arc<KeyRecord>,
}

impl Request for UnlockIdentity {
    type Reply = UnlockedIdentity;
    type Read = ToUnlock;
    const ACTION: Action = Action::UnlockIdentity;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<ToUnlock, Failure> {
        let custody = session.custody();
        let identity = custody
            .identity_of(&self.owner, &self.name, subject)
            .await?;
        let id = self.key.unwrap_or(identity.key);
        if id != identity.key && !identity.retiring.contains(&id) {
            return Err(not_of_it(&self.name).about_key(id));
        }
        let key = custody.key(id).await?;
        subject.about_key(Arc::clone(&key));
        check_pin(&self.pin)?;
        if !key.pin {
            return Err(has_no_pin(&self.name).about_key(id));
        }
        Ok(ToUnlock { identity, key })
    }

    async fn perform(
        self,
        read: ToUnlock,
        session: &Session,
        call: &Call,
        _: &mut Subject,
    ) -> Result<UnlockedIdentity, Failure> {
        let custody = session.custody();
        let ToUnlock { identity, key } = read;
        let (stored, pin, last_try) = (key.stored(), self.pin, self.last_try);
        let unlock = move |device: &mut dyn Device| {
            let pins = device.key_pins().ok_or(NO_KEY_PINS)?;
            pins.unlock_key(&stored, &pin, last_try)
        };
        let devices = &custody.devices;
        let how = devices.attend(&key.device, call.deadline, unlock).await?;
        Ok(UnlockedIdentity {
            identity: custody.shown(&identity).await?,
            pin_tried: how == Unlocking::ByThePin,
        })
    }
}

impl Request for LockIdentity {
    type Reply = IdentityInfo;
    type Read = IdentityRecord;
    const ACTION: Action = Action::LockIdentity;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<IdentityRecord, Failure> {
        let custody = session.custody();
        let identity = custody
            .identity_of(&self.owner, &self.name, subject)
            .await?;
        if let Ok(key) = custody.key(identity.key).await {
            subject.about_key(key);
        }
        Ok(identity)
    }

    /// Locks what it can: that one key cannot be found, or its device does not answer,
    /// keeps no other one unlocked.
    async fn perform(
        self,
        identity: IdentityRecord,
        session: &Session,
        call: &Call,
        _: &mut Subject,
    ) -> Result<IdentityInfo, Failure> {
        let custody = session.custody();
        let mut locked = Vec::new();
        for id in std::iter::once(&identity.key).chain(&identity.retiring) {
            match custody.registry.key(*id).await {
                Ok(Some(key)) if key.pin => locked.push(custody.lock_key(&key, call).await),
                Ok(_) => {}
                Err(error) => locked.push(Err(failure::of_store(error))),
            }
        }
        if locked.is_empty() {
            return Err(has_no_pin(&self.name));
        }
        locked.into_iter().collect::<Result<(), Failure>>()?;
        custody.shown(&identity).await
    }
}

impl Custody {
    async fn lock_key(&self, key: &KeyRecord, call: &Call) -> Result<(), Failure> {
        let stored = key.stored();
        let lock = move |device: &mut dyn Device| {
            device.key_pins().ok_or(NO_KEY_PINS)?.lock_key(&stored);
            Ok(())
        };
        self.devices.attend(&key.device, call.deadline, lock).await
    }

    /// The identity as it is now.
    async fn shown(&self, identity: &IdentityRecord) -> Result<IdentityInfo, Failure> {
        let key = self.key(identity.key).await?;
        Ok(self.identity_info(identity, &key).await)
    }
}

/// A PIN is 1 to [`MAX_PIN`] bytes.
pub(super) fn check_pin(pin: &SecretBytes) -> Result<(), Failure> {
    match pin.expose().len() {
        1..=MAX_PIN => Ok(()),
        _ => Err(failure::too_much("the PIN", MAX_PIN)),
    }
}

fn has_no_pin(name: &str) -> Failure {
    Failure::new(
        FailureCode::Unsupported,
        format!("the key of {name:?} has no PIN, and is never locked by itself"),
        "use it as it is; `mlskeyctl identities rotate OWNER NAME --pin` gives the identity a key that has one",
    )
}

fn not_of_it(name: &str) -> Failure {
    Failure::new(
        FailureCode::NotFound,
        format!("the key is none of {name:?} that still signs"),
        "`mlskeyctl identities` shows its keys",
    )
}
