//! What apps ask.

use serde::{Deserialize, Serialize};

use super::{
    Aead, CallOptions, Claim, Claimed, Credential, DeviceState, Housekeeping, IdentityInfo, Kem,
    KeyId, KeyInfo, Looked, Outcome, Report, Settle, SignatureScheme, Tier,
};
use crate::secret::{Bytes, SecretBytes};

/// Makes an identity with a new signature key; answers the identity that is
/// there if it was made with the same credential and scheme before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateIdentity {
    /// The name, unique for the caller: 1 to 255 bytes, without control
    /// characters.
    pub name: String,
    /// The credential to pin.
    pub credential: Credential,
    /// The signature scheme of the cipher suites that it will use.
    pub scheme: SignatureScheme,
    /// Where and how the key is kept.
    pub placement: Placement,
}

/// Where and how a key is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The device's name; `None`: the configuration's default device.
    pub device: Option<String>,
    /// The tier, and no other. `None`: the one that is configured for the device's
    /// HPKE keys, else the highest that it has for this algorithm.
    pub tier: Option<Tier>,
}

/// Signs content that OpenMLS gives a signer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sign {
    /// The signature key.
    pub key: KeyId,
    /// A serialised SignContent (RFC 9420, 5.1.2), not hashed: at most
    /// [`MAX_CONTENT`](crate::limits::MAX_CONTENT) bytes.
    pub content: SecretBytes,
}

/// Makes an HPKE key pair from the daemon's own randomness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerateHpke {
    /// The KEM.
    pub kem: Kem,
    /// Where and how the key is kept.
    pub placement: Placement,
}

/// A new HPKE key pair. It is on disk before this is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratedHpke {
    /// The private key's name.
    pub key: KeyId,
    /// The public key, as [`Kem`] says.
    pub public_key: Bytes,
}

/// Opens an HPKE ciphertext in base mode, single-shot (RFC 9180, 6.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The HPKE key.
    pub key: KeyId,
    /// The KEM, which must be the key's.
    pub kem: Kem,
    /// The AEAD.
    pub aead: Aead,
    /// The encapsulated key (RFC 9180, 4.1): 65 bytes for P-256, 32 for X25519.
    pub enc: Bytes,
    /// A serialised EncryptContext (RFC 9420, 5.1.3).
    pub info: Bytes,
    /// The associated data; MLS leaves it empty.
    pub aad: Bytes,
    /// The ciphertext with its tag: at most
    /// [`MAX_CONTENT`](crate::limits::MAX_CONTENT) bytes.
    pub ciphertext: Bytes,
}

/// Lets the caller leave custody in one group: the next commit of this identity
/// in it may carry a leaf with a signature key and an encryption key of the
/// app's own. Refused unless the policy permits it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveCustody {
    /// The identity's name.
    pub identity: String,
    /// The group id.
    pub group: Bytes,
    /// The public half of the app's own signature key.
    pub signature_key: Bytes,
}

/// Is the service ready for this caller?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The daemon's version.
    pub daemon: String,
    /// Name and state of the device that new keys go to.
    pub default_device: (String, DeviceState),
    /// Why the registry takes no changes, if it does not.
    pub read_only: Option<String>,
}

/// What apps ask. Every request goes the one way: parse, policy, guard, device,
/// audit.
#[tarpc::service]
pub trait Custody {
    /// Is the service ready for this caller?
    async fn status(options: CallOptions) -> Outcome<ServiceStatus>;
    /// Makes an identity with a new signature key.
    async fn create_identity(
        options: CallOptions,
        request: CreateIdentity,
    ) -> Outcome<IdentityInfo>;
    /// The caller's identities.
    async fn identities(options: CallOptions) -> Outcome<Vec<IdentityInfo>>;
    /// Is the device of the identity's key ready, so that its use will wait for
    /// nobody? Fails with why it is not.
    async fn prepare(options: CallOptions, identity: String) -> Outcome<()>;
    /// Signs; answers the signature in the form of the key's
    /// [`SignatureScheme`].
    async fn sign(options: CallOptions, request: Sign) -> Outcome<Bytes>;
    /// Makes an HPKE key pair.
    async fn generate_hpke(options: CallOptions, request: GenerateHpke) -> Outcome<GeneratedHpke>;
    /// Opens an HPKE ciphertext; answers the plaintext.
    async fn open(options: CallOptions, request: Open) -> Outcome<SecretBytes>;
    /// Which of these public keys are in custody for the caller? In the order
    /// asked: at most [`MAX_LOOKUP`](crate::limits::MAX_LOOKUP).
    async fn look_up(
        options: CallOptions,
        public_keys: Vec<Bytes>,
    ) -> Outcome<Vec<Option<KeyInfo>>>;
    /// Lets the caller leave custody in one group.
    async fn leave_custody(options: CallOptions, request: LeaveCustody) -> Outcome<()>;
    /// Connects a storage to this connection. A storage that `ends` with its
    /// connection (in memory only) is forgotten when the connection closes.
    async fn attach(options: CallOptions, storage: String, ends: bool) -> Outcome<Housekeeping>;
    /// Announces which keys a record will hold.
    async fn claim(options: CallOptions, request: Claim) -> Outcome<Claimed>;
    /// Reports what became of records.
    async fn settle(options: CallOptions, request: Settle) -> Outcome<Housekeeping>;
    /// Reports events that decide which records live.
    async fn report(options: CallOptions, request: Report) -> Outcome<Housekeeping>;
    /// Answers a last look.
    async fn looked(options: CallOptions, request: Looked) -> Outcome<Housekeeping>;
}
