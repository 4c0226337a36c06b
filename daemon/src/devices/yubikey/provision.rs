//! Getting a YubiKey ready: its PIN, PUK and management key are no longer those that it
//! left the factory with, and its slots have the keys that the daemon works with.
//!
//! Every step that is done already is left as it is, so that whatever ends this in the
//! middle, it goes on when it is done again. A slot that is in use is never touched.

use std::path::PathBuf;

use mlskeyd_protocol::v1::SecretBytes;
use zeroize::Zeroizing;

use super::algorithm::Curve;
use super::card::{Cards, OnCard, Place};
use super::error::CardError;
use super::management;
use super::piv::{self, PinPolicy, TouchPolicy, Verified, Version};
use super::session::{NO_TRIES, check_pin, check_tries};
use crate::config::{ManagementKeyConfig, SecretSource, Slot};
use crate::devices::{Algorithm, DeviceError, SignatureScheme};

/// What a YubiKey is to have.
#[derive(Clone, Debug)]
pub struct Order {
    /// Which one; `None`: the only one that is there.
    pub serial: Option<u32>,
    /// The slot of its key agreement key.
    pub agreement: Slot,
    /// Slots of signature keys.
    pub signatures: Vec<(Slot, SignatureScheme)>,
    /// The slot of a consent key, which is touched for each use.
    pub consent: Option<Slot>,
    /// A file of the management key, in hexadecimal: made if the card's is the one that
    /// it left the factory with, else read. `None`: the card keeps it under its PIN.
    pub management_key: Option<PathBuf>,
}

/// The person in front of the card.
pub trait Person {
    /// Why there is no answer.
    type Error: From<DeviceError>;

    /// The card's PIN.
    ///
    /// # Errors
    /// Why there is none.
    fn pin(&mut self, card: &str) -> Result<SecretBytes, Self::Error>;

    /// The PIN that the card is to have: 6 to 8 characters.
    ///
    /// # Errors
    /// Why there is none.
    fn new_pin(&mut self, card: &str) -> Result<SecretBytes, Self::Error>;

    /// The PUK that the card is to have, which unblocks the PIN: 6 to 8 characters.
    ///
    /// # Errors
    /// Why there is none.
    fn new_puk(&mut self, card: &str) -> Result<SecretBytes, Self::Error>;

    /// Keeps a new management key where the order says, so that it survives a loss of
    /// power: from the next moment on the card takes no other.
    ///
    /// # Errors
    /// Why it does not.
    fn keep(&mut self, path: &std::path::Path, key: &str) -> Result<(), Self::Error>;
}

/// A YubiKey that is ready.
#[derive(Clone, Debug)]
pub struct Provisioned {
    /// Its serial number.
    pub serial: u32,
    /// Its firmware.
    pub version: String,
    /// Its keys.
    pub keys: Vec<ProvisionedKey>,
}

/// A key in a slot.
#[derive(Clone, Debug)]
pub struct ProvisionedKey {
    /// Where.
    pub slot: Slot,
    /// What it is for: `agreement`, `signature` or `consent`.
    pub purpose: &'static str,
    /// As MLS writes it.
    pub public_key: Vec<u8>,
    /// Was it there already?
    pub was_there: bool,
}

/// What the card has still from the factory.
#[derive(Clone, Copy)]
struct Factory {
    pin: bool,
    puk: bool,
    management_key: bool,
}

/// A key that is wanted.
struct Wanted {
    slot: Slot,
    purpose: &'static str,
    curve: Curve,
    touch: TouchPolicy,
}

const FACTORY_PIN: &[u8] = b"123456";
const FACTORY_PUK: &[u8] = b"12345678";

/// Gets a YubiKey ready. The person is asked before the card is used, so that nobody
/// waits for it meanwhile.
///
/// # Errors
/// Why it is not; what was done is done.
pub fn provision<P: Person>(order: &Order, person: &mut P) -> Result<Provisioned, P::Error> {
    let wanted = wanted(order)?;
    let cards = Cards::connect().map_err(DeviceError::from)?;
    let (place, serial, version) = only_one(&cards, order.serial)?;
    let factory = on(&cards, &place, serial, |card| {
        check_slots(card, version, &wanted)?;
        Ok(Factory {
            pin: piv::pin(card)?.is_factory,
            puk: piv::puk(card)?.is_factory,
            management_key: piv::management_key(card)?.is_factory,
        })
    })?;

    let name = format!("YubiKey {serial}");
    let secret = |bytes: &[u8]| SecretBytes::new(bytes.to_vec());
    let pin = if factory.pin {
        person.new_pin(&name)?
    } else {
        person.pin(&name)?
    };
    check_pin(&pin)?;
    let puk = if factory.puk {
        let puk = person.new_puk(&name)?;
        check_pin(&puk)?;
        Some(puk)
    } else {
        None
    };
    let is_factory =
        pin.expose() == FACTORY_PIN || puk.as_ref().is_some_and(|puk| puk.expose() == FACTORY_PUK);
    if is_factory {
        return Err(failed("everybody knows the PIN and the PUK that YubiKeys leave the factory with: choose others".to_owned()).into());
    }
    let new_key = if factory.management_key {
        let (algorithm, key) = management::new_key(version)?;
        if let Some(path) = &order.management_key {
            person.keep(path, &Zeroizing::new(hex::encode(&*key)))?;
        }
        Some((algorithm, key))
    } else {
        None
    };

    let keys = on(&cards, &place, serial, |card| {
        if factory.pin {
            expect_right(piv::change_pin(card, &secret(FACTORY_PIN), &pin)?)?;
        }
        if let Some(puk) = &puk {
            expect_right(piv::change_puk(card, &secret(FACTORY_PUK), puk)?)?;
        }
        let (_, left) = piv::pin(card)?.tries.ok_or(NO_TRIES)?;
        check_tries(left, false)?;
        expect_right(piv::verify(card, &pin)?)?;
        match (&new_key, &order.management_key) {
            (Some((algorithm, key)), path) => {
                management::show_factory_key(card)?;
                if path.is_none() {
                    management::put_on_the_card(card, key)?;
                }
                piv::set_management_key(card, *algorithm, key)?;
            }
            (None, None) => management::authenticate(card, &ManagementKeyConfig::OnTheCard)?,
            (None, Some(path)) => {
                let kept = ManagementKeyConfig::Kept(SecretSource::File(path.clone()));
                management::authenticate(card, &kept)?;
            }
        }
        // Once more: another program may have used one meanwhile.
        check_slots(card, version, &wanted)?;
        wanted.iter().map(|wanted| make(card, wanted)).collect()
    })?;
    Ok(Provisioned {
        serial,
        version: version.to_string(),
        keys,
    })
}

