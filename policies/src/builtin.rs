//! The rules that are built in.

use std::borrow::Cow;

use crate::{Action, Decision, Question, Said};

/// What the configuration says to the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// May an app take a group out of custody?
    pub allow_leave: bool,
    /// What takes a person's consent.
    pub consent: Vec<Action>,
    /// The user id that the daemon runs under. It and root administer.
    pub daemon_uid: u32,
}

/// The rules that no policy of a company can lift.
#[derive(Clone, Debug)]
pub struct Rules {
    settings: Settings,
}

/// What an action needs besides a caller.
enum Needs {
    /// Something that is there already, and is the caller's.
    Own,
    /// Nothing; but what is there already must be the caller's.
    OwnIfAny,
    /// As `Own`, and the configuration's consent.
    LeaveAllowed,
    /// An administrator.
    Administrator,
    /// Nobody may.
    Never,
}

impl Rules {
    /// The rules that are built in:
    ///
    /// - the owner of a key, an identity or a storage may use it, and anybody
    ///   may make keys and identities of their own;
    /// - nobody may have signed or opened what the daemon cannot read;
    /// - leaving custody is permitted only if the configuration says so;
    /// - what the configuration marks takes a person's consent;
    /// - root and the daemon's own user administer, and whoever something outside of the
    ///   policies lets ([`Question::administers_by`]).
    #[must_use]
    pub const fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Decides. Equal questions have equal answers.
    #[must_use]
    pub fn decide(&self, question: &Question<'_>) -> Decision {
        match self.rule(question) {
            Decision::Permit { policy, .. } => Decision::Permit {
                policy,
                consent: self
                    .settings
                    .consent
                    .contains(&question.action)
                    .then(consent),
            },
            denied => denied,
        }
    }

    /// Is this user root, or the daemon's own?
    #[must_use]
    pub const fn administers(&self, uid: u32) -> bool {
        uid == 0 || uid == self.settings.daemon_uid
    }

    fn rule(&self, question: &Question<'_>) -> Decision {
        let own = question.owner.map(|owner| owner == question.caller);
        match needs(question.action) {
            Needs::Never => deny(
                "builtin/unknown-structure",
                "this is no MLS structure that mlskeyd can read to its last byte",
                "if it is honest MLS content, check that this version of mlskeyd knows the message type, and that the configuration has the proposal's under private_proposals",
            ),
            Needs::Administrator => {
                if self.administers(question.caller.uid) {
                    permit("builtin/administrators")
                } else if let Some(by) = question.administers_by {
                    permit(by)
                } else {
                    deny(
                        "builtin/administrators",
                        "only root and the daemon's own user administer mlskeyd",
                        "run the command as root",
                    )
                }
            }
            Needs::Own if own != Some(true) => not_the_owner(),
            Needs::LeaveAllowed if own != Some(true) => not_the_owner(),
            Needs::OwnIfAny if own == Some(false) => not_the_owner(),
            Needs::LeaveAllowed if !self.settings.allow_leave => deny(
                "builtin/leave-custody",
                "the configuration does not let keys leave custody",
                "ask the administrator to set allow_leave = true under [policy]",
            ),
            Needs::LeaveAllowed => permit("builtin/leave-custody"),
            Needs::Own | Needs::OwnIfAny => permit("builtin/owner"),
        }
    }
}

impl Action {
    /// Do administrators alone take it?
    #[must_use]
    pub const fn is_for_administrators(self) -> bool {
        matches!(needs(self), Needs::Administrator)
    }
}

const fn needs(action: Action) -> Needs {
    match action {
        Action::SignApplicationMessage
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
        | Action::OpenWelcome
        | Action::OpenPathSecret
        | Action::Prepare => Needs::Own,
        Action::CreateIdentity
        | Action::GenerateHpke
        | Action::ManageStorage
        | Action::Look
        | Action::AnswerPrompt => Needs::OwnIfAny,
        Action::LeaveCustody => Needs::LeaveAllowed,
        Action::RotateIdentity
        | Action::UpdateCredential
        | Action::SignCsr
        | Action::AdoptIdentity
        | Action::CreateIdentityFor
        | Action::ReassignKeys
        | Action::UnlockIdentity
        | Action::LockIdentity
        | Action::UnlockDevice
        | Action::AcceptDevice
        | Action::AttestIdentity
        | Action::AnswerChallenge
        | Action::ApproveMeasurements
        | Action::LockDevice
        | Action::ResetGuard
        | Action::Freeze
        | Action::Thaw
        | Action::Administer => Needs::Administrator,
        Action::SignUnknown | Action::OpenUnknown => Needs::Never,
    }
}

const fn permit(policy: &'static str) -> Decision {
    Decision::Permit {
        policy: Cow::Borrowed(policy),
        consent: None,
    }
}

fn consent() -> Said {
    Said {
        policy: "builtin/consent".to_owned(),
        reason: "the configuration takes a person's consent for this".to_owned(),
        advice: None,
    }
}

