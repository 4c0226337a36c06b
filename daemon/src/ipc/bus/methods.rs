//! What can be called, and where.

use std::collections::BTreeMap;

use mlskeyd_protocol::limits::MAX_CHALLENGE;
use mlskeyd_protocol::v1::{
    AnswerChallenge, Bytes, Credential, Freeze, IdentityInfo, KeyInfo, LockDevice, LockIdentity,
    Owner, ReloadPolicies, Thaw, UpdateCredential,
};
use zbus::DynamicType;
use zbus::message::Message;

use super::calls::Asked;
use super::errors::{NotDone, Wrong};
use super::objects::{self, CUSTODY, DEVICE, IDENTITY, Object, Properties};
use super::paths::Place;
use super::{introspect, sealed};
use crate::certificates;
use crate::custody::{Identities, LookAtDevices, OwnKey, OwnKeys, Status};
use crate::freeze_target;

pub(super) const PEER: &str = "org.freedesktop.DBus.Peer";
pub(super) const INTROSPECTABLE: &str = "org.freedesktop.DBus.Introspectable";
pub(super) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
pub(super) const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";

/// Most keys of one caller that are listed: a message on a bus is not to be longer.
const MAX_LISTED: usize = 10_000;

/// An object's interfaces, as the ObjectManager lists them.
type Interfaces<'a> = BTreeMap<&'static str, &'a Properties>;

/// Does what is asked, and answers.
pub(super) async fn serve(asked: &Asked<'_>) -> Result<Message, NotDone> {
    let path = asked.header.path().map(|path| path.as_str());
    let place = path.and_then(Place::at).ok_or_else(no_object)?;
    let interface = asked.header.interface().map(|it| it.as_str());
    let member = asked
        .header
        .member()
        .map(|it| it.as_str())
        .unwrap_or_default();
    // Without an interface any that has such a method is meant.
    let is = |wanted: &str| interface.is_none_or(|it| it == wanted);
    match (&place, member) {
        (_, "Ping") if is(PEER) => {
            asked.no_arguments()?;
            asked.reply(&())
        }
        (_, "GetMachineId") if is(PEER) => machine_id(asked),
        (_, "Introspect") if is(INTROSPECTABLE) => {
            asked.no_arguments()?;
            let known = children(asked, &place).await?;
            asked.reply(&introspect::describe(&place, &known))
        }
        (_, "Get") if is(PROPERTIES) => get(asked, &place).await,
        (_, "GetAll") if is(PROPERTIES) => get_all(asked, &place).await,
        (_, "Set") if is(PROPERTIES) => {
            Err(NotDone::call(Wrong::ReadOnly, "no property can be set"))
        }
        (Place::Root, "GetManagedObjects") if is(OBJECT_MANAGER) => managed(asked).await,
        (Place::Root, "OpenChannel") if is(CUSTODY) => {
            asked.no_arguments()?;
            let channel = zbus::OwnedFd::from(asked.channel().await?);
            asked.reply(&channel)
        }
        (Place::Root, "Subscribe") if is(CUSTODY) => {
            asked.no_arguments()?;
            subscribe(asked)?;
            asked.reply(&())
        }
        (Place::Root, "Unsubscribe") if is(CUSTODY) => {
            asked.no_arguments()?;
            asked.client.unsubscribe();
            asked.reply(&())
        }
        (Place::Root, "ReloadPolicies") if is(CUSTODY) => {
            asked.no_arguments()?;
            let now = asked.go(ReloadPolicies {}).await?;
            asked.reply(&(now.count, now.warnings))
        }
        (Place::Root, "Freeze") if is(CUSTODY) => {
            let (target, reason): (&str, &str) = asked.arguments("ss")?;
            let target = freeze_target::parse(target).map_err(wrong_arguments)?;
            let reason = reason.to_owned();
            asked.go(Freeze { target, reason }).await?;
            asked.reply(&())
        }
        (Place::Root, "Thaw") if is(CUSTODY) => {
            let target: &str = asked.arguments("s")?;
            let target = freeze_target::parse(target).map_err(wrong_arguments)?;
            asked.go(Thaw { target }).await?;
            asked.reply(&())
        }
        (Place::Device(device), "Lock") if is(DEVICE) => {
            asked.no_arguments()?;
            let device = device.clone();
            asked.go(LockDevice { device }).await?;
            asked.reply(&())
        }
        (Place::Device(device), "AnswerChallenge") if is(DEVICE) => {
            let challenge = asked.sealed(MAX_CHALLENGE)?;
            let request = AnswerChallenge {
                device: device.clone(),
                challenge: Bytes(challenge),
            };
            let answer = asked.go(request).await?;
            asked.reply(&seal(&answer)?)
        }
        (Place::Identity(owner, name), "Lock") if is(IDENTITY) => {
            asked.no_arguments()?;
            let (owner, name) = (owner.clone(), name.clone());
            asked.go(LockIdentity { owner, name }).await?;
            asked.reply(&())
        }
        (Place::Identity(owner, name), "UpdateCertificates") if is(IDENTITY) => {
            let pem = asked.sealed(certificates::MAX_PEM)?;
            let chain = certificates::chain(&pem).map_err(wrong_arguments)?;
            let request = UpdateCredential {
                owner: owner.clone(),
                name: name.clone(),
                credential: Credential::X509(chain),
                grace: None,
            };
            asked.go(request).await?;
            asked.reply(&())
        }
        _ => {
            let text = format!("there is no method {member} here; Introspect says what there is");
            Err(NotDone::call(Wrong::Method, text))
        }
    }
}

