//! The card: what it keeps, what it forgets, and how commands reach it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::attest::Workshop;
use crate::key::Key;
use crate::{management, piv};

/// A status word.
pub(crate) type Status = u16;

pub(crate) const OK: Status = 0x9000;
pub(crate) const WRONG_LENGTH: Status = 0x6700;
pub(crate) const SECURITY: Status = 0x6982;
pub(crate) const BLOCKED: Status = 0x6983;
pub(crate) const CONDITIONS: Status = 0x6985;
pub(crate) const WRONG_DATA: Status = 0x6a80;
pub(crate) const NOT_FOUND: Status = 0x6a82;
pub(crate) const WRONG_PARAMETERS: Status = 0x6a86;
pub(crate) const NO_REFERENCE: Status = 0x6a88;
pub(crate) const NO_INSTRUCTION: Status = 0x6d00;
pub(crate) const NO_CLASS: Status = 0x6e00;

/// What a command is answered: data, or a status.
pub(crate) type Answer = Result<Vec<u8>, Status>;

/// A whole command.
pub(crate) struct Command {
    pub(crate) ins: u8,
    pub(crate) p1: u8,
    pub(crate) p2: u8,
    pub(crate) data: Vec<u8>,
}

/// A PIN or PUK.
pub(crate) struct Secret {
    pub(crate) value: [u8; 8],
    pub(crate) most: u8,
    pub(crate) left: u8,
}

/// A key in a slot.
pub(crate) struct Slot {
    pub(crate) key: Key,
    pub(crate) pin: u8,
    pub(crate) touch: u8,
    pub(crate) generated: bool,
}

/// A YubiKey, whether or not it is in a reader.
pub struct Card {
    pub(crate) serial: u32,
    pub(crate) version: [u8; 3],
    pub(crate) pin: Secret,
    pub(crate) puk: Secret,
    pub(crate) management_key: (u8, Vec<u8>),
    pub(crate) slots: BTreeMap<u8, Slot>,
    pub(crate) objects: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) workshop: Workshop,
    /// Seconds, which pass when somebody says so.
    pub(crate) clock: u32,
    pub(crate) now: Now,
}

/// What a YubiKey can be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Application {
    Piv,
    Management,
}

/// What it forgets without power.
#[derive(Default)]
pub(crate) struct Now {
    /// What is selected.
    pub(crate) selected: Option<Application>,
    /// Has it the PIN?
    pub(crate) is_verified: bool,
    /// Has the PIN been used for a key that wants it each time?
    pub(crate) is_spent: bool,
    /// When it was touched last.
    pub(crate) touched: Option<u32>,
    /// Has it been shown the management key?
    pub(crate) is_managed: bool,
    /// What it awaits the answer to: a witness, or a challenge.
    pub(crate) challenge: Option<(bool, Vec<u8>)>,
    /// The beginning of a chained command.
    chain: Vec<u8>,
    /// The rest of a long answer.
    rest: Vec<u8>,
}

/// The PIN, PUK and management key that all YubiKeys leave the factory with.
pub const FACTORY_PIN: &[u8] = b"123456";
/// The same.
pub const FACTORY_PUK: &[u8] = b"12345678";
/// The same.
pub const FACTORY_MANAGEMENT_KEY: [u8; 24] = [
    1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8,
];

/// Room for a chained command (Yubico's own programs send no more than 3,062 bytes).
const ROOM: usize = 3072;

/// The first firmware that knows Curve25519, and deletes keys.
pub(crate) const NEW: [u8; 3] = [5, 7, 0];

impl Card {
    /// As it leaves the factory, whose makers of certificates work in this directory.
    #[must_use]
    pub fn new(serial: u32, version: [u8; 3], workshop: PathBuf) -> Self {
        let secret = |value: &[u8]| Secret {
            value: crate::piv::padded(value).unwrap_or([0xff; 8]),
            most: 3,
            left: 3,
        };
        let algorithm = if version >= NEW { 0x0a } else { 0x03 };
        Self {
            serial,
            version,
            pin: secret(FACTORY_PIN),
            puk: secret(FACTORY_PUK),
            management_key: (algorithm, FACTORY_MANAGEMENT_KEY.to_vec()),
            slots: BTreeMap::new(),
            objects: BTreeMap::new(),
            workshop: Workshop::new(workshop, version, serial),
            clock: 0,
            now: Now::default(),
        }
    }

    /// The certificate that its attestation leads to, in PEM; `None`: OpenSSL is not
    /// there.
    #[must_use]
    pub fn root(&self) -> Option<String> {
        self.workshop.root()
    }

    /// It has no power any more, or was reset.
    pub fn power_off(&mut self) {
        self.now = Now::default();
    }

