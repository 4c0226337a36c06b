//! A while with the device's own card: the right card, the right application, and the
//! PIN where it is wanted.

use mlskeyd_protocol::v1::SecretBytes;

use super::YubiKeyDevice;
use super::card::{OnCard, Place};
use super::error::CardError;
use super::ledger::Ledger;
use super::look::Found;
use super::piv::{self, PIN_LENGTHS, Verified};
use crate::devices::pins::{Pins, Trial};
use crate::devices::{DeviceError, DeviceState};

/// A PIN that the card took, from when it was put in until it is pulled out.
pub(super) struct GivenPin {
    pub(super) pin: SecretBytes,
    pub(super) place: Place,
}

/// The device's own card, selected.
pub(super) struct Session<'a> {
    pub(super) card: &'a OnCard<'a>,
    pub(super) found: &'a Found,
    pub(super) ledger: &'a Ledger,
    pins: &'a Pins,
    pin: Option<&'a GivenPin>,
}

impl Session<'_> {
    /// Does something that wants the PIN.
    pub(super) fn with_pin<T>(
        &self,
        work: impl FnOnce(&OnCard<'_>) -> Result<T, CardError>,
    ) -> Result<T, CardError> {
        self.give_pin()?;
        work(self.card)
    }

    /// Gives the card the PIN that it took before, unless it has it.
    pub(super) fn give_pin(&self) -> Result<(), CardError> {
        let given = self.pin.ok_or_else(|| CardError::Other(waits(None)))?;
        let left = match piv::verified_already(self.card)? {
            Verified::Right => return Ok(()),
            Verified::Wrong(left) => left,
            Verified::Blocked => 0,
        };
        check_tries(left, false)?;
        self.try_it(|pins, serial| pins.try_this(serial, &given.pin))
            .map(|_| ())
    }

    /// Tries a PIN, unless that could be the last time. The PIN that was right.
    fn try_new(
        &self,
        last_try: bool,
        begin: impl for<'t> FnOnce(&'t Pins, &'t str) -> Result<Trial<'t>, DeviceError>,
    ) -> Result<SecretBytes, CardError> {
        let (_, left) = piv::pin(self.card)?.tries.ok_or(NO_TRIES)?;
        check_tries(left, last_try)?;
        self.try_it(begin)
    }

    fn try_it(
        &self,
        begin: impl for<'t> FnOnce(&'t Pins, &'t str) -> Result<Trial<'t>, DeviceError>,
    ) -> Result<SecretBytes, CardError> {
        let serial = self.found.serial.to_string();
        let trial = begin(self.pins, &serial)?;
        match piv::verify(self.card, &trial.pin)? {
            Verified::Right => trial.was_right()?,
            Verified::Wrong(tries) => {
                trial.was_wrong()?;
                let left = tries_left(tries);
                let wrong = format!("the PIN was wrong, and it has {left}: give another one");
                return Err(locked(wrong).into());
            }
            Verified::Blocked => {
                trial.was_wrong()?;
                return Err(blocked().into());
            }
        }
        Ok(SecretBytes::new(trial.pin.expose().to_vec()))
    }
}

/// A card that does not tell.
pub(super) const NO_TRIES: CardError = CardError::Malformed("no tries of its PIN");

/// May a PIN be tried that has so many tries? The last one is kept.
pub(super) fn check_tries(tries: u8, last_try: bool) -> Result<(), DeviceError> {
    match tries {
        0 => Err(blocked()),
        1 if !last_try => Err(locked(
            "the PIN has one try left: if you are sure of it, `mlskeyctl unlock --last-try`"
                .to_owned(),
        )),
        _ => Ok(()),
    }
}

/// Can this be a PIN at all? What cannot costs no try.
pub(super) fn check_pin(pin: &SecretBytes) -> Result<(), DeviceError> {
    if PIN_LENGTHS.contains(&pin.expose().len()) {
        return Ok(());
    }
    Err(locked(
        "the PIN of a YubiKey has 6 to 8 characters: it was not tried".to_owned(),
    ))
}

