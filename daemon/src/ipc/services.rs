//! The services of wire version 1: each method hands its request to the one
//! path in [`custody`](crate::custody), and does nothing else.

use mlskeyd_protocol::frame::Budget;
use mlskeyd_protocol::server::Reporter;
use mlskeyd_protocol::v1::{
    AcceptDevice, AcceptedDevice, Admin, AdoptIdentity, Agent, AnswerChallenge, AnswerPrompt,
    ApproveMeasurements, AttestIdentity, Bytes, CallOptions, Claim, Claimed, CreateIdentity,
    CreateIdentityFor, Custody, DaemonStatus, DeviceInfo, Failure, FailureCode, Freeze, Frozen,
    GenerateHpke, GeneratedHpke, GuardReset, Housekeeping, IdentityInfo, KeyInfo, KeyQuery,
    LeaveCustody, LockDevice, LockIdentity, Looked, Measurements, Open, Outcome, OwnedIdentity,
    OwnedKey, Owner, PoliciesInForce, Prompts, ReadFrozen, ReadMeasurements, ReadRefusals,
    ReassignKeys, Reassigned, Refusals, RegistryRestored, ReloadPolicies, Report, ResetGuard,
    RotateIdentity, SecretBytes, ServiceStatus, Settle, Sign, SignCsr, SignedCsr, StorageInfo,
    Swept, Thaw, Unlock, UnlockIdentity, Unlocked, UnlockedIdentity, UpdateCredential,
};
use tarpc::context::Context;

use crate::custody::{
    AllDevices, AllIdentities, AllKeys, AllStorages, Asker, Attach, Call, DaemonAtAGlance,
    Declined, ForgetStorage, Identities, LookForPrompts, LookUp, Prepare, Request, Session, Status,
    Sweep,
};

/// From a connection to the one path.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) session: Session,
    pub(super) reporter: Reporter,
    /// Pays for the contents that the user's calls hold while they wait.
    pub(super) budget: Budget,
}

impl Way {
    async fn go<R: Request>(
        self,
        context: Context,
        options: CallOptions,
        request: R,
    ) -> Outcome<R::Reply> {
        let progress = self.reporter.for_call(options.token);
        let call = Call {
            options,
            deadline: context.deadline,
            progress,
            asker: Asker {
                owner: self.session.caller().owner.clone(),
                action: R::ACTION,
            },
        };
        self.session.serve(call, request).await
    }

    /// The same, for a request with so many bytes of content.
    async fn go_with_content<R: Request>(
        self,
        context: Context,
        options: CallOptions,
        request: R,
        content: usize,
    ) -> Outcome<R::Reply> {
        let Some(_held) = self.budget.take(content) else {
            let busy = Failure::new(
                FailureCode::Busy,
                "too much content of this user's calls waits already",
                "call again when some of them have ended",
            );
            return Err(self.session.named(busy, request.key()).await);
        };
        self.go(context, options, request).await
    }
}

/// What apps ask, on one connection.
#[derive(Clone)]
pub(super) struct CustodyDoor(pub(super) Way);

impl Custody for CustodyDoor {
    async fn status(self, context: Context, options: CallOptions) -> Outcome<ServiceStatus> {
        self.0.go(context, options, Status).await
    }

    async fn create_identity(
        self,
        context: Context,
        options: CallOptions,
        request: CreateIdentity,
    ) -> Outcome<IdentityInfo> {
        self.0.go(context, options, request).await
    }

    async fn identities(
        self,
        context: Context,
        options: CallOptions,
    ) -> Outcome<Vec<IdentityInfo>> {
        self.0.go(context, options, Identities).await
    }

    async fn prepare(
        self,
        context: Context,
        options: CallOptions,
        identity: String,
    ) -> Outcome<()> {
        self.0.go(context, options, Prepare(identity)).await
    }

    async fn sign(self, context: Context, options: CallOptions, request: Sign) -> Outcome<Bytes> {
        let content = request.content.expose().len();
        self.0
            .go_with_content(context, options, request, content)
            .await
    }

    async fn generate_hpke(
        self,
        context: Context,
        options: CallOptions,
        request: GenerateHpke,
    ) -> Outcome<GeneratedHpke> {
        self.0.go(context, options, request).await
    }

