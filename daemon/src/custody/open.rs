//! Opening what was sealed to an init key or a leaf key.

use std::time::{SystemTime, UNIX_EPOCH};

use mlskeyd_policies::Action;
use mlskeyd_protocol::limits::{MAX_CONTENT, MAX_PUBLIC_KEY};
use mlskeyd_protocol::v1::{
    Aead, Algorithm, Bytes, Failure, FailureCode, Kem, KeyId, Open, SecretBytes,
};
use sha2::{Digest, Sha256};

use super::sign::check_group;
use super::subject::Subject;
use super::{Call, Request, Session, failure};
use crate::audit::Durability;
use crate::devices::{DeviceError, PeerPublic};
use crate::hpke;
use crate::mls::Openable;
use crate::store::{Binding, KeyRecord, MAX_GROUPS, Rebind};

/// What was read from an [`Open`] request.
pub struct OpenRead {
    peer: PeerPublic,
    /// The first use of a leaf of a KeyPackage binds it to its group.
    rebind: Option<Rebind>,
}

impl Request for Open {
    type Reply = SecretBytes;
    type Read = OpenRead;
    const ACTION: Action = Action::OpenUnknown;
    const LEAVES_TRACES: bool = false;

    fn key(&self) -> Option<KeyId> {
        Some(self.key)
    }

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<OpenRead, Failure> {
        let longest = [&self.info, &self.aad, &self.ciphertext].map(|part| part.len());
        if self.enc.len() > MAX_PUBLIC_KEY || longest.iter().any(|len| *len > MAX_CONTENT) {
            return Err(failure::too_much("a part of the request", MAX_CONTENT));
        }
        let openable = Openable::parse(&self.info);
        subject.action = openable.action();
        subject.content = Some(Sha256::digest(&*self.ciphertext).into());
        subject.durability = Some(Durability::Soon);
        if let Openable::PathSecret { group_context } = &openable {
            subject.group = Some(group_context.group_id.into());
            subject.epoch = Some(group_context.epoch);
            subject.context.group = Some(hex::encode(group_context.group_id));
            subject.context.epoch = group_context.epoch;
            subject.context.cipher_suite = Some(group_context.cipher_suite);
        }
        let key = session.key(self.key, subject).await?;
        check_group(subject)?;
        if key.algorithm != Algorithm::Hpke(self.kem) {
            return Err(failure::bad_request(
                format!("the key is for {}, not for this KEM", key.algorithm),
                "use the handle that came with the public key",
            )
            .about_key(key.id));
        }
        let peer = PeerPublic::parse(self.kem, &self.enc)
            .map_err(|error| failure::bad_request(error.to_string(), error.advice()))?;
        Ok(OpenRead { peer, rebind: None })
    }

    fn check(&self, read: &mut OpenRead, subject: &mut Subject) -> Result<(), Failure> {
        let Some(key) = subject.key.clone() else {
            return Err(failure::internal());
        };
        if !self.aad.is_empty() {
            return Err(failure::bad_request(
                "MLS opens with empty associated data",
                "send none",
            ));
        }
        match opens(&key, &Openable::parse(&self.info), now()) {
            Ok(rebind) => read.rebind = rebind,
            Err(failure) => return Err(subject.refuse("rule/open-by-binding", failure)),
        }
        Ok(())
    }

