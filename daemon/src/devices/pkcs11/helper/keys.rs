//! Keys of a token: made, used, destroyed.

use std::collections::{HashMap, VecDeque};

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use mlskeyd_protocol::v1::{Algorithm, Kem, SecretBytes, SignatureScheme};
use rand_core::{OsRng, RngCore};
use zeroize::Zeroizing;

use super::super::wire::{Kept, Place, TokenError, Wrapping};
use super::template::{self, Guarded, Leaves, UnwrapTemplate};
use super::token::{Token, of_module};

/// Most handles that a session remembers. Each wrapped key among them is an
/// object of the session.
const MAX_HANDLES: usize = 256;

/// Handles of keys that were used last.
#[derive(Default)]
pub(super) struct Handles {
    known: HashMap<[u8; 16], Handle>,
    /// The oldest first.
    order: VecDeque<[u8; 16]>,
}

#[derive(Clone, Copy)]
struct Handle {
    object: ObjectHandle,
    generation: [u8; 16],
    /// Does the object end with the session?
    unwrapped: bool,
}

impl Token {
    /// Makes the key that wraps a generation's keys.
    pub(super) fn create_generation(&mut self, generation: [u8; 16]) -> Result<(), TokenError> {
        if let Some(made) = self.wrapping_key(generation)? {
            // Maybe by a helper that died before it could ask.
            let kept = self.is_kept(made)?;
            return Err(if kept {
                TokenError::GenerationExists
            } else {
                gives_away()
            });
        }
        let unwrap = UnwrapTemplate::new();
        let template = template::wrapping_key(generation, true, &unwrap);
        let made = self.session.generate_key(&Mechanism::AesKeyGen, &template);
        let made = made.map_err(of_module)?;
        if self.is_kept(made)? {
            return Ok(());
        }
        self.session.destroy_object(made).map_err(of_module)?;
        Err(gives_away())
    }

    fn wrapping_key(&self, generation: [u8; 16]) -> Result<Option<ObjectHandle>, TokenError> {
        self.find_one(ObjectClass::SECRET_KEY, generation, generation)
    }

    /// Does the token say that nobody reads the key? Asked after making it, since
    /// templates are only wishes.
    pub(super) fn is_kept(&self, key: ObjectHandle) -> Result<bool, TokenError> {
        self.has(
            key,
            &[Attribute::Sensitive(true), Attribute::Extractable(false)],
        )
    }

    /// Was the key made here, on the token, and could nobody ever read it?
    fn was_always_kept(&self, key: ObjectHandle) -> Result<bool, TokenError> {
        let never = [
            Attribute::AlwaysSensitive(true),
            Attribute::NeverExtractable(true),
            Attribute::Local(true),
            Attribute::Token(true),
        ];
        Ok(self.is_kept(key)? && self.has(key, &never)?)
    }

    fn has(&self, key: ObjectHandle, wanted: &[Attribute]) -> Result<bool, TokenError> {
        let kinds: Vec<_> = wanted.iter().map(Attribute::attribute_type).collect();
        let told = self
            .session
            .get_attributes(key, &kinds)
            .map_err(of_module)?;
        Ok(wanted.iter().all(|attribute| told.contains(attribute)))
    }

    /// The key is not there, if the token is.
    fn not_found(&self) -> TokenError {
        self.check_present().err().unwrap_or(TokenError::NotFound)
    }

    /// Makes a key pair; answers its public half and where the private one is.
    pub(super) fn generate(
        &mut self,
        key: [u8; 16],
        generation: [u8; 16],
        algorithm: Algorithm,
    ) -> Result<(Vec<u8>, Place), TokenError> {
        let Some(wrapper) = self.wrapping_key(generation)? else {
            return Err(self.not_found());
        };
        let wrapping = self.wrapping.get(&algorithm).copied();
        let (leaves, place) = match wrapping {
            Some(_) => (Leaves::Wrapped, template::Place::Session),
            None if self.objects >= self.max_objects => {
                return Err(TokenError::Full(self.objects));
            }
            None => (Leaves::Never, template::Place::Token),
        };
        let (public, private) = self.generate_pair(algorithm, key, generation, leaves, place)?;
        let point = self.point(algorithm, public);
        self.session.destroy_object(public).map_err(of_module)?;
        let point = point?;
        let Some(by) = wrapping else {
            if !self.was_always_kept(private)? {
                self.session.destroy_object(private).map_err(of_module)?;
                return Err(gives_away());
            }
            self.objects = self.objects.saturating_add(1);
            self.remember(key, generation, private, false)?;
            return Ok((point, Place::Object));
        };
        let by = match by {
            Wrapping::CbcPad(_) => {
                let mut iv = [0; 16];
                OsRng
                    .try_fill_bytes(&mut iv)
                    .map_err(|_| TokenError::Failed("no randomness".to_owned()))?;
                Wrapping::CbcPad(iv)
            }
            other => other,
        };
        let bytes = self.wrap(by, wrapper, private);
        self.session.destroy_object(private).map_err(of_module)?;
        let bytes = bytes?;
        Ok((point, Place::Wrapped { by, bytes }))
    }

