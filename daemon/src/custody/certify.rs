//! Credentials that change: asking for a certificate, and pinning what was issued.
//!
//! Old and new go on record before the registry does it: rather on record and not done, than
//! done and not on record.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mlskeyd_policies::{Action, CallerFacts};
use mlskeyd_protocol::limits::MAX_GRACE;
use mlskeyd_protocol::v1::{
    Algorithm, Bytes, Credential, Failure, FailureCode, IdentityInfo, KeyId, NewSignatureKey,
    Owner, SecretBytes, SignCsr, SignedCsr, UpdateCredential,
};
use sha2::{Digest, Sha256};

use super::facts::CredentialSays;
use super::generate::Place;
use super::identities::check_credential;
use super::key_pins::check_pin;
use super::lifecycle::{NO_KEY_PINS, Order};
use super::request::encoded;
use super::rotate::{place_after, would_lose_its_pin};
use super::subject::Subject;
use super::{Call, Custody, NAMES_WAIT, Request, Session, failure};
use crate::audit::{AuditOutcome, Durability, Record};
use crate::caller::Caller;
use crate::certificates::{self, CertificateError, Certified, CsrError, Issued, RENEW_WITHIN};
use crate::devices::{Device, DeviceError, StoredKey};
use crate::store::{IdentityRecord, KeyRecord, Recredential, StoreError};

/// What was read from a [`SignCsr`] request.
pub struct Wanted {
    identity: IdentityRecord,
    key: Arc<KeyRecord>,
    certified: Certified,
    /// Where the key goes that the request is for, if it is a new one.
    place: Option<Place>,
}

impl Request for SignCsr {
    type Reply = SignedCsr;
    type Read = Wanted;
    const ACTION: Action = Action::SignCsr;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<Wanted, Failure> {
        let custody = session.custody();
        let identity = custody
            .identity_of(&self.owner, &self.name, subject)
            .await?;
        let (identity, key) = custody.with_key(identity).await?;
        subject.about_key(Arc::clone(&key));
        let certified = Certified::new(&self.certified).map_err(|error| of_csr(&error))?;
        let user = user_of(&self.owner).await;
        let says = CredentialSays::basic(Some(self.certified.clone()));
        custody.settings.describe(says, &user, &mut subject.context);
        subject.context.new_key = self.new_key.is_some();
        subject.context.algorithm = key.algorithm.to_string();
        subject.context.tier = key.tier.to_string();
        let place = match &self.new_key {
            None => None,
            Some(NewSignatureKey {
                placement,
                pin,
                drop_pin,
            }) => {
                if let Some(pin) = pin {
                    check_pin(pin)?;
                } else if key.pin && !drop_pin {
                    return Err(would_lose_its_pin(&self.name));
                }
                let scheme = identity.scheme;
                Some(place_after(&key, placement, scheme, (session, call), subject).await?)
            }
        };
        Ok(Wanted {
            identity,
            key,
            certified,
            place,
        })
    }

    fn consents_to(&self, _: &Wanted) -> Result<Option<Vec<u8>>, Failure> {
        encoded(self)
    }

