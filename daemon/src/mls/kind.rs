//! The names that policy and audit give to what is signed or opened.

use std::fmt;

/// What a request signs or opens. One policy action each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// FramedContentTBS with application data.
    SignApplicationMessage,
    /// FramedContentTBS with a commit, external ones too.
    SignCommit,
    /// An Add proposal, alone or within a commit.
    SignProposalAdd,
    /// An Update proposal.
    SignProposalUpdate,
    /// A Remove proposal, alone or within a commit.
    SignProposalRemove,
    /// A PreSharedKey proposal, alone or within a commit.
    SignProposalPreSharedKey,
    /// A ReInit proposal, alone or within a commit.
    SignProposalReInit,
    /// The ExternalInit proposal of an external commit.
    SignProposalExternalInit,
    /// A GroupContextExtensions proposal, alone or within a commit.
    SignProposalGroupContextExtensions,
    /// A SelfRemove proposal.
    SignProposalSelfRemove,
    /// KeyPackageTBS.
    SignKeyPackage,
    /// LeafNodeTBS.
    SignLeafNode,
    /// GroupInfoTBS.
    SignGroupInfo,
    /// Anything else that was given to be signed.
    SignUnknown,
    /// The group secrets of a Welcome.
    OpenWelcome,
    /// A path secret of a commit's UpdatePath.
    OpenPathSecret,
    /// Anything else that was given to be opened.
    OpenUnknown,
}

impl Kind {
    /// The stable name: the policy action's, and the audit record's.
    pub fn as_str(self) -> &'static str {
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
            Self::SignKeyPackage => "SignKeyPackage",
            Self::SignLeafNode => "SignLeafNode",
            Self::SignGroupInfo => "SignGroupInfo",
            Self::SignUnknown => "SignUnknown",
            Self::OpenWelcome => "OpenWelcome",
            Self::OpenPathSecret => "OpenPathSecret",
            Self::OpenUnknown => "OpenUnknown",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
