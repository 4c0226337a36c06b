//! TargetedMessageTBS (draft-ietf-mls-targeted-messages), as OpenMLS has it under its feature of that name.

use super::reader::{ParseError, Reader};

/// `mls_targeted_message`.
const WIRE_FORMAT: u16 = 6;

/// A message to one member of a group. Its text is not in it, only the hash of what it is encrypted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetedMessageTbs<'a> {
    /// The group.
    pub group_id: &'a [u8],
    /// The epoch.
    pub epoch: u64,
    /// The leaf index of the one that it is for.
    pub recipient_leaf_index: u32,
    /// Authenticated and not encrypted.
    pub authenticated_data: &'a [u8],
    /// The leaf index of the one that sends it.
    pub sender_leaf_index: u32,
    /// The encapsulated key.
    pub kem_output: &'a [u8],
    /// The hash of the ciphertext.
    pub ciphertext_hash: &'a [u8],
}

impl<'a> TargetedMessageTbs<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        reader.version()?;
        match reader.u16()? {
            WIRE_FORMAT => {}
            value => {
                return Err(ParseError::Unsupported {
                    what: "wire format",
                    value,
                });
            }
        }
        Ok(Self {
            group_id: reader.opaque()?,
            epoch: reader.u64()?,
            recipient_leaf_index: reader.u32()?,
            authenticated_data: reader.opaque()?,
            sender_leaf_index: reader.u32()?,
            kem_output: reader.opaque()?,
            ciphertext_hash: reader.opaque()?,
        })
    }
}
