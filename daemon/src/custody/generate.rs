//! Making HPKE keys.

use mlskeyd_policies::Action;
use mlskeyd_protocol::limits::MAX_NAME;
use mlskeyd_protocol::v1::{Algorithm, Failure, GenerateHpke, GeneratedHpke, Placement, Tier};

use super::subject::Subject;
use super::{Call, Request, Session, failure};

/// Where a key goes.
pub struct Place {
    pub(super) device: String,
    pub(super) tier: Tier,
}

impl Request for GenerateHpke {
    type Reply = GeneratedHpke;
    type Read = Place;
    const ACTION: Action = Action::GenerateHpke;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<Place, Failure> {
        read_place(
            session,
            call,
            &self.placement,
            Algorithm::Hpke(self.kem),
            subject,
        )
        .await
    }

    async fn perform(
        self,
        place: Place,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<GeneratedHpke, Failure> {
        let key = session
            .create_key(Algorithm::Hpke(self.kem), &place, call)
            .await?;
        subject.made = Some(key.id);
        Ok(GeneratedHpke {
            key: key.id,
            public_key: key.public_key.clone(),
        })
    }
}

/// Finds the place of a new key, within the bounds of a name.
pub(super) async fn read_place(
    session: &Session,
    call: &Call,
    placement: &Placement,
    algorithm: Algorithm,
    subject: &mut Subject,
) -> Result<Place, Failure> {
    if let Some(name) = &placement.device {
        check_name("a device's name", name)?;
    }
    let (device, tier) = session
        .custody()
        .devices
        .place(placement, algorithm, call)
        .await?;
    subject.device = Some(device.clone());
    subject.context.algorithm = algorithm.to_string();
    subject.context.tier = tier.to_string();
    Ok(Place { device, tier })
}

/// A name is 1 to [`MAX_NAME`] bytes without control characters.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), Failure> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(failure::bad_request(
            format!("{what} has to be 1 to {MAX_NAME} bytes without control characters"),
            "choose such a name",
        ));
    }
    Ok(())
}
