//! Devices: the places where private keys live.
//!
//! A device kind is one file or folder here. It implements [`Device`] and those
//! of the narrow traits ([`Sign`], [`Agree`], [`Generate`], [`Destroy`], and more for
//! PINs, evidence and set-up) that it has, and runs the conformance suite
//! (`conformance`) in its tests. What is the same for all
//! kinds stands outside of them: peers' public keys are checked before a device
//! sees them ([`PeerPublic`]), a DH result is checked when it comes back
//! ([`SharedSecret`]), and threads of its own serve the device behind a fair
//! queue ([`queue`]).
//!
//! **Generations.** Every key hangs under a generation of its device, and only
//! the destruction of the generation destroys its keys: a key's [`KeyBlob`] may
//! survive in a copy of a database, the generation does not. A signature key
//! has a generation of its own; HPKE keys share the current one, which custody
//! rotates.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::attest::{Claims, DeviceChallenge, Evidence};

mod blob;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod error;
mod generation_files;
mod own_token;
mod peer;
mod pin_note;
mod pins;
pub mod pkcs11;
mod private_key;
pub mod queue;
mod sealing;
pub mod software;
#[cfg(feature = "tpm2")]
pub mod tpm2;
#[cfg(feature = "yubikey")]
pub mod yubikey;

pub use error::DeviceError;
pub use mlskeyd_protocol::v1::{
    Aead, Algorithm, Count, DeviceState, Fact, Kem, KeyId, SecretBytes, SignatureScheme, Tier,
};
pub use peer::{PeerPublic, SharedSecret};

/// Every algorithm that the daemon knows.
const ALGORITHMS: [Algorithm; 6] = [
    Algorithm::Signature(SignatureScheme::Ed25519),
    Algorithm::Signature(SignatureScheme::EcdsaP256Sha256),
    Algorithm::Signature(SignatureScheme::EcdsaP384Sha384),
    Algorithm::Hpke(Kem::DhKemP256),
    Algorithm::Hpke(Kem::DhKemP384),
    Algorithm::Hpke(Kem::DhKemX25519),
];

/// One device. Its operations are reached through the narrow traits that it
/// has; `None` means that this kind of device cannot do such a thing at all.
pub trait Device: Send {
    /// What the device is and can do, as it was last seen. Touches no hardware.
    fn info(&self) -> Arc<DeviceInfo>;

    /// What can be done about its errors.
    fn advice(&self) -> Advice {
        DeviceError::advice
    }

    /// What tells how many it has of something, if it has only so many.
    fn meter(&self) -> Option<Arc<dyn Meter>> {
        None
    }

    /// Can it come back by itself when it is not ready?
    fn comes_back(&self) -> bool {
        false
    }

    /// Looks whether a device that is not ready is back. Its threads call this
    /// first of all, and then about once a second while it is not, if it can
    /// [come back](Self::comes_back); and when its [bell](Self::hang_bell) rings.
    fn probe(&mut self) {}

    /// Takes the bell that the device rings when something happened to it without a
    /// job: it is [looked at](Self::probe) then, whatever its state.
    fn hang_bell(&mut self, _: Bell) {}

    /// More hands of the same device, which work beside this one, each on a
    /// thread of its own. All tell the same [`info`](Self::info).
    fn more_hands(&self) -> Vec<Box<dyn Device>> {
        Vec::new()
    }

    /// Signs with signature keys.
    fn signer(&mut self) -> Option<&mut dyn Sign> {
        None
    }

    /// Computes DH results with HPKE keys.
    fn agreement(&mut self) -> Option<&mut dyn Agree> {
        None
    }

    /// Makes keys and generations.
    fn generator(&mut self) -> Option<&mut dyn Generate> {
        None
    }

    /// Destroys generations with all of their keys.
    fn destroyer(&mut self) -> Option<&mut dyn Destroy> {
        None
    }

    /// Takes a PIN from a person.
    fn unlocker(&mut self) -> Option<&mut dyn Unlock> {
        None
    }

    /// Gives keys a PIN of their own.
    fn key_pins(&mut self) -> Option<&mut dyn KeyPins> {
        None
    }

    /// Takes over signature keys that are there already.
    fn adopter(&mut self) -> Option<&mut dyn Adopt> {
        None
    }

    /// Has a person say yes.
    fn consenter(&mut self) -> Option<&mut dyn Consent> {
        None
    }

    /// Shows others that its keys are in it.
    fn attester(&mut self) -> Option<&mut dyn Attest> {
        None
    }

