//! Certificates of identities (X.509, RFC 5280), as MLS has them in credentials (RFC 9420,
//! 5.3): asking for one, and whether one that was issued is right.
//!
//! Whether one was revoked is not known here: that takes a network.

mod csr;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mlskeyd_protocol::limits::MAX_CREDENTIAL;
use mlskeyd_protocol::v1::{Bytes, SignatureScheme};
use pki_types::pem::PemObject;
use pki_types::{CertificateDer, UnixTime};
use x509_cert::Certificate;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::db::rfc4519::CN;
use x509_cert::der::oid::db::rfc5912::{ID_EC_PUBLIC_KEY, SECP_256_R_1, SECP_384_R_1};
use x509_cert::der::oid::db::rfc8410::ID_ED_25519;
use x509_cert::der::{Any, Decode, Encode};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{KeyUsage, SubjectAltName};
use x509_cert::spki::{ObjectIdentifier, SubjectPublicKeyInfoOwned};

use crate::attest::{Roots, verify_chain};

pub(crate) use csr::{Certified, CsrError, Request, pem};

/// Most certificates of a credential.
const MAX_CHAIN: usize = 8;

/// Longest certificate, in bytes, and longest name of an issuer, in characters.
const MAX_CERTIFICATE: usize = MAX_CREDENTIAL;
const MAX_ISSUER: usize = 1024;

/// Most different names in a certificate.
const MAX_NAMES: usize = 16;

/// emailAddress (PKCS #9).
const EMAIL_ADDRESS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.1");

/// Longest name in a certificate, in bytes.
const MAX_CERTIFIED: usize = 255;

/// A certificate that has no more than so many seconds left is to be renewed.
pub(crate) const RENEW_WITHIN: u64 = 30 * 24 * 60 * 60;

/// Longest chain in PEM, in bytes: it is a third longer than what it holds, and may have words
/// around that.
pub(crate) const MAX_PEM: usize = MAX_CREDENTIAL.saturating_mul(4);

/// The certificates that are written in PEM, in DER.
///
/// # Errors
/// What is wrong with it, for a person.
pub(crate) fn chain(pem: &[u8]) -> Result<Vec<Bytes>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem);
    let certificates = certificates.map(|it| it.map(|der| Bytes::from(der.as_ref())));
    let chain: Result<Vec<Bytes>, _> = certificates.collect();
    let chain = chain.map_err(|error| format!("it is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("there is no certificate in it".to_owned());
    }
    Ok(chain)
}

/// A certificate that leads to a pinned issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Issued {
    /// What its key signs.
    pub(crate) scheme: SignatureScheme,
    /// Its key, as MLS writes it.
    pub(crate) public_key: Vec<u8>,
    /// The names in it: the subject's common names and addresses, and alternative names.
    pub(crate) names: BTreeSet<String>,
    /// Until when it is valid, in seconds since 1970.
    pub(crate) ends: u64,
    /// Who issued it, as RFC 4514 writes names.
    pub(crate) issuer: String,
    /// Its serial number, in hexadecimal.
    pub(crate) serial: String,
}

impl Issued {
    /// All its names, for a person.
    pub(crate) fn named(&self) -> String {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        names.join(", ")
    }
}

/// Why a chain of certificates is none for an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateError {
    /// One cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// There are none, or too many.
    #[error("a credential has 1 to {MAX_CHAIN} certificates, the identity's own first")]
    Count,
    /// It does not lead to a pinned issuer.
    #[error("the certificate leads to no issuer that the configuration pins: {0}")]
    NoWay(String),
    /// There are others, or they stand in another order.
    #[error("the certificates are not each issued by the next one, up to the pinned issuer")]
    Order,
    /// Its key is none that identities have.
    #[error("the certificate's key is of a kind that identities do not have")]
    Key,
    /// It is not for signatures.
    #[error("the certificate's key usage does not say digitalSignature")]
    Usage,
    /// It has alternative names of other kinds.
    #[error("the certificate has alternative names that are no address, host or URI")]
    Kind,
    /// There is no name in it, or one that cannot be one.
    #[error(
        "the certificate has no name, more than {MAX_NAMES}, or one that is no text of 1 to {MAX_CERTIFIED} bytes"
    )]
    Name,
}

/// Is the first certificate one that a pinned issuer issued, by way of those that follow?
///
/// # Errors
/// [`CertificateError`].
pub(crate) fn check(
    chain: &[Bytes],
    issuers: &Roots,
    now: SystemTime,
) -> Result<Issued, CertificateError> {
    let Some((own, above)) = chain.split_first().filter(|_| chain.len() <= MAX_CHAIN) else {
        return Err(CertificateError::Count);
    };
    let issued = read(own)?;
    let above: Vec<&[u8]> = above.iter().map(|der| &**der).collect();
    let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let now = UnixTime::since_unix_epoch(now);
    let way = verify_chain(own, &above, issuers, now).map_err(CertificateError::NoWay)?;
    // Each certifies the one before (RFC 9420, 5.3); the issuer itself may be the last.
    let beyond = above.get(way.len()..).unwrap_or_default();
    let is_issuer = |last: &&[u8]| issuers.has(last);
    if !above.starts_with(&way.iter().map(Vec::as_slice).collect::<Vec<_>>())
        || beyond.len() > 1
        || !beyond.iter().all(is_issuer)
    {
        return Err(CertificateError::Order);
    }
    Ok(issued)
}

