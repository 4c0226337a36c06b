//! The device whose keys live here: the daemon's own.

use std::path::Path;

use mlskeyd::config::Config;

/// The software device.
pub struct Device;

impl Device {
    pub fn new() -> Self {
        Self
    }

    /// It is there without being configured.
    pub fn configure(&self, _: &mut Config) {}

    /// What it keeps for keys is encrypted in the state directory, which
    /// `crash_daemon` looks at.
    pub fn check(&self, _state: &Path, _living_keys: usize) {}
}
