//! Making another token, or TPM, a device's own, as an administrator orders it. Nothing else
//! does: on one that is not the device's own all keys would seem to be gone.

use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::{AcceptDevice, AcceptedDevice, Failure, FailureCode};

use super::admin::device_info;
use super::generate::check_name;
use super::subject::Subject;
use super::{Call, Request, Session, failure};
use crate::audit::{AuditOutcome, Durability, Record};
use crate::devices::{Accept, Device, DeviceError, Newcomer};

impl Request for AcceptDevice {
    type Reply = AcceptedDevice;
    type Read = ();
    const ACTION: Action = Action::AcceptDevice;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        _: &Call,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        check_name("a device's name", &self.device)?;
        session.custody().devices.get(&self.device)?;
        subject.device = Some(self.device.clone());
        Ok(())
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        call: &Call,
        _: &mut Subject,
    ) -> Result<AcceptedDevice, Failure> {
        let custody = session.custody();
        let devices = &custody.devices;
        let look = |device: &mut dyn Device| accepter(device)?.look();
        let newcomer = devices.attend(&self.device, call.deadline, look).await?;
        if newcomer.is_own {
            return Err(is_own(&self.device, &newcomer));
        }
        // Before it is done: rather on record and not done than done and not on
        // record.
        session.record_newcomer(&self.device, &newcomer).await?;
        let serial = newcomer.serial.clone();
        let accept = move |device: &mut dyn Device| accepter(device)?.accept(&serial);
        devices.attend(&self.device, call.deadline, accept).await?;
        tracing::warn!(
            device = self.device,
            serial = ?newcomer.serial,
            before = ?newcomer.own,
            "another {} is the device's own now, by an administrator's order",
            newcomer.noun
        );
        Ok(AcceptedDevice {
            device: device_info(devices.shown(&self.device)?),
            serial: newcomer.serial,
            before: newcomer.own,
        })
    }
}

fn accepter(device: &mut dyn Device) -> Result<&mut dyn Accept, DeviceError> {
    device
        .accepter()
        .ok_or(DeviceError::CannotDo("have another one in its place"))
}

impl Session {
    async fn record_newcomer(&self, device: &str, newcomer: &Newcomer) -> Result<(), Failure> {
        let before = match &newcomer.own {
            Some(own) => format!("of the one with {own:?}"),
            None => "of one that is not known any more".to_owned(),
        };
        let note = format!(
            "the {} with serial number {:?} is to take the place {before}: {}, and what waits \
             there to be destroyed counts as destroyed",
            newcomer.noun, newcomer.serial, newcomer.fate
        );
        let mut record = Record::new("ReplaceToken", AuditOutcome::Noted { note: note.into() });
        record.caller = Some(self.caller().for_audit());
        record.device = Some(device.to_owned());
        let audit = &self.custody().audit;
        audit
            .append(record, Durability::Now)
            .await
            .map_err(failure::of_audit)
    }
}

fn is_own(device: &str, newcomer: &Newcomer) -> Failure {
    let Newcomer { noun, serial, .. } = newcomer;
    Failure::new(
        FailureCode::Conflict,
        format!("the {noun} that is there, with serial number {serial:?}, is the device's own"),
        "nothing is to be accepted; `mlskeyctl devices` shows the device's state",
    )
    .at_device(device)
}
