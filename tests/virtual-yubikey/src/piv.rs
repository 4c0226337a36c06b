//! The PIV application of a YubiKey: NIST SP 800-73-4, part 2, and Yubico's own commands
//! (<https://docs.yubico.com/yesdk/users-manual/application-piv/apdu/overview.html>).

use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};
use subtle::ConstantTimeEq as _;

use crate::attest::Attested;
use crate::card::{
    Answer, Application, BLOCKED, CONDITIONS, Card, Command, FACTORY_MANAGEMENT_KEY, FACTORY_PIN,
    FACTORY_PUK, NEW, NO_INSTRUCTION, NO_REFERENCE, NOT_FOUND, SECURITY, Secret, Slot, Status,
    WRONG_DATA, WRONG_LENGTH, WRONG_PARAMETERS,
};
use crate::key::{Key, random};
use crate::tlv;

/// Its name.
pub(crate) const APPLICATION: [u8; 11] = [0xa0, 0, 0, 3, 8, 0, 0, 0x10, 0, 1, 0];

/// How many seconds a touch counts for a key whose policy is `cached`.
const CACHED: u32 = 15;

/// Where the certificate of the attestation key is.
const ATTESTATION: [u8; 3] = [0x5f, 0xff, 0x01];

/// Objects that only who has the PIN reads: printed information, and the biometric ones.
const WITH_PIN: [[u8; 3]; 4] = [
    [0x5f, 0xc1, 0x09],
    [0x5f, 0xc1, 0x03],
    [0x5f, 0xc1, 0x08],
    [0x5f, 0xc1, 0x21],
];

pub(crate) fn answer(
    card: &mut Card,
    command: &Command,
    touch: &mut dyn FnMut() -> bool,
) -> Answer {
    match command.ins {
        0xfd => Ok(card.version.to_vec()),
        0xf8 => Ok(card.serial.to_be_bytes().to_vec()),
        0x20 => verify(card, command),
        0x24 => change(card, command),
        0x2c => unblock(card, command),
        0xfa => set_tries(card, command),
        0xfb => reset(card),
        0x87 => authenticate(card, command, touch),
        0x47 => generate(card, command),
        0xfe => import(card, command),
        0xff => set_management_key(card, command),
        0xf6 => move_key(card, command),
        0xf9 => attest(card, command),
        0xf7 => metadata(card, command),
        0xcb => get_data(card, command),
        0xdb => put_data(card, command),
        _ => Err(NO_INSTRUCTION),
    }
}

/// What it says when it is selected.
pub(crate) fn greeting() -> Vec<u8> {
    let (authority, own) = APPLICATION.split_at(5);
    let own = tlv::write(0x4f, own);
    let authority = tlv::write(0x79, &tlv::write(0x4f, authority));
    tlv::write(0x61, &[own, authority].concat())
}

/// A PIN as it is sent: 6 to 8 bytes, filled up.
pub(crate) fn padded(pin: &[u8]) -> Option<[u8; 8]> {
    let mut padded = [0xff; 8];
    padded.get_mut(..pin.len())?.copy_from_slice(pin);
    Some(padded)
}

/// Is this the secret? A wrong one costs a try.
fn check(secret: &mut Secret, given: &[u8]) -> Result<(), Status> {
    if secret.left == 0 {
        return Err(BLOCKED);
    }
    if bool::from(secret.value.ct_eq(given)) {
        secret.left = secret.most;
        return Ok(());
    }
    secret.left = secret.left.saturating_sub(1);
    match secret.left {
        0 => Err(BLOCKED),
        left => Err(0x63c0 | u16::from(left)),
    }
}

fn verify(card: &mut Card, command: &Command) -> Answer {
    match (command.p1, command.p2, command.data.as_slice()) {
        (0xff, 0x80, []) => {
            card.now.is_verified = false;
            Ok(Vec::new())
        }
        (0, 0x80, []) if card.now.is_verified => Ok(Vec::new()),
        (0, 0x80, []) if card.pin.left == 0 => Err(BLOCKED),
        (0, 0x80, []) => Err(0x63c0 | u16::from(card.pin.left)),
        (0, 0x80, pin) if pin.len() == 8 => {
            card.now.is_verified = false;
            check(&mut card.pin, pin)?;
            card.now.is_verified = true;
            card.now.is_spent = false;
            Ok(Vec::new())
        }
        (0, 0x80, _) => Err(WRONG_DATA),
        (0, _, _) => Err(NO_REFERENCE),
        _ => Err(WRONG_PARAMETERS),
    }
}

