//! What administrators ask.

use serde::{Deserialize, Serialize};

use super::{
    Algorithm, Bytes, CallOptions, Credential, DeviceState, IdentityInfo, KeyId, KeyInfo, Outcome,
    Placement, SecretBytes, SignatureScheme, Tier,
};

/// Who owns a key: a user and an app of that user.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The user id.
    pub uid: u32,
    /// The configured app name.
    pub app: String,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.uid, self.app)
    }
}

/// The daemon at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime: u64,
    /// Open connections, this one included.
    pub connections: u32,
    /// Keys in custody that are not destroyed.
    pub keys: u64,
    /// Why the registry takes no changes, if it does not.
    pub read_only: Option<String>,
    /// Number of the last audit record.
    pub audit_sequence: u64,
    /// The policies.
    pub policies: PoliciesInForce,
    /// The devices.
    pub devices: Vec<DeviceInfo>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its configured name.
    pub name: String,
    /// Its kind, such as `software`.
    pub kind: String,
    /// What it can do just now.
    pub state: DeviceState,
    /// What `state` needs said: why it failed, how to unlock it.
    pub detail: Option<String>,
    /// What it says of itself: who made it, its serial number. As last seen.
    pub facts: Vec<Fact>,
    /// What it has only so many of.
    pub counts: Vec<Count>,
    /// What it can make, and how that is kept.
    pub offers: Vec<Offer>,
    /// Why it does not make keys of an algorithm, or keeps them no better.
    pub remarks: Vec<(Algorithm, String)>,
    /// The tier of HPKE keys for which an app names none, if one is configured.
    pub hpke_tier: Option<Tier>,
    /// Is it where new keys go by default?
    pub default: bool,
}

/// Something that a device says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What: one word, such as `serial`, each once.
    pub name: String,
    /// What it is, for a person to read.
    pub value: String,
}

/// How many a device has of something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Of what: one word, such as `sessions`, each once.
    pub name: String,
    /// In use just now; `None`: nobody has counted them.
    pub used: Option<u32>,
    /// The most that were there at once since the daemon started, if that is kept.
    pub peak: Option<u32>,
    /// The most that may be.
    pub most: u32,
}

/// A kind of keys that a device makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// What they are for.
    pub algorithm: Algorithm,
    /// How they are kept.
    pub tier: Tier,
    /// The same in the device's own words, for a person to read.
    pub how: String,
}

/// A key with its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedKey {
    /// Who owns it.
    pub owner: Owner,
    /// The key.
    pub key: KeyInfo,
    /// The identity of a signature key.
    pub identity: Option<String>,
    /// How many records claim it.
    pub claims: u32,
}

/// An identity with its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedIdentity {
    /// Who owns it.
    pub owner: Owner,
    /// The identity.
    pub identity: IdentityInfo,
}

/// A storage that holds claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageInfo {
    /// Who owns it.
    pub owner: Owner,
    /// Its name.
    pub name: String,
    /// Is it connected?
    pub attached: bool,
    /// How many records it has that name keys.
    pub records: u32,
    /// How many keys they name.
    pub keys: u32,
    /// When it was last connected, in seconds since 1970.
    pub last_attached: u64,
}

/// A page of keys: they may be many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyQuery {
    /// The last key of the page before; `None`: from the start.
    pub after: Option<KeyId>,
    /// Show destroyed keys, too?
    pub destroyed: bool,
}

/// What a portion of a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    /// Keys destroyed.
    pub destroyed: u64,
    /// Keys that are due and wait for the last look of their storage; known when
    /// there is no more to be done.
    pub waiting: u64,
    /// Generations of destroyed keys that their device has not let go of yet,
    /// since it is away or failed: it is asked again when it is back. Known when
    /// there is no more to be done.
    pub stuck: u64,
    /// Is there more to be done? Then it is to be asked for again: no portion takes
    /// much longer than a second, unless a device does.
    pub more: bool,
}

