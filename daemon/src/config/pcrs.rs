//! Platform configuration registers of a TPM: where firmware and system write down
//! what they have measured.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A choice of registers, at least one of 0 to 23, in the SHA-256 bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pcrs(u32);

/// How many registers a TPM of a PC has (TCG PC Client Platform TPM Profile, 4.6).
const COUNT: u8 = 24;

impl Pcrs {
    /// Checks a list of registers.
    ///
    /// # Errors
    /// What one looks like.
    pub fn parse(numbers: &[u8]) -> Result<Self, &'static str> {
        let mut bits = 0_u32;
        for &number in numbers {
            let bit = 1_u32.checked_shl(number.into()).unwrap_or_default();
            if number >= COUNT || bits & bit != 0 {
                return Err("`pcrs` is a list of numbers from 0 to 23, each once");
            }
            bits |= bit;
        }
        if bits == 0 {
            return Err("`pcrs` names no register: leave it out, and `recovery_key`");
        }
        Ok(Self(bits))
    }

    /// Their numbers, ascending.
    pub fn numbers(self) -> impl Iterator<Item = u8> {
        (0..COUNT).filter(move |&number| self.has(number))
    }

    /// As a TPM writes it: 3 bytes, the lowest register in the lowest bit of the
    /// first one (`TPMS_PCR_SELECTION.pcrSelect`).
    #[must_use]
    pub const fn select(self) -> [u8; 3] {
        let [a, b, c, _] = self.0.to_le_bytes();
        [a, b, c]
    }

    fn has(self, number: u8) -> bool {
        self.0.checked_shr(number.into()).unwrap_or_default() & 1 == 1
    }
}

impl fmt::Display for Pcrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PCR ")?;
        for (position, number) in self.numbers().enumerate() {
            let before = if position == 0 { "" } else { ", " };
            write!(f, "{before}{number}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_a_list_of_numbers() {
        let pcrs = Pcrs::parse(&[23, 0, 7, 8]).unwrap();
        assert_eq!(pcrs.to_string(), "PCR 0, 7, 8, 23");
        assert_eq!(pcrs.select(), [0x81, 0x01, 0x80]);
        assert_eq!(pcrs.numbers().collect::<Vec<_>>(), [0, 7, 8, 23]);
        for wrong in [[].as_slice(), &[24], &[7, 7], &[255], &[32]] {
            assert!(Pcrs::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
