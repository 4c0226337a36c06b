//! One token, on one session: found by name, logged in, and tried out.

use std::collections::HashMap;

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::RawAuthPin;
use mlskeyd_protocol::v1::{Algorithm, Kem, SecretBytes, SignatureScheme};

use super::super::wire::{Keeping, TokenError, TokenName, TokenSupport, Wrapping};
use super::template::{self, Guarded, Leaves, Place, UnwrapTemplate};

/// All that the daemon knows.
const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::Signature(SignatureScheme::Ed25519),
    Algorithm::Signature(SignatureScheme::EcdsaP256Sha256),
    Algorithm::Hpke(Kem::DhKemP256),
    Algorithm::Hpke(Kem::DhKemX25519),
];

/// A session with a token.
pub(super) struct Token {
    pub(super) session: Session,
    pkcs11: Pkcs11,
    slot: Slot,
    /// By which mechanism keys of an algorithm are wrapped, if they are.
    pub(super) wrapping: HashMap<Algorithm, Wrapping>,
    /// Handles of private keys; those of wrapped keys are objects of this
    /// session.
    pub(super) handles: super::keys::Handles,
    /// Private keys that are objects of the token.
    pub(super) objects: u32,
    /// Most of them.
    pub(super) max_objects: u32,
}

impl Token {
    /// Finds the token and logs in.
    pub(super) fn open(
        pkcs11: &Pkcs11,
        name: &TokenName,
        pin: Option<&SecretBytes>,
        max_objects: u32,
    ) -> Result<Self, TokenError> {
        let (slot, info) = find(pkcs11, name)?;
        let session = pkcs11.open_rw_session(slot).map_err(of_module)?;
        if info.login_required() {
            log_in(&session, &info, pin)?;
        }
        Ok(Self {
            session,
            pkcs11: pkcs11.clone(),
            slot,
            wrapping: HashMap::new(),
            handles: super::keys::Handles::default(),
            objects: 0,
            max_objects,
        })
    }

    /// What the token does with each algorithm, found by doing it.
    pub(super) fn try_out(&mut self) -> Result<Vec<TokenSupport>, TokenError> {
        self.count_objects()?;
        let mut support = Vec::new();
        for algorithm in ALGORITHMS {
            let (keeping, why) = match self.keeping(algorithm) {
                Ok((keeping, why)) => (Some(keeping), why),
                // Only this says that it never will.
                Err(TokenError::Unsupported(why)) => (None, why),
                Err(error) => return Err(error),
            };
            support.push(TokenSupport {
                algorithm,
                keeping,
                why,
            });
        }
        Ok(support)
    }

    /// Makes a key pair in the session, as it would be made on the token.
    fn keeping(&mut self, algorithm: Algorithm) -> Result<(Keeping, String), TokenError> {
        let as_object = (Keeping::Objects, String::new());
        if matches!(algorithm, Algorithm::Signature(_)) {
            // Few, long-lived, and used all the time: objects.
            self.try_pair(algorithm, Leaves::Never)?;
            return Ok(as_object);
        }
        match self.try_pair(algorithm, Leaves::Wrapped) {
            Ok((keeping, why)) => Ok((keeping, why)),
            Err(TokenError::Unsupported(why)) => {
                self.try_pair(algorithm, Leaves::Never)?;
                Ok((Keeping::Objects, why))
            }
            Err(error) => Err(error),
        }
    }

    fn try_pair(
        &mut self,
        algorithm: Algorithm,
        leaves: Leaves,
    ) -> Result<(Keeping, String), TokenError> {
        let place = Place::Session;
        let (public, private) = self.generate_pair(algorithm, [0; 16], [0; 16], leaves, place)?;
        let tried = match leaves {
            Leaves::Never => Ok((Keeping::Objects, String::new())),
            Leaves::Wrapped => self.try_wrapping(algorithm, private),
        };
        for object in [public, private] {
            self.session.destroy_object(object).map_err(of_module)?;
        }
        tried
    }