    async fn perform(
        self,
        read: OpenRead,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<SecretBytes, Failure> {
        let Some(key) = subject.key.clone() else {
            return Err(failure::internal());
        };
        let custody = session.custody();
        let stored = key.stored();
        let shared = custody
            .devices
            .run(&key.device, &key.owner, call, move |device| {
                let agreement = device
                    .agreement()
                    .ok_or(DeviceError::CannotDo("agree on keys"))?;
                agreement.agree(&stored, &read.peer)
            })
            .await
            .map_err(|failure| failure.about_key(key.id))?;
        let sealed = hpke::Sealed {
            enc: &self.enc,
            receiver: &key.public_key,
            info: &self.info,
            aad: &self.aad,
            ciphertext: &self.ciphertext,
        };
        let suite = hpke::Suite {
            kem: self.kem,
            aead: self.aead,
        };
        let mut plaintext = hpke::open(suite, &shared, &sealed).map_err(|_| {
            Failure::new(
                FailureCode::DecryptionFailed,
                "the ciphertext does not open under this key",
                "it was sealed to another key or damaged on its way: ask its sender again",
            )
            .about_key(key.id)
        })?;
        Openable::parse(&self.info)
            .check_plaintext(cipher_suite(self.kem, self.aead), &plaintext)
            .map_err(|_| {
                let failure = Failure::new(
                    FailureCode::Withheld,
                    "what was opened is not what MLS seals to such a key",
                    "refuse the message: its sender is faulty or hostile",
                );
                subject.refuse("rule/withheld", failure)
            })?;
        if let Some(rebind) = read.rebind {
            // Before the plaintext leaves: what opened it belongs to that group.
            custody
                .registry
                .bind(&key.owner, vec![rebind])
                .await
                .map_err(failure::of_store)?;
            subject.durability = Some(Durability::Now);
        }
        Ok(SecretBytes::new(std::mem::take(&mut *plaintext)))
    }
}

/// May this key open this? Answers what its first use teaches.
fn opens(key: &KeyRecord, openable: &Openable<'_>, now: u64) -> Result<Option<Rebind>, Failure> {
    match (openable, &key.binding) {
        (
            Openable::Welcome { .. },
            Binding::Init {
                consumed_by: Some(_),
                last_resort: false,
                ..
            },
        ) => Err(denied(
            "the KeyPackage of this init key served to join a group already",
            "publish a new KeyPackage and have the member invited again",
        )),
        (
            Openable::Welcome { .. },
            Binding::Init {
                not_before,
                not_after,
                ..
            },
        ) => {
            if (*not_before..=*not_after).contains(&now) {
                Ok(None)
            } else {
                Err(denied(
                    "the KeyPackage of this init key is out of its lifetime",
                    "check the clock; publish a new KeyPackage and have the member invited again",
                ))
            }
        }
        (Openable::PathSecret { group_context }, binding @ Binding::Leaf { .. }) => {
            if binding.admits(group_context.group_id) {
                Ok(None)
            } else {
                Err(other_group())
            }
        }
        (
            Openable::PathSecret { group_context },
            binding @ Binding::LeafOfKeyPackage {
                init,
                last_resort,
                groups,
            },
        ) => {
            let group = Bytes::from(group_context.group_id);
            if groups.contains(&group) {
                return Ok(None);
            }
            if !binding.admits(group_context.group_id) {
                return Err(other_group());
            }
            if groups.len() >= MAX_GROUPS {
                // A last-resort leaf may serve in any; only the memory is bounded.
                return Ok(None);
            }
            let groups = groups.iter().cloned().chain([group]).collect();
            Ok(Some(Rebind {
                key: key.id,
                from: binding.clone(),
                to: Binding::LeafOfKeyPackage {
                    init: *init,
                    last_resort: *last_resort,
                    groups,
                },
            }))
        }
        (Openable::Welcome { .. }, _) => Err(denied(
            "only the init key of a KeyPackage opens a Welcome",
            "use the handle of the KeyPackage's init key",
        )),
        (Openable::PathSecret { .. }, _) => Err(denied(
            "only the encryption key of a leaf opens a path secret",
            "use the handle of the member's leaf in this group",
        )),
        (Openable::Unknown(_), _) => Err(denied(
            "this is nothing that MLS seals to an HPKE key",
            "open Welcomes and path secrets only",
        )),
    }
}

fn other_group() -> Failure {
    denied(
        "the leaf key belongs to another group",
        "use the handle of the member's leaf in this group",
    )
}

fn denied(message: &str, advice: &str) -> Failure {
    Failure::new(FailureCode::Denied, message, advice)
}

/// The cipher suite that a key of this KEM is used in (RFC 9420, 17.1): the
/// KEM and the AEAD tell those apart that are in custody.
const fn cipher_suite(kem: Kem, aead: Aead) -> u16 {
    match (kem, aead) {
        (Kem::DhKemX25519, Aead::Aes128Gcm) => 0x0001,
        (Kem::DhKemP256, Aead::Aes128Gcm) => 0x0002,
        (Kem::DhKemX25519, Aead::ChaCha20Poly1305) => 0x0003,
        (Kem::DhKemP384, Aead::Aes256Gcm) => 0x0007,
        // No suite of MLS: nothing that it opens is let out.
        (Kem::DhKemP256, Aead::Aes256Gcm | Aead::ChaCha20Poly1305)
        | (Kem::DhKemP384, Aead::Aes128Gcm | Aead::ChaCha20Poly1305)
        | (Kem::DhKemX25519, Aead::Aes256Gcm) => 0,
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
