//! What a request says is what a certificate is read to say; with certificates made by hand.

use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::certificate::{TbsCertificate, Version};
use x509_cert::der::Tag;
use x509_cert::der::asn1::{BitString, Ia5String, OctetString, SetOfVec, UtcTime};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::KeyUsages;
use x509_cert::name::{RdnSequence, RelativeDistinguishedName};
use x509_cert::request::CertReq;
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::{Time, Validity};

use super::*;

const NAME: &str = "alice@bank.example";

fn p256() -> (p256::ecdsa::SigningKey, Vec<u8>) {
    let key = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
    let public = key.verifying_key().to_encoded_point(false);
    (key, public.as_bytes().to_vec())
}

/// A request of Alice's, signed by her key.
fn request() -> CertReq {
    use p256::ecdsa::signature::Signer;
    let (key, public) = p256();
    let certified = Certified::new(NAME).unwrap();
    let request = Request::new(SignatureScheme::EcdsaP256Sha256, &public, &certified).unwrap();
    let signature: p256::ecdsa::DerSignature = key.sign(request.to_sign());
    CertReq::from_der(&request.signed(signature.as_bytes()).unwrap()).unwrap()
}

/// A certificate of nobody, that says what the request does, but for a change.
fn certificate(change: impl FnOnce(&mut TbsCertificate)) -> Vec<u8> {
    let request = request();
    let at =
        |seconds| Time::UtcTime(UtcTime::from_unix_duration(Duration::from_secs(seconds)).unwrap());
    let mut tbs = TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::new(&[1, 2, 3]).unwrap(),
        signature: request.algorithm.clone(),
        issuer: RdnSequence::default(),
        validity: Validity {
            not_before: at(1_700_000_000),
            not_after: at(1_800_000_000),
        },
        subject: request.info.subject.clone(),
        subject_public_key_info: request.info.public_key.clone(),
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(vec![extension(&SubjectAltName(vec![
            GeneralName::Rfc822Name(Ia5String::new(NAME).unwrap()),
        ]))]),
    };
    change(&mut tbs);
    let certificate = Certificate {
        signature_algorithm: tbs.signature.clone(),
        tbs_certificate: tbs,
        signature: BitString::from_bytes(&[0; 70]).unwrap(),
    };
    certificate.to_der().unwrap()
}

fn extension<E: x509_cert::der::oid::AssociatedOid + Encode>(content: &E) -> Extension {
    Extension {
        extn_id: E::OID,
        critical: false,
        extn_value: OctetString::new(content.to_der().unwrap()).unwrap(),
    }
}

#[test]
fn a_request_has_the_key_and_the_name() {
    let request = request();
    let (scheme, public_key) = key_of(&request.info.public_key).unwrap();
    assert_eq!(scheme, SignatureScheme::EcdsaP256Sha256);
    assert_eq!(public_key, p256().1);
    // What is signed is none of MLS's structures.
    let signed = request.info.to_der().unwrap();
    assert!(matches!(
        crate::mls::Signable::parse(&signed),
        crate::mls::Signable::Unknown(unknown) if unknown.label.is_none_or(|it| !it.starts_with(b"MLS"))
    ));
}

#[test]
fn names_are_printable_ascii_within_bounds() {
    for name in ["", "ali\u{e7}e", "a\nb", &"x".repeat(256)] {
        assert_eq!(Certified::new(name), Err(CsrError::Name), "{name:?}");
    }
    Certified::new(&"x".repeat(255)).unwrap();
}

#[test]
fn a_certificate_is_read_for_what_it_says() {
    let issued = read(&certificate(|_| {})).unwrap();
    assert_eq!(issued.public_key, p256().1);
    assert_eq!(issued.names, BTreeSet::from([NAME.to_owned()]));
    assert_eq!(issued.ends, 1_800_000_000);
    assert_eq!(issued.serial, "010203");
    // Without alternative names it has its common ones.
    let common = read(&certificate(|tbs| tbs.extensions = None)).unwrap();
    assert_eq!(common.names, issued.names);
}

/// Whatever an app may show of a certificate is a name that is judged.
#[test]
fn the_subject_counts_beside_alternative_names() {
    let named = |oid: ObjectIdentifier, value: Any| {
        move |tbs: &mut TbsCertificate| {
            let attribute = AttributeTypeAndValue { oid, value };
            let names = SetOfVec::try_from(vec![attribute]).unwrap();
            tbs.subject.0.push(RelativeDistinguishedName(names));
        }
    };
    let utf8 = |text| Any::from(Utf8StringRef::new(text).unwrap());
    for oid in [CN, EMAIL_ADDRESS] {
        let issued = read(&certificate(named(oid, utf8("chairman@bank.example")))).unwrap();
        let names = [NAME, "chairman@bank.example"].map(str::to_owned);
        assert_eq!(issued.names, BTreeSet::from(names));
        // A BMPString.
        let unreadable = Any::new(Tag::BmpString, [0, b'c', 0, b'h']).unwrap();
        let refused = read(&certificate(named(oid, unreadable))).unwrap_err();
        assert_eq!(refused, CertificateError::Name);
    }
}

#[test]
fn what_is_no_certificate_for_signatures_is_refused() {
    let usage = |usage: KeyUsages| extension(&KeyUsage(usage.into()));
    let refused = |change: &dyn Fn(&mut TbsCertificate)| read(&certificate(change)).unwrap_err();
    assert_eq!(
        refused(&|tbs| tbs.extensions = Some(vec![usage(KeyUsages::KeyEncipherment)])),
        CertificateError::Usage
    );
    read(&certificate(|tbs| {
        tbs.extensions = Some(vec![usage(KeyUsages::DigitalSignature)])
    }))
    .unwrap();
    assert_eq!(
        refused(&|tbs| {
            tbs.subject = RdnSequence::default();
            tbs.extensions = None;
        }),
        CertificateError::Name
    );
    assert_eq!(
        refused(&|tbs| {
            let mail = GeneralName::Rfc822Name(Ia5String::new(NAME).unwrap());
            let id = GeneralName::RegisteredId(ECDSA_OF_NOBODY);
            tbs.extensions = Some(vec![extension(&SubjectAltName(vec![mail, id]))]);
        }),
        CertificateError::Kind
    );
    assert_eq!(
        refused(&|tbs| tbs.subject_public_key_info.algorithm.oid = ECDSA_OF_NOBODY),
        CertificateError::Key
    );
    let compressed = |tbs: &mut TbsCertificate| {
        let bits = BitString::from_bytes(&[2; 33]).unwrap();
        tbs.subject_public_key_info.subject_public_key = bits;
    };
    assert_eq!(refused(&compressed), CertificateError::Key);
    let twice = |tbs: &mut TbsCertificate| {
        let once = tbs.extensions.clone().unwrap();
        tbs.extensions = Some([once.clone(), once].concat());
    };
    assert!(matches!(refused(&twice), CertificateError::Unreadable(_)));
}

const ECDSA_OF_NOBODY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.3.4");

#[test]
fn whatever_was_cut_or_changed_never_panics() {
    let whole = certificate(|_| {});
    for cut in 0..whole.len() {
        read(&whole[..cut]).unwrap_err();
    }
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut changed = whole.clone();
            changed[at] ^= 1 << bit;
            let _ = read(&changed);
        }
    }
    let longer = [&whole[..], &[0]].concat();
    read(&longer).unwrap_err();
}