/// A new PIN or PUK; one that is too short is refused like one that is too simple (Yubico's
/// manual, CHANGE REFERENCE DATA).
fn new_secret(bytes: &[u8]) -> Result<[u8; 8], Status> {
    let value: [u8; 8] = bytes.try_into().map_err(|_| WRONG_DATA)?;
    let length = value.iter().position(|byte| *byte == 0xff).unwrap_or(8);
    let is_filled_up = value.iter().skip(length).all(|byte| *byte == 0xff);
    (length >= 6 && is_filled_up)
        .then_some(value)
        .ok_or(CONDITIONS)
}

fn change(card: &mut Card, command: &Command) -> Answer {
    let secret = match (command.p1, command.p2) {
        (0, 0x80) => &mut card.pin,
        (0, 0x81) => &mut card.puk,
        _ => return Err(NO_REFERENCE),
    };
    let (old, new) = command.data.split_at_checked(8).ok_or(WRONG_DATA)?;
    if new.len() != 8 {
        return Err(WRONG_DATA);
    }
    check(secret, old)?;
    secret.value = new_secret(new)?;
    Ok(Vec::new())
}

fn unblock(card: &mut Card, command: &Command) -> Answer {
    let (puk, pin) = command.data.split_at_checked(8).ok_or(WRONG_DATA)?;
    if (command.p1, command.p2) != (0, 0x80) || pin.len() != 8 {
        return Err(WRONG_DATA);
    }
    check(&mut card.puk, puk)?;
    card.pin.value = new_secret(pin)?;
    card.pin.left = card.pin.most;
    Ok(Vec::new())
}

fn set_tries(card: &mut Card, command: &Command) -> Answer {
    if !card.now.is_managed || !card.now.is_verified {
        return Err(SECURITY);
    }
    if command.p1 == 0 || command.p2 == 0 {
        return Err(WRONG_PARAMETERS);
    }
    let fresh = |value: &[u8], most| Secret {
        value: padded(value).unwrap_or([0xff; 8]),
        most,
        left: most,
    };
    card.pin = fresh(FACTORY_PIN, command.p1);
    card.puk = fresh(FACTORY_PUK, command.p2);
    Ok(Vec::new())
}

fn reset(card: &mut Card) -> Answer {
    if card.pin.left > 0 || card.puk.left > 0 {
        return Err(CONDITIONS);
    }
    // The attestation key stays.
    let fresh = Card::new(card.serial, card.version, Default::default());
    *card = Card {
        workshop: std::mem::replace(&mut card.workshop, fresh.workshop),
        ..fresh
    };
    card.now.selected = Some(Application::Piv);
    Ok(Vec::new())
}

fn authenticate(card: &mut Card, command: &Command, touch: &mut dyn FnMut() -> bool) -> Answer {
    let outer = tlv::all(&command.data).ok_or(WRONG_DATA)?;
    let template = tlv::only(&outer, 0x7c).ok_or(WRONG_DATA)?;
    let elements = tlv::all(template).ok_or(WRONG_DATA)?;
    if command.p2 == 0x9b {
        return with_management_key(card, command.p1, &elements);
    }
    let result = use_key(card, command, &elements, touch)?;
    Ok(tlv::write(0x7c, &tlv::write(0x82, &result)))
}

fn use_key(
    card: &mut Card,
    command: &Command,
    elements: &[(u16, &[u8])],
    touch: &mut dyn FnMut() -> bool,
) -> Answer {
    let slot = card.slots.get(&command.p2).ok_or(WRONG_DATA)?;
    if slot.key.algorithm() != command.p1 {
        return Err(WRONG_DATA);
    }
    if tlv::only(elements, 0x82) != Some(&[]) {
        return Err(WRONG_DATA);
    }
    let is_open = match slot.pin {
        1 => true,
        2 => card.now.is_verified,
        _ => card.now.is_verified && !card.now.is_spent,
    };
    if !is_open {
        return Err(SECURITY);
    }
    let is_fresh = |then: u32| card.clock.saturating_sub(then) < CACHED;
    let is_touched = match slot.touch {
        1 => true,
        3 if card.now.touched.is_some_and(is_fresh) => true,
        _ => touch(),
    };
    if !is_touched {
        return Err(SECURITY);
    }
    let result = match (tlv::only(elements, 0x81), tlv::only(elements, 0x85)) {
        (Some(content), None) => slot.key.sign(content),
        (None, Some(peer)) => slot.key.agree(peer),
        _ => None,
    };
    card.now.is_spent = true;
    if slot.touch == 3 && !card.now.touched.is_some_and(is_fresh) {
        card.now.touched = Some(card.clock);
    }
    result.ok_or(WRONG_DATA)
}

