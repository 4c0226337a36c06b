//! Keys that the daemon makes in slots, and destroys there.
//!
//! A slot is used only if the card says that it is empty, or holds a filler of ours: that
//! is looked at and the key made in one transaction. What is in a slot that is not as
//! the ledger says was put there by somebody else, and is left alone.

use mlskeyd_protocol::v1::KeyId;

use super::YubiKeyDevice;
use super::algorithm::Curve;
use super::card::OnCard;
use super::error::CardError;
use super::ledger::{Content, Entry, Ledger};
use super::management;
use super::piv::{self, Metadata, PinPolicy, TouchPolicy, Version};
use super::session::Session;
use crate::config::{ManagedConfig, ManagementKeyConfig, Slot};
use crate::devices::{DeviceError, GenerationId, NewKey};
use crate::failpoint;

impl YubiKeyDevice {
    /// Makes a key in the next free slot: where, and its public key.
    pub(super) fn make_in_slot(
        &mut self,
        request: &NewKey,
    ) -> Result<(Slot, Vec<u8>), DeviceError> {
        let managed = self.managed()?;
        self.at_card(|session| {
            let ledger = session.ledger;
            authenticate(session, &managed.key)?;
            // What was begun and not finished: nobody was told of such a key.
            for entry in ledger.entries()? {
                if matches!(entry.content, Content::Reserved { .. }) {
                    destroy(session, &entry)?;
                }
            }
            let curve = Curve::of(request.algorithm);
            let slot = free_slot(session.card, ledger, &managed.slots)?;
            ledger.note(
                slot,
                Some(Content::Reserved {
                    generation: *request.generation.as_bytes(),
                    curve: curve.number(),
                }),
            )?;
            failpoint::hit("yubikey.slot-reserved");
            let public = piv::generate(session.card, slot, curve, TouchPolicy::Never)?;
            failpoint::hit("yubikey.key-made");
            let is_as_asked = piv::metadata(session.card, slot)?
                .is_some_and(|metadata| is_ours(&metadata, curve) && metadata.public == public);
            if !is_as_asked {
                return Err(CardError::Malformed("a key other than it was asked for"));
            }
            ledger.note(
                slot,
                Some(Content::Key {
                    generation: *request.generation.as_bytes(),
                    key: *request.id.as_bytes(),
                    public: public.clone(),
                }),
            )?;
            failpoint::hit("yubikey.key-noted");
            Ok((slot, public))
        })
    }

    /// Destroys the keys in slots of a generation.
    pub(super) fn destroy_in_slots(&mut self, generation: GenerationId) -> Result<(), DeviceError> {
        self.destroy_where(|entry| entry.content.generation() == Some(generation))
    }

    /// Destroys the key in a slot, if it is there.
    pub(super) fn destroy_in_slot(&mut self, slot: Slot, id: KeyId) -> Result<(), DeviceError> {
        self.destroy_where(|entry| {
            let is_it = |key: &[u8; 16]| key == id.as_bytes();
            entry.slot == slot && matches!(&entry.content, Content::Key { key, .. } if is_it(key))
        })
    }

    fn destroy_where(&mut self, is_one: impl Fn(&Entry) -> bool) -> Result<(), DeviceError> {
        let mut entries = self.ledger.entries()?;
        entries.retain(is_one);
        if entries.is_empty() {
            return Ok(());
        }
        let managed = self.managed()?;
        self.at_card(|session| {
            authenticate(session, &managed.key)?;
            entries.iter().try_for_each(|entry| destroy(session, entry))
        })
    }

    fn managed(&self) -> Result<ManagedConfig, DeviceError> {
        let managed = self.config.managed.clone();
        managed.ok_or_else(|| DeviceError::Failed {
            reason: "keys in slots are made and destroyed with the management key, which is not configured any more".to_owned(),
        })
    }
}

/// Shows the card that the daemon has the management key.
fn authenticate(session: &Session<'_>, key: &ManagementKeyConfig) -> Result<(), CardError> {
    match key {
        // It takes the PIN to read it.
        ManagementKeyConfig::OnTheCard => {
            session.with_pin(|card| management::authenticate(card, key))
        }
        ManagementKeyConfig::Kept(_) => management::authenticate(session.card, key),
    }
}

/// The first slot after the one that was used last that is free.
fn free_slot(card: &OnCard<'_>, ledger: &Ledger, slots: &[Slot]) -> Result<Slot, CardError> {
    let entries = ledger.entries()?;
    // In a ring: what was destroyed is used again as late as possible.
    let last = entries.last().map(|entry| entry.slot);
    let start = slots.iter().position(|slot| Some(*slot) == last);
    let start = start.map_or(0, |last| last.saturating_add(1));
    let in_order = slots.iter().cycle().skip(start).take(slots.len());
    for &slot in in_order {
        let content = entries.iter().find(|entry| entry.slot == slot);
        let is_free = match (
            content.map(|entry| &entry.content),
            piv::metadata(card, slot)?,
        ) {
            (None | Some(Content::Filler { .. }), None) => true,
            (Some(Content::Filler { public }), Some(metadata)) => metadata.public == *public,
            _ => false,
        };
        if is_free {
            return Ok(slot);
        }
    }
    Err(CardError::Other(DeviceError::Full {
        reason: format!("none of its {} slots for keys is free", slots.len()),
    }))
}

/// Destroys what is in a slot, if it is what the ledger says.
fn destroy(session: &Session<'_>, entry: &Entry) -> Result<(), CardError> {
    let Entry { slot, content } = entry;
    let (card, ledger) = (session.card, session.ledger);
    let there = piv::metadata(card, *slot)?;
    let is_to_end = match (content, &there) {
        (_, None) | (Content::Filler { .. }, _) => false,
        (Content::Key { public, .. }, Some(there)) => there.public == *public,
        // It was empty when it was reserved: what is there now was made by us, if it is
        // as we make them and nobody has put a certificate beside it.
        (Content::Reserved { curve, .. }, Some(there)) => {
            Curve::by_number(*curve).is_some_and(|curve| is_ours(there, curve))
                && !piv::has_certificate(card, *slot)?
        }
        // Either it is still there, or a filler is already.
        (Content::Ending { public, .. }, Some(there)) => {
            there.public == *public || is_ours(there, Curve::P256)
        }
    };
    if !is_to_end {
        return Ok(ledger.note(*slot, None)?);
    }
    if session.found.version >= Version::DELETE {
        piv::delete(card, *slot)?;
        failpoint::hit("yubikey.key-deleted");
        return Ok(ledger.note(*slot, None)?);
    }
    let (Some(generation), Some(there)) = (content.generation(), there) else {
        return Ok(());
    };
    ledger.note(
        *slot,
        Some(Content::Ending {
            generation: *generation.as_bytes(),
            public: there.public,
        }),
    )?;
    failpoint::hit("yubikey.key-ending");
    let public = piv::generate(card, *slot, Curve::P256, TouchPolicy::Never)?;
    failpoint::hit("yubikey.key-overwritten");
    Ok(ledger.note(*slot, Some(Content::Filler { public }))?)
}

/// Is it as the daemon makes keys?
fn is_ours(metadata: &Metadata, curve: Curve) -> bool {
    metadata.curve == Some(curve)
        && metadata.generated
        && metadata.pin == PinPolicy::Once
        && metadata.touch == TouchPolicy::Never
}
