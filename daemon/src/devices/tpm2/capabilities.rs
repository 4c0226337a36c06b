//! What a TPM says of itself, asked anew each time.

use tss_esapi::constants::{CapabilityType, EccCurveIdentifier, PropertyTag};
use tss_esapi::handles::TpmHandle;
use tss_esapi::structures::{CapabilityData, TaggedProperty};
use tss_esapi::{Context, Error, Result};

use super::connection::{Connection, Secrecy};
use super::failure::misfit;
use super::keys::Curve;
use super::pins::Lockout;
use crate::devices::Fact;

impl Connection {
    /// Who made the TPM, and its firmware: as the TPM says.
    pub(super) fn facts(&mut self) -> Vec<Fact> {
        let mut value = |tag| property(&mut self.context, tag).ok().flatten();
        let manufacturer = value(PropertyTag::Manufacturer).unwrap_or_default();
        let manufacturer = manufacturer.to_be_bytes().map(char::from);
        let firmware = [PropertyTag::FirmwareVersion1, PropertyTag::FirmwareVersion2];
        let [high, low] = firmware.map(|tag| value(tag).unwrap_or_default());
        let facts = [
            ("serial", self.serial()),
            (
                "manufacturer",
                manufacturer
                    .iter()
                    .filter(|c| c.is_ascii_graphic())
                    .collect(),
            ),
            ("firmware", format!("{high:08x}.{low:08x}")),
        ];
        let facts = facts.map(|(name, value)| Fact {
            name: name.to_owned(),
            value,
        });
        let told = facts.into_iter().filter(|fact| !fact.value.is_empty());
        let lockout = self.lockout().ok().and_then(Lockout::fact);
        told.chain(lockout).collect()
    }

    /// Is the curve among those that the TPM lists? Over the session, so that nobody in
    /// between takes it away, and with it the tier of keys.
    pub(super) fn has_curve(&mut self, curve: Curve) -> Result<bool> {
        let curve = EccCurveIdentifier::from(curve.id());
        // The first one from this on: another one if the TPM does not have it.
        let found = self.run(Secrecy::Vouched, |context| {
            context.get_capability(CapabilityType::EccCurves, u16::from(curve).into(), 1)
        });
        match found {
            Ok((CapabilityData::EccCurves(curves), _)) => Ok(curves.contains(&curve)),
            // One that the crate does not know.
            Ok(_) | Err(Error::WrapperError(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Handles of one kind, from this one on.
pub(super) fn handles(context: &mut Context, first: u32, count: u32) -> Result<Vec<TpmHandle>> {
    let (found, _) = context.execute_without_session(|context| {
        context.get_capability(CapabilityType::Handles, first, count)
    })?;
    match found {
        CapabilityData::Handles(handles) => Ok(handles.into_inner()),
        _ => Err(misfit()),
    }
}

/// Does the TPM know this handle?
pub(super) fn is_there(context: &mut Context, handle: TpmHandle) -> Result<bool> {
    let found = handles(context, handle.into(), 1)?;
    Ok(found.contains(&handle))
}

/// A property as it is now; the crate's own way remembers what was.
pub(super) fn property(context: &mut Context, tag: PropertyTag) -> Result<Option<u32>> {
    let (found, _) = context.execute_without_session(|context| {
        context.get_capability(CapabilityType::TpmProperties, tag.into(), 1)
    })?;
    match found {
        CapabilityData::TpmProperties(list) => Ok(list.find(tag).map(TaggedProperty::value)),
        _ => Err(misfit()),
    }
}
