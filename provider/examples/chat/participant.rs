//! A member of groups.
//!
//! A group is loaded from the database for every command, and changed in one
//! transaction with what the change needs: what is to be sent goes into an
//! outbox, and the number of a received message is remembered with its effect.
//! So the process may end at any point, and the next one goes on.

use openmls::prelude::tls_codec::{Deserialize as _, Serialize as _};
use openmls::prelude::*;

use crate::commands::{Readable, Result};
use crate::hub::{Client, Delivery, Submission};
use crate::keys::Keys;
use crate::store::Store;

pub(crate) struct Participant<'a, K> {
    name: String,
    suite: Ciphersuite,
    keys: K,
    store: Store<'a>,
    hub: Client,
}

impl<'a, K: Keys> Participant<'a, K> {
    pub(crate) const fn new(
        name: String,
        suite: Ciphersuite,
        keys: K,
        store: Store<'a>,
        hub: Client,
    ) -> Self {
        Self {
            name,
            suite,
            keys,
            store,
            hub,
        }
    }

    /// Adds to an error what custody knows of its reason.
    pub(crate) fn explained<T>(&self, result: Result<T>) -> Result<T> {
        let reason = self.keys.explain();
        result.map_err(|error| reason.unwrap_or(error))
    }

    /// Makes a KeyPackage and publishes it.
    pub(crate) fn publish_key_package(&self) -> Result<()> {
        let (signer, credential) = self.keys.identity()?;
        let bundle = self.keys.in_transaction(|| {
            KeyPackage::builder()
                .build(self.suite, self.keys.provider(), &signer, credential)
                .readable()
        })?;
        let message = MlsMessageOut::from(bundle.into_key_package());
        self.hub.publish(&self.name, encode(&message)?)
    }

    /// Makes a group.
    pub(crate) fn create(&self, name: &str) -> Result<()> {
        let (signer, credential) = self.keys.identity()?;
        let config = MlsGroupCreateConfig::builder()
            .ciphersuite(self.suite)
            .use_ratchet_tree_extension(true)
            .wire_format_policy(MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY)
            .max_past_epochs(PAST_EPOCHS)
            .build();
        self.keys.in_transaction(|| {
            let provider = self.keys.provider();
            let id = GroupId::from_slice(name.as_bytes());
            let group = MlsGroup::new_with_group_id(provider, &signer, &config, id, credential)
                .readable()?;
            let info = group
                .export_group_info(provider.crypto(), &signer, true)
                .readable()?;
            self.store.add_group(name)?;
            self.store.post(&Submission {
                group_info: Some(encode(&info)?),
                ..self.submission(name)?
            })
        })?;
        self.deliver()
    }

    /// Adds somebody, whose KeyPackage is at the hub.
    pub(crate) fn add(&self, name: &str, whom: &str) -> Result<()> {
        let MlsMessageBodyIn::KeyPackage(key_package) = decode(&self.hub.key_package(whom)?)?
        else {
            return Err("what the hub has is no key package".to_owned());
        };
        let key_package = key_package
            .validate(self.keys.provider().crypto(), ProtocolVersion::Mls10)
            .readable()?;
        if identity(key_package.leaf_node().credential()) != whom {
            return Err(format!("the key package is not {whom}'s"));
        }
        self.commit(name, &[whom], |_, builder| {
            Ok(builder.propose_adds([key_package]))
        })
    }

    /// Removes somebody.
    pub(crate) fn remove(&self, name: &str, whom: &str) -> Result<()> {
        self.commit(name, &[], |members, builder| {
            let member = members
                .iter()
                .find(|member| identity(&member.credential) == whom);
            let index = member.ok_or_else(|| format!("{whom} is no member"))?.index;
            Ok(builder.propose_removals([index]))
        })
    }

    /// Replaces the own leaf key, and the signature key if there is another one.
    pub(crate) fn update(&self, name: &str) -> Result<()> {
        self.commit(name, &[], |_, builder| Ok(builder.force_self_update(true)))
    }

