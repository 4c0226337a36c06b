//! Requests for certificates (PKCS#10, RFC 2986), built here and not by whoever wants one: so
//! nothing else is signed under that name.

use mlskeyd_protocol::v1::SignatureScheme;
use x509_cert::attr::{Attribute, AttributeTypeAndValue};
use x509_cert::der::asn1::{BitString, Ia5String, OctetString, SetOfVec, Utf8StringRef};
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::oid::db::rfc4519::CN;
use x509_cert::der::oid::db::rfc5912::{ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384};
use x509_cert::der::oid::db::rfc8410::ID_ED_25519;
use x509_cert::der::pem::{LineEnding, PemLabel};
use x509_cert::der::{Any, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{KeyUsage, KeyUsages, SubjectAltName};
use x509_cert::name::{RdnSequence, RelativeDistinguishedName};
use x509_cert::request::{CertReq, CertReqInfo, ExtensionReq, Version};
use x509_cert::spki::AlgorithmIdentifierOwned;

use super::{MAX_CERTIFIED, info_of};

/// A name that a certificate can have: printable ASCII, 1 to 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certified(String);

/// Why there is no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CsrError {
    /// The name is none.
    #[error("the name in a certificate is 1 to {MAX_CERTIFIED} bytes of printable ASCII")]
    Name,
    /// It cannot be encoded.
    #[error("the request cannot be encoded: {0}")]
    Encoding(String),
}

impl From<x509_cert::der::Error> for CsrError {
    fn from(error: x509_cert::der::Error) -> Self {
        Self::Encoding(error.to_string())
    }
}

impl Certified {
    /// # Errors
    /// [`CsrError::Name`].
    pub(crate) fn new(name: &str) -> Result<Self, CsrError> {
        let is_fine = !name.is_empty()
            && name.len() <= MAX_CERTIFIED
            && name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() || byte == b' ');
        is_fine.then(|| Self(name.to_owned())).ok_or(CsrError::Name)
    }

    fn alternative(&self) -> x509_cert::der::Result<GeneralName> {
        let name = Ia5String::new(&self.0)?;
        Ok(if self.0.contains('@') {
            GeneralName::Rfc822Name(name)
        } else if self.0.contains(':') {
            GeneralName::UniformResourceIdentifier(name)
        } else {
            GeneralName::DnsName(name)
        })
    }
}

/// A request that is not signed yet.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    info: CertReqInfo,
    scheme: SignatureScheme,
    to_sign: Vec<u8>,
}

impl Request {
    /// For a key, as MLS writes it, and a name.
    ///
    /// # Errors
    /// [`CsrError::Encoding`].
    pub(crate) fn new(
        scheme: SignatureScheme,
        public_key: &[u8],
        certified: &Certified,
    ) -> Result<Self, CsrError> {
        let common = AttributeTypeAndValue {
            oid: CN,
            value: Any::from(Utf8StringRef::new(&certified.0)?),
        };
        let subject = RdnSequence(vec![RelativeDistinguishedName(SetOfVec::try_from(vec![
            common,
        ])?)]);
        let usage = KeyUsage(KeyUsages::DigitalSignature.into());
        let names = SubjectAltName(vec![certified.alternative()?]);
        let wanted = ExtensionReq(vec![extension(&usage, true)?, extension(&names, false)?]);
        let attributes: SetOfVec<Attribute> = SetOfVec::try_from(vec![wanted.try_into()?])?;
        let info = CertReqInfo {
            version: Version::V1,
            subject,
            public_key: info_of(scheme, public_key)?,
            attributes,
        };
        Ok(Self {
            to_sign: info.to_der()?,
            info,
            scheme,
        })
    }

    /// CertificationRequestInfo, in DER: it begins with a SEQUENCE, as no SignContent of MLS
    /// does that has a label of MLS.
    pub(crate) fn to_sign(&self) -> &[u8] {
        &self.to_sign
    }

    /// CertificationRequest, in DER, with a signature as MLS writes it: X.509 writes it so, too.
    ///
    /// # Errors
    /// [`CsrError::Encoding`].
    pub(crate) fn signed(self, signature: &[u8]) -> Result<Vec<u8>, CsrError> {
        let oid = match self.scheme {
            SignatureScheme::Ed25519 => ID_ED_25519,
            SignatureScheme::EcdsaP256Sha256 => ECDSA_WITH_SHA_256,
            SignatureScheme::EcdsaP384Sha384 => ECDSA_WITH_SHA_384,
        };
        let request = CertReq {
            info: self.info,
            algorithm: AlgorithmIdentifierOwned {
                oid,
                parameters: None,
            },
            signature: BitString::from_bytes(signature)?,
        };
        Ok(request.to_der()?)
    }
}

fn extension<E: AssociatedOid + Encode>(
    content: &E,
    critical: bool,
) -> x509_cert::der::Result<Extension> {
    Ok(Extension {
        extn_id: E::OID,
        critical,
        extn_value: OctetString::new(content.to_der()?)?,
    })
}

/// A CertificationRequest as PEM (RFC 7468).
pub(crate) fn pem(der: &[u8]) -> String {
    let text = x509_cert::der::pem::encode_string(CertReq::PEM_LABEL, LineEnding::LF, der);
    // That fails only without memory.
    text.unwrap_or_default()
}
