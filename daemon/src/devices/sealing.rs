//! How devices encrypt what they keep on disk, secrets of every kind:
//!
//! ```text
//! version 1 (1 byte) | random nonce (24) | ciphertext | tag (16)
//! ```
//!
//! XChaCha20-Poly1305, because its nonce is long enough to be drawn at random
//! for any number of secrets under one key. The version is authenticated with
//! the context.

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::DeviceError;
use super::private_key::fill_random;

/// How much longer what is sealed is than the secret, in bytes.
pub(super) const OVERHEAD: usize = 1 + NONCE_LEN + TAG_LEN;

const VERSION: u8 = 1;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;

/// It was not sealed by this key for this context, or it was changed.
#[derive(Debug)]
pub(super) struct Unauthentic;

/// Encrypts a secret for one context.
pub(super) fn seal(key: &[u8; 32], context: &[u8], secret: &[u8]) -> Result<Vec<u8>, DeviceError> {
    let mut nonce = XNonce::default();
    fill_random(&mut nonce)?;
    let mut ciphertext = Zeroizing::new(secret.to_vec());
    let tag = XChaCha20Poly1305::new(Key::from_slice(key))
        .encrypt_in_place_detached(&nonce, &associated_data(context), &mut ciphertext)
        .map_err(|_| DeviceError::Failed {
            reason: "a key could not be encrypted".to_owned(),
        })?;
    Ok([&[VERSION], nonce.as_slice(), &ciphertext, tag.as_slice()].concat())
}

/// Decrypts a secret that was sealed for the same context.
pub(super) fn open(
    key: &[u8; 32],
    context: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Unauthentic> {
    let rest = sealed.strip_prefix(&[VERSION]).ok_or(Unauthentic)?;
    let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(Unauthentic)?;
    let (ciphertext, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(Unauthentic)?;
    let mut secret = Zeroizing::new(ciphertext.to_vec());
    XChaCha20Poly1305::new(Key::from_slice(key))
        .decrypt_in_place_detached(
            XNonce::from_slice(nonce),
            &associated_data(context),
            &mut secret,
            Tag::from_slice(tag),
        )
        .map_err(|_| Unauthentic)?;
    Ok(secret)
}

/// The same, for a secret of `N` bytes.
pub(super) fn open_array<const N: usize>(
    key: &[u8; 32],
    context: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<[u8; N]>, Unauthentic> {
    let secret = open(key, context, sealed)?;
    let mut array = Zeroizing::new([0; N]);
    if secret.len() != N {
        return Err(Unauthentic);
    }
    array.copy_from_slice(&secret);
    Ok(array)
}

fn associated_data(context: &[u8]) -> Vec<u8> {
    [&[VERSION], context].concat()
}
