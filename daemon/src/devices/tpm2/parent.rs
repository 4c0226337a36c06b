//! The storage key that all keys hang under.

use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder};
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm, SymmetricMode};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    EccParameter, EccPoint, Public, PublicBuilder, PublicEccParametersBuilder,
    SymmetricDefinitionObject,
};
use tss_esapi::{Context, Result};

use super::capabilities::is_there;
use super::failure::{self, Verdict};
use crate::devices::DeviceError;

/// Where systems put it (TCG Provisioning Guidance, 7.8).
const PERSISTENT: u32 = 0x8100_0001;

/// Where a storage key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Somebody made it and left it in the TPM.
    Persistent,
    /// The TPM makes it anew, always the same one, from its owner seed.
    Primary,
}

impl Origin {
    /// In the order in which they are tried.
    pub(super) const ALL: [Self; 2] = [Self::Persistent, Self::Primary];
}

/// A storage key.
pub(super) struct Parent {
    pub(super) handle: KeyHandle,
    /// The hash of its public area.
    pub(super) name: Vec<u8>,
}

/// The storage key of this origin, if there is one that may be used.
pub(super) fn find(
    context: &mut Context,
    origin: Origin,
) -> std::result::Result<Option<Parent>, DeviceError> {
    let found = match origin {
        Origin::Persistent => persistent(context).map_err(failure::describe)?,
        Origin::Primary => Some(primary(context)?),
    };
    let Some(handle) = found else {
        return Ok(None);
    };
    let name = context.tr_get_name(handle.into());
    let name = name.map_err(failure::describe)?.value().to_vec();
    Ok(Some(Parent { handle, name }))
}

fn persistent(context: &mut Context) -> Result<Option<KeyHandle>> {
    let handle = TpmHandle::Persistent(PersistentTpmHandle::new(PERSISTENT)?);
    if !is_there(context, handle)? {
        return Ok(None);
    }
    let found = context.execute_without_session(|context| context.tr_from_tpm_public(handle))?;
    let found = KeyHandle::from(found);
    let (public, _, _) = context.execute_without_session(|context| context.read_public(found))?;
    Ok(is_suitable(&public)?.then_some(found))
}

/// A storage key that never leaves the TPM, was made in it, and is used with an
/// authorisation value, for which wrong ones are not counted; and as strong as the
/// one that the TPM makes here, in every part: what hangs under it is no stronger.
fn is_suitable(public: &Public) -> Result<bool> {
    let is_strong = match public {
        Public::Ecc { parameters, .. } => matches!(
            parameters.ecc_curve(),
            EccCurve::NistP256 | EccCurve::NistP384 | EccCurve::NistP521
        ),
        Public::Rsa { parameters, .. } => matches!(
            parameters.key_bits(),
            RsaKeyBits::Rsa2048 | RsaKeyBits::Rsa3072 | RsaKeyBits::Rsa4096
        ),
        _ => false,
    };
    // AES begins at 128 bits.
    let wraps = matches!(
        public.symmetric_algorithm(),
        Some(SymmetricDefinitionObject::Aes {
            mode: SymmetricMode::Cfb,
            ..
        })
    );
    let found = public.object_attributes();
    Ok(is_strong
        && wraps
        && public.name_hashing_algorithm() == HashingAlgorithm::Sha256
        && found == attributes()?
        && public.auth_policy().is_empty())
}

fn attributes() -> Result<ObjectAttributes> {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()
}

/// The TCG's template (Provisioning Guidance, 7.5.1, with the curve P-256).
fn template() -> Result<Public> {
    let zeros = || EccParameter::try_from(vec![0; 32]);
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes()?)
        .with_ecc_parameters(
            PublicEccParametersBuilder::new_restricted_decryption_key(
                SymmetricDefinitionObject::AES_128_CFB,
                EccCurve::NistP256,
            )
            .build()?,
        )
        .with_ecc_unique_identifier(EccPoint::new(zeros()?, zeros()?))
        .build()
}

pub(super) fn primary(context: &mut Context) -> std::result::Result<KeyHandle, DeviceError> {
    let template = template().map_err(failure::describe)?;
    let made = context.execute_with_session(Some(AuthSession::Password), |context| {
        context.create_primary(Hierarchy::Owner, template, None, None, None, None)
    });
    match made {
        Ok(made) => Ok(made.key_handle),
        Err(error) if failure::verdict(error) == Verdict::WrongAuth => Err(owner_password()),
        Err(error) => Err(failure::describe(error)),
    }
}

/// What is said where the owner of the TPM has a password.
pub(super) fn owner_password() -> DeviceError {
    DeviceError::Failed {
        reason: "the TPM's owner hierarchy has a password, which mlskeyd does not take; remove it with `tpm2_changeauth -c owner -p PASSWORD`".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use tss_esapi::interface_types::algorithm::RsaSchemeAlgorithm;
    use tss_esapi::structures::{PublicKeyRsa, PublicRsaParametersBuilder, RsaExponent, RsaScheme};

    use super::*;

    fn rsa(bits: RsaKeyBits, wraps: SymmetricDefinitionObject, name: HashingAlgorithm) -> Public {
        let parameters = PublicRsaParametersBuilder::new()
            .with_symmetric(wraps)
            .with_scheme(RsaScheme::create(RsaSchemeAlgorithm::Null, None).unwrap())
            .with_key_bits(bits)
            .with_exponent(RsaExponent::default())
            .with_is_decryption_key(true)
            .with_restricted(true);
        PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::Rsa)
            .with_name_hashing_algorithm(name)
            .with_object_attributes(attributes().unwrap())
            .with_rsa_parameters(parameters.build().unwrap())
            .with_rsa_unique_identifier(PublicKeyRsa::default())
            .build()
            .unwrap()
    }

    #[test]
    fn a_weaker_storage_key_than_our_own_is_not_taken() {
        let good = (
            RsaKeyBits::Rsa2048,
            SymmetricDefinitionObject::AES_128_CFB,
            HashingAlgorithm::Sha256,
        );
        let is_taken = |(bits, wraps, name)| is_suitable(&rsa(bits, wraps, name)).unwrap();
        assert!(is_taken(good) && is_suitable(&template().unwrap()).unwrap());
        assert!(is_taken((
            RsaKeyBits::Rsa3072,
            SymmetricDefinitionObject::AES_256_CFB,
            good.2
        )));
        assert!(!is_taken((RsaKeyBits::Rsa1024, good.1, good.2)));
        assert!(!is_taken((good.0, good.1, HashingAlgorithm::Sha1)));
        let camellia = SymmetricDefinitionObject::Camellia {
            key_bits: tss_esapi::interface_types::key_bits::CamelliaKeyBits::Camellia128,
            mode: SymmetricMode::Cfb,
        };
        assert!(!is_taken((good.0, camellia, good.2)));
    }
}
