//! What happens in custody, for those who tell of it: a door that has subscribers.

use std::sync::Arc;

use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::{DeviceInfo, IdentityInfo, KeyId, KeyInfo, KeyState, Owner};
use tokio::sync::broadcast;

use super::Custody;
use super::admin::device_info;
use crate::devices;
use crate::store::{IdentityRecord, KeyRecord};

/// Most events that wait to be told; who is slower misses some, and hears that.
const MAX_WAITING: usize = 1024;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A key was made.
    KeyAdded(Owner, KeyId),
    /// A key was destroyed.
    KeyRemoved(Owner, KeyId),
    /// An identity was made.
    IdentityAdded(Owner, String),
    /// An identity has another key or credential.
    IdentityChanged(Owner, String),
    /// Of what the first owner had, all or a part is the second one's.
    Reassigned(Owner, Owner),
    /// A request was refused.
    Refused {
        /// Who asked.
        owner: Owner,
        /// For what.
        action: Action,
        /// The policy, or rule.
        policy: String,
        /// Its reason, which a user may read.
        reason: String,
    },
    /// Policies were read again, and so many are in force.
    PoliciesReloaded(u32),
}

/// Where events are told, and heard.
#[derive(Debug)]
pub(super) struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(MAX_WAITING))
    }
}

impl Events {
    /// Tells whoever listens.
    pub(super) fn tell(&self, event: Event) {
        // Nobody may listen.
        let _ = self.0.send(event);
    }
}

impl Custody {
    /// Tells of a key that was made.
    pub(super) fn tell_of_new_key(&self, key: &KeyRecord) {
        self.events.tell(Event::KeyAdded(key.owner.clone(), key.id));
    }

    /// Tells of an identity that was made, with its key.
    pub(super) fn tell_of_new_identity(&self, key: &KeyRecord, identity: &IdentityRecord) {
        self.tell_of_new_key(key);
        let (owner, name) = (identity.owner.clone(), identity.name.clone());
        self.events.tell(Event::IdentityAdded(owner, name));
    }

    /// Tells of an identity that has another key, or credential.
    pub(super) fn tell_of_changed_identity(&self, key: &KeyRecord, identity: &IdentityRecord) {
        self.tell_of_new_key(key);
        let (owner, name) = (identity.owner.clone(), identity.name.clone());
        self.events.tell(Event::IdentityChanged(owner, name));
    }

    /// What happens from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.0.subscribe()
    }

    /// An identity, for who tells of it; `None`: it is gone, or cannot be read.
    pub(crate) async fn identity_told(&self, owner: &Owner, name: &str) -> Option<IdentityInfo> {
        let record = self.registry.identity(owner, name).await.ok()??;
        let infos = self.identity_infos(vec![record]).await;
        infos.into_iter().next().map(|(_, info)| info)
    }

    /// A key, for who tells its owner of it; `None`: it is gone, or another's by now, or cannot
    /// be read.
    pub(crate) async fn key_told(&self, owner: &Owner, id: KeyId) -> Option<KeyInfo> {
        let key = self.registry.key(id).await.ok()??;
        if key.owner != *owner {
            return None;
        }
        Some(self.key_info(&key)).filter(|key| key.state != KeyState::Destroyed)
    }

    /// The devices, each with what it says of itself now.
    pub(crate) fn devices_told(&self) -> Vec<Arc<devices::DeviceInfo>> {
        self.devices.all_shown().map(|shown| shown.info).collect()
    }

    /// Waits until a device says something else of itself; that, and the device as anybody may
    /// see it.
    pub(crate) async fn device_changes(
        &self,
        known: &devices::DeviceInfo,
    ) -> Option<(Arc<devices::DeviceInfo>, DeviceInfo)> {
        let handle = self.devices.get(&known.name).ok()?;
        let now = handle.other_than(known).await;
        let shown = self.devices.shown(&known.name).ok()?;
        Some((now, device_info(shown)))
    }
}
