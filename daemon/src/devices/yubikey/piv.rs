//! What is said to the PIV application of a YubiKey, one function a command.
//!
//! Sources: NIST SP 800-73-4, part 2, and Yubico's manual of its own commands
//! (<https://docs.yubico.com/yesdk/users-manual/application-piv/apdu/overview.html>).
//! Every answer is read to its last byte.

use std::fmt;

use mlskeyd_protocol::v1::SecretBytes;
use zeroize::Zeroizing;

use super::algorithm::Curve;
use super::apdu::{Answer, Command, Status};
use super::error::CardError;
use super::tlv;
use crate::config::Slot;

/// The application's name, as far as every version of it answers to it.
const APPLICATION: [u8; 5] = [0xa0, 0x00, 0x00, 0x03, 0x08];

/// The key reference of the PIN, of the PUK, and of the management key.
const PIN: u8 = 0x80;
const PUK: u8 = 0x81;
pub(super) const MANAGEMENT_KEY: u8 = 0x9b;

/// Length of a PIN as it is sent; shorter ones are filled up.
const PIN_LEN: usize = 8;

/// What a PIN may be, in bytes (SP 800-73-4, part 2, 2.4.3).
pub(super) const PIN_LENGTHS: std::ops::RangeInclusive<usize> = 6..=PIN_LEN;

/// Dynamic authentication template, and what is in it (SP 800-73-4, part 2, table 7).
pub(super) const TEMPLATE: u16 = 0x7c;
pub(super) const WITNESS: u16 = 0x80;
pub(super) const CHALLENGE: u16 = 0x81;
pub(super) const RESPONSE: u16 = 0x82;
const EXPONENTIATION: u16 = 0x85;

/// A card that is selected, and nobody else's for now.
pub(super) trait Wire {
    /// Sends one command, and has its answer with the status.
    fn transmit(&self, command: &[u8]) -> Result<Zeroizing<Vec<u8>>, CardError>;

    /// Sends a command of any length, and has the whole answer.
    fn send(&self, command: &Command) -> Result<Answer, CardError> {
        command.send(|bytes| self.transmit(bytes))
    }
}

/// The version of a YubiKey's firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) [u8; 3]);

impl Version {
    /// The first that says its serial number here.
    pub(super) const SERIAL: Self = Self([5, 0, 0]);
    /// The first that tells what is in its slots.
    pub(super) const METADATA: Self = Self([5, 3, 0]);
    /// The first that takes a management key of AES.
    pub(super) const AES: Self = Self([5, 4, 2]);
    /// The first that knows Ed25519 and X25519, and deletes keys.
    pub(super) const CURVE25519: Self = Self([5, 7, 0]);
    /// The same.
    pub(super) const DELETE: Self = Self::CURVE25519;
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// When a key wants the PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PinPolicy {
    Never,
    Once,
    Always,
}

/// When a key wants to be touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TouchPolicy {
    Never,
    Always,
    Cached,
}

/// What the card says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Its kind; `None`: one that is of no use here, such as RSA.
    pub(super) curve: Option<Curve>,
    pub(super) pin: PinPolicy,
    pub(super) touch: TouchPolicy,
    /// Was it made in the card?
    pub(super) generated: bool,
    /// As MLS writes it; empty if the kind is of no use.
    pub(super) public: Vec<u8>,
}

/// What the card says of the PIN, the PUK, or the management key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credential {
    /// Is it the one that all YubiKeys leave the factory with?
    pub(super) is_factory: bool,
    /// How often a wrong one may be given in a row, and how often still. The
    /// management key has none.
    pub(super) tries: Option<(u8, u8)>,
    /// The number of its algorithm.
    pub(super) algorithm: u8,
}

/// Selects the application. What others had unlocked in it is locked then.
pub(super) fn select(card: &impl Wire) -> Result<(), CardError> {
    let select = Command::new(0xa4, 0x04, 0x00).with(Zeroizing::new(APPLICATION.to_vec()));
    let answer = card.send(&select)?;
    match answer.status {
        Status::OK => Ok(()),
        _ => Err(CardError::NoPiv),
    }
}

/// The version of the firmware.
pub(super) fn version(card: &impl Wire) -> Result<Version, CardError> {
    let answer = card.send(&Command::new(0xfd, 0, 0))?;
    let version = answer.ok("to tell its version")?;
    let version = version.as_slice().try_into();
    version
        .map(Version)
        .map_err(|_| CardError::Malformed("a version that is none"))
}

/// The serial number; `None`: another application is selected.
pub(super) fn serial(card: &impl Wire) -> Result<Option<u32>, CardError> {
    let answer = card.send(&Command::new(0xf8, 0, 0))?;
    if answer.status != Status::OK {
        return Ok(None);
    }
    let serial = answer.data.as_slice().try_into();
    let serial = serial.map_err(|_| CardError::Malformed("a serial number that is none"))?;
    Ok(Some(u32::from_be_bytes(serial)))
}

