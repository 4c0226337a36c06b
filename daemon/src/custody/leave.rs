//! Leaving custody, where the policy permits it.

use mlskeyd_policies::Action;
use mlskeyd_protocol::limits::{MAX_GROUP_ID, MAX_PUBLIC_KEY};
use mlskeyd_protocol::v1::{Failure, LeaveCustody};

use super::generate::check_name;
use super::request::encoded;
use super::subject::Subject;
use super::{Call, Request, Session, failure};
use crate::store::GuardId;

impl Request for LeaveCustody {
    type Reply = ();
    type Read = ();
    const ACTION: Action = Action::LeaveCustody;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        check_name("an identity's name", &self.identity)?;
        if self.group.len() > MAX_GROUP_ID || self.signature_key.len() > MAX_PUBLIC_KEY {
            return Err(failure::too_much("a group id or public key", MAX_GROUP_ID));
        }
        let known = session.identity(&self.identity).await?;
        let (_, key) = known.ok_or_else(|| failure::not_found("identity"))?;
        subject.about_key(key);
        subject.context.group = Some(hex::encode(&*self.group));
        subject.group = Some(self.group.clone());
        Ok(())
    }

    fn consents_to(&self, _: &Self::Read) -> Result<Option<Vec<u8>>, Failure> {
        encoded(self)
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<(), Failure> {
        let registry = &session.custody().registry;
        let owner = session.caller().owner.clone();
        let of = GuardId {
            owner,
            identity: self.identity,
            group: self.group,
        };
        registry
            .permit_leave(of, self.signature_key)
            .await
            .map_err(failure::of_store)
    }
}
