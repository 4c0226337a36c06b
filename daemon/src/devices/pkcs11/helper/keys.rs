//! Keys of a token: used and destroyed.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use mlskeyd_protocol::v1::{Algorithm, Kem, SecretBytes, SignatureScheme};

use super::super::wire::{Kept, Place, TokenError, Wrapped};
use super::handles::Of;
use super::template::{self, Guarded};
use super::token::{TokenSession, is_full, is_stale, of_module};
use crate::devices::SharedSecret;

type OfModule<T> = Result<T, cryptoki::error::Error>;

impl TokenSession {
    /// Does something with a key. Its handle may lead nowhere, if the session
    /// that unwrapped it has ended: then it is looked for again, once.
    fn with<T>(
        &self,
        key: &Kept,
        work: impl Fn(ObjectHandle) -> OfModule<T>,
    ) -> Result<T, TokenError> {
        let handle = self.handle(key)?;
        match work(handle) {
            Err(error) if is_stale(&error) => {
                self.token.handles().forget(Of::Private(key.key), handle);
                work(self.handle(key)?).map_err(of_module)
            }
            Err(error) if is_full(&error) => {
                self.make_room();
                work(self.handle(key)?).map_err(of_module)
            }
            result => result.map_err(of_module),
        }
    }

    /// Does something with objects whose remembered handles may lead nowhere, if
    /// somebody else destroyed them: then they are looked for again, once.
    pub(super) fn with_fresh<T>(
        &self,
        objects: &[Of],
        work: impl Fn() -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        match work() {
            Err(TokenError::Gone(_)) => {
                let mut handles = self.token.handles();
                for of in objects {
                    if let Some(stale) = handles.get(*of) {
                        handles.forget(*of, stale);
                    }
                }
                drop(handles);
                work()
            }
            result => result,
        }
    }

    /// The key's handle: remembered, found, or unwrapped.
    fn handle(&self, key: &Kept) -> Result<ObjectHandle, TokenError> {
        let of = Of::Private(key.key);
        match &key.place {
            Place::Object => {
                let found = self.object(of, key.generation)?;
                found.ok_or_else(|| self.not_found())
            }
            Place::Wrapped(wrapped) => {
                if let Some(known) = self.token.handles().get(of) {
                    return Ok(known);
                }
                self.unwrap_kept(key, wrapped)
            }
            Place::Adopted { label, id } => {
                if let Some(known) = self.token.handles().get(of) {
                    return Ok(known);
                }
                let found = self.find_only(&template::adopted(label, id))?;
                let found = found.ok_or_else(|| self.not_found())?;
                let mut handles = self.token.handles();
                handles.put_object(of, key.generation, found);
                Ok(found)
            }
        }
    }

    fn unwrap_kept(&self, key: &Kept, wrapped: &Wrapped) -> Result<ObjectHandle, TokenError> {
        let unwrap = || {
            self.with_fresh(&[Of::Anchor(key.generation)], || {
                let wrapper = self.anchor(key.generation)?;
                self.unwrap(key.algorithm, wrapper, wrapped, Guarded::WHOLLY)
            })
        };
        let object = match unwrap() {
            Err(TokenError::Memory(_)) => {
                self.make_room();
                unwrap()?
            }
            result => result?,
        };
        let too_many = self.token.handles().put_unwrapped(
            Of::Private(key.key),
            key.generation,
            object,
            self.number,
        );
        if let Some(oldest) = too_many {
            self.let_go(oldest);
        }
        Ok(object)
    }

    pub(super) fn unwrap(
        &self,
        algorithm: Algorithm,
        wrapper: ObjectHandle,
        wrapped: &Wrapped,
        guarded: Guarded,
    ) -> Result<ObjectHandle, TokenError> {
        let (mechanism, bytes) = match wrapped {
            Wrapped::KeyWrapPad(bytes) => (Mechanism::AesKeyWrapPad, bytes),
            Wrapped::KeyWrap(bytes) => (Mechanism::AesKeyWrap, bytes),
            Wrapped::CbcPad { iv, bytes } => (Mechanism::AesCbcPad(*iv), bytes),
        };
        let mut last = TokenError::Unsupported("no key type".to_owned());
        for key_type in key_types(algorithm) {
            let template = template::unwrapped(algorithm, *key_type, guarded);
            match self
                .session
                .unwrap_key(&mechanism, wrapper, bytes, &template)
            {
                Ok(private) => return Ok(private),
                Err(error) => last = of_module(error),
            }
        }
        Err(last)
    }

    /// Destroys an object of a session's, which may have ended with it before.
    fn let_go(&self, object: ObjectHandle) {
        let _ = self.session.destroy_object(object);
    }

    /// Gives the token's memory free that unwrapped keys take.
    fn make_room(&self) {
        let unwrapped = self.token.handles().take_unwrapped();
        for object in unwrapped {
            self.let_go(object);
        }
    }

