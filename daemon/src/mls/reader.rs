//! Reads the TLS presentation language as RFC 9420 section 2.1 profiles it, from bytes that nobody vouches for.

use thiserror::Error;

/// Why some bytes are not the structure that they should be. For the audit log; it quotes none of the bytes.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// The bytes end within a field.
    #[error("the bytes end within a field")]
    Truncated,
    /// The structure ends before the bytes do.
    #[error("bytes follow after the end of the structure")]
    TrailingBytes,
    /// A length starts with the bits 11, which RFC 9420 section 2.1.2 forbids.
    #[error("a vector length has the invalid prefix 11")]
    LengthPrefix,
    /// A length takes more bytes than it needs, which RFC 9420 section 2.1.2 forbids.
    #[error("a vector length is not in its shortest form")]
    LengthNotMinimal,
    /// More elements, or more bytes, than any honest client sends.
    #[error("{what}: more than {limit}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The greatest permitted number.
        limit: usize,
    },
    /// A type or version that this parser does not know, and so cannot judge.
    #[error("{what} {value:#06x} is not supported")]
    Unsupported {
        /// Which field.
        what: &'static str,
        /// The value in it.
        value: u16,
    },
    /// A label that belongs to no structure of MLS 1.0.
    #[error("the label names no structure of MLS 1.0 that is signed or opened here")]
    UnknownLabel,
    /// Each field is well-formed, but no honest client puts these values together.
    #[error("{0}")]
    Contradiction(&'static str),
}

/// A position in a byte slice. Every read moves forward or fails, borrows instead of copying, and never panics.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], ParseError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(ParseError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

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

    /// A variable-size length (RFC 9420 section 2.1.2): 1, 2 or 4 bytes, in the shortest form.
    fn length(&mut self) -> Result<usize, ParseError> {
        let first = self.u8()?;
        let low = u32::from(first & 0x3f);
        let (length, least) = match first >> 6 {
            0 => (low, 0),
            1 => (low << 8 | u32::from(self.u8()?), 1 << 6),
            2 => {
                let [b1, b2, b3] = self.array()?;
                (u32::from_be_bytes([first & 0x3f, b1, b2, b3]), 1 << 14)
            }
            _ => return Err(ParseError::LengthPrefix),
        };
        if length < least {
            return Err(ParseError::LengthNotMinimal);
        }
        usize::try_from(length).map_err(|_| ParseError::Truncated)
    }

    /// `opaque<V>`: the bytes after their length.
    pub(super) fn opaque(&mut self) -> Result<&'a [u8], ParseError> {
        let length = self.length()?;
        self.take(length)
    }

    /// A vector of elements, which must fill its bytes exactly; at most `limit` elements.
    pub(super) fn vector<T>(
        &mut self,
        what: &'static str,
        limit: usize,
        mut element: impl FnMut(&mut Reader<'a>) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        let mut inner = Reader::new(self.opaque()?);
        let mut elements = Vec::new();
        while !inner.is_empty() {
            if elements.len() >= limit {
                return Err(ParseError::TooMany { what, limit });
            }
            elements.push(element(&mut inner)?);
        }
        Ok(elements)
    }

    /// What `parse` makes of the next bytes, and those bytes themselves.
    pub(super) fn with_raw<T>(
        &mut self,
        parse: impl FnOnce(&mut Reader<'a>) -> Result<T, ParseError>,
    ) -> Result<(T, &'a [u8]), ParseError> {
        let start = *self;
        let value = parse(self)?;
        let consumed = start.rest.len().saturating_sub(self.rest.len());
        let raw = start.rest.get(..consumed).ok_or(ParseError::Truncated)?;
        Ok((value, raw))
    }

    /// The `ProtocolVersion` field, which must be mls10.
    pub(super) fn version(&mut self) -> Result<(), ParseError> {
        match self.u16()? {
            1 => Ok(()),
            value => Err(ParseError::Unsupported {
                what: "protocol version",
                value,
            }),
        }
    }

    /// Nothing may follow.
    pub(super) fn end(self) -> Result<(), ParseError> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(ParseError::TrailingBytes)
        }
    }
}

/// Parses the whole of `bytes`.
pub(super) fn parse_exact<'a, T>(
    bytes: &'a [u8],
    parse: impl FnOnce(&mut Reader<'a>) -> Result<T, ParseError>,
) -> Result<T, ParseError> {
    let mut reader = Reader::new(bytes);
    let value = parse(&mut reader)?;
    reader.end()?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use mlskeyd_protocol::app_content::write_opaque;

    use super::*;

    fn length_of(bytes: &[u8]) -> Result<usize, ParseError> {
        parse_exact(bytes, |r| r.length())
    }

    #[test]
    fn lengths_of_rfc_9000_appendix_a() {
        assert_eq!(length_of(&[0x9d, 0x7f, 0x3e, 0x7d]), Ok(494_878_333));
        assert_eq!(length_of(&[0x7b, 0xbd]), Ok(15_293));
        assert_eq!(length_of(&[0x25]), Ok(37));
    }

    #[test]
    fn non_minimal_lengths_are_refused() {
        assert_eq!(length_of(&[0x40, 0x25]), Err(ParseError::LengthNotMinimal));
        assert_eq!(length_of(&[0x40, 0x3f]), Err(ParseError::LengthNotMinimal));
        assert_eq!(length_of(&[0x40, 0x40]), Ok(64));
        assert_eq!(
            length_of(&[0x80, 0, 0x3f, 0xff]),
            Err(ParseError::LengthNotMinimal)
        );
        assert_eq!(length_of(&[0x80, 0, 0x40, 0]), Ok(16_384));
    }

    #[test]
    fn prefix_11_is_refused() {
        for first in 0xc0..=0xff {
            let bytes = [first, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(Reader::new(&bytes).length(), Err(ParseError::LengthPrefix));
        }
    }

    #[test]
    fn a_huge_length_allocates_nothing() {
        let mut reader = Reader::new(&[0xbf, 0xff, 0xff, 0xff, 1, 2]);
        assert_eq!(reader.opaque(), Err(ParseError::Truncated));
    }

    #[test]
    fn opaque_round_trip_at_each_boundary() {
        for length in [0, 1, 63, 64, 65, 16_383, 16_384, 70_000] {
            let data = vec![7; length];
            let mut out = Vec::new();
            write_opaque(&mut out, &data).unwrap();
            assert_eq!(parse_exact(&out, |r| r.opaque()), Ok(data.as_slice()));
        }
    }

    #[test]
    fn vectors_fill_their_bytes_and_keep_their_limit() {
        let read = |bytes, limit| parse_exact(bytes, |r| r.vector("numbers", limit, Reader::u16));
        assert_eq!(read(&[4, 0, 1, 0, 2], 2), Ok(vec![1, 2]));
        assert_eq!(read(&[3, 0, 1, 0], 2), Err(ParseError::Truncated));
        assert_eq!(
            read(&[4, 0, 1, 0, 2], 1),
            Err(ParseError::TooMany {
                what: "numbers",
                limit: 1
            })
        );
        assert_eq!(read(&[2, 0, 1, 0], 2), Err(ParseError::TrailingBytes));
    }

    #[test]
    fn raw_is_what_was_read() {
        let mut reader = Reader::new(&[1, 2, 3, 4]);
        reader.u8().unwrap();
        assert_eq!(
            reader.with_raw(|r| r.u16()),
            Ok((0x0203, [2, 3].as_slice()))
        );
    }
}
