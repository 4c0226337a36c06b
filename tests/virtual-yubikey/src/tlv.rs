//! BER-TLV, as PIV uses it: tags of one or two bytes, lengths of at most two.

/// The elements, to the last byte; `None` if it is anything else.
pub(crate) fn all(mut bytes: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut elements = Vec::new();
    while let Some((&first, mut rest)) = bytes.split_first() {
        let mut tag = u16::from(first);
        if first & 0x1f == 0x1f {
            let (&second, after) = rest.split_first()?;
            tag = u16::from_be_bytes([first, second]);
            rest = after;
        }
        let (&length, mut rest) = rest.split_first()?;
        let length = match length {
            0..=0x7f => usize::from(length),
            0x81 => {
                let (&length, after) = rest.split_first()?;
                rest = after;
                usize::from(length)
            }
            0x82 => {
                let (length, after) = rest.split_first_chunk()?;
                rest = after;
                usize::from(u16::from_be_bytes(*length))
            }
            _ => return None,
        };
        let (value, after) = rest.split_at_checked(length)?;
        elements.push((tag, value));
        bytes = after;
    }
    Some(elements)
}

/// The value of the only element with this tag.
pub(crate) fn only<'a>(elements: &[(u16, &'a [u8])], tag: u16) -> Option<&'a [u8]> {
    let mut found = elements.iter().filter(|(other, _)| *other == tag);
    let (_, value) = found.next()?;
    found.next().is_none().then_some(value)
}

/// Writes an element.
pub(crate) fn write(tag: u16, value: &[u8]) -> Vec<u8> {
    let [high, low] = tag.to_be_bytes();
    let mut bytes = if high == 0 {
        vec![low]
    } else {
        vec![high, low]
    };
    match (u8::try_from(value.len()), u16::try_from(value.len())) {
        (Ok(length @ 0..=0x7f), _) => bytes.push(length),
        (Ok(length), _) => bytes.extend([0x81, length]),
        (_, Ok(length)) => {
            bytes.push(0x82);
            bytes.extend(length.to_be_bytes());
        }
        _ => bytes.push(0x80),
    }
    bytes.extend_from_slice(value);
    bytes
}
