//! The management key: whoever has it makes and deletes keys (NIST SP 800-73-4, part
//! 2, A.1, mutual authentication; Yubico's algorithms:
//! <https://docs.yubico.com/yesdk/users-manual/application-piv/apdu/auth-mgmt.html>).

use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockDecrypt, BlockEncrypt, BlockSizeUser, KeyInit, Unsigned};
use aes::{Aes128, Aes192, Aes256};
use des::TdesEde3;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::error::CardError;
use super::piv::{self, CHALLENGE, MANAGEMENT_KEY, RESPONSE, TEMPLATE, Version, WITNESS, Wire};
use super::tlv;
use crate::config::{ManagementKeyConfig, SecretSource};
use crate::devices::DeviceError;
use crate::devices::pins::read_secret;
use crate::devices::private_key::fill_random;

/// Where a card of which the PIN opens the management key keeps it (Yubico's
/// `ykman`, and SP 800-73-4's printed information, which takes the PIN).
const PRINTED: [u8; 3] = [0x5f, 0xc1, 0x09];

/// Where Yubico's programs note that it does
/// (<https://docs.yubico.com/yesdk/users-manual/application-piv/piv-objects.html>).
const ADMIN: [u8; 3] = [0x5f, 0xff, 0x00];

/// Shows the card that the daemon has the key, wherever that comes from; the card shows
/// that it has it, too. One that is kept on the card takes the PIN first.
pub(super) fn authenticate(
    card: &impl Wire,
    source: &ManagementKeyConfig,
) -> Result<(), CardError> {
    let key = match source {
        ManagementKeyConfig::OnTheCard => on_the_card(card)?,
        ManagementKeyConfig::Kept(source) => kept(source)?,
    };
    show(card, &key)
}

/// Shows the card that this key is known here.
fn show(card: &impl Wire, key: &[u8]) -> Result<(), CardError> {
    let algorithm = piv::management_key(card)?.algorithm;
    match algorithm {
        0x03 => mutual::<TdesEde3>(card, algorithm, key),
        0x08 => mutual::<Aes128>(card, algorithm, key),
        0x0a => mutual::<Aes192>(card, algorithm, key),
        0x0c => mutual::<Aes256>(card, algorithm, key),
        _ => Err(unusable("the card's is of a kind that is not known here")),
    }
}

/// The one that YubiKeys leave the factory with.
pub(super) fn show_factory_key(card: &impl Wire) -> Result<(), CardError> {
    const FACTORY: [u8; 24] = [
        1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8,
    ];
    show(card, &FACTORY)
}

/// A new one for a card of this version, and the number of its algorithm: AES-192 where
/// there is that, else 3DES, both of 24 bytes.
pub(super) fn new_key(version: Version) -> Result<(u8, Zeroizing<Vec<u8>>), DeviceError> {
    let algorithm = if version >= Version::AES { 0x0a } else { 0x03 };
    let mut key = Zeroizing::new(vec![0; 24]);
    fill_random(&mut key)?;
    Ok((algorithm, key))
}

/// Has the card keep a management key under its PIN, as `ykman` does.
pub(super) fn put_on_the_card(card: &impl Wire, key: &[u8]) -> Result<(), CardError> {
    let before = piv::object(card, &PRINTED)?.unwrap_or_default();
    let is_ours = before.is_empty() || tlv::sole(&before, 0x88).is_some();
    if !is_ours {
        return Err(unusable(
            "the card has printed information where it would be kept: keep it in a file",
        ));
    }
    // What others noted of the card stays as it is; the second flag says where the
    // management key is.
    let admin = piv::object(card, &ADMIN)?.unwrap_or_default();
    let fields = tlv::sole(&admin, 0x80).unwrap_or_default();
    let fields = tlv::all(fields).unwrap_or_default();
    let flags = tlv::only(&fields, 0x81).and_then(|flags| flags.first());
    let mut noted = tlv::write(0x81, &[flags.copied().unwrap_or_default() | 0x02]);
    for (tag, value) in fields.iter().filter(|(tag, _)| *tag != 0x81) {
        noted.extend_from_slice(&tlv::write(*tag, value));
    }
    piv::put_object(card, &PRINTED, &tlv::write(0x88, &tlv::write(0x89, key)))?;
    piv::put_object(card, &ADMIN, &tlv::write(0x80, &noted))
}

fn kept(source: &SecretSource) -> Result<Zeroizing<Vec<u8>>, CardError> {
    let text = read_secret("the management key", source)?;
    let text = text.ok_or_else(|| unusable("there is none"))?;
    let mut key = Zeroizing::new(vec![0; text.expose().len() / 2]);
    hex::decode_to_slice(text.expose(), &mut key)
        .map_err(|_| unusable("it is not written in hexadecimal"))?;
    Ok(key)
}

fn unusable(why: &str) -> CardError {
    CardError::Other(DeviceError::Failed {
        reason: format!("the management key cannot be used: {why}"),
    })
}

fn on_the_card(card: &impl Wire) -> Result<Zeroizing<Vec<u8>>, CardError> {
    let object = piv::object(card, &PRINTED)?;
    let key = object.as_ref().and_then(|object| {
        let protected = tlv::sole(object, 0x88)?;
        tlv::sole(protected, 0x89)
    });
    let key = key.ok_or_else(|| unusable("the card does not keep it under its PIN"))?;
    Ok(Zeroizing::new(key.to_vec()))
}

fn mutual<C>(card: &impl Wire, algorithm: u8, key: &[u8]) -> Result<(), CardError>
where
    C: KeyInit + BlockEncrypt + BlockDecrypt + BlockSizeUser,
{
    let cipher = C::new_from_slice(key);
    let cipher = cipher.map_err(|_| unusable("it has another length than the card's"))?;
    let asked = tlv::write(WITNESS, &[]);
    let answer = piv::authenticate(card, algorithm, MANAGEMENT_KEY, &asked)?;
    let answer = answer.ok("to begin with the management key")?;
    let witness = tlv::sole(&answer, TEMPLATE).and_then(|inner| tlv::sole(inner, WITNESS));
    let length = C::BlockSize::USIZE;
    let witness = witness.filter(|witness| witness.len() == length);
    let witness = witness.ok_or(CardError::Malformed("a witness that is none"))?;
    let mut block = GenericArray::clone_from_slice(witness);
    cipher.decrypt_block(&mut block);

    let mut challenge = Zeroizing::new(vec![0; length]);
    fill_random(&mut challenge)?;
    let mut shown = tlv::write(WITNESS, &block);
    shown.extend_from_slice(&tlv::write(CHALLENGE, &challenge));
    let answer = piv::authenticate(card, algorithm, MANAGEMENT_KEY, &shown)?;
    let answer = answer.ok("the management key")?;
    let answer = tlv::sole(&answer, TEMPLATE).and_then(|inner| tlv::sole(inner, RESPONSE));
    let mut expected = GenericArray::clone_from_slice(&challenge);
    cipher.encrypt_block(&mut expected);
    let is_right = answer.is_some_and(|answer| expected.ct_eq(answer).into());
    if !is_right {
        return Err(CardError::Malformed(
            "no proof that it has the management key",
        ));
    }
    Ok(())
}
