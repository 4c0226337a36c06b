//! Proposals (RFC 9420 section 12.1) and the ids of pre-shared keys (section 8.4).

use super::extension::Extensions;
use super::key_package::KeyPackage;
use super::leaf_node::{LeafNode, LeafNodeSource};
use super::reader::{ParseError, Reader};
use mlskeyd_policies::Action;

/// A change that a commit makes. Large variants are boxed: a hostile list of small ones must not cost their size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proposal<'a> {
    /// Adds a member.
    Add(Box<KeyPackage<'a>>),
    /// Replaces the sender's leaf; its source is update.
    Update(Box<LeafNode<'a>>),
    /// Removes a member.
    Remove {
        /// The member's leaf index.
        removed: u32,
    },
    /// Mixes a pre-shared key into the next epoch.
    PreSharedKey(PreSharedKeyId<'a>),
    /// Ends the group and announces its successor.
    ReInit {
        /// The successor's id.
        group_id: &'a [u8],
        /// The successor's cipher suite.
        cipher_suite: u16,
        /// The successor's extensions.
        extensions: Extensions<'a>,
    },
    /// Lets a newcomer in by an external commit.
    ExternalInit {
        /// The encapsulated key.
        kem_output: &'a [u8],
    },
    /// Replaces the extensions of the group.
    GroupContextExtensions(Extensions<'a>),
    /// The sender leaves (draft-ietf-mls-extensions, type 0x000a, empty).
    SelfRemove,
    /// One of a type for private use (RFC 9420 section 17.4). What it does only those know who
    /// agreed on the type; OpenMLS and mls-rs write its content as `opaque<V>`.
    PrivateUse {
        /// The type: 0xf000 to 0xffff.
        proposal_type: u16,
        /// What the app made of it.
        content: &'a [u8],
    },
}

/// The first type for private use (RFC 9420 section 17.4); all that follow are, too.
pub const FIRST_PRIVATE_USE: u16 = 0xf000;

impl<'a> Proposal<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        Ok(match reader.u16()? {
            1 => Self::Add(Box::new(KeyPackage::read(reader)?)),
            2 => {
                let leaf_node = LeafNode::read(reader)?;
                if leaf_node.payload.source != LeafNodeSource::Update {
                    return Err(ParseError::Contradiction(
                        "the leaf of an Update has another source than update",
                    ));
                }
                Self::Update(Box::new(leaf_node))
            }
            3 => Self::Remove {
                removed: reader.u32()?,
            },
            4 => Self::PreSharedKey(PreSharedKeyId::read(reader)?),
            5 => {
                let group_id = reader.opaque()?;
                reader.version()?;
                Self::ReInit {
                    group_id,
                    cipher_suite: reader.u16()?,
                    extensions: Extensions::read(reader)?,
                }
            }
            6 => Self::ExternalInit {
                kem_output: reader.opaque()?,
            },
            7 => Self::GroupContextExtensions(Extensions::read(reader)?),
            0x000a => Self::SelfRemove,
            proposal_type @ FIRST_PRIVATE_USE.. => Self::PrivateUse {
                proposal_type,
                content: reader.opaque()?,
            },
            value => {
                return Err(ParseError::Unsupported {
                    what: "proposal type",
                    value,
                });
            }
        })
    }

    /// Its kind for policy and audit.
    pub fn action(&self) -> Action {
        match self {
            Self::Add(_) => Action::SignProposalAdd,
            Self::Update(_) => Action::SignProposalUpdate,
            Self::Remove { .. } => Action::SignProposalRemove,
            Self::PreSharedKey(_) => Action::SignProposalPreSharedKey,
            Self::ReInit { .. } => Action::SignProposalReInit,
            Self::ExternalInit { .. } => Action::SignProposalExternalInit,
            Self::GroupContextExtensions(_) => Action::SignProposalGroupContextExtensions,
            Self::SelfRemove => Action::SignProposalSelfRemove,
            Self::PrivateUse { .. } => Action::SignProposalPrivateUse,
        }
    }
}

/// The name of a pre-shared key, which itself never passes through here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreSharedKeyId<'a> {
    /// Where the key comes from.
    pub origin: PskOrigin<'a>,
    /// Fresh for each use.
    pub nonce: &'a [u8],
}

/// Where a pre-shared key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PskOrigin<'a> {
    /// From outside MLS.
    External {
        /// The application's name for it.
        id: &'a [u8],
    },
    /// From an epoch of a group.
    Resumption {
        /// 1 application, 2 reinit, 3 branch.
        usage: u8,
        /// That group.
        group_id: &'a [u8],
        /// That epoch.
        epoch: u64,
    },
}

impl<'a> PreSharedKeyId<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let origin = match reader.u8()? {
            1 => PskOrigin::External {
                id: reader.opaque()?,
            },
            2 => {
                let usage = reader.u8()?;
                if !(1..=3).contains(&usage) {
                    return Err(ParseError::Unsupported {
                        what: "resumption PSK usage",
                        value: usage.into(),
                    });
                }
                PskOrigin::Resumption {
                    usage,
                    group_id: reader.opaque()?,
                    epoch: reader.u64()?,
                }
            }
            value => {
                return Err(ParseError::Unsupported {
                    what: "PSK type",
                    value: value.into(),
                });
            }
        };
        Ok(Self {
            origin,
            nonce: reader.opaque()?,
        })
    }
}