    fn try_wrapping(
        &mut self,
        algorithm: Algorithm,
        private: ObjectHandle,
    ) -> Result<(Keeping, String), TokenError> {
        let unwrap = UnwrapTemplate::new();
        let template = template::wrapping_key([0; 16], false, &unwrap);
        let wrapper = match self.session.generate_key(&Mechanism::AesKeyGen, &template) {
            Ok(wrapper) => wrapper,
            Err(error) => match of_module(error) {
                TokenError::Unsupported(why) => return Ok((Keeping::Objects, why)),
                error => return Err(error),
            },
        };
        let mut why = String::new();
        let mut keeping = Keeping::Objects;
        for by in [
            Wrapping::KeyWrapPad,
            Wrapping::KeyWrap,
            Wrapping::CbcPad([7; 16]),
        ] {
            match self.wrap_and_unwrap(algorithm, by, wrapper, private) {
                Ok(enforced) => {
                    self.wrapping.insert(algorithm, by);
                    keeping = if enforced {
                        Keeping::Wrapped
                    } else {
                        Keeping::WrappedUnenforced
                    };
                    why.clear();
                    break;
                }
                Err(TokenError::Unsupported(reason) | TokenError::Refused(reason)) => {
                    why = format!("keys are not wrapped ({reason})");
                }
                Err(error) => return Err(error),
            }
        }
        self.session.destroy_object(wrapper).map_err(of_module)?;
        Ok((keeping, why))
    }