    async fn perform(
        self,
        wanted: Wanted,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<SignedCsr, Failure> {
        let pin = self.new_key.and_then(|new| new.pin);
        let key = match &wanted.place {
            None => Arc::clone(&wanted.key),
            Some(place) => {
                let key = session.next_key(&wanted.identity, place, pin.as_ref(), call);
                let key = key.await?;
                subject.made = Some(key.id);
                key
            }
        };
        let scheme = wanted.identity.scheme;
        let request = certificates::Request::new(scheme, &key.public_key, &wanted.certified);
        let request = request.map_err(|error| of_csr(&error))?;
        subject.content = Some(Sha256::digest(request.to_sign()).into());
        let (stored, to_sign) = (key.stored(), request.to_sign().to_vec());
        let sign = move |device: &mut dyn Device| {
            let signer = device.signer().ok_or(DeviceError::CannotDo("sign"))?;
            signer.sign(&stored, &to_sign)
        };
        let (devices, owner) = (&session.custody().devices, &session.caller().owner);
        let signature = match pin {
            None => devices.run_with_key(&key, owner, call, sign).await?,
            Some(pin) => {
                let sign = unlocked_for(key.stored(), pin, sign);
                devices.run(&key.device, owner, call, sign).await?
            }
        };
        let request = request.signed(&signature).map_err(|error| of_csr(&error))?;
        Ok(SignedCsr {
            key: key.id,
            request: Bytes(request),
        })
    }
}

/// Unlocks a key that was just made with this PIN, and is locked again afterwards.
fn unlocked_for<T>(
    key: StoredKey,
    pin: SecretBytes,
    job: impl FnOnce(&mut dyn Device) -> Result<T, DeviceError>,
) -> impl FnOnce(&mut dyn Device) -> Result<T, DeviceError> {
    move |device| {
        let pins = device.key_pins().ok_or(NO_KEY_PINS)?;
        pins.unlock_key(&key, &pin, false)?;
        let done = job(device);
        device.key_pins().ok_or(NO_KEY_PINS)?.lock_key(&key);
        done
    }
}

/// What was read from an [`UpdateCredential`] request.
pub struct Updating {
    identity: IdentityRecord,
    /// The key that the identity has with the new credential.
    key: KeyId,
    issued: Option<Issued>,
}

impl Request for UpdateCredential {
    type Reply = IdentityInfo;
    type Read = Updating;
    const ACTION: Action = Action::UpdateCredential;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<Updating, Failure> {
        check_credential(&self.credential)?;
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
        let (identity, key) = custody.with_key(identity).await?;
        subject.about_key(Arc::clone(&key));
        let user = user_of(&self.owner).await;
        let says = CredentialSays::of(&self.credential);
        custody.settings.describe(says, &user, &mut subject.context);
        let Credential::X509(chain) = &self.credential else {
            return Ok(Updating {
                key: identity.key,
                identity,
                issued: None,
            });
        };
        let issued = custody.certified(chain)?;
        let key = custody.key_certified(&identity, &key, &issued).await?;
        subject.context.new_key = key != identity.key;
        Ok(Updating {
            identity,
            key,
            issued: Some(issued),
        })
    }

    fn consents_to(&self, _: &Updating) -> Result<Option<Vec<u8>>, Failure> {
        encoded(self)
    }

    async fn perform(
        self,
        read: Updating,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<IdentityInfo, Failure> {
        let custody = session.custody();
        let grace = self.grace.unwrap_or(custody.settings.rotation_grace);
        let new = match &read.issued {
            None => shown(&self.credential),
            Some(issued) => format!(
                "{} (serial {}, for {})",
                shown(&self.credential),
                issued.serial,
                issued.named()
            ),
        };
        let mut note = format!("{} -> {new}", shown(&read.identity.credential));
        if read.key != read.identity.key {
            note.push_str(&format!(
                "; key {} -> {}, which ends after {grace} seconds",
                read.identity.key, read.key
            ));
        }
        session.record_update(subject, note).await?;
        let update = Recredential {
            owner: self.owner,
            name: self.name,
            from: read.identity.credential,
            to: self.credential,
            key: read.key,
            grace: Duration::from_secs(grace),
        };
        match custody.registry.recredential(update).await {
            Ok((identity, key)) => {
                custody.due.notify_one();
                custody.tell_of_changed_identity(&key, &identity);
                Ok(custody.identity_info(&identity, &key).await)
            }
            Err(StoreError::Conflict(_)) => Err(Failure::new(
                FailureCode::Conflict,
                "the identity got another credential or key meanwhile",
                "see `mlskeyctl identities`, and repeat this if it is still wanted",
            )),
            Err(error) => Err(failure::of_store(error)),
        }
    }
}

impl Session {
    /// Makes the key that is an identity's own once its certificate is.
    async fn next_key(
        &self,
        identity: &IdentityRecord,
        place: &Place,
        pin: Option<&SecretBytes>,
        call: &Call,
    ) -> Result<Arc<KeyRecord>, Failure> {
        let order = Order {
            owner: &identity.owner,
            algorithm: Algorithm::Signature(identity.scheme),
            place,
            identity: Some(&identity.name),
            pin,
        };
        let made = self.make_key(&order, call).await?;
        let (custody, id) = (self.custody(), made.id);
        let prepared = custody
            .registry
            .prepare_key(identity.owner.clone(), identity.name.clone(), made)
            .await;
        match prepared {
            Ok(key) => {
                custody.due.notify_one();
                Ok(key)
            }
            Err(error) => {
                custody.undo_creation(id).await;
                Err(failure::of_store(error))
            }
        }
    }

