//! The endorsement key: the one key of a TPM that its manufacturer certified. It only decrypts.

use p256::pkcs8::EncodePublicKey as _;
use pki_types::CertificateDer;
use rsa::BoxedUint;
use rsa::pkcs8::EncodePublicKey as _;
use webpki::EndEntityCert;

use super::EkKind;
use super::public::{Public, PublicKey, Scheme, Symmetric, attribute};

/// The attributes of the default templates (TCG EK Credential Profile, B.3).
pub const ATTRIBUTES: u32 = attribute::FIXED_TPM
    | attribute::FIXED_PARENT
    | attribute::SENSITIVE_DATA_ORIGIN
    | attribute::ADMIN_WITH_POLICY
    | attribute::RESTRICTED
    | attribute::DECRYPT;

/// The policy of the default templates: whoever has the endorsement hierarchy's authorization
/// (`TPM2_PolicySecret`).
pub const POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// Which endorsement key this public area is of; `None` if it was not made by one of
/// the default templates.
#[must_use]
pub fn kind(public: &[u8]) -> Option<EkKind> {
    let public = Public::parse(public).ok()?;
    EndorsementKey::of(&public).map(|key| key.kind())
}

/// Is the endorsement key with this public area (`TPMT_PUBLIC`) the one that this certificate (DER) is for? Who
/// issued it is not looked at.
#[must_use]
pub fn is_certified(public: &[u8], certificate: &[u8]) -> bool {
    let certificate = CertificateDer::from(certificate);
    let (Ok(public), Ok(certificate)) =
        (Public::parse(public), EndEntityCert::try_from(&certificate))
    else {
        return false;
    };
    let key = EndorsementKey::of(&public);
    key.is_some_and(|key| key.is_in(&certificate.subject_public_key_info()))
}

/// The exponent of RSA keys here.
const RSA_EXPONENT: u64 = 65_537;

/// An endorsement key that secrets can be encrypted to.
#[derive(Clone, Debug)]
pub(super) enum EndorsementKey {
    /// By template L-1.
    Rsa2048(rsa::PublicKey),
    /// By template L-2.
    P256(p256::PublicKey),
}

impl EndorsementKey {
    /// The key in this public area; `None` if it was not made by one of the default templates.
    pub(super) fn of(public: &Public<'_>) -> Option<Self> {
        let default = public.attributes == ATTRIBUTES
            && public.policy == POLICY
            && public.symmetric == Symmetric::Aes128Cfb
            && public.scheme == Scheme::Null;
        if !default {
            return None;
        }
        match &public.key {
            PublicKey::Rsa2048 { modulus } => {
                let modulus = BoxedUint::from_be_slice(modulus, 2048).ok()?;
                let key = rsa::PublicKey::new(modulus, BoxedUint::from(RSA_EXPONENT));
                key.ok().map(Self::Rsa2048)
            }
            PublicKey::P256(point) => {
                let key = p256::PublicKey::from_sec1_bytes(point);
                key.ok().map(Self::P256)
            }
            PublicKey::P384(_) => None,
        }
    }

    pub(super) const fn kind(&self) -> EkKind {
        match self {
            Self::Rsa2048(_) => EkKind::Rsa2048,
            Self::P256(_) => EkKind::EccP256,
        }
    }

    /// Is it the key that a certificate with this `SubjectPublicKeyInfo` is for?
    pub(super) fn is_in(&self, certified: &[u8]) -> bool {
        let own = match self {
            Self::Rsa2048(key) => key.to_public_key_der().map(|der| der.into_vec()).ok(),
            Self::P256(key) => key.to_public_key_der().map(|der| der.into_vec()).ok(),
        };
        own.is_some_and(|own| own == certified)
    }
}
