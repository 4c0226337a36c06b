//! Who takes part: clients with basic or X.509 credentials, and who judges these.

use std::convert::Infallible;
use std::time::Duration;

use mls_rs::client_builder::{MlsConfig, PaddingMode};
use mls_rs::crypto::{SignaturePublicKey, SignatureSecretKey};
use mls_rs::identity::basic::BasicCredential;
use mls_rs::identity::{Credential, CredentialType, SigningIdentity};
use mls_rs::mls_rules::{CommitOptions, DefaultMlsRules, EncryptionOptions};
use mls_rs::psk::{ExternalPskId, PreSharedKey};
use mls_rs::{
    CipherSuite, CipherSuiteProvider, Client, CryptoProvider, ExtensionList, IdentityProvider,
};
use mls_rs_core::group::ProposalType;
use mls_rs_core::identity::{CertificateChain, DerCertificate, MemberValidationContext};
use mls_rs_core::time::MlsTime;
use p256::ecdsa::{DerSignature, SigningKey};
use x509_cert::builder::{Builder, CertificateBuilder, Profile};
use x509_cert::der::asn1::BitString;
use x509_cert::der::{Encode, oid::ObjectIdentifier};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, EncodePublicKey, SubjectPublicKeyInfoOwned};
use x509_cert::time::Validity;

use crate::crypto::Recording;

/// From the range for private use.
pub const CUSTOM: ProposalType = ProposalType::new(0xf0a7);

/// What the rules of a group leave open.
#[derive(Clone, Copy)]
pub struct Style {
    /// Whether handshake messages are encrypted and padded, each commit has a path, and Welcomes leave the tree out.
    pub private: bool,
    /// Whether it ends before anybody comes from outside.
    pub short: bool,
}

/// Who says to be somebody is.
#[derive(Clone)]
pub struct Trusting;

impl IdentityProvider for Trusting {
    type Error = Infallible;

    fn validate_member(
        &self,
        _: &SigningIdentity,
        _: Option<MlsTime>,
        _: MemberValidationContext<'_>,
    ) -> Result<(), Infallible> {
        Ok(())
    }
    fn validate_external_sender(
        &self,
        _: &SigningIdentity,
        _: Option<MlsTime>,
        _: Option<&ExtensionList>,
    ) -> Result<(), Infallible> {
        Ok(())
    }
    /// A name, or a chain's first certificate.
    fn identity(&self, who: &SigningIdentity, _: &ExtensionList) -> Result<Vec<u8>, Infallible> {
        Ok(match &who.credential {
            Credential::Basic(basic) => basic.identifier().to_vec(),
            Credential::X509(chain) => chain.leaf().unwrap().clone().into_vec(),
            Credential::Custom(custom) => custom.data().to_vec(),
            _ => Vec::new(),
        })
    }
    fn valid_successor(
        &self,
        one: &SigningIdentity,
        other: &SigningIdentity,
        extensions: &ExtensionList,
    ) -> Result<bool, Infallible> {
        Ok(self.identity(one, extensions) == self.identity(other, extensions))
    }
    fn supported_types(&self) -> Vec<CredentialType> {
        vec![CredentialType::BASIC, CredentialType::X509]
    }
}

/// A fresh signature key, and its owner by name.
pub fn basic(
    crypto: &Recording,
    suite: CipherSuite,
    name: &str,
) -> (SignatureSecretKey, SigningIdentity) {
    let provider = crypto.cipher_suite_provider(suite).unwrap();
    let (secret, public) = provider.signature_key_generate().unwrap();
    let credential = BasicCredential::new(name.into()).into_credential();
    (secret, SigningIdentity::new(credential, public))
}

/// A fresh signature key, and its owner by a certificate with its issuer's.
pub fn x509(
    crypto: &Recording,
    suite: CipherSuite,
    name: &str,
) -> (SignatureSecretKey, SigningIdentity) {
    let provider = crypto.cipher_suite_provider(suite).unwrap();
    let (secret, public) = provider.signature_key_generate().unwrap();
    let issuer = SigningKey::from_slice(&[7; 32]).unwrap();
    let issuer_info = issuer.verifying_key().to_public_key_der().unwrap();
    let issuer_info = SubjectPublicKeyInfoOwned::try_from(issuer_info.as_bytes()).unwrap();
    let issuer_name: Name = "CN=Example CA".parse().unwrap();
    let leaf = Profile::Leaf {
        issuer: issuer_name.clone(),
        enable_key_agreement: false,
        enable_key_encipherment: false,
    };
    let subject = format!("CN={name}").parse().unwrap();
    let chain = CertificateChain::from(vec![
        certificate(&issuer, leaf, subject, key_info(suite, &public)),
        certificate(&issuer, Profile::Root, issuer_name, issuer_info),
    ]);
    let identity = SigningIdentity::new(chain.into_credential(), public);
    (secret, identity)
}

fn key_info(suite: CipherSuite, public: &SignaturePublicKey) -> SubjectPublicKeyInfoOwned {
    let (oid, curve) = match suite {
        CipherSuite::P256_AES128 => ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")),
        CipherSuite::P384_AES256 => ("1.2.840.10045.2.1", Some("1.3.132.0.34")),
        _ => ("1.3.101.112", None),
    };
    SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifierOwned {
            oid: ObjectIdentifier::new_unwrap(oid),
            parameters: curve.map(|curve| (&ObjectIdentifier::new_unwrap(curve)).into()),
        },
        subject_public_key: BitString::from_bytes(public).unwrap(),
    }
}

fn certificate(
    issuer: &SigningKey,
    profile: Profile,
    subject: Name,
    key: SubjectPublicKeyInfoOwned,
) -> DerCertificate {
    let validity = Validity::from_now(Duration::from_secs(86_400)).unwrap();
    let serial = SerialNumber::from(1_u32);
    let certificate = CertificateBuilder::new(profile, serial, validity, subject, key, issuer)
        .unwrap()
        .build::<DerSignature>()
        .unwrap();
    DerCertificate::new(certificate.to_der().unwrap())
}

/// A client of that identity.
pub fn client(
    crypto: &Recording,
    suite: CipherSuite,
    style: Style,
    (secret, identity): (SignatureSecretKey, SigningIdentity),
) -> Client<impl MlsConfig + use<>> {
    let padding = if style.private {
        PaddingMode::StepFunction
    } else {
        PaddingMode::None
    };
    let rules = DefaultMlsRules::new()
        .with_commit_options(
            CommitOptions::new()
                .with_path_required(style.private)
                .with_ratchet_tree_extension(!style.private),
        )
        .with_encryption_options(EncryptionOptions::new(style.private, padding));
    Client::builder()
        .crypto_provider(crypto.clone())
        .identity_provider(Trusting)
        .mls_rules(rules)
        .custom_proposal_types([CUSTOM, ProposalType::SELF_REMOVE])
        .psk(
            ExternalPskId::new(b"psk".to_vec()),
            PreSharedKey::new(vec![9; 32]),
        )
        .signing_identity(identity, secret, suite)
        .build()
}
