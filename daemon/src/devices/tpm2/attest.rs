//! What shows others that a key is in this TPM: its certification by the attestation
//! key, and the answer to who asks whether that one is in this TPM, too.
//!
//! The attestation key is a primary key of the endorsement hierarchy: the TPM makes
//! the same one from its seed whenever it is asked, so there is nothing to keep, and
//! nothing is left in the TPM. Anybody who may use the TPM may have it; it signs
//! nothing but what the TPM says of itself.

use tss_esapi::handles::{AuthHandle, KeyHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Data, Digest, EccParameter, EccPoint, EccScheme, EncryptedSecret, HashScheme, IdObject,
    KeyDerivationFunctionScheme, Nonce, Public, PublicBuilder, PublicEccParameters,
    SignatureScheme, SymmetricDefinitionObject,
};
use tss_esapi::traits::Marshall;
use tss_esapi::{Error, Result};
use zeroize::Zeroizing;

use super::blob::Object;
use super::connection::{Connection, Secrecy, session_handle};
use super::policy::Policy;
use super::{failure, loaded};
use crate::attest::tpm::{Keys, Tpm2Challenge, Tpm2Evidence, attribute};
use crate::attest::{Claims, Evidence};
use crate::devices::DeviceError;

/// Its attributes: it signs what the TPM says, and for whoever may use the TPM.
const ATTRIBUTES: u32 = attribute::FIXED_TPM
    | attribute::FIXED_PARENT
    | attribute::SENSITIVE_DATA_ORIGIN
    | attribute::USER_WITH_AUTH
    | attribute::NO_DA
    | attribute::RESTRICTED
    | attribute::SIGN;

/// What makes it ours: a template without this is somebody else's.
const UNIQUE: &[u8; 32] = b"mlskeyd attestation key 1\0\0\0\0\0\0\0";

impl Connection {
    /// Evidence that a key is in this TPM.
    pub(super) fn attest(
        &mut self,
        name: loaded::Name,
        object: Object,
        auth: &[u8; 32],
        policy: Option<&Policy>,
        claims: &Claims,
    ) -> std::result::Result<Evidence, DeviceError> {
        self.make_room();
        let (ek_certificate, ek_public) = self.certified()?;
        let ek_chain = self.chain()?;
        self.with_attestation_key(|connection, ak, ak_public| {
            // The last one, so that nothing takes its room.
            let key = connection.load(name, &object, auth);
            let key = key.map_err(|error| connection.describe(error))?;
            let keys = Keys {
                ek_certificate,
                ek_chain,
                ek_public,
                ak_public,
                key_public: object.public,
            };
            let statement = keys.statement(claims);
            let session = match policy {
                None => connection.session(),
                Some(policy) => connection.satisfy_certify(policy)?,
            };
            let certified = connection.run_with(
                session,
                Secrecy::Nothing,
                // It has the empty authorisation value.
                Some(AuthSession::Password),
                |context| {
                    let statement = Data::try_from(statement.as_slice())?;
                    context.certify(key, ak, statement, SignatureScheme::Null)
                },
            );
            let written = certified.and_then(|(certification, signature)| {
                Ok((certification.marshall()?, signature.marshall()?))
            });
            let (certification, signature) = written.map_err(|error| connection.describe(error))?;
            Ok(Evidence::Tpm2(Tpm2Evidence {
                keys,
                certification,
                signature,
            }))
        })
    }

    /// Opens a challenge that was made for this TPM's endorsement key and its
    /// attestation key.
    pub(super) fn activate(
        &mut self,
        challenge: &Tpm2Challenge,
    ) -> std::result::Result<Zeroizing<[u8; 32]>, DeviceError> {
        // What is too long for the TPM's structures is none of its challenges.
        let foreign = |_: Error| DeviceError::ForeignChallenge;
        let credential = IdObject::try_from(challenge.credential.as_slice()).map_err(foreign)?;
        let seed = EncryptedSecret::try_from(challenge.encrypted_seed.as_slice());
        let seed = seed.map_err(foreign)?;
        // Nobody makes the TPM busy for minutes by naming a key that nobody certified.
        if !self.has_certificate(challenge.ek)? {
            return Err(DeviceError::ForeignChallenge);
        }
        self.make_room();
        self.with_attestation_key(|connection, ak, _| {
            connection.with_endorsement_key(challenge.ek, |connection, ek, _| {
                let policy = connection.satisfy_endorsement_policy()?;
                let (session, of_ek) = (connection.session(), Some(policy.into()));
                let opened = connection.run_with(session, Secrecy::Answer, of_ek, |context| {
                    context.activate_credential(ak, ek, credential, seed)
                });
                connection.flush(session_handle(policy.into()));
                let secret = opened.map_err(|error| {
                    if connection.is_of_challenge(error) {
                        DeviceError::ForeignChallenge
                    } else {
                        connection.describe(error)
                    }
                })?;
                let mut opened = Zeroizing::new([0; 32]);
                if secret.len() != opened.len() {
                    return Err(DeviceError::ForeignChallenge);
                }
                opened.copy_from_slice(&secret);
                Ok(opened)
            })
        })
    }

    /// Storage key, endorsement key and attestation key are all that has room in some
    /// TPMs, where also a key in permanent memory takes some while it is used.
    fn make_room(&mut self) {
        self.unload(|_| true);
    }

    /// Does something with the attestation key: its handle, and its public area.
    fn with_attestation_key<T>(
        &mut self,
        work: impl FnOnce(&mut Self, KeyHandle, Vec<u8>) -> std::result::Result<T, DeviceError>,
    ) -> std::result::Result<T, DeviceError> {
        let template = template().map_err(failure::describe)?;
        self.with_primary(&template, work)
    }

    /// Is a challenge wrong that was not opened?
    fn is_of_challenge(&mut self, error: Error) -> bool {
        // Some TPMs say that they failed if an RSA key cannot decrypt something. One that
        // really did would not do this either.
        let serves = |connection: &mut Self| {
            let parent = connection.parent();
            let read = connection.noted_without_session(|context| context.read_public(parent));
            read.is_ok()
        };
        failure::is_of_parameter(error) || (failure::is_own_fault(error) && serves(self))
    }

    /// A session in which the endorsement key may be used: whoever has the password of
    /// the endorsement hierarchy, an empty one, may.
    fn satisfy_endorsement_policy(&mut self) -> std::result::Result<PolicySession, DeviceError> {
        let started = self.start_policy_session(None);
        let policy = started.map_err(|error| self.describe(error))?;
        let satisfied = self.run(Secrecy::Nothing, |context| {
            let (nonce, none) = (Nonce::default(), Digest::default());
            context.policy_secret(
                policy,
                AuthHandle::Endorsement,
                nonce.clone(),
                none,
                nonce,
                None,
            )
        });
        match satisfied {
            Ok(_) => Ok(policy),
            Err(error) => {
                self.flush(session_handle(policy.into()));
                Err(self.describe_endorsement(error))
            }
        }
    }
}

fn template() -> Result<Public> {
    let x = EccParameter::try_from(UNIQUE.as_slice())?;
    let y = EccParameter::try_from(vec![0; 32])?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(ATTRIBUTES.into())
        .with_ecc_parameters(PublicEccParameters::new(
            SymmetricDefinitionObject::Null,
            EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)),
            EccCurve::NistP256,
            KeyDerivationFunctionScheme::Null,
        ))
        .with_ecc_unique_identifier(EccPoint::new(x, y))
        .build()
}
