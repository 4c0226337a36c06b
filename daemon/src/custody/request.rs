//! What differs between kinds of requests.

use std::time::Instant;

use mlskeyd_policies::Action;
use mlskeyd_protocol::server::ProgressSender;
use mlskeyd_protocol::v1::{CallOptions, Failure, KeyId, Owner};

use serde::Serialize;

use super::subject::Subject;
use super::{Session, failure};
use crate::audit::Durability;
use crate::devices::queue::Priority;
use crate::polkit::Right;

/// What comes with a request, through any door.
pub struct Call {
    /// What the caller chose.
    pub options: CallOptions,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Where news of the running call goes.
    pub progress: ProgressSender,
    /// Who asks for what, for a person to read.
    pub asker: Asker,
}

/// Who asks for what.
#[derive(Clone, Debug)]
pub struct Asker {
    /// Who.
    pub owner: Owner,
    /// For what; of a request to sign or open, before it is read.
    pub action: Action,
}

impl Call {
    pub(super) fn priority(&self) -> Priority {
        match self.options.priority {
            mlskeyd_protocol::v1::Priority::Interactive => Priority::Interactive,
            mlskeyd_protocol::v1::Priority::Background => Priority::Background,
        }
    }
}

/// One kind of request: its steps on the way that [`Session::serve`] goes.
pub trait Request: Send + Sync + 'static {
    /// What it answers.
    type Reply: Send + 'static;
    /// What was read from it.
    type Read: Send + Sync + 'static;

    /// What policies call it. A request to sign or open is called by the MLS
    /// structure in it, once that is read.
    const ACTION: Action;

    /// Whether it makes or destroys something, so that it has to go its way to
    /// the end.
    const LEAVES_TRACES: bool;

    /// What polkit has to let a caller do that is neither root nor the daemon's own user.
    const RIGHT: Option<Right> = Right::of(Self::ACTION);

    /// The key that it asks for.
    fn key(&self) -> Option<KeyId> {
        None
    }

    /// Reads the request within its bounds, with what the registry knows, and
    /// says what it is about. Asks no device and changes nothing; it may wait
    /// until it is known what a device can do.
    fn read(
        &self,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> impl Future<Output = Result<Self::Read, Failure>> + Send;

    /// The rules that no policy can lift, such as binding by signing.
    ///
    /// # Errors
    /// The rule that is broken.
    fn check(&self, read: &mut Self::Read, subject: &mut Subject) -> Result<(), Failure> {
        let _ = (read, subject);
        Ok(())
    }

    /// Waits for a person where one is needed, and for nothing else: what is given up
    /// here has counted for nothing yet.
    fn ready(
        &self,
        session: &Session,
        call: &Call,
        subject: &Subject,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (session, call, subject);
        std::future::ready(Ok(()))
    }

    /// What a person consents to if the policy wants that: all that is asked for. `None`:
    /// nothing takes a consent.
    ///
    /// # Errors
    /// None that a caller can bring about.
    fn consents_to(&self, read: &Self::Read) -> Result<Option<Vec<u8>>, Failure> {
        let _ = read;
        // The action alone: what policies mark is never served without a consent.
        Ok(Some(Vec::new()))
    }

    /// Does it, with a device where it needs one.
    fn perform(
        self,
        read: Self::Read,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> impl Future<Output = Result<Self::Reply, Failure>> + Send;
}

/// A request as a person consents to it.
pub(super) fn encoded(request: &impl Serialize) -> Result<Option<Vec<u8>>, Failure> {
    let encoded = postcard::to_stdvec(request);
    encoded.map(Some).map_err(|_| failure::internal())
}

/// A request that uses no key and no device: all its steps but one are the same for all.
pub trait PlainRequest: Send + Sync + 'static {
    /// What it answers.
    type Reply: Send + 'static;

    /// What policies call it.
    const ACTION: Action;

    /// Whether it goes on record when it is served, and so has to go its way to
    /// the end. A refusal or failure always does.
    const RECORDED: bool = false;

    /// As [`Request::RIGHT`].
    const RIGHT: Option<Right> = Right::of(Self::ACTION);

    /// Is it within its bounds?
    ///
    /// # Errors
    /// The bound that is broken.
    fn bounds(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Does it.
    fn run(self, session: &Session) -> impl Future<Output = Result<Self::Reply, Failure>> + Send;
}

impl<R: PlainRequest> Request for R {
    type Reply = R::Reply;
    type Read = ();
    const ACTION: Action = R::ACTION;
    const LEAVES_TRACES: bool = R::RECORDED;
    const RIGHT: Option<Right> = R::RIGHT;

    async fn read(&self, _: &Session, _: &Call, subject: &mut Subject) -> Result<(), Failure> {
        subject.durability = R::RECORDED.then_some(Durability::Now);
        self.bounds()
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        _: &Call,
        _: &mut Subject,
    ) -> Result<R::Reply, Failure> {
        self.run(session).await
    }
}
