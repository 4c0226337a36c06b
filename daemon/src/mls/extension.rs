//! Extensions (RFC 9420 section 13.4), which stay opaque here.

use super::reader::{ParseError, Reader, parse_exact};

/// No honest list is longer; it also bounds the search for duplicates.
const MAX_EXTENSIONS: usize = 64;
/// No honest group demands more of a kind.
const MAX_REQUIRED: usize = 256;

/// The number of an extension (RFC 9420 section 17.3). GREASE and private values are as good as any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtensionType(pub u16);

impl ExtensionType {
    /// `external_pub`, in a GroupInfo: with it others can enter.
    pub const EXTERNAL_PUB: Self = Self(0x0004);
    /// `required_capabilities`, in a GroupContext.
    pub const REQUIRED_CAPABILITIES: Self = Self(0x0003);
    /// `ratchet_tree`, in a GroupInfo.
    pub const RATCHET_TREE: Self = Self(0x0002);
    /// `last_resort`, in a KeyPackage.
    pub const LAST_RESORT: Self = Self(0x000a);
}

/// One extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension<'a> {
    /// Its type.
    pub extension_type: ExtensionType,
    /// `extension_data`, of any length.
    pub data: &'a [u8],
}

/// A list of extensions, at most one of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extensions<'a>(Vec<Extension<'a>>);

impl<'a> Extensions<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let list = reader.vector("extensions", MAX_EXTENSIONS, |r| {
            Ok(Extension {
                extension_type: ExtensionType(r.u16()?),
                data: r.opaque()?,
            })
        })?;
        let mut types: Vec<u16> = list.iter().map(|e| e.extension_type.0).collect();
        types.sort_unstable();
        types.dedup();
        if types.len() != list.len() {
            return Err(ParseError::Contradiction(
                "a list holds two extensions of one type",
            ));
        }
        Ok(Self(list))
    }

    /// The extensions in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Extension<'a>> {
        self.0.iter()
    }

    /// The data of the extension of this type, if it is there.
    pub fn extension(&self, extension_type: ExtensionType) -> Option<&'a [u8]> {
        self.0
            .iter()
            .find(|e| e.extension_type == extension_type)
            .map(|e| e.data)
    }
}

/// What members of a group have to be capable of, beside what every client is (RFC 9420 section 11.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequiredCapabilities {
    /// Types of extensions.
    pub extensions: Vec<u16>,
    /// Types of proposals.
    pub proposals: Vec<u16>,
    /// Types of credentials.
    pub credentials: Vec<u16>,
}

impl RequiredCapabilities {
    /// Parses the data of an extension [`ExtensionType::REQUIRED_CAPABILITIES`].
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let types =
            |r: &mut Reader<'_>| r.vector("required capabilities", MAX_REQUIRED, Reader::u16);
        parse_exact(data, |r| {
            Ok(Self {
                extensions: types(r)?,
                proposals: types(r)?,
                credentials: types(r)?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_types_stay_opaque_and_duplicates_are_refused() {
        let list = parse_exact(&[8, 0x0a, 0x0a, 2, 1, 2, 0, 0x0a, 0], Extensions::read).unwrap();
        assert_eq!(
            list.extension(ExtensionType(0x0a0a)),
            Some([1, 2].as_slice())
        );
        assert_eq!(
            list.extension(ExtensionType::LAST_RESORT),
            Some([].as_slice())
        );
        assert_eq!(list.extension(ExtensionType::RATCHET_TREE), None);
        assert!(matches!(
            parse_exact(&[6, 0, 1, 0, 0, 1, 0], Extensions::read),
            Err(ParseError::Contradiction(_))
        ));
    }

    #[test]
    fn what_a_group_requires_is_read_whole() {
        let required = RequiredCapabilities::parse(&[2, 0, 5, 0, 4, 0, 1, 0, 2]).unwrap();
        assert_eq!(required.extensions, [5]);
        assert!(required.proposals.is_empty());
        assert_eq!(required.credentials, [1, 2]);
        for broken in [&[2, 0, 5, 0][..], &[0, 0, 0, 0], &[1, 0, 0, 0]] {
            RequiredCapabilities::parse(broken).unwrap_err();
        }
    }
}
