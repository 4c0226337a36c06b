//! What polkit is asked for, and which request takes what of it.

use mlskeyd_policies::Action;

/// A part of administering: an action, as polkit calls it, of `systemd/org.mlskeyd.policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Looks at the daemon, its devices, and what is frozen.
    View,
    /// Reads of everybody's identities, keys, storages and refusals.
    ReadRecords,
    /// Unlocks and locks what is another's.
    Unlock,
    /// Says who somebody is, and proves where a key is.
    ManageIdentities,
    /// Has keys destroyed, or given up.
    DestroyKeys,
    /// Says what is permitted.
    Policies,
}

/// The enumeration's members, each with its names.
macro_rules! named {
    ($($right:ident => $name:literal,)*) => {
        impl Right {
            /// All of them.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$right,)*];

            /// What polkit calls it.
            pub(crate) const fn id(self) -> &'static str {
                match self {
                    $(Self::$right => concat!("org.mlskeyd.", $name),)*
                }
            }

            /// What permits or refuses by it, for the records.
            pub(crate) const fn policy(self) -> &'static str {
                match self {
                    $(Self::$right => concat!("polkit/org.mlskeyd.", $name),)*
                }
            }
        }
    };
}

named! {
    View => "view",
    ReadRecords => "read-records",
    Unlock => "unlock",
    ManageIdentities => "manage-identities",
    DestroyKeys => "destroy-keys",
    Policies => "policies",
}

impl Right {
    /// What all requests of this action take. `None`: it is no administrator's; or it is
    /// [`Action::Administer`], which many are, so that each says itself what it takes.
    pub(crate) const fn of(action: Action) -> Option<Self> {
        match action {
            Action::UnlockIdentity
            | Action::LockIdentity
            | Action::UnlockDevice
            | Action::LockDevice => Some(Self::Unlock),
            Action::RotateIdentity
            | Action::UpdateCredential
            | Action::SignCsr
            | Action::AdoptIdentity
            | Action::ReassignKeys
            | Action::CreateIdentityFor
            | Action::AttestIdentity
            | Action::AnswerChallenge => Some(Self::ManageIdentities),
            Action::AcceptDevice => Some(Self::DestroyKeys),
            Action::ApproveMeasurements | Action::ResetGuard | Action::Freeze | Action::Thaw => {
                Some(Self::Policies)
            }
            Action::Administer
            | Action::SignApplicationMessage
            | Action::SignCommit
            | Action::SignProposalAdd
            | Action::SignProposalUpdate
            | Action::SignProposalRemove
            | Action::SignProposalPreSharedKey
            | Action::SignProposalReInit
            | Action::SignProposalExternalInit
            | Action::SignProposalGroupContextExtensions
            | Action::SignProposalSelfRemove
            | Action::SignProposalPrivateUse
            | Action::SignTargetedMessage
            | Action::SignKeyPackage
            | Action::SignLeafNode
            | Action::SignGroupInfo
            | Action::SignApp
            | Action::SignUnknown
            | Action::OpenWelcome
            | Action::OpenPathSecret
            | Action::OpenUnknown
            | Action::CreateIdentity
            | Action::GenerateHpke
            | Action::Prepare
            | Action::LeaveCustody
            | Action::ManageStorage
            | Action::Look
            | Action::AnswerPrompt => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_administrators_may_takes_a_right() {
        for action in Action::ALL.iter().copied() {
            let by_request = action == Action::Administer;
            let expected = action.is_for_administrators() && !by_request;
            assert_eq!(Right::of(action).is_some(), expected, "{action}");
        }
    }

    /// What is installed names these, and no others.
    #[test]
    fn the_file_of_actions_has_each_right() {
        let file = include_str!("../../../systemd/org.mlskeyd.policy");
        let named: Vec<_> = file
            .lines()
            .filter_map(|line| line.trim().strip_prefix("<action id=\""))
            .filter_map(|line| line.strip_suffix("\">"))
            .collect();
        let ids: Vec<_> = Right::ALL.iter().map(|right| right.id()).collect();
        assert_eq!(named, ids);
        for right in Right::ALL {
            assert_eq!(right.policy(), format!("polkit/{}", right.id()));
        }
    }
}
