//! Unlocking a device by a person's PIN, and locking it. Who did it goes on record, and
//! the PIN nowhere.

use mlskeyd_policies::Action;
use mlskeyd_protocol::v1::{DeviceInfo, Failure, LockDevice, Unlock, Unlocked};

use super::admin::device_info;
use super::generate::check_name;
use super::key_pins::check_pin;
use super::subject::Subject;
use super::{Call, Request, Session};
use crate::devices::{Device, DeviceError, Unlocking};

impl Request for Unlock {
    type Reply = Unlocked;
    type Read = ();
    const ACTION: Action = Action::UnlockDevice;
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
        check_pin(&self.pin)
    }

    async fn perform(
        self,
        (): (),
        session: &Session,
        call: &Call,
        _: &mut Subject,
    ) -> Result<Unlocked, Failure> {
        let Self {
            device: name,
            pin,
            last_try,
        } = self;
        let custody = session.custody();
        let unlock = move |device: &mut dyn Device| {
            let unlocker = device
                .unlocker()
                .ok_or(DeviceError::CannotDo("be unlocked"))?;
            unlocker.unlock(&pin, last_try)
        };
        let how = custody.devices.attend(&name, call.deadline, unlock).await?;
        if how == Unlocking::ByThePin {
            custody.devices.is_only_for(&name, None);
        }
        Ok(Unlocked {
            device: device_info(custody.devices.shown(&name)?),
            pin_tried: how == Unlocking::ByThePin,
        })
    }
}

impl Request for LockDevice {
    type Reply = DeviceInfo;
    type Read = ();
    const ACTION: Action = Action::LockDevice;
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
    ) -> Result<DeviceInfo, Failure> {
        let custody = session.custody();
        let lock = |device: &mut dyn Device| {
            let unlocker = device.unlocker();
            let unlocker = unlocker.ok_or(DeviceError::CannotDo("be locked"))?;
            unlocker.lock()
        };
        let name = &self.device;
        custody.devices.attend(name, call.deadline, lock).await?;
        Ok(device_info(custody.devices.shown(name)?))
    }
}
