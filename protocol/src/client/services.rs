//! The services' methods, blocking.

use std::sync::Arc;

use super::pool::{Pool, Repeat};
use super::{Attachment, Call, CallError, ClientConfig};
use crate::handshake::Service;
use crate::v1::*;

/// Asks the daemon for custody; cheap to clone, and shared by all threads.
///
/// Each call under way has a connection of its own, so threads do not wait for
/// each other. A connection that was lost is made anew, and a call whose reply
/// was lost with it is repeated once where that is harmless.
#[derive(Clone, Debug)]
pub struct Client {
    pool: Arc<Pool>,
}

/// Asks the daemon what administrators ask; root and the daemon's own user are
/// served.
#[derive(Clone, Debug)]
pub struct AdminClient {
    pool: Arc<Pool>,
}

/// Asks the daemon, for the agent of a login session, what waits for its person.
#[derive(Clone, Debug)]
pub struct AgentClient {
    pool: Arc<Pool>,
}

impl AgentClient {
    /// A client that connects with its first call.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self {
            pool: Arc::new(Pool::new(config, Service::Agent)),
        }
    }
}

impl Client {
    /// A client that connects with its first call.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self {
            pool: Arc::new(Pool::new(config, Service::Custody)),
        }
    }

    /// Grows whenever a connection had to be made again after one was lost, as
    /// after a restart of the daemon.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.pool.incarnation()
    }

    /// Connects a storage, by a connection that is kept for it until the
    /// [`Attachment`] is dropped. With `ends`, the storage is in memory only
    /// and is forgotten then.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn attach(
        &self,
        storage: impl Into<String>,
        ends: bool,
        call: &Call<'_>,
    ) -> Result<(Attachment, Housekeeping), CallError> {
        let options = self.pool.options(call);
        let request = CustodyRequest::Attach {
            options,
            storage: storage.into(),
            ends,
        };
        let (connection, reply) =
            self.pool
                .call_and_keep(options, &request, Repeat::Harmless, call)?;
        match reply {
            CustodyResponse::Attach(outcome) => Ok((Attachment::new(connection), outcome?)),
            _ => Err(other_reply("attach")),
        }
    }
}

impl AdminClient {
    /// A client that connects with its first call.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self {
            pool: Arc::new(Pool::new(config, Service::Admin)),
        }
    }

    /// Destroys all that is due now, portion by portion, each within the call's
    /// deadline. `so_far` is told what was done while there is more to do.
    ///
    /// # Errors
    /// See [`CallError`]. What was destroyed before stays so, and the rest is due
    /// still.
    pub fn sweep_all(
        &self,
        call: &Call<'_>,
        so_far: impl FnMut(&Swept),
    ) -> Result<Swept, CallError> {
        all_portions(|| self.sweep(call), so_far)
    }
}

fn all_portions(
    mut sweep: impl FnMut() -> Result<Swept, CallError>,
    mut so_far: impl FnMut(&Swept),
) -> Result<Swept, CallError> {
    let mut destroyed = 0_u64;
    loop {
        let portion = sweep()?;
        destroyed = destroyed.saturating_add(portion.destroyed);
        let swept = Swept {
            destroyed,
            ..portion
        };
        if !swept.more {
            return Ok(swept);
        }
        so_far(&swept);
    }
}

fn other_reply(method: &str) -> CallError {
    CallError::Protocol(format!(
        "mlskeyd answered {method} with another method's reply"
    ))
}

