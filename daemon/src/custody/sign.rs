//! Signing what OpenMLS gives a signer.

use mlskeyd_policies::{Action, ContextFacts};
use mlskeyd_protocol::limits::{MAX_CONTENT, MAX_GROUP_ID};
use mlskeyd_protocol::v1::{Algorithm, Bytes, Failure, FailureCode, KeyId, Sign, SignatureScheme};
use sha2::{Digest, Sha256};

use super::bindings::{Known, Leaving};
use super::facts::CredentialSays;
use super::guard::Mark;
use super::references::Proposed;
use super::subject::Subject;
use super::{Call, Request, Session, facts, failure};
use crate::audit::Durability;
use crate::devices::DeviceError;
use crate::mls::binding::{self, BindingError};
use crate::mls::{Body, FramedContent, LeafNodePayload, Sender, Signable};
use crate::store::{KeyRecord, Rebind};

/// What was read from a [`Sign`] request.
pub struct SignRead {
    scheme: SignatureScheme,
    known: Known,
    /// What the signature would teach about HPKE keys.
    rebinds: Vec<Rebind>,
    /// A proposal that a commit may name later.
    proposed: Option<Proposed>,
}

impl Request for Sign {
    type Reply = Bytes;
    type Read = SignRead;
    const ACTION: Action = Action::SignUnknown;
    const LEAVES_TRACES: bool = false;

    fn key(&self) -> Option<KeyId> {
        Some(self.key)
    }

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<SignRead, Failure> {
        let content = self.content.expose();
        if content.is_empty() || content.len() > MAX_CONTENT {
            return Err(failure::too_much("the content to be signed", MAX_CONTENT));
        }
        subject.content = Some(Sha256::digest(content).into());
        let signable = Signable::parse(content);
        describe(&signable, session, subject);

        let key = session.key(self.key, subject).await?;
        check_group(subject)?;
        let scheme = signature_scheme(&key)?;
        let known = Known::about(&signable, &key, session).await?;
        if let Some(leaf) = leaf_to_sign(&signable) {
            let is_own = leaf.credential.raw == known.credential;
            subject.context.credential_differs = !is_own;
            if let Some(own) = known.pinned.as_ref().filter(|_| is_own) {
                CredentialSays::of(own).put(&mut subject.context);
            }
        }
        if known.leaving.is_some() {
            // A permit to leave is worth no more than the policy of today.
            subject.inner_actions.push(Action::LeaveCustody);
        }
        Ok(SignRead {
            scheme,
            known,
            rebinds: Vec::new(),
            proposed: Proposed::of(&signable),
        })
    }

    fn check(&self, read: &mut SignRead, subject: &mut Subject) -> Result<(), Failure> {
        let Some(key) = subject.key.clone() else {
            return Err(failure::internal());
        };
        let signer = binding::Signer {
            scheme: read.scheme,
            public_key: &key.public_key,
            credential: &read.known.credential,
        };
        let signable = Signable::parse(self.content.expose());
        match binding::check(&signable, signer, &read.known) {
            Ok(changes) => read.rebinds = read.known.rebinds(changes),
            Err(error) => return Err(broken_rule(&error, subject)),
        }
        Ok(())
    }

    fn consents_to(&self, _: &SignRead) -> Result<Option<Vec<u8>>, Failure> {
        let content = Sha256::digest(self.content.expose());
        Ok(Some([self.key.as_bytes().as_slice(), &content].concat()))
    }

    /// Before the guard counts a signature, and anything is bound to one, that may never
    /// come.
    async fn ready(
        &self,
        session: &Session,
        call: &Call,
        subject: &Subject,
    ) -> Result<(), Failure> {
        let Some(key) = &subject.key else {
            return Err(failure::internal());
        };
        session.custody().devices.wait_for_key(key, call).await
    }

