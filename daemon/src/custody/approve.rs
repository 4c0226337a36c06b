//! Approving what the machine has measured, to which keys of a device are bound. Who
//! did, and what, goes on record.

use mlskeyd_policies::Action;
use mlskeyd_protocol::limits::MAX_SIGNATURE;
use mlskeyd_protocol::v1::{ApproveMeasurements, Bytes, Failure, Measurements, ReadMeasurements};
use sha2::{Digest as _, Sha256};

use super::generate::check_name;
use super::subject::Subject;
use super::{Call, Request, Session, failure};
use crate::audit::{AuditOutcome, Durability, Record};
use crate::devices::{self, Approve, Device, DeviceError};
use crate::polkit::Right;

impl Request for ReadMeasurements {
    type Reply = Measurements;
    type Read = ();
    const ACTION: Action = Action::Administer;
    const RIGHT: Option<Right> = Some(Right::ReadRecords);
    const LEAVES_TRACES: bool = false;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        // To look leaves no record, a refusal does.
        subject.durability = None;
        about(&self.device, session, subject)
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        call: &Call,
        _: &mut Subject,
    ) -> Result<Measurements, Failure> {
        let read = measured(&self.device, session, call).await?;
        Ok(shown(read))
    }
}

impl Request for ApproveMeasurements {
    type Reply = Measurements;
    type Read = ();
    const ACTION: Action = Action::ApproveMeasurements;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        about(&self.device, session, subject)?;
        if self.signature.len() > MAX_SIGNATURE {
            return Err(failure::too_much("the signature", MAX_SIGNATURE));
        }
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<Measurements, Failure> {
        let before = measured(&self.device, session, call).await?;
        subject.content = Some(Sha256::digest(&before.to_sign).into());
        // Before it is done: rather on record and not done than done and not on record.
        session.record_approval(&self.device, &before).await?;
        let signature = self.signature.0;
        let approve = move |device: &mut dyn Device| approver(device)?.approve(&signature);
        let owner = &session.caller().owner;
        let devices = &session.custody().devices;
        let approved = devices.run(&self.device, owner, call, approve).await?;
        subject.content = Some(Sha256::digest(&approved.to_sign).into());
        tracing::warn!(
            device = self.device,
            measurements = text(&approved),
            "measurements of the machine are approved, by an administrator's order and the recovery key"
        );
        Ok(shown(approved))
    }
}

fn about(device: &str, session: &Session, subject: &mut Subject) -> Result<(), Failure> {
    check_name("a device's name", device)?;
    session.custody().devices.get(device)?;
    subject.device = Some(device.to_owned());
    Ok(())
}

async fn measured(
    device: &str,
    session: &Session,
    call: &Call,
) -> Result<devices::Measurements, Failure> {
    let look = |device: &mut dyn Device| approver(device)?.measurements();
    let owner = &session.caller().owner;
    let devices = &session.custody().devices;
    devices.run(device, owner, call, look).await
}

fn approver(device: &mut dyn Device) -> Result<&mut dyn Approve, DeviceError> {
    device.approver().ok_or(DeviceError::CannotDo(
        "bind keys to the machine's measurements",
    ))
}

fn shown(measured: devices::Measurements) -> Measurements {
    let registers = measured.registers.into_iter();
    Measurements {
        registers: registers
            .map(|(number, value)| (number, Bytes(value.to_vec())))
            .collect(),
        to_sign: Bytes(measured.to_sign),
        approved: measured.approved,
    }
}

/// The registers, for the record.
fn text(measured: &devices::Measurements) -> String {
    let registers = measured.registers.iter();
    let registers: Vec<_> = registers
        .map(|(number, value)| format!("PCR {number} {}", hex::encode(value)))
        .collect();
    registers.join(", ")
}

impl Session {
    async fn record_approval(
        &self,
        device: &str,
        measured: &devices::Measurements,
    ) -> Result<(), Failure> {
        let note = format!(
            "if the recovery key signed them, keys are to work with these measurements, too: {}",
            text(measured)
        );
        let outcome = AuditOutcome::Noted { note: note.into() };
        let mut record = Record::new("OfferApproval", outcome);
        record.caller = Some(self.caller().for_audit());
        record.device = Some(device.to_owned());
        record.content = Some(Sha256::digest(&measured.to_sign).into());
        let audit = &self.custody().audit;
        audit
            .append(record, Durability::Now)
            .await
            .map_err(failure::of_audit)
    }
}
