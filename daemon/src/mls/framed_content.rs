//! FramedContentTBS (RFC 9420 section 6.1) with Commit and UpdatePath (sections 12.4 and 7.6).

use std::fmt;

use super::group::GroupContext;
use super::key_package::KeyPackage;
use super::leaf_node::{LeafNode, LeafNodeSource};
use super::proposal::Proposal;
use super::reader::{ParseError, Reader};

/// More than any delivery service carries in one commit.
const MAX_PROPOSALS: usize = 16_384;
/// Leaf indices are 32 bits wide, so no path to the root is longer.
const MAX_PATH_NODES: usize = 32;

/// How the message will travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireFormat {
    /// PublicMessage: signed, not encrypted.
    Public,
    /// PrivateMessage: encrypted as well.
    Private,
}

/// Who sends, and for those within the group or entering it by this message, the group's state that they sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sender<'a> {
    /// A member.
    Member {
        /// The member's leaf index.
        leaf_index: u32,
        /// The group it speaks to: same id and epoch as the message's.
        group_context: GroupContext<'a>,
    },
    /// Somebody outside whom the group's `external_senders` extension admits.
    External {
        /// The place in that extension's list.
        sender_index: u32,
    },
    /// Somebody who proposes to be added.
    NewMemberProposal,
    /// Somebody who enters by this external commit.
    NewMemberCommit {
        /// The group that is entered, as before the commit: same id and epoch as the message's.
        group_context: GroupContext<'a>,
    },
}

/// A message's plaintext. It is borrowed for the time of a decision, and its `Debug` shows only the length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ApplicationData<'a>(pub &'a [u8]);

impl fmt::Debug for ApplicationData<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApplicationData({} bytes)", self.0.len())
    }
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// Text of the application.
    Application(ApplicationData<'a>),
    /// A proposal, to be committed later.
    Proposal(Proposal<'a>),
    /// A commit.
    Commit(Commit<'a>),
}

/// A message that is to be signed, free of the contradictions that RFC 9420 forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FramedContent<'a> {
    /// How it will travel.
    pub wire_format: WireFormat,
    /// The group it goes to.
    pub group_id: &'a [u8],
    /// The epoch it belongs to.
    pub epoch: u64,
    /// Who sends it.
    pub sender: Sender<'a>,
    /// Authenticated and not encrypted.
    pub authenticated_data: &'a [u8],
    /// What it says.
    pub body: Body<'a>,
    /// The wire format and the FramedContent as they are encoded: what the signature and a
    /// proposal's reference (RFC 9420 section 5.2) are over.
    pub raw: RawContent<'a>,
}

/// A message as it is encoded, with its plaintext: its `Debug`, too, shows only the length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawContent<'a>(pub &'a [u8]);

impl fmt::Debug for RawContent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawContent({} bytes)", self.0.len())
    }
}

/// The sender as it is encoded, before the GroupContext at the end of the structure is read.
enum SenderField {
    Member(u32),
    External(u32),
    NewMemberProposal,
    NewMemberCommit,
}

impl SenderField {
    fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        Ok(match reader.u8()? {
            1 => Self::Member(reader.u32()?),
            2 => Self::External(reader.u32()?),
            3 => Self::NewMemberProposal,
            4 => Self::NewMemberCommit,
            value => {
                return Err(ParseError::Unsupported {
                    what: "sender type",
                    value: value.into(),
                });
            }
        })
    }

    fn with_context<'a>(self, reader: &mut Reader<'a>) -> Result<Sender<'a>, ParseError> {
        Ok(match self {
            Self::Member(leaf_index) => Sender::Member {
                leaf_index,
                group_context: GroupContext::read(reader)?,
            },
            Self::External(sender_index) => Sender::External { sender_index },
            Self::NewMemberProposal => Sender::NewMemberProposal,
            Self::NewMemberCommit => Sender::NewMemberCommit {
                group_context: GroupContext::read(reader)?,
            },
        })
    }
}

/// The wire format and FramedContent.
struct Parts<'a> {
    wire_format: WireFormat,
    group_id: &'a [u8],
    epoch: u64,
    sender: SenderField,
    authenticated_data: &'a [u8],
    body: Body<'a>,
}

