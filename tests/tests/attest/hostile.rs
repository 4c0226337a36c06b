//! Somebody who has a TPM of his own in hand, and makes of it what he likes.

use std::str::FromStr;

use mlskeyd::attest::tpm::{Keys, Tpm2Challenge, Tpm2Evidence};
use mlskeyd::attest::{Challenge, Claims, DeviceChallenge, Envelope, Evidence, Response};
use mlskeyd_protocol::v1::{Algorithm, SignatureScheme as Scheme, Tier};
use mlskeyd_tests::rig::Swtpm;
use p256::ecdsa::signature::Signer;
use p256::elliptic_curve::sec1::ToEncodedPoint;
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder};
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{AuthHandle, KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Data, Digest, EccParameter, EccPoint, EccScheme, EncryptedSecret, HashScheme, IdObject,
    KeyDerivationFunctionScheme, Nonce, Public, PublicBuilder, PublicEccParameters, Sensitive,
    SignatureScheme, SymmetricDefinition, SymmetricDefinitionObject,
};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::{Context, Result};

use super::scene::NONCE;

/// A key in a TPM: its handle, and its public area.
pub type Loaded = (KeyHandle, Vec<u8>);

/// An endorsement key: its certificate, and its public area.
pub type Ek = (Vec<u8>, Vec<u8>);

/// Somebody connected to a TPM; nobody else is.
pub struct Hostile {
    context: Context,
    ek_certificate: Vec<u8>,
}

impl Hostile {
    /// One who has this TPM, which swtpm_setup made.
    pub fn with(tpm: &Swtpm) -> Self {
        Self::over(tpm, &tpm.tcti())
    }

    /// The same, who reaches it like this.
    pub fn over(tpm: &Swtpm, tcti: &str) -> Self {
        tpm.tool(&["nvread", "0x01c00002", "-o", "ek.der"]);
        let tcti = TctiNameConf::from_str(tcti).unwrap();
        Self {
            context: Context::new(tcti).unwrap(),
            ek_certificate: std::fs::read(tpm.state().join("ek.der")).unwrap(),
        }
    }

    /// The TPM's endorsement key.
    pub fn ek(&mut self) -> Ek {
        (self.ek_certificate.clone(), self.loaded_ek().1)
    }

    /// As swtpm_setup left it in the TPM.
    fn loaded_ek(&mut self) -> Loaded {
        let handle = TpmHandle::Persistent(PersistentTpmHandle::new(0x8101_0001).unwrap());
        let (handle, public) = self
            .context
            .execute_without_session(|context| {
                let handle = KeyHandle::from(context.tr_from_tpm_public(handle)?);
                let (public, _, _) = context.read_public(handle)?;
                Ok::<_, tss_esapi::Error>((handle, public))
            })
            .unwrap();
        (handle, public.marshall().unwrap())
    }

    /// An attestation key that the TPM makes.
    pub fn real_ak(&mut self) -> Loaded {
        self.make(attestation(), Use::Attest)
    }

    /// A key that the TPM makes.
    pub fn real_key(&mut self) -> Loaded {
        self.make(fixed_signer(), Use::Sign)
    }

