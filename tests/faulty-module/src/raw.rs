//! All that is unsafe: a module is called from C and calls another one so, with
//! pointers of the caller's in both directions; and tests and module share
//! memory. What becomes of a call is decided elsewhere, in safe code.
//!
//! A pointer is used here only as PKCS#11 2.40 lets the module use it; what is
//! merely forwarded is not looked at.
#![expect(unsafe_code, reason = "called from C, and calls C")]
#![allow(
    non_snake_case,
    reason = "the functions are named as in the standard's header"
)]

use std::fs::File;
use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use cryptoki_sys::*;
use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::control::Control;
use crate::fault::Function;
use crate::forward::{About, Call, Ending, Forwarder};
use crate::shared::Shared;

/// Maps the file for as long as the process lives.
///
/// # Errors
/// If the file is too short, and what the system says.
pub(crate) fn map(file: &File) -> io::Result<&'static Shared> {
    let size = size_of::<Shared>();
    if usize::try_from(file.metadata()?.len()).is_ok_and(|length| length < size) {
        return Err(io::Error::other("not a file of this module's tests"));
    }
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, which overlaps nothing and is never undone.
    let start = unsafe { mmap(ptr::null_mut(), size, rights, MapFlags::SHARED, file, 0)? };
    // SAFETY: it is `size` bytes long and begins a page; `Shared` has nothing but
    // atomic numbers, for which any bytes will do and which others may change.
    // Nobody shortens the file: it is the test's own.
    Ok(unsafe { &*start.cast::<Shared>() })
}

/// The module in this process.
struct Module {
    forwarder: Forwarder,
    real: CK_FUNCTION_LIST,
    /// What the caller gets: the real list with our functions.
    ours: CK_FUNCTION_LIST,
}

static MODULE: OnceLock<Option<Module>> = OnceLock::new();

fn module() -> Option<&'static Module> {
    MODULE.get()?.as_ref()
}

/// The module's only symbol (PKCS#11 2.40, 5.4).
///
/// # Safety
/// As the standard says: `list` is null, or the result may be written to it.
#[unsafe(no_mangle)]
unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    let module = MODULE.get_or_init(|| {
        let loaded = load();
        loaded
            .inspect_err(|reason| eprintln!("faulty module: {reason}"))
            .ok()
    });
    let Some(module) = module else {
        return CKR_GENERAL_ERROR;
    };
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: the caller's to write to. Nobody changes the list behind it.
    unsafe { list.write(ptr::from_ref(&module.ours).cast_mut()) };
    CKR_OK
}

fn load() -> Result<Module, String> {
    let of_environment = |name: &str| {
        std::env::var_os(name).ok_or_else(|| format!("{name} is not in the environment"))
    };
    let control = of_environment("FAULTY_CONTROL")?;
    let control = Control::open(control.as_ref()).map_err(|error| error.to_string())?;
    let path = of_environment("FAULTY_MODULE")?;
    // SAFETY: loading a library runs its code, which is what is wanted.
    let library = unsafe { Pkcs11::new(path) }.map_err(|error| error.to_string())?;
    // It stays, and so does the list that it gives.
    let library = Box::leak(Box::new(library));
    if let Err(error) = &library.C_GetFunctionList {
        return Err(error.to_string());
    }
    let mut list = ptr::null_mut();
    // SAFETY: the result is written to `list`.
    let result = unsafe { library.C_GetFunctionList(&raw mut list) };
    // SAFETY: what a module gives is a list, or nothing.
    let real = unsafe { list.as_ref() }.ok_or_else(|| format!("no list of functions: {result}"))?;
    let mut ours = *real;
    replace(&mut ours);
    let forwarder = Forwarder::new(control.shared());
    Ok(Module {
        forwarder,
        real: *real,
        ours,
    })
}

