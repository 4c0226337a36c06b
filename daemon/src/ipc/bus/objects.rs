//! What objects show of themselves: their interfaces and properties. `introspection/` has
//! what each of them means.

use std::collections::BTreeMap;

use mlskeyd_protocol::v1::{
    Algorithm, Bytes, Credential, DeviceInfo, IdentityInfo, KeyInfo, Offer, Owner,
};
use zbus::{ObjectPath, Variant};

use super::paths::Place;

/// The interfaces of objects.
pub(super) const CUSTODY: &str = "org.mlskeyd.Custody1";
pub(super) const DEVICE: &str = "org.mlskeyd.Custody1.Device";
pub(super) const IDENTITY: &str = "org.mlskeyd.Custody1.Identity";
pub(super) const KEY: &str = "org.mlskeyd.Custody1.Key";

/// Properties by name.
pub(super) type Properties = BTreeMap<&'static str, Variant<'static>>;

/// An object that has properties.
pub(super) struct Object {
    pub(super) path: ObjectPath<'static>,
    pub(super) interface: &'static str,
    pub(super) properties: Properties,
}

/// The daemon.
pub(super) fn custody(default_device: &str, read_only: Option<&str>) -> Object {
    let device = Place::Device(default_device.to_owned()).path();
    object(
        &Place::Root,
        CUSTODY,
        [
            ("Version", text(env!("CARGO_PKG_VERSION"))),
            ("DefaultDevice", device.into()),
            ("ReadOnly", text(read_only.unwrap_or_default())),
        ],
    )
}

/// A device.
pub(super) fn device(info: &DeviceInfo) -> Object {
    let offer = |it: &Offer| {
        let (algorithm, tier) = (it.algorithm.to_string(), it.tier.to_string());
        (algorithm, tier, it.how.clone())
    };
    let offers: Vec<_> = info.offers.iter().map(offer).collect();
    let tier = info.hpke_tier.map(|tier| tier.to_string());
    object(
        &Place::Device(info.name.clone()),
        DEVICE,
        [
            ("Name", text(&info.name)),
            ("Kind", text(&info.kind)),
            ("State", text(&info.state.to_string())),
            ("Detail", text(info.detail.as_deref().unwrap_or_default())),
            ("Default", info.default.into()),
            ("Offers", offers.into()),
            ("HpkeTier", text(&tier.unwrap_or_default())),
        ],
    )
}

/// An identity of this owner.
pub(super) fn identity(owner: &Owner, info: &IdentityInfo) -> Object {
    let (kind, content) = match &info.credential {
        Credential::Basic(name) => ("basic", vec![name.0.clone()]),
        Credential::X509(chain) => ("x509", chain.iter().map(|it| it.0.clone()).collect()),
    };
    let retiring: Vec<_> = info.retiring.iter().map(|key| key_path(key)).collect();
    object(
        &Place::Identity(owner.clone(), info.name.clone()),
        IDENTITY,
        [
            ("Owner", (owner.uid, owner.app.clone()).into()),
            ("Name", text(&info.name)),
            ("CredentialType", text(kind)),
            ("Credential", content.into()),
            ("Key", Place::Key(info.key).path().into()),
            ("Algorithm", algorithm(Algorithm::Signature(info.scheme))),
            ("PublicKey", bytes(&info.public_key)),
            ("Device", device_path(&info.device)),
            ("Tier", text(&info.tier.to_string())),
            ("Pin", text(&info.pin.to_string())),
            ("Retiring", retiring.into()),
        ],
    )
}

/// A key of this owner.
pub(super) fn key(owner: &Owner, info: &KeyInfo) -> Object {
    object(
        &Place::Key(info.id),
        KEY,
        [
            ("Owner", (owner.uid, owner.app.clone()).into()),
            ("Id", text(&info.id.to_string())),
            ("Algorithm", algorithm(info.algorithm)),
            ("Purpose", text(&info.purpose.to_string())),
            ("State", text(&info.state.to_string())),
            ("PublicKey", bytes(&info.public_key)),
            ("Device", device_path(&info.device)),
            ("Tier", text(&info.tier.to_string())),
            ("Created", info.created.into()),
            ("Ends", info.ends.unwrap_or_default().into()),
            ("Adopted", info.adopted.into()),
            ("Pin", text(&info.pin.to_string())),
        ],
    )
}

fn object<const N: usize>(
    place: &Place,
    interface: &'static str,
    properties: [(&'static str, Variant<'static>); N],
) -> Object {
    Object {
        path: place.path(),
        interface,
        properties: properties.into_iter().collect(),
    }
}

fn key_path(key: &KeyInfo) -> ObjectPath<'static> {
    Place::Key(key.id).path()
}

fn device_path(name: &str) -> Variant<'static> {
    Place::Device(name.to_owned()).path().into()
}

fn text(text: &str) -> Variant<'static> {
    // A string on a bus holds no NUL.
    text.replace('\0', "\u{fffd}").into()
}

fn bytes(bytes: &Bytes) -> Variant<'static> {
    bytes.0.clone().into()
}

fn algorithm(algorithm: Algorithm) -> Variant<'static> {
    text(&algorithm.to_string())
}
