//! Policies for those that do more than a client needs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Has policies below a directory that bound no rates: the daemon's `local_dir`.
pub fn without_rates(directory: &Path) -> PathBuf {
    let local = directory.join("policies-without-rates");
    fs::create_dir_all(&local).expect("a directory for policies");
    let file = local.join("40-rates.cedar");
    fs::write(&file, "").expect("no policies");
    for (path, mode) in [(&local, 0o755), (&file, 0o644)] {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, permissions).expect("nobody else writes policies");
    }
    local
}

/// The same as a section of the configuration.
pub fn section_without_rates(directory: &Path) -> String {
    format!("\n[policy]\nlocal_dir = {:?}\n", without_rates(directory))
}
