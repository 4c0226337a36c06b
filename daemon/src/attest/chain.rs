//! From a certificate to a root that the verifier trusts.
//!
//! The certificates here belong to chips, not to servers. Whether one was revoked is not known here: that
//! takes a network.

use pki_types::pem::PemObject;
use pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use super::signatures::ALGORITHMS;

/// Most certificates between a chip's and a root.
pub const MAX_INTERMEDIATES: usize = 6;

/// anyExtendedKeyUsage, 2.5.29.37.0: what is restricted to other uses does not do.
const ANY_USE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];

/// The certificates that the verifier trusts, whoever issued them.
#[derive(Clone, Debug)]
pub struct Roots(Vec<CertificateDer<'static>>);

/// Why a file names no roots.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    /// It is not PEM.
    #[error("it is not PEM: {0}")]
    Pem(String),
    /// There is none in it.
    #[error("there is no certificate in it")]
    None,
    /// One of them cannot be read.
    #[error("its certificate number {number} cannot be read: {why}")]
    Unreadable {
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        why: String,
    },
}

impl Roots {
    /// Reads certificates in PEM.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_pem(pem: &[u8]) -> Result<Self, RootsError> {
        let mut roots = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| RootsError::Pem(error.to_string()))?;
            if let Err(error) = webpki::anchor_from_trusted_cert(&certificate) {
                return Err(RootsError::Unreadable {
                    number: roots.len().saturating_add(1),
                    why: error.to_string(),
                });
            }
            roots.push(certificate);
        }
        if roots.is_empty() {
            return Err(RootsError::None);
        }
        Ok(Self(roots))
    }

    /// Is this certificate one of them?
    pub(crate) fn has(&self, der: &[u8]) -> bool {
        self.0.iter().any(|root| root.as_ref() == der)
    }

    fn anchors(&self) -> Vec<TrustAnchor<'_>> {
        let anchor = |root| webpki::anchor_from_trusted_cert(root).ok();
        self.0.iter().filter_map(anchor).collect()
    }
}

/// Why a certificate leads to no root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ChainError {
    /// It cannot be read.
    Unreadable(String),
    /// It, or one above it, is not valid at that time.
    Validity(&'static str),
    /// It, or one above it, is for another use.
    Usage,
    /// There is no way from it to a root.
    NoWay(String),
}

impl From<webpki::Error> for ChainError {
    fn from(error: webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::CertNotValidYet { .. } => Self::Validity("it begins later"),
            E::CertExpired { .. } => Self::Validity("it has ended"),
            E::InvalidCertValidity => Self::Validity("it ends before it begins"),
            E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => Self::Usage,
            E::UnknownIssuer => Self::NoWay("nobody known issued it".to_owned()),
            E::InvalidSignatureForPublicKey => Self::NoWay("a signature is wrong".to_owned()),
            other => Self::NoWay(other.to_string()),
        }
    }
}

/// Finds the way from a certificate to a root, and answers the certificate's `SubjectPublicKeyInfo`.
///
/// The certificate has to be for the use with this object identifier; those above it, if they are
/// restricted to any.
pub(super) fn verify(
    certificate: &[u8],
    intermediates: &[&[u8]],
    roots: &Roots,
    usage: &'static [u8],
    now: UnixTime,
) -> Result<Vec<u8>, ChainError> {
    let certificate = CertificateDer::from(certificate);
    let end = read(&certificate)?;
    let anchors = roots.anchors();
    let intermediates = whole(intermediates);

    let whole = KeyUsage::required_if_present(usage);
    let path =
        end.verify_for_usage(ALGORITHMS, &anchors, &intermediates, now, whole, None, None)?;
    // Once more from its issuer, which is trusted now: the use is required of the certificate itself.
    let issuer = [issuer_of(&path)?];
    let own = KeyUsage::required(usage);
    end.verify_for_usage(ALGORITHMS, &issuer, &[], now, own, None, None)?;
    Ok(end.subject_public_key_info().to_vec())
}

/// Can a certificate be read, with nothing critical in it that is not known?
pub(super) fn check(certificate: &[u8]) -> Result<(), ChainError> {
    read(&CertificateDer::from(certificate)).map(|_| ())
}