    /// Does it go there and back, and does the token refuse to give a key back
    /// that could be read?
    fn wrap_and_unwrap(
        &self,
        algorithm: Algorithm,
        by: Wrapping,
        wrapper: ObjectHandle,
        private: ObjectHandle,
    ) -> Result<bool, TokenError> {
        let wrapped = self.wrap(by, wrapper, private)?;
        let back = self.unwrap(algorithm, by, wrapper, &wrapped, Guarded::WHOLLY)?;
        let kept = self.is_kept(back);
        self.session.destroy_object(back).map_err(of_module)?;
        let mut enforced = kept?;
        for guarded in Guarded::NOT_WHOLLY {
            match self.unwrap(algorithm, by, wrapper, &wrapped, guarded) {
                Ok(bare) => {
                    self.session.destroy_object(bare).map_err(of_module)?;
                    enforced = false;
                }
                // It said no to the template, and not only 'not now'.
                Err(TokenError::Unsupported(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(enforced)
    }

    /// That something is not found is believed only of a token that is there and
    /// logged in: else it shows nothing, and nothing is gone.
    pub(super) fn check_present(&self) -> Result<(), TokenError> {
        let gone = |what: String| TokenError::Gone(what);
        let info = self.pkcs11.get_token_info(self.slot);
        let info = info.map_err(|error| gone(error.to_string()))?;
        let session = self.session.get_session_info();
        let session = session.map_err(|error| gone(error.to_string()))?;
        if info.login_required() && session.session_state() != SessionState::RwUser {
            return Err(gone("its session is logged out".to_owned()));
        }
        Ok(())
    }

    /// Counts the token's private keys: slow where there are many, so only now
    /// and then.
    pub(super) fn count_objects(&mut self) -> Result<(), TokenError> {
        let template = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Token(true),
        ];
        let found = self.session.find_objects(&template).map_err(of_module)?;
        self.objects = u32::try_from(found.len()).unwrap_or(u32::MAX);
        Ok(())
    }

    /// The one object that has all of these attributes.
    pub(super) fn find_one(
        &self,
        class: ObjectClass,
        id: [u8; 16],
        generation: [u8; 16],
    ) -> Result<Option<ObjectHandle>, TokenError> {
        let template = [
            Attribute::Class(class),
            Attribute::Id(id.to_vec()),
            template::label(generation),
        ];
        let found = self.session.find_objects(&template).map_err(of_module)?;
        Ok(found.first().copied())
    }
}

/// The slot of the one token with this name; slots' numbers change.
fn find(pkcs11: &Pkcs11, name: &TokenName) -> Result<(Slot, TokenInfo), TokenError> {
    let mut found = Vec::new();
    let mut unreadable = None;
    for slot in pkcs11.get_slots_with_token().map_err(of_module)? {
        let info = match pkcs11.get_token_info(slot) {
            Ok(info) => info,
            // Another token's fault, maybe.
            Err(error) => {
                unreadable = Some(error);
                continue;
            }
        };
        let is_it = match name {
            TokenName::Label(label) => info.label() == label,
            TokenName::Serial(serial) => info.serial_number() == serial,
        };
        if is_it && info.token_initialized() {
            found.push((slot, info));
        }
    }
    let (by, wanted) = match name {
        TokenName::Label(label) => ("label", label),
        TokenName::Serial(serial) => ("serial number", serial),
    };
    let count = found.len();
    match found.pop() {
        Some(one) if count == 1 => Ok(one),
        Some(_) => Err(TokenError::Failed(format!(
            "{count} tokens have the {by} {wanted:?}; name one by its serial number"
        ))),
        None => {
            let also = unreadable.map_or_else(String::new, |error| {
                format!("; a token cannot be read: {error}")
            });
            Err(TokenError::Absent(format!("with {by} {wanted:?}{also}")))
        }
    }
}

/// Logs in, unless another session of this helper did.
fn log_in(
    session: &Session,
    token: &TokenInfo,
    pin: Option<&SecretBytes>,
) -> Result<(), TokenError> {
    let state = session.get_session_info().map_err(of_module)?;
    if state.session_state() == SessionState::RwUser {
        return Ok(());
    }
    // Before a PIN is asked for: none is tried in vain.
    if token.user_pin_locked() {
        return Err(TokenError::PinLocked);
    }
    if token.user_pin_final_try() {
        return Err(TokenError::LastTry);
    }
    let Some(pin) = pin else {
        return Err(TokenError::Locked);
    };
    let pin = RawAuthPin::from(Box::new(pin.expose().to_vec()));
    match session.login_with_raw(UserType::User, &pin) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(error) => Err(of_module(error)),
    }
}

/// What a module's error is to the daemon.
pub(super) fn of_module(error: Error) -> TokenError {
    let Error::Pkcs11(value, function) = &error else {
        return TokenError::Failed(error.to_string());
    };
    let text = format!("{function:?}: {value:?}");
    match value {
        RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange => TokenError::WrongPin,
        RvError::PinLocked | RvError::PinExpired => TokenError::PinLocked,
        RvError::UserNotLoggedIn => TokenError::Gone(text),
        RvError::DeviceRemoved
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::SlotIdInvalid
        | RvError::SessionClosed
        | RvError::SessionHandleInvalid
        | RvError::ObjectHandleInvalid
        | RvError::KeyHandleInvalid
        | RvError::UnwrappingKeyHandleInvalid
        | RvError::WrappingKeyHandleInvalid
        | RvError::OperationActive
        | RvError::CryptokiNotInitialized => TokenError::Gone(text),
        RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::CurveNotSupported
        | RvError::DomainParamsInvalid
        | RvError::FunctionNotSupported
        | RvError::TemplateInconsistent
        | RvError::TemplateIncomplete
        | RvError::AttributeTypeInvalid
        | RvError::AttributeValueInvalid
        | RvError::AttributeReadOnly
        | RvError::ActionProhibited
        | RvError::KeyTypeInconsistent
        | RvError::KeySizeRange
        | RvError::KeyFunctionNotPermitted
        | RvError::KeyNotWrappable
        | RvError::KeyUnextractable => TokenError::Unsupported(text),
        RvError::WrappedKeyInvalid | RvError::WrappedKeyLenRange => TokenError::Refused(text),
        _ => TokenError::Failed(text),
    }
}
