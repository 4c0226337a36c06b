//! What policies may know of a request.

use std::collections::BTreeSet;
use std::time::SystemTime;

use mlskeyd_policies::replay;
use mlskeyd_policies::{
    CallerFacts, ContextFacts, Moment, RequiredCapabilities, ResourceFacts, SenderKind,
};
use mlskeyd_protocol::v1::{Algorithm, Credential, Tier};

use super::subject::Subject;
use crate::certificates::{self, Issued};
use crate::mls::{
    self, Body, CredentialBody, ExtensionType, Extensions, FramedContent, GroupInfoTbs,
    KeyPackageTbs, LeafNodePayload, LeafNodeSource, LeafNodeTbs, Proposal, Sender, Signable,
    TargetedMessageTbs, WireFormat,
};
use crate::store::KeyRecord;

const DAY: u64 = 24 * 60 * 60;

/// Longest facts on record, in bytes: a record has bounds.
const MAX_FACTS: usize = 8 * 1024;

/// Longest name in them where they would be longer, in characters.
const MAX_SHORTENED: usize = 255;

/// The moment, in the time zone of the machine.
pub(super) fn moment() -> Moment {
    let now = jiff::ZonedDateTime::now();
    Moment {
        time: now.timestamp().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        hour: now.hour().unsigned_abs(),
        minute: now.minute().unsigned_abs(),
        weekday: now.weekday().to_monday_one_offset().unsigned_abs(),
    }
}

/// What the request uses or makes.
pub(super) fn resource(subject: &Subject, kind: &str) -> ResourceFacts {
    let mut facts = ResourceFacts {
        device: subject.device.clone().unwrap_or_default(),
        device_kind: kind.to_owned(),
        identity: subject.identity.clone(),
        ..ResourceFacts::default()
    };
    if let Some(key) = &subject.key {
        facts.key = key.id.to_string();
        facts.purpose = key.purpose().to_string();
        facts.algorithm = key.algorithm.to_string();
        facts.tier = key.tier.to_string();
        facts.wrapped = is_wrapped(key, kind);
        facts.age_days = now().saturating_sub(key.created) / DAY;
        facts.attested = key.attested;
        facts.suites = suites(key.algorithm);
    }
    facts
}

/// As they go on record: where there are too many names they are left out.
pub(super) fn on_record(
    caller: &CallerFacts,
    resource: &ResourceFacts,
    context: &ContextFacts,
) -> Option<String> {
    let fits = |facts: &String| facts.len() <= MAX_FACTS;
    let whole = replay::to_record(caller, resource, context);
    if fits(&whole) {
        return Some(whole);
    }
    let context = ContextFacts {
        added_names: BTreeSet::new(),
        removed_leaves: BTreeSet::new(),
        private_proposals: BTreeSet::new(),
        certificate_names: BTreeSet::new(),
        certificate_issuer: None,
        identities: BTreeSet::new(),
        credential: context.credential.as_deref().map(shortened),
        ..context.clone()
    };
    Some(replay::to_record(caller, resource, &context)).filter(fits)
}

fn shortened(name: &str) -> String {
    name.chars().take(MAX_SHORTENED).collect()
}

/// Is the key a blob that its device has wrapped? The objects of a token and of a YubiKey are
/// none, but for the HPKE keys that a token keeps outside of itself.
fn is_wrapped(key: &KeyRecord, kind: &str) -> bool {
    match key.tier {
        Tier::Software => false,
        Tier::Sealed => true,
        Tier::Hardware => match kind {
            "tpm2" => true,
            "pkcs11" => matches!(key.algorithm, Algorithm::Hpke(_)),
            _ => false,
        },
    }
}

/// The cipher suites that a key serves (RFC 9420, 17.1).
fn suites(algorithm: Algorithm) -> BTreeSet<u16> {
    let serves = |suite: &u16| match algorithm {
        Algorithm::Signature(scheme) => mls::scheme_of_cipher_suite(*suite) == Some(scheme),
        Algorithm::Hpke(kem) => mls::kem_of_cipher_suite(*suite) == Some(kem),
    };
    (1..=7).filter(serves).collect()
}

