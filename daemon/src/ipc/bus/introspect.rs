//! What the door says of itself (`org.freedesktop.DBus.Introspectable`): the files in
//! `introspection/`, with documentation as gdbus-codegen reads it.

use super::objects::{CUSTODY, DEVICE, IDENTITY, KEY, Object};
use super::paths::Place;

const STANDARD: &str = include_str!("introspection/standard.xml");
const OBJECT_MANAGER: &str = include_str!("introspection/object-manager.xml");

const DOCTYPE: &str = "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \
    \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n";

/// The description of an own interface.
const fn of(interface: &str) -> &'static str {
    match interface.as_bytes() {
        b"org.mlskeyd.Custody1.Device" => include_str!("introspection/device.xml"),
        b"org.mlskeyd.Custody1.Identity" => include_str!("introspection/identity.xml"),
        b"org.mlskeyd.Custody1.Key" => include_str!("introspection/key.xml"),
        _ => include_str!("introspection/custody.xml"),
    }
}

/// What is at a place; `below` is what the caller may know is below it.
pub(super) fn describe(place: &Place, below: &[Object]) -> String {
    let mut xml = format!("{DOCTYPE}<node>\n{STANDARD}");
    match place {
        Place::Root => {
            xml.push_str(OBJECT_MANAGER);
            xml.push_str(of(CUSTODY));
            for child in ["devices", "identities", "keys"] {
                xml.push_str(&node(child));
            }
        }
        Place::Above(child) => xml.push_str(&node(child)),
        Place::Device(_) => xml.push_str(of(DEVICE)),
        Place::Identity(..) => xml.push_str(of(IDENTITY)),
        Place::Key(_) => xml.push_str(of(KEY)),
        Place::Devices | Place::Identities | Place::Keys => {}
    }
    let prefix = format!("{}/", place.path().as_str());
    for object in below {
        xml.extend(object.path.as_str().strip_prefix(&prefix).map(node));
    }
    xml.push_str("</node>\n");
    xml
}

fn node(name: &str) -> String {
    // Parts of paths are of letters, digits, `_` and `/`.
    format!("  <node name=\"{name}\"/>\n")
}

/// Is it one of the interfaces that D-Bus has for all?
pub(super) fn is_standard(interface: &str) -> bool {
    [STANDARD, OBJECT_MANAGER]
        .iter()
        .any(|xml| xml.contains(&format!("<interface name=\"{interface}\">")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mlskeyd_protocol::v1::{
        Algorithm, Bytes, Credential, DeviceInfo, DeviceState, IdentityInfo, KeyId, KeyInfo,
        KeyPin, KeyState, Offer, Owner, Purpose, SignatureScheme, Tier,
    };

    use super::*;
    use crate::ipc::bus::objects;

    fn key() -> KeyInfo {
        KeyInfo {
            id: KeyId::from_bytes([1; 16]),
            algorithm: Algorithm::Signature(SignatureScheme::Ed25519),
            purpose: Purpose::Signature,
            state: KeyState::Active,
            public_key: Bytes(vec![1; 32]),
            device: "software".to_owned(),
            tier: Tier::Software,
            created: 1,
            ends: None,
            adopted: false,
            pin: KeyPin::None,
        }
    }

    /// One object of each kind, in which no list is empty.
    fn all() -> [(Place, Object); 4] {
        let owner = Owner {
            uid: 1000,
            app: "wire".to_owned(),
        };
        let device = DeviceInfo {
            name: "software".to_owned(),
            kind: "software".to_owned(),
            state: DeviceState::Ready,
            detail: Some("a\0b".to_owned()),
            facts: Vec::new(),
            counts: Vec::new(),
            offers: vec![Offer {
                algorithm: key().algorithm,
                tier: Tier::Software,
                how: "so".to_owned(),
            }],
            remarks: Vec::new(),
            hpke_tier: None,
            default: true,
        };
        let identity = IdentityInfo {
            name: "alice".to_owned(),
            credential: Credential::X509(vec![Bytes(vec![1])]),
            key: key().id,
            scheme: SignatureScheme::Ed25519,
            public_key: key().public_key,
            device: "software".to_owned(),
            tier: Tier::Software,
            pin: KeyPin::None,
            retiring: vec![key()],
        };
        let name = "software".to_owned();
        [
            (Place::Root, objects::custody(&name, None)),
            (Place::Device(name), objects::device(&device)),
            (
                Place::Identity(owner.clone(), "alice".to_owned()),
                objects::identity(&owner, &identity),
            ),
            (Place::Key(key().id), objects::key(&owner, &key())),
        ]
    }

    /// The value of an attribute of an element.
    fn attribute<'a>(element: &'a str, name: &str) -> Option<&'a str> {
        let (_, rest) = element.split_once(&format!(" {name}=\""))?;
        rest.split('"').next()
    }

    #[test]
    fn objects_have_the_properties_that_are_described() {
        for (place, object) in all() {
            assert_eq!(object.path, place.path());
            let xml = describe(&place, &[]);
            let (_, own) = xml
                .split_once(&format!("<interface name=\"{}\">", object.interface))
                .expect("its interface is described");
            let described: BTreeMap<_, _> = own
                .split("<property")
                .skip(1)
                .map(|it| (attribute(it, "name"), attribute(it, "type")))
                .collect();
            let has = object.properties.iter().map(|(name, value)| {
                let signature = value.value_signature().to_string();
                (name.to_string(), signature)
            });
            let has: Vec<_> = has.collect();
            let has: BTreeMap<_, _> = has
                .iter()
                .map(|(name, signature)| (Some(name.as_str()), Some(signature.as_str())))
                .collect();
            assert_eq!(described, has, "{place:?}");
        }
    }

    /// Everything but what D-Bus describes itself says what it is, and how it changes.
    #[test]
    fn everything_is_documented() {
        for (place, object) in all() {
            let xml = of(object.interface);
            for element in ["<interface ", "<method ", "<signal ", "<property "] {
                for text in xml.split(element).skip(1) {
                    let next = text.split('<').nth(1).unwrap_or_default();
                    assert!(
                        next.contains("org.gtk.GDBus.DocString"),
                        "{place:?} {element}{text}"
                    );
                }
            }
        }
    }

    #[test]
    fn who_looks_around_finds_the_way() {
        for (above, below) in [
            ("/", "org"),
            ("/org", "mlskeyd"),
            ("/org/mlskeyd", "Custody1"),
        ] {
            let place = Place::at(above).unwrap();
            assert!(describe(&place, &[]).contains(&node(below)));
        }
        let known = all().map(|(_, object)| object);
        let device = node("software");
        assert!(!describe(&Place::Devices, &[]).contains(&device));
        let shown = describe(&Place::Devices, &known);
        assert!(shown.contains(&device));
        assert!(shown.contains("<interface name=\"org.freedesktop.DBus.Peer\">"));
        assert!(is_standard("org.freedesktop.DBus.ObjectManager"));
        assert!(!is_standard("org.freedesktop.DBus"));
    }
}
