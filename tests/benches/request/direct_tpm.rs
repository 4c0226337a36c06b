//! Direct use of a TPM: one loaded key, used in one session like the daemon's.

use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder, SessionAttributesBuilder};
use tss_esapi::constants::SessionType;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Auth, Digest, EccPoint, EccScheme, HashScheme, HashcheckTicket, Public, PublicBuilder,
    PublicEccParametersBuilder, Signature, SignatureScheme, SymmetricDefinition,
    SymmetricDefinitionObject,
};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;
use tss_esapi::{Context, Result};

use super::direct::MESSAGE;

/// A connection to a TPM with a key that signs.
pub struct Tpm {
    context: Context,
    /// Salted to the storage key, as the daemon's.
    session: AuthSession,
    key: KeyHandle,
}

impl Tpm {
    /// Connects, and makes the key.
    pub fn open(tcti: &str) -> Self {
        Self::try_open(tcti).expect("a TPM")
    }

    fn try_open(tcti: &str) -> Result<Self> {
        let mut context = Context::new(TctiNameConf::from_str(tcti)?)?;
        let parent = context.execute_with_session(Some(AuthSession::Password), |context| {
            context.create_primary(Hierarchy::Owner, storage()?, None, None, None, None)
        })?;
        let parent = parent.key_handle;
        let session = context.start_auth_session(
            Some(parent),
            None,
            None,
            SessionType::Hmac,
            SymmetricDefinition::AES_128_CFB,
            HashingAlgorithm::Sha256,
        )?;
        let session = session.expect("a session");
        let (attributes, mask) = SessionAttributesBuilder::new()
            .with_continue_session(true)
            .build();
        context.tr_sess_set_attributes(session, attributes, mask)?;
        let auth = || Auth::try_from([7; 32].as_slice());
        let key = context.execute_with_session(Some(session), |context| {
            let made = context.create(parent, signer()?, Some(auth()?), None, None, None)?;
            context.load(parent, made.out_private, made.out_public)
        })?;
        context.tr_set_auth(key.into(), auth()?)?;
        Ok(Self {
            context,
            session,
            key,
        })
    }

    pub fn sign(&mut self) {
        let key = self.key;
        let session = Some(self.session);
        let signed = self.context.execute_with_session(session, |context| {
            let digest = Digest::try_from(Sha256::digest(MESSAGE).as_slice())?;
            context.sign(key, digest, SignatureScheme::Null, no_ticket()?)
        });
        assert!(matches!(signed.expect("a signature"), Signature::EcDsa(_)));
    }
}

fn storage() -> Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
        SymmetricDefinitionObject::AES_128_CFB,
        EccCurve::NistP256,
    );
    ecc(attributes, parameters)
}

fn signer() -> Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_sign_encrypt(true)
        .build()?;
    let scheme = EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256));
    let parameters =
        PublicEccParametersBuilder::new_unrestricted_signing_key(scheme, EccCurve::NistP256);
    ecc(attributes, parameters)
}

fn ecc(attributes: ObjectAttributes, parameters: PublicEccParametersBuilder) -> Result<Public> {
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters.build()?)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

fn no_ticket() -> Result<HashcheckTicket> {
    HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
        tag: TPM2_ST_HASHCHECK,
        hierarchy: TPM2_RH_NULL,
        ..TPMT_TK_HASHCHECK::default()
    })
}