/// It waits for its PIN, which has so many tries.
pub(super) fn waits(tries: Option<u8>) -> DeviceError {
    let left = tries.map_or_else(String::new, |tries| {
        format!(", which has {}", tries_left(tries))
    });
    locked(format!("it waits for its PIN{left}"))
}

fn tries_left(tries: u8) -> String {
    match tries {
        1 => "1 try left".to_owned(),
        tries => format!("{tries} tries left"),
    }
}

fn blocked() -> DeviceError {
    locked("the PIN is blocked after too many wrong ones: unblock it with the PUK (`ykman piv access unblock-pin`)".to_owned())
}

fn locked(reason: String) -> DeviceError {
    DeviceError::Locked { reason }
}

impl YubiKeyDevice {
    /// Does something with the device's own card, which is looked for if need be.
    pub(super) fn at_card<T>(
        &mut self,
        work: impl FnOnce(&Session<'_>) -> Result<T, CardError>,
    ) -> Result<T, DeviceError> {
        self.find()?;
        let done = self.at_found(work);
        done.map_err(|error| self.failed(error))
    }

    /// The same, and once more if the card got lost meanwhile.
    pub(super) fn at_card_again<T>(
        &mut self,
        work: impl Fn(&Session<'_>) -> Result<T, CardError>,
    ) -> Result<T, DeviceError> {
        match self.at_card(&work) {
            Err(DeviceError::Lost { .. }) => self.at_card(&work),
            done => done,
        }
    }

    fn at_found<T>(
        &self,
        work: impl FnOnce(&Session<'_>) -> Result<T, CardError>,
    ) -> Result<T, CardError> {
        let (Some(cards), Some(found)) = (&self.cards, &self.found) else {
            return Err(CardError::NoCard);
        };
        cards.with(&found.place, |card| {
            let serial = match piv::serial(card)? {
                Some(serial) => serial,
                // Another program has selected another application.
                None => {
                    piv::select(card)?;
                    piv::serial(card)?.ok_or(CardError::WAS_RESET)?
                }
            };
            // It was exchanged in the last moment.
            if serial != found.serial {
                return Err(CardError::NoCard);
            }
            work(&Session {
                card,
                found,
                ledger: &self.ledger,
                pins: &self.pins,
                pin: self.pin.as_ref(),
            })
        })
    }

    /// Unlocks the card with a PIN that it has not taken yet.
    pub(super) fn unlock_with(
        &mut self,
        last_try: bool,
        begin: impl for<'t> FnOnce(&'t Pins, &'t str) -> Result<Trial<'t>, DeviceError>,
    ) -> Result<(), DeviceError> {
        let tried = self.at_card(|session| {
            let pin = session.try_new(last_try, begin)?;
            let place = session.found.place.clone();
            Ok(GivenPin { pin, place })
        });
        let tries = self.at_found(|session| piv::pin(session.card));
        if let (Ok(pin), Some(found)) = (tries, &mut self.found) {
            found.tries = pin.tries.unwrap_or(found.tries);
            self.show();
        }
        self.pin = Some(tried?);
        self.note(DeviceState::Ready, String::new());
        Ok(())
    }

    /// Notes what went wrong, as far as it says something of the device.
    pub(super) fn failed(&mut self, error: CardError) -> DeviceError {
        match &error {
            CardError::NoService(_) | CardError::NoCard | CardError::Gone(_) => {
                if matches!(error, CardError::NoService(_)) {
                    self.cards = None;
                }
                self.found = None;
                // It may be there all the same.
                self.is_doubtful = !matches!(error, CardError::NoCard);
                self.note(DeviceState::Absent, error.to_string());
            }
            CardError::Other(locked @ DeviceError::Locked { .. }) => {
                self.pin = None;
                self.note(DeviceState::Locked, locked.to_string());
            }
            _ => {}
        }
        error.into()
    }
}