    async fn record_update(&self, subject: &Subject, note: String) -> Result<(), Failure> {
        let outcome = AuditOutcome::Noted { note: note.into() };
        let mut record = Record::new("CredentialUpdated", outcome);
        record.caller = Some(self.caller().for_audit());
        record.owner = self.another(subject.owner.as_ref());
        record.key = subject.key_id();
        record.identity.clone_from(&subject.identity);
        let audit = &self.custody().audit;
        let appended = audit.append(record, Durability::Now).await;
        appended.map_err(failure::of_audit)
    }
}

impl Custody {
    /// What a chain says that leads to a pinned issuer.
    pub(super) fn certified(&self, chain: &[Bytes]) -> Result<Issued, Failure> {
        let issuers = self.settings.issuers.as_ref().ok_or_else(|| {
            Failure::new(
                FailureCode::Unsupported,
                "the configuration pins no issuers of certificates",
                "name a file with their certificates as `certificate_issuers` under [policy]",
            )
        })?;
        let issued = certificates::check(chain, issuers, SystemTime::now());
        issued.map_err(|error| of_certificate(&error))
    }

    /// Which of the identity's keys a certificate is for: the one that it has, or the new
    /// one that a certificate was asked for.
    async fn key_certified(
        &self,
        identity: &IdentityRecord,
        key: &KeyRecord,
        issued: &Issued,
    ) -> Result<KeyId, Failure> {
        if *key.public_key == *issued.public_key {
            return Ok(key.id);
        }
        if let Some(next) = identity.next {
            let next = self.registry.key(next).await.map_err(failure::of_store)?;
            if let Some(next) = next.filter(|next| *next.public_key == *issued.public_key)
                && self.signs(&next)
            {
                return Ok(next.id);
            }
        }
        Err(another_key())
    }

    /// Certificates that end within a month are told in the log, once a day at most, when
    /// somebody connects: at rest there is no timer.
    pub(super) fn warn_once_a_day(self: &Arc<Self>) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_some_and(|last| last.elapsed() < A_DAY) {
            return;
        }
        *warned = Some(Instant::now());
        tokio::spawn(Arc::clone(self).warn_of_certificates());
    }

    async fn warn_of_certificates(self: Arc<Self>) {
        let Ok(identities) = self.registry.identities(None).await else {
            return;
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let soon = now
            .map_or(0, |now| now.as_secs())
            .saturating_add(RENEW_WITHIN);
        for identity in identities {
            let Credential::X509(chain) = &identity.credential else {
                continue;
            };
            let own = chain.first().and_then(|own| certificates::read(own).ok());
            if let Some(own) = own.filter(|own| own.ends <= soon) {
                let (owner, name) = (&identity.owner, &identity.name);
                tracing::warn!(%owner, identity = name, serial = own.serial, "a certificate ends within 30 days or has ended: have it renewed with `mlskeyctl identities csr`");
            }
        }
    }
}

const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The user of an owner, as the system knows it.
pub(super) async fn user_of(owner: &Owner) -> Arc<CallerFacts> {
    let uid = owner.uid;
    let look = tokio::task::spawn_blocking(move || Caller::new(uid, None).looked_up().facts);
    match tokio::time::timeout(NAMES_WAIT, look).await {
        Ok(Ok(facts)) => facts,
        // Without a name there are no credentials that are made of it.
        _ => Caller::new(uid, None).facts,
    }
}

/// Longest name that goes on record as it is, in bytes.
const MAX_SHOWN: usize = 255;

/// A credential, on record: a name that is no text, or too long, and a certificate by its
/// SHA-256.
fn shown(credential: &Credential) -> String {
    match credential {
        Credential::Basic(name) => match std::str::from_utf8(name) {
            Ok(text) if text.len() <= MAX_SHOWN => format!("basic {text:?}"),
            _ => format!("basic, SHA-256 {}", hex::encode(Sha256::digest(&**name))),
        },
        Credential::X509(chain) => {
            let own = chain.first().map(|own| Sha256::digest(&**own));
            format!("x509 {}", own.map(hex::encode).unwrap_or_default())
        }
    }
}

pub(super) fn another_key() -> Failure {
    failure::bad_request(
        "the certificate is for another key",
        "import the one that was issued for the last request (`mlskeyctl identities csr`)",
    )
}

fn of_csr(error: &CsrError) -> Failure {
    failure::bad_request(error.to_string(), "name an address, a host or a URI")
}

fn of_certificate(error: &CertificateError) -> Failure {
    failure::bad_request(
        error.to_string(),
        "import the certificate with those between it and the pinned issuer, its own first",
    )
}
