//! The management application, as far as it tells what the YubiKey is: `ykman` asks that
//! first (tags as Yubico's `yubikit` reads them).

use crate::card::{Answer, Card, Command, NO_INSTRUCTION, WRONG_PARAMETERS};

/// Its name.
pub(crate) const APPLICATION: [u8; 8] = [0xa0, 0x00, 0x00, 0x05, 0x27, 0x47, 0x11, 0x17];

/// PIV, and nothing else.
const CAPABILITIES: [u8; 2] = [0x00, 0x10];

/// What it says when it is selected.
pub(crate) fn greeting(card: &Card) -> Vec<u8> {
    let [major, minor, patch] = card.version;
    format!("Virtual mgr - FW version {major}.{minor}.{patch}").into_bytes()
}

pub(crate) fn answer(card: &Card, command: &Command) -> Answer {
    match (command.ins, command.p1) {
        (0x1d, 0) => Ok(config(card)),
        (0x1d, _) => Err(WRONG_PARAMETERS),
        _ => Err(NO_INSTRUCTION),
    }
}

/// Its length, and what it is.
fn config(card: &Card) -> Vec<u8> {
    let serial = card.serial.to_be_bytes();
    let elements: [(u16, &[u8]); 5] = [
        (0x01, &CAPABILITIES),
        (0x02, &serial),
        (0x03, &CAPABILITIES),
        // USB-A, a keychain.
        (0x04, &[0x01]),
        (0x05, &card.version),
    ];
    let mut config = vec![0];
    for (tag, value) in elements {
        config.extend(crate::tlv::write(tag, value));
    }
    let length = u8::try_from(config.len().saturating_sub(1)).unwrap_or(u8::MAX);
    if let Some(first) = config.first_mut() {
        *first = length;
    }
    config
}