    async fn open(
        self,
        context: Context,
        options: CallOptions,
        request: Open,
    ) -> Outcome<SecretBytes> {
        let content = [&request.ciphertext, &request.info, &request.aad]
            .iter()
            .fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        self.0
            .go_with_content(context, options, request, content)
            .await
    }

    async fn look_up(
        self,
        context: Context,
        options: CallOptions,
        public_keys: Vec<Bytes>,
    ) -> Outcome<Vec<Option<KeyInfo>>> {
        self.0.go(context, options, LookUp(public_keys)).await
    }

    async fn leave_custody(
        self,
        context: Context,
        options: CallOptions,
        request: LeaveCustody,
    ) -> Outcome<()> {
        self.0.go(context, options, request).await
    }

    async fn attach(
        self,
        context: Context,
        options: CallOptions,
        storage: String,
        ends: bool,
    ) -> Outcome<Housekeeping> {
        self.0.go(context, options, Attach { storage, ends }).await
    }

    async fn claim(
        self,
        context: Context,
        options: CallOptions,
        request: Claim,
    ) -> Outcome<Claimed> {
        self.0.go(context, options, request).await
    }

    async fn settle(
        self,
        context: Context,
        options: CallOptions,
        request: Settle,
    ) -> Outcome<Housekeeping> {
        self.0.go(context, options, request).await
    }

    async fn report(
        self,
        context: Context,
        options: CallOptions,
        request: Report,
    ) -> Outcome<Housekeeping> {
        self.0.go(context, options, request).await
    }

    async fn looked(
        self,
        context: Context,
        options: CallOptions,
        request: Looked,
    ) -> Outcome<Housekeeping> {
        self.0.go(context, options, request).await
    }
}

/// What an agent asks, on one connection.
#[derive(Clone)]
pub(super) struct AgentDoor(pub(super) Way);

impl Agent for AgentDoor {
    async fn prompts(self, context: Context, options: CallOptions, known: u64) -> Outcome<Prompts> {
        self.0.go(context, options, LookForPrompts(known)).await
    }

    async fn answer_prompt(
        self,
        context: Context,
        options: CallOptions,
        request: AnswerPrompt,
    ) -> Outcome<()> {
        self.0.go(context, options, request).await
    }

    async fn decline_prompt(
        self,
        context: Context,
        options: CallOptions,
        prompt: u64,
    ) -> Outcome<()> {
        self.0.go(context, options, Declined(prompt)).await
    }
}

/// What administrators ask, on one connection.
#[derive(Clone)]
pub(super) struct AdminDoor(pub(super) Way);

impl Admin for AdminDoor {
    async fn status(self, context: Context, options: CallOptions) -> Outcome<DaemonStatus> {
        self.0.go(context, options, DaemonAtAGlance).await
    }

    async fn devices(self, context: Context, options: CallOptions) -> Outcome<Vec<DeviceInfo>> {
        self.0.go(context, options, AllDevices).await
    }

    async fn identities(
        self,
        context: Context,
        options: CallOptions,
    ) -> Outcome<Vec<OwnedIdentity>> {
        self.0.go(context, options, AllIdentities).await
    }

    async fn keys(
        self,
        context: Context,
        options: CallOptions,
        query: KeyQuery,
    ) -> Outcome<Vec<OwnedKey>> {
        self.0.go(context, options, AllKeys(query)).await
    }

    async fn storages(self, context: Context, options: CallOptions) -> Outcome<Vec<StorageInfo>> {
        self.0.go(context, options, AllStorages).await
    }

    async fn forget_storage(
        self,
        context: Context,
        options: CallOptions,
        owner: Owner,
        name: String,
    ) -> Outcome<u32> {
        self.0
            .go(context, options, ForgetStorage { owner, name })
            .await
    }

    async fn sweep(self, context: Context, options: CallOptions) -> Outcome<Swept> {
        self.0.go(context, options, Sweep).await
    }

    async fn rotate_identity(
        self,
        context: Context,
        options: CallOptions,
        request: RotateIdentity,
    ) -> Outcome<IdentityInfo> {
        self.0.go(context, options, request).await
    }