/// What a structure that is to be signed says.
pub(super) fn of_signable(signable: &Signable<'_>) -> ContextFacts {
    match signable {
        Signable::FramedContent(content) => of_message(content),
        Signable::LeafNode(leaf) => of_leaf(leaf),
        Signable::KeyPackage(package) => of_key_package(package),
        Signable::GroupInfo(info) => of_group_info(info),
        Signable::TargetedMessage(message) => of_targeted_message(message),
        Signable::App(content) => ContextFacts {
            label: content.label.to_owned(),
            ..ContextFacts::default()
        },
        Signable::Unknown(_) => ContextFacts::default(),
    }
}

fn of_message(content: &FramedContent<'_>) -> ContextFacts {
    let mut facts = ContextFacts {
        group: Some(hex::encode(content.group_id)),
        epoch: content.epoch,
        sender: match content.sender {
            Sender::Member { .. } => SenderKind::Member,
            Sender::External { .. } => SenderKind::External,
            Sender::NewMemberProposal => SenderKind::NewMemberProposal,
            Sender::NewMemberCommit { .. } => SenderKind::NewMemberCommit,
        },
        sender_leaf: match content.sender {
            Sender::Member { leaf_index, .. } => Some(leaf_index),
            _ => None,
        },
        encrypted: content.wire_format == WireFormat::Private,
        required_capabilities: content
            .group_context()
            .and_then(|context| required_capabilities(&context.extensions)),
        ..ContextFacts::default()
    };
    let is_commit = matches!(content.body, Body::Commit(_));
    for proposal in content.proposals() {
        if is_commit {
            let action = proposal.action().name();
            facts.proposals.insert(action.to_owned());
        }
        Effects::of(proposal).add_to(&mut facts);
    }
    facts
}

/// What a proposal would do, as far as policies want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effects {
    /// A member is added, whose name is this if it has a basic credential that is text.
    Adds(Option<String>),
    /// The member at this leaf index is removed.
    Removes(u32),
    /// A pre-shared key is mixed in.
    UsesPsk,
    /// Something that was agreed on for this type.
    PrivateUse(u16),
    /// What its action says.
    Others,
}

impl Effects {
    pub(super) fn of(proposal: &Proposal<'_>) -> Self {
        match proposal {
            Proposal::Add(added) => Self::Adds(name(&added.tbs.leaf_node.payload)),
            Proposal::Remove { removed } => Self::Removes(*removed),
            Proposal::PreSharedKey(_) => Self::UsesPsk,
            Proposal::PrivateUse { proposal_type, .. } => Self::PrivateUse(*proposal_type),
            Proposal::Update(_)
            | Proposal::ReInit { .. }
            | Proposal::ExternalInit { .. }
            | Proposal::GroupContextExtensions(_)
            | Proposal::SelfRemove => Self::Others,
        }
    }

    pub(super) fn add_to(&self, facts: &mut ContextFacts) {
        match self {
            Self::Adds(name) => {
                facts.members_added = facts.members_added.saturating_add(1);
                facts.added_names.extend(name.clone());
            }
            Self::Removes(leaf) => {
                facts.members_removed = facts.members_removed.saturating_add(1);
                facts.removed_leaves.insert(*leaf);
            }
            Self::UsesPsk => facts.uses_psk = true,
            Self::PrivateUse(number) => {
                facts.private_proposals.insert(*number);
            }
            Self::Others => {}
        }
    }
}

fn of_targeted_message(message: &TargetedMessageTbs<'_>) -> ContextFacts {
    ContextFacts {
        group: Some(hex::encode(message.group_id)),
        epoch: message.epoch,
        recipient_leaf: message.recipient_leaf_index,
        ..ContextFacts::default()
    }
}

fn of_leaf(leaf: &LeafNodeTbs<'_>) -> ContextFacts {
    let (source, lifetime_days) = match &leaf.payload.source {
        LeafNodeSource::KeyPackage(lifetime) => {
            ("key_package", Some(days_until(lifetime.not_after)))
        }
        LeafNodeSource::Update => ("update", None),
        LeafNodeSource::Commit { .. } => ("commit", None),
    };
    let mut facts = ContextFacts {
        group: leaf.position.map(|position| hex::encode(position.group_id)),
        source: source.to_owned(),
        lifetime_days,
        ..ContextFacts::default()
    };
    CredentialSays::of_leaf(&leaf.payload).put(&mut facts);
    facts
}

