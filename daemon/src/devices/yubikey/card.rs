//! PC/SC: where YubiKeys are, and a while alone with one of them.
//!
//! A connection is made for each job, shared with other programs, and nothing keeps others
//! from the card while nothing is done. What a job unlocked is locked again before others
//! come: a card that was given its PIN would else sign for any program.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

use pcsc::{
    Card, Context, Disposition, Protocols, ReaderState, Scope, ShareMode, State, Transaction,
};
use zeroize::Zeroizing;

use super::error::CardError;
use super::piv::{self, Wire};

/// How long another program may have the card for itself before that is an error.
const HELD: Duration = Duration::from_secs(5);

/// Longest answer to a short command: 256 bytes and the status. A bit more, since some
/// readers give more.
const ANSWER: usize = 264;

/// A connection to pcscd.
pub(super) struct Cards(Context);

/// Where a card is, from when it was put in until it is pulled out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    reader: CString,
    /// How many cards were put in and pulled out there before.
    event: u32,
}

impl Cards {
    /// Connects to pcscd.
    pub(super) fn connect() -> Result<Self, CardError> {
        let context = Context::establish(Scope::System);
        context.map(Self).map_err(CardError::NoService)
    }

    /// Where there are YubiKeys.
    pub(super) fn places(&self) -> Result<Vec<Place>, CardError> {
        let mut readers = states_of_yubikeys(&self.0)?;
        see(&self.0, &mut readers)?;
        let has_card = |reader: &&ReaderState| reader.event_state().contains(State::PRESENT);
        let place = |reader: &ReaderState| Place {
            reader: reader.name().to_owned(),
            event: reader.event_count(),
        };
        Ok(readers.iter().filter(has_card).map(place).collect())
    }

    /// Does something with the card that is there, while nobody else does.
    pub(super) fn with<T>(
        &self,
        place: &Place,
        work: impl FnOnce(&OnCard<'_>) -> Result<T, CardError>,
    ) -> Result<T, CardError> {
        let mut card = self.open(&place.reader)?;
        let mut left = Disposition::LeaveCard;
        let done = match begin(&mut card) {
            Ok(alone) => {
                let card = OnCard::new(alone);
                let done = work(&card);
                // One that does not answer is gone, with what was unlocked in it. To reset
                // it would hit the one that is there next: pcscd 1.9 takes a card for
                // away for good that comes back before it has looked (every 0.4 s).
                if matches!(
                    card.lock_again(),
                    Err(CardError::NoPiv | CardError::Malformed(_))
                ) {
                    left = Disposition::ResetCard;
                }
                done
            }
            Err(error) => Err(error.into()),
        };
        // What else it can say is that the card is gone.
        if let Err((card, _)) = card.disconnect(left) {
            // Its end would reset the card.
            std::mem::forget(card);
        }
        done
    }

    fn open(&self, reader: &CStr) -> Result<Card, CardError> {
        let until = Instant::now().checked_add(HELD);
        loop {
            match self.0.connect(reader, ShareMode::Shared, Protocols::ANY) {
                Err(pcsc::Error::SharingViolation) => self.wait_for(reader, until)?,
                card => return Ok(card?),
            }
        }
    }

    /// Waits until whoever has the card for himself has done something else.
    fn wait_for(&self, reader: &CStr, until: Option<Instant>) -> Result<(), CardError> {
        let left = until.and_then(|until| until.checked_duration_since(Instant::now()));
        let left = left.ok_or(CardError::Held)?;
        let mut states = [ReaderState::new(reader, State::UNAWARE)];
        see(&self.0, &mut states)?;
        let [state] = &mut states;
        if !state.event_state().contains(State::EXCLUSIVE) {
            return Ok(());
        }
        state.sync_current_state();
        match self.0.get_status_change(left, &mut states) {
            Err(pcsc::Error::Timeout) => Err(CardError::Held),
            seen => Ok(seen?),
        }
    }
}

/// The states of all readers that are YubiKeys, not looked at yet. Others' cards are
/// none of ours: they would be disturbed by being asked what they are.
fn states_of_yubikeys(context: &Context) -> Result<Vec<ReaderState>, CardError> {
    let readers = match context.list_readers_owned() {
        Err(pcsc::Error::NoReadersAvailable) => Vec::new(),
        readers => readers?,
    };
    let states = readers.into_iter().filter(|reader| is_yubikey(reader));
    let states = states.map(|reader| ReaderState::new(reader, State::UNAWARE));
    Ok(states.collect())
}

fn is_yubikey(reader: &CStr) -> bool {
    let name = reader.to_bytes().to_ascii_lowercase();
    name.windows(7).any(|window| window == b"yubikey")
}

/// Looks at readers, as they are now.
fn see(context: &Context, readers: &mut [ReaderState]) -> Result<(), CardError> {
    if readers.is_empty() {
        return Ok(());
    }
    match context.get_status_change(Duration::ZERO, readers) {
        Ok(()) | Err(pcsc::Error::Timeout) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits for its turn. That a card was reset meanwhile is told once.
fn begin(card: &mut Card) -> Result<Transaction<'_>, pcsc::Error> {
    match card.transaction2() {
        Ok(alone) => Ok(alone),
        Err((card, pcsc::Error::ResetCard)) => {
            card.reconnect(ShareMode::Shared, Protocols::ANY, Disposition::LeaveCard)?;
            card.transaction()
        }
        Err((_, error)) => Err(error),
    }
}

/// A card, while nobody else does anything with it.
pub(super) struct OnCard<'a> {
    alone: Transaction<'a>,
    /// Was it shown a PIN, or the management key?
    is_unlocked: Cell<bool>,
}

impl<'a> OnCard<'a> {
    const fn new(alone: Transaction<'a>) -> Self {
        Self {
            alone,
            is_unlocked: Cell::new(false),
        }
    }

    /// Has it forget what it was shown, which selecting its application does. What
    /// another program had unlocked before stays so, as long as nothing was shown.
    fn lock_again(&self) -> Result<(), CardError> {
        if self.is_unlocked.get() {
            piv::select(self)?;
        }
        Ok(())
    }
}

impl Wire for OnCard<'_> {
    fn transmit(&self, command: &[u8]) -> Result<Zeroizing<Vec<u8>>, CardError> {
        if piv::unlocks(command) {
            self.is_unlocked.set(true);
        }
        let mut buffer = Zeroizing::new([0; ANSWER]);
        let answer = self.alone.transmit(command, buffer.as_mut_slice())?;
        Ok(Zeroizing::new(answer.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yubikeys_are_known_by_their_readers() {
        assert!(is_yubikey(c"Yubico YubiKey OTP+FIDO+CCID 00 00"));
        assert!(is_yubikey(c"Yubico Yubikey 4 CCID 01 00"));
        assert!(!is_yubikey(c"Alcor Micro AU9560 00 00"));
        assert!(!is_yubikey(c""));
    }
}
