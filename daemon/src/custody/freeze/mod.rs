//! What administrators have frozen: apps have nothing signed, opened or made for it, whatever
//! the policies say, until somebody thaws it.

mod files;
mod frozen;

use std::sync::Arc;

use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::{
    Failure, FailureCode, Freeze, FreezeTarget, Frozen as FrozenNow, ReadFrozen, Thaw,
};

use super::generate::check_name;
use super::subject::Subject;
use super::{Call, Custody, PlainRequest, Request, Session, failure};
use crate::polkit::Right;
pub use frozen::Frozen;
pub(crate) use frozen::{FILE, LABEL};

/// Longest reason, in bytes.
const MAX_REASON: usize = 500;

impl Custody {
    /// Changes what is frozen. That is written to disk, which none of the threads that
    /// serve waits for.
    async fn change_frozen(
        self: &Arc<Self>,
        change: impl FnOnce(&Frozen) -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let custody = Arc::clone(self);
        let changed = tokio::task::spawn_blocking(move || change(&custody.frozen));
        changed.await.unwrap_or_else(|_| Err(failure::internal()))
    }
}

/// Is it something that can be?
fn check_target(target: &FreezeTarget, subject: &mut Subject) -> Result<(), Failure> {
    match target {
        FreezeTarget::All | FreezeTarget::User(_) => Ok(()),
        FreezeTarget::App(name) => check_name("an app's name", name),
        FreezeTarget::Device(name) => {
            check_name("a device's name", name)?;
            subject.device = Some(name.clone());
            Ok(())
        }
        FreezeTarget::Identity { owner, name } => {
            check_name("an app's name", &owner.app)?;
            check_name("an identity's name", name)?;
            subject.identity = Some(name.clone());
            Ok(())
        }
    }
}

fn check_reason(reason: &str) -> Result<(), Failure> {
    if reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
        return Err(failure::bad_request(
            format!("a reason has at most {MAX_REASON} bytes, and no control characters"),
            "give a shorter one, in one line",
        ));
    }
    Ok(())
}

impl Request for Freeze {
    type Reply = FrozenNow;
    type Read = ();
    const ACTION: Action = Action::Freeze;
    const LEAVES_TRACES: bool = true;

    async fn read(&self, _: &Session, _: &Call, subject: &mut Subject) -> Result<(), Failure> {
        check_target(&self.target, subject)?;
        check_reason(&self.reason)
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<FrozenNow, Failure> {
        let custody = session.custody();
        let note = format!("{}: {}", self.target, self.reason);
        let freeze = |frozen: &Frozen| frozen.freeze(self.target, self.reason);
        custody.change_frozen(freeze).await?;
        custody.note("Frozen", note).await;
        Ok(custody.frozen.listed())
    }
}

impl Request for Thaw {
    type Reply = FrozenNow;
    type Read = ();
    const ACTION: Action = Action::Thaw;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        check_target(&self.target, subject)?;
        if session.custody().frozen.has(&self.target) {
            return Ok(());
        }
        Err(Failure::new(
            FailureCode::NotFound,
            format!("{} is not frozen", self.target),
            "`mlskeyctl frozen` shows what is",
        ))
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<FrozenNow, Failure> {
        let custody = session.custody();
        let note = self.target.to_string();
        let thaw = move |frozen: &Frozen| frozen.thaw(&self.target);
        custody.change_frozen(thaw).await?;
        custody.note("Thawed", note).await;
        Ok(custody.frozen.listed())
    }
}

impl PlainRequest for ReadFrozen {
    type Reply = FrozenNow;
    const ACTION: Action = Action::Administer;
    const RIGHT: Option<Right> = Some(Right::View);

    async fn run(self, session: &Session) -> Result<FrozenNow, Failure> {
        Ok(session.custody().frozen.listed())
    }
}