fn of_key_package(package: &KeyPackageTbs<'_>) -> ContextFacts {
    let lifetime_days = match &package.leaf_node.payload.source {
        LeafNodeSource::KeyPackage(lifetime) => days_until(lifetime.not_after),
        // Such a KeyPackage is refused by another rule.
        LeafNodeSource::Update | LeafNodeSource::Commit { .. } => u64::MAX,
    };
    let last_resort = package.extensions.extension(ExtensionType::LAST_RESORT);
    let mut facts = ContextFacts {
        lifetime_days: Some(lifetime_days),
        last_resort: last_resort.is_some(),
        ..ContextFacts::default()
    };
    CredentialSays::of_leaf(&package.leaf_node.payload).put(&mut facts);
    facts
}

fn of_group_info(info: &GroupInfoTbs<'_>) -> ContextFacts {
    ContextFacts {
        group: Some(hex::encode(info.group_context.group_id)),
        epoch: info.group_context.epoch,
        lets_join: info
            .extensions
            .extension(ExtensionType::EXTERNAL_PUB)
            .is_some(),
        required_capabilities: required_capabilities(&info.group_context.extensions),
        ..ContextFacts::default()
    }
}

/// What the extension says, if it is there and is one: a group whose members could not read
/// it would have none.
fn required_capabilities(extensions: &Extensions<'_>) -> Option<RequiredCapabilities> {
    let data = extensions.extension(ExtensionType::REQUIRED_CAPABILITIES)?;
    let required = mls::RequiredCapabilities::parse(data).ok()?;
    Some(RequiredCapabilities {
        extensions: required.extensions.into_iter().collect(),
        proposals: required.proposals.into_iter().collect(),
        credentials: required.credentials.into_iter().collect(),
    })
}

/// The name in a basic credential, if it is text.
fn name(leaf: &LeafNodePayload<'_>) -> Option<String> {
    match &leaf.credential.body {
        CredentialBody::Basic { identity } => text(identity),
        CredentialBody::X509 { .. } => None,
    }
}

/// What a credential says.
pub(super) struct CredentialSays {
    kind: &'static str,
    /// The name of a basic one, if it is text.
    name: Option<String>,
    /// What is in the certificate, if it can be read.
    issued: Option<Issued>,
}

impl CredentialSays {
    /// Of a leaf, whose certificate is somebody's: reading it may take any time, and whether it
    /// is the identity's own is not known yet.
    fn of_leaf(leaf: &LeafNodePayload<'_>) -> Self {
        match &leaf.credential.body {
            CredentialBody::Basic { identity } => Self::basic(text(identity)),
            CredentialBody::X509 { .. } => Self {
                kind: "x509",
                name: None,
                issued: None,
            },
        }
    }

    /// Of one that an identity has, or that an administrator gives it.
    pub(super) fn of(credential: &Credential) -> Self {
        match credential {
            Credential::Basic(identity) => Self::basic(text(identity)),
            Credential::X509(chain) => Self {
                kind: "x509",
                name: None,
                issued: chain.first().and_then(|own| certificates::read(own).ok()),
            },
        }
    }

    /// Of a basic one with this name.
    pub(super) const fn basic(name: Option<String>) -> Self {
        Self {
            kind: "basic",
            name,
            issued: None,
        }
    }

    /// All names in it.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let certified = self.issued.iter().flat_map(|issued| &issued.names);
        self.name.iter().chain(certified).map(String::as_str)
    }

    pub(super) fn put(self, context: &mut ContextFacts) {
        self.kind.clone_into(&mut context.credential_type);
        context.credential = self.name;
        if let Some(issued) = self.issued {
            context.certificate_names = issued.names;
            context.certificate_issuer = Some(issued.issuer);
        }
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// How many days there are until then, in seconds since 1970: begun ones count.
fn days_until(second: u64) -> u64 {
    second.saturating_sub(now()).div_ceil(DAY)
}

/// Seconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}