/// Gives an identity a new signature key of the same scheme, for the same
/// credential. The one before retires: it signs until its grace is over, since
/// each group knows it until a commit brings the new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateIdentity {
    /// Who owns the identity.
    pub owner: Owner,
    /// Its name.
    pub name: String,
    /// Where and how the new key is kept. No device: the old key's. No tier: no
    /// lower one than the old key's.
    pub placement: Placement,
    /// For how many seconds the old key still signs: at most
    /// [`MAX_GRACE`](crate::limits::MAX_GRACE). `None`: as the configuration says.
    pub grace: Option<u64>,
    /// The new key's PIN: 1 to [`MAX_PIN`](crate::limits::MAX_PIN) bytes. `None`: it
    /// has none.
    pub pin: Option<SecretBytes>,
    /// May the new key have none where the old one has one?
    pub drop_pin: bool,
}

/// Has an identity's key sign a request for a certificate (PKCS#10, RFC 2986), which the
/// daemon builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignCsr {
    /// Who owns the identity.
    pub owner: Owner,
    /// Its name.
    pub name: String,
    /// The name that the certificate is to have, as the subject's common name and as
    /// alternative name: an rfc822Name if there is an `@` in it, else a URI if there is a
    /// `:` in it, else a dNSName. ASCII, 1 to 255 bytes.
    pub certified: String,
    /// For a new key, which is the identity's once its certificate is
    /// ([`UpdateCredential`]); `None`: for the one that it has.
    pub new_key: Option<NewSignatureKey>,
}

/// A signature key that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSignatureKey {
    /// Where and how it is kept. No device: the old key's. No tier: no lower one than the
    /// old key's.
    pub placement: Placement,
    /// Its PIN: 1 to [`MAX_PIN`](crate::limits::MAX_PIN) bytes. `None`: it has none.
    pub pin: Option<SecretBytes>,
    /// May it have none where the identity's present key has one?
    pub drop_pin: bool,
}

/// A request for a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedCsr {
    /// The key that it is for.
    pub key: KeyId,
    /// The CertificationRequest, in DER.
    pub request: Bytes,
}

/// Pins another credential to an identity. A certificate is for the identity's own key, or
/// for the new one of the last [`SignCsr`]: this is its key then, and the one before retires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateCredential {
    /// Who owns the identity.
    pub owner: Owner,
    /// Its name.
    pub name: String,
    /// The new credential.
    pub credential: Credential,
    /// For how many seconds a key that retires still signs: at most
    /// [`MAX_GRACE`](crate::limits::MAX_GRACE). `None`: as the configuration says.
    pub grace: Option<u64>,
}

/// Makes an identity for an owner, with a new signature key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateIdentityFor {
    /// Who is to own the identity.
    pub owner: Owner,
    /// The name, unique for the owner: 1 to 255 bytes, without control
    /// characters.
    pub name: String,
    /// The credential to pin.
    pub credential: Credential,
    /// What the key signs.
    pub scheme: SignatureScheme,
    /// Where and how the key is kept.
    pub placement: Placement,
    /// The key's PIN: 1 to [`MAX_PIN`](crate::limits::MAX_PIN) bytes. `None`: it has
    /// none. A device that knows no PINs of single keys refuses one.
    pub pin: Option<SecretBytes>,
}

/// Unlocks a signature key that has a PIN of its own. Never to be repeated: the
/// device counts wrong PINs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlockIdentity {
    /// Who owns the identity.
    pub owner: Owner,
    /// Its name.
    pub name: String,
    /// Which of its keys; `None`: the current one.
    pub key: Option<KeyId>,
    /// The PIN: 1 to [`MAX_PIN`](crate::limits::MAX_PIN) bytes.
    pub pin: SecretBytes,
    /// Even if one more wrong PIN would lock the device?
    pub last_try: bool,
}

/// How an [`UnlockIdentity`] went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlockedIdentity {
    /// The identity, as it is then.
    pub identity: IdentityInfo,
    /// Was the PIN tried, and right? A key that is unlocked already does not look at
    /// it.
    pub pin_tried: bool,
}

/// Locks all keys of an identity that have a PIN of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockIdentity {
    /// Who owns the identity.
    pub owner: Owner,
    /// Its name.
    pub name: String,
}

