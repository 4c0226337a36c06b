//! Reads the TPM's structures (TPM 2.0 Library, Part 2) from bytes that nobody vouches for.

use thiserror::Error;

/// Why some bytes are not the structure that they should be. It quotes none of the bytes.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// The bytes end within a field.
    #[error("the bytes end within a field")]
    Truncated,
    /// The structure ends before the bytes do.
    #[error("bytes follow after the end of the structure")]
    TrailingBytes,
    /// A buffer is longer than any TPM makes it.
    #[error("{what}: longer than {limit} bytes")]
    TooLong {
        /// Which one.
        what: &'static str,
        /// The greatest permitted length.
        limit: usize,
    },
    /// An algorithm, type or value that no structure of a key or a certification here has.
    #[error("{what} {value:#x} is not supported")]
    Unsupported {
        /// Which field.
        what: &'static str,
        /// The value in it.
        value: u32,
    },
}

/// A position in a byte slice. Every read moves forward or fails, and borrows instead of copying.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(ParseError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, ParseError> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ParseError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ParseError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ParseError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A `TPM2B`: the bytes after their length, at most `limit`.
    pub(super) fn sized(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<&'a [u8], ParseError> {
        let length = usize::from(self.u16()?);
        if length > limit {
            return Err(ParseError::TooLong { what, limit });
        }
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(ParseError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// A number of `N` bytes that is big-endian in a `TPM2B`, and may come without its leading zeros.
    pub(super) fn coordinate<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], ParseError> {
        let bytes = self.sized(what, N)?;
        let mut padded = [0; N];
        for (to, from) in padded.iter_mut().rev().zip(bytes.iter().rev()) {
            *to = *from;
        }
        Ok(padded)
    }
}

/// Parses the whole of `bytes`.
pub(super) fn parse_exact<'a, T, E: From<ParseError>>(
    bytes: &'a [u8],
    parse: impl FnOnce(&mut Reader<'a>) -> Result<T, E>,
) -> Result<T, E> {
    let mut reader = Reader { rest: bytes };
    let value = parse(&mut reader)?;
    if reader.rest.is_empty() {
        Ok(value)
    } else {
        Err(ParseError::TrailingBytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_is_read_to_its_last_byte_and_no_further() {
        let read = |bytes| parse_exact(bytes, |r| Ok((r.u16()?, r.sized("data", 2)?)));
        assert_eq!(read(&[1, 2, 0, 1, 9]), Ok((0x0102, &[9][..])));
        assert_eq!(read(&[1, 2, 0, 0]), Ok((0x0102, &[][..])));
        assert_eq!(read(&[1, 2, 0, 1]), Err(ParseError::Truncated));
        assert_eq!(read(&[1]), Err(ParseError::Truncated));
        assert_eq!(read(&[1, 2, 0, 0, 0]), Err(ParseError::TrailingBytes));
        let too_long = ParseError::TooLong {
            what: "data",
            limit: 2,
        };
        assert_eq!(read(&[1, 2, 0, 3, 0, 0, 0]), Err(too_long));
    }

    #[test]
    fn a_coordinate_may_lack_its_leading_zeros() {
        let read = |bytes: &[u8]| parse_exact(bytes, |r| r.coordinate("x"));
        let mut expected = [0; 32];
        expected[30..].copy_from_slice(&[7, 8]);
        assert_eq!(read(&[0, 2, 7, 8]), Ok(expected));
        assert_eq!(read(&[0, 3, 0, 7, 8]), Ok(expected));
        assert_eq!(read(&[0, 0]), Ok([0; 32]));
        let longer = [&[0, 33][..], &[0; 33]].concat();
        assert!(matches!(read(&longer), Err(ParseError::TooLong { .. })));
    }
}
