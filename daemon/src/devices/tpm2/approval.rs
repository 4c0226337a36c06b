//! Approvals of other measurements than keys were made with, by the holder of the
//! recovery key, who keeps its private half elsewhere.
//!
//! What is signed is the policy of the measurements and what names the TPM
//! ([`Reference`]), 32 bytes each: ECDSA with SHA-256 over them. An approval is
//! verified here and by the TPM when it comes, and by the TPM again when it is used.

use std::path::Path;

use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::DecodePublicKey as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::structures::{
    Digest, EccParameter, EccPoint, EccScheme, EccSignature, HashScheme,
    KeyDerivationFunctionScheme, Public, PublicBuilder, PublicEccParameters,
    Signature as TpmSignature, SymmetricDefinitionObject,
};
use tss_esapi::traits::Marshall as _;
use tss_esapi::tss2_esys::TPMT_TK_VERIFIED;

use super::connection::{Connection, Secrecy};
use super::failure;
use super::files::Files;
use super::policy::{Hash, Measured, Reference};
use crate::config::{MeasuredConfig, Pcrs};
use crate::devices::DeviceError;
use crate::private_file::{self, Access};

/// Most approvals that are kept; the oldest one goes.
const MOST: usize = 32;

/// Longest file of a public key.
const MAX_PEM: usize = 16 * 1024;

/// A recovery key: its point on P-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecoveryKey {
    x: [u8; 32],
    y: [u8; 32],
}

/// An approval. It is on disks for years, so it never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Approval {
    /// What is approved.
    policy: Hash,
    /// For which TPM: the device may have had another one before.
    reference: Reference,
    /// By whom.
    pub(super) key: RecoveryKey,
    r: [u8; 32],
    s: [u8; 32],
}

impl RecoveryKey {
    /// Reads the one of the configuration.
    pub(super) fn read(config: &MeasuredConfig) -> Result<Self, DeviceError> {
        let path = &config.recovery_key;
        let unfit = |why: String| DeviceError::Failed {
            reason: format!("the recovery key {}: {why}", path.display()),
        };
        let pem = read_pem(path).map_err(unfit)?;
        Self::from_pem(&pem).map_err(|why| unfit(why.to_owned()))
    }

    fn from_pem(pem: &[u8]) -> Result<Self, &'static str> {
        let unfit = "it has to be a public key on P-256 in PEM (BEGIN PUBLIC KEY)";
        let pem = str::from_utf8(pem).map_err(|_| unfit)?;
        let key = VerifyingKey::from_public_key_pem(pem).map_err(|_| unfit)?;
        let point = key.to_encoded_point(false);
        let (x, y) = point.x().zip(point.y()).ok_or(unfit)?;
        Ok(Self {
            x: (*x).into(),
            y: (*y).into(),
        })
    }

    /// As a TPM loads it.
    fn public(&self) -> tss_esapi::Result<Public> {
        let attributes = ObjectAttributesBuilder::new()
            .with_user_with_auth(true)
            .with_sign_encrypt(true)
            .build()?;
        let (x, y) = (self.x.as_slice(), self.y.as_slice());
        PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
            .with_object_attributes(attributes)
            .with_ecc_parameters(PublicEccParameters::new(
                SymmetricDefinitionObject::Null,
                EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)),
                EccCurve::NistP256,
                KeyDerivationFunctionScheme::Null,
            ))
            .with_ecc_unique_identifier(EccPoint::new(
                EccParameter::try_from(x)?,
                EccParameter::try_from(y)?,
            ))
            .build()
    }

    /// The hash of its public area.
    pub(super) fn hash(&self) -> Result<Hash, DeviceError> {
        let public = self.public().and_then(|public| public.marshall());
        Ok(Sha256::digest(public.map_err(failure::describe)?).into())
    }

    fn verifying(&self) -> Option<VerifyingKey> {
        let point =
            p256::EncodedPoint::from_affine_coordinates(&self.x.into(), &self.y.into(), false);
        VerifyingKey::from_encoded_point(&point).ok()
    }
}

fn read_pem(path: &Path) -> Result<Vec<u8>, String> {
    match private_file::read_up_to(path, Access::Public, MAX_PEM) {
        Ok(pem) => Ok(pem.to_vec()),
        Err(error) => Err(format!(
            "{error}; it has to be a regular file, owned by root or the daemon's user, that nobody else can write"
        )),
    }
}

