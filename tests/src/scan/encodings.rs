//! The search that knows the private keys.
//!
//! Each key is searched in its binary forms (as it is, reversed, and whatever
//! is computed from it), and each of these as bytes, as a JSON array of
//! numbers, in hexadecimal and in base64.
//!
//! What is searched for are the *halves* of each encoding: an allocator writes
//! its own pointers over the first 16 bytes of what is freed, and half of a key
//! is a leak too.

use std::collections::HashSet;

use aho_corasick::AhoCorasick;
use sha2::{Digest, Sha512};

use super::{Finding, Kind, Snapshot};

/// What kind of a private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// An Ed25519 seed, of which a scalar and a prefix are computed.
    Ed25519,
    /// A P-256 scalar, big endian. (In SEC1 and PKCS#8 it stands just so.)
    P256,
    /// An X25519 scalar, clamped or not.
    X25519,
    /// Other secret bytes, such as what a key is derived from.
    Other,
}

/// A private key to search for.
#[derive(Clone)]
pub struct PrivateKey {
    /// What the test calls it.
    pub name: String,
    /// Its kind.
    pub kind: KeyKind,
    /// Its bytes: 32, or at least 16 of [`KeyKind::Other`].
    pub bytes: Vec<u8>,
}

/// A way to write bytes.
#[derive(Clone, Copy)]
struct Writing {
    name: &'static str,
    write: fn(&[u8]) -> Vec<u8>,
}

/// Every writing of bytes that is searched for.
const WRITINGS: [Writing; 11] = [
    Writing {
        name: "bytes",
        write: <[u8]>::to_vec,
    },
    Writing {
        name: "JSON numbers",
        write: |bytes| numbers(bytes, ","),
    },
    Writing {
        name: "JSON numbers, spaced",
        write: |bytes| numbers(bytes, ", "),
    },
    Writing {
        name: "hex",
        write: |bytes| hex::encode(bytes).into_bytes(),
    },
    Writing {
        name: "HEX",
        write: |bytes| hex::encode_upper(bytes).into_bytes(),
    },
    Writing {
        name: "base64",
        write: |bytes| base64(bytes, 0, *b"+/"),
    },
    Writing {
        name: "base64 after 1 byte",
        write: |bytes| base64(bytes, 1, *b"+/"),
    },
    Writing {
        name: "base64 after 2 bytes",
        write: |bytes| base64(bytes, 2, *b"+/"),
    },
    Writing {
        name: "base64url",
        write: |bytes| base64(bytes, 0, *b"-_"),
    },
    Writing {
        name: "base64url after 1 byte",
        write: |bytes| base64(bytes, 1, *b"-_"),
    },
    Writing {
        name: "base64url after 2 bytes",
        write: |bytes| base64(bytes, 2, *b"-_"),
    },
];

/// How a key may be written: what it is called, and the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// The binary form, such as `reversed`.
    pub form: &'static str,
    /// How that is written, such as `base64 after 1 byte`.
    pub writing: &'static str,
    /// The bytes as they would stand in memory.
    pub bytes: Vec<u8>,
}

/// Every encoding of a private key.
pub fn of(key: &PrivateKey) -> Vec<Encoding> {
    let mut encodings = Vec::new();
    for (form, bytes) in forms(key) {
        for Writing { name, write } in WRITINGS {
            encodings.push(Encoding {
                form,
                writing: name,
                bytes: write(&bytes),
            });
        }
    }
    encodings
}

/// Searches for private keys, in all of their encodings.
#[derive(Debug)]
pub struct Searcher {
    patterns: AhoCorasick,
    /// What each pattern is half of.
    meanings: Vec<Meaning>,
}

#[derive(Debug)]
struct Meaning {
    key: String,
    form: &'static str,
    writing: &'static str,
}

impl Searcher {
    /// Prepares the search for these keys.
    pub fn new(keys: &[PrivateKey]) -> Self {
        let mut patterns = Vec::new();
        let mut meanings = Vec::new();
        for key in keys {
            for encoding in of(key) {
                for half in halves(&encoding) {
                    patterns.push(half);
                    let Encoding { form, writing, .. } = encoding;
                    meanings.push(Meaning {
                        key: key.name.clone(),
                        form,
                        writing,
                    });
                }
            }
        }
        let patterns = AhoCorasick::new(&patterns).expect("few enough patterns");
        Self { patterns, meanings }
    }

    /// Searches everything in a snapshot. What is found several times in one
    /// region or file is given once.
    pub fn find(&self, snapshot: &Snapshot) -> Vec<Finding> {
        let mut findings = Vec::new();
        for part in &snapshot.parts {
            let mut seen = HashSet::new();
            for found in self.patterns.find_overlapping_iter(&part.bytes) {
                let Some(meaning) = self.meanings.get(found.pattern().as_usize()) else {
                    continue;
                };
                if seen.insert((&meaning.key, meaning.form, meaning.writing)) {
                    findings.push(Finding {
                        key: meaning.key.clone(),
                        form: meaning.form,
                        writing: meaning.writing,
                        place: format!("{} + {:#x}", part.name, found.start()),
                        in_memory: part.kind != Kind::File,
                    });
                }
            }
        }
        findings
    }
}

