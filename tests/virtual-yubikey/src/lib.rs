//! A YubiKey in software, for tests: the PIV application as firmware 5.4 and 5.7 have it,
//! in a reader of a real pcscd.
//!
//! The program `virtual-yubikey` starts a pcscd of its own, puts cards into its readers
//! and pulls them out, as it is told on standard input ([`control`]). It does RSA neither
//! for keys in slots nor for import: a key of RSA is refused.

mod attest;
pub mod card;
pub mod control;
mod key;
mod management;
mod piv;
pub mod reader;
mod tlv;
