//! What can go wrong with a card.

use super::apdu::Status;
use crate::devices::DeviceError;

/// Why a card did not do what it was told to.
#[derive(Debug, thiserror::Error)]
pub(super) enum CardError {
    /// There is nobody to ask for cards.
    #[error("the smart card service pcscd does not answer ({0})")]
    NoService(pcsc::Error),
    /// No card is there.
    #[error("no YubiKey is there")]
    NoCard,
    /// The card went away, or was reset, in the middle of something.
    #[error("the YubiKey was pulled out, or reset ({0})")]
    Gone(pcsc::Error),
    /// Another program has the card for itself.
    #[error("another program has the YubiKey for itself, and does not let go of it")]
    Held,
    /// The card does not know PIV.
    #[error("its PIV application is not there, or switched off")]
    NoPiv,
    /// It has answered what nobody asked for.
    #[error("the YubiKey gave {0}")]
    Malformed(&'static str),
    /// It refused a command.
    #[error("the YubiKey refused {what} (status {status})")]
    Refused {
        /// Which.
        what: &'static str,
        /// How.
        status: Status,
    },
    /// Anything that is not the card's own fault.
    #[error(transparent)]
    Other(#[from] DeviceError),
}

impl CardError {
    /// The card was reset, so that nothing is selected any more.
    pub(super) const WAS_RESET: Self = Self::Gone(pcsc::Error::ResetCard);

    /// A card refused this command.
    ///
    /// Its PIV application knows every command that it is sent. So one that does not has
    /// lost its selection: pcscd 1.9 resets a card for a program that has died without a
    /// look at who is in the middle of something, and tells nobody who came meanwhile.
    pub(super) const fn refused(what: &'static str, status: Status) -> Self {
        match status {
            Status::UNKNOWN => Self::WAS_RESET,
            _ => Self::Refused { what, status },
        }
    }
}

impl From<pcsc::Error> for CardError {
    fn from(error: pcsc::Error) -> Self {
        use pcsc::Error as E;

        match error {
            E::NoService | E::ServiceStopped | E::InvalidHandle | E::ServerTooBusy => {
                Self::NoService(error)
            }
            E::NoSmartcard | E::NoReadersAvailable | E::UnknownReader | E::ReaderUnavailable => {
                Self::NoCard
            }
            E::SharingViolation => Self::Held,
            _ => Self::Gone(error),
        }
    }
}

impl From<CardError> for DeviceError {
    fn from(error: CardError) -> Self {
        let reason = error.to_string();
        match error {
            CardError::Other(error) => error,
            CardError::NoService(_) | CardError::NoCard => Self::Absent { reason },
            CardError::Gone(_) => Self::Lost { reason },
            _ => Self::Failed { reason },
        }
    }
}
