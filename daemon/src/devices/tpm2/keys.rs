//! Keys: made by the TPM or sealed by it, loaded, and used.

use secrecy::{ExposeSecretMut, SecretBox};
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder};
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::{KeyHandle, ObjectHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::structures::{
    Auth, CreateKeyResult, Digest, EccParameter, EccPoint, EccScheme, HashScheme, HashcheckTicket,
    KeyDerivationFunctionScheme, KeyedHashScheme, Private, Public, PublicBuilder,
    PublicEccParameters, PublicEccParametersBuilder, PublicKeyedHashParameters, SensitiveData,
    Signature, SignatureScheme,
};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;
use tss_esapi::{Error, Result, WrapperErrorKind};
use zeroize::Zeroizing;

use super::blob::Object;
use super::connection::{Connection, Secrecy};
use super::loaded;

/// What a key of the TPM's is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Sign,
    Agree,
}

/// What a wrong authorisation value for an object costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WrongTries {
    /// Nothing: it is 32 random bytes.
    Free,
    /// The TPM counts it, since a PIN is in it.
    Counted,
}

impl Connection {
    /// Has the TPM make a key on P-256: the object, and the public key.
    pub(super) fn create(
        &mut self,
        usage: Use,
        auth: &[u8; 32],
        tries: WrongTries,
    ) -> Result<(Object, [u8; 65])> {
        let template = template(usage, tries)?;
        let parent = self.parent();
        let made = self.run_with_room(Secrecy::Request, |context| {
            let auth = Auth::try_from(auth.as_slice())?;
            context.create(parent, template.clone(), Some(auth), None, None, None)
        })?;
        let Public::Ecc { unique, .. } = &made.out_public else {
            return Err(misfit());
        };
        let public = uncompressed(unique)?;
        if !is_as_wanted(&made.out_public, &template) {
            return Err(misfit());
        }
        Ok((object(&made)?, public))
    }

    /// Has the TPM encrypt 32 bytes.
    pub(super) fn seal(
        &mut self,
        secret: &[u8; 32],
        auth: &[u8; 32],
        tries: WrongTries,
    ) -> Result<Object> {
        let template = sealed_template(tries)?;
        let parent = self.parent();
        let made = self.run_with_room(Secrecy::Request, |context| {
            let auth = Auth::try_from(auth.as_slice())?;
            let secret = SensitiveData::try_from(secret.as_slice())?;
            context.create(
                parent,
                template.clone(),
                Some(auth),
                Some(secret),
                None,
                None,
            )
        })?;
        if !is_as_wanted(&made.out_public, &template) {
            return Err(misfit());
        }
        object(&made)
    }

    /// The handle of a key, which is loaded if it is not.
    pub(super) fn load(
        &mut self,
        name: loaded::Name,
        object: &Object,
        auth: &[u8; 32],
    ) -> Result<ObjectHandle> {
        if let Some(handle) = self.loaded.touch(name) {
            return Ok(handle);
        }
        let parent = self.parent();
        let (private, public) = (
            Private::try_from(object.private.as_slice())?,
            Public::unmarshall(&object.public)?,
        );
        let handle = self.run_with_room(Secrecy::Nothing, |context| {
            context.load(parent, private.clone(), public.clone())
        })?;
        let handle = ObjectHandle::from(handle);
        let set =
            Auth::try_from(auth.as_slice()).and_then(|auth| self.context.tr_set_auth(handle, auth));
        if let Err(error) = set {
            self.flush(handle);
            return Err(error);
        }
        self.loaded.insert(name, handle);
        Ok(handle)
    }

    /// Takes the keys out of the TPM that this is true of.
    pub(super) fn unload(&mut self, is_one: impl Fn(loaded::Name) -> bool) {
        while let Some(handle) = self.loaded.remove(&is_one) {
            self.flush(handle);
        }
    }

    /// ECDSA over a digest: r and s.
    pub(super) fn sign(
        &mut self,
        key: ObjectHandle,
        digest: &[u8; 32],
    ) -> Result<([u8; 32], [u8; 32])> {
        let signature = self.run(Secrecy::Nothing, |context| {
            context.sign(
                KeyHandle::from(key),
                Digest::try_from(digest.as_slice())?,
                SignatureScheme::Null,
                not_hashed_by_the_tpm()?,
            )
        })?;
        let Signature::EcDsa(signature) = signature else {
            return Err(misfit());
        };
        Ok((
            *padded(signature.signature_r())?,
            *padded(signature.signature_s())?,
        ))
    }

    /// The x-coordinate of ECDH with a point that is on the curve.
    pub(super) fn agree(
        &mut self,
        key: ObjectHandle,
        (x, y): (&[u8], &[u8]),
    ) -> Result<SecretBox<[u8; 32]>> {
        let point = self.run(Secrecy::Answer, |context| {
            let peer = EccPoint::new(EccParameter::try_from(x)?, EccParameter::try_from(y)?);
            context.ecdh_z_gen(KeyHandle::from(key), peer)
        })?;
        let mut shared = SecretBox::new(Box::new([0; 32]));
        *shared.expose_secret_mut() = *padded(point.x())?;
        Ok(shared)
    }

    /// What was sealed.
    pub(super) fn unseal(&mut self, sealed: ObjectHandle) -> Result<Zeroizing<[u8; 32]>> {
        let data = self.run(Secrecy::Answer, |context| context.unseal(sealed))?;
        let mut secret = Zeroizing::new([0; 32]);
        if data.len() != secret.len() {
            return Err(misfit());
        }
        secret.copy_from_slice(&data);
        Ok(secret)
    }
}