/// What a certificate says, whoever issued it.
///
/// # Errors
/// [`CertificateError`].
pub(crate) fn read(der: &[u8]) -> Result<Issued, CertificateError> {
    // The time that reading takes grows with the square of the length.
    if der.len() > MAX_CERTIFICATE {
        return Err(CertificateError::Unreadable("it is too long".to_owned()));
    }
    let unreadable = |error: x509_cert::der::Error| CertificateError::Unreadable(error.to_string());
    let certificate = Certificate::from_der(der).map_err(unreadable)?;
    let tbs = &certificate.tbs_certificate;
    let (scheme, public_key) = key_of(&tbs.subject_public_key_info).ok_or(CertificateError::Key)?;
    let usage: Option<(bool, KeyUsage)> = tbs.get().map_err(unreadable)?;
    if usage.is_some_and(|(_, usage)| !usage.digital_signature()) {
        return Err(CertificateError::Usage);
    }
    let alternative: Option<(bool, SubjectAltName)> = tbs.get().map_err(unreadable)?;
    let mut names = subject_names(&certificate).ok_or(CertificateError::Name)?;
    if let Some((_, SubjectAltName(alternative))) = alternative {
        // A name of another kind may be whoever's: nobody here could judge it.
        let alternative = alternative.iter().map(alternative_name);
        let alternative: Option<BTreeSet<String>> = alternative.collect();
        names.extend(alternative.ok_or(CertificateError::Kind)?);
    }
    let fits = |name: &String| !name.is_empty() && name.len() <= MAX_CERTIFIED;
    if names.is_empty() || names.len() > MAX_NAMES || !names.iter().all(fits) {
        return Err(CertificateError::Name);
    }
    Ok(Issued {
        scheme,
        public_key,
        names,
        ends: tbs.validity.not_after.to_unix_duration().as_secs(),
        issuer: tbs.issuer.to_string().chars().take(MAX_ISSUER).collect(),
        serial: hex::encode(tbs.serial_number.as_bytes()),
    })
}

fn alternative_name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::Rfc822Name(name)
        | GeneralName::DnsName(name)
        | GeneralName::UniformResourceIdentifier(name) => Some(name.to_string()),
        _ => None,
    }
}

/// The subject's names by which apps may show it: common names and addresses. `None`: one is
/// no text that can be read here.
fn subject_names(certificate: &Certificate) -> Option<BTreeSet<String>> {
    let attributes = certificate.tbs_certificate.subject.0.iter();
    let attributes = attributes.flat_map(|relative| relative.0.iter());
    let names = attributes.filter(|attribute| [CN, EMAIL_ADDRESS].contains(&attribute.oid));
    names.map(|attribute| text(&attribute.value)).collect()
}

fn text(value: &Any) -> Option<String> {
    let utf8 = value.decode_as::<Utf8StringRef<'_>>();
    let utf8 = utf8.map(|text| text.to_string());
    let printable = || {
        let text = value.decode_as::<PrintableStringRef<'_>>();
        text.map(|text| text.to_string())
    };
    let ia5 = || {
        let text = value.decode_as::<Ia5StringRef<'_>>();
        text.map(|text| text.to_string())
    };
    utf8.or_else(|_| printable()).or_else(|_| ia5()).ok()
}

/// A key, as MLS writes it (RFC 9420, 5.1.1).
fn key_of(info: &SubjectPublicKeyInfoOwned) -> Option<(SignatureScheme, Vec<u8>)> {
    let bits = info.subject_public_key.as_bytes()?;
    let curve =
        || -> Option<ObjectIdentifier> { info.algorithm.parameters.as_ref()?.decode_as().ok() };
    let (scheme, length) = match info.algorithm.oid {
        ID_ED_25519 => (SignatureScheme::Ed25519, 32),
        ID_EC_PUBLIC_KEY => match curve()? {
            SECP_256_R_1 => (SignatureScheme::EcdsaP256Sha256, 65),
            SECP_384_R_1 => (SignatureScheme::EcdsaP384Sha384, 97),
            _ => return None,
        },
        _ => return None,
    };
    // SEC1 knows compressed points, too; MLS does not.
    (bits.len() == length).then(|| (scheme, bits.to_vec()))
}

/// The same the other way round.
fn info_of(
    scheme: SignatureScheme,
    public_key: &[u8],
) -> x509_cert::der::Result<SubjectPublicKeyInfoOwned> {
    let (oid, curve) = match scheme {
        SignatureScheme::Ed25519 => (ID_ED_25519, None),
        SignatureScheme::EcdsaP256Sha256 => (ID_EC_PUBLIC_KEY, Some(SECP_256_R_1)),
        SignatureScheme::EcdsaP384Sha384 => (ID_EC_PUBLIC_KEY, Some(SECP_384_R_1)),
    };
    let parameters = curve
        .map(|curve| Any::from_der(&curve.to_der()?))
        .transpose()?;
    Ok(SubjectPublicKeyInfoOwned {
        algorithm: x509_cert::spki::AlgorithmIdentifierOwned { oid, parameters },
        subject_public_key: x509_cert::der::asn1::BitString::from_bytes(public_key)?,
    })
}
