//! Reads what an app wants signed or opened, so that it can be judged: the structures of RFC 9420 as they come to a
//! Signer ([`Signable`]) and to an HPKE open ([`Openable`]), and what they tell about keys in custody ([`binding`]).
//!
//! All of it is pure, borrows from its input, and is total: what does not parse to the last byte, or contradicts
//! itself, is `Unknown` with a reason. No structure of MLS holds itself, so nothing here recurses; counts are bounded
//! by constants beside each parser.

pub mod binding;
mod extension;
mod framed_content;
mod group;
mod key_package;
mod leaf_node;
mod openable;
mod proposal;
mod reader;
mod signable;
mod targeted_message;
mod verify;

pub use extension::{Extension, ExtensionType, Extensions, RequiredCapabilities};
pub use framed_content::{
    ApplicationData, Body, Commit, FramedContent, ProposalOrRef, RawContent, Sender, UpdatePath,
    UpdatePathNode, WireFormat,
};
pub use group::{GroupContext, GroupInfoTbs};
pub use key_package::{KeyPackage, KeyPackageTbs};
pub use leaf_node::{
    Capabilities, Credential, CredentialBody, LeafNode, LeafNodePayload, LeafNodeSource,
    LeafNodeTbs, Lifetime, TreePosition, credential_bytes,
};
pub use openable::Openable;
pub use proposal::{FIRST_PRIVATE_USE, PreSharedKeyId, Proposal, PskOrigin};
pub use reader::ParseError;
pub use signable::{AppContent, OwnLeaf, Signable, Unknown, proposal_reference_content};
pub use targeted_message::TargetedMessageTbs;
pub use verify::{hash_of_cipher_suite, kem_of_cipher_suite, scheme_of_cipher_suite, verify};

#[cfg(test)]
mod tests;
