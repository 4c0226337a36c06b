//! The evidence of a TPM 2.0, and what it takes to believe it.
//!
//! A certificate of the manufacturer's vouches for the endorsement key (EK), which can only decrypt. The
//! attestation key (AK) signs only what the TPM says about itself, and certifies the key in custody. That
//! AK and EK are in one TPM no signature says: the verifier encrypts a secret for both together, and only
//! that TPM gives it out (`challenge`).

mod certification;
mod credential;
pub mod endorsement;
mod public;
mod reader;

use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use mlskeyd_protocol::v1::{Algorithm, Kem, SignatureScheme};

use super::Refusal;
use super::chain::{self, MAX_INTERMEDIATES, Roots};
use super::envelope::{Claims, HexBytes};
use super::transcript::{Hash, hash};
use certification::{Certification, NoCertification};
use endorsement::EndorsementKey;
pub use public::attribute;
use public::{Name, Public, PublicKey, Scheme};
pub use reader::ParseError;

/// tcg-kp-EKCertificate, 2.23.133.8.1: the use of an endorsement key's certificate.
const EK_CERTIFICATE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];

/// What an attestation key must be, or it would sign what no TPM said.
const OF_AK: u32 = attribute::FIXED_TPM
    | attribute::FIXED_PARENT
    | attribute::SENSITIVE_DATA_ORIGIN
    | attribute::RESTRICTED
    | attribute::SIGN;

/// What a key in custody must be, or it could be elsewhere, too.
const OF_KEY: u32 =
    attribute::FIXED_TPM | attribute::FIXED_PARENT | attribute::SENSITIVE_DATA_ORIGIN;

/// What a TPM has to say about a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tpm2Evidence {
    /// The keys that take part.
    pub keys: Keys,
    /// `TPMS_ATTEST`, as `TPM2_Certify` made it with [`Keys::statement`] as its data.
    #[serde(with = "hex::serde")]
    pub certification: Vec<u8>,
    /// `TPMT_SIGNATURE` of the attestation key over it.
    #[serde(with = "hex::serde")]
    pub signature: Vec<u8>,
}

/// The keys that take part in a certification: certificates in DER, public areas as `TPMT_PUBLIC`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// The endorsement key's certificate.
    #[serde(with = "hex::serde")]
    pub ek_certificate: Vec<u8>,
    /// Certificates between that one and its maker's root, as far as the TPM keeps them.
    pub ek_chain: Vec<HexBytes>,
    /// The endorsement key.
    #[serde(with = "hex::serde")]
    pub ek_public: Vec<u8>,
    /// The attestation key.
    #[serde(with = "hex::serde")]
    pub ak_public: Vec<u8>,
    /// The key in custody.
    #[serde(with = "hex::serde")]
    pub key_public: Vec<u8>,
}

/// Evidence that is right, as far as can be said without asking the TPM again.
pub(super) struct Examined {
    endorsement: EndorsementKey,
    ak_name: Name,
}

impl Keys {
    /// What names the TPM: the SHA-256 of its endorsement key's certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Hash {
        Sha256::digest(&self.ek_certificate).into()
    }

    /// What the TPM has to put into its certification: the hash of everything that the signature would
    /// else not cover.
    #[must_use]
    pub fn statement(&self, claims: &Claims) -> Hash {
        let chain: Vec<_> = self.ek_chain.iter().map(|der| der.0.as_slice()).collect();
        hash(
            "mlskeyd attestation 1 tpm2 statement",
            &[
                &claims.digest(),
                &self.ek_certificate,
                &hash("mlskeyd attestation 1 tpm2 chain", &chain),
                &self.ek_public,
                &self.ak_public,
                &self.key_public,
            ],
        )
    }
}

impl Tpm2Evidence {
    pub(super) fn digest(&self, claims: &Claims) -> Hash {
        hash(
            "mlskeyd attestation 1 tpm2 evidence",
            &[
                &self.keys.statement(claims),
                &self.certification,
                &self.signature,
            ],
        )
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.keys.ek_chain.len() > MAX_INTERMEDIATES {
            return Err(format!("more than {MAX_INTERMEDIATES} certificates"));
        }
        Ok(())
    }

    /// Follows the evidence from the manufacturer's roots to the key in custody.
    pub(super) fn examine(
        &self,
        claims: &Claims,
        roots: &Roots,
        now: UnixTime,
    ) -> Result<Examined, Refusal> {
        let endorsement = self.endorsement(roots, now)?;
        let ak = Public::parse(&self.keys.ak_public).map_err(malformed("ak_public"))?;
        let ak_key = attestation_key(&ak)?;
        self.verify_signature(&ak_key)?;
        self.verify_certification(claims)?;
        Ok(Examined {
            endorsement,
            ak_name: ak.name(),
        })
    }

