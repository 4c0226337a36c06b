//! GroupContext (RFC 9420 section 8.1) and GroupInfoTBS (section 12.4.3).

use super::extension::Extensions;
use super::reader::{ParseError, Reader};

/// The state of a group in one epoch, as all members see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupContext<'a> {
    /// The cipher suite's number.
    pub cipher_suite: u16,
    /// The group's id.
    pub group_id: &'a [u8],
    /// The epoch.
    pub epoch: u64,
    /// The hash of the ratchet tree.
    pub tree_hash: &'a [u8],
    /// The hash over all commits so far; empty in a new group.
    pub confirmed_transcript_hash: &'a [u8],
    /// Extensions of the group.
    pub extensions: Extensions<'a>,
}

impl<'a> GroupContext<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        reader.version()?;
        Ok(Self {
            cipher_suite: reader.u16()?,
            group_id: reader.opaque()?,
            epoch: reader.u64()?,
            tree_hash: reader.opaque()?,
            confirmed_transcript_hash: reader.opaque()?,
            extensions: Extensions::read(reader)?,
        })
    }
}

/// A GroupInfo that is to be signed: what a newcomer learns about a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfoTbs<'a> {
    /// The group as the newcomer enters it.
    pub group_context: GroupContext<'a>,
    /// Extensions of the GroupInfo, as the ratchet tree or `external_pub`.
    pub extensions: Extensions<'a>,
    /// The MAC of the epoch.
    pub confirmation_tag: &'a [u8],
    /// The leaf index of the member who signs.
    pub signer: u32,
}

impl<'a> GroupInfoTbs<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        Ok(Self {
            group_context: GroupContext::read(reader)?,
            extensions: Extensions::read(reader)?,
            confirmation_tag: reader.opaque()?,
            signer: reader.u32()?,
        })
    }
}