    /// Takes another token, or another TPM, for the device's own.
    fn accepter(&mut self) -> Option<&mut dyn Accept> {
        None
    }

    /// Takes approvals of the machine's measurements.
    fn approver(&mut self) -> Option<&mut dyn Approve> {
        None
    }

    /// Ends what the device has running outside of the daemon.
    fn stopper(&self) -> Option<Stopper> {
        None
    }
}

/// Has a device looked at, from any thread, soon; never waits for it.
pub type Bell = Arc<dyn Fn() + Send + Sync>;

/// What the caller, or whoever looks after a device of some kind, can do next after an
/// error of it.
pub type Advice = fn(&DeviceError) -> &'static str;

/// Ends in order what a device has running outside of the daemon, and by force
/// what has not ended some seconds later: then calls that hang in there return.
/// To be called once, when the device gets no more jobs, from any thread.
pub type Stopper = Box<dyn FnOnce() + Send>;

/// Whether a device may begin with nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// There may be nothing yet: make it. For a registry that knows no key of it.
    CreateIfAbsent,
    /// It must be there: without it every key of the registry is missing.
    MustExist,
}

/// Tells numbers that change with every job, to whoever asks: from memory, without
/// waiting for anything, and least of all for the device.
pub trait Meter: Send + Sync {
    /// How many there are of each, as far as it is known.
    fn counts(&self) -> Vec<Count>;
}

/// Signing. Repeating a lost call once is harmless.
pub trait Sign {
    /// Signs `content`: the whole `SignContent` of RFC 9420, 5.1.2, any length;
    /// the device hashes it first where the scheme says so.
    ///
    /// Returns what MLS transports: 64 bytes for Ed25519 (RFC 8032), a DER
    /// `ECDSA-Sig-Value` of at most 72 bytes for ECDSA P-256, 104 for P-384.
    ///
    /// # Errors
    /// [`DeviceError::WrongKeyType`] for an HPKE key,
    /// [`DeviceError::GenerationGone`] for a destroyed one,
    /// [`DeviceError::BadBlob`] for one that is not as the device made it,
    /// [`DeviceError::KeyLocked`] for one that waits for its PIN.
    fn sign(&mut self, key: &StoredKey, content: &[u8]) -> Result<Vec<u8>, DeviceError>;

    /// The longest content that is signed with this key, in bytes, if there is a bound:
    /// [`DeviceError::TooLong`] else.
    fn longest(&self, _: &StoredKey) -> Option<usize> {
        None
    }
}

/// Key agreement. Repeating a lost call once is harmless.
pub trait Agree {
    /// The DH result of `key` and `peer`, before any KDF (RFC 9180, 4.1: `DH`):
    /// the x-coordinate for P-256 and P-384, the output of X25519 (RFC 7748) else.
    ///
    /// # Errors
    /// [`DeviceError::WrongKeyType`] for a signature key or a peer of another
    /// KEM, [`DeviceError::BadPeerKey`] for a low-order peer, and as
    /// [`Sign::sign`].
    fn agree(&mut self, key: &StoredKey, peer: &PeerPublic) -> Result<SharedSecret, DeviceError>;
}

/// Making generations and keys. A lost call is never repeated: what came of it is
/// destroyed with its generation.
pub trait Generate {
    /// Makes a generation, durably. `id` has to be random and new.
    ///
    /// # Errors
    /// [`DeviceError::GenerationExists`], and what the device says.
    fn create_generation(&mut self, id: GenerationId) -> Result<(), DeviceError>;

    /// Makes a key from the device's (or, in tiers `sealed` and `software`, the
    /// daemon's) randomness. It exists durably when the caller has stored the
    /// result.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] if the device does not do `algorithm` in
    /// `tier`: it never falls to a lower one. [`DeviceError::GenerationGone`].
    fn generate(&mut self, request: NewKey) -> Result<StoredKey, DeviceError>;
}

/// Destroying.
pub trait Destroy {
    /// Destroys a generation and so all of its keys, durably. One that is gone
    /// already, or was never finished, is a success: repair at start calls this
    /// again for everything that its journal names.
    ///
    /// # Errors
    /// What the device says; the generation must then be taken for alive.
    fn destroy_generation(&mut self, id: GenerationId) -> Result<(), DeviceError>;

    /// Takes back a generation, durably, of none of whose keys anybody was ever told:
    /// nothing waits for them, and a copy of them is of no use. So this may cost less
    /// than destroying it. One that is gone, or was never made, is a success.
    ///
    /// # Errors
    /// As [`destroy_generation`](Self::destroy_generation).
    fn undo_generation(&mut self, id: GenerationId) -> Result<(), DeviceError> {
        self.destroy_generation(id)
    }

