//! The evidence of a YubiKey, and what it takes to believe it.
//!
//! The key in slot F9 of the PIV application signs certificates of keys that the YubiKey made itself, and
//! nothing else; Yubico certified it (<https://developers.yubico.com/PIV/Introduction/PIV_attestation.html>).
//! Such a certificate has no nonce in it, and nobody's claims. So the certified key signs those itself, in a
//! form that no MLS structure has.

mod slot;

use mlskeyd_protocol::v1::{Algorithm, SignatureScheme};
use pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::spki::ObjectIdentifier;

use super::Refusal;
use super::chain::{self, ChainError, MAX_INTERMEDIATES, Roots};
use super::envelope::{Claims, HexBytes};
use super::transcript::{Hash, hash};
use crate::mls;
pub use slot::{Attested, Firmware, FormFactor, PinPolicy, TouchPolicy};

/// Longest certificate of a YubiKey's, in bytes: none keeps one of more than 3,052
/// (<https://github.com/arekinath/PivApplet/issues/61>), and it copies less than that of F9's into a key's.
const MAX_CERTIFICATE: usize = 4096;

/// What the key signs begins with this. MLS's `SignContent` (RFC 9420, 5.1.2) begins with the length of a
/// label that begins with `MLS 1.0 `: read like that, this is a label of 11,628 bytes that begins otherwise.
const STATEMENT: &[u8] = b"mlskeyd attestation 1 yubikey";

const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");

/// The subject of the certificates that F9 has from Yubico.
const FACTORY: &str = "Yubico PIV Attestation";

/// What a YubiKey has to say about a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct YubiKeyEvidence {
    /// The certificates that take part.
    pub certificates: Certificates,
    /// The key's signature over [`Certificates::statement`], as MLS transports it: 64 bytes for Ed25519, an
    /// `ECDSA-Sig-Value` in DER for ECDSA.
    #[serde(with = "hex::serde")]
    pub signature: Vec<u8>,
}

/// The certificates that take part, in DER.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificates {
    /// The certificate of the key in custody, as the instruction ATTEST (F9) answers for its slot.
    #[serde(with = "hex::serde")]
    pub slot: Vec<u8>,
    /// The certificate in slot F9 (object 5FFF01).
    #[serde(with = "hex::serde")]
    pub f9: Vec<u8>,
    /// Certificates between that one and a root: no YubiKey has any. What is missing here the verifier puts
    /// among its roots.
    pub chain: Vec<HexBytes>,
}

impl Certificates {
    /// The bytes that the key in custody has to sign: a prefix, and the hash of the claims and of all
    /// certificates.
    #[must_use]
    pub fn statement(&self, claims: &Claims) -> Vec<u8> {
        [STATEMENT, &self.hash(claims)].concat()
    }

    /// What names the key in slot F9: the SHA-256 of its certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Hash {
        Sha256::digest(&self.f9).into()
    }

    /// What the certificate of the key says of it and of its YubiKey. Nothing is verified by that.
    ///
    /// # Errors
    /// Why it is none that a YubiKey makes.
    pub fn attested(&self) -> Result<Attested, Refusal> {
        Attested::read(&self.slot)
    }

    fn hash(&self, claims: &Claims) -> Hash {
        hash(
            "mlskeyd attestation 1 yubikey statement",
            &[
                &claims.digest(),
                &self.slot,
                &self.f9,
                &hash("mlskeyd attestation 1 yubikey chain", &self.above()),
            ],
        )
    }

    fn above(&self) -> Vec<&[u8]> {
        self.chain.iter().map(|der| der.0.as_slice()).collect()
    }

    /// Follows the certificates from a root to the key; answers its `SubjectPublicKeyInfo`.
    fn verify(&self, roots: &Roots, now: UnixTime) -> Result<Vec<u8>, Refusal> {
        let f9 = Certificate::from_der(&self.f9)
            .map_err(|error| Refusal::F9Certificate(error.to_string()))?;
        // A key that has one itself signs whatever its user wants, also what looks like such a certificate.
        if slot::is_of_key(&f9) {
            return Err(Refusal::F9Certificate(
                "it is that of a key in another slot".to_owned(),
            ));
        }
        chain::check(&self.f9).map_err(of_f9)?;
        let certified = chain::verify_issued_by(&self.slot, &self.f9, now).map_err(of_slot)?;
        let above = self.above();
        let led = if is_factory_without_constraints(&f9) {
            chain::verify_end(&self.f9, &above, roots, now)
        } else {
            chain::verify_authority(&self.slot, &self.f9, &above, roots, now)
        };
        led.map_err(of_f9)?;
        Ok(certified)
    }
}