/// How a PIN was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verified {
    Right,
    /// It has so many tries left.
    Wrong(u8),
    Blocked,
}

/// Does the card have its PIN already? It says how many tries that has if not, which
/// costs none.
pub(super) fn verified_already(card: &impl Wire) -> Result<Verified, CardError> {
    verified(&card.send(&Command::new(0x20, 0, PIN))?, "about its PIN")
}

/// Can a command unlock something: is it shown a PIN, or the management key?
pub(super) fn unlocks(command: &[u8]) -> bool {
    match command {
        [_, 0x20 | 0x24, _, _, length, ..] => *length > 0,
        [_, 0x87, _, reference, ..] => *reference == MANAGEMENT_KEY,
        _ => false,
    }
}

/// Gives the PIN.
pub(super) fn verify(card: &impl Wire, pin: &SecretBytes) -> Result<Verified, CardError> {
    let answer = card.send(&Command::new(0x20, 0, PIN).with(padded(&[pin])))?;
    verified(&answer, "the PIN")
}

/// Puts another PIN in the place of one.
pub(super) fn change_pin(
    card: &impl Wire,
    old: &SecretBytes,
    new: &SecretBytes,
) -> Result<Verified, CardError> {
    let answer = card.send(&Command::new(0x24, 0, PIN).with(padded(&[old, new])))?;
    verified(&answer, "another PIN")
}

/// Puts another PUK in the place of one.
pub(super) fn change_puk(
    card: &impl Wire,
    old: &SecretBytes,
    new: &SecretBytes,
) -> Result<Verified, CardError> {
    let answer = card.send(&Command::new(0x24, 0, PUK).with(padded(&[old, new])))?;
    verified(&answer, "another PUK")
}

fn padded(pins: &[&SecretBytes]) -> Zeroizing<Vec<u8>> {
    let length = PIN_LEN.saturating_mul(pins.len());
    let mut padded = Zeroizing::new(Vec::with_capacity(length));
    for pin in pins {
        let shown = pin.expose().iter().copied();
        padded.extend(shown.chain(std::iter::repeat(0xff)).take(PIN_LEN));
    }
    padded
}

fn verified(answer: &Answer, what: &'static str) -> Result<Verified, CardError> {
    match (answer.status, answer.status.tries()) {
        (Status::OK, _) => Ok(Verified::Right),
        (Status::BLOCKED, _) | (_, Some(0)) => Ok(Verified::Blocked),
        (_, Some(tries)) => Ok(Verified::Wrong(tries)),
        (status, None) => Err(CardError::refused(what, status)),
    }
}

/// What is in a slot; `None`: no key.
pub(super) fn metadata(card: &impl Wire, slot: Slot) -> Result<Option<Metadata>, CardError> {
    let Some(answer) = raw_metadata(card, slot.reference())? else {
        return Ok(None);
    };
    let metadata = read_metadata(&answer);
    metadata
        .map(Some)
        .ok_or(CardError::Malformed("metadata of a key that are none"))
}

/// What the PIN is.
pub(super) fn pin(card: &impl Wire) -> Result<Credential, CardError> {
    credential(card, PIN)
}

/// What the PUK is.
pub(super) fn puk(card: &impl Wire) -> Result<Credential, CardError> {
    credential(card, PUK)
}

/// What the management key is.
pub(super) fn management_key(card: &impl Wire) -> Result<Credential, CardError> {
    credential(card, MANAGEMENT_KEY)
}

fn credential(card: &impl Wire, reference: u8) -> Result<Credential, CardError> {
    let answer = raw_metadata(card, reference)?;
    let credential = answer.as_deref().and_then(|answer| read_credential(answer));
    credential.ok_or(CardError::Malformed("metadata of a PIN that are none"))
}

fn raw_metadata(card: &impl Wire, reference: u8) -> Result<Option<Zeroizing<Vec<u8>>>, CardError> {
    let answer = card.send(&Command::new(0xf7, 0, reference))?;
    match answer.status {
        Status::NO_KEY | Status::NOT_FOUND => Ok(None),
        _ => answer.ok("to tell what is in a slot").map(Some),
    }
}