    fn make(&mut self, attributes: ObjectAttributes, usage: Use) -> Loaded {
        let zeros = || EccParameter::try_from(vec![0; 32]).unwrap();
        let point = EccPoint::new(zeros(), zeros());
        let template = public(attributes, usage, point).unwrap();
        let made = self
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
            });
        let made = made.unwrap();
        (made.key_handle, made.out_public.marshall().unwrap())
    }

    /// A key that was made elsewhere, loaded to be certified.
    pub fn import(&mut self, key: &p256::SecretKey) -> Result<Loaded> {
        let attributes = ObjectAttributesBuilder::new()
            .with_user_with_auth(true)
            .with_sign_encrypt(true)
            .build()?;
        let public = public(attributes, Use::Sign, point(&key.public_key()))?;
        let sensitive = Sensitive::Ecc {
            auth_value: Default::default(),
            seed_value: Default::default(),
            sensitive: EccParameter::try_from(key.to_bytes().as_slice())?,
        };
        let written = public.marshall()?;
        let handle = self.context.execute_without_session(|context| {
            context.load_external(sensitive, public, Hierarchy::Null)
        })?;
        Ok((handle, written))
    }

    pub fn flush(&mut self, (handle, _): Loaded) {
        self.context.flush_context(handle.into()).unwrap();
    }

    /// Evidence of a real attestation key for a key that is loaded, beside any
    /// endorsement key.
    pub fn certify(&mut self, ek: Ek, ak: &Loaded, key: &Loaded, claims: &Claims) -> Envelope {
        let keys = keys(ek, ak.1.clone(), key.1.clone());
        let data = Data::try_from(keys.statement(claims).as_slice()).unwrap();
        let password = Some(AuthSession::Password);
        let sessions = (password, password, None);
        let certified = self.context.execute_with_sessions(sessions, |context| {
            context.certify(key.0.into(), ak.0, data, SignatureScheme::Null)
        });
        let (certification, signature) = certified.unwrap();
        let certification = certification.marshall().unwrap();
        envelope(claims, keys, certification, signature.marshall().unwrap())
    }

    /// Evidence of an attestation key that is no TPM's, beside the TPM's own
    /// certificate.
    pub fn pretend(&mut self, ak: &SoftwareAk, key: &p256::SecretKey) -> Envelope {
        let claims = claims(&key.public_key());
        let area = public(fixed_signer(), Use::Sign, point(&key.public_key()));
        let area = area.unwrap().marshall().unwrap();
        let keys = keys(self.ek(), ak.public(), area.clone());
        let name = <sha2::Sha256 as sha2::Digest>::digest(&area);
        let certification = [
            &b"\xffTCG\x80\x17\0\0\0\x20"[..],
            &keys.statement(&claims),
            &[0; 17],
            &[0; 8],
            b"\0\x22\0\x0b",
            &name,
            b"\0\0",
        ]
        .concat();
        let signature: p256::ecdsa::Signature = ak.key.sign(&certification);
        let (r, s) = signature.split_bytes();
        let signature = [&b"\0\x18\0\x0b\0\x20"[..], &r, b"\0\x20", &s].concat();
        envelope(&claims, keys, certification, signature)
    }

    /// Tries to have the TPM open a challenge that was made for a key which it never
    /// had: only its public half can be loaded under its name.
    pub fn activate_public_only(&mut self, ak: &SoftwareAk, challenge: &Challenge) -> Result<()> {
        let public = Public::unmarshall(&ak.public())?;
        let handle = self.context.execute_without_session(|context| {
            context.load_external_public(public, Hierarchy::Endorsement)
        })?;
        let opened = self.activate(handle, challenge).map(|_| ());
        self.context.flush_context(handle.into())?;
        opened
    }

    /// Tries to load all of it.
    pub fn load_software_ak(&mut self, ak: &SoftwareAk) -> Result<()> {
        let public = Public::unmarshall(&ak.public())?;
        let sensitive = Sensitive::Ecc {
            auth_value: Default::default(),
            seed_value: Default::default(),
            sensitive: EccParameter::try_from(ak.key.to_bytes().as_slice())?,
        };
        let loaded = self.context.execute_without_session(|context| {
            context.load_external(sensitive, public, Hierarchy::Null)
        });
        loaded.map(|_| ())
    }

    /// Has the TPM open a challenge, with this attestation key.
    pub fn activate(&mut self, ak: KeyHandle, challenge: &Challenge) -> Result<Response> {
        let DeviceChallenge::Tpm2(Tpm2Challenge {
            credential,
            encrypted_seed,
            ..
        }) = &challenge.challenge;
        let (credential, seed) = (
            IdObject::try_from(credential.as_slice())?,
            EncryptedSecret::try_from(encrypted_seed.as_slice())?,
        );
        let (ek, _) = self.loaded_ek();
        let policy = self.context.execute_without_session(|context| {
            context.start_auth_session(
                None,
                None,
                None,
                SessionType::Policy,
                SymmetricDefinition::AES_128_CFB,
                HashingAlgorithm::Sha256,
            )
        })?;
        let policy = policy.unwrap();
        self.context
            .execute_with_session(Some(AuthSession::Password), |context| {
                let (nonce, none) = (Nonce::default(), Digest::default());
                let endorsement = AuthHandle::Endorsement;
                let session = policy.try_into()?;
                context.policy_secret(session, endorsement, nonce.clone(), none, nonce, None)
            })?;
        let sessions = (Some(AuthSession::Password), Some(policy), None);
        let opened = self.context.execute_with_sessions(sessions, |context| {
            context.activate_credential(ak, ek, credential, seed)
        })?;
        Ok(challenge.answer(&opened.value().try_into().unwrap()))
    }
}