fn with_management_key(card: &mut Card, algorithm: u8, elements: &[(u16, &[u8])]) -> Answer {
    if algorithm != card.management_key.0 {
        return Err(WRONG_DATA);
    }
    let length = if algorithm == 3 { 8 } else { 16 };
    let [witness, challenge, response] = [0x80, 0x81, 0x82].map(|tag| tlv::only(elements, tag));
    let awaited = card.now.challenge.take();
    match (witness, challenge, response) {
        // The card is to show that it has the key, and so are they.
        (Some([]), None, None) => {
            let witness = random::<16>().get(..length).unwrap_or_default().to_vec();
            let shown = crypt(&card.management_key, true, &witness).ok_or(CONDITIONS)?;
            card.now.challenge = Some((true, witness));
            Ok(tlv::write(0x7c, &tlv::write(0x80, &shown)))
        }
        (Some(shown), Some(challenge), None) => {
            let (true, witness) = awaited.ok_or(CONDITIONS)? else {
                return Err(CONDITIONS);
            };
            if challenge.len() != length || !bool::from(witness.ct_eq(shown)) {
                return Err(SECURITY);
            }
            let answer = crypt(&card.management_key, true, challenge).ok_or(WRONG_DATA)?;
            card.now.is_managed = true;
            Ok(tlv::write(0x7c, &tlv::write(0x82, &answer)))
        }
        // Only they are.
        (None, Some([]), None) => {
            let challenge = random::<16>().get(..length).unwrap_or_default().to_vec();
            card.now.challenge = Some((false, challenge.clone()));
            Ok(tlv::write(0x7c, &tlv::write(0x81, &challenge)))
        }
        (None, None, Some(answer)) => {
            let (false, challenge) = awaited.ok_or(CONDITIONS)? else {
                return Err(CONDITIONS);
            };
            let expected = crypt(&card.management_key, true, &challenge).ok_or(CONDITIONS)?;
            if !bool::from(expected.ct_eq(answer)) {
                return Err(SECURITY);
            }
            card.now.is_managed = true;
            Ok(Vec::new())
        }
        _ => Err(WRONG_DATA),
    }
}

/// One block under the management key.
fn crypt((algorithm, key): &(u8, Vec<u8>), encrypt: bool, block: &[u8]) -> Option<Vec<u8>> {
    fn one<C: KeyInit + BlockEncrypt + BlockDecrypt>(
        key: &[u8],
        encrypt: bool,
        block: &[u8],
    ) -> Option<Vec<u8>> {
        let cipher = C::new_from_slice(key).ok()?;
        let mut block = GenericArray::from_exact_iter(block.iter().copied())?;
        if encrypt {
            cipher.encrypt_block(&mut block);
        } else {
            cipher.decrypt_block(&mut block);
        }
        Some(block.to_vec())
    }
    match algorithm {
        0x03 => one::<des::TdesEde3>(key, encrypt, block),
        0x08 => one::<aes::Aes128>(key, encrypt, block),
        0x0a => one::<aes::Aes192>(key, encrypt, block),
        0x0c => one::<aes::Aes256>(key, encrypt, block),
        _ => None,
    }
}

/// Is it a slot? That of the attestation key is none for its user here.
fn is_slot(reference: u8) -> bool {
    matches!(reference, 0x9a | 0x9c | 0x9d | 0x9e | 0x82..=0x95)
}

/// The policies that are asked for, or the slot's own.
fn policies(slot: u8, elements: &[(u16, &[u8])]) -> Result<(u8, u8), Status> {
    let wanted = |tag| match tlv::only(elements, tag) {
        None => Ok(0),
        Some(&[policy @ 0..=3]) => Ok(policy),
        Some(_) => Err(WRONG_DATA),
    };
    let pin = match (wanted(0xaa)?, slot) {
        (0, 0x9c) => 3,
        (0, 0x9e) => 1,
        (0, _) => 2,
        (pin, _) => pin,
    };
    let touch = match wanted(0xab)? {
        0 => 1,
        touch => touch,
    };
    Ok((pin, touch))
}