impl<'a> Parts<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let wire_format = match reader.u16()? {
            1 => WireFormat::Public,
            2 => WireFormat::Private,
            value => {
                return Err(ParseError::Unsupported {
                    what: "wire format",
                    value,
                });
            }
        };
        Ok(Self {
            wire_format,
            group_id: reader.opaque()?,
            epoch: reader.u64()?,
            sender: SenderField::read(reader)?,
            authenticated_data: reader.opaque()?,
            body: match reader.u8()? {
                1 => Body::Application(ApplicationData(reader.opaque()?)),
                2 => Body::Proposal(Proposal::read(reader)?),
                3 => Body::Commit(Commit::read(reader)?),
                value => {
                    return Err(ParseError::Unsupported {
                        what: "content type",
                        value: value.into(),
                    });
                }
            },
        })
    }
}

impl<'a> FramedContent<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        reader.version()?;
        let (parts, raw) = reader.with_raw(Parts::read)?;
        let content = Self {
            wire_format: parts.wire_format,
            group_id: parts.group_id,
            epoch: parts.epoch,
            sender: parts.sender.with_context(reader)?,
            authenticated_data: parts.authenticated_data,
            body: parts.body,
            raw: RawContent(raw),
        };
        content.check_framing()?;
        content.check_group_context()?;
        content.check_body()?;
        Ok(content)
    }

    /// RFC 9420 section 6: application data is always encrypted, and only members can encrypt.
    fn check_framing(&self) -> Result<(), ParseError> {
        let member = matches!(self.sender, Sender::Member { .. });
        match (self.wire_format, &self.body) {
            (WireFormat::Public, Body::Application(_)) => Err(ParseError::Contradiction(
                "application data in a public message",
            )),
            (WireFormat::Private, _) if !member => Err(ParseError::Contradiction(
                "a private message from somebody who is no member",
            )),
            _ => Ok(()),
        }
    }

    fn check_group_context(&self) -> Result<(), ParseError> {
        let Some(context) = self.group_context() else {
            return Ok(());
        };
        if context.group_id != self.group_id || context.epoch != self.epoch {
            return Err(ParseError::Contradiction(
                "group or epoch differ between the message and its GroupContext",
            ));
        }
        if self
            .added()
            .any(|added| added.tbs.cipher_suite != context.cipher_suite)
        {
            return Err(ParseError::Contradiction(
                "an added KeyPackage has another cipher suite than the group",
            ));
        }
        Ok(())
    }

    /// Which sender may send what (RFC 9420 sections 12.1.8 and 12.4.3.2).
    fn check_body(&self) -> Result<(), ParseError> {
        let fits = match (&self.sender, &self.body) {
            (Sender::Member { .. }, Body::Application(_)) => true,
            (Sender::Member { .. }, Body::Proposal(proposal)) => {
                !matches!(proposal, Proposal::ExternalInit { .. })
            }
            (Sender::Member { .. }, Body::Commit(commit)) => !commit
                .inline_proposals()
                .any(|p| matches!(p, Proposal::ExternalInit { .. })),
            (Sender::External { .. }, Body::Proposal(proposal)) => matches!(
                proposal,
                Proposal::Add(_)
                    | Proposal::Remove { .. }
                    | Proposal::PreSharedKey(_)
                    | Proposal::ReInit { .. }
                    | Proposal::GroupContextExtensions(_)
            ),
            (Sender::NewMemberProposal, Body::Proposal(proposal)) => {
                matches!(proposal, Proposal::Add(_))
            }
            (Sender::NewMemberCommit { .. }, Body::Commit(commit)) => commit.fits_newcomer(),
            _ => false,
        };
        if fits {
            Ok(())
        } else {
            Err(ParseError::Contradiction(
                "a sender of this type cannot send this content",
            ))
        }
    }

    /// The state of the group that is signed along, for members and external commits.
    pub fn group_context(&self) -> Option<&GroupContext<'a>> {
        match &self.sender {
            Sender::Member { group_context, .. } | Sender::NewMemberCommit { group_context } => {
                Some(group_context)
            }
            Sender::External { .. } | Sender::NewMemberProposal => None,
        }
    }

    /// The proposals that the message spells out: its own, or those within its commit.
    pub fn proposals(&self) -> impl Iterator<Item = &Proposal<'a>> {
        let (alone, commit) = match &self.body {
            Body::Application(_) => (None, None),
            Body::Proposal(proposal) => (Some(proposal), None),
            Body::Commit(commit) => (None, Some(commit)),
        };
        alone
            .into_iter()
            .chain(commit.into_iter().flat_map(Commit::inline_proposals))
    }

    /// The KeyPackages of those whom the message adds.
    pub fn added(&self) -> impl Iterator<Item = &KeyPackage<'a>> {
        self.proposals().filter_map(|proposal| match proposal {
            Proposal::Add(key_package) => Some(&**key_package),
            _ => None,
        })
    }
}

