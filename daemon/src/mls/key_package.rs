//! KeyPackage and KeyPackageTBS (RFC 9420 section 10).

use super::extension::{ExtensionType, Extensions};
use super::leaf_node::{LeafNode, LeafNodeSource, Lifetime};
use super::reader::{ParseError, Reader};
use super::signable::{KEY_PACKAGE_LABEL, sign_content};

/// A KeyPackage that is to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPackageTbs<'a> {
    /// These fields as they are encoded.
    raw: &'a [u8],
    /// The cipher suite's number.
    pub cipher_suite: u16,
    /// The HPKE public key that Welcomes are sealed to.
    pub init_key: &'a [u8],
    /// The leaf that its owner will have in the group; its source is key_package.
    pub leaf_node: LeafNode<'a>,
    /// The lifetime in the leaf.
    pub lifetime: Lifetime,
    /// Extensions of the KeyPackage, not of the leaf.
    pub extensions: Extensions<'a>,
}

impl<'a> KeyPackageTbs<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let (mut key_package, raw) = reader.with_raw(|r| {
            r.version()?;
            let cipher_suite = r.u16()?;
            let init_key = r.opaque()?;
            let leaf_node = LeafNode::read(r)?;
            let LeafNodeSource::KeyPackage(lifetime) = leaf_node.payload.source else {
                return Err(ParseError::Contradiction(
                    "the leaf of a KeyPackage has another source than key_package",
                ));
            };
            Ok(Self {
                raw: &[],
                cipher_suite,
                init_key,
                leaf_node,
                lifetime,
                extensions: Extensions::read(r)?,
            })
        })?;
        key_package.raw = raw;
        Ok(key_package)
    }

    /// Whether it may be used more than once, when no other KeyPackage is left (RFC 9420 section 16.8).
    pub fn last_resort(&self) -> bool {
        self.extensions
            .extension(ExtensionType::LAST_RESORT)
            .is_some()
    }
}

/// A signed KeyPackage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPackage<'a> {
    /// What is signed.
    pub tbs: KeyPackageTbs<'a>,
    /// By the leaf's `signature_key`, over [`KeyPackage::signed_content`].
    pub signature: &'a [u8],
}

impl<'a> KeyPackage<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        Ok(Self {
            tbs: KeyPackageTbs::read(reader)?,
            signature: reader.opaque()?,
        })
    }

    /// The SignContent that [`KeyPackage::signature`] must sign. `None` if it is too long to be encoded.
    pub fn signed_content(&self) -> Option<Vec<u8>> {
        sign_content(KEY_PACKAGE_LABEL, self.tbs.raw)
    }
}
