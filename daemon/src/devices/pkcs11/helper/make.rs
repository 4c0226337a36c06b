//! Making generations and keys.

use std::sync::PoisonError;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use mlskeyd_protocol::v1::{Algorithm, Kem, SignatureScheme};
use rand_core::{OsRng, RngCore};

use super::super::wire::{self, Anchor, Keep, TokenError, Wrapped, Wrapping};
use super::handles::Of;
use super::template::{self, Leaves, Place};
use super::token::{TokenSession, of_module};

impl TokenSession {
    /// Makes what a generation begins with.
    pub(super) fn create_generation(
        &self,
        generation: [u8; 16],
        anchor: Anchor,
    ) -> Result<(), TokenError> {
        let _turn = self.token.turn_to_change();
        if let Some(made) = self.object(Of::Anchor(generation), generation)? {
            // Maybe by a helper that died before it could ask.
            return Err(match anchor {
                Anchor::Data => TokenError::GenerationExists,
                _ if self.is_kept(made)? => TokenError::GenerationExists,
                _ => gives_away(),
            });
        }
        self.check_present()?;
        if anchor == Anchor::Data {
            let made = self.session.create_object(&template::data(generation));
            return self.still_wanted(generation, &[made.map_err(of_module)?]);
        }
        let made = self.wrapping_key(generation, anchor, Place::Token)?;
        self.still_wanted(generation, &[made])?;
        if self.is_kept(made)? {
            return Ok(());
        }
        self.destroy(made)?;
        Err(gives_away())
    }

    /// Whoever asked for these may have given up meanwhile, and another session has
    /// destroyed the generation before they were in it: then they go, too.
    pub(super) fn still_wanted(
        &self,
        generation: [u8; 16],
        made: &[ObjectHandle],
    ) -> Result<(), TokenError> {
        if !self.token.handles().is_destroyed(generation) {
            return Ok(());
        }
        for object in made {
            self.destroy(*object)?;
        }
        Err(TokenError::NotFound)
    }