/// Is a certificate one that this issuer itself issued, valid now, and no authority? Answers its
/// `SubjectPublicKeyInfo`. Whether the issuer is to be trusted is not looked at.
pub(super) fn verify_issued_by(
    certificate: &[u8],
    issuer: &[u8],
    now: UnixTime,
) -> Result<Vec<u8>, ChainError> {
    let (certificate, issuer) = (
        CertificateDer::from(certificate),
        CertificateDer::from(issuer),
    );
    let end = read(&certificate)?;
    let anchor = [webpki::anchor_from_trusted_cert(&issuer)?];
    let usage = KeyUsage::required_if_present(ANY_USE);
    end.verify_for_usage(ALGORITHMS, &anchor, &[], now, usage, None, None)?;
    Ok(end.subject_public_key_info().to_vec())
}

/// Finds the way from an authority to a root, or the authority among the roots: `issued` is a certificate
/// that it issued itself ([`verify_issued_by`]).
pub(super) fn verify_authority(
    issued: &[u8],
    authority: &[u8],
    intermediates: &[&[u8]],
    roots: &Roots,
    now: UnixTime,
) -> Result<(), ChainError> {
    if roots.has(authority) {
        return Ok(());
    }
    let issued = CertificateDer::from(issued);
    let end = read(&issued)?;
    let anchors = roots.anchors();
    let mut above = vec![CertificateDer::from(authority)];
    above.extend(whole(intermediates));
    // Another one of that name may have issued the same certificate: it is not asked about.
    let through_authority = |path: &VerifiedPath<'_>| match path.intermediate_certificates().next()
    {
        Some(issuer) if issuer.der().as_ref() == authority => Ok(()),
        _ => Err(webpki::Error::UnknownIssuer),
    };
    let usage = KeyUsage::required_if_present(ANY_USE);
    end.verify_for_usage(
        ALGORITHMS,
        &anchors,
        &above,
        now,
        usage,
        None,
        Some(&through_authority),
    )?;
    Ok(())
}

/// Finds the way to a root from a certificate that is no authority by itself.
pub(super) fn verify_end(
    certificate: &[u8],
    intermediates: &[&[u8]],
    roots: &Roots,
    now: UnixTime,
) -> Result<(), ChainError> {
    way_of_end(certificate, intermediates, roots, now).map(|_| ())
}

fn way_of_end(
    certificate: &[u8],
    intermediates: &[&[u8]],
    roots: &Roots,
    now: UnixTime,
) -> Result<Vec<Vec<u8>>, ChainError> {
    let certificate = CertificateDer::from(certificate);
    let end = read(&certificate)?;
    let (anchors, above) = (roots.anchors(), whole(intermediates));
    let usage = KeyUsage::required_if_present(ANY_USE);
    let path = end.verify_for_usage(ALGORITHMS, &anchors, &above, now, usage, None, None)?;
    let way = path.intermediate_certificates();
    Ok(way.map(|issuer| issuer.der().to_vec()).collect())
}

/// The same for a certificate that is no chip's.
///
/// Answers the certificates on the way, without the two at its ends.
pub(crate) fn verify_chain(
    certificate: &[u8],
    intermediates: &[&[u8]],
    roots: &Roots,
    now: UnixTime,
) -> Result<Vec<Vec<u8>>, String> {
    let verified = way_of_end(certificate, intermediates, roots, now);
    verified.map_err(|error| match error {
        ChainError::Unreadable(why) | ChainError::NoWay(why) => why,
        ChainError::Validity(why) => why.to_owned(),
        ChainError::Usage => "it is for another use".to_owned(),
    })
}

fn read<'a>(certificate: &'a CertificateDer<'_>) -> Result<EndEntityCert<'a>, ChainError> {
    EndEntityCert::try_from(certificate).map_err(|error| ChainError::Unreadable(error.to_string()))
}

fn whole<'a>(certificates: &[&'a [u8]]) -> Vec<CertificateDer<'a>> {
    let certificates = certificates.iter();
    certificates.map(|der| CertificateDer::from(*der)).collect()
}

fn issuer_of(path: &VerifiedPath<'_>) -> Result<TrustAnchor<'static>, webpki::Error> {
    match path.intermediate_certificates().next() {
        Some(issuer) => Ok(webpki::anchor_from_trusted_cert(&issuer.der())?.to_owned()),
        None => Ok(path.anchor().to_owned()),
    }
}
