//! A PKCS#11 module for tests. It forwards every call to another module, such
//! as SoftHSM, and fails where a test tells it to: with the errors that
//! software tokens never give, by not returning, or by a segmentation fault.
//!
//! The shared library is the module. It is loaded into a process of the daemon,
//! which may die of it; so a test speaks to it through a file ([`Control`])
//! that both map, and that survives.
//!
//! In the module's environment:
//! - `FAULTY_MODULE`: the shared library that it forwards to;
//! - `FAULTY_CONTROL`: the file, made by [`Control::create`].

mod control;
mod fault;
mod forward;
mod library;
mod raw;
mod sessions;
mod shared;

pub use control::Control;
pub use cryptoki_sys::{
    CK_RV, CKR_DEVICE_ERROR, CKR_DEVICE_MEMORY, CKR_DEVICE_REMOVED, CKR_PIN_LOCKED,
    CKR_SESSION_COUNT, CKR_TOKEN_NOT_PRESENT, CKR_USER_NOT_LOGGED_IN,
};
pub use fault::{Fault, Function};
pub use library::library;
