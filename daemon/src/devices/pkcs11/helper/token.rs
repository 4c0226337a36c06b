//! One token, found by name, and its sessions, logged in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::RawAuthPin;
use mlskeyd_protocol::v1::SecretBytes;

use super::super::wire::{Identity, TokenError, TokenName};
use super::handles::{Handles, Of};
use super::{Module, template};

/// What all sessions with a token share.
pub(super) struct Token {
    pkcs11: Pkcs11,
    slot: Slot,
    pub(super) serial: String,
    handles: Mutex<Handles<ObjectHandle>>,
    /// Private keys that are objects of the token, once they were counted.
    pub(super) objects: Mutex<Option<u32>>,
    /// One session at a time makes or destroys objects on the token: SoftHSM fails now
    /// and then over several at once, and of two keys that seal one generation one is
    /// too many.
    changing_objects: Mutex<()>,
    next_session: AtomicU64,
}

/// A session with a token.
pub(super) struct TokenSession {
    pub(super) session: Session,
    pub(super) token: Arc<Token>,
    /// Which session: keys that it unwrapped end with it.
    pub(super) number: u64,
}

impl Token {
    /// Is it the same one, in the same slot?
    pub(super) fn is(&self, other: &Self) -> bool {
        self.slot == other.slot && self.serial == other.serial
    }

    pub(super) fn mechanisms(&self) -> Result<Vec<MechanismType>, TokenError> {
        self.pkcs11.get_mechanism_list(self.slot).map_err(of_module)
    }

    /// What it says that it is.
    pub(super) fn identity(&self) -> Result<Identity, TokenError> {
        let info = self.pkcs11.get_token_info(self.slot).map_err(of_module)?;
        Ok(Identity {
            label: info.label().to_owned(),
            manufacturer: info.manufacturer_id().to_owned(),
            model: info.model().to_owned(),
            firmware: info.firmware_version().to_string(),
        })
    }

    /// The turn to make or destroy objects on the token.
    pub(super) fn turn_to_change(&self) -> MutexGuard<'_, ()> {
        let turn = self.changing_objects.lock();
        turn.unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn handles(&self) -> MutexGuard<'_, Handles<ObjectHandle>> {
        // Never held over a call of the module.
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TokenSession {
    fn drop(&mut self) {
        self.token.handles().forget_session(self.number);
    }
}

impl TokenSession {
    /// Finds the token and logs in, if it is the device's own.
    pub(super) fn open(
        module: &Module,
        name: &TokenName,
        own: &str,
        pin: Option<&SecretBytes>,
        last_try: bool,
    ) -> Result<Self, TokenError> {
        let pkcs11 = &module.pkcs11;
        let (slot, info) = find(pkcs11, name, Some(own))?;
        if info.serial_number() != own {
            return Err(TokenError::Other(info.serial_number().to_owned()));
        }
        let session = pkcs11.open_rw_session(slot).map_err(of_module)?;
        let logged_in = info.login_required() && log_in(&session, &info, pin, last_try)?;
        let token = module.token(Token {
            pkcs11: pkcs11.clone(),
            slot,
            serial: info.serial_number().to_owned(),
            handles: Mutex::default(),
            objects: Mutex::default(),
            changing_objects: Mutex::default(),
            next_session: AtomicU64::new(1),
        });
        if logged_in {
            // Sessions that there are were logged out: what their handles lead to now
            // nobody knows.
            token.handles().forget_all();
        }
        Ok(Self {
            session,
            number: token.next_session.fetch_add(1, Ordering::Relaxed),
            token,
        })
    }