/// Bound to this TPM and this parent, used with an authorisation value of 32 bytes.
fn attributes(tries: WrongTries) -> ObjectAttributesBuilder {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_user_with_auth(true)
        .with_no_da(tries == WrongTries::Free)
}

fn template(usage: Use, tries: WrongTries) -> Result<Public> {
    let attributes = attributes(tries)
        .with_sensitive_data_origin(true)
        .with_sign_encrypt(usage == Use::Sign)
        .with_decrypt(usage == Use::Agree)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters(usage)?)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

fn parameters(usage: Use) -> Result<PublicEccParameters> {
    let sha256 = HashScheme::new(HashingAlgorithm::Sha256);
    let scheme = match usage {
        Use::Sign => EccScheme::EcDsa(sha256),
        Use::Agree => EccScheme::EcDh(sha256),
    };
    PublicEccParametersBuilder::new()
        .with_ecc_scheme(scheme)
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_signing_key(usage == Use::Sign)
        .with_is_decryption_key(usage == Use::Agree)
        .build()
}

fn sealed_template(tries: WrongTries) -> Result<Public> {
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes(tries).build()?)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::default())
        .build()
}

/// Did the TPM make what it was told? All but what it chooses itself.
fn is_as_wanted(made: &Public, template: &Public) -> bool {
    let common = |public: &Public| -> (ObjectAttributes, HashingAlgorithm, Digest) {
        (
            public.object_attributes(),
            public.name_hashing_algorithm(),
            public.auth_policy().clone(),
        )
    };
    let same_parameters = match (made, template) {
        (
            Public::Ecc { parameters, .. },
            Public::Ecc {
                parameters: wanted, ..
            },
        ) => parameters == wanted,
        (
            Public::KeyedHash { parameters, .. },
            Public::KeyedHash {
                parameters: wanted, ..
            },
        ) => parameters == wanted,
        _ => false,
    };
    same_parameters && common(made) == common(template)
}

fn object(made: &CreateKeyResult) -> Result<Object> {
    Ok(Object {
        private: made.out_private.value().to_vec(),
        public: made.out_public.marshall()?,
    })
}

/// The proof that the TPM hashed something, for a key that does not ask for one.
fn not_hashed_by_the_tpm() -> Result<HashcheckTicket> {
    HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
        tag: TPM2_ST_HASHCHECK,
        hierarchy: TPM2_RH_NULL,
        ..TPMT_TK_HASHCHECK::default()
    })
}

/// A point as SEC1 writes it.
fn uncompressed(point: &EccPoint) -> Result<[u8; 65]> {
    let mut bytes = [0; 65];
    let (x, y) = (padded(point.x())?, padded(point.y())?);
    let written = [4].iter().chain(x.iter()).chain(y.iter());
    for (to, from) in bytes.iter_mut().zip(written) {
        *to = *from;
    }
    Ok(bytes)
}

/// A number of 32 bytes; TPMs may leave out the zeros at its beginning.
fn padded(number: &EccParameter) -> Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    let missing = bytes.len().checked_sub(number.len()).ok_or_else(misfit)?;
    for (to, from) in bytes.iter_mut().skip(missing).zip(number.iter()) {
        *to = *from;
    }
    Ok(bytes)
}

const fn misfit() -> Error {
    Error::WrapperError(WrapperErrorKind::WrongValueFromTpm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_leading_zeros() {
        let number = |bytes: &[u8]| EccParameter::try_from(bytes).unwrap();
        let mut expected = [0; 32];
        assert_eq!(*padded(&number(&[])).unwrap(), expected);
        expected[30..].copy_from_slice(&[1, 2]);
        assert_eq!(*padded(&number(&[1, 2])).unwrap(), expected);
        assert_eq!(*padded(&number(&expected)).unwrap(), expected);
        padded(&number(&[1; 33])).unwrap_err();

        let point = EccPoint::new(number(&[1; 31]), number(&[2; 32]));
        let bytes = uncompressed(&point).unwrap();
        assert_eq!(bytes[..3], [4, 0, 1]);
        assert_eq!(bytes[33..], [2; 32]);
    }

    #[test]
    fn what_the_tpm_made_is_compared_with_what_was_wanted() {
        let sign = template(Use::Sign, WrongTries::Free).unwrap();
        assert!(is_as_wanted(&sign, &sign));
        for other in [
            template(Use::Agree, WrongTries::Free).unwrap(),
            template(Use::Sign, WrongTries::Counted).unwrap(),
            sealed_template(WrongTries::Free).unwrap(),
        ] {
            assert!(!is_as_wanted(&other, &sign));
        }
        let Public::Ecc {
            parameters, unique, ..
        } = sign.clone()
        else {
            panic!("a template for ECC")
        };
        // As a key that was made elsewhere would be.
        let elsewhere = attributes(WrongTries::Free);
        let elsewhere = elsewhere.with_sign_encrypt(true).build().unwrap();
        let foreign = PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
            .with_object_attributes(elsewhere)
            .with_ecc_parameters(parameters)
            .with_ecc_unique_identifier(unique)
            .build()
            .unwrap();
        assert!(!is_as_wanted(&foreign, &sign));
    }
}
