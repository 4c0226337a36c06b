//! BER-TLV, as far as PIV uses it (ISO/IEC 7816-4, 5.2.2; NIST SP 800-73-4): tags of
//! one or two bytes, lengths of at most two.

use zeroize::Zeroizing;

/// One element: its tag, and its value.
pub(super) type Element<'a> = (u16, &'a [u8]);

/// The first element, and what follows it; `None` if that is none.
pub(super) fn split(bytes: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&first, mut rest) = bytes.split_first()?;
    let mut tag = u16::from(first);
    if first & 0x1f == 0x1f {
        let (&second, after) = rest.split_first()?;
        // A tag of three bytes.
        if second & 0x80 != 0 {
            return None;
        }
        tag = tag.checked_shl(8)? | u16::from(second);
        rest = after;
    }
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81 => {
            let (&length, rest) = rest.split_first()?;
            (usize::from(length), rest)
        }
        0x82 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(length)?;
    Some(((tag, value), rest))
}

/// All elements, to the last byte; `None` if there is anything else.
pub(super) fn all(mut bytes: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut elements = Vec::new();
    while !bytes.is_empty() {
        let (element, rest) = split(bytes)?;
        elements.push(element);
        bytes = rest;
    }
    Some(elements)
}

/// The value of the one element with this tag: of two none is right.
pub(super) fn only<'a>(elements: &[Element<'a>], tag: u16) -> Option<&'a [u8]> {
    let mut found = elements.iter().filter(|(other, _)| *other == tag);
    let (_, value) = found.next()?;
    found.next().is_none().then_some(value)
}

/// The value of an element that is all there is, and has this tag.
pub(super) fn sole(bytes: &[u8], tag: u16) -> Option<&[u8]> {
    let ((found, value), rest) = split(bytes)?;
    (found == tag && rest.is_empty()).then_some(value)
}

/// Writes an element.
pub(super) fn write(tag: u16, value: &[u8]) -> Zeroizing<Vec<u8>> {
    let [high, low] = tag.to_be_bytes();
    let length = value.len();
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.saturating_add(6)));
    if high != 0 {
        bytes.push(high);
    }
    bytes.push(low);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ 0..=0x7f), _) => bytes.push(length),
        (Ok(length), _) => bytes.extend_from_slice(&[0x81, length]),
        (_, Ok(length)) => {
            bytes.push(0x82);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
        // Nothing that is written here is nearly as long; a card refuses this.
        _ => bytes.push(0x80),
    }
    bytes.extend_from_slice(value);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_element_is_none() {
        for bad in [
            &b""[..],
            &[0x53],
            &[0x53, 1],
            &[0x53, 0x80],
            &[0x53, 0x81],
            &[0x53, 0x82, 0],
            &[0x53, 0x83, 0, 0, 0],
            &[0x5f],
            &[0x5f, 0x81, 0x01, 0],
        ] {
            assert_eq!(split(bad), None, "{bad:02x?}");
        }
        assert_eq!(all(&[1, 0, 2]), None);
        assert_eq!(sole(&[1, 0, 2, 0], 1), None);
    }

    #[test]
    fn of_two_elements_none_is_the_only_one() {
        let elements = all(&[1, 1, 7, 2, 0, 2, 0]).unwrap();
        assert_eq!(only(&elements, 1), Some(&[7][..]));
        assert_eq!(only(&elements, 2), None);
        assert_eq!(only(&elements, 3), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(tag in prop_oneof![1_u16..0x1f, Just(0x7f49), Just(0x5f49)], length in 0_usize..70_000) {
            let value = vec![7; length];
            let written = write(tag, &value);
            if length <= usize::from(u16::MAX) {
                prop_assert_eq!(sole(&written, tag), Some(value.as_slice()));
            } else {
                prop_assert_eq!(sole(&written, tag), None);
            }
        }

        #[test]
        fn nothing_panics(bytes: Vec<u8>) {
            let _ = all(&bytes);
        }
    }
}
