//! Records what mls-rs signs and opens while groups live, one file for each cipher suite. `README.md` beside this
//! crate says how the files are read and when to record again.

mod crypto;
mod life;
mod people;

use std::collections::HashSet;
use std::fmt::Write;
use std::path::PathBuf;

use crypto::{Record, Recording};
use mls_rs::CipherSuite;
use people::Style;

/// What is to be kept of what happened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything.
    All,
    /// All but GroupInfos: one is signed with each commit, and they are alike.
    ButGroupInfos,
    /// The same, and messages are of a kind of their own: they hold a custom proposal.
    Custom,
}

/// What was recorded, as lines of a file.
#[derive(Default)]
pub struct Lines {
    crypto: Recording,
    text: String,
    opened: HashSet<Vec<u8>>,
}

impl Lines {
    /// Writes what happened since the last time.
    pub fn note(&mut self, keep: Keep) {
        for record in self.crypto.take() {
            match record {
                Record::Sign(payload) => {
                    let labelled = |label: &[u8]| {
                        // After the label's length, which is one byte.
                        payload.get(1..).is_some_and(|rest| rest.starts_with(label))
                    };
                    if keep != Keep::All && labelled(b"MLS 1.0 GroupInfoTBS") {
                        continue;
                    }
                    let custom = keep == Keep::Custom && labelled(b"MLS 1.0 FramedContentTBS");
                    let kind = if custom { "custom" } else { "sign" };
                    writeln!(self.text, "{kind} {}", hex::encode(payload)).unwrap();
                }
                // Each member opens its path secret with the same info.
                Record::Open(info, plaintext) => {
                    if self.opened.insert(info.clone()) {
                        let (info, plaintext) = (hex::encode(info), hex::encode(plaintext));
                        writeln!(self.text, "open {info} {plaintext}").unwrap();
                    }
                }
            }
        }
    }

    /// The provider that is listened to.
    pub fn crypto(&self) -> Recording {
        self.crypto.clone()
    }
}

fn main() {
    let directory = PathBuf::from(std::env::args().nth(1).expect("the directory of the files"));
    // The suite decides on lengths, and the style on fields: so not every suite needs every style. 3 has the lengths
    // of 1, and 7 shows long ones soon.
    for (suite, private, short) in [
        (CipherSuite::CURVE25519_AES128, false, false),
        (CipherSuite::P256_AES128, true, false),
        (CipherSuite::CURVE25519_CHACHA, true, true),
        (CipherSuite::P384_AES256, false, true),
    ] {
        let mut lines = Lines::default();
        let number = u16::from(suite);
        writeln!(lines.text, "suite {number}").unwrap();
        life::live(&mut lines, suite, Style { private, short });
        let file = directory.join(format!("suite-{number:04x}.txt"));
        std::fs::write(&file, &lines.text).unwrap();
        println!("{}: {} bytes", file.display(), lines.text.len());
    }
}