impl Asked<'_> {
    /// The arguments, which have to be of this signature.
    fn arguments<'a, T>(&'a self, signature: &str) -> Result<T, NotDone>
    where
        T: serde::Deserialize<'a> + zbus::Type,
    {
        self.check(signature)?;
        let read = self.body.deserialize_ignore_signature();
        read.map_err(|error| wrong_arguments(error.to_string()))
    }

    fn no_arguments(&self) -> Result<(), NotDone> {
        self.check("")
    }

    fn check(&self, signature: &str) -> Result<(), NotDone> {
        let given = self.body.signature().to_string_no_parens();
        if given == signature {
            return Ok(());
        }
        let text = format!("the arguments are to be of the types \"{signature}\", not \"{given}\"");
        Err(wrong_arguments(text))
    }

    /// A copy of what the only argument, a descriptor, has sealed.
    fn sealed(&self, most: usize) -> Result<Vec<u8>, NotDone> {
        let sealed: zbus::OwnedFd = self.arguments("h")?;
        let bytes = sealed::read(sealed.into(), most);
        bytes.map_err(|why| wrong_arguments(why.to_string()))
    }

    fn reply<B>(&self, body: &B) -> Result<Message, NotDone>
    where
        B: serde::Serialize + DynamicType,
    {
        Ok(Message::method_return(&self.header).build(body)?)
    }
}

/// The object at a place, if it is there and the caller's to see.
async fn object(asked: &Asked<'_>, place: &Place) -> Result<Object, NotDone> {
    match place {
        Place::Root => {
            let status = asked.go(Status).await?;
            let (device, _) = &status.default_device;
            Ok(objects::custody(device, status.read_only.as_deref()))
        }
        Place::Device(name) => {
            let devices = asked.go(LookAtDevices).await?;
            let device = devices.iter().find(|device| device.name == *name);
            device.map(objects::device).ok_or_else(no_object)
        }
        Place::Identity(owner, name) => {
            let identities = identities(asked, owner).await?;
            let identity = identities.iter().find(|identity| identity.name == *name);
            let identity = identity.map(|it| objects::identity(owner, it));
            identity.ok_or_else(no_object)
        }
        Place::Key(id) => {
            let key = asked.go(OwnKey(*id)).await?;
            Ok(objects::key(asked.owner(), &key))
        }
        Place::Above(_) | Place::Devices | Place::Identities | Place::Keys => Err(no_object()),
    }
}

/// The identities of this owner, if that is the caller.
async fn identities(asked: &Asked<'_>, owner: &Owner) -> Result<Vec<IdentityInfo>, NotDone> {
    if owner != asked.owner() {
        return Ok(Vec::new());
    }
    Ok(asked.go(Identities).await?)
}

/// All of the caller's keys.
async fn keys(asked: &Asked<'_>) -> Result<Vec<KeyInfo>, NotDone> {
    let user = asked.client.user.get().ok_or_else(NotDone::busy)?;
    let _turn = user.listing().await.map_err(|_| NotDone::busy())?;
    let mut all: Vec<KeyInfo> = Vec::new();
    loop {
        let page = asked.go(OwnKeys(all.last().map(|key| key.id))).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
        if all.len() > MAX_LISTED {
            let text = "the caller has more keys than a bus is asked to carry; look at single ones, or ask on a channel";
            return Err(NotDone::call(Wrong::Limits, text));
        }
    }
}

