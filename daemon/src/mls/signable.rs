//! What a Signer is given: SignContent (RFC 9420 section 5.1.2) and the structure within it.

use super::framed_content::{ApplicationData, Body, FramedContent, RawContent, Sender};
use super::group::GroupInfoTbs;
use super::key_package::{KeyPackage, KeyPackageTbs};
use super::leaf_node::{LeafNode, LeafNodeTbs};
use super::proposal::Proposal;
use super::reader::{ParseError, Reader, parse_exact};
use super::targeted_message::TargetedMessageTbs;
use mlskeyd_policies::Action;
use mlskeyd_protocol::app_content::{LABEL_PREFIX, is_label, write_opaque};

const FRAMED_CONTENT_LABEL: &[u8] = b"MLS 1.0 FramedContentTBS";
pub(super) const LEAF_NODE_LABEL: &[u8] = b"MLS 1.0 LeafNodeTBS";
pub(super) const KEY_PACKAGE_LABEL: &[u8] = b"MLS 1.0 KeyPackageTBS";
const GROUP_INFO_LABEL: &[u8] = b"MLS 1.0 GroupInfoTBS";
const TARGETED_MESSAGE_LABEL: &[u8] = b"MLS 1.0 TargetedMessageTBS";
const PROPOSAL_REFERENCE_LABEL: &[u8] = b"MLS 1.0 Proposal Reference";
/// Who signs content under one of these speaks MLS.
pub(super) const MLS_LABELS: [&[u8]; 5] = [
    FRAMED_CONTENT_LABEL,
    LEAF_NODE_LABEL,
    KEY_PACKAGE_LABEL,
    GROUP_INFO_LABEL,
    TARGETED_MESSAGE_LABEL,
];

/// A longer label is no label: labels go into the audit log.
const MAX_LABEL: usize = 255;