    pub(super) fn wrapping_key(
        &self,
        generation: [u8; 16],
        anchor: Anchor,
        place: Place,
    ) -> Result<ObjectHandle, TokenError> {
        let enforced = anchor == Anchor::WrappingKey;
        template::with_wrapping_key(generation, place, enforced, |template| {
            let made = self.session.generate_key(&Mechanism::AesKeyGen, template);
            made.map_err(of_module)
        })
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
    pub(super) fn was_always_kept(&self, key: ObjectHandle) -> Result<bool, TokenError> {
        let never = [
            Attribute::AlwaysSensitive(true),
            Attribute::NeverExtractable(true),
            Attribute::Local(true),
            Attribute::Token(true),
        ];
        Ok(self.is_kept(key)? && self.has(key, &never)?)
    }

    /// Makes a key pair; answers its public half and where the private one is.
    pub(super) fn generate(
        &self,
        key: [u8; 16],
        generation: [u8; 16],
        algorithm: Algorithm,
        keep: Keep,
    ) -> Result<(Vec<u8>, wire::Place), TokenError> {
        self.anchor(generation)?;
        match keep {
            Keep::Object { most, spare } => {
                self.take_room(most, spare)?;
                let made = self.generate_object(key, generation, algorithm);
                if made.is_err() {
                    self.give_room_back(1);
                }
                made
            }
            Keep::Wrapped(by) => self.generate_wrapped(key, generation, algorithm, by),
        }
    }

    /// What the generation begins with.
    pub(super) fn anchor(&self, generation: [u8; 16]) -> Result<ObjectHandle, TokenError> {
        let anchor = self.object(Of::Anchor(generation), generation)?;
        anchor.ok_or_else(|| self.not_found())
    }

    fn generate_object(
        &self,
        key: [u8; 16],
        generation: [u8; 16],
        algorithm: Algorithm,
    ) -> Result<(Vec<u8>, wire::Place), TokenError> {
        let _turn = self.token.turn_to_change();
        let (public, private) =
            self.generate_pair(algorithm, key, generation, Leaves::Never, Place::Token)?;
        self.still_wanted(generation, &[public, private])?;
        let point = self.point(algorithm, public);
        self.destroy(public)?;
        let point = point?;
        if !self.was_always_kept(private)? {
            self.destroy(private)?;
            return Err(gives_away());
        }
        let mut handles = self.token.handles();
        handles.put_object(Of::Private(key), generation, private);
        Ok((point, wire::Place::Object))
    }

    fn generate_wrapped(
        &self,
        key: [u8; 16],
        generation: [u8; 16],
        algorithm: Algorithm,
        by: Wrapping,
    ) -> Result<(Vec<u8>, wire::Place), TokenError> {
        let (public, private) =
            self.generate_pair(algorithm, key, generation, Leaves::Wrapped, Place::Session)?;
        let point = self.point(algorithm, public);
        let wrapped = self.with_fresh(&[Of::Anchor(generation)], || {
            self.wrap(by, self.anchor(generation)?, private)
        });
        self.destroy(public)?;
        self.destroy(private)?;
        Ok((point?, wire::Place::Wrapped(wrapped?)))
    }

    /// Both halves. Modules name Curve25519 in several ways, and some keep public
    /// keys on the token only.
    pub(super) fn generate_pair(
        &self,
        algorithm: Algorithm,
        key: [u8; 16],
        generation: [u8; 16],
        leaves: Leaves,
        place: Place,
    ) -> Result<(ObjectHandle, ObjectHandle), TokenError> {
        let private = template::private_key(algorithm, key, generation, leaves, place);
        let mechanisms: &[Mechanism<'_>] = match algorithm {
            Algorithm::Signature(
                SignatureScheme::EcdsaP256Sha256 | SignatureScheme::EcdsaP384Sha384,
            )
            | Algorithm::Hpke(Kem::DhKemP256 | Kem::DhKemP384) => &[Mechanism::EccKeyPairGen],
            Algorithm::Signature(SignatureScheme::Ed25519) => &[Mechanism::EccEdwardsKeyPairGen],
            // SoftHSM makes them with the Edwards mechanism.
            Algorithm::Hpke(Kem::DhKemX25519) => &[
                Mechanism::EccMontgomeryKeyPairGen,
                Mechanism::EccEdwardsKeyPairGen,
            ],
        };
        let mut last = TokenError::Unsupported("no mechanism".to_owned());
        for mechanism in mechanisms {
            for public_place in [Place::Session, Place::Token] {
                let public = template::public_key(algorithm, generation, public_place);
                match self.session.generate_key_pair(mechanism, &public, &private) {
                    Ok(pair) => return Ok(pair),
                    Err(error) => last = of_module(error),
                }
                if !matches!(last, TokenError::Unsupported(_)) {
                    return Err(last);
                }
                if place == Place::Session {
                    // Nothing is put on the token beside a key that is not.
                    break;
                }
            }
        }
        Err(last)
    }

    pub(super) fn point(
        &self,
        algorithm: Algorithm,
        public: ObjectHandle,
    ) -> Result<Vec<u8>, TokenError> {
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
    ) -> Result<Wrapped, TokenError> {
        let wrap = |mechanism| {
            let wrapped = self.session.wrap_key(&mechanism, wrapper, private);
            wrapped.map_err(of_module)
        };
        Ok(match by {
            Wrapping::KeyWrapPad => Wrapped::KeyWrapPad(wrap(Mechanism::AesKeyWrapPad)?),
            Wrapping::KeyWrap => Wrapped::KeyWrap(wrap(Mechanism::AesKeyWrap)?),
            Wrapping::CbcPad => {
                let iv = random_iv()?;
                Wrapped::CbcPad {
                    iv,
                    bytes: wrap(Mechanism::AesCbcPad(iv))?,
                }
            }
        })
    }

    /// Takes room for one more private key on the token, and leaves `spare` of
    /// `most`.
    fn take_room(&self, most: u32, spare: u32) -> Result<(), TokenError> {
        let mut objects = self.objects();
        let held = self.count(&mut objects)?;
        let left = most.saturating_sub(held);
        if left <= spare {
            return Err(TokenError::Full { held, spare: left });
        }
        *objects = held.checked_add(1);
        Ok(())
    }

    /// Counts the private keys on the token, unless that was done.
    pub(super) fn count_objects(&self) -> Result<(), TokenError> {
        self.count(&mut self.objects()).map(|_| ())
    }

    /// Once, since it is slow where there are many.
    fn count(&self, objects: &mut Option<u32>) -> Result<u32, TokenError> {
        if let Some(count) = *objects {
            return Ok(count);
        }
        let template = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Token(true),
        ];
        let found = self.session.find_objects(&template).map_err(of_module)?;
        let count = u32::try_from(found.len()).unwrap_or(u32::MAX);
        *objects = Some(count);
        Ok(count)
    }

    /// How many there are, as far as it is known: not while another session is
    /// just counting.
    pub(super) fn objects_counted(&self) -> Option<u32> {
        self.token.objects.try_lock().ok().and_then(|count| *count)
    }

    /// So many private keys are gone, or were not made.
    pub(super) fn give_room_back(&self, keys: usize) {
        let mut objects = self.objects();
        let keys = u32::try_from(keys).unwrap_or(u32::MAX);
        *objects = objects.map(|count| count.saturating_sub(keys));
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, Option<u32>> {
        let objects = self.token.objects.lock();
        objects.unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn random_iv() -> Result<[u8; 16], TokenError> {
    let mut iv = [0; 16];
    OsRng
        .try_fill_bytes(&mut iv)
        .map_err(|_| TokenError::Failed("no randomness".to_owned()))?;
    Ok(iv)
}

pub(super) fn gives_away() -> TokenError {
    TokenError::Failed("it made a key that it would give away".to_owned())
}
