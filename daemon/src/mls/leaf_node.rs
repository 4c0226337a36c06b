//! LeafNode and LeafNodeTBS (RFC 9420 section 7.2), with Credential and Capabilities.

use mlskeyd_protocol::app_content::write_opaque;
use mlskeyd_protocol::v1;

use super::extension::Extensions;
use super::reader::{ParseError, Reader};
use super::signable::{LEAF_NODE_LABEL, sign_content};

/// Certificate chains are short.
const MAX_CERTIFICATES: usize = 32;
/// There are no more values of a u16.
const MAX_CAPABILITIES: usize = 65_536;

/// A member's credential (RFC 9420 section 5.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential<'a> {
    /// The whole structure as it is encoded: what an identity pins.
    pub raw: &'a [u8],
    /// What it says.
    pub body: CredentialBody<'a>,
}

/// What a credential says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialBody<'a> {
    /// Type `basic`: a bare name.
    Basic {
        /// The name, by the application's convention.
        identity: &'a [u8],
    },
    /// Type `x509`: a chain, at least one certificate.
    X509 {
        /// DER, the member's own certificate first.
        certificates: Vec<&'a [u8]>,
    },
}

impl<'a> Credential<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let (body, raw) = reader.with_raw(|r| match r.u16()? {
            1 => Ok(CredentialBody::Basic {
                identity: r.opaque()?,
            }),
            2 => {
                let certificates = r.vector("certificates", MAX_CERTIFICATES, Reader::opaque)?;
                if certificates.is_empty() {
                    return Err(ParseError::Contradiction(
                        "an x509 credential holds no certificate",
                    ));
                }
                Ok(CredentialBody::X509 { certificates })
            }
            value => Err(ParseError::Unsupported {
                what: "credential type",
                value,
            }),
        })?;
        Ok(Self { raw, body })
    }
}

/// A pinned credential as MLS encodes it, to be compared with [`Credential::raw`]. `None` if it is too long to be encoded.
pub fn credential_bytes(credential: &v1::Credential) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match credential {
        v1::Credential::Basic(identity) => {
            out.extend(1_u16.to_be_bytes());
            write_opaque(&mut out, identity)?;
        }
        v1::Credential::X509(certificates) => {
            out.extend(2_u16.to_be_bytes());
            let mut chain = Vec::new();
            for certificate in certificates {
                write_opaque(&mut chain, certificate)?;
            }
            write_opaque(&mut out, &chain)?;
        }
    }
    Some(out)
}

/// What a client says it can do (RFC 9420 section 7.2). The numbers are those of the IANA registries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Protocol versions.
    pub versions: Vec<u16>,
    /// Cipher suites.
    pub cipher_suites: Vec<u16>,
    /// Extension types beside the default ones.
    pub extensions: Vec<u16>,
    /// Proposal types beside the default ones.
    pub proposals: Vec<u16>,
    /// Credential types.
    pub credentials: Vec<u16>,
}

impl Capabilities {
    fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let mut list = || reader.vector("capabilities", MAX_CAPABILITIES, Reader::u16);
        Ok(Self {
            versions: list()?,
            cipher_suites: list()?,
            extensions: list()?,
            proposals: list()?,
            credentials: list()?,
        })
    }
}

/// When a KeyPackage may be used: seconds since 1970-01-01 UTC, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The first second.
    pub not_before: u64,
    /// The last second; never before `not_before`.
    pub not_after: u64,
}

impl Lifetime {
    fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let lifetime = Self {
            not_before: reader.u64()?,
            not_after: reader.u64()?,
        };
        if lifetime.not_before > lifetime.not_after {
            return Err(ParseError::Contradiction(
                "a lifetime ends before it begins",
            ));
        }
        Ok(lifetime)
    }
}

/// How a leaf came into its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafNodeSource<'a> {
    /// In a KeyPackage, or as the first leaf of a new group.
    KeyPackage(Lifetime),
    /// By an Update proposal.
    Update,
    /// By the UpdatePath of a commit.
    Commit {
        /// The hash of the parent node; empty if there is none.
        parent_hash: &'a [u8],
    },
}

/// Where in which tree a leaf is: the end of a LeafNodeTBS whose source is update or commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreePosition<'a> {
    /// The group's id, of any length.
    pub group_id: &'a [u8],
    /// The leaf's index, counted in leaves from the left.
    pub leaf_index: u32,
}

/// What LeafNode and LeafNodeTBS share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafNodePayload<'a> {
    /// These fields as they are encoded.
    raw: &'a [u8],
    /// The HPKE public key: 32 bytes for X25519, an uncompressed SEC1 point for the NIST curves.
    pub encryption_key: &'a [u8],
    /// The signature public key, encoded as [`super::verify`] takes it.
    pub signature_key: &'a [u8],
    /// Who the member says it is.
    pub credential: Credential<'a>,
    /// What the client can do.
    pub capabilities: Capabilities,
    /// How the leaf came into the tree.
    pub source: LeafNodeSource<'a>,
    /// Extensions of the leaf.
    pub extensions: Extensions<'a>,
}

impl<'a> LeafNodePayload<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let (mut payload, raw) = reader.with_raw(|r| {
            Ok(Self {
                raw: &[],
                encryption_key: r.opaque()?,
                signature_key: r.opaque()?,
                credential: Credential::read(r)?,
                capabilities: Capabilities::read(r)?,
                source: match r.u8()? {
                    1 => LeafNodeSource::KeyPackage(Lifetime::read(r)?),
                    2 => LeafNodeSource::Update,
                    3 => LeafNodeSource::Commit {
                        parent_hash: r.opaque()?,
                    },
                    value => {
                        return Err(ParseError::Unsupported {
                            what: "leaf node source",
                            value: value.into(),
                        });
                    }
                },
                extensions: Extensions::read(r)?,
            })
        })?;
        payload.raw = raw;
        Ok(payload)
    }
}

/// A leaf as others see it, signed by its member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafNode<'a> {
    /// What is signed.
    pub payload: LeafNodePayload<'a>,
    /// By `signature_key`, over [`LeafNode::signed_content`].
    pub signature: &'a [u8],
}

impl<'a> LeafNode<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        Ok(Self {
            payload: LeafNodePayload::read(reader)?,
            signature: reader.opaque()?,
        })
    }

    /// The SignContent that [`LeafNode::signature`] must sign. A leaf of source key_package is signed without a
    /// position, so `position` does not count there. `None` if the source needs a position and there is none.
    pub fn signed_content(&self, position: Option<TreePosition<'_>>) -> Option<Vec<u8>> {
        let mut tbs = self.payload.raw.to_vec();
        if !matches!(self.payload.source, LeafNodeSource::KeyPackage(_)) {
            let position = position?;
            write_opaque(&mut tbs, position.group_id)?;
            tbs.extend(position.leaf_index.to_be_bytes());
        }
        sign_content(LEAF_NODE_LABEL, &tbs)
    }
}

/// A leaf that is to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafNodeTbs<'a> {
    /// The leaf without a signature.
    pub payload: LeafNodePayload<'a>,
    /// Where it will be; absent exactly if the source is key_package.
    pub position: Option<TreePosition<'a>>,
}

impl<'a> LeafNodeTbs<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let payload = LeafNodePayload::read(reader)?;
        let position = match payload.source {
            LeafNodeSource::KeyPackage(_) => None,
            LeafNodeSource::Update | LeafNodeSource::Commit { .. } => Some(TreePosition {
                group_id: reader.opaque()?,
                leaf_index: reader.u32()?,
            }),
        };
        Ok(Self { payload, position })
    }
}
