//! What is hashed and authenticated: fields, each after its length, so that no two lists of fields are
//! the same bytes.

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// The hash of a list of fields; `label` says what they are. Each has its length before it, in 4 bytes.
pub(super) fn hash(label: &str, fields: &[&[u8]]) -> Hash {
    let mut hash = Sha256::new();
    for field in std::iter::once(&label.as_bytes()).chain(fields) {
        // No document is longer than this can say.
        let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
        hash.update(length.to_be_bytes());
        hash.update(field);
    }
    hash.finalize().into()
}

/// HMAC-SHA256 over these parts in a row.
pub(super) fn hmac(key: &Hash, parts: &[&[u8]]) -> Hash {
    // HMAC pads a key to one block by itself; done here, nothing can fail.
    let mut block = Zeroizing::new([0; 64]);
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = Hmac::<Sha256>::new((&*block).into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_lists_of_fields_have_one_hash() {
        let lists: [&[&[u8]]; 5] = [&[b"ab"], &[b"a", b"b"], &[b"ab", b""], &[b"", b"ab"], &[]];
        let mut hashes: Vec<_> = lists.iter().map(|list| hash("x", list)).collect();
        hashes.push(hash("xab", &[]));
        for (n, one) in hashes.iter().enumerate() {
            assert!(!hashes[n + 1..].contains(one), "{n}");
        }
    }

    #[test]
    fn the_mac_is_that_of_rfc_4231() {
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let mac = hmac(&key, &[b"what do ya want ", b"for nothing?"]);
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex::encode(mac), expected);
    }
}
