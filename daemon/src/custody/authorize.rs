//! Whether a caller may administer that is neither root nor the daemon's own user: polkit
//! says, before anything is done for the request. What the caller may do then is decided by
//! the policies, as for root.

use std::sync::Arc;

use mlskeyd_protocol::v1::{Failure, FailureCode};

use super::devices::until_a_person_came;
use super::subject::Subject;
use super::{Call, Custody, Session};
use crate::caller::DEFAULT_APP;
use crate::polkit::{Question, Refusal, Right};

/// The rule that is broken where nobody lets others administer.
const ADMINISTRATORS: &str = "builtin/administrators";

impl Session {
    /// Has polkit say whether the caller may, if it takes that.
    ///
    /// # Errors
    /// It may not, or there is no polkit to say so.
    pub(super) async fn authorize(
        &self,
        right: Option<Right>,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        let custody = self.custody();
        let caller = self.caller();
        let owner = &caller.owner;
        // Who is in a sandbox has not the rights of its user.
        let administers = custody.policy.administers(owner.uid) && !caller.is_confined;
        let Some(right) = right.filter(|_| !administers) else {
            return Ok(());
        };
        custody.can_record()?;
        let until = until_a_person_came(call);
        let answer = match (&custody.polkit, &caller.process) {
            (Some(polkit), Some(process)) => {
                let question = Question {
                    process: Arc::clone(process),
                    uid: owner.uid,
                    // Rules that name an app are for who has proven to be it.
                    app: if caller.is_proven {
                        owner.app.clone()
                    } else {
                        DEFAULT_APP.to_owned()
                    },
                    right,
                    request: subject.action.name(),
                    interactive: until.is_some(),
                    until: until.unwrap_or(call.deadline),
                };
                polkit.ask(&question).await
            }
            (Some(_), None) => Err(Refusal::Absent("it does not see the process".into())),
            (None, _) => Err(Refusal::Absent("it is on no bus of the machine's".into())),
        };
        let Err(why) = answer else {
            subject.authorized_by = Some(right.policy());
            return Ok(());
        };
        let (rule, failure) = refusal(why, right, until.is_some());
        Err(match rule {
            Some(rule) => subject.refuse(rule, failure),
            None => failure,
        })
    }
}

const AUTHENTICATE: &str = "repeat it, and authenticate when polkit asks";

/// What a caller is told who may not, or not now; and what refuses it, if it is refused.
fn refusal(why: Refusal, right: Right, interactive: bool) -> (Option<&'static str>, Failure) {
    let id = right.id();
    let polkit = Some(right.policy());
    let (rule, code, message, advice) = match why {
        Refusal::No => (
            polkit,
            FailureCode::Denied,
            format!("polkit does not let this user do this ({id})"),
            "have the administrator permit it by a rule of polkit, or run it as root (sudo mlskeyctl)",
        ),
        Refusal::NobodyToAsk => (
            polkit,
            FailureCode::Denied,
            format!(
                "polkit wants a person to authenticate for this ({id}), and has no agent to ask one with"
            ),
            "start an agent, as desktops do (in a terminal: pkttyagent), or run it as root (sudo mlskeyctl)",
        ),
        Refusal::Dismissed => (
            polkit,
            FailureCode::Denied,
            format!("nobody authenticated for this ({id}): the dialog was dismissed"),
            AUTHENTICATE,
        ),
        Refusal::TooLate if interactive => (
            polkit,
            FailureCode::Denied,
            format!("nobody authenticated for this ({id}) in time"),
            AUTHENTICATE,
        ),
        Refusal::Changed => (
            polkit,
            FailureCode::Denied,
            "the process that asked has ended, or started another program, before polkit answered"
                .to_owned(),
            "let the process wait for the answer",
        ),
        Refusal::TakesAPerson => (
            None,
            FailureCode::InteractionRequired,
            format!(
                "polkit wants a person to authenticate for this ({id}), and the request must not wait for one"
            ),
            "let the request wait for that, or run it as root (sudo mlskeyctl)",
        ),
        Refusal::TooLate => (
            None,
            FailureCode::Timeout,
            format!("polkit did not say in time whether this user may do this ({id})"),
            "have the administrator see whether polkit works, or run it as root (sudo mlskeyctl)",
        ),
        Refusal::Busy => (
            None,
            FailureCode::Busy,
            "too many requests of this user wait for polkit already".to_owned(),
            "authenticate for them, or dismiss them, then repeat it",
        ),
        Refusal::Absent(detail) => (
            Some(ADMINISTRATORS),
            FailureCode::Denied,
            format!(
                "only root and the daemon's own user administer mlskeyd while it cannot ask polkit who else may: {detail}"
            ),
            "run it as root (sudo mlskeyctl); or install polkit and mlskeyd's actions for it, and name the machine's bus in the configuration ([dbus] bus = \"system\")",
        ),
    };
    (rule, Failure::new(code, message, advice))
}

impl Custody {
    /// May others administer than root and the daemon's user, if polkit lets them?
    pub(crate) const fn asks_polkit(&self) -> bool {
        self.polkit.is_some()
    }
}