    fn endorsement(&self, roots: &Roots, now: UnixTime) -> Result<EndorsementKey, Refusal> {
        let keys = &self.keys;
        let chain: Vec<_> = keys.ek_chain.iter().map(|der| der.0.as_slice()).collect();
        let certified = chain::verify(&keys.ek_certificate, &chain, roots, EK_CERTIFICATE, now)?;
        let public = Public::parse(&keys.ek_public).map_err(malformed("ek_public"))?;
        let key = EndorsementKey::of(&public).ok_or(Refusal::EkTemplate)?;
        if key.is_in(&certified) {
            Ok(key)
        } else {
            Err(Refusal::EkKey)
        }
    }

    fn verify_signature(&self, ak: &VerifyingKey) -> Result<(), Refusal> {
        let [r, s] = public::parse_signature(&self.signature).map_err(malformed("signature"))?;
        let signature = Signature::from_scalars(r, s).map_err(|_| Refusal::AkSignature)?;
        ak.verify(&self.certification, &signature)
            .map_err(|_| Refusal::AkSignature)
    }

    fn verify_certification(&self, claims: &Claims) -> Result<(), Refusal> {
        let certified = Certification::parse(&self.certification).map_err(|why| match why {
            NoCertification::NotGenerated => Refusal::NotGenerated,
            NoCertification::OtherKind(kind) => Refusal::NotACertification { kind },
            NoCertification::Malformed(why) => malformed("certification")(why),
        })?;
        if certified.data != self.keys.statement(claims) {
            return Err(Refusal::Claims);
        }
        let key = Public::parse(&self.keys.key_public).map_err(malformed("key_public"))?;
        if certified.name != key.name() {
            return Err(Refusal::OtherKey);
        }
        key_in_custody(&key, claims)
    }
}

fn attestation_key(public: &Public<'_>) -> Result<VerifyingKey, Refusal> {
    if !public.has(OF_AK) {
        return Err(Refusal::AkAttributes {
            missing: attribute::names(OF_AK & !public.attributes),
        });
    }
    match (&public.key, public.scheme) {
        (PublicKey::P256(point), Scheme::EcdsaSha256) => {
            VerifyingKey::from_sec1_bytes(point).map_err(|_| Refusal::AkKind)
        }
        _ => Err(Refusal::AkKind),
    }
}

fn key_in_custody(key: &Public<'_>, claims: &Claims) -> Result<(), Refusal> {
    if !key.has(OF_KEY) {
        return Err(Refusal::KeyAttributes {
            missing: attribute::names(OF_KEY & !key.attributes),
        });
    }
    let wanted = match claims.algorithm {
        Algorithm::Signature(
            SignatureScheme::EcdsaP256Sha256 | SignatureScheme::EcdsaP384Sha384,
        ) => attribute::SIGN,
        Algorithm::Hpke(Kem::DhKemP256 | Kem::DhKemP384) => attribute::DECRYPT,
        Algorithm::Signature(SignatureScheme::Ed25519) | Algorithm::Hpke(Kem::DhKemX25519) => {
            return Err(Refusal::NotInHardware);
        }
    };
    let uses = attribute::SIGN | attribute::DECRYPT | attribute::RESTRICTED;
    if key.attributes & uses != wanted {
        return Err(Refusal::KeyUse);
    }
    let point = match &key.key {
        PublicKey::P256(point) => point.as_slice(),
        PublicKey::P384(point) => point.as_slice(),
        PublicKey::Rsa2048 { .. } => return Err(Refusal::KeyPublic),
    };
    // The length tells the curves apart.
    if point == claims.public_key {
        Ok(())
    } else {
        Err(Refusal::KeyPublic)
    }
}

fn malformed(part: &'static str) -> impl Fn(ParseError) -> Refusal {
    move |why| Refusal::Malformed { part, why }
}

impl Examined {
    /// A challenge that only the TPM of this endorsement key can answer, and only with that attestation
    /// key in it. `None` if the system has no randomness.
    pub(super) fn challenge(&self, secret: &[u8; 32]) -> Option<Tpm2Challenge> {
        let credential = credential::make(&self.endorsement, &self.ak_name, secret)?;
        Some(Tpm2Challenge {
            ek: self.endorsement.kind(),
            credential: credential.object,
            encrypted_seed: credential.seed,
        })
    }
}

/// Which endorsement key of a TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EkKind {
    /// RSA 2048, by template L-1.
    Rsa2048,
    /// P-256, by template L-2.
    EccP256,
}

/// What only one TPM can open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tpm2Challenge {
    /// The endorsement key that it is for.
    pub ek: EkKind,
    /// The content of a `TPM2B_ID_OBJECT`.
    #[serde(with = "hex::serde")]
    pub credential: Vec<u8>,
    /// The content of a `TPM2B_ENCRYPTED_SECRET`.
    #[serde(with = "hex::serde")]
    pub encrypted_seed: Vec<u8>,
}
