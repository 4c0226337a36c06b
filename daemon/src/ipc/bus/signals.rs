//! What happens, told to those who want to know: each hears of what it may see, and nobody
//! else hears it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mlskeyd_protocol::v1::{self, Owner, Prompt, PromptKind};
use tokio::sync::broadcast::error::RecvError;
use zbus::names::OwnedUniqueName;
use zbus::{DynamicType, ObjectPath, Variant};

use super::calls::Calls;
use super::methods::{OBJECT_MANAGER, PROPERTIES};
use super::objects::{self, CUSTODY, KEY, Object};
use super::paths::{Place, ROOT};
use crate::custody::Event;
use crate::devices::DeviceInfo;

/// What of a device may become another.
const CHANGING_OF_DEVICE: [&str; 3] = ["State", "Detail", "Offers"];

/// What of an identity may.
const CHANGING_OF_IDENTITY: [&str; 8] = [
    "CredentialType",
    "Credential",
    "Key",
    "Algorithm",
    "PublicKey",
    "Device",
    "Tier",
    "Retiring",
];

/// A device's next change: what it says of itself then, and how it is shown.
type NextChange = Pin<Box<dyn Future<Output = Option<(Arc<DeviceInfo>, v1::DeviceInfo)>> + Send>>;

/// Tells until the connection ends.
pub(super) async fn tell(calls: Arc<Calls>) {
    let custody = &calls.door().custody;
    let mut events = custody.events();
    let mut prompts = custody.prompt_changes();
    let mut told = Told::default();
    let mut devices: FuturesUnordered<NextChange> = FuturesUnordered::new();
    for device in custody.devices_told() {
        devices.push(next_change(&calls, device));
    }
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => calls.event(event).await,
                Err(RecvError::Lagged(_)) => calls.to_all(ROOT, CUSTODY, "Missed", &()).await,
                Err(RecvError::Closed) => return,
            },
            Ok(()) = prompts.changed() => calls.prompts(&mut told).await,
            Some(Some((now, shown))) = devices.next() => {
                devices.push(next_change(&calls, now));
                let device = objects::device(&shown);
                calls.changed(&device, &CHANGING_OF_DEVICE, |_| true).await;
            }
        }
    }
}

fn next_change(calls: &Arc<Calls>, known: Arc<DeviceInfo>) -> NextChange {
    let calls = Arc::clone(calls);
    Box::pin(async move { calls.door().custody.device_changes(&known).await })
}

/// Which prompts of whom were told.
#[derive(Default)]
struct Told(BTreeMap<u32, BTreeSet<u64>>);

impl Calls {
    async fn event(&self, event: Event) {
        let custody = &self.door().custody;
        match event {
            Event::KeyAdded(owner, id) => {
                if let Some(key) = custody.key_told(&owner, id).await {
                    self.added(&owner, &objects::key(&owner, &key)).await;
                }
            }
            Event::KeyRemoved(owner, id) => {
                self.removed(&owner, &Place::Key(id), KEY).await;
            }
            Event::IdentityAdded(owner, name) => {
                if let Some(identity) = custody.identity_told(&owner, &name).await {
                    let identity = objects::identity(&owner, &identity);
                    self.added(&owner, &identity).await;
                }
            }
            Event::IdentityChanged(owner, name) => {
                if let Some(identity) = custody.identity_told(&owner, &name).await {
                    let identity = objects::identity(&owner, &identity);
                    let own = |of: &Owner| *of == owner;
                    self.changed(&identity, &CHANGING_OF_IDENTITY, own).await;
                }
            }
            Event::Reassigned(from, to) => {
                let either = |of: &Owner| *of == from || *of == to;
                self.to_those(either, ROOT, CUSTODY, "Missed", &()).await;
            }
            Event::Refused {
                owner,
                action,
                policy,
                reason,
            } => {
                let body = (owner.app.as_str(), action.name(), policy, reason);
                let own = |of: &Owner| of.uid == owner.uid;
                self.to_those(own, ROOT, CUSTODY, "Refused", &body).await;
            }
            Event::PoliciesReloaded(count) => {
                self.to_all(ROOT, CUSTODY, "PoliciesReloaded", &count).await;
            }
        }
    }

