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

use super::super::wire::{Keeping, TokenError, TokenFacts, TokenName, TokenSupport, Wrapping};
use super::template::{self, Leaves, UnwrapTemplate};

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
    pub(super) facts: TokenFacts,
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
    /// Finds the token, logs in, and tries what it does.
    pub(super) fn open(
        pkcs11: &Pkcs11,
        name: &TokenName,
        pin: Option<&SecretBytes>,
        max_objects: u32,
    ) -> Result<(Self, TokenFacts), TokenError> {
        let slot = find(pkcs11, name)?;
        let info = pkcs11.get_token_info(slot).map_err(of_module)?;
        let session = pkcs11.open_rw_session(slot).map_err(of_module)?;
        if info.login_required() {
            log_in(&session, &info, pin)?;
        }
        let mut token = Self {
            session,
            facts: TokenFacts {
                label: info.label().to_owned(),
                serial: info.serial_number().to_owned(),
                support: Vec::new(),
            },
            wrapping: HashMap::new(),
            handles: super::keys::Handles::default(),
            objects: 0,
            max_objects,
        };
        token.count_objects()?;
        for algorithm in ALGORITHMS {
            let support = token.try_out(algorithm);
            token.facts.support.push(support);
        }
        let facts = token.facts.clone();
        Ok((token, facts))
    }

    /// Makes a key of the algorithm in the session, and wraps and unwraps it.
    fn try_out(&mut self, algorithm: Algorithm) -> TokenSupport {
        let (keeping, why) = match self.keeping(algorithm) {
            Ok((keeping, why)) => (Some(keeping), why),
            Err(error) => (None, error.to_string()),
        };
        TokenSupport {
            algorithm,
            keeping,
            why,
        }
    }

    fn keeping(&mut self, algorithm: Algorithm) -> Result<(Keeping, String), TokenError> {
        let (public, private) = self.generate_pair(algorithm, [0; 16], [0; 16], Leaves::Wrapped)?;
        let tried = match algorithm {
            // Few, long-lived, and used all the time: objects.
            Algorithm::Signature(_) => Ok((Keeping::Objects, String::new())),
            Algorithm::Hpke(_) => self.try_wrapping(algorithm, private),
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
            Err(error) => return Ok((Keeping::Objects, error.to_string())),
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
                Err(error) => why = format!("keys are not wrapped: {error}"),
            }
        }
        self.session.destroy_object(wrapper).map_err(of_module)?;
        Ok((keeping, why))
    }

    /// Does it go there and back, and does the token refuse to give an
    /// extractable key back?
    fn wrap_and_unwrap(
        &self,
        algorithm: Algorithm,
        by: Wrapping,
        wrapper: ObjectHandle,
        private: ObjectHandle,
    ) -> Result<bool, TokenError> {
        let wrapped = self.wrap(by, wrapper, private)?;
        let back = self.unwrap(algorithm, by, wrapper, &wrapped, false)?;
        self.session.destroy_object(back).map_err(of_module)?;
        match self.unwrap(algorithm, by, wrapper, &wrapped, true) {
            Ok(bare) => {
                self.session.destroy_object(bare).map_err(of_module)?;
                Ok(false)
            }
            Err(_) => Ok(true),
        }
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
fn find(pkcs11: &Pkcs11, name: &TokenName) -> Result<Slot, TokenError> {
    let slots = pkcs11
        .get_slots_with_initialized_token()
        .map_err(of_module)?;
    let mut found = Vec::new();
    for slot in slots {
        let info = pkcs11.get_token_info(slot).map_err(of_module)?;
        let is_it = match name {
            TokenName::Label(label) => info.label() == label,
            TokenName::Serial(serial) => info.serial_number() == serial,
        };
        if is_it {
            found.push(slot);
        }
    }
    let (by, wanted) = match name {
        TokenName::Label(label) => ("label", label),
        TokenName::Serial(serial) => ("serial number", serial),
    };
    match found.as_slice() {
        [slot] => Ok(*slot),
        [] => Err(TokenError::Absent(format!("with {by} {wanted:?}"))),
        _ => Err(TokenError::Failed(format!(
            "{} tokens have the {by} {wanted:?}; name one by its serial number",
            found.len()
        ))),
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
    let Some(pin) = pin else {
        return Err(TokenError::Locked);
    };
    if token.user_pin_locked() {
        return Err(TokenError::PinLocked);
    }
    if token.user_pin_final_try() {
        return Err(TokenError::LastTry);
    }
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
        | RvError::KeyNotWrappable
        | RvError::KeyUnextractable => TokenError::Unsupported(text),
        RvError::WrappedKeyInvalid | RvError::WrappedKeyLenRange => TokenError::Refused(text),
        _ => TokenError::Failed(text),
    }
}
