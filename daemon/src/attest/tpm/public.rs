//! The public area of a TPM's key (`TPMT_PUBLIC`), and the name that the TPM gives it.

use sha2::{Digest, Sha256};

use super::reader::{ParseError, Reader, parse_exact};

/// Algorithm identifiers (`TPM_ALG_ID`).
mod alg {
    pub(super) const RSA: u16 = 0x0001;
    pub(super) const AES: u16 = 0x0006;
    pub(super) const SHA256: u16 = 0x000b;
    pub(super) const SHA384: u16 = 0x000c;
    pub(super) const NULL: u16 = 0x0010;
    pub(super) const ECDSA: u16 = 0x0018;
    pub(super) const ECDH: u16 = 0x0019;
    pub(super) const ECC: u16 = 0x0023;
    pub(super) const CFB: u16 = 0x0043;
}

/// `TPM_ECC_NIST_P256`.
const P256: u16 = 0x0003;

/// `TPM_ECC_NIST_P384`.
const P384: u16 = 0x0004;

/// The one exponent that an RSA key here has; a TPM also writes 0 for it.
const RSA_EXPONENT: u32 = 65_537;

/// Bytes of the modulus of RSA 2048.
const RSA_MODULUS: usize = 256;

/// Longest digest of any TPM (SHA-512).
pub(super) const MAX_DIGEST: usize = 64;

/// The bits of `TPMA_OBJECT`.
pub mod attribute {
    /// The key cannot be duplicated to another TPM.
    pub const FIXED_TPM: u32 = 1 << 1;
    /// The key cannot be duplicated to another parent.
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// The TPM made the private key.
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// Its authorization value suffices to use it.
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    /// Only its policy suffices to administer it.
    pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
    /// Wrong authorization values are not counted.
    pub const NO_DA: u32 = 1 << 10;
    /// It works only on what the TPM made.
    pub const RESTRICTED: u32 = 1 << 16;
    /// It decrypts, or agrees on secrets.
    pub const DECRYPT: u32 = 1 << 17;
    /// It signs.
    pub const SIGN: u32 = 1 << 18;

    const NAMES: [(u32, &str); 9] = [
        (FIXED_TPM, "fixedTPM"),
        (FIXED_PARENT, "fixedParent"),
        (SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (USER_WITH_AUTH, "userWithAuth"),
        (ADMIN_WITH_POLICY, "adminWithPolicy"),
        (NO_DA, "noDA"),
        (RESTRICTED, "restricted"),
        (DECRYPT, "decrypt"),
        (SIGN, "sign"),
    ];

    /// How the specification calls these bits.
    pub(crate) fn names(bits: u32) -> String {
        let names = NAMES.iter().filter(|(bit, _)| bits & bit != 0);
        let names: Vec<_> = names.map(|(_, name)| *name).collect();
        names.join(", ")
    }
}

/// A key's name: what the TPM certifies, and what a credential is made for. Shown nowhere, compared only.
pub(super) type Name = [u8; 34];

/// A public area that was read to its last byte. All keys here have SHA-256 as their name's algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Public<'a> {
    raw: &'a [u8],
    pub(super) attributes: u32,
    pub(super) policy: &'a [u8],
    pub(super) symmetric: Symmetric,
    pub(super) scheme: Scheme,
    pub(super) key: PublicKey<'a>,
}

/// How a storage key protects what hangs under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Symmetric {
    /// It is no storage key.
    Null,
    /// AES-128 in CFB mode.
    Aes128Cfb,
}

/// What a key does to what it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// What each command says.
    Null,
    /// ECDSA with SHA-256.
    EcdsaSha256,
    /// ECDSA with SHA-384.
    EcdsaSha384,
    /// ECDH, whatever it would hash with.
    Ecdh,
}

/// The public key itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PublicKey<'a> {
    /// RSA 2048, exponent 65537.
    Rsa2048 {
        /// Big-endian, [`RSA_MODULUS`] bytes.
        modulus: &'a [u8],
    },
    /// A point on P-256: SEC1, uncompressed. It was not looked at whether it is on the curve.
    P256([u8; 65]),
    /// The same on P-384.
    P384([u8; 97]),
}