/// Blocking methods over the request and response types that tarpc generates
/// from the service.
macro_rules! methods {
    ($client:ident, $requests:ident, $responses:ident; $(
        $(#[$doc:meta])*
        $method:ident = $variant:ident($($argument:ident: $type:ty),*) -> $reply:ty, $repeat:ident;
    )*) => {
        impl $client { $(
            $(#[$doc])*
            ///
            /// # Errors
            /// See [`CallError`].
            pub fn $method(
                &self,
                $($argument: $type,)*
                call: &Call<'_>,
            ) -> Result<$reply, CallError> {
                let options = self.pool.options(call);
                let request = $requests::$variant { options, $($argument: $argument.into()),* };
                match self.pool.call(options, &request, Repeat::$repeat, call)? {
                    $responses::$variant(outcome) => Ok(outcome?),
                    _ => Err(other_reply(stringify!($method))),
                }
            }
        )* }
    };
}

methods! { Client, CustodyRequest, CustodyResponse;
    /// Is the service ready for this caller?
    status = Status() -> ServiceStatus, Harmless;
    /// Makes an identity with a new signature key, or answers the one that is
    /// there if it is the same.
    create_identity = CreateIdentity(request: CreateIdentity) -> IdentityInfo, Harmless;
    /// The caller's identities.
    identities = Identities() -> Vec<IdentityInfo>, Harmless;
    /// Says whether an identity could be used now: its device is ready.
    prepare = Prepare(identity: &str) -> (), Harmless;
    /// Signs; answers the signature in the form of the key's
    /// [`SignatureScheme`].
    sign = Sign(request: Sign) -> Bytes, Harmless;
    /// Makes an HPKE key pair. Not repeated when the reply is lost, since each
    /// makes a key.
    generate_hpke = GenerateHpke(request: GenerateHpke) -> GeneratedHpke, Never;
    /// Opens an HPKE ciphertext; answers the plaintext.
    open = Open(request: Open) -> SecretBytes, Harmless;
    /// Which of these public keys are in custody for the caller? In the order
    /// asked: at most [`MAX_LOOKUP`](crate::limits::MAX_LOOKUP).
    look_up = LookUp(public_keys: Vec<Bytes>) -> Vec<Option<KeyInfo>>, Harmless;
    /// Lets the caller leave custody in one group.
    leave_custody = LeaveCustody(request: LeaveCustody) -> (), Harmless;
    /// Announces which keys a record will hold.
    claim = Claim(request: Claim) -> Claimed, Harmless;
    /// Reports what became of records.
    settle = Settle(request: Settle) -> Housekeeping, Harmless;
    /// Reports events that decide which records live.
    report = Report(request: Report) -> Housekeeping, Harmless;
    /// Answers a last look.
    looked = Looked(request: Looked) -> Housekeeping, Harmless;
}

methods! { AdminClient, AdminRequest, AdminResponse;
    /// The daemon at a glance.
    status = Status() -> DaemonStatus, Harmless;
    /// The devices.
    devices = Devices() -> Vec<DeviceInfo>, Harmless;
    /// All identities.
    identities = Identities() -> Vec<OwnedIdentity>, Harmless;
    /// Keys, ordered by id, at most 1000 a page.
    keys = Keys(query: KeyQuery) -> Vec<OwnedKey>, Harmless;
    /// The storages that hold claims.
    storages = Storages() -> Vec<StorageInfo>, Harmless;
    /// Drops all claims of a storage whose database is gone; answers how many
    /// records that were.
    forget_storage = ForgetStorage(owner: Owner, name: &str) -> u32, Harmless;
    /// Destroys a portion of what is due now.
    sweep = Sweep() -> Swept, Harmless;
    /// Gives an identity a new signature key. Not repeated when the reply is
    /// lost, since each makes a key.
    rotate_identity = RotateIdentity(request: RotateIdentity) -> IdentityInfo, Never;
    /// Makes an identity whose signature key is on a device already. Not repeated
    /// when the reply is lost: the second one would meet the first.
    adopt_identity = AdoptIdentity(request: AdoptIdentity) -> IdentityInfo, Never;
    /// Unlocks a device. Never repeated: the device counts wrong PINs.
    unlock = Unlock(request: Unlock) -> Unlocked, Never;
    /// Makes the token that is there the device's own. Not repeated when the reply is
    /// lost: another one may be there by then.
    accept_device = AcceptDevice(request: AcceptDevice) -> AcceptedDevice, Never;
    /// Evidence that an identity's signature key is in hardware.
    attest_identity = AttestIdentity(request: AttestIdentity) -> Bytes, Harmless;
    /// Has a device answer a challenge for such evidence.
    answer_challenge = AnswerChallenge(request: AnswerChallenge) -> Bytes, Harmless;
    /// Makes an identity for an owner. Not repeated when the reply is lost: the second
    /// one would meet the first.
    create_identity_for = CreateIdentityFor(request: CreateIdentityFor) -> IdentityInfo, Never;
    /// Unlocks a signature key that has a PIN. Never repeated: the device counts wrong
    /// PINs.
    unlock_identity = UnlockIdentity(request: UnlockIdentity) -> UnlockedIdentity, Never;
    /// Locks the keys of an identity that have a PIN.
    lock_identity = LockIdentity(request: LockIdentity) -> IdentityInfo, Harmless;
    /// What the machine has measured, to which keys of a device are bound.
    read_measurements = ReadMeasurements(request: ReadMeasurements) -> Measurements, Harmless;
    /// Approves what the machine has measured now.
    approve_measurements = ApproveMeasurements(request: ApproveMeasurements) -> Measurements, Harmless;
    /// Locks a device.
    lock_device = LockDevice(request: LockDevice) -> DeviceInfo, Harmless;
    /// Has the policies read again.
    reload_policies = ReloadPolicies(request: ReloadPolicies) -> PoliciesInForce, Harmless;
    /// The last refusals by policies.
    refusals = Refusals(request: ReadRefusals) -> Refusals, Harmless;
    /// Freezes something; answers what is frozen then.
    freeze = Freeze(request: Freeze) -> Frozen, Harmless;
    /// Thaws something; answers what is frozen then.
    thaw = Thaw(request: Thaw) -> Frozen, Harmless;
    /// What is frozen.
    frozen = Frozen(request: ReadFrozen) -> Frozen, Harmless;
    /// Has the guard forget a group.
    reset_guard = ResetGuard(request: ResetGuard) -> GuardReset, Harmless;
    /// Says that the daemon's state was put back from a copy.
    registry_restored = RegistryRestored(request: RegistryRestored) -> (), Harmless;
    /// Has an identity's key sign a request for a certificate. Not repeated when the reply
    /// is lost: the second one would make another key.
    sign_csr = SignCsr(request: SignCsr) -> SignedCsr, Never;
    /// Pins another credential. Not repeated when the reply is lost: the identity has it then.
    update_credential = UpdateCredential(request: UpdateCredential) -> IdentityInfo, Never;
    /// Gives what an owner has to another one. Not repeated when the reply is lost: the first
    /// owner has nothing of it then.
    reassign_keys = ReassignKeys(request: ReassignKeys) -> Reassigned, Never;
}

methods! { AgentClient, AgentRequest, AgentResponse;
    /// What waits for the person, as soon as that is not what is known (0: nothing is).
    prompts = Prompts(known: u64) -> Prompts, Harmless;
    /// Gives a PIN. Never repeated: the device counts wrong ones.
    answer_prompt = AnswerPrompt(request: AnswerPrompt) -> (), Never;
    /// Says that the person does not want to.
    decline_prompt = DeclinePrompt(prompt: u64) -> (), Harmless;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_are_asked_for_until_there_is_no_more() {
        let portion = |destroyed, waiting, more| Swept {
            destroyed,
            waiting,
            stuck: 0,
            more,
        };
        let mut portions = vec![
            portion(2, 7, false),
            portion(0, 0, true),
            portion(3, 0, true),
        ];
        let mut told = Vec::new();
        let sweep = || portions.pop().ok_or(CallError::Timeout);
        let all = all_portions(sweep, |so_far| told.push(so_far.destroyed));
        assert_eq!(all.unwrap(), portion(5, 7, false));
        assert_eq!(told, [3, 3]);

        let mut portions = vec![portion(4, 0, true)];
        let sweep = || portions.pop().ok_or(CallError::Timeout);
        let failed = all_portions(sweep, |so_far| told.push(so_far.destroyed));
        assert!(matches!(failed, Err(CallError::Timeout)));
        assert_eq!(told, [3, 3, 4]);
    }
}
