//! The paths of objects: names in them are written so that each is one, and only one.

use mlskeyd_protocol::v1::{KeyId, Owner};
use zbus::ObjectPath;

/// The object of the daemon itself.
pub(super) const ROOT: &str = "/org/mlskeyd/Custody1";

/// Longest path that is looked at, in bytes.
const MAX_PATH: usize = 2048;

/// What a path stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The daemon.
    Root,
    /// What is above it: `/`, `/org` and `/org/mlskeyd`; with its one child.
    Above(&'static str),
    /// All devices.
    Devices,
    /// A device, by name.
    Device(String),
    /// The caller's identities.
    Identities,
    /// An identity, by whose it is, and name.
    Identity(Owner, String),
    /// The caller's keys.
    Keys,
    /// A key.
    Key(KeyId),
}

impl Place {
    /// What is at this path, if anything can be.
    pub(super) fn at(path: &str) -> Option<Self> {
        match path {
            "/" => return Some(Self::Above("org")),
            "/org" => return Some(Self::Above("mlskeyd")),
            "/org/mlskeyd" => return Some(Self::Above("Custody1")),
            _ => {}
        }
        let below = path.strip_prefix(ROOT)?;
        if path.len() > MAX_PATH {
            return None;
        }
        let mut parts = below.split('/').skip(1);
        let place = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (None, ..) if below.is_empty() => Self::Root,
            (Some("devices"), None, ..) => Self::Devices,
            (Some("devices"), Some(name), None, _) => Self::Device(decode(name)?),
            (Some("identities"), None, ..) => Self::Identities,
            (Some("identities"), Some(uid), Some(app), Some(name)) => {
                let (uid, app) = (decode(uid)?.parse().ok()?, decode(app)?);
                Self::Identity(Owner { uid, app }, decode(name)?)
            }
            (Some("keys"), None, ..) => Self::Keys,
            (Some("keys"), Some(id), None, _) => {
                let mut bytes = [0; KeyId::LEN];
                hex::decode_to_slice(decode(id)?, &mut bytes).ok()?;
                Self::Key(KeyId::from_bytes(bytes))
            }
            _ => return None,
        };
        // Nothing has two paths.
        (parts.next().is_none() && place.path().as_str() == path).then_some(place)
    }

    /// Where it is.
    pub(super) fn path(&self) -> ObjectPath<'static> {
        let path = match self {
            Self::Root => ROOT.to_owned(),
            Self::Above("org") => "/".to_owned(),
            Self::Above("mlskeyd") => "/org".to_owned(),
            Self::Above(_) => "/org/mlskeyd".to_owned(),
            Self::Devices => format!("{ROOT}/devices"),
            Self::Device(name) => format!("{ROOT}/devices/{}", encode(name)),
            Self::Identities => format!("{ROOT}/identities"),
            Self::Identity(owner, name) => {
                let (uid, app) = (encode(&owner.uid.to_string()), encode(&owner.app));
                format!("{ROOT}/identities/{uid}/{app}/{}", encode(name))
            }
            Self::Keys => format!("{ROOT}/keys"),
            Self::Key(id) => format!("{ROOT}/keys/{}", encode(&id.to_string())),
        };
        // Its parts are of letters, digits and `_` alone: it is a path.
        ObjectPath::from_string_unchecked(path)
    }
}

/// A name as a part of a path (as `sd_bus_path_encode` writes it): what is no letter and no
/// digit, and a digit at the start, is `_` and two hexadecimal digits.
fn encode(name: &str) -> String {
    if name.is_empty() {
        return "_".to_owned();
    }
    let mut part = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => part.push(char::from(byte)),
            b'0'..=b'9' if at > 0 => part.push(char::from(byte)),
            byte => part.push_str(&format!("_{byte:02x}")),
        }
    }
    part
}

/// The name of a part, if it is one.
fn decode(part: &str) -> Option<String> {
    if part == "_" {
        return Some(String::new());
    }
    let mut name = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'_' {
            let digits = [rest.next()?, rest.next()?];
            let mut byte = [0];
            hex::decode_to_slice(digits, &mut byte).ok()?;
            name.extend(byte);
        } else {
            name.push(byte);
        }
    }
    String::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_one_path() {
        let owner = Owner {
            uid: 1000,
            app: "wire".to_owned(),
        };
        for (place, path) in [
            (Place::Root, ""),
            (Place::Devices, "/devices"),
            (Place::Device("yubi-key".to_owned()), "/devices/yubi_2dkey"),
            (Place::Device("4".to_owned()), "/devices/_34"),
            (Place::Device("a4".to_owned()), "/devices/a4"),
            (
                Place::Identity(owner.clone(), "älice@b".to_owned()),
                "/identities/_31000/wire/_c3_a4lice_40b",
            ),
            (
                Place::Key(KeyId::from_bytes([0xAB; KeyId::LEN])),
                &format!("/keys/{}", "ab".repeat(KeyId::LEN)),
            ),
        ] {
            let path = format!("{ROOT}{path}");
            assert_eq!(place.path().as_str(), path);
            assert_eq!(Place::at(&path), Some(place));
        }
        for above in ["/", "/org", "/org/mlskeyd"] {
            assert_eq!(Place::at(above).unwrap().path().as_str(), above);
        }
    }

    #[test]
    fn what_is_no_place_is_none() {
        let long = format!("{ROOT}/devices/{}", "a".repeat(MAX_PATH));
        let key = "ab".repeat(KeyId::LEN);
        for path in [
            "/org/mlskeyd/Custody2",
            "/org/mlskeyd/Custody1x",
            "/org/mlskeyd/Custody1/",
            "/org/mlskeyd/Custody1/devices/",
            "/org/mlskeyd/Custody1/devices/a/b",
            "/org/mlskeyd/Custody1/devices/a-b",
            // Not as it is written.
            "/org/mlskeyd/Custody1/devices/_61",
            "/org/mlskeyd/Custody1/devices/_2D",
            "/org/mlskeyd/Custody1/devices/_2",
            "/org/mlskeyd/Custody1/devices/_c3",
            "/org/mlskeyd/Custody1/identities/_31000/wire",
            "/org/mlskeyd/Custody1/identities/_31000/wire/a/b",
            "/org/mlskeyd/Custody1/identities/_30001/wire/a",
            "/org/mlskeyd/Custody1/identities/x/wire/a",
            "/org/mlskeyd/Custody1/keys/ab",
            &format!("{ROOT}/keys/{}", key.to_uppercase()),
            &format!("{ROOT}/keys/{key}/x"),
            &long,
        ] {
            assert_eq!(Place::at(path), None, "{path}");
        }
    }
}