/// What is to be signed, and is approved thereby.
pub(super) fn to_sign(policy: &Hash, reference: &Reference) -> Vec<u8> {
    [policy.as_slice(), reference.as_bytes()].concat()
}

impl Approval {
    /// Of these measurements, by this signature in DER.
    pub(super) fn verify(
        measured: &Measured,
        reference: &Reference,
        key: RecoveryKey,
        signature: &[u8],
    ) -> Result<Self, DeviceError> {
        let not_approved = |reason: &str| DeviceError::NotApproved {
            reason: reason.to_owned(),
            advice: "make a new request with `mlskeyctl devices measurements`, sign it with the recovery key, and approve with the signature",
        };
        let signature = Signature::from_der(signature)
            .map_err(|_| not_approved("it is no ECDSA signature on P-256 in DER"))?;
        let policy = measured.policy();
        let verified = key.verifying().is_some_and(|key| {
            let signed = to_sign(&policy, reference);
            key.verify(&signed, &signature).is_ok()
        });
        if !verified {
            return Err(not_approved(
                "the recovery key of the configuration did not sign the request of this device for the measurements of now",
            ));
        }
        let (r, s) = signature.split_bytes();
        Ok(Self {
            policy,
            reference: *reference,
            key,
            r: r.into(),
            s: s.into(),
        })
    }
}

/// What is said where no keys are bound to anything that could be approved.
pub(super) fn not_set_up() -> DeviceError {
    DeviceError::NotApproved {
        reason: "the configuration binds the device's keys to no measurements".to_owned(),
        advice: "set `pcrs` and `recovery_key` for the device, and restart the daemon",
    }
}

/// These approvals and a new one; of too many, the newest.
fn with(all: &[Approval], newest: Approval) -> Vec<Approval> {
    let others = all.iter().filter(|other| **other != newest);
    std::iter::once(&newest)
        .chain(others)
        .take(MOST)
        .copied()
        .collect()
}

/// The approvals of a device.
pub(super) struct Approvals {
    /// The newest one first.
    all: Vec<Approval>,
    /// Of approvals that the TPM has verified since it was connected.
    tickets: Vec<(Approval, TPMT_TK_VERIFIED)>,
    /// What registers held when it was looked at them last.
    seen: Option<Measured>,
}

impl Approvals {
    /// Those that are on disk. Of a file that was changed none is used: keys that
    /// need none go on.
    pub(super) fn read(files: &Files) -> Self {
        let all = files.approvals().and_then(|written| {
            let Some(written) = written else {
                return Ok(Vec::new());
            };
            postcard::from_bytes(&written).map_err(|_| DeviceError::Failed {
                reason: "the file of approvals is of another version".to_owned(),
            })
        });
        let all = all.unwrap_or_else(|error| {
            tracing::error!(%error, "approvals of measurements are not used; approve them again");
            Vec::new()
        });
        Self {
            all,
            tickets: Vec::new(),
            seen: None,
        }
    }

    /// Takes one more, durably, after the TPM has verified it.
    pub(super) fn add(
        &mut self,
        files: &Files,
        connection: &mut Connection,
        approval: Approval,
    ) -> Result<(), DeviceError> {
        self.ticket(connection, &approval)?;
        let all = with(&self.all, approval);
        let written = postcard::to_stdvec(&all).map_err(|_| DeviceError::Failed {
            reason: "an approval could not be encoded".to_owned(),
        })?;
        files.write_approvals(&written)?;
        self.all = all;
        Ok(())
    }

    /// The approval of these measurements by this recovery key.
    pub(super) fn find(
        &self,
        measured: &Measured,
        reference: &Reference,
        recovery: &Hash,
    ) -> Option<Approval> {
        let policy = measured.policy();
        let is_it = |approval: &&Approval| {
            approval.policy == policy
                && approval.reference == *reference
                && approval.key.hash().is_ok_and(|hash| hash == *recovery)
        };
        self.all.iter().find(is_it).copied()
    }

    /// What shows the TPM that it has verified an approval: it does so once for each
    /// connection.
    pub(super) fn ticket(
        &mut self,
        connection: &mut Connection,
        approval: &Approval,
    ) -> Result<TPMT_TK_VERIFIED, DeviceError> {
        if let Some((_, ticket)) = self.tickets.iter().find(|(other, _)| other == approval) {
            return Ok(*ticket);
        }
        let verified = connection.verify(approval);
        let ticket = verified.map_err(|error| connection.describe(error))?;
        self.tickets.truncate(MOST.saturating_sub(1));
        self.tickets.insert(0, (*approval, ticket));
        Ok(ticket)
    }