    /// Gives back what one key takes on the device, if it takes anything there by
    /// itself, before its generation ends. One that is gone is a success.
    ///
    /// # Errors
    /// What the device says; it is then given back with the generation.
    fn destroy_key(&mut self, _: &StoredKey) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Unlocking by a person, never repeated, since the device counts wrong PINs; and locking.
pub trait Unlock {
    /// Logs in with this PIN. A device that is unlocked already does not look at
    /// it. `last_try`: even if one more wrong PIN would lock the device for good.
    ///
    /// # Errors
    /// [`DeviceError::Locked`] with the reason, [`DeviceError::Absent`], and what
    /// the device says.
    fn unlock(&mut self, pin: &SecretBytes, last_try: bool) -> Result<Unlocking, DeviceError>;

    /// Locks the device, also for the configured PIN, until a person gives one, or the
    /// daemon starts again. One that is locked, or away, stays so.
    ///
    /// # Errors
    /// What the device says; its PIN is forgotten here all the same.
    fn lock(&mut self) -> Result<(), DeviceError>;
}

/// How an unlocking went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlocking {
    /// The device took the PIN.
    ByThePin,
    /// It was unlocked already, and has not looked at the PIN.
    WasUnlocked,
}

/// Signature keys that have a PIN of their own, beside those that have none. The
/// device counts wrong ones. Which keys are unlocked is told by
/// [`DeviceInfo::unlocked`]; none is when the daemon starts.
pub trait KeyPins {
    /// Makes a key as [`Generate::generate`] does, which is used only once it was
    /// unlocked with this PIN. It is locked at first.
    ///
    /// # Errors
    /// [`DeviceError::WrongKeyType`] for an HPKE key; and as [`Generate::generate`].
    fn generate_with_pin(
        &mut self,
        request: NewKey,
        pin: &SecretBytes,
    ) -> Result<StoredKey, DeviceError>;

    /// Unlocks a key, from now on and until it is locked. Never repeated. One that is
    /// unlocked already does not look at the PIN. `last_try`: even if one more wrong
    /// PIN would lock the device.
    ///
    /// # Errors
    /// [`DeviceError::KeyLocked`] with the reason, [`DeviceError::LockedOut`], and as
    /// [`Sign::sign`].
    fn unlock_key(
        &mut self,
        key: &StoredKey,
        pin: &SecretBytes,
        last_try: bool,
    ) -> Result<Unlocking, DeviceError>;

    /// Locks a key; one that is locked stays so.
    fn lock_key(&mut self, key: &StoredKey);
}

/// Taking over a signature key that somebody else made on the device.
pub trait Adopt {
    /// Finds the key, checks that it is suitable (private, never to be read, for
    /// signatures of this scheme) and signs with it once, to see that its public
    /// half belongs to it. The device's own objects are not changed, and nothing
    /// that destroys the generation destroys them: it is not the daemon's.
    ///
    /// # Errors
    /// [`DeviceError::NotAdopted`] with the reason; and what the device says.
    fn adopt(&mut self, request: &Adoption) -> Result<StoredKey, DeviceError>;
}

/// Taking another token, or TPM, for the device's own, one that was reset or replaced.
/// Nothing else makes a device work with it.
pub trait Accept {
    /// Which one is there. Tries no PIN on it.
    ///
    /// # Errors
    /// [`DeviceError::Absent`], and what the device says.
    fn look(&mut self) -> Result<Newcomer, DeviceError>;

    /// Makes it the device's own, durably, if it still is the one with this serial
    /// number that is there. Whether it is ready then is told by the state.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    fn accept(&mut self, serial: &str) -> Result<(), DeviceError>;
}

/// A token, or a TPM, that is there, whether or not it is the device's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newcomer {
    /// Its serial number.
    pub serial: String,
    /// The one of the device's own; `None`: that is not known.
    pub own: Option<String>,
    /// What such a thing is called.
    pub noun: &'static str,
    /// What becomes of the keys that are only on the one before.
    pub fate: &'static str,
    /// Is it the device's own, with all that the keys there need? Then there is
    /// nothing to accept.
    pub is_own: bool,
}