/// Makes an identity whose signature key is on a device already. The device's
/// own object is not changed, and not destroyed at the key's end here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptIdentity {
    /// Who is to own the identity.
    pub owner: Owner,
    /// The name, unique for the owner: 1 to 255 bytes, without control
    /// characters.
    pub name: String,
    /// The credential to pin.
    pub credential: Credential,
    /// What the key signs.
    pub scheme: SignatureScheme,
    /// The device's name.
    pub device: String,
    /// The key's name on the device: 1 to 255 bytes, without control characters.
    pub label: String,
}

/// Unlocks a device. Never to be repeated: the device counts wrong PINs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlock {
    /// The device's name.
    pub device: String,
    /// The PIN: 1 to [`MAX_PIN`](crate::limits::MAX_PIN) bytes.
    pub pin: SecretBytes,
    /// Even if one more wrong PIN would lock the device for good?
    pub last_try: bool,
}

/// How an [`Unlock`] went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlocked {
    /// The device, as it is then.
    pub device: DeviceInfo,
    /// Was the PIN tried, and right? A device that is unlocked already does not
    /// look at it.
    pub pin_tried: bool,
}

/// Locks a device: its PIN is forgotten, and asked for again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockDevice {
    /// The device's name.
    pub device: String,
}

/// Has the daemon read its policies again. If anything is wrong with them it is told, and
/// those of before stay in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadPolicies {}

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoliciesInForce {
    /// How many policies.
    pub count: u32,
    /// Which signed set the company's own are; `None`: none.
    pub signed: Option<SignedPolicies>,
    /// What somebody should see to, each for a person to read: a set that has expired, or
    /// one that is there and was refused.
    pub warnings: Vec<String>,
}

/// A set of policies that somebody signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPolicies {
    /// A newer set has a higher one.
    pub serial: u64,
    /// Who signed it: the key's comment and fingerprint.
    pub signer: String,
    /// When it is to be replaced by a newer one, in seconds since 1970, if it says so.
    pub expires: Option<i64>,
}

/// Asks why requests were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRefusals {
    /// The number of the record of any request; `None`: of the last ones that were refused.
    pub record: Option<u64>,
}

/// The last refusals, the newest first; or one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    /// At most 32.
    pub explained: Vec<Explained>,
}

/// A request, and what the policies say of it that are in force now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// When, in seconds since 1970.
    pub time: u64,
    /// The action.
    pub action: String,
    /// Whether it was refused, and by what.
    pub refused: Option<Refused>,
    /// Was that a rule which no policy can lift, so that policies have no say in it?
    pub by_rule: bool,
    /// All policies that refuse it now.
    pub policies: Vec<String>,
    /// The policy that permits it now, or would if those did not refuse it; `None`: none
    /// would.
    pub permitted_by: Option<String>,
    /// What policies knew of it: JSON; empty if they were not asked.
    pub facts: String,
}

/// By what a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The policy, or rule.
    pub policy: String,
    /// Its reason.
    pub reason: String,
}

/// What can be frozen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FreezeTarget {
    /// Everything.
    All,
    /// All that is a user's.
    User(u32),
    /// All that is an app's, of whichever user.
    App(String),
    /// An identity.
    Identity {
        /// Whose.
        owner: Owner,
        /// Its name.
        name: String,
    },
    /// All that is on a device.
    Device(String),
}

impl std::fmt::Display for FreezeTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("everything"),
            Self::User(uid) => write!(f, "user {uid}"),
            Self::App(name) => write!(f, "app {name:?}"),
            Self::Identity { owner, name } => write!(f, "identity {name:?} of {owner}"),
            Self::Device(name) => write!(f, "device {name:?}"),
        }
    }
}

/// Has nothing signed, opened or made for something until it is thawed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// What.
    pub target: FreezeTarget,
    /// Why, for whoever is refused: at most 500 bytes, may be empty.
    pub reason: String,
}

/// Thaws something that was frozen by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thaw {
    /// What.
    pub target: FreezeTarget,
}

/// Looks at what is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFrozen {}

