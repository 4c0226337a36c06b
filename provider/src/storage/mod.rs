//! The storage wrapper.
pub(crate) mod custodian;