fn generate(card: &mut Card, command: &Command) -> Answer {
    if !card.now.is_managed {
        return Err(SECURITY);
    }
    if command.p1 != 0 || !is_slot(command.p2) {
        return Err(WRONG_PARAMETERS);
    }
    let outer = tlv::all(&command.data).ok_or(WRONG_DATA)?;
    let template = tlv::only(&outer, 0xac).ok_or(WRONG_DATA)?;
    let elements = tlv::all(template).ok_or(WRONG_DATA)?;
    let &[algorithm] = tlv::only(&elements, 0x80).ok_or(WRONG_DATA)? else {
        return Err(WRONG_DATA);
    };
    let (pin, touch) = policies(command.p2, &elements)?;
    let key = known(card, algorithm).and_then(|()| Key::generate(algorithm).ok_or(WRONG_DATA))?;
    let public = tlv::write(0x7f49, &tlv::write(0x86, &key.public()));
    let slot = Slot {
        key,
        pin,
        touch,
        generated: true,
    };
    card.slots.insert(command.p2, slot);
    Ok(public)
}

fn known(card: &Card, algorithm: u8) -> Result<(), Status> {
    let is_new = matches!(algorithm, 0xe0 | 0xe1);
    if is_new && card.version < NEW {
        return Err(WRONG_DATA);
    }
    Ok(())
}

fn import(card: &mut Card, command: &Command) -> Answer {
    if !card.now.is_managed {
        return Err(SECURITY);
    }
    if !is_slot(command.p2) {
        return Err(WRONG_PARAMETERS);
    }
    let elements = tlv::all(&command.data).ok_or(WRONG_DATA)?;
    let tag = match command.p1 {
        0x11 | 0x14 => 0x06,
        0xe0 => 0x07,
        0xe1 => 0x08,
        _ => return Err(WRONG_DATA),
    };
    let private = tlv::only(&elements, tag).ok_or(WRONG_DATA)?;
    let (pin, touch) = policies(command.p2, &elements)?;
    known(card, command.p1)?;
    let key = Key::import(command.p1, private).ok_or(WRONG_DATA)?;
    let slot = Slot {
        key,
        pin,
        touch,
        generated: false,
    };
    card.slots.insert(command.p2, slot);
    Ok(Vec::new())
}

fn set_management_key(card: &mut Card, command: &Command) -> Answer {
    if !card.now.is_managed {
        return Err(SECURITY);
    }
    if command.p1 != 0xff || !matches!(command.p2, 0xff | 0xfe) {
        return Err(WRONG_PARAMETERS);
    }
    let (&algorithm, rest) = command.data.split_first().ok_or(WRONG_LENGTH)?;
    let elements = tlv::all(rest).ok_or(WRONG_DATA)?;
    let key = tlv::only(&elements, 0x9b).ok_or(WRONG_DATA)?;
    let length = match algorithm {
        0x03 | 0x0a => 24,
        0x08 => 16,
        0x0c => 32,
        _ => return Err(WRONG_DATA),
    };
    if key.len() != length || (algorithm != 3 && card.version < [5, 4, 2]) {
        return Err(WRONG_DATA);
    }
    card.management_key = (algorithm, key.to_vec());
    Ok(Vec::new())
}

/// MOVE KEY and DELETE KEY, from firmware 5.7.
fn move_key(card: &mut Card, command: &Command) -> Answer {
    if card.version < NEW {
        return Err(NO_INSTRUCTION);
    }
    if !card.now.is_managed {
        return Err(SECURITY);
    }
    let (to, from) = (command.p1, command.p2);
    if !is_slot(from) || (to != 0xff && (!is_slot(to) || card.slots.contains_key(&to))) {
        return Err(WRONG_PARAMETERS);
    }
    let slot = card.slots.remove(&from).ok_or(NO_REFERENCE)?;
    if to != 0xff {
        card.slots.insert(to, slot);
    }
    Ok(Vec::new())
}

