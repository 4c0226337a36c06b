//! A manufacturer with a root, which issues what it is told to.

use std::str::FromStr;
use std::time::Duration;

use p256::ecdsa::signature::Signer;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::pkcs8::EncodePublicKey;
use rand_core::OsRng;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::certificate::{Certificate, TbsCertificate, Version};
use x509_cert::der::asn1::{BitString, Null, OctetString, SetOfVec, Utf8StringRef};
use x509_cert::der::{Any, Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, SubjectAltName};
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, ObjectIdentifier, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

/// tcg-kp-EKCertificate.
pub(super) const EK_CERTIFICATE: &str = "2.23.133.8.1";

/// The use of a server's certificate in TLS.
pub(super) const SERVER: &str = "1.3.6.1.5.5.7.3.1";

/// When the tests take place, in seconds since 1970.
pub(super) const NOW: u64 = 1_800_000_000;

const YEAR: u64 = 365 * 24 * 3600;

/// A key that signs certificates.
pub(super) enum Signing {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    P521(p521::ecdsa::SigningKey),
    Rsa(Box<rsa::PrivateKey>),
}

impl Signing {
    pub(super) fn p256() -> Self {
        Self::P256(p256::ecdsa::SigningKey::random(&mut OsRng))
    }

    pub(super) fn p384() -> Self {
        Self::P384(p384::ecdsa::SigningKey::random(&mut OsRng))
    }

    pub(super) fn rsa_2048() -> Self {
        Self::Rsa(Box::new(
            rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).unwrap(),
        ))
    }

    fn algorithm(&self) -> AlgorithmIdentifierOwned {
        let (id, parameters) = match self {
            Self::P256(_) => ("1.2.840.10045.4.3.2", None),
            Self::P384(_) => ("1.2.840.10045.4.3.3", None),
            Self::P521(_) => ("1.2.840.10045.4.3.4", None),
            Self::Rsa(_) => ("1.2.840.113549.1.1.11", Some(Any::null())),
        };
        AlgorithmIdentifierOwned {
            oid: oid(id),
            parameters,
        }
    }

    pub(super) fn public(&self) -> Vec<u8> {
        match self {
            Self::P256(key) => spki(&p256::PublicKey::from(key.verifying_key())),
            Self::P384(key) => spki(&p384::PublicKey::from(key.verifying_key())),
            Self::P521(key) => {
                let key = p521::ecdsa::VerifyingKey::from(key);
                let point = key.to_encoded_point(false);
                spki(&p521::PublicKey::from_sec1_bytes(point.as_bytes()).unwrap())
            }
            Self::Rsa(key) => {
                use rsa::pkcs8::EncodePublicKey as _;
                let public = key.as_public_key().to_public_key_der();
                public.unwrap().into_vec()
            }
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
            Self::P521(key) => {
                let hash = <sha2::Sha512 as sha2::Digest>::digest(message);
                let signature = key.sign_prehash(&hash).unwrap();
                signature.to_der().as_bytes().to_vec()
            }
            Self::Rsa(key) => key.pkcs1v15_sign::<rsa::sha2::Sha256>(message).unwrap(),
        }
    }
}

pub(super) fn spki(key: &impl EncodePublicKey) -> Vec<u8> {
    key.to_public_key_der().unwrap().into_vec()
}

/// Who issues certificates.
pub(super) struct Authority {
    pub(super) certificate: Vec<u8>,
    pub(super) name: Name,
    pub(super) key: Signing,
}

/// What a certificate is to say.
#[derive(Clone)]
pub(super) struct Order {
    pub(super) subject: String,
    pub(super) public: Vec<u8>,
    /// Years from [`NOW`] until it begins and ends.
    pub(super) years: (i64, i64),
    pub(super) usages: Vec<&'static str>,
    /// May it sign others, and how many in a row?
    pub(super) authority: Option<Option<u8>>,
    /// An extension that nobody knows, and whether it is critical.
    pub(super) unknown: Option<bool>,
    /// The extensions, in the place of those above.
    pub(super) extensions: Option<Vec<Extension>>,
}

impl Order {
    /// An endorsement key's certificate.
    pub(super) fn ek(public: Vec<u8>) -> Self {
        Self {
            subject: String::new(),
            public,
            years: (-1, 10),
            usages: vec![EK_CERTIFICATE],
            authority: None,
            unknown: None,
            extensions: None,
        }
    }
}

impl Authority {
    pub(super) fn root(name: &str, key: Signing) -> Self {
        let name = named(&format!("CN={name}"));
        let order = Order {
            subject: name.to_string(),
            public: key.public(),
            authority: Some(None),
            usages: Vec::new(),
            ..Order::ek(Vec::new())
        };
        let mut root = Self {
            certificate: Vec::new(),
            name,
            key,
        };
        root.certificate = root.issue(&order);
        root
    }