/// A person's consent to a request. Never repeated: the person would be asked again.
pub trait Consent {
    /// Has a person touch the device, and waits for that as long as the device does, some
    /// seconds. It signs this statement then, which is checked here: what is not touched
    /// gives no signature.
    ///
    /// # Errors
    /// [`DeviceError::NotTouched`], [`DeviceError::NoConsentKey`], and as
    /// [`Sign::sign`].
    fn consent(&mut self, statement: &[u8]) -> Result<(), DeviceError>;
}

/// Showing others that keys are in the device. Repeating a lost call is harmless.
pub trait Attest {
    /// What proves these claims of a key in tier `hardware`.
    ///
    /// # Errors
    /// [`DeviceError::NotAttested`] with the reason; and as [`Sign::sign`].
    fn attest(&mut self, key: &StoredKey, claims: &Claims) -> Result<Evidence, DeviceError>;

    /// Opens a challenge for such evidence; answers the secret in it. A device whose evidence needs none
    /// ([`Evidence::is_challenged`]) does without.
    ///
    /// # Errors
    /// [`DeviceError::ForeignChallenge`], [`DeviceError::NoChallenges`]; and what the device says.
    fn activate(
        &mut self,
        _challenge: &DeviceChallenge,
    ) -> Result<Zeroizing<[u8; 32]>, DeviceError> {
        Err(DeviceError::NoChallenges)
    }
}

/// Approvals of measurements of the machine, to which keys may be bound. Repeating a
/// lost call is harmless.
pub trait Approve {
    /// What the machine has measured, and what has to be signed to approve it.
    ///
    /// # Errors
    /// [`DeviceError::NotApproved`] if the device is not set up for it; and what the
    /// device says.
    fn measurements(&mut self) -> Result<Measurements, DeviceError>;

    /// Approves what the machine has measured, durably, by the recovery key's
    /// signature: an `ECDSA-Sig-Value` in DER.
    ///
    /// # Errors
    /// [`DeviceError::NotApproved`] with the reason; and what the device says.
    fn approve(&mut self, signature: &[u8]) -> Result<Measurements, DeviceError>;
}

/// What the machine has measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurements {
    /// Registers by number, and what they hold.
    pub registers: Vec<(u8, [u8; 32])>,
    /// What the recovery key has to sign.
    pub to_sign: Vec<u8>,
    /// Has it?
    pub approved: bool,
}

/// A signature key to be taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// Its name in custody: random and new.
    pub id: KeyId,
    /// Its name on the device (CKA_LABEL of a token's private key); there must be
    /// one such key.
    pub label: String,
    /// What it has to sign.
    pub scheme: SignatureScheme,
    /// The generation that it is listed under, of which the device knows nothing.
    pub generation: GenerationId,
}

/// What a device is and can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name in the configuration.
    pub name: String,
    /// The kind: `software`, and what else has a module here.
    pub kind: &'static str,
    /// What it can do just now.
    pub state: DeviceState,
    /// Why it is not ready; empty if it is.
    pub reason: String,
    /// What it says of itself: for people, so bounded and without control
    /// characters.
    pub facts: Vec<Fact>,
    /// Every algorithm that the daemon knows, each once.
    pub support: Vec<Support>,
    /// Those of the keys with a PIN of their own that are unlocked.
    pub unlocked: BTreeSet<KeyId>,
    /// The generations that it has; `None`: it does not tell. Keys under any other
    /// one are missing: they cannot be used, whatever the registry knows of them.
    pub generations: Option<Arc<BTreeSet<GenerationId>>>,
}

impl DeviceInfo {
    /// Is what these keys hang under known not to be there?
    #[must_use]
    pub fn lacks(&self, generation: GenerationId) -> bool {
        let known = self.generations.as_ref();
        known.is_some_and(|there| !there.contains(&generation))
    }

    /// The tiers in which the device keeps keys of `algorithm`; none if it does
    /// not do it at all.
    #[must_use]
    pub fn tiers(&self, algorithm: Algorithm) -> Vec<Tier> {
        let mut support = self.support.iter();
        let found = support.find(|support| support.algorithm == algorithm);
        found.map_or_else(Vec::new, Support::tiers)
    }
}

/// What a device does with one algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// How it keeps such keys: one way for each tier, the best first.
    pub ways: Vec<Way>,
    /// Why it does not keep them in the other tiers, for a person to read.
    pub why_no_other: String,
}

impl Support {
    /// The tiers in which the device keeps such keys, the best first.
    #[must_use]
    pub fn tiers(&self) -> Vec<Tier> {
        self.ways.iter().map(|way| way.tier).collect()
    }
}

/// A way to keep keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The tier that it is.
    pub tier: Tier,
    /// What the device does, for a person to read.
    pub how: String,
}