fn metadata(card: &Card, command: &Command) -> Answer {
    if card.version < [5, 3, 0] {
        return Err(NO_INSTRUCTION);
    }
    let secret = |secret: &Secret, factory: &[u8]| {
        let is_factory = padded(factory) == Some(secret.value);
        [
            tlv::write(1, &[0xff]),
            tlv::write(5, &[is_factory.into()]),
            tlv::write(6, &[secret.most, secret.left]),
        ]
        .concat()
    };
    match command.p2 {
        0x80 => Ok(secret(&card.pin, FACTORY_PIN)),
        0x81 => Ok(secret(&card.puk, FACTORY_PUK)),
        0x9b => {
            let (algorithm, key) = &card.management_key;
            let is_factory = key.as_slice() == FACTORY_MANAGEMENT_KEY;
            Ok([
                tlv::write(1, &[*algorithm]),
                tlv::write(2, &[0, 1]),
                tlv::write(5, &[is_factory.into()]),
            ]
            .concat())
        }
        slot if is_slot(slot) => {
            let key = card.slots.get(&slot).ok_or(NO_REFERENCE)?;
            Ok([
                tlv::write(1, &[key.key.algorithm()]),
                tlv::write(2, &[key.pin, key.touch]),
                tlv::write(3, &[if key.generated { 1 } else { 2 }]),
                tlv::write(4, &tlv::write(0x86, &key.key.public())),
            ]
            .concat())
        }
        // As the manual shows it: brought along, and it wants the PIN once.
        0xf9 => Ok([
            tlv::write(1, &[if card.version < NEW { 0x07 } else { 0x14 }]),
            tlv::write(2, &[2, 1]),
            tlv::write(3, &[2]),
            tlv::write(4, &card.workshop.public().ok_or(CONDITIONS)?),
        ]
        .concat()),
        // Fingerprints, for example.
        _ => Err(NO_REFERENCE),
    }
}

fn attest(card: &Card, command: &Command) -> Answer {
    if command.p2 != 0 || !is_slot(command.p1) {
        return Err(WRONG_PARAMETERS);
    }
    // An empty slot is refused like a key that was brought along
    // (<https://github.com/Yubico/Yubico.NET.SDK/issues/9>).
    let slot = card.slots.get(&command.p1);
    let slot = slot.filter(|slot| slot.generated).ok_or(WRONG_DATA)?;
    let attested = Attested {
        slot: command.p1,
        algorithm: slot.key.algorithm(),
        public: &slot.key.public(),
        policies: [slot.pin, slot.touch],
    };
    card.workshop.attest(&attested).ok_or(CONDITIONS)
}

fn object_name(data: &[u8]) -> Result<(&[u8], &[u8]), Status> {
    let (head, rest) = data.split_at_checked(2).ok_or(WRONG_DATA)?;
    let (&[0x5c, length], true) = (<&[u8; 2]>::try_from(head).map_err(|_| WRONG_DATA)?, true)
    else {
        return Err(WRONG_DATA);
    };
    rest.split_at_checked(usize::from(length)).ok_or(WRONG_DATA)
}

fn get_data(card: &Card, command: &Command) -> Answer {
    if (command.p1, command.p2) != (0x3f, 0xff) {
        return Err(WRONG_PARAMETERS);
    }
    let (name, rest) = object_name(&command.data)?;
    if !rest.is_empty() {
        return Err(WRONG_DATA);
    }
    if name == [0x7e] {
        let application = tlv::write(0x4f, &APPLICATION);
        return Ok(tlv::write(
            0x7e,
            &[application, tlv::write(0x5f2f, &[0x40, 0])].concat(),
        ));
    }
    if WITH_PIN.iter().any(|with_pin| with_pin == name) && !card.now.is_verified {
        return Err(SECURITY);
    }
    if let Some(data) = card.objects.get(name) {
        return Ok(tlv::write(0x53, data));
    }
    if name != ATTESTATION {
        return Err(NOT_FOUND);
    }
    let certificate = card.workshop.certificate().ok_or(NOT_FOUND)?;
    let content = [
        tlv::write(0x70, &certificate),
        tlv::write(0x71, &[0]),
        tlv::write(0xfe, &[]),
    ];
    Ok(tlv::write(0x53, &content.concat()))
}

fn put_data(card: &mut Card, command: &Command) -> Answer {
    if !card.now.is_managed {
        return Err(SECURITY);
    }
    if (command.p1, command.p2) != (0x3f, 0xff) {
        return Err(WRONG_PARAMETERS);
    }
    let (name, rest) = object_name(&command.data)?;
    let elements = tlv::all(rest).ok_or(WRONG_DATA)?;
    let data = tlv::only(&elements, 0x53).ok_or(WRONG_DATA)?;
    if data.is_empty() {
        card.objects.remove(name);
    } else {
        card.objects.insert(name.to_vec(), data.to_vec());
    }
    Ok(Vec::new())
}
