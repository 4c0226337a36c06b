//! Evidence that keys are in hardware, and who asked for it.

use zeroize::Zeroizing;

use super::*;
use crate::attest::tpm::{EkKind, Keys, Tpm2Challenge, Tpm2Evidence};
use crate::attest::{Challenge, Claims, DeviceChallenge, Envelope, Evidence, Response};
use mlskeyd_protocol::limits::{MAX_CHALLENGE, MAX_NONCE, MIN_NONCE};
use mlskeyd_protocol::v1::{AnswerChallenge, AttestIdentity};

/// What the one challenge that the token opens holds.
const SECRET: [u8; 32] = [0x5e; 32];

impl devices::Attest for Token {
    fn attest(&mut self, key: &StoredKey, claims: &Claims) -> Result<Evidence, DeviceError> {
        let keys = Keys {
            ek_certificate: key.blob.as_bytes().to_vec(),
            ek_chain: Vec::new(),
            ek_public: Vec::new(),
            ak_public: Vec::new(),
            key_public: key.public.clone(),
        };
        Ok(Evidence::Tpm2(Tpm2Evidence {
            certification: keys.statement(claims).to_vec(),
            keys,
            signature: Vec::new(),
        }))
    }

    fn activate(
        &mut self,
        challenge: &DeviceChallenge,
    ) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
        let DeviceChallenge::Tpm2(challenge) = challenge;
        if challenge.credential == b"for the token" {
            Ok(Zeroizing::new(SECRET))
        } else {
            Err(DeviceError::ForeignChallenge)
        }
    }
}

fn question(name: &str, nonce: usize) -> AttestIdentity {
    AttestIdentity {
        owner: alice(),
        name: name.to_owned(),
        nonce: Bytes(vec![7; nonce]),
    }
}

fn challenge(device: &str, credential: &[u8]) -> AnswerChallenge {
    let challenge = Challenge {
        evidence: [9; 32],
        challenge: DeviceChallenge::Tpm2(Tpm2Challenge {
            ek: EkKind::Rsa2048,
            credential: credential.to_vec(),
            encrypted_seed: Vec::new(),
        }),
    };
    AnswerChallenge {
        device: device.to_owned(),
        challenge: Bytes(challenge.write().into_bytes()),
    }
}

#[tokio::test]
async fn evidence_claims_what_the_registry_says_and_is_on_record() {
    let bench = Bench::new();
    let identity = bench.serve(adoption("alice", "first")).await.unwrap();
    let document = bench.serve(question("alice", 32)).await.unwrap();
    let envelope = Envelope::read(&document).unwrap();
    let claims = Claims {
        uid: 1000,
        app: "chat".to_owned(),
        identity: "alice".to_owned(),
        device: "token".to_owned(),
        key: *identity.key.as_bytes(),
        algorithm: ED25519,
        tier: Tier::Hardware,
        public_key: b"the public half of first".to_vec(),
        nonce: vec![7; 32],
    };
    assert_eq!(envelope.claims, claims);
    let Evidence::Tpm2(evidence) = &envelope.evidence else {
        panic!("it is of a TPM");
    };
    assert_eq!(evidence.certification, evidence.keys.statement(&claims));
    let record = bench.record("AttestIdentity");
    assert_eq!(record.key, Some(identity.key));
    assert_eq!(record.identity.as_deref(), Some("alice"));
    assert_eq!(record.device.as_deref(), Some("token"));
    assert_eq!(record.content, Some(envelope.digest()));
    assert!(!record.is_refusal());
}

#[tokio::test]
async fn what_cannot_be_attested_is_told_and_on_record() {
    let bench = Bench::new();
    bench.serve(adoption("alice", "first")).await.unwrap();
    for nonce in [0, MIN_NONCE - 1, MAX_NONCE + 1] {
        let refused = bench.serve(question("alice", nonce)).await;
        assert_eq!(code(refused), FailureCode::BadRequest);
    }
    let nobody = bench.serve(question("nobody", 32)).await;
    assert_eq!(code(nobody), FailureCode::NotFound);
    // Now in software.
    bench.serve(to_software()).await.unwrap();
    let refused = bench.serve(question("alice", 32)).await.unwrap_err();
    assert_eq!(refused.code, FailureCode::Unsupported);
    assert!(
        refused.message.contains("kept in tier software"),
        "{refused}"
    );
    assert!(bench.record("AttestIdentity").is_refusal());
}

#[tokio::test]
async fn a_challenge_is_answered_by_its_device_without_its_secret() {
    let bench = Bench::new();
    let asked = challenge("token", b"for the token");
    let document = bench.serve(asked.clone()).await.unwrap();
    let text = String::from_utf8(document.0.clone()).unwrap();
    assert!(!text.contains(&hex::encode(SECRET)));
    let challenge_made = Challenge::read(&asked.challenge).unwrap();
    let response = Response::read(&document).unwrap();
    assert_eq!(response, challenge_made.answer(&SECRET));
    let record = bench.record("AnswerChallenge");
    assert_eq!(record.device.as_deref(), Some("token"));
    assert_eq!(record.content, Some([9; 32]));

    let foreign = bench.serve(challenge("token", b"for another")).await;
    assert_eq!(code(foreign), FailureCode::BadRequest);
    assert!(bench.record("AnswerChallenge").is_refusal());
    let software = bench.serve(challenge("software", b"for the token")).await;
    assert_eq!(code(software), FailureCode::Unsupported);
    let nowhere = bench.serve(challenge("nowhere", b"for the token")).await;
    assert_eq!(code(nowhere), FailureCode::DeviceAbsent);
    let mut long = asked.challenge.0.clone();
    long.resize(MAX_CHALLENGE + 1, b' ');
    for wrong in [b"no challenge".to_vec(), long] {
        let refused = bench.serve(AnswerChallenge {
            challenge: Bytes(wrong),
            ..asked.clone()
        });
        assert_eq!(code(refused.await), FailureCode::BadRequest);
    }
}

/// One whose evidence needs no challenge does without.
#[test]
fn a_challenge_is_refused_where_none_is_needed() {
    struct Card;
    impl devices::Attest for Card {
        fn attest(&mut self, _: &StoredKey, _: &Claims) -> Result<Evidence, DeviceError> {
            Err(DeviceError::NoChallenges)
        }
    }
    let asked = Challenge::read(&challenge("card", b"any").challenge).unwrap();
    let refused = devices::Attest::activate(&mut Card, &asked.challenge).unwrap_err();
    assert!(matches!(refused, DeviceError::NoChallenges), "{refused}");
    assert!(refused.advice().contains("attest verify"));
}

#[tokio::test]
async fn attestation_is_an_administrators() {
    let bench = Bench::new();
    bench.serve(adoption("alice", "first")).await.unwrap();
    let uid = alice().uid;
    let asked = bench.serve_for(uid, question("alice", 32)).await;
    assert_eq!(code(asked), FailureCode::Denied);
    let asked = bench.serve_for(uid, challenge("token", b"for the token"));
    assert_eq!(code(asked.await), FailureCode::Denied);
}