/// A key to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// Its name: random and new.
    pub id: KeyId,
    /// What it is for.
    pub algorithm: Algorithm,
    /// How it has to be kept.
    pub tier: Tier,
    /// The generation that it hangs under; has to exist.
    pub generation: GenerationId,
}

/// A key as the registry keeps it: all that its device needs to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    /// Its name.
    pub id: KeyId,
    /// What it is for.
    pub algorithm: Algorithm,
    /// How it is kept.
    pub tier: Tier,
    /// The generation that it hangs under.
    pub generation: GenerationId,
    /// Has it a PIN of its own? Only signature keys can.
    pub pin: bool,
    /// The public key as MLS writes it: 32 bytes for Ed25519 and X25519; SEC1,
    /// uncompressed, so 65 bytes for P-256 and 97 for P-384.
    pub public: Vec<u8>,
    /// The private key as its device wants it stored.
    pub blob: KeyBlob,
}

impl StoredKey {
    /// Everything that a blob is for, as a device of this kind authenticates it,
    /// so that a blob serves nothing else. Written to disks: it never changes.
    /// Each part has a fixed length, save the last.
    fn binding(&self, kind: &str) -> Vec<u8> {
        // The code points of TLS's SignatureScheme and of HPKE's KEMs.
        let (purpose, code) = match self.algorithm {
            Algorithm::Signature(SignatureScheme::Ed25519) => (b's', 0x0807_u16),
            Algorithm::Signature(SignatureScheme::EcdsaP256Sha256) => (b's', 0x0403),
            Algorithm::Signature(SignatureScheme::EcdsaP384Sha384) => (b's', 0x0503),
            Algorithm::Hpke(Kem::DhKemP256) => (b'h', 0x0010),
            Algorithm::Hpke(Kem::DhKemP384) => (b'h', 0x0011),
            Algorithm::Hpke(Kem::DhKemX25519) => (b'h', 0x0020),
        };
        // In capitals: with a PIN.
        let purpose = if self.pin {
            purpose.to_ascii_uppercase()
        } else {
            purpose
        };
        let tier = match self.tier {
            Tier::Software => 1,
            Tier::Sealed => 2,
            Tier::Hardware => 3,
        };
        let mut binding = format!("mlskeyd v1 {kind} key").into_bytes();
        binding.extend_from_slice(self.id.as_bytes());
        binding.extend_from_slice(self.generation.as_bytes());
        binding.extend_from_slice(&[purpose, tier]);
        binding.extend_from_slice(&code.to_be_bytes());
        binding.extend_from_slice(&self.public);
        binding
    }
}

/// What a device wants stored for a key: a wrapped private key, or where to
/// find it. Only the device knows the format; it authenticates it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyBlob(Zeroizing<Vec<u8>>);

impl KeyBlob {
    /// Wraps bytes that a device made.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, to be stored or to be read by the device.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for KeyBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyBlob({} bytes)", self.0.len())
    }
}

/// A public key that a device made goes out to others, who must not meet one that
/// is none.
fn check_public(algorithm: Algorithm, public: &[u8]) -> Result<(), DeviceError> {
    let is_one = match algorithm {
        Algorithm::Signature(SignatureScheme::Ed25519) => public
            .try_into()
            .is_ok_and(|bytes| ed25519_dalek::VerifyingKey::from_bytes(bytes).is_ok()),
        Algorithm::Signature(SignatureScheme::EcdsaP256Sha256)
        | Algorithm::Hpke(Kem::DhKemP256) => PeerPublic::parse(Kem::DhKemP256, public).is_ok(),
        Algorithm::Signature(SignatureScheme::EcdsaP384Sha384)
        | Algorithm::Hpke(Kem::DhKemP384) => PeerPublic::parse(Kem::DhKemP384, public).is_ok(),
        Algorithm::Hpke(Kem::DhKemX25519) => {
            let peer = PeerPublic::parse(Kem::DhKemX25519, public);
            peer.is_ok_and(|peer| peer.check_order().is_ok())
        }
    };
    if is_one {
        return Ok(());
    }
    Err(DeviceError::Failed {
        reason: "it made a public key that is none".to_owned(),
    })
}

/// The random name of a generation of one device: 16 bytes, never used again.
/// Shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GenerationId([u8; 16]);

impl GenerationId {
    /// Length in bytes.
    pub const LEN: usize = 16;

    /// Wraps the 16 random bytes of a generation's name.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes of the name.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenerationId({self})")
    }
}
