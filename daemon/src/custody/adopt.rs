//! Making an identity of a signature key that is on a device already.
//!
//! The key is journalled and made visible as any other. Nothing on the device is
//! made or changed, and at the key's end here nothing is destroyed there.

use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::{
    AdoptIdentity, Algorithm, Credential, Failure, FailureCode, IdentityInfo, Tier,
};

use super::certify::another_key;
use super::generate::{Place, check_name};
use super::lifecycle::Order;
use super::request::encoded;
use super::subject::Subject;
use super::{Call, Request, Session, failure};
use crate::certificates::Issued;
use crate::store::{IdentityRecord, StoreError};

/// What was read from an [`AdoptIdentity`] request.
pub struct Adopting {
    place: Place,
    /// What its certificate says, if it is to have one.
    issued: Option<Issued>,
}

impl Request for AdoptIdentity {
    type Reply = IdentityInfo;
    type Read = Adopting;
    const ACTION: Action = Action::AdoptIdentity;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<Adopting, Failure> {
        check_name("a device's name", &self.device)?;
        check_name("a key's label", &self.label)?;
        let custody = session.custody();
        custody
            .check_new_identity(&self.owner, &self.name, &self.credential, subject)
            .await?;
        let issued = match &self.credential {
            Credential::Basic(_) => None,
            Credential::X509(chain) => Some(custody.certified(chain)?),
        };
        custody.devices.get(&self.device)?;
        subject.device = Some(self.device.clone());
        subject.context.algorithm = Algorithm::Signature(self.scheme).to_string();
        // Until the device has said how it keeps the key, no promise is made.
        let tier = Tier::Software;
        subject.context.tier = tier.to_string();
        let place = Place {
            device: self.device.clone(),
            tier,
        };
        Ok(Adopting { place, issued })
    }

    fn consents_to(&self, _: &Self::Read) -> Result<Option<Vec<u8>>, Failure> {
        encoded(self)
    }

    async fn perform(
        self,
        read: Adopting,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<IdentityInfo, Failure> {
        let order = Order {
            owner: &self.owner,
            algorithm: Algorithm::Signature(self.scheme),
            place: &read.place,
            identity: Some(&self.name),
            pin: None,
        };
        let adopted = session
            .adopt_key(&order, self.scheme, self.label, call)
            .await?;
        subject.made = Some(adopted.id);
        let custody = session.custody();
        let fits = |issued: &Issued| *adopted.public_key == *issued.public_key;
        if !read.issued.as_ref().is_none_or(fits) {
            custody.undo_creation(adopted.id).await;
            return Err(another_key());
        }
        let record = IdentityRecord {
            owner: self.owner,
            name: self.name,
            made_with: self.credential.clone(),
            credential: self.credential,
            scheme: self.scheme,
            key: adopted.id,
            retiring: Vec::new(),
            next: None,
        };
        let finished = custody.finish_identity(record, adopted).await;
        finished.map_err(|error| match error {
            StoreError::Conflict(_) => in_use(),
            error => failure::of_store(error),
        })
    }
}

fn in_use() -> Failure {
    Failure::new(
        FailureCode::Conflict,
        "the key, or the identity's name, is in use already",
        "see `mlskeyctl identities`: a key serves one identity of one owner",
    )
}
