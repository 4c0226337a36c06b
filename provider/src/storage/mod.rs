//! The storage wrapper.
pub(crate) mod custodian;
mod record;
mod walker;