impl<'a> Public<'a> {
    /// Reads a `TPMT_PUBLIC`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        parse_exact(bytes, |reader| Self::read(bytes, reader))
    }

    fn read(raw: &'a [u8], reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let kind = reader.u16()?;
        expect("a name algorithm", alg::SHA256, reader.u16()?)?;
        let attributes = reader.u32()?;
        let policy = reader.sized("a policy", MAX_DIGEST)?;
        let symmetric = match kind {
            alg::RSA | alg::ECC => read_symmetric(reader)?,
            other => return Err(unsupported("a key type", other)),
        };
        let scheme = read_scheme(reader)?;
        let key = if kind == alg::RSA {
            expect("an RSA key of bits", 2048, reader.u16()?)?;
            match reader.u32()? {
                0 | RSA_EXPONENT => {}
                value => {
                    let what = "an RSA exponent";
                    return Err(ParseError::Unsupported { what, value });
                }
            }
            let modulus = reader.sized("an RSA modulus", RSA_MODULUS)?;
            if modulus.len() != RSA_MODULUS {
                return Err(ParseError::Truncated);
            }
            PublicKey::Rsa2048 { modulus }
        } else {
            let curve = reader.u16()?;
            expect("a key derivation", alg::NULL, reader.u16()?)?;
            match curve {
                P256 => PublicKey::P256(point::<32, 65>(reader)?),
                P384 => PublicKey::P384(point::<48, 97>(reader)?),
                other => return Err(unsupported("a curve", other)),
            }
        };
        Ok(Self {
            raw,
            attributes,
            policy,
            symmetric,
            scheme,
            key,
        })
    }

    /// Its name (Part 1, 16): the algorithm, and the hash of the public area.
    pub(super) fn name(&self) -> Name {
        let mut name = [0; 34];
        let parts = [&alg::SHA256.to_be_bytes()[..], &Sha256::digest(self.raw)].concat();
        name.copy_from_slice(&parts);
        name
    }

    /// Has it all of these attributes?
    pub(super) const fn has(&self, attributes: u32) -> bool {
        self.attributes & attributes == attributes
    }
}

/// A point whose coordinates have `N` bytes: SEC1, uncompressed, so `LEN` bytes.
fn point<const N: usize, const LEN: usize>(
    reader: &mut Reader<'_>,
) -> Result<[u8; LEN], ParseError> {
    let mut point = [4; LEN];
    let (x, y): ([u8; N], [u8; N]) = (reader.coordinate("x")?, reader.coordinate("y")?);
    for (to, from) in point.iter_mut().skip(1).zip(x.into_iter().chain(y)) {
        *to = from;
    }
    Ok(point)
}

fn read_symmetric(reader: &mut Reader<'_>) -> Result<Symmetric, ParseError> {
    match reader.u16()? {
        alg::NULL => Ok(Symmetric::Null),
        alg::AES => {
            expect("AES of bits", 128, reader.u16()?)?;
            expect("a mode of AES", alg::CFB, reader.u16()?)?;
            Ok(Symmetric::Aes128Cfb)
        }
        other => Err(unsupported("a symmetric algorithm", other)),
    }
}

fn read_scheme(reader: &mut Reader<'_>) -> Result<Scheme, ParseError> {
    let scheme = reader.u16()?;
    if scheme == alg::NULL {
        return Ok(Scheme::Null);
    }
    match (scheme, reader.u16()?) {
        (alg::ECDSA, alg::SHA256) => Ok(Scheme::EcdsaSha256),
        (alg::ECDSA, alg::SHA384) => Ok(Scheme::EcdsaSha384),
        (alg::ECDH, alg::SHA256 | alg::SHA384) => Ok(Scheme::Ecdh),
        (alg::ECDSA | alg::ECDH, other) => Err(unsupported("a scheme's hash", other)),
        (other, _) => Err(unsupported("a scheme", other)),
    }
}

/// `r` and `s` of a `TPMT_SIGNATURE`, which has to be ECDSA with SHA-256.
pub(super) fn parse_signature(bytes: &[u8]) -> Result<[[u8; 32]; 2], ParseError> {
    parse_exact(bytes, |reader| {
        expect("a signature's algorithm", alg::ECDSA, reader.u16()?)?;
        expect("a signature's hash", alg::SHA256, reader.u16()?)?;
        Ok([reader.coordinate("r")?, reader.coordinate("s")?])
    })
}

fn expect(what: &'static str, expected: u16, found: u16) -> Result<(), ParseError> {
    if found == expected {
        Ok(())
    } else {
        Err(unsupported(what, found))
    }
}

const fn unsupported(what: &'static str, value: u16) -> ParseError {
    ParseError::Unsupported {
        what,
        value: value as u32,
    }
}