/// What is to be signed. Everything but [`Signable::Unknown`] was parsed to its last byte and does not contradict
/// itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signable<'a> {
    /// A message to a group.
    FramedContent(Box<FramedContent<'a>>),
    /// A leaf.
    LeafNode(Box<LeafNodeTbs<'a>>),
    /// A KeyPackage.
    KeyPackage(Box<KeyPackageTbs<'a>>),
    /// The description of a group for a newcomer.
    GroupInfo(Box<GroupInfoTbs<'a>>),
    /// A message to one member of a group.
    TargetedMessage(TargetedMessageTbs<'a>),
    /// Something of the app's own that is no MLS structure.
    App(AppContent<'a>),
    /// Anything else.
    Unknown(Unknown<'a>),
}

/// What an app has signed that is no MLS structure: what it means is between the app and who verifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppContent<'a> {
    /// What the app says that it is, without the prefix.
    pub label: &'a str,
    /// The content.
    pub content: ApplicationData<'a>,
}

impl<'a> AppContent<'a> {
    fn read(label: &'a [u8], content: &'a [u8]) -> Option<Self> {
        let label = std::str::from_utf8(label)
            .ok()?
            .strip_prefix(LABEL_PREFIX)?;
        is_label(label).then_some(Self {
            label,
            content: ApplicationData(content),
        })
    }
}

/// Bytes that are no known structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown<'a> {
    /// Their label, if they have one of at most 255 bytes.
    pub label: Option<&'a [u8]>,
    /// Why they are unknown.
    pub why: ParseError,
}

impl<'a> Signable<'a> {
    /// Parses the bytes that a Signer is given. Costs at most a small multiple of their number.
    pub fn parse(bytes: &'a [u8]) -> Self {
        let (label, content) = match read_labelled(bytes) {
            Ok(parts) => parts,
            Err(unknown) => return Self::Unknown(unknown),
        };
        let parsed =
            match label {
                FRAMED_CONTENT_LABEL => parse_exact(content, FramedContent::read)
                    .map(|content| Self::FramedContent(Box::new(content))),
                LEAF_NODE_LABEL => parse_exact(content, LeafNodeTbs::read)
                    .map(|leaf| Self::LeafNode(Box::new(leaf))),
                KEY_PACKAGE_LABEL => parse_exact(content, KeyPackageTbs::read)
                    .map(|package| Self::KeyPackage(Box::new(package))),
                GROUP_INFO_LABEL => parse_exact(content, GroupInfoTbs::read)
                    .map(|info| Self::GroupInfo(Box::new(info))),
                TARGETED_MESSAGE_LABEL => {
                    parse_exact(content, TargetedMessageTbs::read).map(Self::TargetedMessage)
                }
                _ => AppContent::read(label, content)
                    .map(Self::App)
                    .ok_or(ParseError::UnknownLabel),
            };
        parsed.unwrap_or_else(|why| {
            Self::Unknown(Unknown {
                label: Some(label),
                why,
            })
        })
    }

    /// Its kind for policy and audit.
    pub fn action(&self) -> Action {
        match self {
            Self::FramedContent(content) => match &content.body {
                Body::Application(_) => Action::SignApplicationMessage,
                Body::Proposal(proposal) => proposal.action(),
                Body::Commit(_) => Action::SignCommit,
            },
            Self::LeafNode(_) => Action::SignLeafNode,
            Self::KeyPackage(_) => Action::SignKeyPackage,
            Self::GroupInfo(_) => Action::SignGroupInfo,
            Self::TargetedMessage(_) => Action::SignTargetedMessage,
            Self::App(_) => Action::SignApp,
            Self::Unknown(_) => Action::SignUnknown,
        }
    }

    /// The cipher suite that it claims to be of; a leaf alone names none.
    pub fn cipher_suite(&self) -> Option<u16> {
        match self {
            Self::KeyPackage(tbs) => Some(tbs.cipher_suite),
            Self::GroupInfo(tbs) => Some(tbs.group_context.cipher_suite),
            Self::FramedContent(content) => match (&content.sender, &content.body) {
                (
                    Sender::Member { group_context, .. }
                    | Sender::NewMemberCommit { group_context },
                    _,
                ) => Some(group_context.cipher_suite),
                (Sender::NewMemberProposal, Body::Proposal(Proposal::Add(key_package))) => {
                    Some(key_package.tbs.cipher_suite)
                }
                (Sender::NewMemberProposal | Sender::External { .. }, _) => None,
            },
            Self::LeafNode(_) | Self::TargetedMessage(_) | Self::App(_) | Self::Unknown(_) => None,
        }
    }

    /// Every kind that must be permitted: its own, then once each those of the proposals that a commit spells out.
    pub fn actions(&self) -> Vec<Action> {
        let mut kinds = vec![self.action()];
        if let Self::FramedContent(content) = self {
            for kind in content.proposals().map(Proposal::action) {
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
        }
        kinds
    }

    /// The signer's own finished leaf that this carries, if it carries one; there is never more than one. The
    /// KeyPackages of others, whom a member adds, are not among them: see [`FramedContent::added`].
    pub fn own_leaf(&self) -> Option<OwnLeaf<'_, 'a>> {
        let content = match self {
            Self::KeyPackage(key_package) => return Some(OwnLeaf::KeyPackage(key_package)),
            Self::FramedContent(content) => content,
            Self::LeafNode(_)
            | Self::GroupInfo(_)
            | Self::TargetedMessage(_)
            | Self::App(_)
            | Self::Unknown(_) => return None,
        };
        let group_id = content.group_id;
        match (&content.sender, &content.body) {
            (Sender::Member { leaf_index, .. }, Body::Proposal(Proposal::Update(leaf_node))) => {
                Some(OwnLeaf::Update {
                    group_id,
                    leaf_index: *leaf_index,
                    leaf_node,
                })
            }
            (
                Sender::Member {
                    leaf_index,
                    group_context,
                },
                Body::Commit(commit),
            ) => commit.path.as_ref().map(|path| OwnLeaf::Commit {
                group_id,
                leaf_index: *leaf_index,
                cipher_suite: group_context.cipher_suite,
                leaf_node: &path.leaf_node,
            }),
            (Sender::NewMemberCommit { .. }, Body::Commit(commit)) => {
                commit.path.as_ref().map(|path| OwnLeaf::ExternalCommit {
                    group_id,
                    leaf_node: &path.leaf_node,
                })
            }
            (Sender::NewMemberProposal, Body::Proposal(Proposal::Add(key_package))) => {
                Some(OwnLeaf::ExternalAdd {
                    group_id,
                    key_package,
                })
            }
            _ => None,
        }
    }
}

/// The signer's own finished leaf within something that is to be signed, and what is known about its place.
#[derive(Clone, Copy, Debug)]
pub enum OwnLeaf<'s, 'a> {
    /// In a KeyPackage: no group yet.
    KeyPackage(&'s KeyPackageTbs<'a>),
    /// In the KeyPackage of somebody who proposes to be added.
    ExternalAdd {
        /// The group that is asked.
        group_id: &'a [u8],
        /// The whole KeyPackage.
        key_package: &'s KeyPackage<'a>,
    },
    /// In an Update proposal.
    Update {
        /// The group.
        group_id: &'a [u8],
        /// The sender's leaf index, and so the leaf's.
        leaf_index: u32,
        /// The leaf.
        leaf_node: &'s LeafNode<'a>,
    },
    /// In the path of a member's commit.
    Commit {
        /// The group.
        group_id: &'a [u8],
        /// The sender's leaf index, and so the leaf's.
        leaf_index: u32,
        /// The group's cipher suite.
        cipher_suite: u16,
        /// The leaf.
        leaf_node: &'s LeafNode<'a>,
    },
    /// In the path of an external commit. The message does not say where in the tree the leaf will be.
    ExternalCommit {
        /// The group.
        group_id: &'a [u8],
        /// The leaf.
        leaf_node: &'s LeafNode<'a>,
    },
}

impl<'s, 'a> OwnLeaf<'s, 'a> {
    /// The leaf.
    pub fn leaf_node(&self) -> &'s LeafNode<'a> {
        match self {
            Self::KeyPackage(tbs) => &tbs.leaf_node,
            Self::ExternalAdd { key_package, .. } => &key_package.tbs.leaf_node,
            Self::Update { leaf_node, .. }
            | Self::Commit { leaf_node, .. }
            | Self::ExternalCommit { leaf_node, .. } => leaf_node,
        }
    }

    /// Its HPKE public keys: the leaf's and, of a KeyPackage, the init key.
    pub fn hpke_keys(&self) -> impl Iterator<Item = &'a [u8]> {
        let init_key = match self {
            Self::KeyPackage(tbs) => Some(tbs.init_key),
            Self::ExternalAdd { key_package, .. } => Some(key_package.tbs.init_key),
            Self::Update { .. } | Self::Commit { .. } | Self::ExternalCommit { .. } => None,
        };
        std::iter::once(self.leaf_node().payload.encryption_key).chain(init_key)
    }
}

/// What a ProposalRef is the hash of (RFC 9420 section 5.2): RefHashInput with the AuthenticatedContent of a proposal,
/// `raw` being [`FramedContent::raw`]. `None` if it is too long to be encoded.
pub fn proposal_reference_content(raw: RawContent<'_>, signature: &[u8]) -> Option<Vec<u8>> {
    let mut content = raw.0.to_vec();
    write_opaque(&mut content, signature)?;
    sign_content(PROPOSAL_REFERENCE_LABEL, &content)
}

/// SignContent with this label and content. `None` if they are too long to be encoded.
pub(super) fn sign_content(label: &[u8], content: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    write_opaque(&mut out, label)?;
    write_opaque(&mut out, content)?;
    Some(out)
}

/// Reads `{ label<V>, content<V> }`, the shape of SignContent and of EncryptContext. A failure still tells the
/// label, if that much could be read.
pub(super) fn read_labelled(bytes: &[u8]) -> Result<(&[u8], &[u8]), Unknown<'_>> {
    let mut reader = Reader::new(bytes);
    let unlabelled = |why| Unknown { label: None, why };
    let label = reader.opaque().map_err(unlabelled)?;
    if label.len() > MAX_LABEL {
        return Err(unlabelled(ParseError::TooMany {
            what: "bytes of a label",
            limit: MAX_LABEL,
        }));
    }
    let unknown = |why| Unknown {
        label: Some(label),
        why,
    };
    let content = reader.opaque().map_err(unknown)?;
    reader.end().map_err(unknown)?;
    Ok((label, content))
}