/// The binary forms of a key.
fn forms(key: &PrivateKey) -> Vec<(&'static str, Vec<u8>)> {
    let mut forms = vec![("as it is", key.bytes.clone())];
    match key.kind {
        KeyKind::X25519 => forms.push(("clamped", clamp(&key.bytes))),
        KeyKind::Ed25519 => {
            let seed: &[u8; 32] = key.bytes.as_slice().try_into().expect("a seed of 32 bytes");
            let expanded = Sha512::digest(seed);
            let (scalar, prefix) = expanded.split_at(32);
            let reduced = ed25519_dalek::SigningKey::from_bytes(seed).to_scalar();
            forms.push(("expanded: scalar", scalar.to_vec()));
            forms.push(("expanded: clamped scalar", clamp(scalar)));
            forms.push(("expanded: reduced scalar", reduced.to_bytes().to_vec()));
            forms.push(("expanded: prefix", prefix.to_vec()));
        }
        KeyKind::P256 | KeyKind::Other => {}
    }
    forms.push(("reversed", key.bytes.iter().rev().copied().collect()));
    forms
}

/// RFC 7748, section 5.
fn clamp(scalar: &[u8]) -> Vec<u8> {
    let mut clamped = scalar.to_vec();
    clamped[0] &= 0b1111_1000;
    clamped[31] &= 0b0111_1111;
    clamped[31] |= 0b0100_0000;
    clamped
}

/// The two halves of an encoding, each of 16 bytes of the key or (in base64) a
/// bit less.
fn halves(encoding: &Encoding) -> [Vec<u8>; 2] {
    let text = &encoding.bytes;
    let middle = if encoding.writing.starts_with("JSON") {
        let commas: Vec<_> = (0..text.len()).filter(|at| text[*at] == b',').collect();
        commas[commas.len() / 2]
    } else {
        text.len() / 2
    };
    let (first, second) = text.split_at(middle);
    [first.to_vec(), second.to_vec()]
}

fn numbers(bytes: &[u8], separator: &str) -> Vec<u8> {
    let numbers: Vec<_> = bytes.iter().map(u8::to_string).collect();
    numbers.join(separator).into_bytes()
}

/// The base64 characters that the bytes alone decide, if they begin `offset`
/// bytes after a group of three. So padding does not matter.
fn base64(bytes: &[u8], offset: usize, last: [u8; 2]) -> Vec<u8> {
    let character = |value: usize| match value {
        0..26 => b'A' + value as u8,
        26..52 => b'a' + (value - 26) as u8,
        52..62 => b'0' + (value - 52) as u8,
        value => last[value - 62],
    };
    let first = offset * 8;
    let end = first + bytes.len() * 8;
    let bit = |at: usize| usize::from(bytes[(at - first) / 8] >> (7 - at % 8) & 1);
    (first.div_ceil(6)..end / 6)
        .map(|group| {
            character((group * 6..group * 6 + 6).fold(0, |value, at| value << 1 | bit(at)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_what_others_write() {
        // RFC 4648, section 10; cut to what the bytes decide.
        for (bytes, text) in [
            ("f", "Z"),
            ("fo", "Zm"),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes(), 0, *b"+/"), text.as_bytes());
        }
        // "foobar" is Zm9vYmFy: what "oobar" and "obar" decide of it.
        assert_eq!(base64(b"oobar", 1, *b"+/"), b"9vYmFy");
        assert_eq!(base64(b"obar", 2, *b"+/"), b"vYmFy");
        assert_eq!(base64(&[0xFB, 0xFF], 0, *b"+/"), b"+/");
        assert_eq!(base64(&[0xFB, 0xFF], 0, *b"-_"), b"-_");
    }

    #[test]
    fn an_expanded_seed_is_what_rfc_8032_computes() {
        let seed: [u8; 32] = std::array::from_fn(|i| i as u8);
        let key = PrivateKey {
            name: String::new(),
            kind: KeyKind::Ed25519,
            bytes: seed.to_vec(),
        };
        let forms = forms(&key);
        let form = |name| {
            forms
                .iter()
                .find(|(form, _)| *form == name)
                .unwrap()
                .1
                .clone()
        };
        let public = |scalar: Vec<u8>| {
            let scalar: [u8; 32] = scalar.try_into().unwrap();
            x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(scalar)).to_bytes()
        };
        let expected = ed25519_dalek::SigningKey::from_bytes(&seed)
            .verifying_key()
            .to_montgomery()
            .to_bytes();
        assert_eq!(public(form("expanded: clamped scalar")), expected);
        assert_eq!(public(form("expanded: scalar")), expected);
        assert_eq!(forms.len(), 6);
    }

    #[test]
    fn halves_leave_nothing_out() {
        let key = PrivateKey {
            name: String::new(),
            kind: KeyKind::X25519,
            bytes: vec![0xC7; 32],
        };
        for encoding in of(&key) {
            let [first, second] = halves(&encoding);
            assert_eq!([first.clone(), second.clone()].concat(), encoding.bytes);
            assert!(first.len() >= 16 && second.len() >= 16, "{encoding:?}");
        }
    }
}