    /// Makes a commit of what `build` adds to it and of all pending proposals, and
    /// of the new signature key if there is one.
    fn commit(
        &self,
        name: &str,
        welcome_to: &[&str],
        build: impl for<'g> FnOnce(
            &[Member],
            CommitBuilder<'g, Initial>,
        ) -> Result<CommitBuilder<'g, Initial>>,
    ) -> Result<()> {
        self.deliver()?;
        self.keys.in_transaction(|| {
            let provider = self.keys.provider();
            let mut group = self.load(name)?;
            let rotation = self.keys.rotation(&group)?;
            let signer = self.keys.signer_for(&group)?;
            let members: Vec<Member> = group.members().collect();
            let (epoch, to) = (group.epoch().as_u64(), self.others(&group));
            let builder = build(&members, group.commit_builder())?
                .load_psks(provider.storage())
                .readable()?
                .create_group_info(true)
                .use_ratchet_tree_extension(true);
            let (rand, crypto) = (provider.rand(), provider.crypto());
            let built = match rotation {
                Some((new, credential_with_key)) => {
                    let new = NewSignerBundle {
                        signer: &new,
                        credential_with_key,
                    };
                    builder.build_with_new_signer(rand, crypto, &signer, new, |_| true)
                }
                None => builder.build(rand, crypto, &signer, |_| true),
            };
            let bundle = built.readable()?.stage_commit(provider).readable()?;
            self.post_commit(name, epoch, to, welcome_to, bundle, false)
        })?;
        self.deliver()
    }

    /// Puts a commit into the outbox, with its Welcome and its GroupInfo.
    fn post_commit(
        &self,
        name: &str,
        epoch: u64,
        to: Vec<String>,
        welcome_to: &[&str],
        bundle: CommitMessageBundle,
        external: bool,
    ) -> Result<()> {
        let (commit, welcome, group_info) = bundle.into_messages();
        let welcome_to = welcome_to.iter().map(|&name| name.to_owned()).collect();
        self.store.post(&Submission {
            ends_epoch: Some(epoch),
            external,
            message: Some((to, encode(&commit)?)),
            welcome: match welcome {
                Some(welcome) => Some((welcome_to, encode(&welcome)?)),
                None => None,
            },
            group_info: group_info.as_ref().map(encode).transpose()?,
            ..self.submission(name)?
        })
    }

    /// Proposes to replace the own leaf key; somebody else is to commit it.
    pub(crate) fn propose_update(&self, name: &str) -> Result<()> {
        self.say(name, |group, signer| {
            group
                .propose_self_update(self.keys.provider(), signer, LeafNodeParameters::default())
                .readable()
                .map(|(message, _)| message)
        })
    }

    /// Sends a text.
    pub(crate) fn send(&self, name: &str, text: &str) -> Result<()> {
        self.say(name, |group, signer| {
            group
                .create_message(self.keys.provider(), signer, text.as_bytes())
                .readable()
        })
    }

    /// Sends a message that is no commit.
    fn say(
        &self,
        name: &str,
        make: impl FnOnce(&mut MlsGroup, &K::Signer) -> Result<MlsMessageOut>,
    ) -> Result<()> {
        self.deliver()?;
        self.keys.in_transaction(|| {
            let mut group = self.load(name)?;
            let signer = self.keys.signer_for(&group)?;
            let message = make(&mut group, &signer)?;
            self.store.post(&Submission {
                message: Some((self.others(&group), encode(&message)?)),
                ..self.submission(name)?
            })
        })?;
        self.deliver()
    }

    /// Joins by the group's GroupInfo, without an invitation.
    pub(crate) fn join_externally(&self, name: &str) -> Result<()> {
        self.deliver()?;
        let MlsMessageBodyIn::GroupInfo(info) = decode(&self.hub.group_info(name)?)? else {
            return Err("what the hub has is no GroupInfo".to_owned());
        };
        let (signer, credential) = self.keys.identity()?;
        self.keys.in_transaction(|| {
            let provider = self.keys.provider();
            // Of a membership that ended.
            if let Some(mut old) = self.try_load(name)? {
                old.delete(provider.storage()).readable()?;
            }
            let (group, bundle) = MlsGroup::external_commit_builder()
                .with_config(join_config())
                .build_group(provider, info, credential)
                .readable()?
                .load_psks(provider.storage())
                .readable()?
                .create_group_info(true)
                .use_ratchet_tree_extension(true)
                .build(provider.rand(), provider.crypto(), &signer, |_| true)
                .readable()?
                .finalize(provider)
                .readable()?;
            self.store.add_group(name)?;
            let epoch = group.epoch().as_u64().saturating_sub(1);
            self.post_commit(name, epoch, self.others(&group), &[], bundle, true)
        })?;
        self.deliver()
    }

    /// Sends what is in the outbox, and does what is due then: a commit that
    /// the hub took is merged, one that came second is dropped.
    fn deliver(&self) -> Result<()> {
        while let Some((id, submission)) = self.store.next_post()? {
            let (name, external) = (submission.group.clone(), submission.external);
            let is_commit = submission.ends_epoch.is_some();
            let taken = self.hub.submit(submission)?;
            self.keys.in_transaction(|| {
                let storage = self.keys.provider().storage();
                match (is_commit, external, taken) {
                    (true, false, true) => {
                        let mut group = self.load(&name)?;
                        group
                            .merge_pending_commit(self.keys.provider())
                            .readable()?;
                    }
                    (true, false, false) => {
                        self.load(&name)?.clear_pending_commit(storage).readable()?;
                    }
                    (true, true, false) => self.load(&name)?.delete(storage).readable()?,
                    _ => {}
                }
                self.store.posted(id)
            })?;
            if !taken {
                return Err(format!(
                    "somebody else's commit to {name} was first: receive it"
                ));
            }
        }
        Ok(())
    }

    /// Takes what the hub has for this participant; each message in a
    /// transaction of its own.
    pub(crate) fn receive(&self, tell: impl Fn(String)) -> Result<()> {
        self.deliver()?;
        for delivery in self.hub.fetch(&self.name, self.store.received()?)? {
            let sequence = delivery.sequence;
            let name = delivery.group.clone();
            // What failed before is not why this message would fail.
            let _ = self.keys.explain();
            let processed = self.keys.in_transaction(|| {
                self.store.set_received(sequence)?;
                self.process(&delivery)
            });
            match processed {
                Ok(event) => tell(event),
                Err(error) => {
                    // Custody's reasons pass: the message is tried again.
                    if let Some(reason) = self.keys.explain() {
                        return Err(reason);
                    }
                    self.keys
                        .in_transaction(|| self.store.set_received(sequence))?;
                    tell(format!("skipped {name}: {error}"));
                }
            }
        }
        Ok(())
    }

    /// Does what a message says; answers what it was.
    fn process(&self, delivery: &Delivery) -> Result<String> {
        let name = &delivery.group;
        let message = match decode(&delivery.message)? {
            MlsMessageBodyIn::Welcome(welcome) => return self.join(name, welcome),
            MlsMessageBodyIn::PrivateMessage(message) => ProtocolMessage::from(message),
            MlsMessageBodyIn::PublicMessage(message) => ProtocolMessage::from(message),
            _ => return Err("no message for a group".to_owned()),
        };
        let provider = self.keys.provider();
        let mut group = self.load(name)?;
        let processed = group.process_message(provider, message).readable()?;
        let from = identity(processed.credential());
        match processed.into_content() {
            ProcessedMessageContent::ApplicationMessage(text) => {
                let text = text.into_bytes();
                Ok(format!(
                    "message {name} {from} {}",
                    String::from_utf8_lossy(&text)
                ))
            }
            ProcessedMessageContent::ProposalMessage(proposal)
            | ProcessedMessageContent::ExternalJoinProposalMessage(proposal) => {
                group
                    .store_pending_proposal(provider.storage(), *proposal)
                    .readable()?;
                Ok(format!("proposal {name} {from}"))
            }
            ProcessedMessageContent::StagedCommitMessage(commit) => {
                let removed = commit.self_removed();
                group.merge_staged_commit(provider, *commit).readable()?;
                let epoch = group.epoch().as_u64();
                Ok(if removed {
                    format!("removed {name} by {from}")
                } else {
                    format!("epoch {name} {epoch} by {from}")
                })
            }
            _ => Err("a message of an unknown kind".to_owned()),
        }
    }

    /// Joins by a Welcome.
    fn join(&self, name: &str, welcome: Welcome) -> Result<String> {
        let provider = self.keys.provider();
        let welcome = StagedWelcome::build_from_welcome(provider, &join_config(), welcome)
            .readable()?
            .replace_old_group()
            .build()
            .readable()?;
        let from = identity(welcome.welcome_sender().readable()?.credential());
        let group = welcome.into_group(provider).readable()?;
        if group.group_id().as_slice() != name.as_bytes() {
            return Err("a Welcome to another group than the hub said".to_owned());
        }
        self.store.add_group(name)?;
        Ok(format!("joined {name} by {from}"))
    }

    /// The epoch authenticator (RFC 9420, 8.7), which is the same for all
    /// members, and the epoch.
    pub(crate) fn authenticator(&self, name: &str) -> Result<String> {
        let group = self.load(name)?;
        let authenticator = hex::encode(group.epoch_authenticator().as_slice());
        Ok(format!("{authenticator} {}", group.epoch().as_u64()))
    }

    /// The members' names.
    pub(crate) fn members(&self, name: &str) -> Result<String> {
        let group = self.load(name)?;
        let names: Vec<_> = group
            .members()
            .map(|member| identity(&member.credential))
            .collect();
        Ok(names.join(" "))
    }

    /// Where the keys are, for each group.
    pub(crate) fn status(&self) -> Result<String> {
        let mut lines = Vec::new();
        for name in self.store.groups()? {
            if let Some(group) = self.try_load(&name)? {
                lines.push(format!("{name}: {}", self.keys.status(&group)?));
            }
        }
        Ok(lines.join("; "))
    }

    fn try_load(&self, name: &str) -> Result<Option<MlsGroup>> {
        let id = GroupId::from_slice(name.as_bytes());
        MlsGroup::load(self.keys.provider().storage(), &id).readable()
    }

    fn load(&self, name: &str) -> Result<MlsGroup> {
        self.try_load(name)?
            .ok_or_else(|| format!("no group {name}"))
    }

    fn others(&self, group: &MlsGroup) -> Vec<String> {
        let mut names: Vec<_> = group
            .members()
            .map(|member| identity(&member.credential))
            .collect();
        names.retain(|name| *name != self.name);
        names
    }

    /// An empty submission with an id of its own.
    fn submission(&self, group: &str) -> Result<Submission> {
        let id: [u8; 16] = self.keys.provider().rand().random_array().readable()?;
        Ok(Submission {
            id: hex::encode(id),
            group: group.to_owned(),
            ..Submission::default()
        })
    }
}

/// Messages of so many past epochs are still read.
const PAST_EPOCHS: usize = 2;

fn join_config() -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .use_ratchet_tree_extension(true)
        .wire_format_policy(MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .max_past_epochs(PAST_EPOCHS)
        .build()
}

fn identity(credential: &Credential) -> String {
    String::from_utf8_lossy(credential.serialized_content()).into_owned()
}

fn encode(message: &MlsMessageOut) -> Result<String> {
    message.tls_serialize_detached().readable().map(hex::encode)
}

fn decode(message: &str) -> Result<MlsMessageBodyIn> {
    let bytes = hex::decode(message).readable()?;
    Ok(MlsMessageIn::tls_deserialize_exact(bytes)
        .readable()?
        .extract())
}
