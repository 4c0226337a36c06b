//! Showing others that keys are in hardware. Who asked goes on record, with the
//! digest of the evidence.

use std::sync::Arc;

use mlskeyd_policies::Action;
use mlskeyd_protocol::limits::{MAX_CHALLENGE, MAX_NONCE, MIN_NONCE};
use mlskeyd_protocol::v1::{AnswerChallenge, AttestIdentity, Bytes, Failure, FailureCode, Tier};

use super::generate::check_name;
use super::subject::Subject;
use super::{Call, Request, Session, failure};
use crate::attest::{Challenge, Claims, Envelope, MAX_DOCUMENT, is_nonce};
use crate::devices::DeviceError;
use crate::store::KeyRecord;

/// This kind of device has nothing of it.
const CANNOT: DeviceError = DeviceError::CannotDo("show others that keys are in it");

impl Request for AttestIdentity {
    type Reply = Bytes;
    type Read = Arc<KeyRecord>;
    const ACTION: Action = Action::AttestIdentity;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<Arc<KeyRecord>, Failure> {
        if !is_nonce(&self.nonce) {
            return Err(failure::bad_request(
                format!("a nonce has {MIN_NONCE} to {MAX_NONCE} bytes"),
                "have the verifier choose one",
            ));
        }
        let custody = session.custody();
        let identity = custody
            .identity_of(&self.owner, &self.name, subject)
            .await?;
        let key = custody.key(identity.key).await?;
        subject.about_key(Arc::clone(&key));
        if key.tier == Tier::Hardware {
            Ok(key)
        } else {
            Err(not_in_hardware(&key))
        }
    }

    async fn perform(
        self,
        key: Arc<KeyRecord>,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<Bytes, Failure> {
        let stored = key.stored();
        let claims = Claims {
            uid: self.owner.uid,
            app: self.owner.app,
            identity: self.name,
            device: key.device.clone(),
            key: *key.id.as_bytes(),
            algorithm: key.algorithm,
            tier: key.tier,
            public_key: stored.public.clone(),
            nonce: self.nonce.0,
        };
        let devices = &session.custody().devices;
        let attest = move |device: &mut dyn crate::devices::Device| {
            let attester = device.attester().ok_or(CANNOT)?;
            let evidence = attester.attest(&stored, &claims)?;
            Ok(Envelope { claims, evidence })
        };
        let owner = &session.caller().owner;
        let envelope = devices.run_with_key(&key, owner, call, attest).await?;
        let registry = &session.custody().registry;
        registry.attested(key.id).await.map_err(failure::of_store)?;
        subject.content = Some(envelope.digest());
        let document = envelope.write().into_bytes();
        if document.len() > MAX_DOCUMENT {
            return Err(Failure::new(
                FailureCode::Unsupported,
                format!(
                    "the evidence is longer than {MAX_DOCUMENT} bytes, which no verifier reads"
                ),
                "look at the certificates in the TPM's NV indices 0x01c00100 and up: they are not as makers leave them",
            ));
        }
        Ok(Bytes(document))
    }
}

impl Request for AnswerChallenge {
    type Reply = Bytes;
    type Read = Challenge;
    const ACTION: Action = Action::AnswerChallenge;
    const LEAVES_TRACES: bool = false;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<Challenge, Failure> {
        check_name("a device's name", &self.device)?;
        session.custody().devices.get(&self.device)?;
        subject.device = Some(self.device.clone());
        if self.challenge.len() > MAX_CHALLENGE {
            return Err(failure::too_much("the challenge", MAX_CHALLENGE));
        }
        let challenge = Challenge::read(&self.challenge).map_err(|error| {
            failure::bad_request(
                format!("the challenge cannot be read: {error}"),
                "have the verifier make one with `mlskeyctl attest challenge`",
            )
        })?;
        subject.content = Some(challenge.evidence);
        Ok(challenge)
    }

    async fn perform(
        self,
        challenge: Challenge,
        session: &Session,
        call: &Call,
        _: &mut Subject,
    ) -> Result<Bytes, Failure> {
        let answer = move |device: &mut dyn crate::devices::Device| {
            let attester = device.attester().ok_or(CANNOT)?;
            let secret = attester.activate(&challenge.challenge)?;
            Ok(challenge.answer(&secret))
        };
        let owner = &session.caller().owner;
        let devices = &session.custody().devices;
        let response = devices.run(&self.device, owner, call, answer).await?;
        Ok(Bytes(response.write().into_bytes()))
    }
}

fn not_in_hardware(key: &KeyRecord) -> Failure {
    Failure::new(
        FailureCode::Unsupported,
        format!(
            "the key is kept in tier {}, and nothing can show otherwise",
            key.tier
        ),
        "give the identity a key in tier hardware: `mlskeyctl identities rotate`",
    )
}