fn wanted(order: &Order) -> Result<Vec<Wanted>, DeviceError> {
    let mut wanted = vec![Wanted {
        slot: order.agreement,
        purpose: "agreement",
        curve: Curve::P256,
        touch: TouchPolicy::Never,
    }];
    wanted.extend(order.signatures.iter().map(|(slot, scheme)| Wanted {
        slot: *slot,
        purpose: "signature",
        curve: Curve::of(Algorithm::Signature(*scheme)),
        touch: TouchPolicy::Never,
    }));
    wanted.extend(order.consent.map(|slot| Wanted {
        slot,
        purpose: "consent",
        curve: Curve::P256,
        touch: TouchPolicy::Always,
    }));
    let mut slots: Vec<_> = wanted.iter().map(|wanted| wanted.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    if slots.len() != wanted.len() {
        return Err(failed("a slot has one key: name each once".to_owned()));
    }
    Ok(wanted)
}

/// The card that is meant.
fn only_one(cards: &Cards, serial: Option<u32>) -> Result<(Place, u32, Version), DeviceError> {
    let places = cards.places().map_err(DeviceError::from)?;
    let mut found = Vec::new();
    for place in places {
        let introduced = cards.with(&place, super::look::introduce);
        let (its, version) = introduced.map_err(DeviceError::from)?;
        found.push((place, its, version));
    }
    found.retain(|(_, its, _)| serial.is_none_or(|wanted| wanted == *its));
    let one = found.pop().ok_or_else(|| DeviceError::Absent {
        reason: match serial {
            Some(serial) => format!("no YubiKey {serial} is there"),
            None => "no YubiKey is there".to_owned(),
        },
    })?;
    if found.is_empty() {
        return Ok(one);
    }
    Err(failed(
        "several YubiKeys are there: name one by its serial number".to_owned(),
    ))
}

fn on<T>(
    cards: &Cards,
    place: &Place,
    serial: u32,
    work: impl FnOnce(&OnCard<'_>) -> Result<T, CardError>,
) -> Result<T, DeviceError> {
    let done = cards.with(place, |card| {
        let (its, _) = super::look::introduce(card)?;
        if its != serial {
            return Err(CardError::NoCard);
        }
        work(card)
    });
    done.map_err(DeviceError::from)
}

/// Are all slots that are wanted empty, or as they are wanted?
fn check_slots(card: &OnCard<'_>, version: Version, wanted: &[Wanted]) -> Result<(), CardError> {
    if version < Version::METADATA {
        return Err(failed(format!(
            "its firmware {version} does not tell what is in its slots, so none is used: 5.3 is the first that does"
        ))
        .into());
    }
    for wanted in wanted {
        let slot = wanted.slot;
        if !wanted.curve.is_known_to(version) {
            return Err(failed(format!(
                "its firmware {version} has no Ed25519, which slot {slot} is to have: 5.7 is the first that has"
            ))
            .into());
        }
        if piv::metadata(card, slot)?.is_some_and(|there| !suits(&there, wanted)) {
            return Err(failed(format!(
                "slot {slot} has a key of another kind: choose another slot, or delete the key first"
            ))
            .into());
        }
    }
    Ok(())
}

fn suits(there: &piv::Metadata, wanted: &Wanted) -> bool {
    there.curve == Some(wanted.curve)
        && there.generated
        && there.pin == PinPolicy::Once
        && there.touch == wanted.touch
}

fn make(card: &OnCard<'_>, wanted: &Wanted) -> Result<ProvisionedKey, CardError> {
    let there = piv::metadata(card, wanted.slot)?;
    let was_there = there.is_some();
    let public_key = match there {
        Some(there) => there.public,
        None => piv::generate(card, wanted.slot, wanted.curve, wanted.touch)?,
    };
    Ok(ProvisionedKey {
        slot: wanted.slot,
        purpose: wanted.purpose,
        public_key,
        was_there,
    })
}

fn expect_right(verified: Verified) -> Result<(), CardError> {
    let why = match verified {
        Verified::Right => return Ok(()),
        Verified::Wrong(left) => format!("the PIN was wrong; it has {left} more tries"),
        Verified::Blocked => "the PIN is blocked after too many wrong ones".to_owned(),
    };
    Err(DeviceError::Locked { reason: why }.into())
}

fn failed(reason: String) -> DeviceError {
    DeviceError::Failed { reason }
}