impl YubiKeyEvidence {
    pub(super) fn digest(&self, claims: &Claims) -> Hash {
        hash(
            "mlskeyd attestation 1 yubikey evidence",
            &[&self.certificates.hash(claims), &self.signature],
        )
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let certificates = &self.certificates;
        if certificates.chain.len() > MAX_INTERMEDIATES {
            return Err(format!("more than {MAX_INTERMEDIATES} certificates"));
        }
        if certificates.slot.len().max(certificates.f9.len()) > MAX_CERTIFICATE {
            return Err(format!(
                "a YubiKey's certificate of more than {MAX_CERTIFICATE} bytes"
            ));
        }
        Ok(())
    }

    /// Follows the evidence from Yubico's roots, or its owner's, to the key in custody, and to the nonce.
    pub(super) fn examine(
        &self,
        claims: &Claims,
        roots: &Roots,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let scheme = match claims.algorithm {
            Algorithm::Signature(scheme) => scheme,
            // A key that signs no claims.
            Algorithm::Hpke(_) => return Err(Refusal::NotInHardware),
        };
        let certified = self.certificates.verify(roots, now)?;
        self.certificates.attested()?;
        if certified != public_key_info(scheme, &claims.public_key) {
            return Err(Refusal::KeyPublic);
        }
        let statement = self.certificates.statement(claims);
        if mls::verify(scheme, &claims.public_key, &statement, &self.signature) {
            Ok(())
        } else {
            Err(Refusal::KeySignature)
        }
    }
}

/// Is it one of Yubico's that do not say that they are an authority's? Some YubiKeys have such, by
/// mistake (<https://github.com/Yubico/yubikey-manager/issues/522>). No other one does without.
fn is_factory_without_constraints(f9: &Certificate) -> bool {
    let certificate = &f9.tbs_certificate;
    let mut extensions = certificate.extensions.iter().flatten();
    !extensions.any(|one| one.extn_id == BASIC_CONSTRAINTS)
        && slot::common_name(&certificate.subject) == Some(FACTORY)
}

/// The `SubjectPublicKeyInfo` (RFC 5480, RFC 8410) of a public key that is as MLS writes it: its points are
/// uncompressed. Of a key of another length it is none, and so no certificate's.
fn public_key_info(scheme: SignatureScheme, public_key: &[u8]) -> Vec<u8> {
    let head: &[u8] = match scheme {
        SignatureScheme::Ed25519 => &[
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ],
        SignatureScheme::EcdsaP256Sha256 => &[
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ],
        SignatureScheme::EcdsaP384Sha384 => &[
            0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x05, 0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
        ],
    };
    [head, public_key].concat()
}

fn of_slot(error: ChainError) -> Refusal {
    match error {
        ChainError::Unreadable(why) => Refusal::SlotCertificate(why),
        ChainError::Validity(why) => Refusal::SlotValidity(why),
        ChainError::Usage => Refusal::SlotCertificate("it is restricted to a use".to_owned()),
        ChainError::NoWay(why) => Refusal::SlotIssuer(why),
    }
}

fn of_f9(error: ChainError) -> Refusal {
    match error {
        ChainError::Unreadable(why) => Refusal::F9Certificate(why),
        ChainError::Validity(why) => Refusal::F9Validity(why),
        ChainError::Usage => Refusal::F9Usage,
        ChainError::NoWay(why) => Refusal::F9Chain(why),
    }
}
