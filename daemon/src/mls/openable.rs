//! What is to be opened: the `info` of an HPKE open, which is EncryptContext (RFC 9420 section 5.1.3), and the
//! plaintext that comes out.

use super::group::GroupContext;
use super::proposal::PreSharedKeyId;
use super::reader::{ParseError, Reader, parse_exact};
use super::signable::{Unknown, read_labelled};
use mlskeyd_policies::Action;

const WELCOME_LABEL: &[u8] = b"MLS 1.0 Welcome";
const UPDATE_PATH_NODE_LABEL: &[u8] = b"MLS 1.0 UpdatePathNode";

/// More pre-shared keys than any Welcome names.
const MAX_PSKS: usize = 1_024;

/// What is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Openable<'a> {
    /// The group secrets of a Welcome, sealed to an init key.
    Welcome {
        /// The sealed GroupInfo of the same Welcome.
        encrypted_group_info: &'a [u8],
    },
    /// A path secret of a commit, sealed to a leaf key.
    PathSecret {
        /// The group after that commit, but for its confirmed transcript hash.
        group_context: Box<GroupContext<'a>>,
    },
    /// Anything else.
    Unknown(Unknown<'a>),
}

impl<'a> Openable<'a> {
    /// Parses the `info` of an open.
    pub fn parse(info: &'a [u8]) -> Self {
        let (label, context) = match read_labelled(info) {
            Ok(parts) => parts,
            Err(unknown) => return Self::Unknown(unknown),
        };
        let parsed = match label {
            WELCOME_LABEL => Ok(Self::Welcome {
                encrypted_group_info: context,
            }),
            UPDATE_PATH_NODE_LABEL => {
                parse_exact(context, GroupContext::read).map(|context| Self::PathSecret {
                    group_context: Box::new(context),
                })
            }
            _ => Err(ParseError::UnknownLabel),
        };
        parsed.unwrap_or_else(|why| {
            Self::Unknown(Unknown {
                label: Some(label),
                why,
            })
        })
    }

    /// Its kind for policy and audit.
    pub fn action(&self) -> Action {
        match self {
            Self::Welcome { .. } => Action::OpenWelcome,
            Self::PathSecret { .. } => Action::OpenPathSecret,
            Self::Unknown(_) => Action::OpenUnknown,
        }
    }

    /// Whether `plaintext` is what such an open must yield, to the last byte; else it is to be withheld.
    /// `cipher_suite` is that of the key that opened it.
    ///
    /// A Welcome yields GroupSecrets (RFC 9420 section 12.4.3.1); an UpdatePathNode the bare path secret of KDF.Nh
    /// bytes (section 7.6).
    pub fn check_plaintext(&self, cipher_suite: u16, plaintext: &[u8]) -> Result<(), ParseError> {
        let length = kdf_length(cipher_suite)?;
        match self {
            Self::Welcome { .. } => parse_exact(plaintext, |r| check_group_secrets(r, length)),
            Self::PathSecret { group_context } if group_context.cipher_suite != cipher_suite => {
                Err(ParseError::Contradiction(
                    "the key and the group have different cipher suites",
                ))
            }
            Self::PathSecret { .. } => check_secret(plaintext, length),
            Self::Unknown(unknown) => Err(unknown.why),
        }
    }
}

fn check_group_secrets(reader: &mut Reader<'_>, length: usize) -> Result<(), ParseError> {
    check_secret(reader.opaque()?, length)?;
    match reader.u8()? {
        0 => {}
        1 => check_secret(reader.opaque()?, length)?,
        value => {
            return Err(ParseError::Unsupported {
                what: "presence octet",
                value: value.into(),
            });
        }
    }
    reader.vector("pre-shared keys", MAX_PSKS, PreSharedKeyId::read)?;
    Ok(())
}

fn check_secret(secret: &[u8], length: usize) -> Result<(), ParseError> {
    if secret.len() == length {
        Ok(())
    } else {
        Err(ParseError::Contradiction(
            "a secret has another length than the cipher suite's KDF makes",
        ))
    }
}

/// KDF.Nh of a cipher suite (RFC 9420 section 17.1), in bytes.
fn kdf_length(cipher_suite: u16) -> Result<usize, ParseError> {
    match cipher_suite {
        1..=3 => Ok(32),
        4..=6 => Ok(64),
        7 => Ok(48),
        value => Err(ParseError::Unsupported {
            what: "cipher suite",
            value,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mls::signable::sign_content;

    fn group_secrets(joiner: usize, path: Option<usize>) -> Vec<u8> {
        let mut out = vec![u8::try_from(joiner).unwrap()];
        out.extend(vec![1; joiner]);
        match path {
            None => out.push(0),
            Some(path) => {
                out.extend([1, u8::try_from(path).unwrap()]);
                out.extend(vec![2; path]);
            }
        }
        // One external PSK with id "a" and a nonce of two bytes.
        out.extend([6, 1, 1, b'a', 2, 0, 0]);
        out
    }

    #[test]
    fn a_welcome_yields_group_secrets_to_the_last_byte() {
        let info = sign_content(WELCOME_LABEL, b"sealed").unwrap();
        let open = Openable::parse(&info);
        assert_eq!(open.action(), Action::OpenWelcome);
        for path in [None, Some(32)] {
            let good = group_secrets(32, path);
            assert_eq!(open.check_plaintext(1, &good), Ok(()));
            for cut in 0..good.len() {
                assert!(open.check_plaintext(1, &good[..cut]).is_err());
            }
            let mut long = good.clone();
            long.push(0);
            assert_eq!(
                open.check_plaintext(1, &long),
                Err(ParseError::TrailingBytes)
            );
        }
        assert!(open.check_plaintext(1, &group_secrets(31, None)).is_err());
        assert!(
            open.check_plaintext(1, &group_secrets(32, Some(33)))
                .is_err()
        );
        assert!(open.check_plaintext(9, &group_secrets(32, None)).is_err());
    }

    #[test]
    fn a_path_secret_has_the_length_of_the_suite() {
        // version, suite 2, group "g", epoch 0, empty hashes and extensions
        let context = [0, 1, 0, 2, 1, b'g', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let info = sign_content(UPDATE_PATH_NODE_LABEL, &context).unwrap();
        let open = Openable::parse(&info);
        assert_eq!(open.action(), Action::OpenPathSecret);
        assert_eq!(open.check_plaintext(2, &[7; 32]), Ok(()));
        assert!(open.check_plaintext(2, &[7; 31]).is_err());
        assert!(open.check_plaintext(2, &[7; 33]).is_err());
        assert!(open.check_plaintext(1, &[7; 32]).is_err());
    }

    #[test]
    fn other_labels_open_nothing() {
        for label in [&b"MLS 1.0 Welcom"[..], b"Welcome", b""] {
            let info = sign_content(label, b"x").unwrap();
            let open = Openable::parse(&info);
            assert_eq!(open.action(), Action::OpenUnknown);
            assert_eq!(
                open.check_plaintext(1, &[7; 32]),
                Err(ParseError::UnknownLabel)
            );
        }
    }
}
