//! Keys: made by the TPM or sealed by it, loaded, and used.

use secrecy::SecretSlice;
use tss_esapi::Result;
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder};
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::{KeyHandle, ObjectHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Auth, CreateKeyResult, Digest, EccParameter, EccPoint, EccScheme, HashScheme, HashcheckTicket,
    KeyDerivationFunctionScheme, KeyedHashScheme, Private, Public, PublicBuilder,
    PublicEccParameters, PublicEccParametersBuilder, PublicKeyedHashParameters, SensitiveData,
    Signature, SignatureScheme,
};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;
use zeroize::Zeroizing;

use super::blob::Object;
use super::connection::{Connection, Secrecy};
use super::failure::misfit;
use super::loaded;
use super::policy::Hash;
use crate::devices::private_key::PrivateKey;

/// What a key of the TPM's is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Sign,
    Agree,
}

/// Its curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
}

impl Curve {
    /// As the TPM calls it.
    pub(super) const fn id(self) -> EccCurve {
        match self {
            Self::P256 => EccCurve::NistP256,
            Self::P384 => EccCurve::NistP384,
        }
    }

    /// Bytes of a coordinate, and of a scalar.
    const fn len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }

    /// Of what ECDSA signs.
    const fn hash(self) -> HashingAlgorithm {
        match self {
            Self::P256 => HashingAlgorithm::Sha256,
            Self::P384 => HashingAlgorithm::Sha384,
        }
    }
}

/// What a wrong authorisation value for an object costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WrongTries {
    /// Nothing: it is 32 random bytes.
    Free,
    /// The TPM counts it, since a PIN is in it.
    Counted,
}

/// What it takes to use an object.
#[derive(Clone, Copy)]
pub(super) struct Guard<'a> {
    /// Its authorisation value.
    pub(super) auth: &'a [u8; 32],
    pub(super) tries: WrongTries,
    /// The digest of its policy, if it has one.
    pub(super) policy: Option<&'a Hash>,
}

/// A key that is loaded, and the session that authorises its use.
#[derive(Clone, Copy)]
pub(super) struct Usable {
    pub(super) handle: ObjectHandle,
    pub(super) session: AuthSession,
}

impl Connection {
    /// Has the TPM make a key: the object, and the public key.
    pub(super) fn create(
        &mut self,
        curve: Curve,
        usage: Use,
        guard: Guard<'_>,
    ) -> Result<(Object, Vec<u8>)> {
        let template = template(curve, usage, guard)?;
        let parent = self.parent();
        let made = self.run_with_room(Secrecy::Request, |context| {
            let auth = Auth::try_from(guard.auth.as_slice())?;
            context.create(parent, template.clone(), Some(auth), None, None, None)
        })?;
        let Public::Ecc { unique, .. } = &made.out_public else {
            return Err(misfit());
        };
        let public = uncompressed(curve, unique)?;
        if !is_as_wanted(&made.out_public, &template) {
            return Err(misfit());
        }
        Ok((object(&made)?, public))
    }

