//! Finding the device's own card, and what is in it.

use std::sync::Arc;

use super::YubiKeyDevice;
use super::algorithm::Curve;
use super::card::{Cards, OnCard, Place};
use super::error::CardError;
use super::offers;
use super::pinned::PinnedKey;
use super::piv::{self, PinPolicy, TouchPolicy, Version};
use super::session::{self, NO_TRIES};
use super::watch::Watch;
use crate::config::Slot;
use crate::devices::{DeviceError, DeviceInfo, DeviceState};

/// A card that is there.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) serial: u32,
    pub(super) version: Version,
    /// Tries that its PIN may be given wrongly in a row, and those left when it came.
    pub(super) tries: (u8, u8),
    /// Its key agreement key, or why that is of no use.
    pub(super) agreement: Result<p256::PublicKey, String>,
    /// Its consent key, or why that is of no use; `None`: none is configured.
    pub(super) consent: Option<Result<p256::PublicKey, String>>,
}

impl YubiKeyDevice {
    /// Sees that the card is known that is there.
    ///
    /// # Errors
    /// Why it is not; that is noted.
    pub(super) fn find(&mut self) -> Result<(), DeviceError> {
        let found = self.look();
        found.map_err(|error| {
            let is_about_the_card = matches!(
                error,
                CardError::NoService(_) | CardError::NoCard | CardError::Gone(_)
            );
            if is_about_the_card {
                return self.failed(error);
            }
            // What was wrong for a moment is looked at again.
            self.is_doubtful = !matches!(error, CardError::Other(_) | CardError::NoPiv);
            let error = DeviceError::from(error);
            self.note(DeviceState::Failed, format!("{error}; {}", error.advice()));
            error
        })
    }

    fn look(&mut self) -> Result<(), CardError> {
        self.watch()?;
        let cards = match self.cards.take() {
            Some(cards) => cards,
            None => Cards::connect()?,
        };
        let places = cards.places();
        let places = places.inspect_err(|_| self.found = None)?;
        let is_there = |place: &Place| places.contains(place);
        if self
            .pin
            .as_ref()
            .is_some_and(|given| !is_there(&given.place))
        {
            self.pin = None;
        }
        if !self
            .found
            .as_ref()
            .is_some_and(|found| is_there(&found.place))
        {
            self.found = None;
            let looked = self.look_at(&cards, &places);
            self.cards = Some(cards);
            self.found = Some(looked?);
            self.show();
            let tries = self.found.as_ref().map(|found| found.tries.1);
            self.note(DeviceState::Locked, session::waits(tries).to_string());
        } else {
            self.cards = Some(cards);
        }
        Ok(())
    }

