//! What a TPM says about a key that it holds (`TPMS_ATTEST` of `TPM2_Certify`).

use super::public::MAX_DIGEST;
use super::reader::{ParseError, Reader, parse_exact};

/// `TPM_GENERATED_VALUE`: a restricted key signs nothing that begins with this, unless the TPM made it.
const GENERATED: u32 = 0xff54_4347;

/// `TPM_ST_ATTEST_CERTIFY`.
const CERTIFY: u16 = 0x8017;

/// Longest name: an algorithm and a digest.
const MAX_NAME: usize = 2 + MAX_DIGEST;

/// Longest `TPM2B_DATA`.
const MAX_DATA: usize = 2 + MAX_DIGEST;

/// The certification of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Certification<'a> {
    /// What whoever asked for it had put in (`extraData`).
    pub(super) data: &'a [u8],
    /// The name of the key.
    pub(super) name: &'a [u8],
}

/// Why an attestation is not the certification of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoCertification {
    /// No TPM made it.
    NotGenerated,
    /// It is about something else.
    OtherKind(u16),
    /// It is none.
    Malformed(ParseError),
}

impl From<ParseError> for NoCertification {
    fn from(error: ParseError) -> Self {
        Self::Malformed(error)
    }
}

impl<'a> Certification<'a> {
    /// Reads a `TPMS_ATTEST`, which has to be of `TPM2_Certify`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, NoCertification> {
        parse_exact(bytes, |reader| {
            if reader.u32()? != GENERATED {
                return Err(NoCertification::NotGenerated);
            }
            match reader.u16()? {
                CERTIFY => Ok(Self::read(reader)?),
                other => Err(NoCertification::OtherKind(other)),
            }
        })
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let _signer = reader.sized("the signer's name", MAX_NAME)?;
        let data = reader.sized("the data", MAX_DATA)?;
        let (_clock, _resets, _restarts) = (reader.u64()?, reader.u32()?, reader.u32()?);
        match reader.u8()? {
            0 | 1 => {}
            value => {
                let (what, value) = ("a clock's state", value.into());
                return Err(ParseError::Unsupported { what, value });
            }
        }
        let _firmware = reader.u64()?;
        let name = reader.sized("the key's name", MAX_NAME)?;
        let _qualified_name = reader.sized("the key's qualified name", MAX_NAME)?;
        Ok(Self { data, name })
    }
}
