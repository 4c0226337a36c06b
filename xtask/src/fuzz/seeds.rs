//! The inputs that fuzzing starts from: what MLS implementations really gave a signer and really opened.

use std::fs;
use std::path::{Path, PathBuf};

use crate::root;

/// In the order of the fuzz target's `LABELS`, of which the last ones have no captures: an input whose first byte counts one of these is the content under it.
const LABELS: [&str; 6] = [
    "MLS 1.0 FramedContentTBS",
    "MLS 1.0 LeafNodeTBS",
    "MLS 1.0 KeyPackageTBS",
    "MLS 1.0 GroupInfoTBS",
    "MLS 1.0 Welcome",
    "MLS 1.0 UpdatePathNode",
];

/// Writes one file for each payload in `tests/captured`, as it is and with its label as a number.
pub(super) fn write(directory: &Path) -> Result<PathBuf, String> {
    let failed = |error: std::io::Error| format!("cannot write the seeds: {error}");
    if directory.exists() {
        fs::remove_dir_all(directory).map_err(failed)?;
    }
    fs::create_dir_all(directory).map_err(failed)?;
    let mut count = 0_usize;
    for implementation in ["mls-rs", "openmls"] {
        let files = fs::read_dir(root().join("tests/captured").join(implementation));
        for file in files.map_err(failed)? {
            let path = file.map_err(failed)?.path();
            if path.extension().is_none_or(|extension| extension != "txt") {
                continue;
            }
            for payload in payloads(&fs::read_to_string(path).map_err(failed)?)? {
                for seed in [short(&payload), Some(payload)].into_iter().flatten() {
                    fs::write(directory.join(count.to_string()), seed).map_err(failed)?;
                    count = count.saturating_add(1);
                }
            }
        }
    }
    if count == 0 {
        return Err("there are no captures in tests/captured".to_owned());
    }
    Ok(directory.to_owned())
}

/// All that is in one file of captures; `tests/captured/README.md` describes it.
fn payloads(file: &str) -> Result<Vec<Vec<u8>>, String> {
    file.lines()
        .filter(|line| !line.starts_with("suite "))
        .flat_map(|line| line.split(' ').skip(1))
        .map(|word| bytes(word).ok_or_else(|| format!("not hexadecimal: {word}")))
        .collect()
}

fn bytes(hexadecimal: &str) -> Option<Vec<u8>> {
    hexadecimal
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [_, _] => u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok(),
            _ => None,
        })
        .collect()
}

/// The payload without its envelope.
fn short(payload: &[u8]) -> Option<Vec<u8>> {
    let (number, label) = (0..).zip(LABELS).find(|(_, label)| {
        let rest = payload.get(1..);
        rest.is_some_and(|rest| rest.starts_with(label.as_bytes()))
    })?;
    let content = payload.get(label.len().saturating_add(1)..)?;
    // The content's length is of 1, 2 or 4 bytes (RFC 9420 section 2.1.2).
    let length = 1_usize << (content.first()? >> 6);
    Some([&[number], content.get(length..)?].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_payloads() {
        let file = "suite 1\nsign 0aff\nopen 01 02\n";
        assert_eq!(payloads(file), Ok(vec![vec![10, 255], vec![1], vec![2]]));
        assert!(payloads("sign 0").is_err() && payloads("sign zz").is_err());
    }

    #[test]
    fn a_label_becomes_a_number() {
        let payload = [&[19], &b"MLS 1.0 LeafNodeTBS"[..], &[0x40, 2, b'h', b'i']].concat();
        assert_eq!(short(&payload), Some(vec![1, b'h', b'i']));
        assert_eq!(short(b"\x05other\x00"), None);
    }
}