    /// Is told of cards from now on.
    fn watch(&mut self) -> Result<(), CardError> {
        if self.is_watched() {
            return Ok(());
        }
        self.watch = None;
        if let Some(bell) = &self.bell {
            self.watch = Some(Watch::begin(bell.clone())?);
        }
        Ok(())
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::goes_on)
    }

    /// Which of the cards is the device's own, and what it is.
    fn look_at(&self, cards: &Cards, places: &[Place]) -> Result<Found, CardError> {
        let own = self.own.serial()?;
        let wanted = match (&own, self.config.serial) {
            (Some(own), _) => Some(own.clone()),
            (None, configured) => configured.map(|serial| serial.to_string()),
        };
        let mut others = Vec::new();
        let mut failure = CardError::NoCard;
        for place in places {
            let look = || {
                cards.with(place, |card| {
                    let (serial, version) = introduce(card)?;
                    match &wanted {
                        Some(wanted) if *wanted != serial.to_string() => Ok(Err(serial)),
                        // Of several any would do, and none is the right one.
                        None if places.len() > 1 => Ok(Err(serial)),
                        _ => self.examine(card, place, serial, version).map(Ok),
                    }
                })
            };
            let found = match look() {
                // Whoever had it before may have had it reset.
                Err(CardError::Gone(_)) => look(),
                found => found,
            };
            match found {
                Ok(Ok(found)) => return self.make_own(found, own.is_none()),
                Ok(Err(serial)) => others.push(serial.to_string()),
                // Of the others one may be the right one.
                Err(error) => failure = error,
            }
        }
        match (others.first(), wanted) {
            (None, _) => Err(failure),
            (Some(other), Some(wanted)) => Err(self.own.other(&wanted, other.clone()).into()),
            (Some(_), None) => Err(CardError::Other(DeviceError::Failed {
                reason: format!(
                    "several YubiKeys are there ({}): name one with `serial`, or leave one in",
                    others.join(", ")
                ),
            })),
        }
    }

    /// The configuration alone does not make another card the device's own.
    fn make_own(&self, found: Found, is_first: bool) -> Result<Found, CardError> {
        let serial = found.serial.to_string();
        if self
            .config
            .serial
            .is_some_and(|wanted| wanted != found.serial)
        {
            return Err(CardError::Other(DeviceError::Failed {
                reason: format!(
                    "the configuration names another YubiKey than {serial}, which the device's keys are on; take `serial` back, or put the other one in and `mlskeyctl devices accept` it"
                ),
            }));
        }
        if is_first {
            self.own.set(&serial)?;
        }
        Ok(found)
    }

    fn examine(
        &self,
        card: &OnCard<'_>,
        place: &Place,
        serial: u32,
        version: Version,
    ) -> Result<Found, CardError> {
        if version < Version::METADATA {
            return Err(CardError::Other(DeviceError::Failed {
                reason: format!(
                    "its firmware {version} does not tell what is in its slots: 5.3 is the first that does"
                ),
            }));
        }
        let pin = piv::pin(card)?;
        let factory = [
            (pin, "PIN"),
            (piv::puk(card)?, "PUK"),
            (piv::management_key(card)?, "management key"),
        ];
        let factory: Vec<_> = factory
            .into_iter()
            .filter_map(|(credential, name)| credential.is_factory.then_some(name))
            .collect();
        if !factory.is_empty() {
            return Err(CardError::Other(DeviceError::Failed {
                reason: format!(
                    "it has the {} that it left the factory with, which everybody knows: `mlskeyctl provision yubikey` gives it others",
                    factory.join(", ")
                ),
            }));
        }
        let agreement = self.config.agreement_slot;
        let agreement = self.pinned(card, agreement, TouchPolicy::Never, &self.agreement)?;
        let consent = self.config.consent_slot;
        let consent =
            consent.map(|slot| self.pinned(card, slot, TouchPolicy::Always, &self.consent));
        Ok(Found {
            place: place.clone(),
            serial,
            version,
            tries: pin.tries.ok_or(NO_TRIES)?,
            agreement,
            consent: consent.transpose()?,
        })
    }

    /// A key that the daemon relies on, if it is as it has to be.
    fn pinned(
        &self,
        card: &OnCard<'_>,
        slot: Slot,
        touch: TouchPolicy,
        noted: &PinnedKey,
    ) -> Result<Result<p256::PublicKey, String>, CardError> {
        let Some(metadata) = piv::metadata(card, slot)? else {
            return Ok(Err(format!(
                "slot {slot} has no key: `mlskeyctl provision yubikey` makes one"
            )));
        };
        let suits = metadata.curve == Some(Curve::P256)
            && metadata.pin == PinPolicy::Once
            && metadata.touch == touch
            && metadata.generated;
        if !suits {
            let touch = match touch {
                TouchPolicy::Never => "no touch",
                _ => "a touch each time",
            };
            return Ok(Err(format!(
                "the key in slot {slot} is no key of P-256, made in the card, that wants the PIN once and {touch}"
            )));
        }
        let public = p256::PublicKey::from_sec1_bytes(&metadata.public);
        let public = public.map_err(|_| CardError::Malformed("a public key that is none"))?;
        if noted.is_or_becomes(&metadata.public)? {
            return Ok(Ok(public));
        }
        Ok(Err(format!(
            "slot {slot} has another key than before: `mlskeyctl devices accept {}` takes it, and what was sealed under the old one is lost",
            self.info.name
        )))
    }

    /// Looks whether the card is there, and unlocks it with the configured PIN if there
    /// is one that may be tried.
    pub(super) fn look_and_unlock(&mut self) {
        self.is_doubtful = false;
        if self.find().is_err() {
            return;
        }
        let serial = self.found.as_ref().map(|found| found.serial.to_string());
        let serial = serial.unwrap_or_default();
        if self.pin.is_some() {
            self.note(DeviceState::Ready, String::new());
        } else if !self.is_locked && self.pins.has_another(&serial) {
            // What came of it is noted.
            let _ = self.unlock_with(false, |pins, serial| {
                let trial = pins.try_one(serial)?;
                trial.ok_or_else(|| session::waits(None))
            });
        }
    }

    /// Shows what is known of the card.
    pub(super) fn show(&mut self) {
        let managed = self.config.managed.as_ref();
        let (facts, support) = match &self.found {
            Some(found) => (
                offers::facts(found, &self.config),
                offers::support(found, managed.is_some()),
            ),
            None => return,
        };
        self.info = Arc::new(DeviceInfo {
            facts,
            support,
            ..DeviceInfo::clone(&self.info)
        });
    }

    pub(super) fn note(&mut self, state: DeviceState, reason: String) {
        if self.info.state == state && self.info.reason == reason {
            return;
        }
        let device = &self.info.name;
        if state == DeviceState::Ready {
            tracing::info!(device, "the YubiKey is ready");
        } else {
            tracing::warn!(device, %state, reason, "the YubiKey is not ready");
        }
        self.info = Arc::new(DeviceInfo {
            state,
            reason,
            ..DeviceInfo::clone(&self.info)
        });
    }
}

/// Who a card is. Selecting its application takes others' PINs away, so this is done
/// once, when it comes.
pub(super) fn introduce(card: &OnCard<'_>) -> Result<(u32, Version), CardError> {
    piv::select(card)?;
    let version = piv::version(card)?;
    if version < Version::SERIAL {
        return Err(CardError::Other(DeviceError::Failed {
            reason: format!("its firmware {version} is too old: 5.3 is the first that is used"),
        }));
    }
    let serial = piv::serial(card)?.ok_or(CardError::WAS_RESET)?;
    Ok((serial, version))
}