fn read_metadata(answer: &[u8]) -> Option<Metadata> {
    let elements = tlv::all(answer)?;
    let &[number] = tlv::only(&elements, 1)? else {
        return None;
    };
    let &[pin, touch] = tlv::only(&elements, 2)? else {
        return None;
    };
    let curve = Curve::by_number(number);
    Some(Metadata {
        curve,
        pin: match pin {
            1 => PinPolicy::Never,
            2 => PinPolicy::Once,
            3 => PinPolicy::Always,
            _ => return None,
        },
        touch: match touch {
            1 => TouchPolicy::Never,
            2 => TouchPolicy::Always,
            3 => TouchPolicy::Cached,
            _ => return None,
        },
        generated: match tlv::only(&elements, 3)? {
            [1] => true,
            [2] => false,
            _ => return None,
        },
        public: match curve {
            Some(curve) => read_public(curve, tlv::only(&elements, 4)?)?,
            None => Vec::new(),
        },
    })
}

fn read_credential(answer: &[u8]) -> Option<Credential> {
    let elements = tlv::all(answer)?;
    let &[algorithm] = tlv::only(&elements, 1)? else {
        return None;
    };
    Some(Credential {
        is_factory: match tlv::only(&elements, 5)? {
            [0] => false,
            [1] => true,
            _ => return None,
        },
        tries: match tlv::only(&elements, 6) {
            Some(&[most, left]) => Some((most, left)),
            Some(_) => return None,
            None => None,
        },
        algorithm,
    })
}

/// A public key: 86, and the point or the 32 bytes.
fn read_public(curve: Curve, template: &[u8]) -> Option<Vec<u8>> {
    let public = tlv::sole(template, 0x86)?;
    (public.len() == curve.public_len()).then(|| public.to_vec())
}

/// Signs with the key in a slot: a hash of the curve's length for ECDSA, the content
/// for Ed25519. Answers an `ECDSA-Sig-Value` in DER, or the 64 bytes of RFC 8032.
pub(super) fn sign(
    card: &impl Wire,
    slot: Slot,
    curve: Curve,
    content: &[u8],
) -> Result<Zeroizing<Vec<u8>>, CardError> {
    use_key(card, slot, curve, CHALLENGE, content, "to sign")
}

/// The DH result of the key in a slot and a peer, as RFC 9180, 4.1 has it.
pub(super) fn agree(
    card: &impl Wire,
    slot: Slot,
    curve: Curve,
    peer: &[u8],
) -> Result<Zeroizing<Vec<u8>>, CardError> {
    use_key(card, slot, curve, EXPONENTIATION, peer, "a key agreement")
}

fn use_key(
    card: &impl Wire,
    slot: Slot,
    curve: Curve,
    tag: u16,
    input: &[u8],
    what: &'static str,
) -> Result<Zeroizing<Vec<u8>>, CardError> {
    let mut asked = tlv::write(RESPONSE, &[]);
    asked.extend_from_slice(&tlv::write(tag, input));
    let answer = authenticate(card, curve.number(), slot.reference(), &asked)?.ok(what)?;
    let result = tlv::sole(&answer, TEMPLATE).and_then(|template| tlv::sole(template, RESPONSE));
    let result = result.ok_or(CardError::Malformed("a result that is none"))?;
    Ok(Zeroizing::new(result.to_vec()))
}

/// GENERAL AUTHENTICATE, with what is in its template.
pub(super) fn authenticate(
    card: &impl Wire,
    algorithm: u8,
    reference: u8,
    template: &[u8],
) -> Result<Answer, CardError> {
    let data = tlv::write(TEMPLATE, template);
    card.send(&Command::new(0x87, algorithm, reference).with(data))
}

/// Makes a key in a slot, which wants the PIN once; what was there is gone. Takes the
/// management key. Answers its public key.
pub(super) fn generate(
    card: &impl Wire,
    slot: Slot,
    curve: Curve,
    touch: TouchPolicy,
) -> Result<Vec<u8>, CardError> {
    let touch = match touch {
        TouchPolicy::Never => 1,
        TouchPolicy::Always => 2,
        TouchPolicy::Cached => 3,
    };
    let mut wanted = tlv::write(0x80, &[curve.number()]);
    wanted.extend_from_slice(&tlv::write(0xaa, &[2]));
    wanted.extend_from_slice(&tlv::write(0xab, &[touch]));
    let data = tlv::write(0xac, &wanted);
    let command = Command::new(0x47, 0, slot.reference()).with(data);
    let answer = card.send(&command)?.ok("to make a key")?;
    let public = tlv::sole(&answer, 0x7f49);
    let public = public.and_then(|template| read_public(curve, template));
    public.ok_or(CardError::Malformed("a public key that is none"))
}

/// Deletes the key in a slot. Takes the management key.
pub(super) fn delete(card: &impl Wire, slot: Slot) -> Result<(), CardError> {
    let command = Command::new(0xf6, 0xff, slot.reference());
    card.send(&command)?.ok("to delete a key").map(|_| ())
}

/// The card's certificate of a key that it made, signed by its attestation key: DER
/// (<https://docs.yubico.com/yesdk/users-manual/application-piv/apdu/attest.html>).
pub(super) fn attest(card: &impl Wire, slot: Slot) -> Result<Zeroizing<Vec<u8>>, CardError> {
    let command = Command::new(0xf9, slot.reference(), 0);
    card.send(&command)?.ok("to attest a key")
}

