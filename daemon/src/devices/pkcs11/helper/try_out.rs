//! What a token can do, found by doing it.

use cryptoki::mechanism::MechanismType;
use cryptoki::object::ObjectHandle;
use mlskeyd_protocol::v1::Algorithm;

use super::super::ALGORITHMS;
use super::super::wire::{Abilities, Anchor, Sealed, TokenError, TokenSupport, Wrapping, Wraps};
use super::make::random_iv;
use super::template::{Guarded, Leaves, Place};
use super::token::{TokenSession, of_module};

impl TokenError {
    /// The fault, with what was being tried.
    fn over(self, what: &str) -> Self {
        match self {
            Self::Failed(text) => Self::Failed(format!("trying {what}: {text}")),
            Self::Memory(text) => Self::Memory(format!("trying {what}: {text}")),
            other => other,
        }
    }
}

/// The label of what is tried on the token itself.
const TRIAL: [u8; 16] = *b"mlskeyd's trial.";

/// What a token does not do, in words; or a fault, which says nothing of what it
/// can do.
type Tried<T> = Result<Result<T, String>, TokenError>;

/// Only some errors say that it never will.
fn tried<T>(result: Result<T, TokenError>) -> Tried<T> {
    match result {
        Ok(done) => Ok(Ok(done)),
        Err(TokenError::Unsupported(why) | TokenError::Refused(why)) => Ok(Err(why)),
        Err(fault) => Err(fault),
    }
}

const fn is_signature(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::Signature(_))
}

impl TokenSession {
    pub(super) fn try_out(&self) -> Result<Abilities, TokenError> {
        let anchors = self.try_anchors();
        let (anchor, wrapper) = anchors.map_err(|fault| fault.over("AES that wraps"))?;
        let mut algorithms = Vec::new();
        for algorithm in ALGORITHMS {
            let object = tried(self.try_object(algorithm));
            let wrapped = self.try_wrapped(algorithm, &wrapper);
            algorithms.push(TokenSupport {
                algorithm,
                object: object.map_err(|fault| fault.over(&format!("{algorithm} as an object")))?,
                wrapped: wrapped.map_err(|fault| fault.over(&format!("{algorithm} wrapped")))?,
            });
        }
        if let Ok(wrapper) = wrapper {
            self.destroy(wrapper)?;
        }
        // For whoever asks; what fails now is done when a key is made.
        let _ = self.count_objects();
        Ok(Abilities {
            is: self.token.identity()?,
            anchor,
            seals: tried(self.try_sealing()).map_err(|fault| fault.over("AES that encrypts"))?,
            algorithms,
        })
    }

    /// The best that a generation can begin with, and a key that wraps.
    fn try_anchors(&self) -> Result<(Anchor, Result<ObjectHandle, String>), TokenError> {
        let mut last = String::new();
        for anchor in [Anchor::WrappingKey, Anchor::PlainWrappingKey] {
            match tried(self.wrapping_key([0; 16], anchor, Place::Session))? {
                Ok(wrapper) => return Ok((anchor, Ok(wrapper))),
                Err(why) => last = why,
            }
        }
        Ok((Anchor::Data, Err(last)))
    }

    /// Makes a key pair in the session, as it would be made on the token; on the
    /// token if it makes none elsewhere.
    fn try_object(&self, algorithm: Algorithm) -> Result<(), TokenError> {
        if !is_signature(algorithm) {
            // Else tpm2-pkcs11 fails over the key pair already.
            self.check_mechanism(MechanismType::ECDH1_DERIVE)?;
        }
        for place in [Place::Session, Place::Token] {
            let generation = match place {
                Place::Session => [0; 16],
                Place::Token => TRIAL,
            };
            let pair = self.generate_pair(algorithm, generation, generation, Leaves::Never, place);
            match pair {
                Ok((public, private)) => {
                    let done = self.try_use(algorithm, public, private);
                    self.destroy(public)?;
                    self.destroy(private)?;
                    return done;
                }
                Err(TokenError::Unsupported(_)) if place == Place::Session => {
                    // What an earlier trial may have left, when it was cut off.
                    self.destroy_generation(TRIAL)?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(TokenError::Protocol)
    }

    fn check_mechanism(&self, mechanism: MechanismType) -> Result<(), TokenError> {
        let listed = self.token.mechanisms()?;
        if listed.contains(&mechanism) {
            return Ok(());
        }
        Err(TokenError::Unsupported(format!("it has no {mechanism}")))
    }

    fn try_use(
        &self,
        algorithm: Algorithm,
        public: ObjectHandle,
        private: ObjectHandle,
    ) -> Result<(), TokenError> {
        let Algorithm::Hpke(kem) = algorithm else {
            let signed = self.sign_with(algorithm, private, &[7; 32]);
            return signed.map(|_| ()).map_err(of_module);
        };
        let peer = self.point(algorithm, public)?;
        let derived = self.derive(kem, private, &peer).map_err(of_module)?;
        self.read_derived(kem, derived).map(|_| ())
    }

    fn try_wrapped(
        &self,
        algorithm: Algorithm,
        wrapper: &Result<ObjectHandle, String>,
    ) -> Tried<Wraps> {
        if is_signature(algorithm) {
            return Ok(Err(
                "signature keys are few and live long: they are objects".to_owned(),
            ));
        }
        let wrapper = match wrapper {
            Ok(wrapper) => *wrapper,
            Err(why) => return Ok(Err(why.clone())),
        };
        let pair = self.generate_pair(algorithm, [0; 16], [0; 16], Leaves::Wrapped, Place::Session);
        let (public, private) = match tried(pair)? {
            Ok(pair) => pair,
            Err(why) => return Ok(Err(why)),
        };
        let mut result = Err(String::new());
        for by in Wrapping::ALL {
            result = tried(self.wrap_and_unwrap(algorithm, by, wrapper, public, private))?;
            if result.is_ok() {
                break;
            }
        }
        self.destroy(public)?;
        self.destroy(private)?;
        Ok(result.map_err(|why| format!("keys are not wrapped ({why})")))
    }

    /// Does it go there and back, does it work then, and does the token refuse to
    /// give a key back that could be read?
    fn wrap_and_unwrap(
        &self,
        algorithm: Algorithm,
        by: Wrapping,
        wrapper: ObjectHandle,
        public: ObjectHandle,
        private: ObjectHandle,
    ) -> Result<Wraps, TokenError> {
        let wrapped = self.wrap(by, wrapper, private)?;
        let back = self.unwrap(algorithm, wrapper, &wrapped, Guarded::WHOLLY)?;
        let works = self.try_use(algorithm, public, back);
        let kept = self.is_kept(back);
        self.destroy(back)?;
        works?;
        let mut enforced = kept?;
        for guarded in Guarded::NOT_WHOLLY {
            match self.unwrap(algorithm, wrapper, &wrapped, guarded) {
                Ok(bare) => {
                    self.destroy(bare)?;
                    enforced = false;
                }
                // It said no to the template, and not only 'not now'.
                Err(TokenError::Unsupported(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Wraps { by, enforced })
    }

    fn try_sealing(&self) -> Result<(), TokenError> {
        let key = self.make_sealing_key([0; 16], Place::Session)?;
        let there_and_back = || {
            let iv = random_iv()?;
            let bytes = self.encrypt(key, iv, &[7; 32])?;
            self.decrypt(key, &Sealed { iv, bytes })
        };
        let back = there_and_back();
        self.destroy(key)?;
        if back?.expose() == [7; 32] {
            return Ok(());
        }
        Err(TokenError::Failed(
            "it decrypts to something else than it encrypted".to_owned(),
        ))
    }
}