    /// Both halves, as the token's objects. Modules name Curve25519 in several
    /// ways.
    pub(super) fn generate_pair(
        &self,
        algorithm: Algorithm,
        key: [u8; 16],
        generation: [u8; 16],
        leaves: Leaves,
        place: template::Place,
    ) -> Result<(ObjectHandle, ObjectHandle), TokenError> {
        let public = template::public_key(algorithm);
        let private = template::private_key(algorithm, key, generation, leaves, place);
        let mechanisms: &[Mechanism<'_>] = match algorithm {
            Algorithm::Signature(SignatureScheme::EcdsaP256Sha256)
            | Algorithm::Hpke(Kem::DhKemP256) => &[Mechanism::EccKeyPairGen],
            Algorithm::Signature(SignatureScheme::Ed25519) => &[Mechanism::EccEdwardsKeyPairGen],
            // SoftHSM makes them with the Edwards mechanism.
            Algorithm::Hpke(Kem::DhKemX25519) => &[
                Mechanism::EccMontgomeryKeyPairGen,
                Mechanism::EccEdwardsKeyPairGen,
            ],
        };
        let mut last = TokenError::Unsupported("no mechanism".to_owned());
        for mechanism in mechanisms {
            match self.session.generate_key_pair(mechanism, &public, &private) {
                Ok(pair) => return Ok(pair),
                Err(error) => last = of_module(error),
            }
            if !matches!(last, TokenError::Unsupported(_)) {
                break;
            }
        }
        Err(last)
    }

    fn point(&self, algorithm: Algorithm, public: ObjectHandle) -> Result<Vec<u8>, TokenError> {
        let told = self
            .session
            .get_attributes(public, &[AttributeType::EcPoint])
            .map_err(of_module)?;
        let point = told.iter().find_map(|attribute| match attribute {
            Attribute::EcPoint(value) => template::point(algorithm, value),
            _ => None,
        });
        point.ok_or_else(|| TokenError::Failed("it made a public key of no known form".to_owned()))
    }

    pub(super) fn wrap(
        &self,
        by: Wrapping,
        wrapper: ObjectHandle,
        private: ObjectHandle,
    ) -> Result<Vec<u8>, TokenError> {
        let wrapped = self.session.wrap_key(&mechanism(by), wrapper, private);
        wrapped.map_err(of_module)
    }

    pub(super) fn unwrap(
        &self,
        algorithm: Algorithm,
        by: Wrapping,
        wrapper: ObjectHandle,
        wrapped: &[u8],
        guarded: Guarded,
    ) -> Result<ObjectHandle, TokenError> {
        let mut last = TokenError::Unsupported("no key type".to_owned());
        for key_type in key_types(algorithm) {
            let template = template::unwrapped(algorithm, *key_type, guarded);
            match self
                .session
                .unwrap_key(&mechanism(by), wrapper, wrapped, &template)
            {
                Ok(private) => return Ok(private),
                Err(error) => last = of_module(error),
            }
        }
        Err(last)
    }

    /// The key's handle: remembered, found, or unwrapped for this session.
    fn handle(&mut self, key: &Kept) -> Result<ObjectHandle, TokenError> {
        if let Some(known) = self.handles.known.get(&key.key) {
            return Ok(known.object);
        }
        let (object, unwrapped) = match &key.place {
            Place::Object => {
                let found = self.find_one(ObjectClass::PRIVATE_KEY, key.key, key.generation)?;
                (found.ok_or_else(|| self.not_found())?, false)
            }
            Place::Wrapped { by, bytes } => {
                let wrapper = self.wrapping_key(key.generation)?;
                let wrapper = wrapper.ok_or_else(|| self.not_found())?;
                let object = self.unwrap(key.algorithm, *by, wrapper, bytes, Guarded::WHOLLY)?;
                (object, true)
            }
        };
        self.remember(key.key, key.generation, object, unwrapped)?;
        Ok(object)
    }

