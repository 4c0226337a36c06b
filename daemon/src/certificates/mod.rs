//! Certificates of identities (X.509, RFC 5280), as MLS has them in credentials (RFC 9420,
//! 5.3): asking for one, and whether one that was issued is right.
//!
//! Whether one was revoked is not known here: that takes a network.

mod csr;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mlskeyd_protocol::v1::{Bytes, SignatureScheme};
use pki_types::UnixTime;
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

/// Longest name in a certificate, in bytes.
const MAX_CERTIFIED: usize = 255;

/// A certificate that has no more than so many seconds left is to be renewed.
pub(crate) const RENEW_WITHIN: u64 = 30 * 24 * 60 * 60;

/// A certificate that leads to a pinned issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Issued {
    /// What its key signs.
    pub(crate) scheme: SignatureScheme,
    /// Its key, as MLS writes it.
    pub(crate) public_key: Vec<u8>,
    /// The names in it: alternative names, else common names.
    pub(crate) names: Vec<String>,
    /// Until when it is valid, in seconds since 1970.
    pub(crate) ends: u64,
    /// Its serial number, in hexadecimal.
    pub(crate) serial: String,
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
    #[error("the certificate has no name, or one that is no text of 1 to {MAX_CERTIFIED} bytes")]
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
    verify_chain(own, &above, issuers, now).map_err(CertificateError::NoWay)?;
    Ok(issued)
}

/// What a certificate says, whoever issued it.
///
/// # Errors
/// [`CertificateError`].
pub(crate) fn read(der: &[u8]) -> Result<Issued, CertificateError> {
    let unreadable = |error: x509_cert::der::Error| CertificateError::Unreadable(error.to_string());
    let certificate = Certificate::from_der(der).map_err(unreadable)?;
    let tbs = &certificate.tbs_certificate;
    let (scheme, public_key) = key_of(&tbs.subject_public_key_info).ok_or(CertificateError::Key)?;
    let usage: Option<(bool, KeyUsage)> = tbs.get().map_err(unreadable)?;
    if usage.is_some_and(|(_, usage)| !usage.digital_signature()) {
        return Err(CertificateError::Usage);
    }
    let alternative: Option<(bool, SubjectAltName)> = tbs.get().map_err(unreadable)?;
    let names: Vec<String> = match alternative {
        // A name of another kind may be whoever's: nobody here could judge it.
        Some((_, SubjectAltName(names))) => {
            let names = names.iter().map(alternative_name);
            names.collect::<Option<_>>().ok_or(CertificateError::Kind)?
        }
        None => common_names(&certificate).collect(),
    };
    let fits = |name: &String| !name.is_empty() && name.len() <= MAX_CERTIFIED;
    if names.is_empty() || !names.iter().all(fits) {
        return Err(CertificateError::Name);
    }
    Ok(Issued {
        scheme,
        public_key,
        names,
        ends: tbs.validity.not_after.to_unix_duration().as_secs(),
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

fn common_names(certificate: &Certificate) -> impl Iterator<Item = String> {
    let attributes = certificate.tbs_certificate.subject.0.iter();
    let attributes = attributes.flat_map(|relative| relative.0.iter());
    let common = attributes.filter(|attribute| attribute.oid == CN);
    common.filter_map(|attribute| text(&attribute.value))
}

fn text(value: &Any) -> Option<String> {
    let utf8 = value.decode_as::<Utf8StringRef<'_>>();
    let utf8 = utf8.map(|text| text.to_string());
    let printable = || {
        value
            .decode_as::<PrintableStringRef<'_>>()
            .map(|it| it.to_string())
    };
    let ia5 = || {
        value
            .decode_as::<Ia5StringRef<'_>>()
            .map(|it| it.to_string())
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