/// What is frozen now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Each with its reason.
    pub frozen: Vec<Freeze>,
}

/// Has the guard forget what an identity signed in a group, so that it can sign there in
/// whatever epoch its app is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetGuard {
    /// Whose the identity is.
    pub owner: Owner,
    /// Its name.
    pub identity: String,
    /// The MLS group id.
    pub group: Bytes,
}

/// Says that the daemon's state was put back from a copy: the guard may have forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryRestored {}

/// What the guard has forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardReset {
    /// The newest epoch that was signed in.
    pub epoch: u64,
}

/// Gives what an owner has to another one, all of it or a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReassignKeys {
    /// Whose it is.
    pub from: Owner,
    /// Whose it is to be.
    pub to: Owner,
    /// Only these identities, each with its signature keys and what the guard remembers of
    /// it.
    pub identities: Vec<String>,
    /// Only these storages, each with the keys that its records claim. Without any of
    /// either: all that there is.
    pub storages: Vec<String>,
}

/// What has another owner now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reassigned {
    /// The names of the identities.
    pub identities: Vec<String>,
    /// The names of the storages.
    pub storages: Vec<String>,
    /// How many signature keys that are not destroyed.
    pub signature_keys: u32,
    /// How many HPKE keys that are not destroyed.
    pub hpke_keys: u32,
}

/// Makes the token that is there the device's own, in the place of the one that its
/// keys are on: these are missing then, and what waits there to be destroyed counts
/// as destroyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptDevice {
    /// The device's name.
    pub device: String,
}

/// A token that was made a device's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedDevice {
    /// The device, as it is then.
    pub device: DeviceInfo,
    /// The token's serial number.
    pub serial: String,
    /// The serial number of the one before; `None`: that was not known any more.
    pub before: Option<String>,
}

/// Asks for evidence that an identity's signature key is in hardware, for whoever
/// does not trust this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttestIdentity {
    /// Who owns the identity.
    pub owner: Owner,
    /// Its name.
    pub name: String,
    /// What the verifier chose, so that the evidence cannot be older:
    /// [`MIN_NONCE`](crate::limits::MIN_NONCE) to
    /// [`MAX_NONCE`](crate::limits::MAX_NONCE) bytes.
    pub nonce: Bytes,
}

/// Has a device answer a challenge that a verifier made for its evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerChallenge {
    /// The device's name.
    pub device: String,
    /// The challenge, a document of at most
    /// [`MAX_CHALLENGE`](crate::limits::MAX_CHALLENGE) bytes.
    pub challenge: Bytes,
}

/// Asks what the machine has measured, to which keys of a device are bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadMeasurements {
    /// The device's name.
    pub device: String,
}

/// Approves what the machine has measured now: keys that were made with other
/// measurements work with these, too, for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApproveMeasurements {
    /// The device's name.
    pub device: String,
    /// The recovery key's signature over [`Measurements::to_sign`]: ECDSA on P-256
    /// with SHA-256, an `ECDSA-Sig-Value` in DER.
    pub signature: Bytes,
}

/// What the machine has measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurements {
    /// The registers that new keys are bound to, by number, and what they hold: 32
    /// bytes each.
    pub registers: Vec<(u8, Bytes)>,
    /// What the recovery key has to sign to approve that.
    pub to_sign: Bytes,
    /// Is it approved?
    pub approved: bool,
}