    /// Tells what waits for persons that did not, and what does not any more.
    async fn prompts(&self, told: &mut Told) {
        let users: BTreeSet<u32> = self.subscribed(|_| true).map(|(_, of)| of.uid).collect();
        told.0.retain(|uid, _| users.contains(uid));
        for uid in users {
            let now = self.door().custody.prompts_of(uid);
            let known = told.0.entry(uid).or_default();
            let ids: BTreeSet<u64> = now.iter().map(|prompt| prompt.id).collect();
            let own = |of: &Owner| of.uid == uid;
            for ended in known.difference(&ids) {
                self.to_those(own, ROOT, CUSTODY, "WaitingEnded", ended)
                    .await;
            }
            for prompt in now.iter().filter(|prompt| !known.contains(&prompt.id)) {
                let Some(signal) = signal_of(prompt.kind) else {
                    continue;
                };
                let Prompt {
                    id, device, text, ..
                } = prompt;
                let device = Place::Device(device.clone()).path();
                let body = (*id, device, text.replace('\0', "\u{fffd}"));
                self.to_those(own, ROOT, CUSTODY, signal, &body).await;
            }
            *known = now
                .iter()
                .filter(|prompt| signal_of(prompt.kind).is_some())
                .map(|prompt| prompt.id)
                .collect();
        }
    }

    async fn added(&self, owner: &Owner, object: &Object) {
        let interfaces = BTreeMap::from([(object.interface, &object.properties)]);
        let body = (&object.path, interfaces);
        let own = |of: &Owner| of == owner;
        self.to_those(own, ROOT, OBJECT_MANAGER, "InterfacesAdded", &body)
            .await;
    }

    async fn removed(&self, owner: &Owner, place: &Place, interface: &str) {
        let body = (place.path(), vec![interface]);
        let own = |of: &Owner| of == owner;
        self.to_those(own, ROOT, OBJECT_MANAGER, "InterfacesRemoved", &body)
            .await;
    }

    async fn changed(&self, object: &Object, which: &[&str], to: impl Fn(&Owner) -> bool) {
        let changing = |(name, _): &(&&str, &Variant<'_>)| which.contains(*name);
        let changed: BTreeMap<_, _> = object.properties.iter().filter(changing).collect();
        let body = (object.interface, changed, Vec::<&str>::new());
        let path = object.path.as_str();
        self.to_those(to, path, PROPERTIES, "PropertiesChanged", &body)
            .await;
    }

    async fn to_all<B>(&self, path: &str, interface: &str, signal: &str, body: &B)
    where
        B: serde::Serialize + DynamicType,
    {
        self.to_those(|_| true, path, interface, signal, body).await;
    }

    /// Sends a signal to those subscribers.
    async fn to_those<B>(
        &self,
        whom: impl Fn(&Owner) -> bool,
        path: &str,
        interface: &str,
        signal: &str,
        body: &B,
    ) where
        B: serde::Serialize + DynamicType,
    {
        for (name, _) in self.subscribed(whom) {
            let path = ObjectPath::from_str_unchecked(path);
            let sent = self
                .bus()
                .emit_signal(Some(name), path, interface, signal, body);
            if let Err(error) = sent.await {
                tracing::debug!(%error, signal, "a signal was not sent on the bus");
            }
        }
    }

    fn subscribed(
        &self,
        whom: impl Fn(&Owner) -> bool,
    ) -> impl Iterator<Item = (OwnedUniqueName, Owner)> {
        let subscribers = self.clients().subscribers();
        subscribers
            .into_iter()
            .filter(move |(_, owner)| whom(owner))
    }
}

/// Refusals have a signal of their own, also without an agent.
const fn signal_of(kind: PromptKind) -> Option<&'static str> {
    match kind {
        PromptKind::Touch => Some("WaitingForTouch"),
        PromptKind::Pin => Some("WaitingForPin"),
        PromptKind::Refusal => None,
    }
}
