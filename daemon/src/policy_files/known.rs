//! What there is that policies can name: who writes a name that nobody has is told.

use std::collections::BTreeSet;

use nix::unistd::{Group, User};

use crate::caller::DEFAULT_APP;
use crate::config::Config;

/// Names, as far as they are known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    apps: Option<BTreeSet<String>>,
    devices: Option<BTreeSet<String>>,
    identities: Option<BTreeSet<String>>,
}

impl Known {
    /// What a configuration names. The apps that it does not name are one.
    pub(crate) fn of(config: &Config) -> Self {
        let apps = config.apps.iter().map(|app| app.name.clone());
        let devices = config.devices.iter().map(|device| device.name.clone());
        Self {
            apps: Some(apps.chain([DEFAULT_APP.to_owned()]).collect()),
            devices: Some(devices.collect()),
            identities: None,
        }
    }

    /// With the identities of all owners, if they are known.
    pub(super) fn with_identities(self, identities: Option<BTreeSet<String>>) -> Self {
        Self { identities, ..self }
    }

    /// Is there one of this type and name on this machine? `None`: that is not known.
    pub(crate) fn is_there(&self, kind: &str, name: &str) -> Option<bool> {
        let has = |names: &Option<BTreeSet<String>>| names.as_ref().map(|all| all.contains(name));
        match kind {
            // Whose number has no name may be anybody.
            "User" | "Group" if name.starts_with('#') => None,
            "User" => User::from_name(name).ok().map(|user| user.is_some()),
            "Group" => Group::from_name(name).ok().map(|group| group.is_some()),
            "App" => has(&self.apps),
            "Device" => has(&self.devices),
            "Identity" => has(&self.identities),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_not_known_is_not_said() {
        let nothing = Known::default();
        for kind in ["App", "Device", "Identity", "Key", "Caller"] {
            assert_eq!(nothing.is_there(kind, "default"), None, "{kind}");
        }
        assert_eq!(nothing.is_there("User", "root"), Some(true));
        assert_eq!(nothing.is_there("Group", "no such group"), Some(false));
        assert_eq!(nothing.is_there("User", "#4711"), None);
    }

    #[test]
    fn a_configuration_names_devices_and_apps() {
        let text =
            "[apps.wire]\nsnap = \"wire\"\n[[devices]]\nname = \"soft\"\nkind = \"software\"";
        let known = Known::of(&Config::parse(Path::new("mlskeyd.toml"), text).unwrap());
        for (kind, name, wanted) in [
            ("Device", "soft", Some(true)),
            ("Device", "software", Some(false)),
            ("App", "default", Some(true)),
            ("App", "wire", Some(true)),
            ("App", "wier", Some(false)),
            ("Identity", "alice", None),
        ] {
            assert_eq!(known.is_there(kind, name), wanted, "{kind} {name}");
        }
        let known = known.with_identities(Some(BTreeSet::from(["alice".to_owned()])));
        assert_eq!(known.is_there("Identity", "alice"), Some(true));
        assert_eq!(known.is_there("Identity", "alcie"), Some(false));
    }
}