    async fn adopt_identity(
        self,
        context: Context,
        options: CallOptions,
        request: AdoptIdentity,
    ) -> Outcome<IdentityInfo> {
        self.0.go(context, options, request).await
    }

    async fn unlock(
        self,
        context: Context,
        options: CallOptions,
        request: Unlock,
    ) -> Outcome<Unlocked> {
        self.0.go(context, options, request).await
    }

    async fn accept_device(
        self,
        context: Context,
        options: CallOptions,
        request: AcceptDevice,
    ) -> Outcome<AcceptedDevice> {
        self.0.go(context, options, request).await
    }

    async fn attest_identity(
        self,
        context: Context,
        options: CallOptions,
        request: AttestIdentity,
    ) -> Outcome<Bytes> {
        self.0.go(context, options, request).await
    }

    async fn answer_challenge(
        self,
        context: Context,
        options: CallOptions,
        request: AnswerChallenge,
    ) -> Outcome<Bytes> {
        self.0.go(context, options, request).await
    }

    async fn create_identity_for(
        self,
        context: Context,
        options: CallOptions,
        request: CreateIdentityFor,
    ) -> Outcome<IdentityInfo> {
        self.0.go(context, options, request).await
    }

    async fn unlock_identity(
        self,
        context: Context,
        options: CallOptions,
        request: UnlockIdentity,
    ) -> Outcome<UnlockedIdentity> {
        self.0.go(context, options, request).await
    }

    async fn lock_identity(
        self,
        context: Context,
        options: CallOptions,
        request: LockIdentity,
    ) -> Outcome<IdentityInfo> {
        self.0.go(context, options, request).await
    }

    async fn read_measurements(
        self,
        context: Context,
        options: CallOptions,
        request: ReadMeasurements,
    ) -> Outcome<Measurements> {
        self.0.go(context, options, request).await
    }

    async fn reload_policies(
        self,
        context: Context,
        options: CallOptions,
        request: ReloadPolicies,
    ) -> Outcome<PoliciesInForce> {
        self.0.go(context, options, request).await
    }

    async fn refusals(
        self,
        context: Context,
        options: CallOptions,
        request: ReadRefusals,
    ) -> Outcome<Refusals> {
        self.0.go(context, options, request).await
    }

    async fn freeze(
        self,
        context: Context,
        options: CallOptions,
        request: Freeze,
    ) -> Outcome<Frozen> {
        self.0.go(context, options, request).await
    }

    async fn thaw(self, context: Context, options: CallOptions, request: Thaw) -> Outcome<Frozen> {
        self.0.go(context, options, request).await
    }

    async fn frozen(
        self,
        context: Context,
        options: CallOptions,
        request: ReadFrozen,
    ) -> Outcome<Frozen> {
        self.0.go(context, options, request).await
    }

    async fn reset_guard(
        self,
        context: Context,
        options: CallOptions,
        request: ResetGuard,
    ) -> Outcome<GuardReset> {
        self.0.go(context, options, request).await
    }

    async fn registry_restored(
        self,
        context: Context,
        options: CallOptions,
        request: RegistryRestored,
    ) -> Outcome<()> {
        self.0.go(context, options, request).await
    }

    async fn sign_csr(
        self,
        context: Context,
        options: CallOptions,
        request: SignCsr,
    ) -> Outcome<SignedCsr> {
        self.0.go(context, options, request).await
    }

    async fn update_credential(
        self,
        context: Context,
        options: CallOptions,
        request: UpdateCredential,
    ) -> Outcome<IdentityInfo> {
        self.0.go(context, options, request).await
    }

    async fn reassign_keys(
        self,
        context: Context,
        options: CallOptions,
        request: ReassignKeys,
    ) -> Outcome<Reassigned> {
        self.0.go(context, options, request).await
    }

    async fn lock_device(
        self,
        context: Context,
        options: CallOptions,
        request: LockDevice,
    ) -> Outcome<DeviceInfo> {
        self.0.go(context, options, request).await
    }

    async fn approve_measurements(
        self,
        context: Context,
        options: CallOptions,
        request: ApproveMeasurements,
    ) -> Outcome<Measurements> {
        self.0.go(context, options, request).await
    }
}