    /// What these registers held last.
    pub(super) fn last_seen(&self, pcrs: Pcrs) -> Option<Measured> {
        self.seen.filter(|seen| seen.pcrs == pcrs)
    }

    pub(super) const fn see(&mut self, measured: Measured) {
        self.seen = Some(measured);
    }
}

impl Connection {
    /// Has the TPM verify an approval. Nothing stays loaded.
    fn verify(&mut self, approval: &Approval) -> tss_esapi::Result<TPMT_TK_VERIFIED> {
        let public = approval.key.public()?;
        let signed = to_sign(&approval.policy, &approval.reference);
        let digest = Digest::try_from(Sha256::digest(signed).as_slice())?;
        let signature = TpmSignature::EcDsa(EccSignature::create(
            HashingAlgorithm::Sha256,
            EccParameter::try_from(approval.r.as_slice())?,
            EccParameter::try_from(approval.s.as_slice())?,
        )?);
        let key = self.run_with_room(Secrecy::Vouched, |context| {
            context.load_external_public(public.clone(), Hierarchy::Owner)
        })?;
        let verified = self.noted_without_session(|context| {
            context.verify_signature(key, digest, signature)?.try_into()
        });
        self.flush(key.into());
        verified
    }
}

#[cfg(test)]
mod tests {
    use p256::SecretKey;
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::Signer as _;
    use p256::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};

    use super::*;

    fn measured(digest: u8) -> Measured {
        Measured {
            pcrs: Pcrs::parse(&[7]).unwrap(),
            digest: [digest; 32],
        }
    }

    fn pem() -> String {
        let public = SecretKey::from_slice(&[3; 32]).unwrap().public_key();
        public.to_public_key_pem(LineEnding::LF).unwrap()
    }

    fn approval(digest: u8) -> Approval {
        let reference = Reference::of(b"the storage key");
        let key = RecoveryKey::from_pem(pem().as_bytes()).unwrap();
        let signing = SigningKey::from_slice(&[3; 32]).unwrap();
        let measured = measured(digest);
        let signed: Signature = signing.sign(&to_sign(&measured.policy(), &reference));
        let signature = signed.to_der();
        Approval::verify(&measured, &reference, key, signature.as_bytes()).unwrap()
    }

    /// As this version writes it. A change here makes all approvals unreadable.
    #[test]
    fn what_is_on_disks_stays_readable() {
        let written = postcard::to_stdvec(&vec![approval(1)]).unwrap();
        assert_eq!(hex::encode(written), WRITTEN);
    }

    const WRITTEN: &str = "0143d23e2d25f412d33b9944f783e635aca494ebdc134ed28ace6864afa683ee253a0b298cf4c918143fcc33c52e111a790fdeda331716f3561c297c6427611ffe591ab771ebbcfd6d9cb9094d106528add1a69d44c2c1f627f089ec58b9c61adf9f4e6abf0d045c0c693a3c68ad7c97ca72be64def4a26fecd263dd98a92780f02e27c1b96118f57b6aca96639db08f87706c7e87a0aa06e545cf35a57b1e71534b212381fe7e66770a2b9f9d1c80675bd8964ae1a53fe0a959f0737a37b54654";

    #[test]
    fn a_recovery_key_is_a_public_key_on_p256() {
        let p384 = p384::SecretKey::from_slice(&[3; 48]).unwrap().public_key();
        let p384 = p384.to_public_key_pem(LineEnding::LF).unwrap();
        let private = SecretKey::from_slice(&[3; 32]).unwrap();
        let private = private.to_pkcs8_pem(LineEnding::LF).unwrap();
        for wrong in [p384.as_str(), &private, "", "no PEM", &pem()[..70]] {
            assert!(RecoveryKey::from_pem(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(RecoveryKey::from_pem(&[0xff]).is_err());
    }

    #[test]
    fn of_too_many_approvals_the_oldest_one_goes() {
        let most = u8::try_from(MOST).unwrap();
        let all = (0..=most).fold(Vec::new(), |all, n| with(&all, approval(n)));
        let expected: Vec<_> = (1..=most).rev().map(approval).collect();
        assert_eq!(all, expected);
        // One that is given again is the newest one.
        let again = with(&all, approval(1));
        assert_eq!((again.len(), again[0]), (MOST, approval(1)));
    }
}
