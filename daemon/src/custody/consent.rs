//! A person's consent to requests that the policy marks.
//!
//! One key signs all that an app sends, so it cannot want a touch for each signature.
//! What the policy marks is backed by a fresh signature of another key, which its device
//! makes only while a person touches it. That is the daemon's rule, not the device's: who
//! has the daemon's place needs no consent.
//!
//! ```text
//! "mlskeyd consent 1" | random (32) | SHA-256 of (action, uid, app, request), each with its length
//! ```
//!
//! No structure of MLS begins with this.

use mlskeyd_protocol::v1::{Failure, FailureCode, Interaction, Progress, PromptKind};
use rand_core::{OsRng, RngCore};
use sha2::{Digest, Sha256};

use super::subject::Subject;
use super::{Call, Session, failure};
use crate::audit::{AuditOutcome, Durability, Record};
use crate::devices::DeviceError;

/// What a consent is recorded as.
const RULE: &str = "builtin/consent";

impl Session {
    /// Has a person consent to what the caller asks for, if the policy wants that;
    /// durably on record, before anything else is done.
    pub(super) async fn consent(
        &self,
        content: Option<Vec<u8>>,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        let (Some(content), Some(wanted)) = (content, subject.consent.clone()) else {
            return Ok(());
        };
        let custody = self.custody();
        let device = custody.settings.consent_device.clone();
        let Some(device) = device else {
            let failure = Failure::new(
                FailureCode::Denied,
                format!(
                    "{}; a person has to consent to it, and there is no key to consent with",
                    wanted.reason
                ),
                "have the administrator name a `consent_device` under [policy]",
            );
            return Err(subject.refuse(wanted.policy, failure));
        };
        if call.options.interaction == Interaction::Never {
            let failure = Failure::new(
                FailureCode::InteractionRequired,
                "this takes a person's consent, and the request must not wait for a person",
                "let the request wait for that",
            );
            return Err(failure.at_device(device));
        }
        let statement = self.statement(subject, &content)?;
        let digest = Sha256::digest(&statement).into();
        let info = custody.devices.get(&device)?.info();
        let asker = &call.asker;
        let _shown = custody
            .devices
            .board
            .wait(asker.owner.uid, PromptKind::Touch, &info, |_| {
                let identity = subject.identity.as_deref().unwrap_or_default();
                format!(
                    "The app {} asks mlskeyd for {} {identity:?}: touch {device} if that is right",
                    asker.owner.app, asker.action
                )
            });
        call.progress.send(Progress::WaitingForTouch {
            device: device.clone(),
        });
        let consented = custody.devices.run(&device, &self.caller().owner, call, {
            move |device| {
                let consenter = device
                    .consenter()
                    .ok_or(DeviceError::CannotDo("have a person consent"))?;
                consenter.consent(&statement)
            }
        });
        if let Err(failure) = consented.await {
            return Err(match failure.code {
                FailureCode::Denied => subject.refuse(wanted.policy, failure),
                _ => failure,
            });
        }
        let outcome = AuditOutcome::Served {
            policy: RULE.into(),
        };
        let mut record = Record::new("Consent", outcome);
        record.caller = Some(self.caller().for_audit());
        record.identity.clone_from(&subject.identity);
        record.device = Some(device);
        record.content = Some(digest);
        let recorded = custody.audit.append(record, Durability::Now).await;
        recorded.map(|_| ()).map_err(failure::of_audit)
    }

    fn statement(&self, subject: &Subject, content: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut random = [0; 32];
        OsRng
            .try_fill_bytes(&mut random)
            .map_err(|_| failure::internal())?;
        let owner = &self.caller().owner;
        let mut hash = Sha256::new();
        for part in [
            subject.action.name().as_bytes(),
            &owner.uid.to_be_bytes(),
            owner.app.as_bytes(),
            content,
        ] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Ok([b"mlskeyd consent 1".as_slice(), &random, &hash.finalize()].concat())
    }
}
