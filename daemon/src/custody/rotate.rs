//! Giving an identity a new signature key.
//!
//! Only the key changes: name, credential and the guard's memory stay. The old
//! key signs on for a grace, since each group verifies with it until a commit
//! brings a leaf with the new one.

use std::sync::Arc;
use std::time::Duration;

use mlskeyd_policies::Action;
use mlskeyd_protocol::limits::{MAX_GRACE, MAX_RETIRING};
use mlskeyd_protocol::v1::{
    Algorithm, Credential, Failure, FailureCode, IdentityInfo, KeyId, Placement, RotateIdentity,
    SignatureScheme,
};

use super::generate::{Place, read_place};
use super::key_pins::check_pin;
use super::lifecycle::Order;
use super::request::encoded;
use super::subject::Subject;
use super::{Call, Request, Session, failure};
use crate::audit::{AuditOutcome, Durability, Record};
use crate::store::{KeyRecord, Rotation, StoreError};

/// What was read from a [`RotateIdentity`] request.
pub struct Rotating {
    scheme: SignatureScheme,
    old: Arc<KeyRecord>,
    place: Place,
}

impl Request for RotateIdentity {
    type Reply = IdentityInfo;
    type Read = Rotating;
    const ACTION: Action = Action::RotateIdentity;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<Rotating, Failure> {
        if self.grace.is_some_and(|grace| grace > MAX_GRACE) {
            return Err(failure::bad_request(
                "a grace has at most ten years",
                "name a shorter one",
            ));
        }
        let custody = session.custody();
        let identity = custody
            .identity_of(&self.owner, &self.name, subject)
            .await?;
        let registry = &custody.registry;
        // A destroyed one, too: an old registry may have been put back, and a new
        // key is the way out.
        let old = registry
            .key(identity.key)
            .await
            .map_err(failure::of_store)?
            .ok_or_else(|| no_entry(&self.name))?;
        subject.about_key(Arc::clone(&old));
        if let Some(pin) = &self.pin {
            check_pin(pin)?;
        } else if old.pin && !self.drop_pin {
            return Err(would_lose_its_pin(&self.name));
        }
        if matches!(identity.credential, Credential::X509(_)) {
            return Err(in_a_certificate(&self.name));
        }
        let mut retiring = usize::from(custody.signs(&old));
        for id in &identity.retiring {
            let key = registry.key(*id).await;
            let signs = key.is_ok_and(|key| key.is_some_and(|key| custody.signs(&key)));
            retiring = retiring.saturating_add(usize::from(signs));
        }
        if retiring > MAX_RETIRING {
            let full = StoreError::Limit("keys of one identity that retire");
            return Err(failure::of_store(full));
        }
        let place = place_after(
            &old,
            &self.placement,
            identity.scheme,
            (session, call),
            subject,
        )
        .await?;
        Ok(Rotating {
            scheme: identity.scheme,
            old,
            place,
        })
    }

    fn consents_to(&self, _: &Self::Read) -> Result<Option<Vec<u8>>, Failure> {
        encoded(self)
    }

    async fn perform(
        self,
        read: Rotating,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<IdentityInfo, Failure> {
        let custody = session.custody();
        let order = Order {
            owner: &self.owner,
            algorithm: Algorithm::Signature(read.scheme),
            place: &read.place,
            identity: Some(&self.name),
            pin: self.pin.as_ref(),
        };
        let made = session.make_key(&order, call).await?;
        let id = made.id;
        let grace = self.grace.unwrap_or(custody.settings.rotation_grace);
        if let Err(failure) = session.record_rotation(&read, id, grace).await {
            custody.undo_creation(id).await;
            return Err(failure);
        }
        let rotation = Rotation {
            owner: self.owner,
            name: self.name,
            from: read.old.id,
            to: made,
            grace: Duration::from_secs(grace),
        };
        match custody.registry.rotate_identity(rotation).await {
            Ok((identity, key)) => {
                subject.made = Some(id);
                custody.due.notify_one();
                custody.tell_of_changed_identity(&key, &identity);
                Ok(custody.identity_info(&identity, &key).await)
            }
            Err(error) => {
                custody.undo_creation(id).await;
                Err(match error {
                    StoreError::Conflict(_) => outrun(),
                    error => failure::of_store(error),
                })
            }
        }
    }
}

impl Session {
    /// Before the registry does it: rather on record and not done, than done and
    /// not on record.
    async fn record_rotation(&self, read: &Rotating, to: KeyId, grace: u64) -> Result<(), Failure> {
        let Rotating { old, place, .. } = read;
        let note = format!(
            "key {} ({}, {}) -> {to} ({}, {}); the old one ends after {grace} seconds",
            old.id, old.device, old.tier, place.device, place.tier
        );
        let mut record = Record::new("KeyRotated", AuditOutcome::Noted { note: note.into() });
        record.caller = Some(self.caller().for_audit());
        record.owner = self.another(Some(&old.owner));
        record.key = Some(old.id);
        record.identity.clone_from(&old.identity);
        record.device = Some(old.device.clone());
        let audit = &self.custody().audit;
        audit
            .append(record, Durability::Now)
            .await
            .map_err(failure::of_audit)
    }
}

/// Where the new key goes: beside the old one unless another device is named, and
/// in no lower tier unless that is named.
pub(super) async fn place_after(
    old: &KeyRecord,
    placement: &Placement,
    scheme: SignatureScheme,
    (session, call): (&Session, &Call),
    subject: &mut Subject,
) -> Result<Place, Failure> {
    let device = placement.device.as_ref().unwrap_or(&old.device);
    let stays = *device == old.device;
    let wanted = Placement {
        device: Some(device.clone()),
        tier: placement.tier.or_else(|| stays.then_some(old.tier)),
    };
    let place = read_place(
        session,
        call,
        &wanted,
        Algorithm::Signature(scheme),
        subject,
    )
    .await;
    let place = place.map_err(|failure| match failure.code {
        FailureCode::DeviceAbsent | FailureCode::DeviceFailed if stays => Failure {
            advice: "bring it back, or name another device for the new key (--device); \
                     `mlskeyctl devices` shows them"
                .to_owned(),
            ..failure
        },
        _ => failure,
    })?;
    if placement.tier.is_none() && place.tier < old.tier {
        return Err(Failure::new(
            FailureCode::Unsupported,
            format!(
                "device {} would keep the key in tier {}, and the old one is in tier {}",
                place.device, place.tier, old.tier
            ),
            format!(
                "name another device, or the lower tier (--tier {}) if that is meant",
                place.tier
            ),
        )
        .at_device(&place.device));
    }
    Ok(place)
}

fn no_entry(name: &str) -> Failure {
    Failure::new(
        FailureCode::KeyMissing,
        format!("the registry's entry of the key of {name:?} is gone"),
        "have the administrator restore the registry from a copy; nothing was deleted by the daemon",
    )
}

fn in_a_certificate(name: &str) -> Failure {
    failure::bad_request(
        format!("the credential of {name:?} is a certificate, which is for its present key alone"),
        "ask for one for a new key: `mlskeyctl identities csr --new-key`, then import it",
    )
}

pub(super) fn would_lose_its_pin(name: &str) -> Failure {
    failure::bad_request(
        format!("the key of {name:?} has a PIN, and the new one would have none"),
        "give the new key one, too (--pin), or say that it is to have none (--no-pin)",
    )
}

fn outrun() -> Failure {
    Failure::new(
        FailureCode::Conflict,
        "the identity got another key meanwhile",
        "see `mlskeyctl identities`, and repeat the rotation if it is still wanted",
    )
}
