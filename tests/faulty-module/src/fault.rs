//! What can go wrong, and where.

use cryptoki_sys::CK_RV;

/// A function of the module at which a fault can be injected, and whose calls
/// are counted.
///
/// Of functions that are called twice, once for a length and once for the bytes,
/// only the calls for the bytes count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Function {
    /// `C_Finalize`
    Finalize,
    /// `C_GetSlotList`
    GetSlotList,
    /// `C_GetTokenInfo`
    GetTokenInfo,
    /// `C_OpenSession`
    OpenSession,
    /// `C_CloseSession`
    CloseSession,
    /// `C_GetSessionInfo`
    GetSessionInfo,
    /// `C_Login`
    Login,
    /// `C_CreateObject`
    CreateObject,
    /// `C_DestroyObject`
    DestroyObject,
    /// `C_GetAttributeValue`
    GetAttributeValue,
    /// `C_FindObjectsInit`
    FindObjectsInit,
    /// `C_FindObjects`
    FindObjects,
    /// `C_FindObjectsFinal`
    FindObjectsFinal,
    /// `C_EncryptInit`
    EncryptInit,
    /// `C_Encrypt`
    Encrypt,
    /// `C_DecryptInit`
    DecryptInit,
    /// `C_Decrypt`
    Decrypt,
    /// `C_SignInit`
    SignInit,
    /// `C_Sign`
    Sign,
    /// `C_GenerateKey`
    GenerateKey,
    /// `C_GenerateKeyPair`
    GenerateKeyPair,
    /// `C_WrapKey`
    WrapKey,
    /// `C_UnwrapKey`
    UnwrapKey,
    /// `C_DeriveKey`
    DeriveKey,
}

impl Function {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::DeriveKey as usize + 1;
}

/// What goes wrong in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call is not made, and this error returned.
    Error(CK_RV),
    /// The call is made, and this error returned: its answer got lost.
    ErrorAfter(CK_RV),
    /// The call is not made, this error returned, and the token is out until
    /// [`put_back`](crate::Control::put_back).
    Removed(CK_RV),
    /// The call never returns.
    Hang,
    /// A segmentation fault.
    Crash,
}

impl Fault {
    /// As a number, for the shared memory: the kind above the error.
    pub(crate) fn to_bits(self) -> u64 {
        let (kind, error) = match self {
            Self::Error(error) => (1, error),
            Self::ErrorAfter(error) => (2, error),
            Self::Removed(error) => (3, error),
            Self::Hang => (4, 0),
            Self::Crash => (5, 0),
        };
        kind << KIND_SHIFT | (error & ERROR_MASK)
    }

    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        let error = bits & ERROR_MASK;
        match bits >> KIND_SHIFT {
            1 => Some(Self::Error(error)),
            2 => Some(Self::ErrorAfter(error)),
            3 => Some(Self::Removed(error)),
            4 => Some(Self::Hang),
            5 => Some(Self::Crash),
            _ => None,
        }
    }
}

/// Errors of PKCS#11 have 32 bits.
const KIND_SHIFT: u32 = 32;
const ERROR_MASK: u64 = 0xffff_ffff;