    /// An authority below this one; `change` says how its certificate differs from a good one.
    pub(super) fn below(&self, name: &str, change: impl FnOnce(&mut Order)) -> Self {
        self.below_with(name, Signing::p256(), change)
    }

    /// As [`Authority::below`], with this key.
    pub(super) fn below_with(
        &self,
        name: &str,
        key: Signing,
        change: impl FnOnce(&mut Order),
    ) -> Self {
        let mut order = Order {
            subject: format!("CN={name}"),
            public: key.public(),
            authority: Some(None),
            usages: Vec::new(),
            ..Order::ek(Vec::new())
        };
        change(&mut order);
        Self {
            certificate: self.issue(&order),
            name: named(&order.subject),
            key,
        }
    }

    pub(super) fn issue(&self, order: &Order) -> Vec<u8> {
        self.issue_by(order, |content| self.key.sign(content))
    }

    /// As [`Authority::issue`], with this in the place of a signature.
    pub(super) fn issue_by(&self, order: &Order, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
        let algorithm = self.key.algorithm();
        let certificate = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(&[7; 20]).unwrap(),
            signature: algorithm.clone(),
            issuer: self.name.clone(),
            validity: Validity {
                not_before: time(order.years.0),
                not_after: time(order.years.1),
            },
            subject: named(&order.subject),
            subject_public_key_info: SubjectPublicKeyInfoOwned::from_der(&order.public).unwrap(),
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(extensions(order)),
        };
        let signature = sign(&certificate.to_der().unwrap());
        let signed = Certificate {
            tbs_certificate: certificate,
            signature_algorithm: algorithm,
            signature: BitString::from_bytes(&signature).unwrap(),
        };
        signed.to_der().unwrap()
    }

    pub(super) fn pem(&self) -> String {
        let label = "CERTIFICATE";
        let ending = x509_cert::der::pem::LineEnding::LF;
        x509_cert::der::pem::encode_string(label, ending, &self.certificate).unwrap()
    }
}

/// An extension.
pub(super) fn extension(id: &str, critical: bool, value: Vec<u8>) -> Extension {
    Extension {
        extn_id: oid(id),
        critical,
        extn_value: OctetString::new(value).unwrap(),
    }
}

fn extensions(order: &Order) -> Vec<Extension> {
    if let Some(extensions) = &order.extensions {
        return extensions.clone();
    }
    let constraints = BasicConstraints {
        ca: order.authority.is_some(),
        path_len_constraint: order.authority.flatten(),
    };
    let mut all = vec![extension("2.5.29.19", true, constraints.to_der().unwrap())];
    if !order.usages.is_empty() {
        let usages = order.usages.iter().map(|usage| oid(usage)).collect();
        let usages = ExtendedKeyUsage(usages).to_der().unwrap();
        all.push(extension("2.5.29.37", false, usages));
    }
    if order.authority.is_none() {
        // As the profile has it: the chip's maker, model and version, in a critical extension.
        let names = SubjectAltName(vec![GeneralName::DirectoryName(chip_name())]);
        all.push(extension("2.5.29.17", true, names.to_der().unwrap()));
    }
    if let Some(critical) = order.unknown {
        all.push(extension("1.2.3.4.5", critical, Null.to_der().unwrap()));
    }
    all
}

fn chip_name() -> Name {
    let part = |id: &str, text: &str| {
        let value = Utf8StringRef::new(text).unwrap();
        let mut set = SetOfVec::new();
        set.insert(AttributeTypeAndValue {
            oid: oid(id),
            value: Any::encode_from(&value).unwrap(),
        })
        .unwrap();
        RelativeDistinguishedName(set)
    };
    RdnSequence(vec![
        part("2.23.133.2.1", "id:54455354"),
        part("2.23.133.2.2", "test"),
        part("2.23.133.2.3", "id:00010002"),
    ])
}

/// A chip has none, but for that in its extension.
fn named(text: &str) -> Name {
    if text.is_empty() {
        return Name::default();
    }
    Name::from_str(text).unwrap()
}

fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new(text).unwrap()
}

fn time(years: i64) -> Time {
    let at = NOW.saturating_add_signed(years * i64::try_from(YEAR).unwrap());
    let at = x509_cert::der::DateTime::from_unix_duration(Duration::from_secs(at)).unwrap();
    Time::GeneralTime(x509_cert::der::asn1::GeneralizedTime::from_date_time(at))
}
