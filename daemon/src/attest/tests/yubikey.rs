//! YubiKeys in a test's hands: they certify what a test wants, as real ones do. What a whole system with one says
//! is in the tests of the whole system.

mod accepted;
mod chains;
mod forgeries;
mod mutations;
mod recorded;
mod slots;

use ed25519_dalek::Signer as _;
use mlskeyd_protocol::v1::{Algorithm, SignatureScheme, Tier};
use rand_core::OsRng;
use x509_cert::ext::Extension;

use super::authority::{Authority, Order, Signing, extension};
use super::chip::NONCE;
use super::now;
use crate::attest::yubikey::{Certificates, YubiKeyEvidence};
use crate::attest::{Claims, Envelope, Evidence, HexBytes, Refusal, Roots, Verdict, verify};

/// The subject of the factory's certificate in F9.
const FACTORY: &str = "Yubico PIV Attestation";

const FIRMWARE: &str = "1.3.6.1.4.1.41482.3.3";
const SERIAL: &str = "1.3.6.1.4.1.41482.3.7";
const POLICIES: &str = "1.3.6.1.4.1.41482.3.8";
const FORM_FACTOR: &str = "1.3.6.1.4.1.41482.3.9";
const BASIC_CONSTRAINTS: &str = "2.5.29.19";

/// A key in a slot, or in software.
#[derive(Clone)]
enum Key {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

impl Key {
    fn p256() -> Self {
        Self::P256(p256::ecdsa::SigningKey::random(&mut OsRng))
    }

    fn p384() -> Self {
        Self::P384(p384::ecdsa::SigningKey::random(&mut OsRng))
    }

    fn ed25519() -> Self {
        let secret = p256::SecretKey::random(&mut OsRng).to_bytes();
        Self::Ed25519(Box::new(ed25519_dalek::SigningKey::from_bytes(
            &secret.into(),
        )))
    }

    const fn scheme(&self) -> SignatureScheme {
        match self {
            Self::P256(_) => SignatureScheme::EcdsaP256Sha256,
            Self::P384(_) => SignatureScheme::EcdsaP384Sha384,
            Self::Ed25519(_) => SignatureScheme::Ed25519,
        }
    }

    /// As MLS writes it.
    fn public(&self) -> Vec<u8> {
        match self {
            Self::P256(key) => {
                let point = key.verifying_key().to_encoded_point(false);
                point.as_bytes().to_vec()
            }
            Self::P384(key) => {
                let point = key.verifying_key().to_encoded_point(false);
                point.as_bytes().to_vec()
            }
            Self::Ed25519(key) => key.verifying_key().to_bytes().to_vec(),
        }
    }

    /// By the crates' own encoders, except where there is none.
    fn info(&self) -> Vec<u8> {
        match self {
            Self::P256(key) => Signing::P256(key.clone()).public(),
            Self::P384(key) => Signing::P384(key.clone()).public(),
            Self::Ed25519(_) => {
                let head = hex::decode("302a300506032b6570032100").unwrap();
                [head, self.public()].concat()
            }
        }
    }

    fn sign(&self, content: &[u8]) -> Vec<u8> {
        match self {
            Self::P256(key) => {
                let signature: p256::ecdsa::DerSignature = key.sign(content);
                signature.as_bytes().to_vec()
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::DerSignature = key.sign(content);
                signature.as_bytes().to_vec()
            }
            Self::Ed25519(key) => key.sign(content).to_bytes().to_vec(),
        }
    }
}

/// What a YubiKey writes into F9's certificate: its firmware, and that it is an authority's.
fn of_f9(order: &mut Order) {
    order.extensions = Some(vec![
        extension(FIRMWARE, false, vec![5, 7, 4]),
        extension(
            BASIC_CONSTRAINTS,
            true,
            hex::decode("30060101ff020100").unwrap(),
        ),
    ]);
}

/// What a YubiKey writes into the certificate of a key.
fn of_key() -> Vec<Extension> {
    vec![
        extension(FIRMWARE, false, vec![5, 7, 4]),
        extension(SERIAL, false, vec![2, 4, 0, 0xbc, 0x61, 0x4e]),
        extension(POLICIES, false, vec![2, 1]),
        extension(FORM_FACTOR, false, vec![1]),
    ]
}

/// Of a key in this slot.
fn certificate_of(key: &Key, slot: &str) -> Order {
    Order {
        subject: format!("CN=YubiKey PIV Attestation {slot}"),
        extensions: Some(of_key()),
        ..Order::ek(key.info())
    }
}

/// A YubiKey with a key in slot 9C, its maker, and a verifier that trusts the maker.
struct Card {
    maker: Authority,
    f9: Authority,
    chain: Vec<Vec<u8>>,
    key: Key,
    slot: Vec<u8>,
    roots: Roots,
}

impl Card {
    fn new() -> Self {
        Self::with(Signing::p256(), Key::p256())
    }

    /// With this key in F9, and this one in 9C.
    fn with(f9: Signing, key: Key) -> Self {
        let maker = Authority::root("Yubico PIV Root CA", Signing::p256());
        let f9 = maker.below_with(FACTORY, f9, of_f9);
        Self::made(maker, f9, key)
    }

    /// With this in F9.
    fn made(maker: Authority, f9: Authority, key: Key) -> Self {
        Self {
            slot: f9.issue(&certificate_of(&key, "9c")),
            roots: roots(&maker),
            maker,
            f9,
            chain: Vec::new(),
            key,
        }
    }

    fn certificates(&self) -> Certificates {
        Certificates {
            slot: self.slot.clone(),
            f9: self.f9.certificate.clone(),
            chain: self.chain.iter().cloned().map(HexBytes).collect(),
        }
    }

    fn claims(&self) -> Claims {
        Claims {
            uid: 1000,
            app: "default".to_owned(),
            identity: "alice@bank.example".to_owned(),
            device: "yubikey".to_owned(),
            key: [7; 16],
            algorithm: Algorithm::Signature(self.key.scheme()),
            tier: Tier::Hardware,
            public_key: self.key.public(),
            nonce: NONCE.to_vec(),
        }
    }

    /// What this YubiKey says of its key.
    fn envelope(&self) -> Envelope {
        signed(self.claims(), self.certificates(), &self.key)
    }

    fn verdict(&self) -> Result<Verdict, &'static str> {
        self.judge(&self.envelope())
    }

    fn judge(&self, envelope: &Envelope) -> Result<Verdict, &'static str> {
        self.refusal(envelope).map_err(|refusal| refusal.code())
    }

    fn refusal(&self, envelope: &Envelope) -> Result<Verdict, Refusal> {
        verify(envelope, &NONCE, &self.roots, now(), None)
    }
}

/// The envelope of these claims, signed by this key.
fn signed(claims: Claims, certificates: Certificates, key: &Key) -> Envelope {
    Envelope {
        evidence: Evidence::YubiKey(YubiKeyEvidence {
            signature: key.sign(&certificates.statement(&claims)),
            certificates,
        }),
        claims,
    }
}

fn evidence(envelope: &mut Envelope) -> &mut YubiKeyEvidence {
    match &mut envelope.evidence {
        Evidence::YubiKey(evidence) => evidence,
        Evidence::Tpm2(_) => panic!("it is of a YubiKey"),
    }
}

fn roots(authority: &Authority) -> Roots {
    Roots::from_pem(authority.pem().as_bytes()).unwrap()
}
