//! What a request does.

/// The enumeration, with all that is said of each of its members at one place.
macro_rules! actions {
    ($($(#[$doc:meta])* $action:ident,)*) => {
        /// What a request does: one per kind of request, and for signing and opening
        /// one per MLS structure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Action {
            $($(#[$doc])* $action,)*
        }

        impl Action {
            /// All actions.
            pub const ALL: &[Self] = &[$(Self::$action,)*];

            /// The name in policies and in the audit log. It never changes.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$action => stringify!($action),)*
                }
            }
        }
    };
}

actions! {
    /// Signs a FramedContent with application data (RFC 9420, 6).
    SignApplicationMessage,
    /// Signs a FramedContent with a commit (RFC 9420, 12.4).
    SignCommit,
    /// Signs an Add proposal, or a commit with one inline (RFC 9420, 12.1.1).
    SignProposalAdd,
    /// Signs an Update proposal (RFC 9420, 12.1.2).
    SignProposalUpdate,
    /// Signs a Remove proposal, or a commit with one inline (RFC 9420, 12.1.3).
    SignProposalRemove,
    /// Signs a PreSharedKey proposal, or a commit with one inline (RFC 9420,
    /// 12.1.4).
    SignProposalPreSharedKey,
    /// Signs a ReInit proposal, or a commit with one inline (RFC 9420, 12.1.5).
    SignProposalReInit,
    /// Signs a commit with an inline ExternalInit proposal (RFC 9420, 12.1.6).
    SignProposalExternalInit,
    /// Signs a GroupContextExtensions proposal, or a commit with one inline
    /// (RFC 9420, 12.1.7).
    SignProposalGroupContextExtensions,
    /// A SelfRemove proposal.
    SignProposalSelfRemove,
    /// Signs a proposal of a type for private use that the configuration knows (RFC 9420,
    /// 17.4), or a commit with one inline.
    SignProposalPrivateUse,
    /// Signs a TargetedMessageTBS (draft-ietf-mls-targeted-messages).
    SignTargetedMessage,
    /// Signs a KeyPackageTBS (RFC 9420, 10).
    SignKeyPackage,
    /// Signs a LeafNodeTBS (RFC 9420, 7.2).
    SignLeafNode,
    /// Signs a GroupInfoTBS (RFC 9420, 12.4.3).
    SignGroupInfo,
    /// Signs something of the app's own that is no MLS structure, under a label.
    SignApp,
    /// Signs what does not parse to the last byte, or contradicts itself.
    SignUnknown,
    /// Opens the group secrets of a Welcome (RFC 9420, 12.4.3.1).
    OpenWelcome,
    /// Opens a path secret of a commit (RFC 9420, 7.6).
    OpenPathSecret,
    /// Opens what does not parse to the last byte, or carries another label.
    OpenUnknown,
    /// Makes an identity with a signature key.
    CreateIdentity,
    /// Makes an HPKE key.
    GenerateHpke,
    /// Asks whether an identity could be used now.
    Prepare,
    /// Lets a group's next commit replace keys in custody by the app's own.
    LeaveCustody,
    /// Attaches a storage, claims keys for its records, settles claims.
    ManageStorage,
    /// Looks at the service's state, and at what the caller owns.
    Look,
    /// Gives an identity a new signature key in the place of the one before.
    RotateIdentity,
    /// Gives an identity another credential: a basic one, or certificates that were issued for
    /// its key.
    UpdateCredential,
    /// Signs a request for a certificate (RFC 2986) with an identity's key.
    SignCsr,
    /// Makes an identity of a signature key that is on a device already.
    AdoptIdentity,
    /// Makes an identity with a signature key for another owner.
    CreateIdentityFor,
    /// Gives what an owner has, identities, storages and keys, to another one.
    ReassignKeys,
    /// Unlocks a signature key that has a PIN of its own.
    UnlockIdentity,
    /// Locks the signature keys of an identity that have a PIN of their own.
    LockIdentity,
    /// Unlocks a device.
    UnlockDevice,
    /// Makes another token the device's own, in the place of the one that its keys
    /// are on.
    AcceptDevice,
    /// Makes evidence that an identity's signature key is in hardware.
    AttestIdentity,
    /// Answers a verifier's challenge for such evidence.
    AnswerChallenge,
    /// Approves what the machine has measured, so that keys work that were made with
    /// other measurements.
    ApproveMeasurements,
    /// Locks a device.
    LockDevice,
    /// Has the guard forget a group of an identity.
    ResetGuard,
    /// Freezes a user, an app, an identity, a device, or all.
    Freeze,
    /// Thaws what was frozen.
    Thaw,
    /// Looks, for a person, at what waits for that person, and answers it.
    AnswerPrompt,
    /// Looks at, and manages, what all callers own.
    Administer,
}

impl Action {
    /// The action of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.name() == name)
    }
}

impl serde::Serialize for Action {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
