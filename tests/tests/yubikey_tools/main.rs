//! Somebody else's programs on the virtual YubiKey: what they accept, a real one is
//! like. OpenSSL verifies what the card computes.

mod bench;
mod opensc;
mod strict;
mod ykcs11;
mod ykman;
mod yubico_piv_tool;
