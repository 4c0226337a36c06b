//! Which failpoints there are, so that none is without its test.

use std::collections::BTreeSet;
use std::path::Path;

/// Those that only a daemon with a token comes past: where a note of it, or of a
/// PIN, is written.
pub const OF_TOKENS: &[&str] = &["private-file-written", "private-file-named"];

/// The names of all failpoints in the source below a directory.
///
/// # Panics
/// If a failpoint has no literal name, or two have the same.
pub fn in_source(directory: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory).expect("a directory of source") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            names.append(&mut in_source(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).expect("source is text");
            for rest in source.split("failpoint::hit(").skip(1) {
                let name = rest.trim_start().strip_prefix('"');
                let name = name.and_then(|rest| rest.split('"').next());
                let name = name.unwrap_or_else(|| panic!("{}: no name", path.display()));
                assert!(names.insert(name.to_owned()), "{name} is there twice");
            }
        }
    }
    names
}
