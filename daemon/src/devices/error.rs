//! What can go wrong with a device.

use std::io;

use super::{Algorithm, GenerationId, Tier};
use crate::config::Pcrs;

/// Why a device did not do what it was asked for. The text says what happened,
/// [`DeviceError::advice`] what can be done; neither carries a secret.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The device is not there.
    #[error("the device is not there: {reason}")]
    Absent {
        /// How that shows.
        reason: String,
    },
    /// The device waits to be unlocked.
    #[error("the device is locked: {reason}")]
    Locked {
        /// What it waits for.
        reason: String,
    },
    /// The key waits for its PIN, which is its own.
    #[error("the key is locked: {reason}")]
    KeyLocked {
        /// What it waits for, or what was wrong with a PIN.
        reason: String,
    },
    /// The device takes no PIN or password for now, after too many wrong ones.
    #[error("the device is locked out: {reason}")]
    LockedOut {
        /// How long, and what goes on.
        reason: String,
    },
    /// The device is there and broken.
    #[error("the device failed: {reason}")]
    Failed {
        /// What is known about it.
        reason: String,
    },
    /// Nobody touched the device while it waited for that.
    #[error("nobody touched the device")]
    NotTouched,
    /// The device has no key for a person's consent.
    #[error("the device has no consent key: {reason}")]
    NoConsentKey {
        /// What is wrong with it, or missing.
        reason: String,
    },
    /// The content is too long for the device to sign it with this key.
    #[error("the content has {length} bytes, and with this key the device signs {most} at most")]
    TooLong {
        /// Its length.
        length: usize,
        /// The longest.
        most: usize,
    },
    /// What was asked of it got lost: it hung, or its program died.
    #[error("the device was lost while it was asked: {reason}")]
    Lost {
        /// How that shows.
        reason: String,
    },
    /// Another token is there than the device's own.
    #[error(
        "the token that is there has serial number {found:?}, and the device's own has {own:?}; \
         if this one is to take its place: `mlskeyctl devices accept {device}`"
    )]
    OtherToken {
        /// The device's name.
        device: String,
        /// The serial number of the one that it has worked with.
        own: String,
        /// The serial number of the one that is there.
        found: String,
    },
    /// Which token is the device's own was noted, and the note is of no use.
    #[error("it is not known which token is the device's own: {reason}")]
    OwnTokenUnknown {
        /// What is wrong with the note.
        reason: String,
    },
    /// The device takes no more keys.
    #[error("the device takes no more keys: {reason}")]
    Full {
        /// How many there are.
        reason: String,
    },
    /// Something that the registry relies on is not on the device. Nothing was
    /// deleted, and it may come back.
    #[error("{what} is missing on the device")]
    Missing {
        /// What is not there.
        what: String,
    },
    /// The key's generation is not there: it was destroyed, or never made.
    #[error("generation {0} does not exist, and so none of its keys")]
    GenerationGone(GenerationId),
    /// There is such a generation.
    #[error("generation {0} exists already")]
    GenerationExists(GenerationId),
    /// The key is for something else.
    #[error("a key for {found} cannot do that, it takes one for {needed}")]
    WrongKeyType {
        /// What the operation needs.
        needed: &'static str,
        /// What the key is for.
        found: Algorithm,
    },
    /// The peer's public key is not one.
    #[error("the peer's public key is refused: {why}")]
    BadPeerKey {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A key on the device is not one that the daemon takes over.
    #[error("the key {label:?} is not taken over: {reason}")]
    NotAdopted {
        /// Its name on the device.
        label: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The device has nothing that shows others that the key is in it.
    #[error("the device cannot show that the key is in it: {reason}")]
    NotAttested {
        /// What it lacks.
        reason: String,
    },
    /// The machine has measured something else than when the key was made, and nobody
    /// has approved that.
    #[error("the machine's measurements ({pcrs}) are not those that the keys were made with")]
    OtherMeasurements {
        /// The registers that hold them.
        pcrs: Pcrs,
    },
    /// Measurements are not approved.
    #[error("the measurements are not approved: {reason}")]
    NotApproved {
        /// What is wrong with the approval, or what the device lacks for one.
        reason: String,
        /// What can be done about it.
        advice: &'static str,
    },
    /// A challenge is not for this device, or not for evidence that it made.
    #[error("the challenge is for another device, or for evidence that this one did not make")]
    ForeignChallenge,
    /// What this kind of device says needs no challenge.
    #[error("this kind of device answers no challenges")]
    NoChallenges,
    /// The stored key is not as the device made it, or belongs to another key.
    #[error("the stored key does not authenticate")]
    BadBlob,
    /// The device does not do that, or not in that tier.
    #[error(
        "the device does not keep {algorithm} keys in tier {tier}, {}",
        possible_text(possible)
    )]
    Unsupported {
        /// What was asked for.
        algorithm: Algorithm,
        /// In which tier.
        tier: Tier,
        /// The tiers in which it is possible.
        possible: Vec<Tier>,
    },
    /// This kind of device has no such operation.
    #[error("this kind of device cannot {0}")]
    CannotDo(&'static str),
    /// The device's files cannot be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl DeviceError {
    /// What the caller, or whoever looks after the device, can do next.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Absent { .. } => "connect the device, then repeat the request",
            Self::Locked { .. } => "unlock the device, then repeat the request",
            Self::KeyLocked { .. } => {
                "unlock it with its PIN (`mlskeyctl identities unlock OWNER NAME`), then repeat the request"
            }
            Self::LockedOut { .. } => "repeat the request when that is over",
            Self::Failed { .. } => {
                "repeat the request; if it fails again, see `mlskeyctl devices` and the daemon's log"
            }
            Self::NotTouched => "repeat the request, and touch the device when it blinks",
            Self::NoConsentKey { .. } => {
                "have the administrator make one (`mlskeyctl provision yubikey --consent SLOT`) and set `consent_slot`"
            }
            Self::TooLong { .. } => {
                "use a cipher suite with ECDSA, or keep the Ed25519 key in tier sealed"
            }
            Self::Lost { .. } => {
                "repeat the request; if it is lost again, see what the module says in the daemon's log"
            }
            Self::Missing { .. } => {
                "put the device's data back; the keys are kept as missing until then"
            }
            Self::OtherToken { .. } => "else connect the device's own token",
            Self::OwnTokenUnknown { .. } => {
                "put the file back from a copy of the state directory; or, if the token that is there is the right one, `mlskeyctl devices accept` it"
            }
            Self::Full { .. } => {
                "use a cipher suite whose keys the device wraps, or tier sealed; or have the administrator set `hpke_tier` for the device, or allow more"
            }
            Self::GenerationGone(_) => {
                "put the device's data back if it was restored or reset; else the key is gone, and a new one is needed"
            }
            Self::GenerationExists(_) => "choose a new random name for the generation",
            Self::WrongKeyType { .. } => "use a key of the right purpose and algorithm",
            Self::BadPeerKey { .. } => "refuse the message, its sender is faulty or hostile",
            Self::NotAdopted { .. } => "name a key that is suitable, or create a new one",
            Self::NotAttested { .. } => "put that right, or use another device",
            Self::OtherMeasurements { .. } => {
                "if an update of the firmware changed them, have the administrator approve them: `mlskeyctl devices measurements`, then `mlskeyctl devices approve`; else find out what changed on the machine"
            }
            Self::NotApproved { advice, .. } => advice,
            Self::ForeignChallenge => {
                "have the verifier make a challenge for evidence of this device"
            }
            Self::NoChallenges => {
                "have the verifier judge the evidence as it is: `mlskeyctl attest verify`"
            }
            Self::BadBlob => "restore the registry from a copy that is intact, or create a new key",
            Self::Unsupported { .. } => {
                "choose another tier, another cipher suite or another device"
            }
            Self::CannotDo(_) => "use another device",
            Self::Io { .. } => {
                "check the file system's space and permissions, then repeat the request"
            }
        }
    }
}

fn possible_text(possible: &[Tier]) -> String {
    match possible {
        [] => "nor in any other".to_owned(),
        tiers => {
            let names: Vec<_> = tiers.iter().map(Tier::to_string).collect();
            format!("only in {}", names.join(", "))
        }
    }
}
