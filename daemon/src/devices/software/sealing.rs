//! How the software device encrypts its 32-byte secrets, of every kind:
//!
//! ```text
//! version 1 (1 byte) | random nonce (24) | ciphertext (32) | tag (16)
//! ```
//!
//! XChaCha20-Poly1305, because its nonce is long enough to be drawn at random
//! for any number of secrets under one key. The version is authenticated with
//! the context.

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::devices::DeviceError;
use crate::devices::private_key::fill_random;

/// Length of a sealed secret, in bytes.
pub(super) const SEALED_LEN: usize = 73;

const VERSION: u8 = 1;
const NONCE_LEN: usize = 24;
const SECRET_LEN: usize = 32;

/// It was not sealed by this key for this context, or it was changed.
#[derive(Debug)]
pub(super) struct Unauthentic;

/// Encrypts a secret for one context.
pub(super) fn seal(
    key: &[u8; 32],
    context: &[u8],
    secret: &[u8; SECRET_LEN],
) -> Result<Vec<u8>, DeviceError> {
    let mut nonce = XNonce::default();
    fill_random(&mut nonce)?;
    let mut ciphertext = Zeroizing::new(*secret);
    let tag = XChaCha20Poly1305::new(Key::from_slice(key))
        .encrypt_in_place_detached(&nonce, &associated_data(context), ciphertext.as_mut_slice())
        .map_err(|_| DeviceError::Failed {
            reason: "a key could not be encrypted".to_owned(),
        })?;
    Ok([
        &[VERSION],
        nonce.as_slice(),
        ciphertext.as_slice(),
        tag.as_slice(),
    ]
    .concat())
}

/// Decrypts a secret that was sealed for the same context.
pub(super) fn open(
    key: &[u8; 32],
    context: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<[u8; SECRET_LEN]>, Unauthentic> {
    let rest = sealed.strip_prefix(&[VERSION]).ok_or(Unauthentic)?;
    let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(Unauthentic)?;
    let (ciphertext, tag) = rest.split_first_chunk::<SECRET_LEN>().ok_or(Unauthentic)?;
    let tag: &[u8; 16] = tag.try_into().map_err(|_| Unauthentic)?;
    let mut secret = Zeroizing::new(*ciphertext);
    XChaCha20Poly1305::new(Key::from_slice(key))
        .decrypt_in_place_detached(
            XNonce::from_slice(nonce),
            &associated_data(context),
            secret.as_mut_slice(),
            Tag::from_slice(tag),
        )
        .map_err(|_| Unauthentic)?;
    Ok(secret)
}

fn associated_data(context: &[u8]) -> Vec<u8> {
    [&[VERSION], context].concat()
}
