//! Why evidence is not believed.

use super::chain::ChainError;
use super::document::DocumentError;
use super::tpm::ParseError;

/// Why evidence is not believed. Each has a code of its own, which never changes. The text may quote the
/// evidence: not for a terminal as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The document is none.
    #[error("the evidence cannot be read: {0}")]
    Document(DocumentError),
    /// A part of it is not what it should be.
    #[error("{part} cannot be read: {why}")]
    Malformed {
        /// Which one.
        part: &'static str,
        /// What is wrong with it.
        why: ParseError,
    },
    /// It is an old one, or somebody else's.
    #[error("the evidence is for another nonce: it is old, or was made for another verifier")]
    OtherNonce,
    /// It does not even claim to be in hardware, or claims what cannot be.
    #[error("the key is not in hardware: its tier is lower, or the device has no keys of its kind")]
    NotInHardware,
    /// The EK's certificate is none.
    #[error("the EK's certificate cannot be read: {0}")]
    EkCertificate(String),
    /// Nobody who is trusted issued it.
    #[error("the EK's certificate does not lead to a trusted root: {0}")]
    EkChain(String),
    /// It is not valid now.
    #[error("the EK's certificate, or one above it, is not valid now: {0}")]
    EkValidity(&'static str),
    /// It is for another use.
    #[error("the EK's certificate, or one above it, is not for endorsement keys (2.23.133.8.1)")]
    EkUsage,
    /// It is for another key.
    #[error("the EK's certificate is for another key")]
    EkKey,
    /// The EK is not as manufacturers make them.
    #[error("the EK is not made by the default template for RSA 2048 or P-256")]
    EkTemplate,
    /// The AK may sign what the TPM did not say.
    #[error("the AK is not one that signs only what its TPM says: it lacks {missing}")]
    AkAttributes {
        /// The attributes that it lacks.
        missing: String,
    },
    /// The AK is of another kind.
    #[error("the AK is not an ECDSA key on P-256 with SHA-256")]
    AkKind,
    /// The AK did not sign it.
    #[error("the AK's signature is wrong")]
    AkSignature,
    /// No TPM made what was signed.
    #[error("what the AK signed was not made by a TPM")]
    NotGenerated,
    /// The TPM spoke of something else.
    #[error("what the AK signed is not the certification of a key: its type is {kind:#06x}")]
    NotACertification {
        /// What it is.
        kind: u16,
    },
    /// What is claimed is not what the TPM was told.
    #[error("the claims are not those that the TPM's certification was made for")]
    Claims,
    /// The TPM certified another key.
    #[error("the TPM certified another key")]
    OtherKey,
    /// The key may be elsewhere.
    #[error("the key may exist outside of the TPM: it lacks {missing}")]
    KeyAttributes {
        /// The attributes that it lacks.
        missing: String,
    },
    /// The key is for something else.
    #[error("the key's attributes are not those of its algorithm")]
    KeyUse,
    /// The certified key is not the claimed one.
    #[error("the key that the device certified has another public key than the claimed one")]
    KeyPublic,
    /// The certificate of the key is none.
    #[error("the attestation certificate of the key is none that a YubiKey makes: {0}")]
    SlotCertificate(String),
    /// Something else than F9 issued it.
    #[error("the key of the F9 certificate did not issue the attestation certificate: {0}")]
    SlotIssuer(String),
    /// It is not valid now.
    #[error("the attestation certificate of the key is not valid now: {0}")]
    SlotValidity(&'static str),
    /// It is for no slot that keys in custody are in.
    #[error("the attestation certificate is for none of the slots 9A, 9C, 9D, 9E and 82 to 95")]
    Slot,
    /// It does not say everything that it should.
    #[error("the attestation certificate of the key cannot be relied on: {what} {why}")]
    SlotExtension {
        /// What it is about.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The certificate of F9 is none.
    #[error("the F9 certificate cannot be read: {0}")]
    F9Certificate(String),
    /// Nobody who is trusted issued it, or it is no authority's.
    #[error("the F9 certificate does not lead to a trusted root: {0}")]
    F9Chain(String),
    /// It is not valid now.
    #[error("the F9 certificate, or one above it, is not valid now: {0}")]
    F9Validity(&'static str),
    /// It is for another use.
    #[error("the F9 certificate, or one above it, is restricted to a use that is not attestation")]
    F9Usage,
    /// The key did not sign the claims.
    #[error("the key did not sign these claims with these certificates")]
    KeySignature,
    /// The verifier's secret belongs to other evidence.
    #[error("the secret was made for other evidence")]
    OtherSecret,
    /// The response is none.
    #[error("the response cannot be read: {0}")]
    Response(DocumentError),
    /// The response belongs to other evidence.
    #[error("the response is for other evidence: it is old, or of another device")]
    OtherResponse,
    /// The response does not prove anything.
    #[error("the response is wrong: the AK was not shown to be in the TPM of the EK's certificate")]
    WrongResponse,
}

impl Refusal {
    /// Its code, for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Document(_) => "document",
            Self::Malformed { .. } => "malformed",
            Self::OtherNonce => "other-nonce",
            Self::NotInHardware => "not-in-hardware",
            Self::EkCertificate(_) => "ek-certificate",
            Self::EkChain(_) => "ek-chain",
            Self::EkValidity(_) => "ek-validity",
            Self::EkUsage => "ek-usage",
            Self::EkKey => "ek-key",
            Self::EkTemplate => "ek-template",
            Self::AkAttributes { .. } => "ak-attributes",
            Self::AkKind => "ak-kind",
            Self::AkSignature => "ak-signature",
            Self::NotGenerated => "not-generated",
            Self::NotACertification { .. } => "not-a-certification",
            Self::Claims => "claims",
            Self::OtherKey => "other-key",
            Self::KeyAttributes { .. } => "key-attributes",
            Self::KeyUse => "key-use",
            Self::KeyPublic => "key-public",
            Self::SlotCertificate(_) => "slot-certificate",
            Self::SlotIssuer(_) => "slot-issuer",
            Self::SlotValidity(_) => "slot-validity",
            Self::Slot => "slot",
            Self::SlotExtension { .. } => "slot-extension",
            Self::F9Certificate(_) => "f9-certificate",
            Self::F9Chain(_) => "f9-chain",
            Self::F9Validity(_) => "f9-validity",
            Self::F9Usage => "f9-usage",
            Self::KeySignature => "key-signature",
            Self::OtherSecret => "other-secret",
            Self::Response(_) => "response",
            Self::OtherResponse => "other-response",
            Self::WrongResponse => "wrong-response",
        }
    }
}

impl From<ChainError> for Refusal {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Unreadable(why) => Self::EkCertificate(why),
            ChainError::Validity(why) => Self::EkValidity(why),
            ChainError::Usage => Self::EkUsage,
            ChainError::NoWay(why) => Self::EkChain(why),
        }
    }
}