    /// That something is not found is believed only of a token that is there and
    /// logged in: else it shows nothing, and nothing is gone.
    pub(super) fn check_present(&self) -> Result<(), TokenError> {
        let gone = |what: String| TokenError::Gone(what);
        let info = self.token.pkcs11.get_token_info(self.token.slot);
        let info = info.map_err(|error| gone(error.to_string()))?;
        if info.serial_number() != self.token.serial {
            return Err(gone("another one is in its slot".to_owned()));
        }
        let session = self.session.get_session_info();
        let session = session.map_err(|error| gone(error.to_string()))?;
        if info.login_required() && session.session_state() != SessionState::RwUser {
            return Err(gone("its session is logged out".to_owned()));
        }
        Ok(())
    }

    /// The object is not there, if the token is.
    pub(super) fn not_found(&self) -> TokenError {
        self.check_present().err().unwrap_or(TokenError::NotFound)
    }

    /// The handle of an object: remembered or found, and whether it was only
    /// remembered. `None`: the token, if it is there, has none.
    pub(super) fn object(
        &self,
        of: Of,
        generation: [u8; 16],
    ) -> Result<Option<ObjectHandle>, TokenError> {
        if let Some(known) = self.token.handles().get(of) {
            return Ok(Some(known));
        }
        let found = match of {
            Of::Private(key) => self.find_one(ObjectClass::PRIVATE_KEY, &key, generation)?,
            Of::Sealing(_) => {
                let id = template::sealing_id(generation);
                self.find_one(ObjectClass::SECRET_KEY, &id, generation)?
            }
            Of::Anchor(_) => {
                let key = self.find_one(ObjectClass::SECRET_KEY, &generation, generation)?;
                match key {
                    None => self.find_data(generation)?,
                    key => key,
                }
            }
        };
        if let Some(handle) = found {
            if !matches!(of, Of::Private(_)) && !self.is_trusted(handle)? {
                return Err(TokenError::Failed(
                    "a key of ours was replaced by one that was not made on the token".to_owned(),
                ));
            }
            self.token.handles().put_object(of, generation, handle);
        }
        Ok(found)
    }

    /// Is it as the token made it, and no other key of the same name, by which
    /// somebody could unwrap what we wrap? A data object wraps nothing.
    fn is_trusted(&self, object: ObjectHandle) -> Result<bool, TokenError> {
        Ok(self.has(object, &[Attribute::Class(ObjectClass::DATA)])?
            || self.was_always_kept(object)?)
    }

    fn find_one(
        &self,
        class: ObjectClass,
        id: &[u8],
        generation: [u8; 16],
    ) -> Result<Option<ObjectHandle>, TokenError> {
        self.find_only(&[
            Attribute::Class(class),
            Attribute::Id(id.to_vec()),
            template::label(generation),
        ])
    }

    fn find_data(&self, generation: [u8; 16]) -> Result<Option<ObjectHandle>, TokenError> {
        self.find_only(&[
            Attribute::Class(ObjectClass::DATA),
            template::label(generation),
        ])
    }

    /// The only object that has all of these attributes.
    pub(super) fn find_only(
        &self,
        template: &[Attribute],
    ) -> Result<Option<ObjectHandle>, TokenError> {
        let found = self.session.find_objects(template).map_err(of_module)?;
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            several => Err(TokenError::Failed(format!(
                "it shows {} objects where there must be one",
                several.len()
            ))),
        }
    }

    /// Does the object have these attributes?
    pub(super) fn has(
        &self,
        object: ObjectHandle,
        wanted: &[Attribute],
    ) -> Result<bool, TokenError> {
        let kinds: Vec<_> = wanted.iter().map(Attribute::attribute_type).collect();
        let told = self.session.get_attributes(object, &kinds);
        let told = told.map_err(of_module)?;
        Ok(wanted.iter().all(|attribute| told.contains(attribute)))
    }

    pub(super) fn destroy(&self, object: ObjectHandle) -> Result<(), TokenError> {
        self.session.destroy_object(object).map_err(of_module)
    }
}

/// The serial number of the one token with this name.
pub(super) fn look(module: &Module, name: &TokenName) -> Result<String, TokenError> {
    let (_, info) = find(&module.pkcs11, name, None)?;
    Ok(info.serial_number().to_owned())
}