/// The certificate of its attestation key: DER; `None`: somebody took it away, or packed
/// it.
pub(super) fn attestation_certificate(
    card: &impl Wire,
) -> Result<Option<Zeroizing<Vec<u8>>>, CardError> {
    const ATTESTATION: [u8; 3] = [0x5f, 0xff, 0x01];

    let Some(object) = object(card, &ATTESTATION)? else {
        return Ok(None);
    };
    let elements = tlv::all(&object).unwrap_or_default();
    let is_plain = tlv::only(&elements, 0x71).is_none_or(|how| how == [0]);
    let certificate = tlv::only(&elements, 0x70).filter(|_| is_plain);
    Ok(certificate.map(|certificate| Zeroizing::new(certificate.to_vec())))
}

/// Is there something where the certificate of a slot would be?
pub(super) fn has_certificate(card: &impl Wire, slot: Slot) -> Result<bool, CardError> {
    Ok(object(card, &slot.certificate())?.is_some_and(|object| !object.is_empty()))
}

/// An object's data; `None`: there is none.
pub(super) fn object(
    card: &impl Wire,
    name: &[u8; 3],
) -> Result<Option<Zeroizing<Vec<u8>>>, CardError> {
    let asked = tlv::write(0x5c, name);
    let answer = card.send(&Command::new(0xcb, 0x3f, 0xff).with(asked))?;
    if answer.status == Status::NOT_FOUND {
        return Ok(None);
    }
    let answer = answer.ok("to show an object")?;
    let object = tlv::sole(&answer, 0x53).ok_or(CardError::Malformed("an object that is none"))?;
    Ok(Some(Zeroizing::new(object.to_vec())))
}

/// Puts data in the place of an object's. Takes the management key.
pub(super) fn put_object(card: &impl Wire, name: &[u8; 3], data: &[u8]) -> Result<(), CardError> {
    let mut written = tlv::write(0x5c, name);
    written.extend_from_slice(&tlv::write(0x53, data));
    let command = Command::new(0xdb, 0x3f, 0xff).with(written);
    card.send(&command)?.ok("to keep an object").map(|_| ())
}

/// Puts another management key in the place of the one that was shown.
pub(super) fn set_management_key(
    card: &impl Wire,
    algorithm: u8,
    key: &[u8],
) -> Result<(), CardError> {
    let mut data = Zeroizing::new(vec![algorithm]);
    data.extend_from_slice(&tlv::write(u16::from(MANAGEMENT_KEY), key));
    let command = Command::new(0xff, 0xff, 0xff).with(data);
    card.send(&command)?
        .ok("another management key")
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const P256: [u8; 77] = {
        let mut bytes = [7; 77];
        let head = [1, 1, 0x11, 2, 2, 2, 1, 3, 1, 1, 4, 67, 0x86, 65];
        let mut at = 0;
        while at < head.len() {
            bytes[at] = head[at];
            at += 1;
        }
        bytes
    };

    #[test]
    fn metadata_of_a_key_are_read_whole() {
        let whole = [&P256[..], &[7, 7]].concat();
        let metadata = read_metadata(&whole).unwrap();
        assert_eq!(
            metadata,
            Metadata {
                curve: Some(Curve::P256),
                pin: PinPolicy::Once,
                touch: TouchPolicy::Never,
                generated: true,
                public: vec![7; 65],
            }
        );
        for end in 0..whole.len() {
            assert_eq!(read_metadata(&whole[..end]), None);
        }
        assert_eq!(read_metadata(&[whole, vec![0]].concat()), None);
        // RSA 2048, with a public key that is of no use here.
        let rsa = [1, 1, 7, 2, 2, 3, 2, 3, 1, 2, 4, 1, 0];
        let metadata = read_metadata(&rsa).unwrap();
        assert_eq!((metadata.curve, metadata.generated), (None, false));
    }

    #[test]
    fn what_the_pin_is_is_read_whole() {
        let pin = [1, 1, 0xff, 5, 1, 1, 6, 2, 3, 2];
        let expected = Credential {
            is_factory: true,
            tries: Some((3, 2)),
            algorithm: 0xff,
        };
        assert_eq!(read_credential(&pin), Some(expected));
        for bad in [&pin[..9], &[1, 0, 5, 1, 1], &[1, 1, 3, 5, 1, 2]] {
            assert_eq!(read_credential(bad), None, "{bad:02x?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes: Vec<u8>) {
            let _ = read_metadata(&bytes);
            let _ = read_credential(&bytes);
            let _ = read_public(Curve::P384, &bytes);
        }
    }
}