/// What is below a place, for who looks around.
async fn children(asked: &Asked<'_>, place: &Place) -> Result<Vec<Object>, NotDone> {
    Ok(match place {
        Place::Devices => devices(asked).await?,
        Place::Identities => {
            let own = asked.owner();
            let identities = identities(asked, own).await?;
            identities
                .iter()
                .map(|it| objects::identity(own, it))
                .collect()
        }
        Place::Keys => {
            let own = asked.owner();
            keys(asked)
                .await?
                .iter()
                .map(|it| objects::key(own, it))
                .collect()
        }
        _ => Vec::new(),
    })
}

async fn devices(asked: &Asked<'_>) -> Result<Vec<Object>, NotDone> {
    let devices = asked.go(LookAtDevices).await?;
    Ok(devices.iter().map(objects::device).collect())
}

/// All objects of the caller. Who asks for them is told what happens to them.
async fn managed(asked: &Asked<'_>) -> Result<Message, NotDone> {
    asked.no_arguments()?;
    // Before they are read: what happens meanwhile is told.
    subscribe(asked)?;
    let mut all = Vec::new();
    for place in [Place::Devices, Place::Identities, Place::Keys] {
        all.extend(children(asked, &place).await?);
    }
    let listed: BTreeMap<_, Interfaces<'_>> = all
        .iter()
        .map(|it| (&it.path, BTreeMap::from([(it.interface, &it.properties)])))
        .collect();
    asked.reply(&listed)
}

fn subscribe(asked: &Asked<'_>) -> Result<(), NotDone> {
    let uid = asked.owner().uid;
    if asked.calls.clients().subscribe(asked.client, uid) {
        return Ok(());
    }
    let text = "too many clients of this user are told what happens; end some, or unsubscribe them";
    Err(NotDone::call(Wrong::Limits, text))
}

async fn get(asked: &Asked<'_>, place: &Place) -> Result<Message, NotDone> {
    let (interface, name): (&str, &str) = asked.arguments("ss")?;
    let object = object(asked, place).await?;
    // An empty one means any (D-Bus Specification, Properties).
    if !interface.is_empty() && interface != object.interface {
        return Err(no_interface(interface));
    }
    match object.properties.get(name) {
        Some(value) => asked.reply(value),
        None => {
            let text = format!("there is no property {name} here");
            Err(NotDone::call(Wrong::Property, text))
        }
    }
}

async fn get_all(asked: &Asked<'_>, place: &Place) -> Result<Message, NotDone> {
    let interface: &str = asked.arguments("s")?;
    let object = object(asked, place).await?;
    if interface.is_empty() || interface == object.interface {
        return asked.reply(&object.properties);
    }
    // The interfaces of the bus itself have none.
    match introspect::is_standard(interface) {
        true => asked.reply(&Properties::new()),
        false => Err(no_interface(interface)),
    }
}

/// As D-Bus has it for all: the same as machine-id(5).
fn machine_id(asked: &Asked<'_>) -> Result<Message, NotDone> {
    asked.no_arguments()?;
    let id = std::fs::read_to_string("/etc/machine-id")
        .or_else(|_| std::fs::read_to_string("/var/lib/dbus/machine-id"));
    match id {
        Ok(id) => asked.reply(&id.trim_end()),
        Err(error) => {
            let text = format!("this machine has no id: {error}");
            Err(NotDone::call(Wrong::Gone, text))
        }
    }
}

fn seal(bytes: &Bytes) -> Result<zbus::OwnedFd, NotDone> {
    let sealed = sealed::write(bytes).map(zbus::OwnedFd::from);
    sealed.map_err(|error| NotDone::Bus(error.into()))
}

fn no_object() -> NotDone {
    NotDone::call(
        Wrong::Object,
        "there is no such object, or it is not the caller's",
    )
}

fn no_interface(name: &str) -> NotDone {
    NotDone::call(
        Wrong::Interface,
        format!("there is no interface {name} here"),
    )
}

fn wrong_arguments(why: String) -> NotDone {
    NotDone::call(Wrong::Arguments, why)
}