    async fn perform(
        self,
        read: SignRead,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<Bytes, Failure> {
        let Some(key) = subject.key.clone() else {
            return Err(failure::internal());
        };
        let custody = session.custody();
        if !read.rebinds.is_empty() {
            // Before the device signs: what is signed binds its keys for good,
            // and of two requests at once only one may bind a key.
            custody
                .registry
                .bind(&key.owner, read.rebinds)
                .await
                .map_err(failure::of_store)?;
        }
        if let Some(Leaving {
            of,
            key: software_key,
        }) = read.known.leaving
        {
            // A permit to leave serves one commit.
            let used = custody.registry.use_leave_permit(of, software_key).await;
            if !used.map_err(failure::of_store)? {
                let failure = Failure::new(
                    FailureCode::Denied,
                    "the permit to leave custody was used already",
                    "ask for another one",
                );
                return Err(subject.refuse("rule/leave-once", failure));
            }
        }
        let stored = key.stored();
        let signature = custody
            .devices
            .run(&key.device, &key.owner, call, move |device| {
                let signer = device.signer().ok_or(DeviceError::CannotDo("sign"))?;
                signer.sign(&stored, self.content.expose())
            })
            .await
            .map_err(|failure| failure.about_key(key.id))?;
        if let Some(proposed) = read.proposed {
            let references = &custody.references;
            references.remember(&key.owner, proposed, &signature);
        }
        Ok(Bytes(signature))
    }
}

/// A group id goes into records and registry rows, so its length is bounded
/// before either is written: else a long one would keep a refusal off record.
pub(super) fn check_group(subject: &mut Subject) -> Result<(), Failure> {
    match &subject.group {
        Some(group) if group.len() > MAX_GROUP_ID => {
            subject.group = None;
            Err(failure::too_much("the group id", MAX_GROUP_ID))
        }
        _ => Ok(()),
    }
}

fn signature_scheme(key: &KeyRecord) -> Result<SignatureScheme, Failure> {
    match key.algorithm {
        Algorithm::Signature(scheme) => Ok(scheme),
        Algorithm::Hpke(_) => Err(failure::bad_request(
            "an HPKE key cannot sign",
            "sign with the signature key of an identity",
        )
        .about_key(key.id)),
    }
}

/// What the structure says to policy, guard and record.
fn describe(signable: &Signable<'_>, session: &Session, subject: &mut Subject) {
    let custody = session.custody();
    let mut facts = ContextFacts {
        cipher_suite: signable.cipher_suite(),
        ..facts::of_signable(signable)
    };
    let mut actions = signable.actions();
    if let Signable::FramedContent(content) = signable {
        let owner = &session.caller().owner;
        for action in custody.references.resolve(owner, content, &mut facts) {
            if !actions.contains(&action) {
                actions.push(action);
            }
        }
    }
    let private = &custody.settings.private_proposals;
    if !facts
        .private_proposals
        .iter()
        .all(|it| private.contains(it))
    {
        // Nobody here knows what it does.
        actions = vec![Action::SignUnknown];
    }
    let mut actions = actions.into_iter();
    subject.action = actions.next().unwrap_or(Action::SignUnknown);
    subject.inner_actions = actions.collect();
    subject.context = facts;
    match signable {
        Signable::FramedContent(content) => {
            subject.group = Some(content.group_id.into());
            subject.epoch = Some(content.epoch);
            subject.mark = mark_of(content, subject.content);
            if matches!(content.body, Body::Application(_)) {
                subject.durability = Some(Durability::Soon);
            }
        }
        Signable::GroupInfo(info) => {
            subject.group = Some(info.group_context.group_id.into());
            subject.epoch = Some(info.group_context.epoch);
        }
        Signable::TargetedMessage(message) => {
            subject.group = Some(message.group_id.into());
            subject.epoch = Some(message.epoch);
        }
        Signable::LeafNode(leaf) => {
            subject.group = leaf.position.map(|position| position.group_id.into());
        }
        Signable::KeyPackage(_) | Signable::App(_) | Signable::Unknown(_) => {}
    }
}

/// The leaf that policies may know the credential of.
fn leaf_to_sign<'s, 'a>(signable: &'s Signable<'a>) -> Option<&'s LeafNodePayload<'a>> {
    match signable {
        Signable::LeafNode(leaf) => Some(&leaf.payload),
        Signable::KeyPackage(package) => Some(&package.leaf_node.payload),
        Signable::FramedContent(_)
        | Signable::GroupInfo(_)
        | Signable::TargetedMessage(_)
        | Signable::App(_)
        | Signable::Unknown(_) => None,
    }
}

/// Only what a member or a newcomer by commit says raises the guard's mark.
fn mark_of(content: &FramedContent<'_>, digest: Option<[u8; 32]>) -> Option<Mark> {
    let leaf_index = match content.sender {
        Sender::Member { leaf_index, .. } => Some(leaf_index),
        Sender::NewMemberCommit { .. } => None,
        _ => return None,
    };
    let commit = matches!(content.body, Body::Commit(_))
        .then_some(digest)
        .flatten();
    Some(Mark {
        epoch: content.epoch,
        leaf_index,
        commit,
        joins: matches!(content.sender, Sender::NewMemberCommit { .. }),
    })
}

fn broken_rule<E: std::error::Error + 'static>(
    error: &BindingError<E>,
    subject: &mut Subject,
) -> Failure {
    let failure = Failure::new(FailureCode::Denied, error.to_string(), error.advice());
    subject.refuse("rule/binding-by-signing", failure)
}