    /// Has the TPM encrypt a private key.
    pub(super) fn seal(&mut self, secret: &[u8], guard: Guard<'_>) -> Result<Object> {
        let template = sealed_template(guard)?;
        let parent = self.parent();
        let made = self.run_with_room(Secrecy::Request, |context| {
            let auth = Auth::try_from(guard.auth.as_slice())?;
            let secret = SensitiveData::try_from(secret)?;
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

    /// ECDSA over a digest: r and s, each as long as the curve's numbers.
    pub(super) fn sign(&mut self, curve: Curve, key: Usable, digest: &[u8]) -> Result<Vec<u8>> {
        let signature = self.run_with(key.session, Secrecy::Nothing, None, |context| {
            context.sign(
                KeyHandle::from(key.handle),
                Digest::try_from(digest)?,
                SignatureScheme::Null,
                not_hashed_by_the_tpm()?,
            )
        })?;
        let Signature::EcDsa(signature) = signature else {
            return Err(misfit());
        };
        let [r, s] = [signature.signature_r(), signature.signature_s()];
        Ok([padded(curve, r)?.as_slice(), &padded(curve, s)?].concat())
    }

    /// The x-coordinate of ECDH with a point that is on the curve (SEC1, uncompressed).
    pub(super) fn agree(
        &mut self,
        curve: Curve,
        key: Usable,
        peer: &[u8],
    ) -> Result<SecretSlice<u8>> {
        let coordinates = peer
            .get(1..)
            .and_then(|xy| xy.split_at_checked(curve.len()));
        let (x, y) = coordinates.ok_or_else(misfit)?;
        let point = self.run_with(key.session, Secrecy::Answer, None, |context| {
            let peer = EccPoint::new(EccParameter::try_from(x)?, EccParameter::try_from(y)?);
            context.ecdh_z_gen(KeyHandle::from(key.handle), peer)
        })?;
        Ok(padded(curve, point.x())?.to_vec().into())
    }

    /// What was sealed.
    pub(super) fn unseal(&mut self, sealed: Usable) -> Result<PrivateKey> {
        let data = self.run_with(sealed.session, Secrecy::Answer, None, |context| {
            context.unseal(sealed.handle)
        })?;
        Ok(Zeroizing::new(data.to_vec()))
    }
}

/// Bound to this TPM and this parent, used with an authorisation value of 32 bytes.
/// Where there is a policy that value alone serves for nothing.
fn attributes(guard: Guard<'_>) -> ObjectAttributesBuilder {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_user_with_auth(guard.policy.is_none())
        .with_admin_with_policy(guard.policy.is_some())
        .with_no_da(guard.tries == WrongTries::Free)
}

fn template(curve: Curve, usage: Use, guard: Guard<'_>) -> Result<Public> {
    let attributes = attributes(guard)
        .with_sensitive_data_origin(true)
        .with_sign_encrypt(usage == Use::Sign)
        .with_decrypt(usage == Use::Agree)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(auth_policy(guard)?)
        .with_ecc_parameters(parameters(curve, usage)?)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

fn auth_policy(guard: Guard<'_>) -> Result<Digest> {
    guard.policy.map_or_else(
        || Ok(Digest::default()),
        |policy| Digest::try_from(policy.as_slice()),
    )
}

fn parameters(curve: Curve, usage: Use) -> Result<PublicEccParameters> {
    let hash = HashScheme::new(curve.hash());
    let scheme = match usage {
        Use::Sign => EccScheme::EcDsa(hash),
        Use::Agree => EccScheme::EcDh(hash),
    };
    PublicEccParametersBuilder::new()
        .with_ecc_scheme(scheme)
        .with_curve(curve.id())
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_signing_key(usage == Use::Sign)
        .with_is_decryption_key(usage == Use::Agree)
        .build()
}

fn sealed_template(guard: Guard<'_>) -> Result<Public> {
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes(guard).build()?)
        .with_auth_policy(auth_policy(guard)?)
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
fn uncompressed(curve: Curve, point: &EccPoint) -> Result<Vec<u8>> {
    let (x, y) = (padded(curve, point.x())?, padded(curve, point.y())?);
    Ok([[4].as_slice(), &x, &y].concat())
}

/// A number of the curve's length; TPMs may leave out the zeros at its beginning.
fn padded(curve: Curve, number: &EccParameter) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; curve.len()]);
    let missing = bytes.len().checked_sub(number.len()).ok_or_else(misfit)?;
    for (to, from) in bytes.iter_mut().skip(missing).zip(number.iter()) {
        *to = *from;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_leading_zeros() {
        let number = |bytes: &[u8]| EccParameter::try_from(bytes).unwrap();
        for curve in [Curve::P256, Curve::P384] {
            let len = curve.len();
            let mut expected = vec![0; len];
            assert_eq!(*padded(curve, &number(&[])).unwrap(), expected);
            expected[len - 2..].copy_from_slice(&[1, 2]);
            assert_eq!(*padded(curve, &number(&[1, 2])).unwrap(), expected);
            assert_eq!(*padded(curve, &number(&expected)).unwrap(), expected);
            padded(curve, &number(&vec![1; len + 1])).unwrap_err();

            let point = EccPoint::new(number(&vec![1; len - 1]), number(&vec![2; len]));
            let bytes = uncompressed(curve, &point).unwrap();
            assert_eq!(bytes[..3], [4, 0, 1]);
            assert_eq!(bytes[len + 1..], vec![2; len]);
        }
    }

    #[test]
    fn what_the_tpm_made_is_compared_with_what_was_wanted() {
        let free = Guard {
            auth: &[0; 32],
            tries: WrongTries::Free,
            policy: None,
        };
        let counted = Guard {
            tries: WrongTries::Counted,
            ..free
        };
        let bound = Guard {
            policy: Some(&[0; 32]),
            ..free
        };
        let sign = template(Curve::P256, Use::Sign, free).unwrap();
        assert!(is_as_wanted(&sign, &sign));
        for other in [
            template(Curve::P256, Use::Agree, free).unwrap(),
            template(Curve::P384, Use::Sign, free).unwrap(),
            template(Curve::P256, Use::Sign, counted).unwrap(),
            template(Curve::P256, Use::Sign, bound).unwrap(),
            sealed_template(free).unwrap(),
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
        let elsewhere = attributes(free).with_sign_encrypt(true).build().unwrap();
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