/// An attestation key in a file.
pub struct SoftwareAk {
    key: p256::ecdsa::SigningKey,
}

impl SoftwareAk {
    pub fn new() -> Self {
        let key = p256::ecdsa::SigningKey::from(secret_key(9));
        Self { key }
    }

    /// What a TPM would say of it if it had made it.
    fn public(&self) -> Vec<u8> {
        let point = point(&self.key.verifying_key().into());
        let public = public(attestation(), Use::Attest, point).unwrap();
        public.marshall().unwrap()
    }
}

pub fn secret_key(number: u8) -> p256::SecretKey {
    p256::SecretKey::from_slice(&[number; 32]).unwrap()
}

/// That this key is alice's, and in hardware.
pub fn claims(key: &p256::PublicKey) -> Claims {
    Claims {
        uid: 1000,
        app: "default".to_owned(),
        identity: "alice".to_owned(),
        device: "tpm".to_owned(),
        key: [7; 16],
        algorithm: Algorithm::Signature(Scheme::EcdsaP256Sha256),
        tier: Tier::Hardware,
        public_key: key.to_encoded_point(false).as_bytes().to_vec(),
        nonce: hex::decode(NONCE).unwrap(),
    }
}

/// The same of a key in a TPM.
pub fn claims_of((_, public): &Loaded) -> Claims {
    let Public::Ecc { unique, .. } = Public::unmarshall(public).unwrap() else {
        panic!("a key on a curve")
    };
    let padded = |number: &[u8]| [&vec![0; 32 - number.len()], number].concat();
    let point = [&[4][..], &padded(unique.x()), &padded(unique.y())].concat();
    claims(&p256::PublicKey::from_sec1_bytes(&point).unwrap())
}

fn keys((ek_certificate, ek_public): Ek, ak_public: Vec<u8>, key_public: Vec<u8>) -> Keys {
    Keys {
        ek_certificate,
        ek_chain: Vec::new(),
        ek_public,
        ak_public,
        key_public,
    }
}

fn envelope(claims: &Claims, keys: Keys, certification: Vec<u8>, signature: Vec<u8>) -> Envelope {
    Envelope {
        claims: claims.clone(),
        evidence: Evidence::Tpm2(Tpm2Evidence {
            keys,
            certification,
            signature,
        }),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Attest,
    Sign,
}

/// The attributes of a key that the TPM made, and that never leaves it.
fn fixed() -> ObjectAttributesBuilder {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_sign_encrypt(true)
}

fn fixed_signer() -> ObjectAttributes {
    fixed().build().unwrap()
}

fn attestation() -> ObjectAttributes {
    fixed().with_restricted(true).build().unwrap()
}

fn public(attributes: ObjectAttributes, usage: Use, point: EccPoint) -> Result<Public> {
    let scheme = match usage {
        Use::Attest => EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)),
        Use::Sign => EccScheme::Null,
    };
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(PublicEccParameters::new(
            SymmetricDefinitionObject::Null,
            scheme,
            EccCurve::NistP256,
            KeyDerivationFunctionScheme::Null,
        ))
        .with_ecc_unique_identifier(point)
        .build()
}

fn point(key: &p256::PublicKey) -> EccPoint {
    let encoded = key.to_encoded_point(false);
    let coordinate = |bytes: &[u8]| EccParameter::try_from(bytes).unwrap();
    EccPoint::new(
        coordinate(encoded.x().unwrap()),
        coordinate(encoded.y().unwrap()),
    )
}