    /// r and s of ECDSA, each as long as the curve's numbers; or an Ed25519 signature.
    pub(super) fn sign(&self, key: &Kept, content: &[u8]) -> Result<SecretBytes, TokenError> {
        if !matches!(key.algorithm, Algorithm::Signature(_)) {
            return Err(TokenError::Protocol);
        }
        self.with(key, |handle| self.sign_with(key.algorithm, handle, content))
            .map(SecretBytes::new)
    }

    pub(super) fn sign_with(
        &self,
        algorithm: Algorithm,
        handle: ObjectHandle,
        content: &[u8],
    ) -> OfModule<Vec<u8>> {
        let mechanism = match algorithm {
            Algorithm::Signature(SignatureScheme::Ed25519) => {
                Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure))
            }
            _ => Mechanism::Ecdsa,
        };
        self.session.sign(&mechanism, handle, content)
    }

    /// The DH result.
    pub(super) fn agree(&self, key: &Kept, peer: &[u8]) -> Result<SecretBytes, TokenError> {
        let Algorithm::Hpke(kem) = key.algorithm else {
            return Err(TokenError::Protocol);
        };
        let derived = self.with(key, |handle| self.derive(kem, handle, peer))?;
        self.read_derived(kem, derived)
    }

    pub(super) fn derive(
        &self,
        kem: Kem,
        handle: ObjectHandle,
        peer: &[u8],
    ) -> OfModule<ObjectHandle> {
        let length = SharedSecret::len(kem) as u64;
        let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), peer));
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::ValueLen(length.into()),
            Attribute::Token(false),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
        ];
        self.session.derive_key(&mechanism, handle, &template)
    }

    pub(super) fn read_derived(
        &self,
        kem: Kem,
        derived: ObjectHandle,
    ) -> Result<SecretBytes, TokenError> {
        let value = self
            .session
            .get_attributes(derived, &[AttributeType::Value]);
        self.destroy(derived)?;
        let value = value.map_err(of_module)?;
        let secret = value.into_iter().find_map(|it| match it {
            Attribute::Value(value) => Some(SecretBytes::new(value)),
            _ => None,
        });
        let length = SharedSecret::len(kem);
        secret
            .filter(|secret| secret.expose().len() == length)
            .ok_or_else(|| {
                TokenError::Failed(format!("it gave no shared secret of {length} bytes"))
            })
    }

    /// Destroys a key's object; of one that is kept wrapped, what was unwrapped.
    pub(super) fn destroy_key(&self, key: &Kept) -> Result<(), TokenError> {
        let of = Of::Private(key.key);
        match key.place {
            Place::Adopted { .. } => Err(TokenError::Protocol),
            Place::Wrapped(_) => {
                let unwrapped = self.token.handles().take(of);
                if let Some(object) = unwrapped {
                    self.let_go(object);
                }
                Ok(())
            }
            Place::Object => {
                let _turn = self.token.turn_to_change();
                // As it is now: a handle may be stale.
                let mut handles = self.token.handles();
                if let Some(known) = handles.get(of) {
                    handles.forget(of, known);
                }
                drop(handles);
                match self.object(of, key.generation)? {
                    Some(object) => {
                        self.token.handles().forget(of, object);
                        self.destroy(object)?;
                        self.give_room_back(1);
                        Ok(())
                    }
                    None => self.check_present(),
                }
            }
        }
    }

    /// Destroys all objects of a generation, and what was unwrapped of it here.
    pub(super) fn destroy_generation(&self, generation: [u8; 16]) -> Result<(), TokenError> {
        let unwrapped = self.token.handles().take_generation(generation);
        for object in unwrapped {
            self.let_go(object);
        }
        let _turn = self.token.turn_to_change();
        let label = template::label(generation);
        let private = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Token(true),
            label.clone(),
        ];
        let keys = self.session.find_objects(&private).map_err(of_module)?;
        // Until nothing is shown: some modules show what they find by and by.
        loop {
            let label = std::slice::from_ref(&label);
            let found = self.session.find_objects(label).map_err(of_module)?;
            if found.is_empty() {
                break;
            }
            for object in found {
                self.destroy(object)?;
            }
        }
        // A session that was logged out meanwhile shows nothing, either.
        self.check_present()?;
        self.give_room_back(keys.len());
        Ok(())
    }
}

/// As which type a private key is unwrapped; the first that the module takes.
const fn key_types(algorithm: Algorithm) -> &'static [KeyType] {
    match algorithm {
        Algorithm::Signature(
            SignatureScheme::EcdsaP256Sha256 | SignatureScheme::EcdsaP384Sha384,
        )
        | Algorithm::Hpke(Kem::DhKemP256 | Kem::DhKemP384) => &[KeyType::EC],
        Algorithm::Signature(SignatureScheme::Ed25519) => &[KeyType::EC_EDWARDS],
        Algorithm::Hpke(Kem::DhKemX25519) => &[KeyType::EC_MONTGOMERY, KeyType::EC_EDWARDS],
    }
}
