//! Extensions (RFC 9420 section 13.4), which stay opaque here.

use super::reader::{ParseError, Reader};

/// No honest list is longer; it also bounds the search for duplicates.
const MAX_EXTENSIONS: usize = 64;

/// The number of an extension (RFC 9420 section 17.3). GREASE and private values are as good as any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtensionType(pub u16);

impl ExtensionType {
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

#[cfg(test)]
mod tests {
    use super::super::reader::parse_exact;
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
}
