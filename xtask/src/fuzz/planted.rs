//! Shows that the fuzzer would find a bug: plants one into a copy of the sources, and fuzzes that.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{cargo_fuzz, libfuzzer, seeds, succeed, target, time, tools};
use crate::root;

/// The bug: lengths need no longer be in their shortest form, which RFC 9420 section 2.1.2 demands. One structure could
/// then be written in many ways, and what was judged would not be what others see. No implementation writes
/// such lengths, so none of the seeds has one: the fuzzer has to make it up, and what is around it must stay sound.
const FILE: &str = "daemon/src/mls/reader.rs";
const SOUND: &str = "if length < least {";
const PLANTED: &str = "if length < least && least == u32::MAX {";

/// What the copy consists of: the members of the workspace, which its root names.
const PARTS: [&str; 8] = [
    "Cargo.toml",
    "daemon",
    "fuzz",
    "policies",
    "protocol",
    "provider",
    "tests",
    "xtask",
];

pub(super) fn run(minutes: u32) -> Result<(), String> {
    tools()?;
    let tree = target().join("planted");
    copy(&tree)?;
    plant(&tree.join(FILE))?;
    succeed(cargo_fuzz("build", &tree))?;

    let seeds = seeds::write(&target().join("planted-seeds"))?;
    println!("==> the seeds alone");
    succeed(libfuzzer(&tree, &[&seeds], &["-runs=0".to_owned()]))
        .map_err(|_| "the seeds find the bug by themselves: plant another one".to_owned())?;

    println!("==> fuzzing, for {minutes} minutes at most");
    let found = tree.join("found");
    fs::create_dir_all(&found).map_err(|error| error.to_string())?;
    let fuzzed = succeed(libfuzzer(&tree, &[&found, &seeds], &time(minutes)));
    let findings = fs::read_dir(tree.join("fuzz/artifacts/parse"))
        .map_or(0, |entries| entries.filter_map(Result::ok).count());
    match (fuzzed, findings) {
        (Err(_), 1..) => {
            println!("==> the planted bug was found");
            Ok(())
        }
        _ => Err(format!(
            "the planted bug was not found within {minutes} minutes"
        )),
    }
}

fn copy(tree: &Path) -> Result<(), String> {
    if tree.exists() {
        fs::remove_dir_all(tree).map_err(|error| error.to_string())?;
    }
    fs::create_dir_all(tree).map_err(|error| error.to_string())?;
    let mut copy = Command::new("cp");
    copy.args(["-r", "--"])
        .args(PARTS)
        .arg(tree)
        .current_dir(root());
    succeed(copy)?;
    // Earlier findings are none of this one's.
    match fs::remove_dir_all(tree.join("fuzz/artifacts")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn plant(file: &Path) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    let planted = replaced(&text).ok_or_else(|| {
        format!("{FILE} does not have '{SOUND}' exactly once: the bug must be planted anew")
    })?;
    fs::write(file, planted).map_err(|error| error.to_string())
}

fn replaced(text: &str) -> Option<String> {
    (text.matches(SOUND).count() == 1).then(|| text.replace(SOUND, PLANTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_for_the_bug_is_still_there() {
        let text = fs::read_to_string(root().join(FILE)).unwrap();
        assert!(replaced(&text).unwrap().contains(PLANTED));
        assert_eq!(replaced("if length < most {"), None);
        assert_eq!(replaced(&format!("{SOUND}{SOUND}")), None);
    }
}