const fn deny(policy: &'static str, reason: &'static str, advice: &'static str) -> Decision {
    Decision::Deny {
        policy: Cow::Borrowed(policy),
        reason: Cow::Borrowed(reason),
        advice: Cow::Borrowed(advice),
    }
}

const fn not_the_owner() -> Decision {
    deny(
        "builtin/owner",
        "this does not belong to the caller",
        "use a key, an identity or a storage that this app made as this user",
    )
}

#[cfg(test)]
mod tests {
    use mlskeyd_protocol::v1::Owner;

    use super::*;

    fn owner(uid: u32, app: &str) -> Owner {
        Owner {
            uid,
            app: app.into(),
        }
    }

    fn decide(
        allow_leave: bool,
        caller: &Owner,
        action: Action,
        owner: Option<&Owner>,
    ) -> Decision {
        let policy = Rules::new(Settings {
            allow_leave,
            consent: vec![Action::CreateIdentity],
            daemon_uid: 77,
        });
        policy.decide(&Question {
            caller,
            action,
            owner,
            administers_by: None,
        })
    }

    const ADMINISTRATORS: [Action; 18] = [
        Action::RotateIdentity,
        Action::UpdateCredential,
        Action::SignCsr,
        Action::AdoptIdentity,
        Action::CreateIdentityFor,
        Action::ReassignKeys,
        Action::UnlockIdentity,
        Action::LockIdentity,
        Action::UnlockDevice,
        Action::AcceptDevice,
        Action::AttestIdentity,
        Action::AnswerChallenge,
        Action::ApproveMeasurements,
        Action::LockDevice,
        Action::ResetGuard,
        Action::Freeze,
        Action::Thaw,
        Action::Administer,
    ];

    /// (by the owner, with nothing, by another user, by another app) for each
    /// action, with leaving allowed.
    fn expected(action: Action) -> [bool; 4] {
        match action {
            Action::SignUnknown | Action::OpenUnknown => [false, false, false, false],
            _ if ADMINISTRATORS.contains(&action) => [false, false, false, false],
            Action::CreateIdentity
            | Action::GenerateHpke
            | Action::ManageStorage
            | Action::Look
            | Action::AnswerPrompt => [true, true, false, false],
            _ => [true, false, false, false],
        }
    }

    #[test]
    fn each_action_is_the_owners_alone() {
        let alice = owner(1000, "default");
        for action in Action::ALL.iter().copied() {
            let answers = [
                Some(alice.clone()),
                None,
                Some(owner(1001, "default")),
                Some(owner(1000, "other")),
            ]
            .map(|of| decide(true, &alice, action, of.as_ref()).is_permit());
            assert_eq!(answers, expected(action), "{action}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_to_root_too() {
        let root = owner(0, "default");
        for action in [Action::SignUnknown, Action::OpenUnknown] {
            assert!(
                !decide(true, &root, action, Some(&root)).is_permit(),
                "{action}"
            );
        }
    }

    #[test]
    fn root_uses_nobody_elses_keys() {
        let (root, alice) = (owner(0, "default"), owner(1000, "default"));
        for action in Action::ALL.iter().copied() {
            let permitted = decide(true, &root, action, Some(&alice)).is_permit();
            assert_eq!(permitted, ADMINISTRATORS.contains(&action), "{action}");
        }
    }

    #[test]
    fn leaving_needs_the_configurations_consent() {
        let alice = owner(1000, "default");
        let answer = decide(false, &alice, Action::LeaveCustody, Some(&alice));
        let Decision::Deny { policy, advice, .. } = answer else {
            panic!("permitted")
        };
        assert_eq!(policy, "builtin/leave-custody");
        assert!(advice.contains("allow_leave"));
        assert!(decide(true, &alice, Action::LeaveCustody, Some(&alice)).is_permit());
    }

    #[test]
    fn root_and_the_daemons_user_administer() {
        for action in ADMINISTRATORS {
            for (uid, permitted) in [(0, true), (77, true), (1000, false)] {
                let answer = decide(false, &owner(uid, "default"), action, None);
                assert_eq!(answer.is_permit(), permitted, "{action} by {uid}");
            }
        }
    }

    #[test]
    fn whoever_is_let_administers_and_nothing_else() {
        let policy = Rules::new(Settings {
            allow_leave: true,
            consent: Vec::new(),
            daemon_uid: 77,
        });
        let (alice, bob) = (owner(1000, "default"), owner(1001, "default"));
        for action in Action::ALL.iter().copied() {
            let question = Question {
                caller: &alice,
                action,
                owner: Some(&bob),
                administers_by: Some("polkit/x"),
            };
            let administers = ADMINISTRATORS.contains(&action);
            assert_eq!(action.is_for_administrators(), administers, "{action}");
            let expected = administers.then_some("polkit/x");
            let by = match policy.decide(&question) {
                Decision::Permit { policy, .. } => Some(policy),
                Decision::Deny { .. } => None,
            };
            assert_eq!(by.as_deref(), expected, "{action}");
        }
    }
}