/// What administrators ask: root or the daemon's own user only.
#[tarpc::service]
pub trait Admin {
    /// The daemon at a glance.
    async fn status(options: CallOptions) -> Outcome<DaemonStatus>;
    /// The devices.
    async fn devices(options: CallOptions) -> Outcome<Vec<DeviceInfo>>;
    /// All identities.
    async fn identities(options: CallOptions) -> Outcome<Vec<OwnedIdentity>>;
    /// Keys, ordered by id, at most 1000 a page.
    async fn keys(options: CallOptions, query: KeyQuery) -> Outcome<Vec<OwnedKey>>;
    /// The storages that hold claims.
    async fn storages(options: CallOptions) -> Outcome<Vec<StorageInfo>>;
    /// Drops all claims of a storage whose database is gone; answers how many
    /// records that were. Its keys then go the way of all unclaimed keys.
    async fn forget_storage(options: CallOptions, owner: Owner, name: String) -> Outcome<u32>;
    /// Destroys a portion of what is due now.
    async fn sweep(options: CallOptions) -> Outcome<Swept>;
    /// Gives an identity a new signature key; answers the identity with it.
    async fn rotate_identity(
        options: CallOptions,
        request: RotateIdentity,
    ) -> Outcome<IdentityInfo>;
    /// Makes an identity whose signature key is on a device already.
    async fn adopt_identity(options: CallOptions, request: AdoptIdentity) -> Outcome<IdentityInfo>;
    /// Unlocks a device; answers what it is then, and whether it took the PIN for
    /// that.
    async fn unlock(options: CallOptions, request: Unlock) -> Outcome<Unlocked>;
    /// Makes the token that is there the device's own.
    async fn accept_device(options: CallOptions, request: AcceptDevice) -> Outcome<AcceptedDevice>;
    /// Evidence that an identity's signature key is in hardware: a document of a
    /// format of its own, which this version does not know.
    async fn attest_identity(options: CallOptions, request: AttestIdentity) -> Outcome<Bytes>;
    /// Answers a challenge for such evidence; a document, too.
    async fn answer_challenge(options: CallOptions, request: AnswerChallenge) -> Outcome<Bytes>;
    /// Makes an identity for an owner, with a new signature key.
    async fn create_identity_for(
        options: CallOptions,
        request: CreateIdentityFor,
    ) -> Outcome<IdentityInfo>;
    /// Unlocks a signature key that has a PIN of its own; answers the identity as it
    /// is then, and whether the key took the PIN for that.
    async fn unlock_identity(
        options: CallOptions,
        request: UnlockIdentity,
    ) -> Outcome<UnlockedIdentity>;
    /// Locks the keys of an identity that have a PIN of their own.
    async fn lock_identity(options: CallOptions, request: LockIdentity) -> Outcome<IdentityInfo>;
    /// What the machine has measured, to which keys of a device are bound.
    async fn read_measurements(
        options: CallOptions,
        request: ReadMeasurements,
    ) -> Outcome<Measurements>;
    /// Approves that.
    async fn approve_measurements(
        options: CallOptions,
        request: ApproveMeasurements,
    ) -> Outcome<Measurements>;
    /// Locks a device; answers what it is then.
    async fn lock_device(options: CallOptions, request: LockDevice) -> Outcome<DeviceInfo>;
    /// Has the policies read again.
    async fn reload_policies(
        options: CallOptions,
        request: ReloadPolicies,
    ) -> Outcome<PoliciesInForce>;
    /// The last refusals by policies.
    async fn refusals(options: CallOptions, request: ReadRefusals) -> Outcome<Refusals>;
    /// Freezes something; answers what is frozen then.
    async fn freeze(options: CallOptions, request: Freeze) -> Outcome<Frozen>;
    /// Thaws something; answers what is frozen then.
    async fn thaw(options: CallOptions, request: Thaw) -> Outcome<Frozen>;
    /// What is frozen.
    async fn frozen(options: CallOptions, request: ReadFrozen) -> Outcome<Frozen>;
    /// Has the guard forget a group.
    async fn reset_guard(options: CallOptions, request: ResetGuard) -> Outcome<GuardReset>;
    /// Says that the daemon's state was put back from a copy.
    async fn registry_restored(options: CallOptions, request: RegistryRestored) -> Outcome<()>;
    /// Has an identity's key sign a request for a certificate.
    async fn sign_csr(options: CallOptions, request: SignCsr) -> Outcome<SignedCsr>;
    /// Pins another credential; answers the identity with it.
    async fn update_credential(
        options: CallOptions,
        request: UpdateCredential,
    ) -> Outcome<IdentityInfo>;
    /// Gives what an owner has to another one; answers what that was.
    async fn reassign_keys(options: CallOptions, request: ReassignKeys) -> Outcome<Reassigned>;
}