    /// The tries that its PIN has left.
    #[must_use]
    pub const fn tries(&self) -> u8 {
        self.pin.left
    }

    /// Puts data into an object; without asking for the management key.
    pub fn put(&mut self, object: Vec<u8>, data: Vec<u8>) {
        self.objects.insert(object, data);
    }

    /// Lets time pass.
    pub const fn wait(&mut self, seconds: u32) {
        self.clock = self.clock.saturating_add(seconds);
    }

    /// Its management key is one of 3DES.
    pub const fn use_3des(&mut self) {
        self.management_key.0 = 0x03;
    }

    /// A slot has another key of the same kind.
    pub fn remake(&mut self, slot: u8) {
        if let Some(slot) = self.slots.get_mut(&slot)
            && let Some(key) = Key::generate(slot.key.algorithm())
        {
            slot.key = key;
        }
    }

    /// Everything in it that is not secret: its objects and the public keys in its slots.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(String, String)> {
        let objects = self.objects.iter();
        let objects = objects.map(|(name, data)| (hex::encode(name), hex::encode(data)));
        let slots = self.slots.iter();
        let slots = slots.map(|(slot, key)| {
            let policies = [key.pin, key.touch, u8::from(key.generated)];
            let shown = [policies.as_slice(), &key.key.public()].concat();
            (format!("{slot:02x}"), hex::encode(shown))
        });
        objects.chain(slots).collect()
    }

    /// Answers one command. `touch` waits for a finger.
    pub fn transmit(&mut self, bytes: &[u8], touch: &mut dyn FnMut() -> bool) -> Vec<u8> {
        let (mut data, status) = match self.answer(bytes, touch) {
            Ok(data) => (data, OK),
            Err(status) => (Vec::new(), status),
        };
        if data.len() > 256 {
            self.now.rest = data.split_off(256);
            let more = u8::try_from(self.now.rest.len()).unwrap_or(0);
            data.extend([0x61, more]);
            return data;
        }
        data.extend(status.to_be_bytes());
        data
    }

    fn answer(&mut self, bytes: &[u8], touch: &mut dyn FnMut() -> bool) -> Answer {
        let (&[class, ins, p1, p2], body) = bytes.split_first_chunk().ok_or(WRONG_LENGTH)?;
        let data = body_data(body).ok_or(WRONG_LENGTH)?;
        if ins == 0xc0 && class == 0 {
            let rest = std::mem::take(&mut self.now.rest);
            // The manual shows this word for it, at AUTHENTICATE: sign.
            return if rest.is_empty() {
                Err(WRONG_DATA)
            } else {
                Ok(rest)
            };
        }
        self.now.rest.clear();
        self.now.chain.extend_from_slice(data);
        if self.now.chain.len() > ROOM {
            self.now.chain.clear();
            return Err(WRONG_LENGTH);
        }
        match class {
            0x10 => return Ok(Vec::new()),
            0x00 => {}
            _ => {
                self.now.chain.clear();
                return Err(NO_CLASS);
            }
        }
        let command = Command {
            ins,
            p1,
            p2,
            data: std::mem::take(&mut self.now.chain),
        };
        if command.ins == 0xa4 {
            return self.select(&command);
        }
        match self.now.selected {
            Some(Application::Piv) => piv::answer(self, &command, touch),
            Some(Application::Management) => management::answer(self, &command),
            None => Err(NO_INSTRUCTION),
        }
    }

    /// Selects an application: what was unlocked is locked.
    fn select(&mut self, command: &Command) -> Answer {
        self.power_off();
        let is = |name: &[u8]| command.data.len() >= 5 && name.starts_with(&command.data);
        if command.p1 != 4 {
            return Err(NOT_FOUND);
        }
        if is(&piv::APPLICATION) {
            self.now.selected = Some(Application::Piv);
            Ok(piv::greeting())
        } else if is(&management::APPLICATION) {
            self.now.selected = Some(Application::Management);
            Ok(management::greeting(self))
        } else {
            Err(NOT_FOUND)
        }
    }
}

/// The data of a short or an extended command (ISO/IEC 7816-4, 5.1).
fn body_data(body: &[u8]) -> Option<&[u8]> {
    match body {
        // Nothing, or how much is expected.
        [] | [_] | [0, _, _] => Some(&[]),
        [0, high, low, rest @ ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let (data, expected) = rest.split_at_checked(length)?;
            matches!(expected.len(), 0 | 2).then_some(data)
        }
        [length, rest @ ..] => {
            let (data, expected) = rest.split_at_checked(usize::from(*length))?;
            (expected.len() <= 1).then_some(data)
        }
    }
}