/// Makes a call of the real module's, unless something is wrong with ours.
fn call(
    function: Option<Function>,
    about: About,
    make: impl FnOnce(&'static Module) -> CK_RV,
) -> CK_RV {
    let Some(module) = module() else {
        return CKR_CRYPTOKI_NOT_INITIALIZED;
    };
    let call = Call { function, about };
    let ending = Ending {
        close_all: || close_all(&module.real),
        log_out: |sessions: &[CK_SESSION_HANDLE]| log_out(&module.real, sessions),
    };
    module.forwarder.call(call, ending, crash, || make(module))
}

fn crash() {
    let nowhere = ptr::without_provenance_mut::<u8>(8);
    // SAFETY: it is not, on purpose: nothing is mapped there, and the process
    // dies of it.
    unsafe { nowhere.write_volatile(1) };
}

/// Closes all sessions with all tokens; before C_Initialize there are none.
fn close_all(real: &CK_FUNCTION_LIST) {
    let (Some(list), Some(close)) = (real.C_GetSlotList, real.C_CloseAllSessions) else {
        return;
    };
    let mut slots = [0; 64];
    let mut count = 64;
    // SAFETY: there is room for `count` slots.
    let listed = unsafe { list(CK_TRUE, slots.as_mut_ptr(), &raw mut count) };
    if listed != CKR_OK {
        return;
    }
    let count = usize::try_from(count).unwrap_or(0);
    for slot in slots.into_iter().take(count) {
        // SAFETY: it takes any number.
        unsafe { close(slot) };
    }
}

/// Logs out the tokens of these sessions.
fn log_out(real: &CK_FUNCTION_LIST, sessions: &[CK_SESSION_HANDLE]) {
    let Some(log_out) = real.C_Logout else {
        return;
    };
    for session in sessions {
        // SAFETY: it takes any number.
        unsafe { log_out(*session) };
    }
}

/// Does a template have this attribute?
///
/// # Safety
/// `template` is null, or has `count` attributes.
unsafe fn has(template: *const CK_ATTRIBUTE, count: CK_ULONG, kind: CK_ATTRIBUTE_TYPE) -> bool {
    // SAFETY: handed on to our caller.
    unsafe { attributes(template, count) }
        .iter()
        .any(|attribute| attribute.type_ == kind)
}

/// # Safety
/// `template` is null, or has `count` attributes as long as the result is used.
unsafe fn attributes<'a>(template: *const CK_ATTRIBUTE, count: CK_ULONG) -> &'a [CK_ATTRIBUTE] {
    match usize::try_from(count) {
        // SAFETY: handed on to our caller.
        Ok(count) if !template.is_null() => unsafe { std::slice::from_raw_parts(template, count) },
        _ => &[],
    }
}

/// What is refused of a template: an unwrap template, where there is to be none.
///
/// # Safety
/// As for [`has`].
unsafe fn refused(
    module: &Module,
    template: *const CK_ATTRIBUTE,
    count: CK_ULONG,
) -> Option<CK_RV> {
    let shared = module.forwarder.shared;
    let without = shared.without_unwrap_template.load(Ordering::SeqCst) != 0;
    // SAFETY: handed on to our caller.
    (without && unsafe { has(template, count, CKA_UNWRAP_TEMPLATE) })
        .then_some(CKR_ATTRIBUTE_TYPE_INVALID)
}

/// What is refused of a mechanism: one that is to be lacking.
///
/// # Safety
/// `mechanism` is null or one.
unsafe fn lacking(module: &Module, mechanism: *const CK_MECHANISM) -> Option<CK_RV> {
    // SAFETY: handed on to our caller.
    let mechanism = unsafe { mechanism.as_ref() }?;
    let lacks = module.forwarder.shared.lacks(mechanism.mechanism);
    lacks.then_some(CKR_MECHANISM_INVALID)
}

/// Answers a list as the standard says: its length, and if there is room itself.
///
/// # Safety
/// `count` is null or points to the room at `list`, which is null or has it.
unsafe fn answer(list: *mut CK_ULONG, count: *mut CK_ULONG, all: &[CK_ULONG]) -> CK_RV {
    // SAFETY: handed on to our caller.
    let Some(count) = (unsafe { count.as_mut() }) else {
        return CKR_ARGUMENTS_BAD;
    };
    let room = usize::try_from(*count).unwrap_or(usize::MAX);
    *count = CK_ULONG::try_from(all.len()).unwrap_or(CK_ULONG::MAX);
    if list.is_null() {
        return CKR_OK;
    }
    if room < all.len() {
        return CKR_BUFFER_TOO_SMALL;
    }
    // SAFETY: there is room for them.
    unsafe { ptr::copy_nonoverlapping(all.as_ptr(), list, all.len()) };
    CKR_OK
}

/// A function of the real module, with these arguments.
macro_rules! real {
    ($module:expr, $name:ident($($arg:expr),* $(,)?)) => {
        match $module.real.$name {
            // SAFETY: the caller's arguments, as they came.
            Some(real) => unsafe { real($($arg),*) },
            None => CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}

/// Where faults are injected, if anywhere.
macro_rules! function {
    (_) => {
        None
    };
    ($function:ident) => {
        Some(Function::$function)
    };
}

/// Functions whose first argument is a session, and `replace`, which puts them
/// and `others` into a list. `counts` says which calls are not only for a
/// length, `refuses` what is not even forwarded, `then` what follows success.
macro_rules! session_functions {
    (
        others: $($other:ident)*;
        $(
            $name:ident as $function:tt ($($arg:ident: $type:ty),*)
            $({ $(counts $counts:expr;)? $(refuses $refuses:expr;)? $(then $then:expr;)? })?
        )*
    ) => {
        $(
            unsafe extern "C" fn $name(session: CK_SESSION_HANDLE, $($arg: $type),*) -> CK_RV {
                let function: Option<Function> = function!($function);
                $($(let function = function.filter(|_| $counts);)?)?
                call(function, About::Session, |module| {
                    $($(
                        let refuses: &dyn Fn(&Module) -> Option<CK_RV> = &$refuses;
                        if let Some(error) = refuses(module) {
                            return error;
                        }
                    )?)?
                    let result = real!(module, $name(session, $($arg),*));
                    $($(
                        let then: &dyn Fn(&Forwarder, CK_SESSION_HANDLE) = &$then;
                        if result == CKR_OK {
                            then(&module.forwarder, session);
                        }
                    )?)?
                    result
                })
            }
        )*

        fn replace(list: &mut CK_FUNCTION_LIST) {
            $(list.$other = Some($other);)*
            $(list.$name = Some($name);)*
        }
    };
}

session_functions! {
    others: C_Initialize C_Finalize C_GetFunctionList C_GetSlotList C_GetSlotInfo C_GetTokenInfo
        C_GetMechanismList C_GetMechanismInfo C_InitToken C_OpenSession C_CloseAllSessions;

    C_CloseSession as CloseSession () {
        then |it: &Forwarder, session| it.sessions.close(it.shared, session);
    }
    C_GetSessionInfo as GetSessionInfo (info: *mut CK_SESSION_INFO)
    C_InitPIN as _ (pin: *mut CK_UTF8CHAR, length: CK_ULONG)
    C_SetPIN as _ (
        old: *mut CK_UTF8CHAR, old_length: CK_ULONG, new: *mut CK_UTF8CHAR, new_length: CK_ULONG
    )
    C_GetOperationState as _ (state: *mut CK_BYTE, room: *mut CK_ULONG)
    C_SetOperationState as _ (
        state: *mut CK_BYTE, length: CK_ULONG, cipher: CK_OBJECT_HANDLE, key: CK_OBJECT_HANDLE
    )
    C_Login as Login (user: CK_USER_TYPE, pin: *mut CK_UTF8CHAR, length: CK_ULONG)
    C_Logout as _ ()

    C_CreateObject as CreateObject (
        template: *mut CK_ATTRIBUTE, count: CK_ULONG, made: *mut CK_OBJECT_HANDLE
    ) {
        // SAFETY: the caller's template.
        refuses |module: &Module| unsafe { refused(module, template, count) };
        then |it: &Forwarder, _| it.made(1);
    }
    C_CopyObject as _ (
        object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG,
        made: *mut CK_OBJECT_HANDLE
    ) {
        then |it: &Forwarder, _| it.made(1);
    }
    C_DestroyObject as DestroyObject (object: CK_OBJECT_HANDLE) {
        then |it: &Forwarder, _| it.made(-1);
    }
    C_GetObjectSize as _ (object: CK_OBJECT_HANDLE, size: *mut CK_ULONG)
    C_GetAttributeValue as GetAttributeValue (
        object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG
    ) {
        // SAFETY: the caller's template.
        counts unsafe { attributes(template, count) }.iter().any(|it| !it.pValue.is_null());
    }
    C_SetAttributeValue as _ (
        object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG
    )
    C_FindObjectsInit as FindObjectsInit (template: *mut CK_ATTRIBUTE, count: CK_ULONG) {
        then |it: &Forwarder, session| it.sessions.finds(it.shared, session, true);
    }
    C_FindObjects as FindObjects (
        found: *mut CK_OBJECT_HANDLE, room: CK_ULONG, count: *mut CK_ULONG
    )
    C_FindObjectsFinal as FindObjectsFinal () {
        then |it: &Forwarder, session| it.sessions.finds(it.shared, session, false);
    }

    C_EncryptInit as EncryptInit (mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE)
    C_Encrypt as Encrypt (
        data: *mut CK_BYTE, length: CK_ULONG, result: *mut CK_BYTE, room: *mut CK_ULONG
    ) {
        counts !result.is_null();
    }
    C_EncryptUpdate as _ (
        data: *mut CK_BYTE, length: CK_ULONG, result: *mut CK_BYTE, room: *mut CK_ULONG
    )
    C_EncryptFinal as _ (result: *mut CK_BYTE, room: *mut CK_ULONG)
    C_DecryptInit as DecryptInit (mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE)
    C_Decrypt as Decrypt (
        data: *mut CK_BYTE, length: CK_ULONG, result: *mut CK_BYTE, room: *mut CK_ULONG
    ) {
        counts !result.is_null();
    }
    C_DecryptUpdate as _ (
        data: *mut CK_BYTE, length: CK_ULONG, result: *mut CK_BYTE, room: *mut CK_ULONG
    )
    C_DecryptFinal as _ (result: *mut CK_BYTE, room: *mut CK_ULONG)

    C_DigestInit as _ (mechanism: *mut CK_MECHANISM)
    C_Digest as _ (
        data: *mut CK_BYTE, length: CK_ULONG, result: *mut CK_BYTE, room: *mut CK_ULONG
    )
    C_DigestUpdate as _ (data: *mut CK_BYTE, length: CK_ULONG)
    C_DigestKey as _ (key: CK_OBJECT_HANDLE)
    C_DigestFinal as _ (result: *mut CK_BYTE, room: *mut CK_ULONG)

    C_SignInit as SignInit (mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE)
    C_Sign as Sign (
        data: *mut CK_BYTE, length: CK_ULONG, signature: *mut CK_BYTE, room: *mut CK_ULONG
    ) {
        counts !signature.is_null();
    }
    C_SignUpdate as _ (data: *mut CK_BYTE, length: CK_ULONG)
    C_SignFinal as _ (signature: *mut CK_BYTE, room: *mut CK_ULONG)
    C_SignRecoverInit as _ (mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE)
    C_SignRecover as _ (
        data: *mut CK_BYTE, length: CK_ULONG, signature: *mut CK_BYTE, room: *mut CK_ULONG
    )
    C_VerifyInit as _ (mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE)
    C_Verify as _ (
        data: *mut CK_BYTE, length: CK_ULONG, signature: *mut CK_BYTE, signed: CK_ULONG
    )
    C_VerifyUpdate as _ (data: *mut CK_BYTE, length: CK_ULONG)
    C_VerifyFinal as _ (signature: *mut CK_BYTE, length: CK_ULONG)
    C_VerifyRecoverInit as _ (mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE)
    C_VerifyRecover as _ (
        signature: *mut CK_BYTE, length: CK_ULONG, data: *mut CK_BYTE, room: *mut CK_ULONG
    )
    C_DigestEncryptUpdate as _ (
        data: *mut CK_BYTE, length: CK_ULONG, result: *mut CK_BYTE, room: *mut CK_ULONG
    )
    C_DecryptDigestUpdate as _ (
        data: *mut CK_BYTE, length: CK_ULONG, result: *mut CK_BYTE, room: *mut CK_ULONG
    )
    C_SignEncryptUpdate as _ (
        data: *mut CK_BYTE, length: CK_ULONG, result: *mut CK_BYTE, room: *mut CK_ULONG
    )
    C_DecryptVerifyUpdate as _ (
        data: *mut CK_BYTE, length: CK_ULONG, result: *mut CK_BYTE, room: *mut CK_ULONG
    )

    C_GenerateKey as GenerateKey (
        mechanism: *mut CK_MECHANISM, template: *mut CK_ATTRIBUTE, count: CK_ULONG,
        made: *mut CK_OBJECT_HANDLE
    ) {
        // SAFETY: the caller's mechanism and template.
        refuses |module: &Module| unsafe {
            lacking(module, mechanism).or_else(|| refused(module, template, count))
        };
        then |it: &Forwarder, _| it.made(1);
    }
    C_GenerateKeyPair as GenerateKeyPair (
        mechanism: *mut CK_MECHANISM, public: *mut CK_ATTRIBUTE, public_count: CK_ULONG,
        private: *mut CK_ATTRIBUTE, private_count: CK_ULONG,
        public_made: *mut CK_OBJECT_HANDLE, private_made: *mut CK_OBJECT_HANDLE
    ) {
        // SAFETY: the caller's mechanism.
        refuses |module: &Module| unsafe { lacking(module, mechanism) };
        then |it: &Forwarder, _| it.made(2);
    }
    C_WrapKey as WrapKey (
        mechanism: *mut CK_MECHANISM, wrapper: CK_OBJECT_HANDLE, key: CK_OBJECT_HANDLE,
        wrapped: *mut CK_BYTE, room: *mut CK_ULONG
    ) {
        counts !wrapped.is_null();
    }
    C_UnwrapKey as UnwrapKey (
        mechanism: *mut CK_MECHANISM, wrapper: CK_OBJECT_HANDLE, wrapped: *mut CK_BYTE,
        length: CK_ULONG, template: *mut CK_ATTRIBUTE, count: CK_ULONG,
        made: *mut CK_OBJECT_HANDLE
    ) {
        then |it: &Forwarder, _| it.made(1);
    }
    C_DeriveKey as DeriveKey (
        mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE,
        count: CK_ULONG, made: *mut CK_OBJECT_HANDLE
    ) {
        then |it: &Forwarder, _| it.made(1);
    }
    C_SeedRandom as _ (seed: *mut CK_BYTE, length: CK_ULONG)
    C_GenerateRandom as _ (random: *mut CK_BYTE, length: CK_ULONG)
}

unsafe extern "C" fn C_Initialize(arguments: *mut std::ffi::c_void) -> CK_RV {
    call(None, About::Module, |module| {
        let result = real!(module, C_Initialize(arguments));
        if result == CKR_OK {
            let forwarder = &module.forwarder;
            forwarder.sessions.clear(forwarder.shared);
        }
        result
    })
}

unsafe extern "C" fn C_Finalize(reserved: *mut std::ffi::c_void) -> CK_RV {
    call(Some(Function::Finalize), About::Module, |module| {
        real!(module, C_Finalize(reserved))
    })
}

unsafe extern "C" fn C_GetSlotList(
    with_token: CK_BBOOL,
    slots: *mut CK_SLOT_ID,
    count: *mut CK_ULONG,
) -> CK_RV {
    let function = (!slots.is_null()).then_some(Function::GetSlotList);
    call(function, About::Module, |module| {
        if with_token != CK_FALSE && module.forwarder.is_out() {
            // SAFETY: the caller's pointers.
            return unsafe { answer(slots, count, &[]) };
        }
        real!(module, C_GetSlotList(with_token, slots, count))
    })
}

unsafe extern "C" fn C_GetSlotInfo(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO) -> CK_RV {
    call(None, About::Module, |module| {
        let result = real!(module, C_GetSlotInfo(slot, info));
        // SAFETY: the caller's pointer.
        if let Some(info) = unsafe { info.as_mut() }
            && result == CKR_OK
            && module.forwarder.is_out()
        {
            info.flags &= !CKF_TOKEN_PRESENT;
        }
        result
    })
}

unsafe extern "C" fn C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    call(Some(Function::GetTokenInfo), About::Token, |module| {
        let result = real!(module, C_GetTokenInfo(slot, info));
        // SAFETY: the caller's pointer.
        if let Some(info) = unsafe { info.as_mut() }
            && result == CKR_OK
        {
            info.flags |= module.forwarder.shared.pin_flags();
        }
        result
    })
}

unsafe extern "C" fn C_GetMechanismList(
    slot: CK_SLOT_ID,
    list: *mut CK_MECHANISM_TYPE,
    count: *mut CK_ULONG,
) -> CK_RV {
    call(None, About::Token, |module| {
        let mut length = 0;
        let asked = real!(
            module,
            C_GetMechanismList(slot, ptr::null_mut(), &raw mut length)
        );
        if asked != CKR_OK {
            return asked;
        }
        let mut all = vec![0; usize::try_from(length).unwrap_or(0)];
        let told = real!(
            module,
            C_GetMechanismList(slot, all.as_mut_ptr(), &raw mut length)
        );
        if told != CKR_OK {
            return told;
        }
        all.truncate(usize::try_from(length).unwrap_or(0));
        all.retain(|mechanism| !module.forwarder.shared.lacks(*mechanism));
        // SAFETY: the caller's pointers.
        unsafe { answer(list, count, &all) }
    })
}

unsafe extern "C" fn C_GetMechanismInfo(
    slot: CK_SLOT_ID,
    mechanism: CK_MECHANISM_TYPE,
    info: *mut CK_MECHANISM_INFO,
) -> CK_RV {
    call(None, About::Token, |module| {
        if module.forwarder.shared.lacks(mechanism) {
            return CKR_MECHANISM_INVALID;
        }
        real!(module, C_GetMechanismInfo(slot, mechanism, info))
    })
}

unsafe extern "C" fn C_InitToken(
    slot: CK_SLOT_ID,
    pin: *mut CK_UTF8CHAR,
    length: CK_ULONG,
    label: *mut CK_UTF8CHAR,
) -> CK_RV {
    call(None, About::Token, |module| {
        real!(module, C_InitToken(slot, pin, length, label))
    })
}

unsafe extern "C" fn C_OpenSession(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut std::ffi::c_void,
    notify: CK_NOTIFY,
    session: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    call(Some(Function::OpenSession), About::Token, |module| {
        let forwarder = &module.forwarder;
        forwarder.sessions.open(forwarder.shared, slot, || {
            let result = real!(
                module,
                C_OpenSession(slot, flags, application, notify, session)
            );
            // SAFETY: the caller's pointer, to which the handle was written.
            match unsafe { session.as_ref() } {
                Some(handle) if result == CKR_OK => Ok(*handle),
                _ => Err(result),
            }
        })
    })
}

unsafe extern "C" fn C_CloseAllSessions(slot: CK_SLOT_ID) -> CK_RV {
    call(None, About::Token, |module| {
        let result = real!(module, C_CloseAllSessions(slot));
        if result == CKR_OK {
            let forwarder = &module.forwarder;
            forwarder.sessions.close_all(forwarder.shared, slot);
        }
        result
    })
}
