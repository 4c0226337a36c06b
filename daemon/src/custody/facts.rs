//! What policies may know of a request.

use std::collections::BTreeSet;
use std::time::SystemTime;

use mlskeyd_policies::{ContextFacts, Moment, ResourceFacts, SenderKind};
use mlskeyd_protocol::v1::Credential;

use super::subject::Subject;
use crate::mls::{
    Body, CredentialBody, ExtensionType, FramedContent, GroupInfoTbs, KeyPackageTbs,
    LeafNodePayload, LeafNodeSource, LeafNodeTbs, Proposal, Sender, Signable, WireFormat,
};

const DAY: u64 = 24 * 60 * 60;

/// `external_pub` (RFC 9420, 12.4.3.2): with it others can enter.
const EXTERNAL_PUB: ExtensionType = ExtensionType(0x0004);

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
    }
    facts
}

/// What a structure that is to be signed says.
pub(super) fn of_signable(signable: &Signable<'_>) -> ContextFacts {
    match signable {
        Signable::FramedContent(content) => of_message(content),
        Signable::LeafNode(leaf) => of_leaf(leaf),
        Signable::KeyPackage(package) => of_key_package(package),
        Signable::GroupInfo(info) => of_group_info(info),
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
        encrypted: content.wire_format == WireFormat::Private,
        ..ContextFacts::default()
    };
    if let Body::Commit(commit) = &content.body {
        let spelt_out = commit.inline_proposals();
        facts.proposals = spelt_out.map(|it| it.action().name().to_owned()).collect();
        let references = commit
            .proposals
            .len()
            .saturating_sub(commit.inline_proposals().count());
        facts.unresolved_references = count(references);
    }
    facts.members_added = count(content.added().count());
    facts.added_names = content
        .added()
        .filter_map(|added| name(&added.tbs.leaf_node.payload))
        .collect::<BTreeSet<_>>();
    let is_removal = |proposal: &&Proposal<'_>| matches!(proposal, Proposal::Remove { .. });
    facts.members_removed = count(content.proposals().filter(is_removal).count());
    let is_psk = |proposal: &Proposal<'_>| matches!(proposal, Proposal::PreSharedKey(_));
    facts.uses_psk = content.proposals().any(is_psk);
    facts
}

fn of_leaf(leaf: &LeafNodeTbs<'_>) -> ContextFacts {
    let (source, lifetime_days) = match &leaf.payload.source {
        LeafNodeSource::KeyPackage(lifetime) => {
            ("key_package", Some(days_until(lifetime.not_after)))
        }
        LeafNodeSource::Update => ("update", None),
        LeafNodeSource::Commit { .. } => ("commit", None),
    };
    ContextFacts {
        group: leaf.position.map(|position| hex::encode(position.group_id)),
        source: source.to_owned(),
        lifetime_days,
        ..ContextFacts::default()
    }
}

fn of_key_package(package: &KeyPackageTbs<'_>) -> ContextFacts {
    let lifetime_days = match &package.leaf_node.payload.source {
        LeafNodeSource::KeyPackage(lifetime) => days_until(lifetime.not_after),
        // Such a KeyPackage is refused by another rule.
        LeafNodeSource::Update | LeafNodeSource::Commit { .. } => u64::MAX,
    };
    ContextFacts {
        lifetime_days: Some(lifetime_days),
        last_resort: package
            .extensions
            .extension(ExtensionType::LAST_RESORT)
            .is_some(),
        ..ContextFacts::default()
    }
}

fn of_group_info(info: &GroupInfoTbs<'_>) -> ContextFacts {
    ContextFacts {
        group: Some(hex::encode(info.group_context.group_id)),
        epoch: info.group_context.epoch,
        lets_join: info.extensions.extension(EXTERNAL_PUB).is_some(),
        ..ContextFacts::default()
    }
}

/// The name in a credential, if it is text.
fn name(leaf: &LeafNodePayload<'_>) -> Option<String> {
    match &leaf.credential.body {
        CredentialBody::Basic { identity } => text(identity),
        CredentialBody::X509 { .. } => None,
    }
}

/// What a credential says, to policies: its kind, and the name in it.
pub(super) fn of_credential(credential: &Credential) -> (&'static str, Option<String>) {
    match credential {
        Credential::Basic(identity) => ("basic", text(identity)),
        Credential::X509(_) => ("x509", None),
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// How many days there are until then, in seconds since 1970: begun ones count.
fn days_until(second: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs());
    second.saturating_sub(now).div_ceil(DAY)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