    fn remember(
        &mut self,
        key: [u8; 16],
        generation: [u8; 16],
        object: ObjectHandle,
        unwrapped: bool,
    ) -> Result<(), TokenError> {
        while self.handles.known.len() >= MAX_HANDLES {
            let Some(oldest) = self.handles.order.pop_front() else {
                break;
            };
            self.forget(oldest)?;
        }
        let handle = Handle {
            object,
            generation,
            unwrapped,
        };
        self.handles.known.insert(key, handle);
        self.handles.order.push_back(key);
        Ok(())
    }

    fn forget(&mut self, key: [u8; 16]) -> Result<(), TokenError> {
        match self.handles.known.remove(&key) {
            Some(handle) if handle.unwrapped => self
                .session
                .destroy_object(handle.object)
                .map_err(of_module),
            _ => Ok(()),
        }
    }

    /// 64 bytes: r and s, or an Ed25519 signature.
    pub(super) fn sign(&mut self, key: &Kept, content: &[u8]) -> Result<SecretBytes, TokenError> {
        let mechanism = match key.algorithm {
            Algorithm::Signature(SignatureScheme::EcdsaP256Sha256) if content.len() == 32 => {
                Mechanism::Ecdsa
            }
            Algorithm::Signature(SignatureScheme::Ed25519) => {
                Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure))
            }
            _ => return Err(TokenError::Protocol),
        };
        let handle = self.handle(key)?;
        let signature = self.session.sign(&mechanism, handle, content);
        signature.map(SecretBytes::new).map_err(of_module)
    }

    /// The DH result, 32 bytes.
    pub(super) fn agree(&mut self, key: &Kept, peer: &[u8]) -> Result<SecretBytes, TokenError> {
        if !matches!(key.algorithm, Algorithm::Hpke(_)) {
            return Err(TokenError::Protocol);
        }
        let handle = self.handle(key)?;
        let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), peer));
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::ValueLen(32.into()),
            Attribute::Token(false),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
        ];
        let derived = self.session.derive_key(&mechanism, handle, &template);
        let derived = derived.map_err(of_module)?;
        let value = self
            .session
            .get_attributes(derived, &[AttributeType::Value]);
        self.session.destroy_object(derived).map_err(of_module)?;
        let secret = value
            .map_err(of_module)?
            .into_iter()
            .find_map(|it| match it {
                Attribute::Value(value) => Some(Zeroizing::new(value)),
                _ => None,
            });
        match secret {
            Some(secret) if secret.len() == 32 => Ok(SecretBytes::new(secret.to_vec())),
            _ => Err(TokenError::Failed(
                "it gave no shared secret of 32 bytes".to_owned(),
            )),
        }
    }

    /// Destroys all objects of a generation, and what was unwrapped of it here.
    pub(super) fn destroy_generation(&mut self, generation: [u8; 16]) -> Result<(), TokenError> {
        let of_generation: Vec<_> = (self.handles.known.iter())
            .filter(|(_, handle)| handle.generation == generation)
            .map(|(key, _)| *key)
            .collect();
        for key in of_generation {
            self.forget(key)?;
            self.handles.order.retain(|other| *other != key);
        }
        let found = self.session.find_objects(&[template::label(generation)]);
        let found = found.map_err(of_module)?;
        if found.is_empty() {
            self.check_present()?;
        }
        for object in found {
            self.session.destroy_object(object).map_err(of_module)?;
        }
        self.count_objects()
    }
}

fn gives_away() -> TokenError {
    TokenError::Failed("it made a key that it would give away".to_owned())
}

fn mechanism(by: Wrapping) -> Mechanism<'static> {
    match by {
        Wrapping::KeyWrapPad => Mechanism::AesKeyWrapPad,
        Wrapping::KeyWrap => Mechanism::AesKeyWrap,
        Wrapping::CbcPad(iv) => Mechanism::AesCbcPad(iv),
    }
}

/// As which type a private key is unwrapped; the first that the module takes.
const fn key_types(algorithm: Algorithm) -> &'static [KeyType] {
    match algorithm {
        Algorithm::Signature(SignatureScheme::EcdsaP256Sha256)
        | Algorithm::Hpke(Kem::DhKemP256) => &[KeyType::EC],
        Algorithm::Signature(SignatureScheme::Ed25519) => &[KeyType::EC_EDWARDS],
        Algorithm::Hpke(Kem::DhKemX25519) => &[KeyType::EC_MONTGOMERY, KeyType::EC_EDWARDS],
    }
}
