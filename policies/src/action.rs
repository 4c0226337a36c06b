//! What a request does.

/// What a request does: one per kind of request, and for signing and opening
/// one per MLS structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
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
    /// Gives an identity another credential: the certificate that was issued for its key.
    UpdateCredential,
    /// Signs a request for a certificate (RFC 2986) with an identity's key.
    SignCsr,
    /// Makes an identity of a signature key that is on a device already.
    AdoptIdentity,
    /// Makes an identity with a signature key for another owner.
    CreateIdentityFor,
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
    /// All actions.
    pub const ALL: [Self; 43] = [
        Self::SignApplicationMessage,
        Self::SignCommit,
        Self::SignProposalAdd,
        Self::SignProposalUpdate,
        Self::SignProposalRemove,
        Self::SignProposalPreSharedKey,
        Self::SignProposalReInit,
        Self::SignProposalExternalInit,
        Self::SignProposalGroupContextExtensions,
        Self::SignProposalSelfRemove,
        Self::SignProposalPrivateUse,
        Self::SignTargetedMessage,
        Self::SignKeyPackage,
        Self::SignLeafNode,
        Self::SignGroupInfo,
        Self::SignUnknown,
        Self::OpenWelcome,
        Self::OpenPathSecret,
        Self::OpenUnknown,
        Self::CreateIdentity,
        Self::GenerateHpke,
        Self::Prepare,
        Self::LeaveCustody,
        Self::ManageStorage,
        Self::Look,
        Self::RotateIdentity,
        Self::UpdateCredential,
        Self::SignCsr,
        Self::AdoptIdentity,
        Self::CreateIdentityFor,
        Self::UnlockIdentity,
        Self::LockIdentity,
        Self::UnlockDevice,
        Self::AcceptDevice,
        Self::AttestIdentity,
        Self::AnswerChallenge,
        Self::ApproveMeasurements,
        Self::LockDevice,
        Self::ResetGuard,
        Self::Freeze,
        Self::Thaw,
        Self::AnswerPrompt,
        Self::Administer,
    ];

    /// The name in policies and in the audit log. It never changes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SignApplicationMessage => "SignApplicationMessage",
            Self::SignCommit => "SignCommit",
            Self::SignProposalAdd => "SignProposalAdd",
            Self::SignProposalUpdate => "SignProposalUpdate",
            Self::SignProposalRemove => "SignProposalRemove",
            Self::SignProposalPreSharedKey => "SignProposalPreSharedKey",
            Self::SignProposalReInit => "SignProposalReInit",
            Self::SignProposalExternalInit => "SignProposalExternalInit",
            Self::SignProposalGroupContextExtensions => "SignProposalGroupContextExtensions",
            Self::SignProposalSelfRemove => "SignProposalSelfRemove",
            Self::SignProposalPrivateUse => "SignProposalPrivateUse",
            Self::SignTargetedMessage => "SignTargetedMessage",
            Self::SignKeyPackage => "SignKeyPackage",
            Self::SignLeafNode => "SignLeafNode",
            Self::SignGroupInfo => "SignGroupInfo",
            Self::SignUnknown => "SignUnknown",
            Self::OpenWelcome => "OpenWelcome",
            Self::OpenPathSecret => "OpenPathSecret",
            Self::OpenUnknown => "OpenUnknown",
            Self::CreateIdentity => "CreateIdentity",
            Self::GenerateHpke => "GenerateHpke",
            Self::Prepare => "Prepare",
            Self::LeaveCustody => "LeaveCustody",
            Self::ManageStorage => "ManageStorage",
            Self::Look => "Look",
            Self::RotateIdentity => "RotateIdentity",
            Self::UpdateCredential => "UpdateCredential",
            Self::SignCsr => "SignCsr",
            Self::AdoptIdentity => "AdoptIdentity",
            Self::CreateIdentityFor => "CreateIdentityFor",
            Self::UnlockIdentity => "UnlockIdentity",
            Self::LockIdentity => "LockIdentity",
            Self::UnlockDevice => "UnlockDevice",
            Self::AcceptDevice => "AcceptDevice",
            Self::AttestIdentity => "AttestIdentity",
            Self::AnswerChallenge => "AnswerChallenge",
            Self::ApproveMeasurements => "ApproveMeasurements",
            Self::LockDevice => "LockDevice",
            Self::ResetGuard => "ResetGuard",
            Self::Freeze => "Freeze",
            Self::Thaw => "Thaw",
            Self::AnswerPrompt => "AnswerPrompt",
            Self::Administer => "Administer",
        }
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_action_is_listed_once_under_its_own_name() {
        let names: HashSet<_> = Action::ALL.iter().map(|a| a.name()).collect();
        assert_eq!(names.len(), Action::ALL.len());
        for action in Action::ALL {
            assert_eq!(action.name(), format!("{action:?}"));
        }
        assert_eq!(Action::ALL.last(), Some(&Action::Administer));
        assert_eq!(Action::Administer as usize + 1, Action::ALL.len());
    }
}