/// A commit (RFC 9420 section 12.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit<'a> {
    /// What it commits, in its order.
    pub proposals: Vec<ProposalOrRef<'a>>,
    /// The committer's new leaf and path, if the commit has one.
    pub path: Option<Box<UpdatePath<'a>>>,
}

/// A proposal within a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposalOrRef<'a> {
    /// The committer's own, spelt out.
    Proposal(Proposal<'a>),
    /// The hash of one that was sent before.
    Reference(&'a [u8]),
}

impl<'a> Commit<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let proposals = reader.vector("proposals", MAX_PROPOSALS, |r| match r.u8()? {
            1 => Ok(ProposalOrRef::Proposal(Proposal::read(r)?)),
            2 => Ok(ProposalOrRef::Reference(r.opaque()?)),
            value => Err(ParseError::Unsupported {
                what: "ProposalOrRef type",
                value: value.into(),
            }),
        })?;
        let path = match reader.u8()? {
            0 => None,
            1 => Some(Box::new(UpdatePath::read(reader)?)),
            value => {
                return Err(ParseError::Unsupported {
                    what: "presence octet",
                    value: value.into(),
                });
            }
        };
        let commit = Self { proposals, path };
        // A committer changes its own leaf by the path, and cannot leave by its own commit (section 12.2).
        if commit
            .inline_proposals()
            .any(|p| matches!(p, Proposal::Update(_) | Proposal::SelfRemove))
        {
            return Err(ParseError::Contradiction(
                "a commit spells out an Update or SelfRemove of its committer",
            ));
        }
        Ok(commit)
    }

    /// The proposals that are spelt out.
    pub fn inline_proposals(&self) -> impl Iterator<Item = &Proposal<'a>> {
        self.proposals.iter().filter_map(|p| match p {
            ProposalOrRef::Proposal(proposal) => Some(proposal),
            ProposalOrRef::Reference(_) => None,
        })
    }

    /// How many proposals are known by their hash only.
    pub fn references(&self) -> usize {
        self.proposals
            .iter()
            .filter(|p| matches!(p, ProposalOrRef::Reference(_)))
            .count()
    }

    /// An external commit has a path, one ExternalInit, at most one Remove, and else pre-shared keys only.
    /// References stay permitted: draft-ietf-mls-extensions lets it commit the SelfRemoves of others.
    fn fits_newcomer(&self) -> bool {
        let mut inits = 0_usize;
        let mut removes = 0_usize;
        let mut others = 0_usize;
        for proposal in self.inline_proposals() {
            let counter = match proposal {
                Proposal::ExternalInit { .. } => &mut inits,
                Proposal::Remove { .. } => &mut removes,
                Proposal::PreSharedKey(_) => continue,
                _ => &mut others,
            };
            *counter = counter.saturating_add(1);
        }
        self.path.is_some() && inits == 1 && removes <= 1 && others == 0
    }
}

/// The committer's new leaf, and new keys from there to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdatePath<'a> {
    /// The new leaf; its source is commit.
    pub leaf_node: LeafNode<'a>,
    /// The nodes above it, upwards.
    pub nodes: Vec<UpdatePathNode<'a>>,
}

/// One node of an UpdatePath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdatePathNode<'a> {
    /// The node's new HPKE public key.
    pub encryption_key: &'a [u8],
    /// To how many keys its path secret is sealed.
    pub recipients: usize,
}

impl<'a> UpdatePath<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let leaf_node = LeafNode::read(reader)?;
        if !matches!(leaf_node.payload.source, LeafNodeSource::Commit { .. }) {
            return Err(ParseError::Contradiction(
                "the leaf of an UpdatePath has another source than commit",
            ));
        }
        let nodes = reader.vector("nodes of a path", MAX_PATH_NODES, |r| {
            Ok(UpdatePathNode {
                encryption_key: r.opaque()?,
                recipients: read_ciphertexts(r)?,
            })
        })?;
        Ok(Self { leaf_node, nodes })
    }
}

/// Counts HPKECiphertexts and keeps none: there is one for each member of an unmerged subtree.
fn read_ciphertexts(reader: &mut Reader<'_>) -> Result<usize, ParseError> {
    let mut inner = Reader::new(reader.opaque()?);
    let mut count = 0_usize;
    while !inner.is_empty() {
        inner.opaque()?;
        inner.opaque()?;
        count = count.saturating_add(1);
    }
    Ok(count)
}
