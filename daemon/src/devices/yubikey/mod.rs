//! A YubiKey: the PIV application of the card that a person carries, through pcscd.
//!
//! Signature keys are in slots: those that somebody provisioned are adopted, and with
//! the management key the daemon makes some itself (`slots`, `ledger`). HPKE keys are
//! sealed under a key agreement key of the card (`sealed`), or, if that is wanted, in
//! slots, too. A consent key, which is touched for each use, shows that a person is there
//! (`consent`). A card tells what is in its slots from firmware 5.3 on; older ones are
//! not used.
//!
//! Each job is alone with the card for its time, in one transaction of PC/SC, and holds
//! nothing in between (`card`). So it finds another program's application selected, or
//! its own PIN forgotten, and puts that right: the PIN that was right is given again,
//! to the same card only (`session`).
//!
//! | what | where |
//! |---|---|
//! | the device as others see it | `device` |
//! | finding the card, and what is in it | `look` |
//! | commands to the card | `piv`, `management`, `apdu`, `tlv` |
//! | PC/SC | `card`, `watch` |
//! | getting a card ready, which takes no daemon | `provision` |

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::blob::Blobs;
use super::generation_files::Generations;
use super::own_token::OwnToken;
use super::pins::Pins;
use super::{Bell, DeviceError, DeviceInfo, DeviceState, Start};
use crate::config::{Slot, YubiKeyConfig};
use crate::store_key::StoreKey;

mod algorithm;
mod apdu;
mod card;
mod consent;
mod device;
mod error;
mod ledger;
mod look;
mod management;
mod offers;
mod pinned;
mod piv;
pub mod provision;
mod sealed;
mod session;
mod slots;
mod tlv;
mod watch;

use self::card::Cards;
use self::ledger::Ledger;
use self::look::Found;
use self::pinned::PinnedKey;
use self::sealed::Sealed;
use self::session::GivenPin;
use self::watch::Watch;

/// The device that a YubiKey is.
pub struct YubiKeyDevice {
    config: YubiKeyConfig,
    own: OwnToken,
    agreement: PinnedKey,
    consent: PinnedKey,
    pins: Pins,
    blobs: Blobs<Whereabouts>,
    generations: Generations,
    ledger: Ledger,
    bell: Option<Bell>,
    watch: Option<Watch>,
    cards: Option<Cards>,
    /// The card that is there, as it was looked at when it came.
    found: Option<Found>,
    /// The PIN that it took.
    pin: Option<GivenPin>,
    /// Has somebody locked it, so that it waits for a person?
    is_locked: bool,
    /// Was something wrong that may be over, though no event says so?
    is_doubtful: bool,
    info: Arc<DeviceInfo>,
}

/// Where a private key is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Whereabouts {
    /// In a slot, where the daemon made it.
    Slot(Slot),
    /// In a slot, where somebody else made it.
    Adopted(Slot),
    /// Here, sealed under the card's key agreement key.
    Sealed(Sealed),
}

impl YubiKeyDevice {
    /// The device of this name, which is `absent` until it is
    /// [probed](super::Device::probe). Its files are in `directory`.
    ///
    /// # Errors
    /// If its files are not there or cannot be trusted, or no key can be derived from
    /// the store key. Nothing is deleted.
    pub fn new(
        name: &str,
        config: &YubiKeyConfig,
        directory: &Path,
        store_key: &StoreKey,
        start: Start,
    ) -> Result<Self, DeviceError> {
        let subkey = |purpose: &str| {
            let label = format!("mlskeyd v1 yubikey {purpose} {name}");
            let subkey = store_key.subkey(&label);
            subkey.map_err(|error| DeviceError::Failed {
                reason: error.to_string(),
            })
        };
        let pin_keys = (subkey("pin")?, subkey("given pin")?);
        let info = DeviceInfo {
            generations: None,
            name: name.to_owned(),
            kind: "yubikey",
            state: DeviceState::Absent,
            reason: "it has not been looked at yet".to_owned(),
            facts: Vec::new(),
            support: Vec::new(),
            unlocked: BTreeSet::new(),
        };
        Ok(Self {
            config: config.clone(),
            own: OwnToken::new(name, directory, subkey("card")?, start),
            agreement: PinnedKey::new(directory, "agreement", subkey("agreement")?),
            consent: PinnedKey::new(directory, "consent", subkey("consent")?),
            pins: Pins::new(config.pin.clone(), directory, pin_keys),
            blobs: Blobs::new("yubikey", subkey("blob")?),
            generations: Generations::open("yubikey", directory, store_key, start)?,
            ledger: Ledger::new(directory, subkey("slots")?),
            bell: None,
            watch: None,
            cards: None,
            found: None,
            pin: None,
            is_locked: false,
            is_doubtful: false,
            info: Arc::new(info),
        })
    }
}
