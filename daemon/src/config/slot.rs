//! The slots of a YubiKey's PIV application: where it has its keys.
//! (<https://docs.yubico.com/yesdk/users-manual/application-piv/slots.html>)

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A slot for a key of the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub struct Slot(u8);

/// The twenty slots for retired key management keys, which any kind of key may be in.
const RETIRED: RangeInclusive<u8> = 0x82..=0x95;

impl Slot {
    /// Key management, the slot for key agreement.
    pub const KEY_MANAGEMENT: Self = Self(0x9d);

    /// The slots for retired key management keys.
    pub fn retired() -> impl Iterator<Item = Self> {
        RETIRED.map(Self)
    }

    /// Is it one of them?
    #[must_use]
    pub fn is_retired(self) -> bool {
        RETIRED.contains(&self.0)
    }

    /// Its key reference (NIST SP 800-73-4, part 1, table 4b).
    #[cfg(feature = "yubikey")]
    pub(crate) const fn reference(self) -> u8 {
        self.0
    }

    /// The object that its certificate is in (the same, table 3).
    #[cfg(feature = "yubikey")]
    pub(crate) const fn certificate(self) -> [u8; 3] {
        let last = match self.0 {
            0x9a => 0x05,
            0x9c => 0x0a,
            0x9d => 0x0b,
            0x9e => 0x01,
            // 0x82 has 0x0d.
            retired => retired.wrapping_sub(0x75),
        };
        [0x5f, 0xc1, last]
    }
}

/// It is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a slot is 9a, 9c, 9d, 9e, or 82 to 95")]
pub struct NoSlot;

impl TryFrom<u8> for Slot {
    type Error = NoSlot;

    fn try_from(reference: u8) -> Result<Self, NoSlot> {
        match reference {
            0x9a | 0x9c | 0x9d | 0x9e => Ok(Self(reference)),
            retired if RETIRED.contains(&retired) => Ok(Self(reference)),
            _ => Err(NoSlot),
        }
    }
}

impl From<Slot> for u8 {
    fn from(slot: Slot) -> Self {
        slot.0
    }
}

/// By its key reference in hexadecimal, as everybody writes it.
impl FromStr for Slot {
    type Err = NoSlot;

    fn from_str(text: &str) -> Result<Self, NoSlot> {
        if text.len() != 2 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoSlot);
        }
        let reference = u8::from_str_radix(text, 16).map_err(|_| NoSlot)?;
        reference.try_into()
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_named_by_their_references() {
        let known = (0..=u8::MAX).filter_map(|reference| Slot::try_from(reference).ok());
        let known: Vec<_> = known.collect();
        assert_eq!(known.len(), 24);
        for slot in known {
            assert_eq!(slot.to_string().parse(), Ok(slot));
        }
        for bad in ["", "9", "9A9", "+9", "f9", "80", "9b", "81", "96"] {
            assert_eq!(bad.parse::<Slot>(), Err(NoSlot), "{bad}");
        }
        assert_eq!("9A".parse::<Slot>(), "9a".parse());
    }

    #[test]
    #[cfg(feature = "yubikey")]
    fn each_slot_has_a_certificate_of_its_own() {
        let certificate = |text: &str| text.parse::<Slot>().unwrap().certificate()[2];
        let known = [("9a", 5), ("9c", 10), ("9d", 11), ("9e", 1)];
        for (slot, last) in known {
            assert_eq!(certificate(slot), last);
        }
        assert_eq!((certificate("82"), certificate("95")), (0x0d, 0x20));
    }
}
