//! What an app has signed that is no MLS structure.
//!
//! It has the shape of MLS's SignContent (RFC 9420, 5.1.2), `{ label<V>, content<V> }`, with a prefix of our own
//! before the label where MLS has `MLS 1.0 `: so neither is ever taken for the other, by whoever verifies it.

use crate::secret::SecretBytes;

/// Before each label.
pub const LABEL_PREFIX: &str = "mlskeyd 1.0 ";

/// Longest label, in bytes.
pub const MAX_LABEL: usize = 64;

/// Is it a label: 1 to [`MAX_LABEL`] printable ASCII characters?
#[must_use]
pub fn is_label(label: &str) -> bool {
    (1..=MAX_LABEL).contains(&label.len()) && label.bytes().all(|b| (b' '..=b'~').contains(&b))
}

/// What is signed for a label and content. `None`: this is no label, or the content is too long to be encoded (2^30
/// bytes).
#[must_use]
pub fn app_content(label: &str, content: &[u8]) -> Option<SecretBytes> {
    if !is_label(label) {
        return None;
    }
    let label = [LABEL_PREFIX, label].concat();
    let mut out = Vec::with_capacity(content.len().saturating_add(label.len()).saturating_add(8));
    write_opaque(&mut out, label.as_bytes())?;
    write_opaque(&mut out, content)?;
    Some(SecretBytes::new(out))
}

/// Appends `bytes` as `opaque<V>` (RFC 9420, 2.1.2). `None` if they are longer than the 2^30 - 1 bytes that a length can
/// say.
pub fn write_opaque(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    let length = u32::try_from(bytes.len()).ok()?;
    let [b0, b1, b2, b3] = length.to_be_bytes();
    match length {
        0..0x40 => out.push(b3),
        0x40..0x4000 => out.extend([b2 | 0x40, b3]),
        0x4000..0x4000_0000 => out.extend([b0 | 0x80, b1, b2, b3]),
        _ => return None,
    }
    out.extend_from_slice(bytes);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_label_and_content() {
        let signed = app_content("login", b"hello").unwrap();
        assert_eq!(signed.expose(), b"\x11mlskeyd 1.0 login\x05hello");
        let long = app_content("login", &[7; 0x4000]).unwrap();
        assert_eq!(long.expose()[18..22], [0x80, 0, 0x40, 0]);
        for no_label in ["", "a\n", "\u{e9}", &"x".repeat(MAX_LABEL + 1)] {
            assert!(app_content(no_label, b"").is_none());
        }
    }
}