/// The slot of the one token with this name; slots' numbers change. Of several it
/// is the device's own.
fn find(
    pkcs11: &Pkcs11,
    name: &TokenName,
    own: Option<&str>,
) -> Result<(Slot, TokenInfo), TokenError> {
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
    let is_own = |info: &TokenInfo| own == Some(info.serial_number());
    if found.iter().any(|(_, info)| is_own(info)) {
        found.retain(|(_, info)| is_own(info));
    }
    let (by, wanted) = match name {
        TokenName::Label(label) => ("label", label),
        TokenName::Serial(serial) => ("serial number", serial),
    };
    let count = found.len();
    match found.pop() {
        Some(one) if count == 1 => Ok(one),
        Some(_) => {
            let other = match name {
                TokenName::Label(_) => "`serial`, its serial number",
                TokenName::Serial(_) => "`token`, its label",
            };
            Err(TokenError::Failed(format!(
                "{count} tokens have the {by} {wanted:?}: name one by {other}"
            )))
        }
        None => {
            let also = unreadable.map_or_else(String::new, |error| {
                format!("; a token cannot be read: {error}")
            });
            Err(TokenError::Absent(format!("with {by} {wanted:?}{also}")))
        }
    }
}

/// Logs in, unless another session of this helper did; answers whether it was this
/// one.
fn log_in(
    session: &Session,
    token: &TokenInfo,
    pin: Option<&SecretBytes>,
    last_try: bool,
) -> Result<bool, TokenError> {
    let state = session.get_session_info().map_err(of_module)?;
    if state.session_state() == SessionState::RwUser {
        return Ok(false);
    }
    // Before a PIN is asked for: none is tried in vain.
    if token.protected_authentication_path() {
        return Err(TokenError::PinPad);
    }
    if token.user_pin_locked() {
        return Err(TokenError::PinLocked);
    }
    if token.user_pin_final_try() && !last_try {
        return Err(TokenError::LastTry);
    }
    let Some(pin) = pin else {
        return Err(TokenError::Locked);
    };
    let pin = RawAuthPin::from(Box::new(pin.expose().to_vec()));
    match session.login_with_raw(UserType::User, &pin) {
        Ok(()) => Ok(true),
        Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(false),
        Err(error) => Err(match of_module(error) {
            said @ (TokenError::WrongPin | TokenError::PinLocked) => said,
            // Whether the token has looked at the PIN nobody knows.
            other => TokenError::LoginFailed(other.to_string()),
        }),
    }
}

/// A handle that leads nowhere: of an object that ended with its session, or
/// that somebody else destroyed.
pub(super) const fn is_stale(error: &Error) -> bool {
    matches!(
        error,
        Error::Pkcs11(
            RvError::ObjectHandleInvalid
                | RvError::KeyHandleInvalid
                | RvError::UnwrappingKeyHandleInvalid
                | RvError::WrappingKeyHandleInvalid,
            _
        )
    )
}

/// The token's memory for objects of sessions is full.
pub(super) const fn is_full(error: &Error) -> bool {
    matches!(
        error,
        Error::Pkcs11(RvError::DeviceMemory | RvError::HostMemory, _)
    )
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
        RvError::SessionCount
        | RvError::SessionReadOnlyExists
        | RvError::SessionParallelNotSupported => TokenError::NoSession(text),
        RvError::DeviceMemory | RvError::HostMemory => TokenError::Memory(text),
        RvError::UserNotLoggedIn
        | RvError::DeviceRemoved
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
        | RvError::KeyUnextractable
        // CKM_AES_KEY_WRAP takes whole blocks only.
        | RvError::DataLenRange => TokenError::Unsupported(text),
        RvError::WrappedKeyInvalid | RvError::WrappedKeyLenRange => TokenError::Refused(text),
        _ => TokenError::Failed(text),
    }
}
